"""List the images that PATH arguments name (files, folders, globs, tar archives, standard input), in a fixed order.

Masks, depth maps and label pictures that lie beside a photograph (`cat.mask.png` beside `cat.jpg`) are left out. An image that
two PATHs name, in any spelling, is listed once, because figures over images would count it twice.
"""

import functools
import glob
import os
import re
import stat
import sys
from collections import Counter
from collections.abc import Callable, Collection, Hashable, Iterable, Iterator, Sequence
from contextvars import ContextVar
from io import BufferedIOBase
from pathlib import Path, PurePosixPath
from typing import NamedTuple, cast

from cliptools.console import count_of, escape, note, warn
from cliptools.errors import CliptoolsError, StreamError, UsageError
from cliptools.images.decode import PICTURES, is_picture
from cliptools.images.formats import count_omitted, omission_text
from cliptools.images.tar import TAR_ENDINGS, Endings, OmittedFiles, Span, Spool, is_tar, stream_members, tar_members

STDIN = "-"
SKIP_BAD_SHARDS: ContextVar[bool] = ContextVar("skip_bad_shards", default=False)
"""True if a damaged archive among several is left out instead of being an error."""


class ListedImage(NamedTuple):
    """An image: its name relative to a base, the base as given, and the path or archive place it is read from."""

    name: str
    base: str
    place: str | Span


def find(
    paths: Sequence[str],
    stdin: BufferedIOBase | None = None,
    extra_endings: Endings = (),
    repeated: list[ListedImage] | None = None,
) -> list[ListedImage]:
    """List all images that PATH arguments name, in the order of the arguments and sorted by name within a folder.

    Args:
        extra_endings: Endings of archive members to list as well, though they are no images.
        repeated: List to which images are added that an earlier PATH has; a warning names them if it is None.

    Raises:
        UsageError: no path is given, `-` is given twice, or `-` is given while standard input is a terminal.
        CliptoolsError: a path does not exist, an archive is damaged, or there is no image at all.
    """
    if not paths:
        raise UsageError("no images named: give files, folders, tar archives, or - for a tar on standard input")
    if list(paths).count(STDIN) > 1:
        raise UsageError("- (standard input) can be given once")
    spool = Spool()
    expanded = [match for path in paths for match in ([path] if path == STDIN else _expand(path))]
    omitted: OmittedFiles = Counter()
    twice: list[ListedImage] = []
    images = _without_maps(list(_images_of(expanded, spool, stdin, extra_endings, omitted, twice)))
    if all(image.name.lower().endswith(extra_endings) for image in images):
        raise CliptoolsError(_none_found(expanded, omitted))
    if omitted:
        warn(f"left out beside {count_of(len(images), 'image')}: {omission_text(omitted)}")
    if repeated is not None:
        repeated.extend(twice)
    elif named := [image for image in twice if not image.name.lower().endswith(extra_endings)]:
        verb = "are" if len(named) > 1 else "is"
        warn(f"{count_of(len(named), 'image')} {verb} named twice and read once: {full_name(named[0])}")
    return images


def full_name(image: ListedImage) -> str:
    """Return an image's base as given with its name, so that a table may name it with further folders."""
    return str(PurePosixPath(image.base) / image.name)


def distinct_paths(paths: Sequence[str]) -> tuple[str, ...]:
    """Return PATHs that are data sets of their own, each once, with a warning if one is named twice in any spelling."""
    first: dict[str, str] = {}
    for path in paths:
        if (other := first.setdefault(path if path == STDIN else os.path.realpath(path), path)) is not path and path != STDIN:
            warn(f"{path} is {other} again, and read once")
    return tuple(first.values())


def _identities(path: str, images: Sequence[ListedImage], real: Callable[[str], str]) -> list[Hashable]:
    """Return what identifies each image of a PATH however that is spelled: its real folder and name, or its archive and member.

    A link to a file is an image of its own, as it is within a folder.

    Args:
        real: os.path.realpath, which may remember what it was asked: the shell expands a pattern to one PATH an image.
    """
    places = [  # members of an archive have its name before their own
        os.path.split(image.place) if isinstance(image.place, str) else (path, image.name.partition("/")[2]) for image in images
    ]
    return [(real(folder), name) for folder, name in places]


def _without_maps(images: Sequence[ListedImage]) -> list[ListedImage]:
    """Return the images without maps such as `cat.mask.png` beside `cat.jpg`, with a note on standard error."""
    full = [f"{image.base}/{image.name}" for image in images]
    maps = maps_beside(name for image, name in zip(images, full, strict=True) if is_picture(image.name))
    if maps:
        name, picture = next(iter(maps.items()))
        kind = "a mask or another map" if len(maps) == 1 else "masks or other maps"
        note(f"{count_of(len(maps), 'picture')} left out, {kind} of pictures beside them: {name}, of {picture}")
    return [image for image, name in zip(images, full, strict=True) if name not in maps]


