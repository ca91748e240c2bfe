"""clip-view: selects units of a bundle, prints its header, or checks the values of its tensors.

`flaws` is the check. It applies the rules on which every command relies (io/bundle_faults.py). If they hold, it checks that
directions have length 1, shares are between 0 and 1, norms are not negative and descend, lists have no duplicates, and thumbnails
are pictures.
"""

import itertools
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields
from io import BufferedIOBase
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Int

from cliptools.analysis.selection import by_comparison, by_layers, by_units, by_word
from cliptools.cli.app import Options, Output, choose_format, history_arguments, open_input, parse_layers
from cliptools.cli.run.bundle_output import emit
from cliptools.console import count_of, escape, harmless_json
from cliptools.errors import ImageError, StreamError, UsageError
from cliptools.front.unit_records import order_units
from cliptools.images.decode import thumbnail
from cliptools.io.bundle import Bundle, cliptools_header, is_bundle, read_bundle, read_header, read_unchecked, tensor_table
from cliptools.io.bundle_faults import faults
from cliptools.io.files import text_output
from cliptools.io.jsonl import unit_name

TOOL = "clip-view"
STRONGEST, SORT = 8, "index"
"""Defaults of --strongest and --sort; the options are None if they are not given."""
ROUNDING = 1e-3  # largest error of a length or a share, after long sums in float32


@dataclass(frozen=True, kw_only=True)
class Selection(Options):
    """Units to select and their order; None for options that were not given."""

    layers: str | None
    units: str | None
    explained: str | None
    residual: str | None
    word: str | None
    strongest: int | None
    sort: str | None
    head: int | None

    @property
    def is_given(self) -> bool:
        """Return whether any option selects or sorts units; otherwise the whole bundle is written in its own order."""
        return any(getattr(self, field.name) is not None for field in fields(Selection))


@dataclass(frozen=True, kw_only=True)
class ViewOptions(Output, Selection):
    """Parameters of clip-view."""

    bundle: Path | None
    header: bool
    check: bool


def run(options: ViewOptions) -> None:
    """Print the header, check the bundle, or write the selected units.

    Raises:
        StreamError: The input is not a bundle, or the check finds a fault.
        UsageError: The bundle lacks a tensor or a unit that the selection needs.
    """
    stream, name = open_input(options.bundle, "a bundle", "BUNDLE")
    with stream:
        if options.header:
            _print_header(stream, name, options.output)
            return
        if options.check:
            _check(stream, name, options.output)
            return
        bundle = read_bundle(stream, name)
    part = bundle.select(_rows(bundle, options))
    if options.is_given:
        part = part.with_tensors(part.header.after(TOOL, _arguments(options)))
    emit(part, choose_format(options.output_format, options.output, "safetensors"), options.output)


def _arguments(options: ViewOptions) -> dict[str, object]:
    """Return the arguments for the bundle's history."""
    defaults = {"strongest": options.strongest or STRONGEST, "sort": options.sort or SORT}
    arguments = history_arguments(options, **defaults)
    return {key: value for key, value in arguments.items() if key not in ("header", "check")}


def _rows(bundle: Bundle, selection: Selection) -> Int[np.ndarray, " selected"]:
    """Return the row numbers of the selected units, in the order of --sort."""
    mask = np.ones(bundle.units, dtype=bool)
    if selection.layers:
        mask &= by_layers(bundle, parse_layers(selection.layers))
    if selection.units:
        mask &= by_units(bundle, selection.units)
    for name, condition in (("explained", selection.explained), ("residual", selection.residual)):
        if condition:
            if name not in bundle:
                raise UsageError(f"--{name}: this bundle has no words yet (run clip-decompose first)")
            mask &= by_comparison(bundle[name], condition, f"--{name}")
    if selection.word:
        mask &= by_word(bundle, selection.word, selection.strongest or STRONGEST)
    order = order_units(bundle, selection.sort or SORT)
    return order[mask[order]][: selection.head]  # (unit) -> (selected)


def _print_header(stream: BufferedIOBase, name: str, output: Path | None) -> None:
    """Write model, images, settings, history and tensors as a JSON document; only the header is read."""
    raw = read_header(stream, name)
    document = dict(cliptools_header(raw, name).__dict__) if is_bundle(raw) else {"metadata": raw.get("__metadata__", {})}
    document["tensors"] = tensor_table(raw, name)
    with text_output(output) as output_stream:
        output_stream.write(harmless_json(json.dumps(document, indent=2, ensure_ascii=False)).encode("utf-8") + b"\n")


