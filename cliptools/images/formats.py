"""Files among pictures that Pillow does not read by itself: some are read with a package, the others counted.

Pillow without its own words: its warnings, its log and libtiff's say of a damaged picture what the error says anyhow.

The most pixels that a picture may have to be decoded: Pillow's limit, or what is asked for.
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
from cliptools.shared_change import SharedChange

HEAD = 12  # bytes that tell a kind


class Plugin(NamedTuple):
    """A package that reads pictures of a kind, and is imported when the first of them is read."""

    kind: str
    package: str
    module: str
    reader: str
    """The class of the module's pictures, a subclass of Pillow's ImageFile."""


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
"""Kinds by the endings of their files, in the singular, and what to do with each file."""
BY_ENDING = {ending: remedy for endings, remedy in REMEDIES.items() for ending in endings}
LONGEST_FIRST = sorted(BY_ENDING, key=len, reverse=True)
SHARDED = re.compile(r"-\d+-of-\d+$")


@functools.cache
def installed(plugin: Plugin) -> bool:
    """Whether the package is there, which is not imported for that."""
    return importlib.util.find_spec(plugin.module.partition(".")[0]) is not None


def read_by_plugin(name: str) -> bool:
    """Whether the ending is of pictures that an installed package reads."""
    plugin = PLUGINS.get(PurePosixPath(name).suffix.lower())
    return plugin is not None and installed(plugin)


def count_left_out(name: str, left: Counter[tuple[str, str]]) -> None:
    """Count a file that is no picture, if it is of a kind that may hold some: the kind, and what would read it."""
    path = PurePosixPath(name)
    if path.name.startswith("."):
        return
    if (plugin := PLUGINS.get(path.suffix.lower())) is not None:
        left[f"{plugin.kind} picture", f"pip install {plugin.package} to read"] += 1
    elif (remedy := _remedy(path.name.lower())) is not None:
        left[remedy] += 1


def _remedy(name: str) -> tuple[str, str] | None:
    """The kind and the remedy by the longest ending; shards may have numbers behind it: `train.tfrecord-00000-of-00010`."""
    bare = SHARDED.sub("", name)
    return next((BY_ENDING[ending] for ending in LONGEST_FIRST if bare.endswith(ending)), None)


def left_out(left: Counter[tuple[str, str]]) -> str:
    """`3 HEIC pictures (pip install pillow-heif to read), 1 zip or like archive (unpack, …)`."""
    return ", ".join(f"{count_of(count, kind)} ({remedy})" for (kind, remedy), count in sorted(left.items()))


def open_other(source: str | BytesIO) -> Image.Image | None:
    """A picture of a kind that a package reads, opened but not decoded; None of another kind.

    Raises:
        ImageError: the package is missing, or finds the picture damaged.
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


FILTERS = [
    ("error", None, Image.DecompressionBombWarning, None, 0),
    ("ignore", None, UserWarning, re.compile(r"PIL\."), 0),
]
"""As the module warnings keeps them: a bomb must not be decoded, and a damaged tag is no news for the user."""


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    logger, silent = logging.getLogger("PIL"), logging.NullHandler()
    with contextlib.ExitStack() as stack:
        stack.enter_context(_filters())
        stack.enter_context(_silent_libtiff())
        logger.addHandler(silent)  # or errors that it logs would go to standard error
        stack.callback(logger.removeHandler, silent)
        yield


quiet_pillow = SharedChange(_quiet)
"""While this context lasts, a decompression bomb is an error, and damaged tags are no news; as it was after the last thread."""


@contextlib.contextmanager
def _filters() -> Iterator[None]:
    """Two filters in front of the others.

    They are put into the list that is in force, and taken out of it, rather than by catch_warnings, which threads must not use:
    it puts back a whole list, and with it whatever another thread has changed meanwhile.
    """
    changed: Any = warnings.filters
    changed[:0] = FILTERS
    try:
        yield
    finally:
        current: Any = warnings.filters
        for listed in {id(each): each for each in (changed, current)}.values():
            for each in FILTERS:
                with contextlib.suppress(ValueError):  # another list came into force meanwhile, without them
                    listed.remove(each)


@contextlib.contextmanager
def _silent_libtiff() -> Iterator[None]:
    """Keep libtiff from writing to standard error by itself what it finds wrong with a file, which Pillow raises anyhow."""
    before = [(setter, setter(None)) for setter in _setters()]
    try:
        yield
    finally:
        for setter, handler in before:
            setter(handler)


@functools.cache
def _setters() -> tuple[Any, ...]:
    """libtiff's functions that take a handler and give the one before; none where they cannot be reached."""
    with contextlib.suppress(OSError, AttributeError, TypeError):
        library = ctypes.CDLL(_imaging.__file__)  # through which its functions are found, wherever Pillow has it from
        setters = (library.TIFFSetErrorHandler, library.TIFFSetWarningHandler)
        for setter in setters:
            setter.argtypes, setter.restype = [ctypes.c_void_p], ctypes.c_void_p
        return setters
    return ()


_asked: list[int] = []
"""Limits asked for, the innermost last; one for all threads, because those that decode obey it."""


def most_pixels() -> int | None:
    """The limit; None where Pillow has none."""
    return _asked[-1] if _asked else Image.MAX_IMAGE_PIXELS


@contextlib.contextmanager
def pixel_limit(pixels: int | None) -> Iterator[None]:
    """Set the limit for a while; None leaves it as it is.

    Pillow's own, by which it refuses to open a picture, is raised where need be, never lowered, and is afterwards as before.
    """
    if pixels is None:
        yield
        return
    before = Image.MAX_IMAGE_PIXELS
    Image.MAX_IMAGE_PIXELS = None if before is None else max(before, pixels)
    _asked.append(pixels)
    try:
        yield
    finally:
        _asked.pop()
        Image.MAX_IMAGE_PIXELS = before
