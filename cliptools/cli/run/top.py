"""clip-top: finds the top images of units, reads them again, and writes them with the units' inertia.

The equations of inertia and of uncentred retrieval are in analysis/retrieval.py.
"""

import functools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float32, Int
from PIL import Image
from rich.table import Table
from rich.text import Text

from cliptools.analysis.retrieval import embeddings, inertia, largest_norms
from cliptools.analysis.selection import by_layers, by_units, by_word, rows_named
from cliptools.cli.app import Batching, Output, choose_format, open_input, parse_layers
from cliptools.cli.run.sheet import heading, png_bytes, unit_row
from cliptools.console import count_of, progress
from cliptools.effects.select import factored_effect
from cliptools.errors import CliptoolsError, ImageError, StreamError, UsageError
from cliptools.front.tables import rendered
from cliptools.front.unit_records import SHOWN_WORDS, order_units, record_source, shown_word, signed_words, unit_keys, weight_name
from cliptools.images.loader import Batch, ImageSource, Skipped, load_batches
from cliptools.images.relocate import locate_images, recorded_source
from cliptools.io.bundle import Bundle, read_bundle
from cliptools.io.files import binary_output, text_output
from cliptools.io.header import model_difference, reason_of
from cliptools.io.jsonl import rounded, unit_name, write_record
from cliptools.models.load import LoadedModel, drop_text_tower, load_recorded_model
from cliptools.models.unusable import Screen
from cliptools.render.contact_sheet import contact_sheet, most_rows

HEAD = 12  # units, without --head and --units
TABLE_ROWS = 20
TABLE_IMAGES = 4


@dataclass(frozen=True, kw_only=True)
class TopOptions(Batching, Output):
    """Options of clip-top."""

    paths: tuple[str, ...]
    bundle: Path | None
    beside: Path | None
    layers: str | None
    units: str | None
    word: str | None
    strongest: int
    sort: str
    head: int | None
    images_per_unit: int
    inertia_images: int
    raw: bool
    sheet: Path | None
    device: str


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

    def __init__(self, model_record: dict[str, Any], source: ImageSource, options: TopOptions) -> None:
        """
        Args:
            recorded: The model of the bundle's header.
            source: The images of the bundle.
        """
        self.source, self.options, self.skipped = source, options, Skipped()
        self.screen = Screen[int](source.names.__getitem__, self.skipped.add, options.strict)
        self._model_record = model_record
        self._row: dict[int, int] = {}  # position in the source -> row of the embedding
        self._embedding = torch.zeros(0, 0)  # (images read so far, d)

    @functools.cached_property
    def model(self) -> LoadedModel:
        """Return the bundle's model without its text tower, which is loaded before the first image is read."""
        model = load_recorded_model(self._model_record, self.options.device)
        drop_text_tower(model)
        return model

    def tops(self, bundle: Bundle, rows: Int[np.ndarray, " unit"]) -> list[Top]:
        """Return top images and inertia of these units of a bundle; all bundles must be of the same model."""
        size, inertia_count = self.options.images_per_unit, self.options.inertia_images
        names, norm, place = self._ranking(bundle, rows, max(size, inertia_count))
        values, counts = self._inertia(norm[:, :inertia_count], place[:, :inertia_count])
        return [
            Top(bundle, int(row), names[n][:size], norm[n, :size].tolist(), place[n, :size].tolist(), values[n], counts[n])
            for n, row in enumerate(rows)
        ]

    def inertias(self, bundle: Bundle, rows: Int[np.ndarray, " unit"]) -> list[float]:
        """Return the inertia of these units."""
        _, norm, place = self._ranking(bundle, rows, self.options.inertia_images)
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
        if self.options.raw:
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
        batches = progress(self._batches(range(total)), "images", total, lambda batch: len(batch[0]))
        effect = factored_effect(self.model.clip, settings["effect"], settings["units"])
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
        batches = progress(self._batches(new_places), "top images", len(new_places), lambda batch: len(batch[0]))
        visual: Any = self.model.clip.visual
        readable, embedding = embeddings(visual, batches, self.screen)
        if not self._row and not readable and not len(self.screen):
            raise CliptoolsError("none of the top images could be read")
        self.screen.require(len(self._row) + len(readable))
        self._row |= {place: len(self._row) + j for j, place in enumerate(readable)}
        self._embedding = torch.cat([self._embedding.view(-1, embedding.shape[1]), embedding]) if readable else self._embedding

    def _batches(self, places: Sequence[int]) -> Iterator[Batch]:
        """Return these images, preprocessed."""
        return load_batches(
            self.source,
            places,
            self.model.transform,
            batch_size=self.options.batch_size,
            workers=self.options.workers,
            strict=self.options.strict,
            skipped=self.skipped,
        )


