"""clip-view: selects units of a bundle, prints its header, or checks the values of its tensors.

`flaws` is the check. It applies the rules on which every command relies and, if they hold, the rules for statistics (both in
io/bundle_faults.py), and checks that the thumbnails are pictures.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass, fields
from io import BufferedIOBase
from pathlib import Path

import numpy as np
from jaxtyping import Int

from cliptools.analysis.selection import by_comparison, by_layers, by_units, by_word
from cliptools.cli.app import Options, Output, choose_format, history_arguments, open_input, parse_layers
from cliptools.cli.run.bundle_output import emit
from cliptools.cli.surroundings import refuse_idle
from cliptools.console import count_of, escape, harmless_json
from cliptools.errors import ImageError, StreamError, UsageError
from cliptools.front.unit_records import order_units
from cliptools.images.decode import thumbnail
from cliptools.io.bundle import Bundle, cliptools_header, is_bundle, read_bundle, read_header, read_unchecked, tensor_table
from cliptools.io.bundle_faults import doubtful_values, faults
from cliptools.io.files import text_output

TOOL = "clip-view"
STRONGEST, SORT = 8, "index"
"""Defaults of --strongest and --sort; the options are None if they are not given."""


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
        UsageError: The bundle lacks a tensor or a unit that the selection needs, or an option has no effect.
    """
    _check_effects(options)
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


def _check_effects(options: ViewOptions) -> None:
    """Reject options that have no effect beside or without another one.

    Raises:
        UsageError: there is one.
    """
    selection = [field.name for field in fields(Selection)]
    if options.header:
        refuse_idle((*selection, "check", "output_format"), "with --header, which prints the header of the whole bundle as JSON")
    if options.check:
        refuse_idle((*selection, "output_format"), "with --check, which checks the whole bundle and prints lines")
    if not options.word:
        refuse_idle(("strongest",), "without --word")


def _arguments(options: ViewOptions) -> dict[str, object]:
    """Return the arguments for the bundle's history."""
    defaults = {"strongest": options.strongest or STRONGEST, "sort": options.sort or ("word" if options.word else SORT)}
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
    order = order_units(bundle, selection.sort or SORT, None if selection.sort else selection.word)
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
    return list(faults(bundle.tensors)) or [*doubtful_values(bundle.tensors), *_image_faults(bundle)]


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
            yield f"thumbnail {number} is not a picture"
            return
