"""What clip-effects --shard does: some of the images into a partial, to be merged with those of the others."""

import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from cliptools.cli.run.effects import INDIRECT, TOOL, Listed, list_images, said_of, settings_of, top_said
from cliptools.console import count_of, note, summarise
from cliptools.effects.factored import UnitBlock
from cliptools.effects.select import Choice, factored_effect
from cliptools.emoji.render import SceneSource
from cliptools.errors import CliptoolsError, UsageError
from cliptools.images.loader import ImageSource, Skipped, list_digest
from cliptools.io.files import binary_output
from cliptools.io.header import Header
from cliptools.io.shard_file import KIND, PartialFile, PartialSpool, difference, shards_said
from cliptools.models.load import LoadedModel
from cliptools.streaming.shard_statistics import Basis, ShardStatistics
from cliptools.streaming.shards import SAMPLE, kept_in, measure_shard

WITHOUT = {
    "keep": "which units act most is known when all shards are merged: give --keep to clip-merge",
    "thumbnails": "the top images are known when all shards are merged: give --thumbnails to clip-merge, with --images",
}


def parse_shard(text: str) -> tuple[int, int]:
    """`3/8` as (3, 8).

    Raises:
        UsageError: anything else, or not from 1 to n.
    """
    i, slash, n = text.partition("/")
    if not (slash and i.isdecimal() and n.isdecimal() and 1 <= int(i) <= int(n)):
        raise UsageError(f"--shard {text}: expected I/N with I from 1 to N, as 3/8")
    return int(i), int(n)


def check_shard(paths: Sequence[str], options: dict[str, Any], output_format: str, output: Path | None) -> None:
    """What cannot be with --shard, or only with it.

    Raises:
        UsageError: the first such thing.
    """
    if options["shard"] is None:
        for name in ("resume", "centre"):
            if options[name]:
                raise UsageError(f"--{name} is for --shard")
        return
    options["shard"] = parse_shard(options["shard"])
    if "-" in paths:
        raise UsageError("--shard: every shard has to know the whole list, and standard input is read once: name files")
    if output_format != "safetensors":
        raise UsageError(f"--shard: a partial is no {output_format}; clip-merge makes the bundle to be shown")
    if options["effect"] == INDIRECT:
        raise UsageError("--shard: indirect effects need mean activations over all images first, which no shard has")
    for name, why in WITHOUT.items():
        if options[name]:
            raise UsageError(f"--{name} with --shard: {why}")
    if options["resume"] and (output is None or str(output) == "-"):
        raise UsageError("--resume looks whether the shard is there already: name its file by -o FILE")


def write_partial(
    model: LoadedModel,
    source: ImageSource,
    choice: Choice,
    options: dict[str, Any],
    arguments: dict[str, Any],
    output: Path | None,
) -> None:
    """Measure a shard and write it, unless it is there.

    Raises:
        CliptoolsError: with --resume, the file is there and another one.
    """

    (i, n), settings = options["shard"], settings_of(choice, options)
    listed = list_images(source, options)
    header = _header(model, listed, choice, options, arguments)
    if options["resume"] and output is not None and output.exists():
        _check_there(output, header)
        note(f"{TOOL}: {output}: shard {i} of {n} is there already")
        return
    own = listed._replace(order=listed.order[i - 1 :: n])
    sample = listed._replace(order=listed.order[:SAMPLE])
    skipped, paths = Skipped(), factored_effect(model.clip, choice.effect, choice.units)
    screen = listed.screen(skipped, options["strict"])

    def slabs() -> Iterator[tuple[UnitBlock, ShardStatistics]]:
        return measure_shard(
            paths,
            sample.batches(model, options, skipped),
            own.batches(model, options, skipped),
            choice.layers,
            len(listed.indices),
            len(own.order),
            settings,
            _known(options["centre"], header) if options["centre"] else None,
            screen,
        )

    def signed(count: int) -> Header:
        return replace(header, images=header.images | {"count": count, "skipped": len(own.order) - count})

    names = listed.names
    written = screen.again(
        lambda: write_slabs(
            slabs(), lambda layer: paths.size(layer)[0], signed, lambda numbers: {i: names[i] for i in numbers}, output
        )
    )
    skips = len(own.order) - written
    summarise(
        f"{TOOL}: shard {i} of {n}: {count_of(written, 'image')}" + (f", {skips} skipped" if skips else "") + f", {model.name}"
    )