MAP = re.compile(
    r"(?:mask|seg|segm|segmentation|semantic|instance|panoptic|label|annotation|anno|gt|groundtruth|depth|disparity|normals|edge|"
    r"matte|alpha|trimap|saliency|flow)s?(?:[_-]?\w?\d+)?",
    re.IGNORECASE | re.ASCII,
)
"""The part between two dots that marks such a name."""


def maps_beside(names: Iterable[str]) -> dict[str, str]:
    """Return the pictures that are maps of another picture, by their names, with the name of that picture.

    >>> maps_beside(["a/cat.jpg", "a/cat.mask.png", "a/dog.mask.png", "a/cat.2.jpg"])
    {'a/cat.mask.png': 'a/cat.jpg'}

    Args:
        names: Names of all pictures, with their folders; a map without its picture counts as a picture.
    """
    names = list(names)
    maps = {name: pictured for name in names if (pictured := _pictured(name))}
    if not maps:
        return {}
    others = {ending: name for name in names if name not in maps for ending in (name, name.rpartition(".")[0])}
    beside = {name: next((others[stem] for stem in stems if stem in others), None) for name, stems in maps.items()}
    return {name: other for name, other in beside.items() if other is not None}


def _pictured(name: str) -> Collection[str]:
    """Return the possible names, without ending, of the picture that this is a map of; empty if this is no map."""
    if name.count(".") < 2:
        return ()
    folder, slash, base = name.rpartition("/")
    parts = base.split(".")
    place = next((i for i, part in enumerate(parts[1:-1], 1) if MAP.fullmatch(part)), None)
    return () if place is None else (f"{folder}{slash}{'.'.join(parts[:place])}", f"{folder}{slash}{parts[0]}")


def named_path(image: ListedImage) -> str:
    """Return the PATH that an image comes from: its folder as given, or its archive."""
    if isinstance(image.place, str) or image.base == STDIN or not Path(image.base).is_dir():
        return image.base
    return str(PurePosixPath(image.base) / PurePosixPath(image.name).parts[0])


def _expand(path: str) -> list[str]:
    """Expand braces and wildcards, which a shell may have left unexpanded, in an argument that names no existing file.

    Raises:
        CliptoolsError: no file has such a name.
    """
    if os.path.lexists(path):
        return [path]
    expanded = []
    for name in _braces(path):
        matches = [name] if os.path.lexists(name) else _glob(name)
        if not matches:
            raise CliptoolsError(f"{name}: no such file or folder" + (f" (from {path})" if name != path else ""))
        expanded.extend(matches)
    return expanded


def _glob(pattern: str) -> list[str]:
    """Return the paths that match a pattern, like a shell: sorted, without hidden ones (pathlib follows no linked folders)."""
    parts = Path(pattern).parts
    plain = next((i for i, part in enumerate(parts) if glob.has_magic(part)), len(parts))
    if plain == len(parts):
        return []
    base = Path(*parts[:plain])
    matches = base.glob(str(Path(*parts[plain:])))
    return sorted(str(m) for m in matches if not any(part.startswith(".") for part in m.relative_to(base).parts))


def _braces(pattern: str) -> Iterator[str]:
    """Yield the names that `s-{00..02}.tar` or `{train,val}.tar` stand for, one at a time, since a range may be very long.

    By hand, because braceexpand (unmaintained since 2021) holds whole ranges in memory and takes backslashes for escapes.
    """
    match = re.search(r"\{([^{}]*)\}", pattern)
    if match is None:
        yield pattern
        return
    prefix, inside, suffix = pattern[: match.start()], match[1], pattern[match.end() :]
    if (span := re.fullmatch(r"(\d+)\.\.(\d+)", inside)) is not None:
        first, last = int(span[1]), int(span[2])
        padded = any(len(end) > 1 and end[0] == "0" for end in span.groups())  # like shells: {08..10} is padded, {8..10} is not
        width = max(map(len, span.groups())) if padded else 0
        step = 1 if last >= first else -1
        parts: Iterable[str] = (f"{number:0{width}d}" for number in range(first, last + step, step))
    elif "," in inside:
        parts = inside.split(",")
    else:
        yield pattern
        return
    for part in parts:
        yield from _braces(prefix + part + suffix)


