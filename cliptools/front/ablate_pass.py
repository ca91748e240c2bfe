"""The pass of `ablate` over labelled images: outputs in all settings, predictions, hits, and their records.

ablate.py has the function of the front; analysis/ablation.py has the equations of the changed outputs.
"""

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from cliptools.analysis import ablation
from cliptools.analysis.ablation import Ablation, ChangedOutputs, Joint
from cliptools.analysis.zero_shot import Guessing, Predictions, Tally, score
from cliptools.console import count_of, summarise, warn
from cliptools.console import progress as shown
from cliptools.devices import in_halves
from cliptools.emoji.render import SceneSource
from cliptools.errors import CliptoolsError
from cliptools.front.ablate_groups import GroupFigures, HitTable, single_templates
from cliptools.front.ablate_records import setting_records
from cliptools.front.ablate_settings import (
    REST,
    AblateRequest,
    BundleSettings,
    Record,
    Setting,
    effect_of,
    joint_of,
    rest_of,
    units_of,
)
from cliptools.front.images import read_batches
from cliptools.front.mask import mask_hooks
from cliptools.front.models import loaded_model_of
from cliptools.images.classification import ClassifiedImages
from cliptools.images.classification.grouped import ImageGroups
from cliptools.images.loader import Skipped, choose, list_digest
from cliptools.io.header import digest, recorded_model
from cliptools.models.load import LoadedModel, drop_text_tower
from cliptools.models.other_weights import with_weights
from cliptools.models.templates import class_templates, templates_name
from cliptools.models.text_encoder import encode_named, encode_pool
from cliptools.models.unusable import Screen, unusable
from cliptools.streaming.shards import keep_top_units
from cliptools.text.vocabularies import Pool
from cliptools.towers.hooks import Hooks
from cliptools.towers.kinds import supported_tower
from cliptools.towers.tower import weight_of
from cliptools.unit_effects.vit_pooling import pooling_of

TOOL = "clip-ablate"
LEAST_IMAGES = 500  # number of images from which on a model at chance is an error
SHOWN_MISTAKES = 3  # number of misclassified images that this error names


class _Texts(NamedTuple):
    """Embeddings of the classes by one model."""

    averaged: Float[Tensor, "class d"]
    """With the embeddings of all templates averaged."""
    single: list[Float[Tensor, "class d"]]
    """With each template alone; empty unless figures per template are asked for."""


@dataclass
class _Result:
    """Sums and hits over the images that have been read."""

    tally: Tally
    guessing: Guessing
    hits: HitTable | None
    grouped: bool
    """Images are in groups, of which a model may rightly be said to get some wrong throughout."""
    mistakes: list[str] = field(default_factory=list)
    """The first mistakes of the untouched model, as texts."""


def measure_settings(
    bundles: Sequence[BundleSettings], images: ClassifiedImages, request: AblateRequest, groups: ImageGroups | None = None
) -> list[Record]:
    """Return one record per setting, the untouched model first, then that with a mask; with `against`, the other model last.

    Args:
        groups: The group of each image, for accuracies per group.

    Raises:
        UsageError: training sizes do not suit the groups.
        ModelError: the model of a bundle or the other model cannot be loaded.
        CliptoolsError: no image can be read or none is usable, or without groups the untouched model is at chance.
    """
    indices = choose(images.source, request.limit, request.sample, request.seed)
    model = loaded_model_of(bundles[0].bundle, request.model, request.device, request.precision)
    models = [model, *([with_weights(model, request.against, "--against")] if request.against else [])]
    figures = GroupFigures(groups, request, single_templates(model, images, request) if request.each_template else [])
    texts = [_class_texts(each, images, request) for each in models]
    outputs, order = _changed_outputs(model, bundles, len(indices))
    outputs.hooks, mask = mask_hooks(model, request.mask)
    outputs.part = _part_hooks(model, request)
    if mask:
        order = [1, *(number + 1 for number in order)]
    for each in models:
        if each is not request.model:
            drop_text_tower(each)
    settings_count = len(order) + len(models)
    hits = HitTable() if groups is not None or request.against else None
    result = _Result(Tally(settings_count), figures.guessing(images), hits, groups is not None)
    skipped = Skipped()
    screen = Screen[int](images.source.names.__getitem__, skipped.add, request.reading.strict)
    everything = _AllOutputs(outputs, models[1:])
    for numbers, output in _output_batches(everything, images, model, indices, request, skipped, screen):
        rows = [0, *order, *range(len(output) - len(models) + 1, len(output))]
        _add_batch(output[rows], texts, numbers, images, result, figures)
        if result.tally.count >= LEAST_IMAGES and request.whole:
            _check_chance(result, images)
    screen.require(result.tally.count)
    _conclude(result, images, len(skipped), request, f"{count_of(settings_count - 1, 'setting')} of {model.name}")
    settings = _settings_of_run(images, indices, model, request) | figures.settings
    if result.hits is not None:
        figures.compute(result.hits)
    against = recorded_model(models[1].identity) if request.against else None
    return list(setting_records(bundles, result.tally, settings, figures.fields, mask, against))


