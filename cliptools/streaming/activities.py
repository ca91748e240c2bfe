"""Activities of many units on many images, written by images and read by units.

The activity of a unit is a = <phi - b, r>. It is kept as float16, divided by the unit's largest top norm so that few numbers
leave the range of float16: a is exact to one part in 2,000 of itself, or to 3e-8 such norms where that is more, and numbers
beyond 65,504 such norms count as 65,504. The file has a part for each group of units, so that a batch is written in few pieces
and a group is read in one.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Float64, Int
from torch import Tensor

from cliptools.devices import in_halves
from cliptools.io.spools import Scratch
from cliptools.models.unusable import Screen, unusable
from cliptools.streaming.embeddings import Embeddings
from cliptools.unit_effects.factored import FactoredEffect, projections_of, scale_of, unit_blocks_of

LARGEST = float(np.finfo(np.float16).max)
NUMBERS_AT_ONCE = 1 << 21  # of a group of units: activities on all images, or correlations with all texts


class Activities:
    """Activities [images, units] of a run, in the order in which images are added."""

    def __init__(self, listed: int, unit: Float[np.ndarray, " U"], texts: int, groups: Sequence[slice] | None = None) -> None:
        """
        Args:
            listed: Largest number of images.
            unit: A size of each unit's activities, such as its largest top norm.
            texts: Number of texts that the units will be compared with.
            groups: The units of each group. None: as many units as memory allows.
        """
        self._listed, self.count = listed, 0
        self._unit = np.where(unit > 0, unit, 1).astype(np.float64)  # (U)
        size = max(1, NUMBERS_AT_ONCE // max(listed, texts, 1))
        starts = range(0, len(unit), size)
        self.groups = groups or [slice(start, min(start + size, len(unit))) for start in starts]
        """The units of each group."""
        self._file = Scratch("activities")

    def add(self, along: Float[np.ndarray, "b U"]) -> None:
        """Add the activities of all units on further images.

        Raises:
            CliptoolsError: the temporary file cannot be written.
        """
        rows = (along / self._unit).clip(-LARGEST, LARGEST).astype(np.float16)  # (b, U)
        for group in self.groups:
            width = group.stop - group.start
            self._file.put(2 * (group.start * self._listed + self.count * width), rows[:, group])
        self.count += len(rows)

    def columns(self) -> Iterator[tuple[slice, Float64[np.ndarray, "N n"]]]:
        """Yield each group of units, and their activities on all images."""
        for group in self.groups:
            width = group.stop - group.start
            rows = self._file.get(2 * group.start * self._listed, width * self.count, np.dtype(np.float16))
            rows = rows.reshape(self.count, width)
            yield group, rows * self._unit[group]


class Units(NamedTuple):
    """Units of a bundle, with their directions and means."""

    unit: Int[Tensor, "u 3"]
    r: Float[Tensor, "u d"]
    b: Float[Tensor, "u d"]
    scaled: bool
    """Effects are multiplied by 100 / ||M(I)||."""


class UnitScalars:
    """a of all units, and M(I), of a batch of images: what UnitActivity gives, without the norms."""

    def __init__(self, effect: FactoredEffect, units: Units) -> None:
        """
        Raises:
            StreamError: a unit that the model does not have.
        """
        self._effect, self._scaled = effect, units.scaled
        self._blocks, rows = unit_blocks_of(effect, units.unit)
        pairs = zip(self._blocks, rows, strict=True)
        self._projections = [projections_of(effect, block, units.b[row], units.r[row, None]) for block, row in pairs]
        self._order = torch.cat(rows).argsort()  # (u): from the order of the blocks back to that of the units

    @torch.inference_mode()
    def __call__(self, image: Float[Tensor, "i 3 y x"]) -> tuple[Float[Tensor, "i u"], Float[Tensor, "i d"]]:
        """a of all units on these images, and M(I), not normalised."""
        S, embedding = self._effect.read(image, self._blocks)
        scale = scale_of(embedding, self._scaled)
        along = [project(scalars, scale)[..., 0] for scalars, project in zip(S, self._projections, strict=True)]  # (i, n)
        return torch.cat(along, 1)[:, self._order.to(embedding.device)], embedding


class OtherEmbeddings:
    """Embeddings of the same images by another model, without the images that are unusable for it."""

    def __init__(self, encode: Callable[[Tensor], Tensor], listed: int, screen: Screen[int]) -> None:
        """
        Args:
            encode: Function from pictures to embeddings, not normalised.
            listed: Largest number of images.
            screen: Leaves out images that are unusable for this model alone.
        """
        self.encode = encode
        self.embeddings = Embeddings(listed)
        self._screen = screen

    def add(self, first: int, images: Sequence[int], embedding: Float[Tensor, "b d"]) -> None:
        """Add the embeddings of images, as rows from `first` on.

        Raises:
            ImageError: an image is unusable, and the screen is strict.
        """
        places = list(self._screen.places(images, unusable(embedding)))
        self.embeddings.add([first + place for place in places], embedding[places])

    def finish(self) -> None:
        """Check that some image was usable.

        Raises:
            CliptoolsError: none was.
        """
        self._screen.require(self.embeddings.count)


class Stores(NamedTuple):
    """Where `collect` keeps its numbers; row n of each belongs to the same image."""

    activities: Activities
    embeddings: Embeddings | None = None
    other: OtherEmbeddings | None = None


def collect(
    scalars: UnitScalars, batches: Iterable[tuple[list[int], tuple[Tensor, ...]]], stores: Stores, screen: Screen[int]
) -> list[int]:
    """Add the activities and embeddings of all usable images, in the order of the batches, and return their numbers.

    Args:
        batches: Numbers with pictures as the units' model reads them, and beside these as the other model does, if there is one.

    Raises:
        ImageError: an image is unusable, and the screen is strict.
        CliptoolsError: no image is usable.
    """
    numbers: list[int] = []
    activities, embeddings, other = stores

    def measure(_: Sequence[int], pictures: tuple[Tensor, ...]) -> list[Tensor]:
        encoded = [] if other is None else [other.encode(pictures[1])]
        return [values.float().cpu() for values in (*scalars(pictures[0]), *encoded)]

    for images, (along, embedding, *encoded) in in_halves(batches, measure):
        places = list(screen.places(images, unusable(embedding, along)))
        usable = [images[place] for place in places]
        if embeddings is not None:
            embeddings.add(range(len(numbers), len(numbers) + len(places)), embedding[places])
        if other is not None:
            other.add(len(numbers), usable, encoded[0][places])
        activities.add(along[places].numpy())
        numbers += usable
    screen.require(len(numbers))
    if other is not None:
        other.finish()
    return numbers
