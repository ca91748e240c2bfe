"""clip-effects: measures the effects of a model's units on images, and writes a bundle or the partial of one shard.

streaming/measure.py computes statistics from the effects of images; the equations of each effect are in effects/.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from cliptools.cli.app import Measuring, Output, Sampling, history_arguments, parse_layers, parse_percentage
from cliptools.cli.run.bundle_output import emit
from cliptools.cli.run.shards import (
    NumberedImages,
    bundle_format,
    effects_bundle,
    number_images,
    recorded_settings,
    statistics_settings,
    strongest_units,
    units_summary,
    warn_of_few_images,
    write_partial,
)
from cliptools.console import count_of, note, summarise
from cliptools.effects.factored import FactoredEffect, UnitBlock
from cliptools.effects.select import Choice, choose_effects, factored_effect
from cliptools.embedded_models import EMBEDDED
from cliptools.emoji.render import SceneSource, scenes_for
from cliptools.errors import CliptoolsError, UsageError
from cliptools.images.loader import ImageSource, list_digest, open_images
from cliptools.io.bundle import Bundle
from cliptools.io.header import Header
from cliptools.io.shard_file import KIND, PartialFile, run_difference, shards_text
from cliptools.models.load import LoadedModel, Precision, drop_text_tower, load_model
from cliptools.streaming.measure import Report, Settings, list_capacity, measure
from cliptools.streaming.moments import Basis
from cliptools.streaming.shards import measure_shard
from cliptools.streaming.statistics import SAMPLE
from cliptools.streaming.vit_indirect import Indirect, cost, draw_sample, margin_to_keep_all, token_means

TOOL = "clip-effects"
SCENES = 2000  # rendered if no images are named
AFTER_MERGE = {
    "keep": "the units of largest effect are known only after the merge: give --keep to clip-merge",
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
    shard: str | None
    centre: Path | None
    resume: bool
    device: str
    precision: Precision


@dataclass(frozen=True, kw_only=True)
class Task:
    """Model, settings and images of a measurement."""

    model: LoadedModel
    choice: Choice
    settings: Settings
    images: NumberedImages
    arguments: dict[str, Any]
    """Command-line arguments that change the result, for the header's history."""


def run(options: EffectsOptions) -> None:
    """Run clip-effects."""
    output_format = bundle_format(options)
    if options.sample_neurons and options.effect != "indirect":
        raise UsageError(
            "--sample-neurons applies to --effect indirect only: the other effects take all units of a layer at once"
        )
    shard = _shard_option(options, output_format)
    keep = parse_percentage(options.keep, "--keep") if options.keep else None
    layers = parse_layers(options.layers) if options.layers else None
    source = _open_source(options)
    model = load_model(
        options.model, options.pretrained, options.device, options.precision, options.preprocess, text_from=options.text_from
    )
    choice = choose_effects(model.clip, options.effect, options.units, layers)
    if choice.units == "pairs" and options.components > 1:
        raise UsageError("--components: a pair acts along one direction only; --units neurons or heads may have more")
    drop_text_tower(model)
    scale = options.scale or choice.scale
    effect_settings = {"effect": choice.effect, "units": choice.units, "layers": list(choice.layers), "scale": scale}
    task = Task(
        model=model,
        choice=choice,
        settings=statistics_settings(
            choice,
            top=options.top_images,
            quantile=options.quantile,
            components=options.components,
            scale=scale,
            gigabytes=options.memory,
        ),
        images=number_images(source, options.limit, options.sample, options.seed, options),
        arguments=history_arguments(options, **effect_settings),
    )
    if shard is not None:
        _write_shard(task, *shard, options)
        return
    emit(_measure_bundle(task, keep, options), output_format, options.output)


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
            raise UsageError(f"--{name} does not go with --shard: {reason}")
    if options.resume and (options.output is None or str(options.output) == "-"):
        raise UsageError("--resume checks whether the file of the shard exists already: name it with -o FILE")
    return i, n


def _parse_shard(text: str) -> tuple[int, int]:
    """Parse --shard: `3/8` gives (3, 8).

    Raises:
        UsageError: the text has another form, or the first number is not from 1 to N.
    """
    i, slash, n = text.partition("/")
    if not (slash and i.isdecimal() and n.isdecimal() and 1 <= int(i) <= int(n)):
        raise UsageError(f"--shard {text}: expected I/N with I from 1 to N, for example 3/8")
    return int(i), int(n)


