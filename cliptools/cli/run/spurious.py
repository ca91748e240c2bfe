"""clip-spurious: writes words that push an image of one class towards another, as records or a table.

front/spurious.py finds them.
"""

from dataclasses import dataclass
from pathlib import Path

from cliptools.analysis.spurious import By
from cliptools.cli.app import Output, choose_format, parse_layers
from cliptools.cli.run.bundle_output import read_neurons
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
    """Find the words and write them.

    Raises:
        UsageError: invalid options.
        StreamError: the bundle has no neurons.
    """
    request = _request(options)
    bundle = read_neurons(options.bundle, *NEEDED_TENSORS, device=options.device)
    records = spurious_records(bundle, request)
    with text_output(options.output) as stream:
        if choose_format(options.output_format, options.output, "jsonl") == "jsonl":
            for record in records:
                write_record(stream, record)
        else:
            stream.write(rendered(spurious_table(list(records))))


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
