"""clip-effects: writes a bundle of the effects of a model's units on images, or the partial of one shard.

front/effects.py measures; the equations of each effect are in unit_effects/.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from cliptools.cli.app import Measuring, Output, Sampling, history_arguments, parse_layers, parse_percentage
from cliptools.cli.run.bundle_output import emit
from cliptools.cli.run.shards import bundle_format, write_partial
from cliptools.cli.surroundings import LONGEST_NUMBER
from cliptools.console import count_of, note, summarise
from cliptools.emoji.render import SceneSource
from cliptools.errors import CliptoolsError, UsageError
from cliptools.front.effects import EffectsRequest, Task, measured, prepare
from cliptools.front.effects_bundle import recorded_settings
from cliptools.images.loader import list_digest
from cliptools.io.header import Header
from cliptools.io.shard_file import KIND, PartialFile, run_difference, shards_text
from cliptools.models.load import Precision
from cliptools.streaming.embeddings import Embeddings
from cliptools.streaming.measure import list_capacity
from cliptools.streaming.moments import Basis
from cliptools.streaming.shards import measure_shard
from cliptools.streaming.statistics import SAMPLE
from cliptools.unit_effects.factored import UnitBlock
from cliptools.unit_effects.select import factored_effect

TOOL = "clip-effects"
AFTER_MERGE = {
    "keep": "the units of largest effect are known only after the merge: give --keep to clip-merge",
    "per_image": "the units' directions are known only after the merge: read the images in one run",
    "thumbnails": "the top images are known only after the merge: give --thumbnails to clip-merge, with --images",
}
"""Options that --shard excludes, with the reason."""


@dataclass(frozen=True, kw_only=True)
class EffectsOptions(Sampling, Measuring, Output):
    """Options of clip-effects."""

    paths: tuple[str, ...]
    model: str
    pretrained: str | None
    text_from: str | None
    preprocess: str | None
    effect: str | None
    units: str | None
    layers: str | None
    sample_neurons: int | None
    top_images: int | None
    quantile: float
    components: int
    keep: str | None
    scale: str | None
    thumbnails: int | None
    per_image: Path | None
    shard: str | None
    centre: Path | None
    resume: bool
    device: str
    precision: Precision


def run(options: EffectsOptions) -> None:
    """Run clip-effects.

    Raises:
        UsageError: options contradict each other.
    """
    output_format = bundle_format(options)
    arguments: dict[str, Any] = {
        name: getattr(options, name) for name in EffectsRequest.__dataclass_fields__ if name not in ("images", "keep", "layers")
    }
    shard = _shard_option(options, output_format)
    arguments["keep"] = parse_percentage(options.keep, "--keep") if options.keep else None
    arguments["layers"] = parse_layers(options.layers) if options.layers else None
    if options.per_image is not None and options.output is not None and options.per_image.resolve() == options.output.resolve():
        raise UsageError(f"--per-image {options.per_image}: also the file of -o; name two files")
    task = prepare(EffectsRequest(images=options.paths or None, **arguments))
    if shard is not None:
        _write_shard(task, *shard, options)
        return
    with measured(task, TOOL, history_arguments(options, **task.chosen)) as bundle:
        emit(bundle, output_format, options.output)


def _shard_option(options: EffectsOptions, output_format: str) -> tuple[int, int] | None:
    """Return number and count of shards from --shard, None without it; check the options that depend on it.

    Raises:
        UsageError: an option excludes --shard, or needs it.
    """
    if options.shard is None:
        for name in ("resume", "centre"):
            if getattr(options, name):
                raise UsageError(f"--{name} works only together with --shard")
        return None
    i, n = _parse_shard(options.shard)
    if "-" in options.paths:
        raise UsageError("--shard needs the whole list of images, and standard input can be read only once: name files")
    if output_format != "safetensors":
        raise UsageError(f"--shard writes a partial, which is not {output_format}: leave out -f, and give it to clip-merge")
    if options.effect == "indirect":
        raise UsageError("--shard: --effect indirect needs mean activations over all images first, which a shard does not have")
    for name, reason in AFTER_MERGE.items():
        if getattr(options, name):
            raise UsageError(f"--{name.replace('_', '-')} does not go with --shard: {reason}")
    if options.resume and (options.output is None or str(options.output) == "-"):
        raise UsageError("--resume checks whether the file of the shard exists already: name it with -o FILE")
    return i, n


def _parse_shard(text: str) -> tuple[int, int]:
    """Parse --shard: `3/8` gives (3, 8).

    Raises:
        UsageError: the text has another form, or the first number is not from 1 to N.
    """
    i, slash, n = text.partition("/")
    if not (slash and i.isdecimal() and n.isdecimal() and len(n) <= LONGEST_NUMBER and 1 <= int(i) <= int(n)):
        raise UsageError(f"--shard {text}: expected I/N with I from 1 to N, for example 3/8")
    return int(i), int(n)


def _write_shard(task: Task, i: int, n: int, options: EffectsOptions) -> None:
    """Measure shard i of n and write it as a partial; with --resume, do nothing if the file is finished.

    Raises:
        CliptoolsError: with --resume, the file holds another shard or another run.
    """
    model, choice, images, image_count = task.model, task.choice, task.images, len(task.images.indices)
    header = _shard_header(task, i, n, options)
    if options.resume and options.output is not None and options.output.exists():
        _check_finished(options.output, header)
        note(f"{TOOL}: {options.output}: shard {i} of {n} exists already")
        return
    shard_images = replace(images, order=images.order[i - 1 :: n])
    sample = None if n == 1 else partial(replace(images, order=images.order[:SAMPLE]).batches, model)
    screen, effect = images.screen(), factored_effect(model.clip, choice.effect, choice.units, choice.dictionary)
    basis = None if options.centre is None else _recorded_basis(options.centre, header)
    names = images.names

    def measure_and_write() -> int:
        embeddings = Embeddings(image_count)
        statistics = measure_shard(
            effect,
            sample,
            partial(shard_images.batches, model),
            choice.layers,
            image_count,
            len(shard_images.order),
            task.settings,
            embeddings,
            basis,
            screen,
        )
        return write_partial(
            statistics,
            lambda layer: effect.size(layer)[0],
            lambda count: replace(header, images=header.images | {"count": count, "skipped": len(shard_images.order) - count}),
            lambda numbers: {number: names[number] for number in numbers},
            embeddings,
            options.output,
        )

    count = screen.retry(measure_and_write)
    skipped = len(shard_images.order) - count
    skip_text = f", {skipped} skipped" if skipped else ""
    summarise(f"{TOOL}: shard {i} of {n}: {count_of(count, 'image')}{skip_text}, {model.name}")


def _shard_header(task: Task, i: int, n: int, options: EffectsOptions) -> Header:
    """Return the header of shard i of n, without the number of images that can be read."""
    names, image_count = task.images.names, len(task.images.indices)
    settings = recorded_settings(task.choice, task.settings, image_count)
    settings |= {name: getattr(options, name) for name in ("components", "seed", "limit", "sample")}
    settings |= {"kept": list_capacity(task.settings, image_count), "shards": n, "have": [i]}
    settings |= {"rendered": isinstance(task.images.source, SceneSource)}
    images = {"digest": list_digest(names), "listed": image_count}
    return Header(KIND, task.model.identity, images, settings).after(TOOL, history_arguments(options, **task.chosen))


def _check_finished(path: Path, header: Header) -> None:
    """Check that a file is the finished shard of this header.

    Raises:
        CliptoolsError: the file is damaged, another shard, or of another run.
    """
    file = PartialFile(path)
    reason = run_difference(file.header, header)
    if reason is None and file.shards != header.settings["have"]:
        expected = shards_text(header.settings["have"], file.shard_count)
        reason = f"{shards_text(file.shards, file.shard_count)} instead of {expected}"
    if reason is not None:
        raise CliptoolsError(f"{path}: started with other options ({reason}); use the same options, or write to another file")


def _recorded_basis(path: Path, header: Header) -> Callable[[UnitBlock], Basis]:
    """Return the basis that all shards share, read from the partial of another shard.

    Raises:
        CliptoolsError: the partial is of another run.
    """
    file = PartialFile(path)
    settings = file.header.settings | {"shards": header.settings["shards"]}  # the number of shards may differ
    reason = run_difference(replace(file.header, settings=settings), header)
    if reason is not None:
        raise CliptoolsError(f"--centre {path}: a partial of another run ({reason})")

    def basis(block: UnitBlock) -> Basis:
        rows = file.rows(block.layer, Basis._fields, int(block.neurons[0]), int(block.neurons[-1]) + 1)
        return Basis(**{name: torch.from_numpy(rows[name]) for name in Basis._fields})

    return basis