def _check(stream: BufferedIOBase, name: str, output: Path | None) -> None:
    """Write a line for each fault of the bundle, or a line that the bundle is sound.

    Raises:
        StreamError: The bundle has a fault.
    """
    bundle = read_unchecked(stream, name)
    fault_lines = flaws(bundle)
    with text_output(output) as output_stream:
        lines = fault_lines or [f"sound: {count_of(bundle.units, 'unit')}, {count_of(len(bundle.tensors), 'tensor')}"]
        output_stream.write("".join(f"{escape(line)}\n" for line in lines).encode("utf-8"))
    if fault_lines:
        raise StreamError(f"{name}: not sound, {len(fault_lines)} thing{'s are' if len(fault_lines) > 1 else ' is'} wrong")


def flaws(bundle: Bundle) -> list[str]:
    """Return a line for each fault of a bundle; a sound bundle has none."""
    lines = list(faults(bundle.tensors))
    return lines or list(itertools.chain.from_iterable(check(bundle) for check in CHECKS))


def _duplicate_faults(bundle: Bundle) -> Iterator[str]:
    unit, count = np.unique(bundle["unit"], axis=0, return_counts=True)
    if (count > 1).any():
        yield f"{count_of(int((count > 1).sum()), 'duplicate unit')}, as {unit_name(*unit[count > 1][0].tolist())}"


def _length_faults(bundle: Bundle) -> Iterator[str]:
    for name in ("direction", "component"):
        if name in bundle:
            length = np.linalg.norm(bundle[name].astype(np.float64), axis=-1)  # (unit, ..., d) -> (unit, ...)
            yield from _fault(bundle, (np.abs(length - 1) > ROUNDING) & (length > 0), f"`{name}` has neither length 1 nor 0")


def _share_faults(bundle: Bundle) -> Iterator[str]:
    for name in ("explained", "explained_all", "component_explained", "residual", "prefix_residual"):
        if name in bundle:
            outside = (bundle[name] < -ROUNDING) | (bundle[name] > 1 + ROUNDING)
            yield from _fault(bundle, outside, f"`{name}` is not between 0 and 1")


def _norm_faults(bundle: Bundle) -> Iterator[str]:
    for name in ("top_norm", "threshold", "threshold_bound"):
        if name in bundle:
            filled = bundle["top_image"] >= 0 if name == "top_norm" and "top_image" in bundle else True
            yield from _fault(bundle, (bundle[name] < 0) & filled, f"`{name}` is negative")
    if "top_norm" in bundle:
        yield from _fault(bundle, np.diff(bundle["top_norm"], axis=1) > 0, "`top_norm` does not descend")


def _list_faults(bundle: Bundle) -> Iterator[str]:
    for name, item in (("top_image", "an image"), ("word", "a text")):
        if name in bundle:
            rows = np.sort(bundle[name], axis=1)
            yield from _fault(bundle, (np.diff(rows, axis=1) == 0) & (rows[:, 1:] >= 0), f"`{name}` has {item} twice")
            gap = (bundle[name][:, :-1] < 0) & (bundle[name][:, 1:] >= 0)
            yield from _fault(bundle, gap, f"`{name}` has an entry after -1, which ends the list")
    if "word" in bundle and "coefficient" in bundle:
        surplus = (bundle["word"] < 0) & (bundle["coefficient"] != 0)
        yield from _fault(bundle, surplus, "`coefficient` is not 0 where there is no text")


def _image_faults(bundle: Bundle) -> Iterator[str]:
    if "images" not in bundle:
        return
    names = bundle.text_list("images")
    if len(set(names)) < len(names):
        yield f"`images` has {count_of(len(names) - len(set(names)), 'name')} twice"
    if "thumbnails" not in bundle:
        return
    offsets = bundle["thumbnail_offsets"]
    if len(offsets) != len(names) + 1:
        yield f"{count_of(len(offsets) - 1, 'thumbnail')} for {count_of(len(names), 'image')}"
    for number in range(len(offsets) - 1):
        try:
            thumbnail(bundle["thumbnails"], offsets, number)
        except ImageError:
            yield f"thumbnail {number} is no picture"
            return


CHECKS: tuple[Callable[[Bundle], Iterator[str]], ...] = (
    _duplicate_faults, _length_faults, _share_faults, _norm_faults, _list_faults, _image_faults,
)  # fmt: skip


def _fault(bundle: Bundle, faulty: Bool[np.ndarray, "unit ..."], fault: str) -> Iterator[str]:
    """Yield the fault with the number of units that have it and the first such unit; nothing if no unit has it."""
    units = np.flatnonzero(faulty.reshape(len(faulty), -1).any(1))  # (unit, ...) -> (wrong units)
    if len(units):
        yield f"{fault}: {len(units)} of {count_of(bundle.units, 'unit')}, as {unit_name(*bundle['unit'][units[0]].tolist())}"
