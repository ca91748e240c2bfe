"""Effects of a model's units on images: from images of any kind to a bundle.

streaming/measure.py computes statistics from the effects of images; the equations of each effect are in unit_effects/.
"""

import contextlib
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Int

from cliptools.arguments import checked, chosen_layers, require_number, require_one_of
from cliptools.console import count_of, front_call, note, summarise
from cliptools.embedded_models import require_scenes
from cliptools.emoji.render import scenes_for
from cliptools.errors import UsageError
from cliptools.front.bundles import UnitBundle, unit_bundle, with_step
from cliptools.front.effects_bundle import (
    directions_of,
    effects_bundle,
    recorded_settings,
    statistics_settings,
    strongest_units,
    units_summary,
    warn_of_few_images,
)
from cliptools.front.image_activity import activity_of, check_memory, write_activity
from cliptools.front.images import Images, NumberedImages, Reading, number_images, open_any
from cliptools.front.prepared import PreparedImages
from cliptools.images.loader import ImageSource, list_digest
from cliptools.io.files import whole_file
from cliptools.io.header import Header
from cliptools.models.load import LoadedModel, Precision, drop_text_tower, load_model
from cliptools.models.unusable import Screen
from cliptools.streaming.measure import Report, keep_all, measure
from cliptools.streaming.summary import Settings
from cliptools.streaming.vit_indirect import Indirect, cost, draw_sample, token_means
from cliptools.towers.kinds import output_width
from cliptools.unit_effects.factored import FactoredEffect
from cliptools.unit_effects.select import DICTIONARY, UNITS, Choice, choose_effects, factored_effect

TOOL = "clip-effects"
SCENES = 2000  # rendered if no images are named
NOT_RECORDED = ("images", "device", "batch_size", "workers", "strict", "memory", "per_image")
"""Arguments that do not change the result, or that the header records elsewhere."""


@dataclass(frozen=True, kw_only=True)
class EffectsRequest:
    """Arguments of `effects`, which describes them."""

    images: Images | None = None
    model: str | LoadedModel = "emoji-vit2"
    pretrained: str | None = None
    text_from: str | None = None
    preprocess: str | None = None
    effect: str | None = None
    units: str | None = None
    layers: Sequence[int] | None = None
    sample_neurons: int | None = None
    top_images: int | None = None
    quantile: float = 0.98
    components: int = 1
    keep: float | None = None
    scale: str | None = None
    limit: int | None = None
    sample: int | None = None
    seed: int = 0
    thumbnails: int | None = None
    per_image: str | os.PathLike[str] | None = None
    device: str = "auto"
    precision: Precision = "fp32"
    batch_size: int = 32
    workers: int | None = None
    memory: float = 4.0
    strict: bool = False

    def check(self) -> None:
        """Reject values that the command's options would reject, and combinations that have no meaning.

        Raises:
            UsageError: an argument is invalid.
        """
        require_one_of("effect", self.effect, ("second", "first", "indirect", "pooled"))
        if not (self.units or "").startswith(DICTIONARY):
            require_one_of("units", self.units, (*UNITS, f"{DICTIONARY}FILE"))
        require_one_of("scale", self.scale, ("unit", "raw"))
        require_one_of("precision", self.precision, ("fp32", "bf16", "fp16"))
        for name in ("sample_neurons", "top_images", "components", "limit", "sample", "batch_size"):
            require_number(name, getattr(self, name), 1)
        for name in ("seed", "workers"):
            require_number(name, getattr(self, name), 0)
        require_number("quantile", self.quantile, 0, 1, inside=True)
        require_number("memory", self.memory, 0.01)
        require_number("thumbnails", self.thumbnails, 16, 512)
        require_number("keep", self.keep, 1e-9, 1)
        if self.sample_neurons and self.effect != "indirect":
            raise UsageError(
                "--sample-neurons applies to --effect indirect only: the other effects take all units of a layer at once"
            )


