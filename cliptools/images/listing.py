"""Names of masks, depths and label pictures that lie beside a photograph: `cat.mask.png` beside `cat.jpg`.

Finding images: what PATH arguments name, in a fixed order.
"""

import glob
import os
import re
import stat
import sys
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextvars import ContextVar
from io import BufferedIOBase
from pathlib import Path, PurePosixPath
from typing import NamedTuple, cast

from cliptools.console import count_of, escape, note, warn
from cliptools.errors import CliptoolsError, StreamError, UsageError
from cliptools.images.decode import PICTURES, is_picture
from cliptools.images.formats import count_left_out, left_out
from cliptools.images.tar import TAR_ENDINGS, Endings, LeftOut, Span, Spool, is_tar, stream_members, tar_members

MAP = re.compile(
    r"(?:mask|seg|segm|segmentation|semantic|instance|panoptic|label|annotation|anno|gt|groundtruth|depth|disparity|normals|edge|"
    r"matte|alpha|trimap|saliency|flow)s?(?:[_-]?\w?\d+)?",
    re.IGNORECASE | re.ASCII,
)
"""What stands between two dots in such a name."""


def maps_beside(names: Iterable[str]) -> dict[str, str]:
    """Pictures that are maps of another, by their names, and the name of that.

    >>> maps_beside(["a/cat.jpg", "a/cat.mask.png", "a/dog.mask.png", "a/cat.2.jpg"])
    {'a/cat.mask.png': 'a/cat.jpg'}

    Args:
        names: Of all pictures, with their folders; a map of none of them is a picture like others.
    """
    names = list(names)
    maps = {name: pictured for name in names if (pictured := _pictured(name))}
    if not maps:
        return {}
    others = {ending: name for name in names if name not in maps for ending in (name, name.rpartition(".")[0])}
    beside = {name: next((others[stem] for stem in stems if stem in others), None) for name, stems in maps.items()}
    return {name: other for name, other in beside.items() if other is not None}


def _pictured(name: str) -> Collection[str]:
    """What the picture may be called, with or without its ending, that this is a map of; nothing where it is none."""
    if name.count(".") < 2:
        return ()
    folder, slash, own = name.rpartition("/")
    parts = own.split(".")
    place = next((i for i, part in enumerate(parts[1:-1], 1) if MAP.fullmatch(part)), None)
    return () if place is None else (f"{folder}{slash}{'.'.join(parts[:place])}", f"{folder}{slash}{parts[0]}")


STDIN = "-"
SKIP_BAD_SHARDS: ContextVar[bool] = ContextVar("skip_bad_shards", default=False)
"""Whether a damaged archive among several is left out, and is no error."""


class Found(NamedTuple):
    """An image: its name relative to a base, the base as given, and the path or place it is read from."""

    name: str
    base: str
    place: str | Span


def find(paths: Sequence[str], stdin: BufferedIOBase | None = None, beside: Endings = ()) -> list[Found]:
    """All images that PATH arguments name, in the order of the arguments and sorted by name within a folder.

    Args:
        beside: Endings of members of archives to find as well, though they are no images.

    Raises:
        UsageError: no path at all, `-` twice, or `-` where standard input is a terminal.
        CliptoolsError: a path that does not exist, a damaged archive, or no image in any of them.
    """
    if not paths:
        raise UsageError("no images named: give files, folders, tar archives, or - for a tar on standard input")
    if list(paths).count(STDIN) > 1:
        raise UsageError("- (standard input) can be given once")
    spool = Spool()
    expanded = [one for path in paths for one in ([path] if path == STDIN else _expand(path))]
    left: LeftOut = Counter()
    found = _without_maps(list(_images_of(expanded, spool, stdin, beside, left)))
    if all(one.name.lower().endswith(beside) for one in found):
        raise CliptoolsError(_none_found(expanded, left))
    if left:
        warn(f"left out beside {count_of(len(found), 'image')}: {left_out(left)}")
    return found


