"""Files among pictures that Pillow does not read by itself: some are read with a package, the others counted."""

import functools
import importlib
import importlib.util
from collections import Counter
from io import BytesIO
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

from PIL import Image

from cliptools.ground.errors import ImageError, first_line

HEAD = 12  # bytes that tell a kind


class Plugin(NamedTuple):
    """A package that reads pictures of a kind, and is imported when the first of them is read."""

    kind: str
    package: str
    module: str
    reader: str
    """The class of the module's pictures, a subclass of Pillow's ImageFile."""


HEIF = Plugin("HEIC", "pillow-heif", "pillow_heif", "HeifImageFile")
JXL = Plugin("JPEG XL", "pillow-jxl-plugin", "pillow_jxl.JXLImagePlugin", "JXLImageFile")
PLUGINS = {".heic": HEIF, ".heif": HEIF, ".hif": HEIF, ".jxl": JXL}
HEIF_BRANDS = (b"heic", b"heix", b"hevc", b"hevx", b"heim", b"heis", b"mif1", b"msf1")
JXL_STARTS = (b"\xff\x0a", b"\0\0\0\x0cJXL ")
REMEDIES: dict[tuple[str, ...], tuple[str, str]] = {
    (".dng", ".cr2", ".cr3", ".nef", ".arw", ".orf", ".rw2", ".raf"): ("camera raw", "develop them to JPEG or TIFF first"),
    (".svg", ".eps", ".pdf", ".ai"): ("vector graphics", "draw them to PNG first"),
    (".psd", ".xcf", ".exr", ".hdr", ".dcm"): ("other pictures", "convert them to PNG or TIFF first"),
    (".mp4", ".mov", ".avi", ".mkv", ".webm", ".m4v"): ("videos", "ffmpeg -i FILE frames/%06d.png makes images of one"),
    (".zip", ".7z", ".rar"): ("zip or like archives", "unpack them, or pack their images as .tar"),
    (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz"): ("tar archives", "name them themselves"),
    (".parquet", ".arrow", ".h5", ".hdf5", ".npz"): ("tables or arrays", "write their images as files or a .tar first"),
}
BY_ENDING = {ending: remedy for endings, remedy in REMEDIES.items() for ending in endings}


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
    if (plugin := PLUGINS.get(path.suffix.lower())) is not None:
        left[plugin.kind, f"pip install {plugin.package} to read them"] += 1
    elif (remedy := BY_ENDING.get("".join(path.suffixes[-2:]).lower()) or BY_ENDING.get(path.suffix.lower())) is not None:
        left[remedy] += 1


def left_out(left: Counter[tuple[str, str]]) -> str:
    """`3 HEIC (pip install pillow-heif to read them), 1 zip …`."""
    return ", ".join(f"{count} {kind} ({remedy})" for (kind, remedy), count in sorted(left.items()))


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