@dataclass(frozen=True, kw_only=True)
class Task:
    """Model, settings and images of a measurement."""

    request: EffectsRequest
    model: LoadedModel
    choice: Choice
    settings: Settings
    images: NumberedImages

    @property
    def chosen(self) -> dict[str, Any]:
        """Return the chosen effects, as histories record them, where the request may leave them to defaults."""
        scale = "unit" if self.settings.scale else "raw"
        units = self.choice.units if self.choice.dictionary is None else self.request.units
        return {"effect": self.choice.effect, "units": units, "layers": list(self.choice.layers), "scale": scale}

    @property
    def arguments(self) -> dict[str, Any]:
        """Return the arguments that change the result, for the header's history."""
        request = self.request
        given = {field.name: getattr(request, field.name) for field in fields(request) if field.name not in NOT_RECORDED}
        given |= {"model": self.model.name, "pretrained": self.model.pretrained, "precision": self.model.precision} | self.chosen
        return {name: value for name, value in given.items() if value is not None}


@checked
def effects(
    images: Images | None = None,
    *,
    model: str | LoadedModel = "emoji-vit2",
    pretrained: str | None = None,
    text_from: str | None = None,
    preprocess: str | None = None,
    effect: str | None = None,
    units: str | None = None,
    layers: Sequence[int] | None = None,
    sample_neurons: int | None = None,
    top_images: int | None = None,
    quantile: float = 0.98,
    components: int = 1,
    keep: float | None = None,
    scale: str | None = None,
    limit: int | None = None,
    sample: int | None = None,
    seed: int = 0,
    thumbnails: int | None = None,
    per_image: str | os.PathLike[str] | None = None,
    device: str = "auto",
    precision: Precision = "fp32",
    batch_size: int = 32,
    workers: int | None = None,
    memory: float = 4.0,
    strict: bool = False,
    progress: bool = False,
) -> UnitBundle:
    """Measure what units of CLIP's image tower do to its output, and return a bundle of the statistics, as clip-effects does.

    Args:
        images: Images of any kind: paths; pictures of Pillow; arrays uint8 [y, x, 3]; or batches of
            tensors [b, 3, y, x] that the model's `transform` has made. None: emoji scenes, for the embedded models.
        model: Name of a model, or a loaded model, which then decides pretrained, text_from, preprocess, device and precision.
        pretrained: Weights: a tag of open_clip, a file, a folder, or `random`.
        text_from: Weights of the text tower, if the others are of an image tower alone.
        preprocess: Preprocessing, if it is not the model's own: a tag, or settings such as `mean=0.5,std=0.5`.
        effect: second, first or indirect (ViT), pooled (ResNet, or a ViT that pools by attention). None: second or pooled.
        units: neurons, heads or (pooled effects) pairs; or sae:FILE for the latents of a dictionary, with options as
            sae:FILE,layer=5,activation=topk,k=32. None: neurons or pairs.
        layers: Layers, counted from 0. None: from two thirds of the depth to the last but one, for pooled effects also the last;
            for heads, the last 4, or the pooling alone, whose layer is the number of layers.
        sample_neurons: Number of neurons of each layer, drawn at random, for indirect effects.
        top_images: T, number of top images of a unit. None: 2 % of the images, within 10 and 100.
        quantile: Share of the images whose effect is below the threshold of a unit.
        components: Number of principal directions of a unit.
        keep: Share of the units to keep, those of largest top norms. None: all.
        scale: `unit` (times 100/‖M(I)‖ of their image) or `raw`. None: raw for pooled effects, else unit.
        limit: Number of images, the first ones.
        sample: Number of images, drawn at random.
        seed: Random seed for samples, scenes and the order in which images are read.
        thumbnails: Longer side, in pixels, of JPEGs of the top images that the bundle keeps. None: none are kept.
        per_image: Path of a safetensors file to write the activities and centred norms of all units on all images to: `activity`
            and `norm` [images, units] in float16, `unit` and `names`. The images are read twice.
        device: auto, cpu, cuda, cuda:1 or mps.
        precision: fp32, bf16 or fp16.
        batch_size: Images per forward pass.
        workers: Threads that decode images. None: the number of cores, at most 8.
        memory: Memory for statistics, in GB. Larger statistics lie in temporary files ($TMPDIR or /var/tmp), or, on an
            accelerator or without room on the disk, take further passes over the images.
        strict: Raise an error for an unreadable image instead of a warning.
        progress: Write progress and messages to standard error; else messages go to the logger `cliptools`.

    Raises:
        UsageError: an argument is invalid, or arguments contradict each other.
        ModelError: the model cannot be loaded, or has no such effects.
        CliptoolsError: images cannot be read.
    """
    request = EffectsRequest(
        images=images, model=model, pretrained=pretrained, text_from=text_from, preprocess=preprocess, effect=effect, units=units,
        layers=chosen_layers(layers),
        sample_neurons=sample_neurons, top_images=top_images, quantile=quantile, components=components, keep=keep,
        scale=scale, limit=limit, sample=sample, seed=seed, thumbnails=thumbnails, device=device, precision=precision,
        batch_size=batch_size, workers=workers, memory=memory, strict=strict, per_image=per_image,
    )  # fmt: skip
    with front_call(progress):
        task = prepare(request)
        with measured(task, "cliptools.effects", task.arguments) as bundle:
            return bundle


