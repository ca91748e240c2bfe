"""A folder for each class, below the PATHs named or in archives."""

import contextlib
from collections.abc import Collection, Mapping, Sequence
from itertools import takewhile
from pathlib import Path

from cliptools.ground.classified.labelled import Labelled, gather
from cliptools.ground.counted import count_of
from cliptools.ground.errors import StreamError
from cliptools.ground.listing import STDIN, Found, named_path
from cliptools.ground.progress import warn
from cliptools.ground.tar_images import TAR_ENDINGS, Span

SPLITS = {"train", "training", "val", "valid", "validation", "dev", "test", "testing", "trainval", "minival"}
Place = tuple[str, str, bool]
"""A base, a folder below it, and whether that is in an archive."""


def by_folders(found: Sequence[Found]) -> Labelled:
    """The class of an image is the first folder below its PATH that differs between images, as torchvision's ImageFolder has it.

    Where all of a PATH lies in one folder, it is that folder, or the PATH itself.

    Raises:
        StreamError: an image lies beside the folders, or these are parts of a data set.
    """
    first: dict[Place, Found] = {}
    for one in found:
        first.setdefault(_place(one), one)
    classes = _classes(first)
    _refuse_splits({name for name in classes.values() if name is not None}, found[0].base)
    _tell_of_empty(classes)
    return gather(found, (classes[_place(one)] for one in found), "it lies beside the folders of the classes, in none of them")


def _refuse_splits(classes: Collection[str], base: str) -> None:
    """
    Raises:
        StreamError: the folders are the parts of a data set, as train and val, each with folders of classes in it.
    """
    if len(classes) > 1 and all(name.lower() in SPLITS for name in classes):
        parts = " and ".join(sorted(classes))
        raise StreamError(f"{base}: the folders {parts} are parts of a data set, no classes: name one of them as PATH")


def _tell_of_empty(classes: Mapping[Place, str | None]) -> None:
    """Warn of folders beside those of the classes that hold no image: of these classes nothing is measured."""
    beside: dict[Path, set[str]] = {}
    for base, folder, in_archive in classes:
        name = classes[base, folder, in_archive]
        levels = folder.split("/")
        if not in_archive and name in levels:
            beside.setdefault(Path(base, *levels[: levels.index(name)]), set()).add(name)
    for parent, names in beside.items():
        if len(names) < 2:
            continue
        with contextlib.suppress(OSError):
            empty = sorted(path.name for path in parent.iterdir() if path.name not in names and _may_be_class(path))
            if empty:
                more = f" and {count_of(len(empty) - 1, 'more folder')}" if len(empty) > 1 else ""
                warn(f"{parent / empty[0]}{more}: no images, so no class; {count_of(len(names), 'class')} of folders beside it")


def _may_be_class(path: Path) -> bool:
    return path.is_dir() and not path.name.startswith((".", "__MACOSX", "@eaDir"))


def _place(one: Found) -> Place:
    return one.base, one.name.rpartition("/")[0], isinstance(one.place, Span)


def _classes(first: dict[Place, Found]) -> dict[Place, str | None]:
    """The class of every place that holds images."""
    below: dict[str, dict[Place, list[str]]] = {}
    for place, one in first.items():
        path = named_path(one)
        levels = place[1].split("/") if place[1] else []
        in_shard = path != one.base  # then a name begins with the archive's
        below.setdefault(path, {})[place] = levels[1:] if in_shard else levels
    return {place: folder for path, places in below.items() for place, folder in _below(path, places).items()}


def _below(path: str, places: dict[Place, list[str]]) -> dict[Place, str | None]:
    """The same for one PATH, from the folders that lead to each place."""
    shared = [column[0] for column in takewhile(lambda column: len(set(column)) == 1, zip(*places.values(), strict=False))]
    depth = len(shared)
    if len(places) == 1 or (shared and any(len(levels) == depth for levels in places.values())):
        own = shared[-1] if shared else _own_name(path)
        return dict.fromkeys(places, own)
    return {place: levels[depth] if len(levels) > depth else None for place, levels in places.items()}


def _own_name(path: str) -> str | None:
    """What a folder or an archive is called."""
    if path == STDIN:
        return None
    name = Path(path).resolve().name
    return next((name[: -len(ending)] for ending in TAR_ENDINGS if name.lower().endswith(ending)), name)