def _images_of(
    paths: Sequence[str], spool: Spool, stdin: BufferedIOBase | None, beside: Endings, left: LeftOut
) -> Iterator[Found]:
    """Path by path; a damaged archive of several, with SKIP_BAD_SHARDS, is left out, named and counted.

    Raises:
        StreamError: a damaged archive.
        CliptoolsError: no archive is sound.
    """
    archives = [path for path in paths if path != STDIN and is_tar(path) and not Path(path).is_dir()]
    bad: list[str] = []
    for path in paths:
        try:
            images = list(_images_at(path, spool, stdin, beside, left))
        except StreamError as error:
            if path not in archives or len(paths) == 1:
                raise
            if not SKIP_BAD_SHARDS.get():
                raise StreamError(f"{error}; --skip-bad-shards goes on without it") from None
            bad.append(str(error))
            continue
        yield from images
    if bad and len(bad) == len(paths):
        raise CliptoolsError(f"--skip-bad-shards: all {len(bad)} shards are bad, the first: {bad[0]}")
    if bad:
        warn(f"{count_of(len(bad), 'shard')} of {len(archives)} left out (--skip-bad-shards): {'; '.join(bad)}")


def _without_maps(found: Sequence[Found]) -> list[Found]:
    """Without pictures like `cat.mask.png` beside `cat.jpg`, which are maps of it and no photographs; says so."""
    full = [f"{one.base}/{one.name}" for one in found]
    maps = maps_beside(name for one, name in zip(found, full, strict=True) if is_picture(one.name))
    if maps:
        name, other = next(iter(maps.items()))
        said = "a mask or another map" if len(maps) == 1 else "masks or other maps"
        note(f"{count_of(len(maps), 'picture')} left out, {said} of pictures beside them: {name}, of {other}")
    return [one for one, name in zip(found, full, strict=True) if name not in maps]


def named_path(found: Found) -> str:
    """The PATH an image comes from: its folder as named, or its archive."""
    if isinstance(found.place, str) or found.base == STDIN or not Path(found.base).is_dir():
        return found.base
    return str(PurePosixPath(found.base) / PurePosixPath(found.name).parts[0])


def _images_at(path: str, spool: Spool, stdin: BufferedIOBase | None, beside: Endings, left: LeftOut) -> Iterator[Found]:
    if path == STDIN:
        for member, span in stream_members(stdin or _standard_input(), "standard input", beside, left):
            yield Found(escape(member), STDIN, span)
        return
    here = Path(path)
    base = escape(str(here.parent))
    if here.is_dir():
        for relative in _walk(here, left):
            yield Found(escape(relative), escape(path), str(here / relative))
    elif not here.is_file():  # a pipe, as <(clip-scenes) gives: it can be read but once
        with here.open("rb") as stream:
            for member, span in stream_members(stream, path, beside, left):
                yield Found(escape(member), escape(path), span)
    elif is_tar(path):
        for member, span in tar_members(here, spool, beside, left):
            yield Found(escape(f"{here.name}/{member}"), base, span)
    else:
        yield Found(escape(here.name), base, path)


def _walk(top: Path, left: LeftOut) -> Iterator[str]:
    """Posix paths below a folder of the pictures in it, sorted; links to folders are followed, each folder once."""
    seen: set[tuple[int, int]] = set()
    relative: list[str] = []
    waiting = [""]
    while waiting:  # links after all that is really here, so that a folder goes by its own name wherever it has one
        links: list[str] = []
        for start in waiting:
            relative.extend(_below(top, start, seen, links, left))
        waiting = sorted(links)
    yield from sorted(relative)


