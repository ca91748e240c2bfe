"""How a mask lies on a picture whose file says by EXIF orientation that its stored pixels are to be turned.

A mask with an EXIF orientation of its own (1 among them) is turned by that, and then lies on the picture as shown. Any other mask
is of the pixels as stored or as shown, and its size says of which where the orientation swaps the sides of a picture that is no
square. Where the size cannot tell (180 degrees, mirrored, square), the mask lies as those of the same folder whose size tells, if
all of these agree; else it is taken for one of the stored pixels, as readers that know nothing of EXIF see them.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
from jaxtyping import Shaped

from cliptools.ground.decode import header

Lie = Literal["stored", "upright"]
"""Of which pixels a mask is: as the picture's file has them, or as it is shown."""

SWAPPED = (5, 6, 7, 8)  # EXIF orientations that make a wide picture tall
BY_SIZE = "are of their pictures' stored pixels, by their size, and turned with these by EXIF orientation"
STORED = (
    "are taken for masks of their pictures' stored pixels and turned with these by EXIF orientation, for their size cannot tell; "
    "--mask-pixels upright if they are of the pictures as shown"
)
UPRIGHT = (
    "are taken for masks of their pictures as shown, as others of the folder are, for their size cannot tell; "
    "--mask-pixels stored if they are of the pictures' stored pixels"
)


class Shown(NamedTuple):
    """A picture as it is shown, and how its file wants it turned."""

    width: int
    height: int
    orientation: int | None

    @property
    def turned(self) -> bool:
        """Whether the stored pixels are others than those shown."""
        return self.orientation not in (None, 1)

    @property
    def stored(self) -> tuple[int, int]:
        """Width and height of the stored pixels."""
        return (self.height, self.width) if self.orientation in SWAPPED else (self.width, self.height)

    @property
    def tells(self) -> bool:
        """Whether the size of a mask says of which pixels it is."""
        return self.stored != (self.width, self.height)


@dataclass(frozen=True)
class Folders:
    """Pictures and their masks, whose sizes together say how the masks lie.

    >>> Folders(()).lie is None
    True
    """

    pairs: Sequence[tuple[Path, Path]]

    @cached_property
    def lie(self) -> Lie | None:
        """How the masks lie whose size tells; None where there is none, or where they differ."""
        lies: set[Lie] = set()
        for picture, mask in self.pairs:
            shown = _shown(picture)
            if shown is None or not shown.tells or (beside := _shown(mask)) is None or beside.orientation is not None:
                continue
            size = beside.width, beside.height
            if size in (shown.stored, (shown.width, shown.height)):
                lies.add("stored" if size == shown.stored else "upright")
        return lies.pop() if len(lies) == 1 else None


@dataclass(frozen=True)
class Placing:
    """How masks are laid on their pictures."""

    asked: Lie | None = None
    """What --mask-pixels says."""
    others: Callable[[], Lie | None] = lambda: None
    """How other masks of the folder lie."""

    def turn(self, width: int, height: int, own: int | None, shown: Shown) -> tuple[int, str | None]:
        """The EXIF orientation that a mask is to be turned by, and what is to be said of it.

        Args:
            width: Of the mask, which has been turned by its own orientation.
            height: Likewise.
            own: The mask's own orientation.
            shown: The picture.
        """
        if own is not None or not shown.turned:
            return 1, None
        orientation = shown.orientation or 1
        if self.asked is not None:
            return (orientation if self.asked == "stored" else 1), None
        if shown.tells:
            return (orientation, BY_SIZE) if (width, height) == shown.stored else (1, None)
        return (1, UPRIGHT) if self.others() == "upright" else (orientation, STORED)


def turned(pixels: Shaped[np.ndarray, "y x"], orientation: int) -> Shaped[np.ndarray, "row column"]:
    """Stored pixels as they are shown by an EXIF orientation."""
    if orientation in SWAPPED:
        pixels = pixels.T
    down, across = orientation in (3, 4, 7, 8), orientation in (2, 3, 6, 7)
    return pixels[:: -1 if down else 1, :: -1 if across else 1]


def _shown(path: Path) -> Shown | None:
    """A picture's size and orientation, from the first bytes of its file; None where it cannot be read."""
    read = header(str(path))
    return read and Shown(*read)
