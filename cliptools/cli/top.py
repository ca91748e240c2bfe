"""clip-top: the images on which units act most, and how much these have in common."""

import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from cliptools.cli.app import (
    ORDERS,
    batch_option,
    choose_format,
    command,
    device_option,
    open_input,
    output_options,
    parse_layers,
    reading_options,
)
from cliptools.cli.run.bundle_output import (
    SHOWN_WORDS,
    order_units,
    record_source,
    rendered,
    shown_word,
    signed_words,
    unit_keys,
    weight_name,
)
from cliptools.cli.run.sheet import heading, png_bytes, unit_row
from cliptools.console import count_of
from cliptools.errors import StreamError, UsageError
from cliptools.io.files import binary_output, text_output
from cliptools.io.header import model_difference, reason_of
from cliptools.io.jsonl import rounded, unit_name, write_record

if TYPE_CHECKING:
    import numpy as np

    from cliptools.cli.run.top import Looker, Top
    from cliptools.io.bundle import Bundle

TOOL = "clip-top"
HEAD = 12
TABLE_ROWS = 20
TABLE_IMAGES = 4
BUNDLE_HELP = "The units; a bundle of clip-effects or clip-decompose [default: stdin]."
BESIDE_HELP = "A bundle of whole neurons of the same model: each comes before its pairs."
UNITS_HELP = "These units in this order, as 6:391,4:624.21 (layer:neuron.head); 4:624 is every pair of the neuron."
HEAD_HELP = f"How many units of that order; with --units, of each name [default: {HEAD}; with --units, all]."
RAW_HELP = "Rank by ||phi|| instead of ||phi - b||, over all the images; looks at each of them."


@command(TOOL)
@click.argument("paths", nargs=-1, metavar="[PATH]...")
@click.option("--bundle", type=click.Path(path_type=Path, allow_dash=True), metavar="FILE", help=BUNDLE_HELP)
@click.option("--beside", type=click.Path(path_type=Path, allow_dash=True), metavar="FILE", help=BESIDE_HELP)
@click.option("--layers", help="Units of these layers, as 8-10,11.")
@click.option("--units", help=UNITS_HELP)
@click.option("--word", help="Units that have this text among their strongest positive words.")
@click.option("--strongest", default=8, show_default=True, type=click.IntRange(1), help="How many words --word looks at.")
@click.option("--sort", type=click.Choice([*ORDERS, "inertia"]), default="clear", show_default=True, help="Order of the units.")
@click.option("--head", type=click.IntRange(1), help=HEAD_HELP)
@click.option("--images-per-unit", type=click.IntRange(1, 100), default=10, show_default=True, help="How many top images.")
@click.option("--inertia-images", type=click.IntRange(2), default=10, show_default=True, help="Top images the inertia is of.")
@click.option("--raw", is_flag=True, help=RAW_HELP)
@click.option("--sheet", type=click.Path(dir_okay=False, path_type=Path), metavar="FILE", help="Also a contact sheet, PNG.")
@click.option("--strict", is_flag=True, help="An unreadable or unusable image is an error, not a warning.")
@reading_options
@batch_option
@click.option("--workers", type=click.IntRange(0), help="Threads that decode images [default: the number of cores, at most 8].")
@device_option
@output_options("jsonl", "table")
def main(paths: tuple[str, ...], output: Path | None, output_format: str | None, **options: Any) -> None:
    """Say on which images units act most, and how much alike these are.

    Reads a bundle, on standard input or by --bundle, and its images again: PATHs (files, folders, globs, tar archives, - for
    a tar on standard input) in which they are found by the names that the bundle keeps, or without a PATH the scenes that
    clip-effects rendered. Writes a line for each of a unit's top images: unit, words, rank, image, norm, and the unit's
    inertia.

    Inertia is the mean squared distance of the top images' embeddings M(I), at unit norm, from their mean: 0 where the model
    sees the same in all of them, near 1 where it sees nothing in common. A unit of low inertia is about one thing.

    \b
    Examples:
      clip-effects | clip-decompose | clip-top --sheet top.png -f table
      clip-top photos/ --units 9:391,9:4 --bundle neurons.safetensors -f jsonl | jq -c '[.neuron, .image, .norm]'
      clip-top --beside neurons.safetensors --units 4:624 --sheet heads.png --bundle pairs.safetensors
      clip-top --head 100000 --images-per-unit 1 --sort index < neurons.safetensors | jq .inertia
    """
    inputs = [options["bundle"], *([options["beside"]] if options["beside"] else []), *(Path(p) for p in paths if p == "-")]
    if sum(path is None or str(path) == "-" for path in inputs) > 1:
        raise UsageError("only one of PATH, --bundle and --beside can come from standard input: name files")
    chosen_format = choose_format(output_format, output, "jsonl")
    units = _read(options["bundle"], "--bundle FILE")
    neurons = _beside(options["beside"], units) if options["beside"] else None
    order = _candidates(units, options)
    from cliptools.cli.run.top import Looker
    from cliptools.images.relocate import recorded_source

    look = Looker(units, recorded_source(units, paths), options)
    tops = _tops(units, order, look, options)
    if neurons is not None:
        tops = _with_neurons(tops, neurons, look)
    if options["sheet"]:
        _draw(tops, look, options)
    with text_output(output) as stream:
        if chosen_format == "table":
            stream.write(_table(tops, whole=output is not None))
            return
        for record in _records(tops, options):
            write_record(stream, record)


