"""Images in groups: by the PATH they come from, by a column of a table, or by the model year of Stanford Cars."""

from collections import Counter
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath

from cliptools.ground.errors import StreamError
from cliptools.ground.image_table import ImageTable, place_in
from cliptools.ground.images import ListedImages
from cliptools.ground.listing import Found, find, named_path
from cliptools.ground.stanford_cars import Car, is_cars, read_cars


@dataclass(frozen=True)
class Groups:
    """Images, and which group each is of."""

    source: ListedImages
    found: Sequence[Found]
    """Where each image is."""
    names: tuple[str, ...]
    of: Sequence[int]
    """Each image's group, an index into `names`."""
    cars: Sequence[Car] | None = None
    """What each image shows, where they are Stanford Cars."""
    block: Sequence[int] | None = None
    """Each image's block, numbered from 0 in order of appearance: blocks are independent, images of one are not."""


def by_path(paths: Sequence[str]) -> Groups:
    """Each folder and archive named is a group, and files are of the folder they lie in.

    The folder of Stanford Cars, named alone, is grouped by model year.

    Raises:
        UsageError, CliptoolsError: as images.open_images.
    """
    if len(paths) == 1 and is_cars(Path(paths[0])):
        return _by_year(Path(paths[0]))
    found = find(paths)
    places = [named_path(one) for one in found]
    short = {place: PurePosixPath(place).name or place for place in dict.fromkeys(places)}
    distinct = len(set(short.values())) == len(short)
    return _grouped(found, [short[place] if distinct else place for place in places], sort=False)


def by_column(paths: Sequence[str], table: ImageTable, folder: Path, column: str, block: str | None = None) -> Groups:
    """Images in the groups a column names: those of the paths, or without paths those of the table itself.

    Groups are in the order of their names, as numbers where all are numbers.

    Args:
        folder: What the table's images are relative to.
        block: The column that names each image's block.

    Raises:
        StreamError: no such column, an image without a group or block, or one of the paths that the table does not know.
        UsageError, CliptoolsError: as images.open_images.
    """
    table.require(column, "--group-column")
    if empty := next((image for image, row in table.rows.items() if not row[column].strip()), None):
        raise StreamError(f"{table.source}: {empty} has no group (column {column!r} is empty)")
    if paths:
        found = find(paths)
        rows = [table.of(full_name(image)) for image in found]
    else:
        found = [Found(name, str(folder), place_in(folder, name)) for name in table.rows]
        rows = list(table.rows.values())
    groups = _grouped(found, [row[column].strip() for row in rows], sort=True)
    if block is None:
        return groups
    table.require(block, "--block")
    if empty := next((image.name for image, row in zip(found, rows, strict=True) if not row[block].strip()), None):
        raise StreamError(f"{table.source}: {empty} has no block (column {block!r} is empty)")
    return replace(groups, block=_numbered([row[block].strip() for row in rows]))


def in_neighbours(groups: Groups, size: int) -> Groups:
    """The same in blocks of `size` images that follow each other in a group; fewer at its end join the block before."""
    counts = Counter(groups.of)
    seen: Counter[int] = Counter()
    blocks = []
    for group in groups.of:
        last = max(1, counts[group] // size) - 1
        blocks.append((group, min(seen[group] // size, last)))
        seen[group] += 1
    return replace(groups, block=_numbered(blocks))


def _numbered(names: Sequence[Hashable]) -> list[int]:
    number = {name: index for index, name in enumerate(dict.fromkeys(names))}
    return [number[name] for name in names]


def full_name(found: Found) -> str:
    """An image by its base as given and its name below it, so that a table may name it from further up."""
    return str(PurePosixPath(found.base) / found.name)


def _by_year(folder: Path) -> Groups:
    cars = read_cars(folder)
    found = [Found(car.file, str(folder), str(folder / car.file)) for car in cars]
    return _grouped(found, [car.year for car in cars], sort=True, cars=cars)


def _grouped(found: Sequence[Found], groups: Sequence[str], sort: bool, cars: Sequence[Car] | None = None) -> Groups:
    names = list(dict.fromkeys(groups))
    if sort:
        names.sort(key=_order(names))
    number = {name: index for index, name in enumerate(names)}
    return Groups(ListedImages(found), found, tuple(names), [number[group] for group in groups], cars)


def _order(names: Sequence[str]) -> Callable[[str], tuple[float, str]]:
    """As numbers where all are numbers, else as texts."""
    try:
        values = {name: float(name) for name in names}
    except ValueError:
        return lambda name: (0.0, name)
    return lambda name: (values[name], name)
