"""Looking at units' top images again, for clip-top."""

import functools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from cliptools.analysis.retrieval import embeddings, inertia, largest_norms
from cliptools.console import progress
from cliptools.effects.factored import FactoredEffect
from cliptools.effects.select import factored_effect
from cliptools.errors import CliptoolsError, ImageError, UsageError
from cliptools.images.loader import ImageSource, Skipped, load_batches
from cliptools.images.relocate import found_again
from cliptools.io.bundle import Bundle
from cliptools.models.load import LoadedModel, drop_text_tower, load_recorded_model
from cliptools.models.unusable import Screen

if TYPE_CHECKING:
    Ranked = tuple[list[list[str]], np.ndarray, np.ndarray]
    """Of each unit, names, norms and numbers in the source, the largest norm first; −1 where the source lacks an image."""


@dataclass(frozen=True)
class Top:
    """A unit with its top images."""

    bundle: Bundle
    row: int
    names: Sequence[str]
    norms: Sequence[float]
    """The largest first."""
    places: Sequence[int]
    """Numbers in the source; −1 for an image that is not there."""
    inertia: float
    """NaN where it is not defined: a unit that never acted, or fewer than two images that can be read."""
    counted: int
    """Images that the inertia is of."""
    inner: bool = False
    """Whether it is a pair that comes after its neuron."""

    @property
    def unit(self) -> tuple[int, int, int]:
        """Layer, neuron, head."""
        layer, neuron, head = self.bundle["unit"][self.row].tolist()
        return layer, neuron, head


class Looker:
    """Finds the images on which units act most, and looks at each of them once."""

    def __init__(self, bundle: Bundle, source: ImageSource, options: dict[str, Any]) -> None:
        """
        Args:
            bundle: Names the model.
            source: Where its images are.
            options: Of clip-top.
        """

        self.source, self.options, self.skipped = source, options, Skipped()
        self.screen = Screen[int](source.names.__getitem__, self.skipped.add, options["strict"])
        self._recorded = bundle.header.model
        self._row: dict[int, int] = {}  # of the embedding, by number in the source
        self._embedding = torch.zeros(0, 0)

    @functools.cached_property
    def model(self) -> LoadedModel:
        """The bundle's, without its text tower; loaded when it is known that there is something to look at."""

        model = load_recorded_model(self._recorded, self.options["device"])
        drop_text_tower(model)
        return model

    def at(self, bundle: Bundle, rows: "np.ndarray") -> list[Top]:
        """These units of a bundle of the same model, with their inertia."""
        shown, counted = (self.options[key] for key in ("images_per_unit", "inertia_images"))
        names, norm, place = self._ranked(bundle, rows, max(shown, counted))
        value, count = self._inertia(norm[:, :counted], place[:, :counted])
        return [
            Top(bundle, int(row), names[n][:shown], norm[n, :shown].tolist(), place[n, :shown].tolist(), value[n], count[n])
            for n, row in enumerate(rows)
        ]

    def inertia(self, bundle: Bundle, rows: "np.ndarray") -> list[float]:
        """Of these units, without their images."""
        _, norm, place = self._ranked(bundle, rows, self.options["inertia_images"])
        return self._inertia(norm, place)[0]

    def picture(self, place: int) -> Image.Image | None:
        """An image of the source; None where it cannot be had."""

        try:
            return self.source.load(place) if place >= 0 else None
        except ImageError:  # said when it was to be embedded
            return None

    def _inertia(self, norm: "np.ndarray", place: "np.ndarray") -> tuple[list[float], list[int]]:
        """Inertia of each unit and of how many images it is: those that can be read and on which the unit acts at all."""

        acting = np.where(norm > 0, place, -1)
        self._look(np.unique(acting[acting >= 0]).tolist())
        rows = np.array([self._row.get(i, -1) for i in acting.flat], dtype=np.int64).reshape(acting.shape)
        return inertia(self._embedding, torch.from_numpy(rows)).tolist(), (rows >= 0).sum(1).tolist()

    def _ranked(self, bundle: Bundle, rows: "np.ndarray", count: int) -> "Ranked":
        """Top images of these units, by the norm asked for."""
        return (self._by_raw_norm if self.options["raw"] else self._by_centred_norm)(bundle, rows, count)

    def _by_centred_norm(self, bundle: Bundle, rows: "np.ndarray", count: int) -> "Ranked":
        """As the bundle has them."""

        listed = bundle.text_list("images")
        top, norm = bundle["top_image"][rows, :count], bundle["top_norm"][rows, :count]
        found = found_again(bundle, self.source, (int(i) for i in np.unique(top) if i >= 0), "PATH")
        place = np.array([[found.get(i, -1) for i in row] for row in top.tolist()], dtype=np.int64).reshape(top.shape)
        return [[listed[i] for i in row if i >= 0] for row in top.tolist()], norm, place

    def _by_raw_norm(self, bundle: Bundle, rows: "np.ndarray", count: int) -> "Ranked":
        """Over all images of the source."""

        total = len(self.source)
        batches = progress(self.batches(range(total)), "images", total, lambda batch: len(batch[0]))
        unit = torch.from_numpy(bundle["unit"][rows]).long()
        found = largest_norms(self._paths(bundle), unit, batches, min(count, total), bundle.header.scaled, self.screen)
        place = found.image.numpy()
        return [[self.source.names[i] for i in row if i >= 0] for row in place.tolist()], found.norm.float().numpy(), place

    def _paths(self, bundle: Bundle) -> FactoredEffect:
        """The effect that the bundle holds.

        Raises:
            UsageError: one that is not factored.
        """

        settings = bundle.header.settings
        if settings["effect"] == "indirect":
            raise UsageError("--raw: indirect effects are not measured again; leave it out")
        return factored_effect(self.model.clip, settings["effect"], settings["units"])

    def _look(self, places: Sequence[int]) -> None:
        """Embed these images, as far as that has not been done."""

        new = [place for place in places if place not in self._row]
        if not new:
            return
        batches = progress(self.batches(new), "top images", len(new), lambda batch: len(batch[0]))
        clip: Any = self.model.clip
        read, embedding = embeddings(clip.visual, batches, self.screen)
        if not self._row and not read and not len(self.screen):
            raise CliptoolsError("not one of the top images could be read")
        self.screen.require(len(self._row) + len(read))
        self._row |= {place: len(self._row) + j for j, place in enumerate(read)}
        self._embedding = torch.cat([self._embedding.view(-1, embedding.shape[1]), embedding]) if read else self._embedding

    def batches(self, places: Sequence[int]) -> Iterator[tuple[list[int], Tensor]]:
        """These images, preprocessed."""

        return load_batches(
            self.source, places, self.model.transform,
            batch_size=self.options["batch_size"], workers=self.options["workers"],
            strict=self.options["strict"], skipped=self.skipped,
        )  # fmt: skip
