"""Extensions and limits of Pillow: other formats, silent reading, and the largest picture that is decoded.

* `open_other` reads HEIC and JPEG XL with a plugin package if it is installed; `count_omitted` counts files of kinds that may
  contain pictures but cannot be read, and says what to do with them.
* `quiet_pillow` silences the warnings and logs of Pillow and libtiff, which only repeat the error that Pillow raises.
* `most_pixels` is the largest number of pixels that is decoded: Pillow's own limit, or the one set by `pixel_limit`.
"""

import contextlib
import ctypes
import functools
import importlib
import importlib.util
import logging
import re
import warnings
from collections import Counter
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

from PIL import Image, _imaging

from cliptools.console import count_of
from cliptools.errors import ImageError, first_line
from cliptools.library_patches import SharedChange

HEAD = 12  # number of leading bytes that identify a format


class Plugin(NamedTuple):
    """A package that reads one kind of pictures; it is imported when the first such picture is read."""

    kind: str
    package: str
    module: str
    reader: str
    """Name of the module's picture class, a subclass of Pillow's ImageFile."""


HEIF = Plugin("HEIC", "pillow-heif", "pillow_heif", "HeifImageFile")
JXL = Plugin("JPEG XL", "pillow-jxl-plugin", "pillow_jxl.JpegXLImagePlugin", "JXLImageFile")
PLUGINS = {".heic": HEIF, ".heif": HEIF, ".hif": HEIF, ".jxl": JXL}
HEIF_BRANDS = (b"heic", b"heix", b"hevc", b"hevx", b"heim", b"heis", b"mif1", b"msf1")
JXL_STARTS = (b"\xff\x0a", b"\0\0\0\x0cJXL ")
REMEDIES: dict[tuple[str, ...], tuple[str, str]] = {
    (
        ".dng", ".cr2", ".cr3", ".nef", ".nrw", ".arw", ".srf", ".sr2", ".orf", ".rw2", ".raf", ".pef", ".srw", ".x3f", ".rwl",
        ".3fr", ".iiq", ".erf", ".kdc", ".mrw",
    ): ("camera raw picture", "develop to JPEG or TIFF first"),
    (".svg", ".svgz", ".eps", ".ps", ".pdf", ".ai", ".wmf", ".emf"): ("vector graphic", "draw to PNG first"),
    (
        ".psd", ".psb", ".xcf", ".exr", ".hdr", ".dcm", ".dicom", ".nii", ".nii.gz", ".jxr", ".wdp", ".avifs", ".heics", ".svs",
        ".ndpi", ".czi",
    ): ("other picture", "convert to PNG or TIFF first"),
    (".mp4", ".mov", ".avi", ".mkv", ".webm", ".m4v", ".mpg", ".mpeg", ".wmv", ".flv"): (
        "video", "ffmpeg -i FILE frames/%06d.png makes images of it",
    ),
    (".zip", ".7z", ".rar"): ("zip or like archive", "unpack, or pack the images as .tar"),
    (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz"): (
        "tar archive", "name each as PATH, unpacked if need be",
    ),
    (".tar.zst", ".tzst", ".tar.lz4"): ("tar archive of another compression", "unpack to .tar first"),
    (
        ".parquet", ".arrow", ".feather", ".h5", ".hdf5", ".npy", ".npz", ".pkl", ".pickle", ".beton",
        ".tfrecord", ".tfrecords", ".mdb", ".lmdb", ".rec", ".ubyte", "-ubyte", "-ubyte.gz",
    ): ("data file", "write its images as files or a .tar first"),
}  # fmt: skip
"""File endings, the kind of file (in the singular), and the remedy that messages suggest."""
BY_ENDING = {ending: remedy for endings, remedy in REMEDIES.items() for ending in endings}
LONGEST_FIRST = sorted(BY_ENDING, key=len, reverse=True)
SHARDED = re.compile(r"-\d+-of-\d+$")


@functools.cache
def installed(plugin: Plugin) -> bool:
    """Return True if the package is installed, without importing it."""
    return importlib.util.find_spec(plugin.module.partition(".")[0]) is not None


def read_by_plugin(name: str) -> bool:
    """Return True if the ending belongs to pictures that an installed plugin reads."""
    plugin = PLUGINS.get(PurePosixPath(name).suffix.lower())
    return plugin is not None and installed(plugin)


def open_other(source: str | BytesIO) -> Image.Image | None:
    """Open a picture of a plugin's kind without decoding it; None for any other kind.

    Raises:
        ImageError: the plugin is not installed, or reports that the picture is damaged.
    """
    head = _head(source)
    heif = head[4:8] == b"ftyp" and head[8:12] in HEIF_BRANDS
    plugin = HEIF if heif else JXL if head.startswith(JXL_STARTS) else None
    if plugin is None:
        return None
    if not installed(plugin):
        raise ImageError(f"a {plugin.kind} picture; pip install {plugin.package} to read it")
    try:
        reader: Any = getattr(importlib.import_module(plugin.module), plugin.reader)
        image: Image.Image = reader(source)
    except Exception as error:
        raise ImageError(f"{plugin.package} cannot read it ({first_line(error)})") from None
    return image


