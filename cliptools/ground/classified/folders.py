"""A folder for each class, below the PATHs named or in archives."""

from collections.abc import Sequence
from itertools import takewhile
from pathlib import Path

from cliptools.ground.classified.labelled import Labelled, gather
from cliptools.ground.listing import STDIN, Found, named_path
from cliptools.ground.tar_images import TAR_ENDINGS, Span

Place = tuple[str, str, bool]
"""A base, a folder below it, and whether that is in an archive."""


def by_folders(found: Sequence[Found]) -> Labelled:
    """The class of an image is the first folder below its PATH that differs between images, as torchvision's ImageFolder has it.

    Where all of a PATH lies in one folder, it is that folder, or the PATH itself.

    Raises:
        StreamError: an image lies beside the folders.
    """
    first: dict[Place, Found] = {}
    for one in found:
        first.setdefault(_place(one), one)
    classes = _classes(first)
    return gather(found, (classes[_place(one)] for one in found), "it lies beside the folders of the classes, in none of them")


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