def _below(top: Path, start: str, seen: set[tuple[int, int]], links: list[str], left: LeftOut) -> Iterator[str]:
    folders = [start]
    while folders:
        folder = folders.pop()
        try:
            status = (top / folder).stat()
            entries = list(os.scandir(top / folder)) if (status.st_dev, status.st_ino) not in seen else []
        except OSError as error:
            warn(f"{top / folder}: this folder is left out ({error.strerror})")
            continue
        seen.add((status.st_dev, status.st_ino))
        for entry in entries:
            path = f"{folder}/{entry.name}" if folder else entry.name
            if entry.name.startswith("."):
                continue
            if _is_folder(entry):
                (links if entry.is_symlink() else folders).append(path)
            elif is_picture(entry.name) and _may_be_read(entry):
                yield path
            else:
                count_left_out(entry.name, left)


def _is_folder(entry: os.DirEntry[str]) -> bool:
    """A folder or a link to one; not a link that leads back to itself, which reading will report."""
    try:
        return entry.is_dir()
    except OSError:
        return False


def _may_be_read(entry: os.DirEntry[str]) -> bool:
    """A file, or a link that leads nowhere (which reading will report); opening a pipe or device would wait for ever."""
    try:
        return stat.S_ISREG(entry.stat().st_mode)
    except OSError:
        return True


def _expand(path: str) -> list[str]:
    """An argument that names no file: its braces and wildcards, which a shell may have left alone.

    Raises:
        CliptoolsError: nothing by that name.
    """
    if os.path.lexists(path):
        return [path]
    expanded = []
    for one in _braces(path):
        matches = [one] if os.path.lexists(one) else _glob(one)
        if not matches:
            raise CliptoolsError(f"{one}: no such file or folder" + (f" (from {path})" if one != path else ""))
        expanded.extend(matches)
    return expanded


def _glob(pattern: str) -> list[str]:
    """Paths that a pattern matches, as a shell would: sorted, none that are hidden (pathlib goes through no linked folders)."""
    parts = Path(pattern).parts
    plain = next((i for i, part in enumerate(parts) if glob.has_magic(part)), len(parts))
    if plain == len(parts):
        return []
    base = Path(*parts[:plain])
    matches = base.glob(str(Path(*parts[plain:])))
    return sorted(str(m) for m in matches if not any(part.startswith(".") for part in m.relative_to(base).parts))


def _braces(pattern: str) -> Iterator[str]:
    """`s-{00..02}.tar` and `{train,val}.tar` as the names they stand for, one by one: a range may be long, its start wrong."""
    match = re.search(r"\{([^{}]*)\}", pattern)
    if match is None:
        yield pattern
        return
    before, inside, after = pattern[: match.start()], match[1], pattern[match.end() :]
    if (span := re.fullmatch(r"(\d+)\.\.(\d+)", inside)) is not None:
        first, last = int(span[1]), int(span[2])
        padded = any(len(end) > 1 and end[0] == "0" for end in span.groups())  # as shells have it: {8..10} but {08..10}
        width = max(map(len, span.groups())) if padded else 0
        step = 1 if last >= first else -1
        parts: Iterable[str] = (f"{number:0{width}d}" for number in range(first, last + step, step))
    elif "," in inside:
        parts = inside.split(",")
    else:
        yield pattern
        return
    for part in parts:
        yield from _braces(before + part + after)


def _standard_input() -> BufferedIOBase:
    if sys.stdin is None or sys.stdin.closed or sys.stdin.isatty():
        raise UsageError("expected a tar of images on standard input: pipe one in, or name images instead of -")
    return cast(BufferedIOBase, sys.stdin.buffer)


def _none_found(paths: Sequence[str], left: LeftOut) -> str:
    where = ", ".join(paths[:4]) + (f" and {len(paths) - 4} more" if len(paths) > 4 else "")
    text = f"no images in {where}: looked for names ending in {' '.join(PICTURES)}"
    folders = [Path(path) for path in paths if path != STDIN and Path(path).is_dir()]
    if any(is_tar(child.name) for folder in folders for child in folder.iterdir()):
        text += f"; archives ({' '.join(TAR_ENDINGS)}) must be named themselves"
    return text + (f"; left out: {left_out(left)}" if left else "")