def _open_source(options: EffectsOptions) -> ImageSource:
    """Return the images that the command line names, or rendered scenes for an embedded model.

    Raises:
        UsageError: no images are named for a model that is not embedded, or --sample is given without images.
    """
    if options.paths:
        return open_images(options.paths)
    if options.model not in EMBEDDED:
        raise UsageError(f"no images named: {options.model} needs a PATH (scenes are rendered for {', '.join(EMBEDDED)} only)")
    if options.sample is not None:
        raise UsageError("--sample needs a PATH to draw images from; for other rendered scenes use --seed")
    return scenes_for(options.model, options.limit or SCENES, options.seed)


def _measure_bundle(task: Task, keep_share: float | None, options: EffectsOptions) -> Bundle:
    """Measure all images, print a summary to standard error, and return the bundle of effects."""
    model, choice, settings, images = task.model, task.choice, task.settings, task.images
    screen, batches, expected = images.screen(), partial(images.batches, model.transform), len(images.indices)

    def measure_all() -> tuple[FactoredEffect, Report]:
        if choice.effect != "indirect":
            effect = factored_effect(model.clip, choice.effect, choice.units)
            return effect, measure(effect, batches, choice.layers, expected, settings, screen)
        visual = model.clip.visual
        neurons = draw_sample(visual, choice.layers, options.sample_neurons, options.seed)
        note(f"{TOOL}: {cost(visual, neurons, expected)}")
        indirect = Indirect(visual, neurons, token_means(visual, batches(), neurons, expected, screen), expected)
        margin = margin_to_keep_all(indirect, choice.layers, expected, settings)
        return indirect, measure(indirect, batches, choice.layers, expected, settings._replace(margin=margin), screen)

    effect, report = screen.retry(measure_all)
    effects, count, skipped = report.effects, report.images, len(images.skipped)
    keep = strongest_units(effect, effects, keep_share)
    warn_of_few_images(count, settings, effects.top_norm.shape[1])
    pass_text = "" if report.passes == 1 else f", {report.passes} passes"
    reread_text = f", {report.reread} read twice" if report.reread else ""
    skip_text = f", {skipped} skipped" if skipped else ""
    units = units_summary(effects, choice, keep, model.name)
    summarise(f"{TOOL}: {count_of(count, 'image')}{skip_text}{pass_text}{reread_text}, {units}")

    names = images.names
    fields = {"count": count, "digest": list_digest(names), "skipped": skipped}
    header = Header("effects", model.identity, fields, recorded_settings(choice, settings, count)).after(TOOL, task.arguments)
    thumbnails = None if options.thumbnails is None else partial(images.thumbnails, side=options.thumbnails)
    bundle = effects_bundle(header, effects, settings, names, keep, thumbnails)
    if not isinstance(effect, Indirect):
        return bundle
    token_mean = torch.cat([effect.means[layer].T for layer in choice.layers])  # per layer (token, n) -> (units, token)
    if keep is not None:
        token_mean = token_mean[keep.units.to(token_mean.device)]
    return bundle.with_tensors(bundle.header, token_mean=token_mean.cpu().numpy().astype(np.float32))


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
    sample = None if n == 1 else partial(replace(images, order=images.order[:SAMPLE]).batches, model.transform)
    screen, effect = images.screen(), factored_effect(model.clip, choice.effect, choice.units)
    basis = None if options.centre is None else _recorded_basis(options.centre, header)
    names = images.names

    def measure_and_write() -> int:
        statistics = measure_shard(
            effect,
            sample,
            partial(shard_images.batches, model.transform),
            choice.layers,
            image_count,
            len(shard_images.order),
            task.settings,
            basis,
            screen,
        )
        return write_partial(
            statistics,
            lambda layer: effect.size(layer)[0],
            lambda count: replace(header, images=header.images | {"count": count, "skipped": len(shard_images.order) - count}),
            lambda numbers: {number: names[number] for number in numbers},
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
    return Header(KIND, task.model.identity, images, settings).after(TOOL, task.arguments)


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