def _header(model: LoadedModel, listed: Listed, choice: Choice, options: dict[str, Any], arguments: dict[str, Any]) -> Header:
    """What the shard says of itself, but for the images it could read."""

    i, n = options["shard"]
    images = {"digest": list_digest(listed.names), "listed": len(listed.indices)}
    said = said_of(choice, options) | {key: options[key] for key in ("components", "seed", "limit", "sample")}
    settings, count = settings_of(choice, options), len(listed.indices)
    said |= top_said(settings, count) | {"kept": kept_in(settings, count), "shards": n, "have": [i]}
    said |= {"rendered": isinstance(listed.source, SceneSource)}
    return Header(KIND, model.identity, images, said).after(TOOL, arguments)


def _check_there(path: Path, header: Header) -> None:
    """Whether a file is the finished shard.

    Raises:
        CliptoolsError: it is another one, or damaged.
    """

    there = PartialFile(path)
    found = difference(there.header, header)
    if found is None and there.have != header.settings["have"]:
        found = f"{shards_said(there.have, there.of)} instead of {shards_said(header.settings['have'], there.of)}"
    if found is not None:
        raise CliptoolsError(f"{path}: begun otherwise ({found}); give the same options, or write elsewhere")


def _known(path: Path, header: Header) -> Callable[[UnitBlock], Basis]:
    """What shards share, from the partial of another one.

    Raises:
        CliptoolsError: it is of another run.
    """

    there = PartialFile(path)
    settings = there.header.settings | {"shards": header.settings["shards"]}
    found = difference(replace(there.header, settings=settings), header)
    if found is not None:
        raise CliptoolsError(f"--centre {path}: of another run ({found})")

    def basis(slab: UnitBlock) -> Basis:
        rows = there.rows(slab.layer, Basis._fields, int(slab.neurons[0]), int(slab.neurons[-1]) + 1)
        return Basis(**{field: torch.from_numpy(rows[field]) for field in Basis._fields})

    return basis


def read_slab(file: PartialFile, slab: UnitBlock) -> ShardStatistics:
    """Some units of a partial."""

    rows = file.rows(slab.layer, ShardStatistics._fields[1:], int(slab.neurons[0]), int(slab.neurons[-1]) + 1)
    return ShardStatistics(file.count, **{field: torch.from_numpy(rows[field]) for field in ShardStatistics._fields[1:]})


def write_slabs(
    slabs: Iterable[tuple[UnitBlock, ShardStatistics]],
    units: Callable[[int], int],
    header: Callable[[int], Header],
    names: Callable[[Set[int]], Mapping[int, str]],
    output: Path | None,
) -> int:
    """A partial, slab after slab; how many images it has seen.

    Args:
        units: How many a layer has.
        header: Of so many images.
        names: Of the images with these numbers.

    Raises:
        CliptoolsError: other images could be read for one slab than for another.
    """

    beside = None if output is None or str(output) == "-" else output.parent
    count: int | None = None
    seen: set[int] = set()
    with contextlib.closing(PartialSpool(beside)) as spool:
        for slab, part in slabs:
            if count not in (None, part.seen):
                raise CliptoolsError(f"{count_of(count or 0, 'image')} could be read in one pass, {part.seen} in another")
            count = part.seen
            rows = {field: column.numpy() for field, column in zip(part._fields[1:], part[1:], strict=True)}
            spool.add(slab.layer, units(slab.layer), int(slab.neurons[0]), rows)
            seen.update(part.image.unique().tolist())
        assert count is not None  # a model has units
        spool.name(names(seen))
        said = spool.signed(header(count)).to_json()
        with binary_output(output) as stream:
            spool.write(stream, said)
    return count