def _read(path: Path | None, option: str) -> "Bundle":
    from cliptools.io.bundle import read_bundle

    stream, name = open_input(path, "a bundle", option)
    with stream:
        bundle = read_bundle(stream, name)
    for tensor in ("top_norm", "top_image", "images"):
        if tensor not in bundle:
            raise StreamError(f"{name}: a bundle without `{tensor}`; run clip-effects first")
    return bundle


def _beside(path: Path, pairs: "Bundle") -> "Bundle":
    """The neurons that pairs belong to.

    Raises:
        StreamError: it is not pairs that the other bundle holds, or not neurons that this one does, or of another model.
    """
    neurons = _read(path, "--beside FILE")
    if (pairs["unit"][:, 1:] < 0).any():
        raise StreamError("--beside: the units are no pairs of a neuron and a head (clip-effects --units pairs)")
    if (neurons["unit"][:, 1] < 0).any() or (neurons["unit"][:, 2] >= 0).any():
        raise StreamError(f"--beside {path}: its units are not whole neurons (clip-effects --units neurons)")
    if difference := model_difference(neurons.header.model, pairs.header.model):
        raise StreamError(f"--beside {path}: a bundle of another model than the pairs'{reason_of(difference)}")
    return neurons


def _candidates(bundle: "Bundle", options: dict[str, Any]) -> "np.ndarray":
    """Row numbers of the units that may be shown, in the order asked for, as far as the bundle knows it.

    Raises:
        UsageError: there are none.
    """
    import numpy as np

    from cliptools.analysis.selection import by_layers, by_units, by_word

    mask = np.ones(bundle.units, dtype=bool)
    if options["layers"]:
        mask &= by_layers(bundle, parse_layers(options["layers"]))
    if options["units"]:
        mask &= by_units(bundle, options["units"])
    if options["word"]:
        mask &= by_word(bundle, options["word"], options["strongest"])
    if not mask.any():
        raise UsageError("no unit of the bundle is all that was asked for")
    order = order_units(bundle, "index" if options["sort"] == "inertia" else options["sort"])
    return order[mask[order]]


def _tops(bundle: "Bundle", order: "np.ndarray", look: "Looker", options: dict[str, Any]) -> "list[Top]":
    """The first of the units, with their top images and inertia."""
    import numpy as np

    if options["sort"] != "inertia":
        return look.at(bundle, _first(bundle, order, options))
    inertia = look.inertia(bundle, order)  # of all, to know which come first
    return look.at(bundle, _first(bundle, order[np.argsort(inertia, kind="stable")], options))


def _first(bundle: "Bundle", order: "np.ndarray", options: dict[str, Any]) -> "np.ndarray":
    """--units in the order named, each name's by `order` and at most --head; else the first of the order."""
    import numpy as np

    from cliptools.analysis.selection import rows_named

    if options["units"] is None:
        return order[: options["head"] or HEAD]
    return np.concatenate([rows_named(bundle, part, order)[: options["head"]] for part in options["units"].split(",")])


