"""Names of masks, depths and label pictures that lie beside a photograph: `cat.mask.png` beside `cat.jpg`."""

import re
from collections.abc import Collection, Iterable

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
