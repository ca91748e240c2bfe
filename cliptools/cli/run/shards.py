"""Functions that clip-effects, its shards and clip-merge share: the format of a bundle, and partials in files."""

import contextlib
from collections.abc import Callable, Iterable, Mapping, Set
from pathlib import Path

import torch

from cliptools.cli.app import Output, choose_format
from cliptools.console import count_of
from cliptools.errors import CliptoolsError, UsageError
from cliptools.io.files import binary_output, stdout_is_terminal
from cliptools.io.header import Header
from cliptools.io.shard_file import PartialFile, PartialSpool
from cliptools.streaming.embeddings import Embeddings
from cliptools.streaming.shard_statistics import ShardStatistics
from cliptools.unit_effects.factored import UnitBlock


def bundle_format(options: Output) -> str:
    """Return the output format: that of --format, or the default for this output.

    Raises:
        UsageError: a bundle would be written to a terminal.
    """
    output_format = choose_format(options.output_format, options.output, "safetensors")
    if output_format == "safetensors" and options.output is None and stdout_is_terminal():
        raise UsageError(
            "a bundle is binary and would garble the terminal: redirect it (> FILE), name a file (-o FILE) or ask for -f table"
        )
    return output_format


def read_partial(file: PartialFile, block: UnitBlock) -> ShardStatistics:
    """Return the statistics of a block of units in a partial."""
    fields = ShardStatistics._fields[1:]
    rows = file.rows(block.layer, fields, int(block.neurons[0]), int(block.neurons[-1]) + 1)
    return ShardStatistics(file.count, **{name: torch.from_numpy(rows[name]) for name in fields})


def joined_embeddings(files: Iterable[PartialFile], listed: int) -> Embeddings:
    """Return the embeddings of the images of all partials."""
    embeddings = Embeddings(listed)
    for file in files:
        for numbers, rows in file.embeddings():
            embeddings.add(numbers, torch.from_numpy(rows))
    return embeddings


def write_partial(
    parts: Iterable[tuple[UnitBlock, ShardStatistics]],
    units: Callable[[int], int],
    header: Callable[[int], Header],
    names: Callable[[Set[int]], Mapping[int, str]],
    embeddings: Embeddings,
    output: Path | None,
) -> int:
    """Write the statistics of all blocks of units as one partial, and return the number of their images.

    Args:
        units: Number of units in a layer.
        header: Makes the header from the number of images.
        names: Names of the images with these numbers.
        embeddings: Embeddings of all images, complete after the last block.

    Raises:
        CliptoolsError: the statistics of two blocks come from different numbers of images.
    """
    folder = None if output is None or str(output) == "-" else output.parent
    count: int | None = None
    top_images: set[int] = set()
    with contextlib.closing(PartialSpool(folder)) as spool:
        for block, part in parts:
            if count not in (None, part.seen):
                raise CliptoolsError(f"{count_of(count or 0, 'image')} could be read in one pass, {part.seen} in another")
            count = part.seen
            rows = {name: column.numpy() for name, column in zip(part._fields[1:], part[1:], strict=True)}
            spool.add(block.layer, units(block.layer), int(block.neurons[0]), rows)
            top_images.update(part.image.unique().tolist())
        assert count is not None  # every model has units
        spool.add_names(names(top_images))
        spool.add_embeddings(count, ((numbers, rows.numpy()) for numbers, rows in embeddings.batches()))
        text = spool.with_digest(header(count)).to_json()
        with binary_output(output) as stream:
            spool.write(stream, text)
    return count