def _part_hooks(model: LoadedModel, request: AblateRequest) -> Hooks:
    """Return hooks under which the output is that of one part of the attention pooling.

    Raises:
        ModelError: the image tower has no such parts.
    """
    return [] if request.whole else pooling_of(supported_tower(model.clip)).part_hooks(str(request.part))


def _conclude(result: _Result, images: ClassifiedImages, skipped: int, request: AblateRequest, settings: str) -> None:
    """Check the model against chance for the last time, and print a summary."""
    standing = _check_chance(result, images) if request.whole else None
    if standing == "open":
        warn(f"{_comparison_with_guessing(result)}; too few images to tell if labels and classes ({images.classes_source}) match")
    elif standing == "chance":
        warn(f"{_comparison_with_guessing(result)}; do labels and classes ({images.classes_source}) match?")
    skip_text = f", {skipped} skipped" if skipped else ""
    summarise(f"{TOOL}: {count_of(result.tally.count, 'image')}{skip_text}, {count_of(len(images.classes), 'class')}, {settings}")


def _settings_of_run(images: ClassifiedImages, indices: Sequence[int], model: LoadedModel, request: AblateRequest) -> Record:
    """Return the settings that the records of all settings have in common."""
    settings: Record = {"classes": images.classes_source, "class_count": len(images.classes)}
    settings |= {"templates": templates_name(model.name, request.templates)}
    settings |= {"images": list_digest([images.source.names[i] for i in indices]), "precision": model.precision}
    settings |= {} if request.part is None else {"part": request.part}
    settings |= {"seed": request.seed} if isinstance(images.source, SceneSource) else {}
    return settings


class _AllOutputs:
    """Outputs of the bundles' model in all settings, and after them those of further models."""

    def __init__(self, outputs: ChangedOutputs, others: Sequence[LoadedModel]) -> None:
        self.outputs, self.others = outputs, others

    @torch.inference_mode()
    def __call__(self, image: Float[Tensor, "b 3 y x"]) -> Float[Tensor, "s b d"]:
        output = self.outputs(image)
        for other in self.others:
            visual: Any = other.clip.visual
            weight = weight_of(visual)
            output = torch.cat([output, visual(image.to(weight.device, weight.dtype))[None].to(output)])
        return output


def _class_texts(model: LoadedModel, images: ClassifiedImages, request: AblateRequest) -> _Texts:
    """Return the unit embeddings of the classes' first names, which the user's cache keeps.

    Classes with the same name get exactly the same embedding, in whatever batches the texts were encoded.
    """
    names = tuple(row.name for row in images.classes)
    first_row = {name: row for row, name in reversed(list(enumerate(names)))}
    rows = [first_row[name] for name in names]
    pool = Pool("classes", names, digest(*names))
    single = single_templates(model, images, request) if request.each_template else []
    embeddings = [
        encode_named(model, pool, class_templates(model.name, request.templates)),
        *(encode_pool(model, sentences, (template,)) for sentences, template in single),
    ]  # each (class, d)
    return _Texts(embeddings[0][rows], [t[rows] for t in embeddings[1:]])


def _output_batches(
    outputs: _AllOutputs,
    images: ClassifiedImages,
    model: LoadedModel,
    indices: Sequence[int],
    request: AblateRequest,
    skipped: Skipped,
    screen: Screen[int],
) -> Iterator[tuple[list[int], Float[Tensor, "s b d"]]]:
    """Yield the indices of some images and their outputs in all settings, a batch at a time."""
    batches = read_batches(images.source, indices, model, request.reading, skipped)
    counted_batches = shown(batches, "images", len(indices), lambda batch: len(batch[0]))
    for numbers, output in in_halves(counted_batches, lambda _, pictures: outputs(pictures)):  # output: (s, b, d)
        usable = screen.places(numbers, unusable(output[0], output.transpose(0, 1)))
        if usable:
            yield [numbers[place] for place in usable], output if len(usable) == len(numbers) else output[:, list(usable)]


def _add_batch(
    output: Float[Tensor, "s b d"],
    texts: Sequence[_Texts],
    numbers: Sequence[int],
    images: ClassifiedImages,
    result: _Result,
    figures: GroupFigures,
) -> None:
    """Add a batch to the result; outputs of the first model come first, then one of each further model."""
    label = images.label[list(numbers)]
    among = figures.among(images, numbers)
    scored = _scored(output, [text.averaged for text in texts], torch.from_numpy(label), among)
    result.tally.add(scored)
    best = scored.best[0].cpu().numpy()
    result.guessing.add(figures.position(label, numbers), figures.position(best, numbers))
    if result.hits is not None:
        forms = [
            _scored(output, list(t), torch.from_numpy(label), among) for t in zip(*(text.single for text in texts), strict=True)
        ]
        result.hits.add(numbers, [form.rank == 0 for form in forms or [scored]])
    for number, label_class, guess in zip(numbers, label.tolist(), best.tolist(), strict=True):
        if len(result.mistakes) < SHOWN_MISTAKES and label_class != guess:
            label_name, guess_name = images.classes[label_class].name, images.classes[guess].name
            result.mistakes.append(f"{images.source.names[number]} is labelled {label_name!r} and taken for {guess_name!r}")


