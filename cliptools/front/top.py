"""Top images of units: found, read again, and with the units' inertia.

The equations of inertia and of uncentred retrieval are in analysis/retrieval.py.
"""

import functools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float32, Int
from PIL import Image
from rich.table import Table
from rich.text import Text

from cliptools.analysis.retrieval import embeddings, inertia, largest_norms
from cliptools.analysis.selection import by_layers, by_units, by_word, rows_named
from cliptools.console import front_call
from cliptools.console import progress as shown
from cliptools.errors import CliptoolsError, ImageError, StreamError, UsageError
from cliptools.front.arguments import require_number, require_one_of
from cliptools.front.images import Images, Reading, open_any, read_batches
from cliptools.front.models import image_model_of
from cliptools.front.tables import Records
from cliptools.front.unit_records import (
    SHOWN_WORDS,
    order_units,
    positive_and_negative,
    record_source,
    shown_word,
    signed_words,
    unit_keys,
    weight_name,
)
from cliptools.images.loader import Batch, ImageSource, Skipped
from cliptools.images.relocate import locate_images, recorded_source
from cliptools.io.bundle import Bundle
from cliptools.io.header import model_difference, reason_of
from cliptools.io.jsonl import rounded, unit_name
from cliptools.models.load import LoadedModel
from cliptools.models.unusable import Screen
from cliptools.unit_effects.select import recorded_effect

HEAD = 12  # units, without `head` and `units`
TABLE_IMAGES = 4
SORTS = ("index", "clear", "norm", "explained", "residual", "inertia")


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


def top(
    bundle: Bundle,
    images: Images | None = None,
    *,
    beside: Bundle | None = None,
    layers: Sequence[int] | None = None,
    units: str | None = None,
    word: str | None = None,
    strongest: int = 8,
    sort: str | None = None,
    head: int | None = None,
    images_per_unit: int = 10,
    inertia_images: int = 10,
    raw: bool = False,
    model: LoadedModel | None = None,
    device: str = "auto",
    batch_size: int = 32,
    workers: int | None = None,
    strict: bool = False,
    progress: bool = False,
) -> Records:
    """Return the images on which units act most, and how similar these are to the model, as clip-top does.

    Args:
        bundle: Units with their top images.
        images: The images of the bundle, of any kind that `effects` takes. None: the scenes that were rendered for the bundle.
        beside: Bundle of the whole neurons of pairs, each of which is listed before its pairs.
        layers: Layers of the units. None: all.
        units: Names of units, as `9:391,9:4`. None: all.
        word: A text that is among the strongest words of the units. None: any.
        strongest: Number of words of a unit that count for `word`.
        sort: index, clear, norm, explained, residual or inertia. None: clear; with `word`, its coefficient, largest first.
        head: Number of units, the first in this order; with `units`, of each name. None: 12; with `units`, all.
        images_per_unit: Number of top images of a unit.
        inertia_images: Number of top images from which the inertia is computed.
        raw: Rank all images by ‖φ‖, instead of those of the bundle by ‖φ − b‖.
        model: The bundle's model, if it is loaded already.
        device: auto, cpu, cuda, cuda:1 or mps.
        batch_size: Images per forward pass.
        workers: Threads that decode images. None: the number of cores, at most 8.
        strict: Raise an error for an unreadable image instead of a warning.
        progress: Write progress and messages to standard error; else messages go to the logger `cliptools`.

    Returns:
        A record for each unit and image: unit, words, rank, image, norm, and the unit's inertia.

    Raises:
        UsageError: an argument is invalid, no unit is selected, or the images are not those of the bundle.
        StreamError: a bundle has no top images, or `beside` is not of the pairs' neurons.
        ModelError: the model is not available, or not the bundle's.
        CliptoolsError: no image can be read.
    """
    if sort is not None:
        require_one_of("sort", sort, SORTS)
    require_number("inertia_images", inertia_images, 2)
    for name, number in (
        ("strongest", strongest),
        ("head", head),
        ("images_per_unit", images_per_unit),
        ("batch_size", batch_size),
    ):
        require_number(name, number, 1)
    request = TopRequest(
        layers=layers, units=units, word=word, strongest=strongest, sort=sort, head=head, images_per_unit=images_per_unit,
        inertia_images=inertia_images, raw=raw, model=model, device=device,
        reading=Reading(batch_size=batch_size, workers=workers, strict=strict),
    )  # fmt: skip
    with front_call(progress):
        if beside is not None:
            check_beside(beside, bundle, "beside")
        tops = find_tops(bundle, images, beside, request)[1]
        return Records(top_records(tops, raw), lambda _: [top_table(tops, len(tops))])


def find_tops(bundle: Bundle, images: Images | None, neurons: Bundle | None, request: TopRequest) -> tuple[TopImages, list[Top]]:
    """Return the search, which has the pictures, and the units with their top images.

    Args:
        neurons: Bundle of whole neurons, each of which comes before its pairs.

    Raises:
        UsageError: no unit is selected, or the images are not those of the bundle.
    """
    order = candidates(require_top_images(bundle), request)
    search = TopImages(bundle, recorded_source(bundle, ()) if images is None else open_any(images), request)
    if request.sort == "inertia":  # the order needs the inertia of all units
        order = order[np.argsort(search.inertias(bundle, order), kind="stable")]
    tops = search.tops(bundle, first_rows(bundle, order, request))
    return search, tops if neurons is None else _with_neurons(tops, neurons, search)


