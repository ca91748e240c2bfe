"""Top images of units, with the units' inertia: the units that are chosen, their records and their table.

top_images.py finds the images and reads them again.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from jaxtyping import Int
from rich.table import Table
from rich.text import Text

from cliptools.analysis.selection import by_layers, by_units, by_word, rows_named
from cliptools.arguments import checked, chosen_layers, require_number, require_one_of
from cliptools.console import count_of, front_call
from cliptools.errors import StreamError, UsageError
from cliptools.front.images import Images, Reading, open_any
from cliptools.front.tables import Records
from cliptools.front.top_images import Top, TopImages, TopRequest
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
from cliptools.images.relocate import recorded_source
from cliptools.io.bundle import Bundle
from cliptools.io.header import model_difference, reason_of
from cliptools.io.jsonl import rounded, unit_name
from cliptools.models.load import LoadedModel

HEAD = 12  # units, without `head` and `units`
TABLE_IMAGES = 4
SORTS = ("index", "clear", "norm", "explained", "residual", "inertia")


@checked
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
        layers=chosen_layers(layers), units=units, word=word, strongest=strongest, sort=sort, head=head,
        images_per_unit=images_per_unit,
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
        given = [name for name in ("layers", "units", "word") if getattr(request, name)]
        raise UsageError(f"the bundle has no unit that matches {' and '.join(f'--{name}' for name in given)}")
    sort = "index" if request.sort == "inertia" else request.sort or "clear"
    order = order_units(bundle, sort, None if request.sort else request.word)
    return order[mask[order]]


def first_rows(bundle: Bundle, order: Int[np.ndarray, " _"], request: TopRequest) -> Int[np.ndarray, " _"]:
    """Return the first rows of the order; with `units`, those of each name, in the order of the names."""
    if request.units is None:
        return order[: request.head or HEAD]
    return rows_named(bundle, request.units, order, request.head)


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
    most = max((top.inertia_images for top in tops), default=0)
    for title in ("words", "top images")[not with_words :]:
        table.add_column(title, overflow="fold")
    for top in tops[:rows]:
        words = "  ".join(shown_word(top.bundle, word, c) for word, c in _words(top)) if "word" in top.bundle else ""
        cells = [unit_name(*top.unit), _inertia_cell(top, most), f"{top.norms[0]:.3g}" if top.norms else "–"]
        table.add_row(*cells, *([Text(words)] if with_words else []), Text("  ".join(top.names[:TABLE_IMAGES])))
    return table


def _inertia_cell(top: Top, most: int) -> str:
    """Return a unit's inertia, with the number of its images where it is below that of other units: few images lower it."""
    if math.isnan(top.inertia):
        return "–"
    return f"{top.inertia:.3f}" if top.inertia_images == most else f"{top.inertia:.3f} ({count_of(top.inertia_images, 'image')})"