def _with_neurons(tops: "Sequence[Top]", neurons: "Bundle", look: "Looker") -> "list[Top]":
    """Each neuron before its pairs.

    Raises:
        UsageError: the bundle lacks one.
    """
    from dataclasses import replace

    import numpy as np

    groups: dict[tuple[int, int], list[Top]] = {}
    for top in tops:
        layer, neuron, _ = top.unit
        groups.setdefault((layer, neuron), []).append(replace(top, inner=True))
    known = {(layer, neuron): row for row, (layer, neuron, _) in enumerate(neurons["unit"].tolist())}
    if missing := [unit for unit in groups if unit not in known]:
        raise UsageError(f"--beside: this bundle has no neuron {unit_name(*missing[0], -1)}")
    whole = look.at(neurons, np.array([known[unit] for unit in groups], dtype=np.int64))
    return [one for neuron, pairs in zip(whole, groups.values(), strict=True) for one in (neuron, *pairs)]


def _records(tops: "Sequence[Top]", options: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """A record a unit and image; each stands alone."""
    sources = {id(bundle): record_source(bundle) for bundle in {id(top.bundle): top.bundle for top in tops}.values()}
    for top in tops:
        bundle = top.bundle
        said: dict[str, Any] = {
            "inertia": None if math.isnan(top.inertia) else rounded(top.inertia),
            "inertia_images": top.counted,
        }
        if "word" in bundle:
            said["words"] = [{"word": word, weight_name(bundle): rounded(c)} for word, c in _words(top)]
        said |= {"ranked_by": "raw norm" if options["raw"] else "centred norm"}
        said |= {key: bundle.header.settings.get(key) for key in ("effect", "units", "scale")}
        for rank, (name, norm) in enumerate(zip(top.names, top.norms, strict=True), 1):
            yield unit_keys(*top.unit) | {"rank": rank, "image": name, "norm": rounded(norm)} | said | sources[id(bundle)]


def _words(top: "Top") -> list[tuple[str, float]]:
    """A unit's strongest words with their coefficients."""
    texts = top.bundle.text_list("words")["texts"]
    return [(texts[j], c) for j, c in signed_words(top.bundle, top.row)[:SHOWN_WORDS]]


def _draw(tops: "Sequence[Top]", look: "Looker", options: dict[str, Any]) -> None:
    """The contact sheet."""
    from cliptools.render.contact_sheet import contact_sheet, most_rows

    across = options["images_per_unit"]
    if len(tops) > most_rows(across):
        raise UsageError(
            f"--sheet: {count_of(len(tops), 'unit')} with {count_of(across, 'image')} make too large a picture "
            f"(at most {most_rows(across)})"
        )
    rows = []
    for top in tops:
        facts = [] if math.isnan(top.inertia) else [f"inertia {top.inertia:.2f}"]
        rows.append(unit_row(top.bundle, top.row, [look.picture(place) for place in top.places], facts, top.inner))
    units = tops[-1].bundle
    with binary_output(options["sheet"]) as stream:
        stream.write(png_bytes(contact_sheet(*heading(units, sum(top.bundle is units for top in tops)), rows), units))


def _table(tops: "Sequence[Top]", whole: bool) -> bytes:
    """The first units, or with `whole` all of them."""
    from rich.table import Table
    from rich.text import Text

    rows = len(tops) if whole else min(len(tops), TABLE_ROWS)
    table = Table(box=None, pad_edge=False, header_style="bold")
    for title in ("unit", "inertia", "norm"):
        table.add_column(title, justify="right", no_wrap=True)
    named = any("word" in top.bundle for top in tops)
    for title in ("words", "top images")[not named :]:
        table.add_column(title, overflow="fold")
    for top in tops[:rows]:
        words = "  ".join(shown_word(top.bundle, *each) for each in _words(top)) if "word" in top.bundle else ""
        inertia = "–" if math.isnan(top.inertia) else f"{top.inertia:.3f}"
        cells = [unit_name(*top.unit), inertia, f"{top.norms[0]:.3g}" if top.norms else "–"]
        table.add_row(*cells, *([Text(words)] if named else []), Text("  ".join(top.names[:TABLE_IMAGES])))
    more = Text(f"… {count_of(len(tops) - rows, 'more unit')} (-f jsonl for all)", style="dim")
    return rendered(table, *([more] if rows < len(tops) else []))


if __name__ == "__main__":
    main()