def prepare(request: EffectsRequest) -> Task:
    """Open the images, load the model and choose what to measure.

    Raises:
        UsageError: an argument is invalid, or arguments contradict each other.
        ModelError: the model cannot be loaded, or has no such effects.
        CliptoolsError: images cannot be opened.
    """
    request.check()
    source = _open_source(request)
    model = _load(request)
    choice = choose_effects(model.clip, request.effect, request.units, request.layers)
    if choice.dictionary is not None:
        choice.dictionary.check_model(model)
    if choice.units == "pairs" and request.components > 1:
        raise UsageError("--components: a pair acts along one direction only; --units neurons or heads may have more")
    if model is not request.model:
        drop_text_tower(model)
    settings = statistics_settings(
        choice,
        top=request.top_images,
        quantile=request.quantile,
        components=request.components,
        scale=request.scale or choice.scale,
        gigabytes=request.memory,
    )
    reading = Reading(batch_size=request.batch_size, workers=request.workers, strict=request.strict)
    images = number_images(source, request.limit, request.sample, request.seed, reading)
    return Task(request=request, model=model, choice=choice, settings=settings, images=images)


def _open_source(request: EffectsRequest) -> ImageSource:
    """Return the images, or rendered scenes for an embedded model.

    Raises:
        UsageError: there are no images and the model is not embedded, `sample` is given without images, or thumbnails of
            batches are asked for.
    """
    if request.images is not None:
        source = open_any(request.images)
        if request.thumbnails is not None and isinstance(source, PreparedImages):
            raise UsageError("thumbnails need pictures: give paths, pictures or arrays uint8 [y, x, 3] instead of batches")
        return source
    name = request.model if isinstance(request.model, str) else request.model.name
    require_scenes(name)
    if request.sample is not None:
        raise UsageError("--sample needs a PATH to draw images from; for other rendered scenes use --seed")
    return scenes_for(name, request.limit or SCENES, request.seed)


def _load(request: EffectsRequest) -> LoadedModel:
    """Return the model.

    Raises:
        UsageError: a loaded model is given with arguments for loading one.
    """
    if isinstance(request.model, str):
        return load_model(
            request.model,
            request.pretrained,
            request.device,
            request.precision,
            request.preprocess,
            text_from=request.text_from,
        )
    for name in ("pretrained", "text_from", "preprocess"):
        if getattr(request, name) is not None:
            raise UsageError(f"{name} belongs to the name of a model; this model is loaded already")
    return request.model


class Measured(NamedTuple):
    """A bundle without history, and what it was measured with."""

    bundle: UnitBundle
    effect: FactoredEffect
    numbers: Int[np.ndarray, " i"]
    """Numbers of the images that it was measured on, ascending."""


