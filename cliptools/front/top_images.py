"""Search for the top images of units, in bundles or over all images, and the inertia of the units from one reading of each image.

The equations of inertia and of uncentred retrieval are in analysis/retrieval.py.
"""

import functools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float32, Int
from PIL import Image

from cliptools.analysis.retrieval import embeddings, inertia, largest_norms
from cliptools.console import progress as shown
from cliptools.errors import CliptoolsError, ImageError, UsageError
from cliptools.front.images import Reading, read_batches
from cliptools.front.models import image_model_of
from cliptools.images.loader import Batch, ImageSource, Skipped
from cliptools.images.relocate import locate_images
from cliptools.io.bundle import Bundle
from cliptools.models.load import LoadedModel
from cliptools.models.unusable import Screen
from cliptools.unit_effects.select import recorded_effect


@dataclass(frozen=True, kw_only=True)
class TopRequest:
    """Arguments of `top`, which describes them."""

    layers: Sequence[int] | None = None
    units: str | None = None
    word: str | None = None
    strongest: int = 8
    sort: str | None = None
    head: int | None = None
    images_per_unit: int = 10
    inertia_images: int = 10
    raw: bool = False
    model: LoadedModel | None = None
    device: str = "auto"
    reading: Reading = field(default_factory=Reading)


class Ranking(NamedTuple):
    """Top images of some units, the largest norm first."""

    names: list[list[str]]
    """A list of image names for each unit."""
    norm: Float32[np.ndarray, "unit n"]
    place: Int[np.ndarray, "unit n"]
    """Positions in the source; −1 for an image that the source does not have."""


@dataclass(frozen=True)
class Top:
    """A unit with its top images, the largest norm first."""

    bundle: Bundle
    row: int
    names: Sequence[str]
    norms: Sequence[float]
    places: Sequence[int]
    """Positions in the source; −1 for an image that the source does not have."""
    inertia: float
    """NaN if it is not defined: for a unit that never acted, or with fewer than two readable images."""
    inertia_images: int
    """Number of images from which the inertia is computed."""
    inner: bool = False
    """True for a pair that is listed below its neuron."""

    @property
    def unit(self) -> tuple[int, int, int]:
        """Return layer, neuron and head."""
        layer, neuron, head = self.bundle["unit"][self.row].tolist()
        return layer, neuron, head


class TopImages:
    """Search for the top images of units, which runs the model on each image once."""

    def __init__(self, bundle: Bundle, source: ImageSource, request: TopRequest) -> None:
        """
        Args:
            bundle: Bundle whose model runs on the images.
            source: The images of the bundle.
        """
        self.source, self.request, self.skipped = source, request, Skipped()
        self.screen = Screen[int](source.names.__getitem__, self.skipped.add, request.reading.strict)
        self._bundle = bundle
        self._row: dict[int, int] = {}  # position in the source -> row of the embedding
        self._embedding = torch.zeros(0, 0)  # (images read so far, d)

    @functools.cached_property
    def model(self) -> LoadedModel:
        """Return the bundle's model without its text tower, which is loaded before the first image is read."""
        return image_model_of(self._bundle, self.request.model, self.request.device)

    def tops(self, bundle: Bundle, rows: Int[np.ndarray, " unit"]) -> list[Top]:
        """Return top images and inertia of these units of a bundle; all bundles must be of the same model."""
        size, inertia_count = self.request.images_per_unit, self.request.inertia_images
        names, norm, place = self._ranking(bundle, rows, max(size, inertia_count))
        values, counts = self._inertia(norm[:, :inertia_count], place[:, :inertia_count])
        return [
            Top(bundle, int(row), names[n][:size], norm[n, :size].tolist(), place[n, :size].tolist(), values[n], counts[n])
            for n, row in enumerate(rows)
        ]

    def inertias(self, bundle: Bundle, rows: Int[np.ndarray, " unit"]) -> list[float]:
        """Return the inertia of these units."""
        _, norm, place = self._ranking(bundle, rows, self.request.inertia_images)
        return self._inertia(norm, place)[0]

    def picture(self, place: int) -> Image.Image | None:
        """Return an image of the source; None if it is missing or unreadable."""
        try:
            return self.source.load(place) if place >= 0 else None
        except ImageError:  # a warning was given when its embedding was computed
            return None

    def _inertia(self, norm: Float32[np.ndarray, "unit n"], place: Int[np.ndarray, "unit n"]) -> tuple[list[float], list[int]]:
        """Return the inertia of every unit, and the number of its images that can be read and on which the unit acts."""
        places = np.where(norm > 0, place, -1)
        self._embed(np.unique(places[places >= 0]).tolist())
        rows = np.array([self._row.get(i, -1) for i in places.flat], dtype=np.int64).reshape(places.shape)  # (unit, n)
        return inertia(self._embedding, torch.from_numpy(rows)).tolist(), (rows >= 0).sum(1).tolist()

    def _ranking(self, bundle: Bundle, rows: Int[np.ndarray, " unit"], count: int) -> Ranking:
        """Return the top images of these units: those of the bundle, by centred norm, or with --raw by norm over all images."""
        if self.request.raw:
            return self._raw_ranking(bundle, rows, count)
        image_names = bundle.text_list("images")
        top, norm = bundle["top_image"][rows, :count], bundle["top_norm"][rows, :count]  # (unit, n)
        places = locate_images(bundle, self.source, (int(i) for i in np.unique(top) if i >= 0), "PATH")
        place = np.array([[places.get(i, -1) for i in row] for row in top.tolist()], dtype=np.int64).reshape(top.shape)
        return Ranking([[image_names[i] for i in row if i >= 0] for row in top.tolist()], norm, place)

    def _raw_ranking(self, bundle: Bundle, rows: Int[np.ndarray, " unit"], count: int) -> Ranking:
        """Return the images of the source with the largest ||phi||.

        Raises:
            UsageError: the bundle has indirect effects, which have no factored form.
        """
        settings, total = bundle.header.settings, len(self.source)
        if settings["effect"] == "indirect":
            raise UsageError("--raw: indirect effects cannot be measured again here; leave --raw out")
        batches = shown(self.batches(range(total)), "images", total, lambda batch: len(batch[0]))
        effect = recorded_effect(self.model.clip, settings)
        unit = torch.from_numpy(bundle["unit"][rows]).long()
        largest = largest_norms(effect, unit, batches, min(count, total), bundle.header.scaled, self.screen)
        place = largest.image.numpy()  # (unit, n)
        names = [[self.source.names[i] for i in row if i >= 0] for row in place.tolist()]
        return Ranking(names, largest.norm.float().numpy(), place)

    def _embed(self, places: Sequence[int]) -> None:
        """Compute the embeddings of these images, except those computed before.

        Raises:
            CliptoolsError: no image could be read.
        """
        new_places = [place for place in places if place not in self._row]
        if not new_places:
            return
        batches = shown(self.batches(new_places), "top images", len(new_places), lambda batch: len(batch[0]))
        visual: Any = self.model.clip.visual
        readable, embedding = embeddings(visual, batches, self.screen)
        if not self._row and not readable and not len(self.screen):
            raise CliptoolsError("none of the top images could be read")
        self.screen.require(len(self._row) + len(readable))
        self._row |= {place: len(self._row) + j for j, place in enumerate(readable)}
        self._embedding = torch.cat([self._embedding.view(-1, embedding.shape[1]), embedding]) if readable else self._embedding

    def batches(self, places: Sequence[int]) -> Iterator[Batch]:
        """Return these images, preprocessed."""
        return read_batches(self.source, places, self.model, self.request.reading, self.skipped)