def _head(source: str | BytesIO) -> bytes:
    if isinstance(source, str):
        with Path(source).open("rb") as file:
            return file.read(HEAD)
    source.seek(0)
    head = source.read(HEAD)
    source.seek(0)
    return head


def count_omitted(name: str, omitted: Counter[tuple[str, str]]) -> None:
    """Count a file that cannot be read as a picture, by kind and remedy, if its kind may contain pictures."""
    path = PurePosixPath(name)
    if path.name.startswith("."):
        return
    if (plugin := PLUGINS.get(path.suffix.lower())) is not None:
        omitted[f"{plugin.kind} picture", f"pip install {plugin.package} to read"] += 1
    elif (remedy := _remedy(path.name.lower())) is not None:
        omitted[remedy] += 1


def _remedy(name: str) -> tuple[str, str] | None:
    """Return kind and remedy by the longest matching ending, without shard numbers such as `-00000-of-00010`."""
    bare = SHARDED.sub("", name)
    return next((BY_ENDING[ending] for ending in LONGEST_FIRST if bare.endswith(ending)), None)


def omission_text(omitted: Counter[tuple[str, str]]) -> str:
    """Return the counts as text: `3 HEIC pictures (pip install pillow-heif to read), 1 zip or like archive (unpack, …)`."""
    return ", ".join(f"{count_of(count, kind)} ({remedy})" for (kind, remedy), count in sorted(omitted.items()))


FILTERS = [
    ("error", None, Image.DecompressionBombWarning, None, 0),
    ("ignore", None, UserWarning, re.compile(r"PIL\."), 0),
]
"""Filters in the form of the module warnings: decompression bombs are errors, warnings about damaged tags are ignored."""


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    logger, silent = logging.getLogger("PIL"), logging.NullHandler()
    with contextlib.ExitStack() as stack:
        stack.enter_context(_filters())
        stack.enter_context(_silent_libtiff())
        logger.addHandler(silent)  # else the errors that it logs go to standard error
        stack.callback(logger.removeHandler, silent)
        yield


quiet_pillow = SharedChange(_quiet)
"""Context in which decompression bombs are errors and damaged tags are silent; restored when the last thread leaves it."""


@contextlib.contextmanager
def _filters() -> Iterator[None]:
    """Put FILTERS before all other filters of warnings.

    They are inserted into the current list and removed from it. catch_warnings is not used, because it is not thread-safe: it
    restores a whole list and so reverts what other threads have changed in the meantime.
    """
    changed: Any = warnings.filters
    changed[:0] = FILTERS
    try:
        yield
    finally:
        current: Any = warnings.filters
        for filters in {id(filters): filters for filters in (changed, current)}.values():
            for entry in FILTERS:
                with contextlib.suppress(ValueError):  # another list without them may be current by now
                    filters.remove(entry)


@contextlib.contextmanager
def _silent_libtiff() -> Iterator[None]:
    """Stop libtiff from writing errors to standard error, which Pillow raises as exceptions."""
    handlers = [(setter, setter(None)) for setter in _setters()]
    try:
        yield
    finally:
        for setter, handler in handlers:
            setter(handler)


@functools.cache
def _setters() -> tuple[Any, ...]:
    """Return libtiff's functions that set a handler and return the previous one; empty if they cannot be reached."""
    with contextlib.suppress(OSError, AttributeError, TypeError):
        library = ctypes.CDLL(_imaging.__file__)  # Pillow's own module gives access to the libtiff that Pillow uses
        setters = (library.TIFFSetErrorHandler, library.TIFFSetWarningHandler)
        for setter in setters:
            setter.argtypes, setter.restype = [ctypes.c_void_p], ctypes.c_void_p
        return setters
    return ()


_limits: list[int] = []
"""Limits set by `pixel_limit`, the innermost last; shared by all threads, because decoding threads must obey them."""


def most_pixels() -> int | None:
    """Return the largest number of pixels that is decoded; None if there is no limit."""
    return _limits[-1] if _limits else Image.MAX_IMAGE_PIXELS


@contextlib.contextmanager
def pixel_limit(pixels: int | None) -> Iterator[None]:
    """Set the limit within a context; None leaves it unchanged.

    Pillow's own limit, above which it does not open a picture, is raised if necessary, never lowered, and restored at the end.
    """
    if pixels is None:
        yield
        return
    pillow_limit = Image.MAX_IMAGE_PIXELS
    Image.MAX_IMAGE_PIXELS = None if pillow_limit is None else max(pillow_limit, pixels)
    _limits.append(pixels)
    try:
        yield
    finally:
        _limits.pop()
        Image.MAX_IMAGE_PIXELS = pillow_limit