def _images_of(
    paths: Sequence[str],
    spool: Spool,
    stdin: BufferedIOBase | None,
    extra_endings: Endings,
    omitted: OmittedFiles,
    repeated: list[ListedImage],
) -> Iterator[ListedImage]:
    """Yield the images path by path; with SKIP_BAD_SHARDS, damaged archives among several are left out with a warning.

    Args:
        repeated: List to which the images are added that an earlier path has; they are not yielded again.

    Raises:
        StreamError: an archive is damaged.
        CliptoolsError: all archives are damaged.
    """
    archives = [path for path in paths if path != STDIN and is_tar(path) and not Path(path).is_dir()]
    bad: list[str] = []
    earlier: set[Hashable] = set()
    real = functools.cache(os.path.realpath)
    for path in paths:
        try:
            images = list(_images_at(path, spool, stdin, extra_endings, omitted))
        except StreamError as error:
            if path not in archives or len(paths) == 1:
                raise
            if not SKIP_BAD_SHARDS.get():
                raise StreamError(f"{error}; --skip-bad-shards goes on without it") from None
            bad.append(str(error))
            continue
        if len(paths) == 1 or not (Path(path).is_file() or Path(path).is_dir()):  # a stream has its images for itself
            yield from images
            continue
        own = _identities(path, images, real)
        repeated.extend(image for image, identity in zip(images, own, strict=True) if identity in earlier)
        yield from (image for image, identity in zip(images, own, strict=True) if identity not in earlier)
        earlier.update(own)
    if bad and len(bad) == len(paths):
        raise CliptoolsError(f"--skip-bad-shards: all {len(bad)} shards are bad, the first: {bad[0]}")
    if bad:
        warn(f"{count_of(len(bad), 'shard')} of {len(archives)} left out (--skip-bad-shards): {'; '.join(bad)}")


def _images_at(
    path: str, spool: Spool, stdin: BufferedIOBase | None, extra_endings: Endings, omitted: OmittedFiles
) -> Iterator[ListedImage]:
    if path == STDIN:
        for member, span in stream_members(stdin or _standard_input(), "standard input", extra_endings, omitted):
            yield ListedImage(escape(member), STDIN, span)
        return
    location = Path(path)
    base = escape(str(location.parent))
    if location.is_dir():
        for relative in _walk(location, omitted):
            yield ListedImage(escape(relative), escape(path), str(location / relative))
    elif not location.is_file():  # a pipe, for example from <(clip-scenes): it can be read only once
        with location.open("rb") as stream:
            for member, span in stream_members(stream, path, extra_endings, omitted):
                yield ListedImage(escape(member), escape(path), span)
    elif is_tar(path):
        for member, span in tar_members(location, spool, extra_endings, omitted):
            yield ListedImage(escape(f"{location.name}/{member}"), base, span)
    else:
        yield ListedImage(escape(location.name), base, path)


def _walk(top: Path, omitted: OmittedFiles) -> Iterator[str]:
    """Yield the posix paths of the pictures below a folder, sorted; links to folders are followed, each folder once."""
    visited: set[tuple[int, int]] = set()
    relative: list[str] = []
    starts = [""]
    while starts:  # links come after the real folders, so that a folder is listed under its own name if it has one here
        links: list[str] = []
        for start in starts:
            relative.extend(_below(top, start, visited, links, omitted))
        starts = sorted(links)
    yield from sorted(relative)


def _below(top: Path, start: str, visited: set[tuple[int, int]], links: list[str], omitted: OmittedFiles) -> Iterator[str]:
    folders = [start]
    while folders:
        folder = folders.pop()
        try:
            status = (top / folder).stat()
            entries = list(os.scandir(top / folder)) if (status.st_dev, status.st_ino) not in visited else []
        except OSError as error:
            warn(f"{top / folder}: this folder is left out ({error.strerror})")
            continue
        visited.add((status.st_dev, status.st_ino))
        for entry in entries:
            path = f"{folder}/{entry.name}" if folder else entry.name
            if entry.name.startswith("."):
                continue
            if _is_folder(entry):
                (links if entry.is_symlink() else folders).append(path)
            elif is_picture(entry.name) and _may_be_read(entry):
                yield path
            else:
                count_omitted(entry.name, omitted)


def _is_folder(entry: os.DirEntry[str]) -> bool:
    """Return True for a folder or a link to a folder; a link to itself is no folder, and reading it reports the error."""
    try:
        return entry.is_dir()
    except OSError:
        return False


def _may_be_read(entry: os.DirEntry[str]) -> bool:
    """Return True for a file, or a broken link (reading it reports the error); a pipe or device could block for ever."""
    try:
        return stat.S_ISREG(entry.stat().st_mode)
    except OSError:
        return True


def _standard_input() -> BufferedIOBase:
    if sys.stdin is None or sys.stdin.closed or sys.stdin.isatty():
        raise UsageError("expected a tar of images on standard input: pipe one in, or name images instead of -")
    return cast(BufferedIOBase, sys.stdin.buffer)


def _none_found(paths: Sequence[str], omitted: OmittedFiles) -> str:
    where = ", ".join(paths[:4]) + (f" and {len(paths) - 4} more" if len(paths) > 4 else "")
    text = f"no images in {where}: looked for names ending in {' '.join(PICTURES)}"
    folders = [Path(path) for path in paths if path != STDIN and Path(path).is_dir()]
    if any(is_tar(child.name) for folder in folders for child in folder.iterdir()):
        text += f"; archives ({' '.join(TAR_ENDINGS)}) must be named themselves"
    return text + (f"; left out: {omission_text(omitted)}" if omitted else "")
