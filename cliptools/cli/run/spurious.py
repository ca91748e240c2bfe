"""clip-spurious: writes words that push an image of one class towards another, or things that a model takes for other things.

front/spurious.py finds the words, front/mismatch.py the things.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.table import Table

from cliptools.analysis.spurious import By
from cliptools.cli.app import Output, choose_format, parse_layers
from cliptools.cli.run.bundle_output import read_neurons
from cliptools.errors import UsageError
from cliptools.front.mismatch import HEAD, SHOWN_UNITS, MismatchRequest, mismatch_records, mismatch_table, require_read
from cliptools.front.spurious import (
    NEEDED_TENSORS,
    SpuriousRequest,
    name_pairs,
    read_block_list,
    spurious_records,
    spurious_table,
)
from cliptools.front.tables import rendered
from cliptools.io.files import text_output
from cliptools.io.jsonl import write_record


@dataclass(frozen=True, kw_only=True)
class SpuriousOptions(Output):
    """Options of clip-spurious."""

    bundle: Path | None
    depict: str | None
    predict: str | None
    pairs_file: str | None
    classes: str | None
    mismatch: bool
    cues: tuple[str, ...]
    pool: str | None
    alike: bool
    head: int | None
    words: int | None
    neurons: int | None
    layers: str | None
    by: By
    seed: int
    exclude: tuple[str, ...]
    near: float
    block_list: Path | None
    templates: tuple[str, ...]
    no_cache: bool
    device: str


def run(options: SpuriousOptions) -> None:
    """Find the words, or the things, and write them.

    Raises:
        UsageError: invalid options.
        StreamError: the bundle has no neurons.
    """
    if options.mismatch or options.cues:
        _check_mismatch(options)
        bundle = require_read(read_neurons(options.bundle, device=options.device), str(options.bundle or "standard input"))
        _write(options, mismatch_records(bundle, _mismatch_request(options)), mismatch_table)
        return
    for name in ("pool", "alike"):
        if getattr(options, name):
            raise UsageError(f"--{name} works only together with --mismatch or --cue")
    request = _request(options)
    bundle = read_neurons(options.bundle, *NEEDED_TENSORS, device=options.device)
    _write(options, spurious_records(bundle, request), spurious_table)


def _write(
    options: SpuriousOptions, records: Iterable[dict[str, Any]], table: Callable[[Sequence[dict[str, Any]]], Table]
) -> None:
    """Write the records in the format of the options."""
    with text_output(options.output) as stream:
        if choose_format(options.output_format, options.output, "jsonl") == "jsonl":
            for record in records:
                write_record(stream, record)
        else:
            stream.write(rendered(table(list(records))))


def _check_mismatch(options: SpuriousOptions) -> None:
    """Check that no option is given that belongs to pairs of classes.

    Raises:
        UsageError: there is one.
    """
    defaults = {"by": "effect", "seed": 0, "exclude": ()}
    for name in ("depict", "predict", "pairs_file", "classes", "words", "by", "seed", "exclude", "block_list"):
        if getattr(options, name) != defaults.get(name):
            which = "--cue" if options.cues else "--mismatch"
            raise UsageError(f"--{name.replace('_', '-')} is for pairs of classes: leave it out with {which}")


def _mismatch_request(options: SpuriousOptions) -> MismatchRequest:
    """Return the arguments of the front for --mismatch and --cue."""
    return MismatchRequest(
        cues=options.cues,
        texts=options.pool,
        head=options.head or HEAD,
        units=options.neurons or SHOWN_UNITS,
        alike=options.alike,
        near=options.near,
        layers=parse_layers(options.layers) if options.layers else None,
        templates=options.templates,
        device=options.device,
        cache=not options.no_cache,
    )


def _request(options: SpuriousOptions) -> SpuriousRequest:
    """Return the arguments of the front.

    Raises:
        UsageError: pairs are not named in exactly one way.
    """
    return SpuriousRequest(
        named=name_pairs(options.depict, options.predict, options.pairs_file, options.classes, options.head),
        head=options.head,
        words=options.words,
        neurons=options.neurons,
        layers=parse_layers(options.layers) if options.layers else None,
        layers_text=options.layers,
        by=options.by,
        seed=options.seed,
        exclude=options.exclude,
        near=options.near,
        blocked=read_block_list(options.block_list) if options.block_list else (),
        block_list=str(options.block_list) if options.block_list else None,
        templates=options.templates,
        device=options.device,
        cache=not options.no_cache,
    )