@contextlib.contextmanager
def measured(task: Task, command: str, arguments: Mapping[str, Any]) -> Iterator[UnitBundle]:
    """Measure all images, and yield the bundle; the file of `per_image` takes its name only if the block ends without an error.

    Args:
        command: Name of the command in the bundle's history.
        arguments: Its arguments that change the result.

    Raises:
        UsageError: `per_image` needs more memory than there is.
        CliptoolsError: images or the file of `per_image` cannot be read or written.
    """
    path, choice = task.request.per_image, task.choice
    visual: Any = task.model.clip.visual
    if path is None:
        yield with_step(measure_bundle(task).bundle, None, command, arguments)
        return
    if choice.effect != "indirect":
        effect = factored_effect(task.model.clip, choice.effect, choice.units, choice.dictionary)
        check_memory(effect, choice.layers, output_width(visual), task.settings.memory)
    with whole_file(Path(path)) as stream:
        made = measure_bundle(task)
        bundle = with_step(made.bundle, None, command, arguments)
        note(f"{TOOL}: the images are read again for --per-image: activities need the units' directions")
        again, names = task.images.batches(task.model), task.images.names
        write_activity(stream, Path(path).parent, bundle, activity_of(made.effect, bundle), again, made.numbers, names)
        yield bundle


def measure_bundle(task: Task) -> Measured:
    """Measure all images and return the bundle of effects, without history."""
    model, choice, settings, images = task.model, task.choice, task.settings, task.images
    screen = images.screen()
    effect, report = screen.retry(lambda: _measure(task, screen))
    statistics, count, skipped = report.effects, report.images, len(images.skipped)
    keep = strongest_units(effect, statistics, task.request.keep)
    warn_of_few_images(count, settings, statistics.top_norm.shape[1])
    pass_text = "" if report.passes == 1 else f", {report.passes} passes"
    reread_text = f", {report.reread} read twice" if report.reread else ""
    skip_text = f", {skipped} skipped" if skipped else ""
    summary = units_summary(statistics, choice, keep, model.name)
    summarise(f"{TOOL}: {count_of(count, 'image')}{skip_text}{pass_text}{reread_text}, {summary}")

    names = images.names
    record = {"count": count, "digest": list_digest(names), "skipped": skipped}
    header = Header("effects", model.identity, record, recorded_settings(choice, settings, count))
    side = task.request.thumbnails
    thumbnails = None if side is None else partial(images.thumbnails, side=side)
    bundle = effects_bundle(
        header, statistics, settings, names, keep, report.embeddings, partial(directions_of, effect), thumbnails
    )
    if isinstance(effect, Indirect):
        token_mean = torch.cat([effect.means[layer].T for layer in choice.layers])  # per layer (token, n) -> (units, token)
        if keep is not None:
            token_mean = token_mean[keep.units.to(token_mean.device)]
        bundle = bundle.with_tensors(bundle.header, token_mean=token_mean.cpu().numpy().astype(np.float32))
    return Measured(unit_bundle(bundle), effect, report.embeddings.numbers)


def _measure(task: Task, screen: Screen[int]) -> tuple[FactoredEffect, Report]:
    """Return the effect that was measured, and its statistics."""
    model, choice, settings, images = task.model, task.choice, task.settings, task.images
    batches, expected = partial(images.batches, model), len(images.indices)
    if choice.effect != "indirect":
        effect = factored_effect(model.clip, choice.effect, choice.units, choice.dictionary)
        settings = keep_all(settings, effect, choice.layers, expected)
        return effect, measure(effect, batches, choice.layers, expected, settings, screen)
    visual: Any = model.clip.visual
    neurons = draw_sample(visual, choice.layers, task.request.sample_neurons, task.request.seed)
    note(f"{TOOL}: {cost(visual, neurons, expected)}")
    indirect = Indirect(visual, neurons, token_means(visual, batches(), neurons, expected, screen), expected)
    settings = keep_all(settings, indirect, choice.layers, expected, share=1.0)  # a second look would take as long as the first
    return indirect, measure(indirect, batches, choice.layers, expected, settings, screen)