def require_top_images(bundle: Bundle, name: str = "the bundle") -> Bundle:
    """Return the bundle, which has top images.

    Raises:
        StreamError: it has none.
    """
    for tensor in ("top_norm", "top_image", "images"):
        if tensor not in bundle:
            raise StreamError(f"{name}: a bundle without `{tensor}`; run clip-effects first")
    return bundle


def check_beside(neurons: Bundle, pairs: Bundle, name: str) -> None:
    """Check that a bundle has the whole neurons to which pairs belong.

    Raises:
        StreamError: the units are not pairs, or those of the other bundle are not whole neurons of the same model.
    """
    if (pairs["unit"][:, 1:] < 0).any():
        raise StreamError("--beside: the units of --bundle are not pairs of a neuron and a head (clip-effects --units pairs)")
    if (neurons["unit"][:, 1] < 0).any() or (neurons["unit"][:, 2] >= 0).any():
        raise StreamError(f"{name}: its units are not whole neurons (clip-effects --units neurons)")
    if difference := model_difference(neurons.header.model, pairs.header.model):
        raise StreamError(f"{name}: a bundle of another model than that of the pairs{reason_of(difference)}")


def candidates(bundle: Bundle, request: TopRequest) -> Int[np.ndarray, " unit"]:
    """Return the rows of the units that `layers`, `units` and `word` select, in the order of `sort`; for inertia, of the index.

    Raises:
        UsageError: no unit is selected.
    """
    mask = np.ones(bundle.units, dtype=bool)
    if request.layers:
        mask &= by_layers(bundle, request.layers)
    if request.units:
        mask &= by_units(bundle, request.units)
    if request.word:
        mask &= by_word(bundle, request.word, request.strongest)
    if not mask.any():
        raise UsageError("the bundle has no unit that matches --layers, --units and --word together")
    sort = "index" if request.sort == "inertia" else request.sort or "clear"
    order = order_units(bundle, sort, None if request.sort else request.word)
    return order[mask[order]]


def first_rows(bundle: Bundle, order: Int[np.ndarray, " _"], request: TopRequest) -> Int[np.ndarray, " _"]:
    """Return the first rows of the order; with `units`, those of each name, in the order of the names."""
    if request.units is None:
        return order[: request.head or HEAD]
    return np.concatenate([rows_named(bundle, name, order)[: request.head] for name in request.units.split(",")])


def _with_neurons(tops: Sequence[Top], neurons: Bundle, images: TopImages) -> list[Top]:
    """Return every neuron, followed by its pairs.

    Raises:
        UsageError: the bundle of neurons lacks a neuron.
    """
    pairs_of: dict[tuple[int, int], list[Top]] = {}
    for top in tops:
        layer, neuron, _ = top.unit
        pairs_of.setdefault((layer, neuron), []).append(replace(top, inner=True))
    rows = {(layer, neuron): row for row, (layer, neuron, _) in enumerate(neurons["unit"].tolist())}
    if missing := [unit for unit in pairs_of if unit not in rows]:
        raise UsageError(f"--beside: this bundle has no neuron {unit_name(*missing[0], -1)}")
    neuron_tops = images.tops(neurons, np.array([rows[unit] for unit in pairs_of], dtype=np.int64))
    return [top for neuron, pairs in zip(neuron_tops, pairs_of.values(), strict=True) for top in (neuron, *pairs)]


def top_records(tops: Sequence[Top], raw: bool) -> Iterator[dict[str, Any]]:
    """Yield a record for each unit and image; every record can be read alone."""
    sources = {id(bundle): record_source(bundle) for bundle in {id(top.bundle): top.bundle for top in tops}.values()}
    for top in tops:
        bundle = top.bundle
        common: dict[str, Any] = {
            "inertia": None if math.isnan(top.inertia) else rounded(top.inertia),
            "inertia_images": top.inertia_images,
        }
        if "word" in bundle:
            common["words"] = [{"word": word, weight_name(bundle): rounded(c)} for word, c in _words(top)]
        common |= {"ranked_by": "raw norm" if raw else "centred norm"}
        common |= {key: bundle.header.settings.get(key) for key in ("effect", "units", "scale")}
        for rank, (name, norm) in enumerate(zip(top.names, top.norms, strict=True), 1):
            yield unit_keys(*top.unit) | {"rank": rank, "image": name, "norm": rounded(norm)} | common | sources[id(bundle)]


def _words(top: Top) -> list[tuple[str, float]]:
    """Return a unit's strongest words with their coefficients."""
    texts = top.bundle.text_list("words")["texts"]
    return [(texts[j], c) for j, c in positive_and_negative(signed_words(top.bundle, top.row), SHOWN_WORDS)]


def top_table(tops: Sequence[Top], rows: int) -> Table:
    """Return a table of the first units."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for title in ("unit", "inertia", "norm"):
        table.add_column(title, justify="right", no_wrap=True)
    with_words = any("word" in top.bundle for top in tops)
    for title in ("words", "top images")[not with_words :]:
        table.add_column(title, overflow="fold")
    for top in tops[:rows]:
        words = "  ".join(shown_word(top.bundle, word, c) for word, c in _words(top)) if "word" in top.bundle else ""
        inertia_cell = "–" if math.isnan(top.inertia) else f"{top.inertia:.3f}"
        cells = [unit_name(*top.unit), inertia_cell, f"{top.norms[0]:.3g}" if top.norms else "–"]
        table.add_row(*cells, *([Text(words)] if with_words else []), Text("  ".join(top.names[:TABLE_IMAGES])))
    return table