def run(options: TopOptions) -> None:
    """Run clip-top."""
    inputs = [options.bundle, *([options.beside] if options.beside else []), *(Path(p) for p in options.paths if p == "-")]
    if sum(path is None or str(path) == "-" for path in inputs) > 1:
        raise UsageError("only one of PATH, --bundle and --beside can come from standard input: name files")
    output_format = choose_format(options.output_format, options.output, "jsonl")
    bundle = _read(options.bundle, "--bundle FILE")
    neurons = _read_neurons(options.beside, bundle) if options.beside else None
    order = _candidates(bundle, options)
    images = TopImages(bundle.header.model, recorded_source(bundle, options.paths), options)
    if options.sort == "inertia":  # the order needs the inertia of all units
        order = order[np.argsort(images.inertias(bundle, order), kind="stable")]
    tops = images.tops(bundle, _first_rows(bundle, order, options))
    if neurons is not None:
        tops = _with_neurons(tops, neurons, images)
    if options.sheet:
        _write_sheet(options.sheet, tops, images, options.images_per_unit)
    with text_output(options.output) as stream:
        if output_format == "table":
            stream.write(_table(tops, all_rows=options.output is not None))
            return
        for record in _records(tops, options.raw):
            write_record(stream, record)


def _read(path: Path | None, option: str) -> Bundle:
    """Read a bundle with top images.

    Raises:
        StreamError: the input is not a bundle, or has no top images.
    """
    stream, name = open_input(path, "a bundle", option)
    with stream:
        bundle = read_bundle(stream, name)
    for tensor in ("top_norm", "top_image", "images"):
        if tensor not in bundle:
            raise StreamError(f"{name}: a bundle without `{tensor}`; run clip-effects first")
    return bundle


def _read_neurons(path: Path, pairs: Bundle) -> Bundle:
    """Read the bundle of whole neurons to which the pairs belong.

    Raises:
        StreamError: the units are not pairs, or those of the other bundle are not whole neurons of the same model.
    """
    neurons = _read(path, "--beside FILE")
    if (pairs["unit"][:, 1:] < 0).any():
        raise StreamError("--beside: the units of --bundle are not pairs of a neuron and a head (clip-effects --units pairs)")
    if (neurons["unit"][:, 1] < 0).any() or (neurons["unit"][:, 2] >= 0).any():
        raise StreamError(f"--beside {path}: its units are not whole neurons (clip-effects --units neurons)")
    if difference := model_difference(neurons.header.model, pairs.header.model):
        raise StreamError(f"--beside {path}: a bundle of another model than that of the pairs{reason_of(difference)}")
    return neurons


def _candidates(bundle: Bundle, options: TopOptions) -> Int[np.ndarray, " unit"]:
    """Return the rows of the units that --layers, --units and --word select, in the order of --sort; for inertia, of the index.

    Raises:
        UsageError: no unit is selected.
    """
    mask = np.ones(bundle.units, dtype=bool)
    if options.layers:
        mask &= by_layers(bundle, parse_layers(options.layers))
    if options.units:
        mask &= by_units(bundle, options.units)
    if options.word:
        mask &= by_word(bundle, options.word, options.strongest)
    if not mask.any():
        raise UsageError("the bundle has no unit that matches --layers, --units and --word together")
    order = order_units(bundle, "index" if options.sort == "inertia" else options.sort)
    return order[mask[order]]


def _first_rows(bundle: Bundle, order: Int[np.ndarray, " _"], options: TopOptions) -> Int[np.ndarray, " _"]:
    """Return the first rows of the order; with --units, those of each name, in the order of the names."""
    if options.units is None:
        return order[: options.head or HEAD]
    return np.concatenate([rows_named(bundle, name, order)[: options.head] for name in options.units.split(",")])


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


def _records(tops: Sequence[Top], raw: bool) -> Iterator[dict[str, Any]]:
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
    return [(texts[j], c) for j, c in signed_words(top.bundle, top.row)[:SHOWN_WORDS]]


def _write_sheet(path: Path, tops: Sequence[Top], images: TopImages, columns: int) -> None:
    """Write the contact sheet.

    Raises:
        UsageError: the picture would be too large.
    """
    if len(tops) > most_rows(columns):
        raise UsageError(
            f"--sheet: {count_of(len(tops), 'unit')} with {count_of(columns, 'image')} each make the picture too large "
            f"(at most {count_of(most_rows(columns), 'unit')})"
        )
    rows = []
    for top in tops:
        facts = [] if math.isnan(top.inertia) else [f"inertia {top.inertia:.2f}"]
        rows.append(unit_row(top.bundle, top.row, [images.picture(place) for place in top.places], facts, top.inner))
    units = tops[-1].bundle
    with binary_output(path) as stream:
        stream.write(png_bytes(contact_sheet(*heading(units, sum(top.bundle is units for top in tops)), rows), units))


def _table(tops: Sequence[Top], all_rows: bool) -> bytes:
    """Return a table of the first units, or with `all_rows` of all units."""
    rows = len(tops) if all_rows else min(len(tops), TABLE_ROWS)
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
    remainder = Text(f"… {count_of(len(tops) - rows, 'more unit')} (-f jsonl for all)", style="dim")
    return rendered(table, *([remainder] if rows < len(tops) else []))