def _scored(
    output: Float[Tensor, "s b d"],
    texts: Sequence[Float[Tensor, "class d"]],
    label: Int[Tensor, " b"],
    among: Bool[Tensor, "b class"] | None,
) -> Predictions:
    """Compare the outputs of each model with its own embeddings of the classes; all cosines are with the first output."""
    own = len(output) - len(texts) + 1
    parts = [score(output[:own], texts[0], label, among)]
    for row, text in enumerate(texts[1:], own):
        scored = score(output[[0, row]], text, label, among)
        parts.append(Predictions(scored.best[1:], scored.rank[1:], scored.cosine[1:]))
    return Predictions(*(torch.cat(part) for part in zip(*parts, strict=True)))


def _check_chance(result: _Result, images: ClassifiedImages) -> str:
    """Return how the untouched model compares with guessing; accuracies mean nothing if labels and classes do not match.

    A model that takes every image of a cue for one class is at chance in groups of equal size: of groups this is a result.

    Raises:
        CliptoolsError: over enough images without groups, the untouched model does no better than guessing.
    """
    standing = result.guessing.standing()
    if standing == "chance" and not result.grouped:
        raise CliptoolsError(
            f"{_comparison_with_guessing(result)}: labels and classes ({images.classes_source}) do not match; "
            f"{'; '.join(result.mistakes)}"
        )
    return standing


def _comparison_with_guessing(result: _Result) -> str:
    share = result.guessing.share
    return (
        f"the untouched model is right on {share.hits} of {share.trials} images, where guessing among "
        f"{result.guessing.classes} classes is right on about {result.guessing.expected:.2g}"
    )


class _Computation(NamedTuple):
    """The computation of one bundle's settings."""

    ablation: Ablation | None
    """None if all settings are joint."""
    joints: list[Joint]


def _changed_outputs(model: LoadedModel, bundles: Sequence[BundleSettings], expected: int) -> tuple[ChangedOutputs, list[int]]:
    """Return the function that computes the outputs in all settings, and for each setting the index of its outputs.

    The settings are in the order of the bundles.
    """
    computations = [_prepare(model, bundle_settings, expected) for bundle_settings in bundles]
    ablations = [
        (computation.ablation, bundle_settings.bundle.header.scaled)
        for computation, bundle_settings in zip(computations, bundles, strict=True)
        if computation.ablation is not None
    ]
    before_joint = 1 + sum(ablation.settings for ablation, _ in ablations)  # the untouched output comes first
    additive, joint = iter(range(1, before_joint)), itertools.count(before_joint)
    order = [
        next(joint if setting.change.kind == "joint" else additive)
        for bundle_settings in bundles
        for setting in bundle_settings.settings
    ]
    visual: Any = model.clip.visual
    return ChangedOutputs(visual, ablations, [group for computation in computations for group in computation.joints]), order


def _prepare(model: LoadedModel, bundle_settings: BundleSettings, expected: int) -> _Computation:
    """Return the computation of one bundle's settings.

    Raises:
        StreamError: bundle and model do not match.
    """
    joints = [joint_of(bundle_settings, setting.layers) for setting in bundle_settings.settings if setting.change.kind == "joint"]
    additive = [setting for setting in bundle_settings.settings if setting.change.kind != "joint"]
    if not additive:
        return _Computation(None, joints)
    effect = effect_of(model, bundle_settings, additive, expected)
    units = units_of(model, bundle_settings)
    rest = rest_of(bundle_settings, effect)
    return _Computation(Ablation(effect, units, [_unit_changes(bundle_settings, setting) for setting in additive], rest), joints)


def _unit_changes(bundle_settings: BundleSettings, setting: Setting) -> ablation.Setting:
    """Return the changes of a setting, each with the mask of the units that it applies to."""
    rows = torch.from_numpy(bundle_settings.rows(setting.layers))  # (u,)
    kind, size, keep, along = setting.change
    kept = rows.clone()
    if keep is not None:
        kept[rows] = keep_top_units(torch.from_numpy(bundle_settings.bundle["top_norm"])[rows], keep)
    replaced = [(ablation.Change("mean"), rows & ~kept)]
    if kind == "none":
        return []
    if kind == REST:
        return replaced
    if kind == "all":
        return [(ablation.Change("mean"), rows)]
    if kind in ("large", "small"):
        return [(ablation.Change(kind), rows)]  # type: ignore[arg-type]
    return [(ablation.Change(kind, size or 1, along or "direction"), kept), *replaced]  # type: ignore[arg-type]
