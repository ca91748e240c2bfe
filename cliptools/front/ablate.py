"""Zero-shot accuracy of a model while effects of its units are changed, in all settings, from one pass over labelled images.

ablate_settings.py lists the settings; analysis/ablation.py has the equations of the changed outputs.
"""

import itertools
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from cliptools.analysis import ABLATE_SEED, ablation
from cliptools.analysis.ablation import Ablation, ChangedOutputs, Joint
from cliptools.analysis.zero_shot import Guessing, Predictions, Tally, score
from cliptools.console import count_of, front_call, summarise, warn
from cliptools.console import progress as shown
from cliptools.devices import in_halves
from cliptools.emoji.render import SceneSource
from cliptools.errors import CliptoolsError, UsageError
from cliptools.front.ablate_images import Labels, open_labelled
from cliptools.front.ablate_records import Record, ablate_table, setting_records
from cliptools.front.ablate_settings import (
    REST,
    BundleSettings,
    ChangeRequest,
    Setting,
    effect_of,
    joint_of,
    rest_of,
    settings_of,
    units_of,
)
from cliptools.front.arguments import require_number, require_one_of
from cliptools.front.images import Images, Reading, read_batches
from cliptools.front.mask import mask_hooks
from cliptools.front.models import check_given
from cliptools.front.tables import Records
from cliptools.images.classification import ClassifiedImages
from cliptools.images.groups import Columns
from cliptools.images.loader import Skipped, choose, list_digest
from cliptools.io.bundle import Bundle
from cliptools.io.header import digest
from cliptools.models.load import LoadedModel, Precision, drop_text_tower, load_recorded_model
from cliptools.models.text_encoder import check_template_options, class_templates, encode_named, templates_name
from cliptools.models.unusable import Screen, unusable
from cliptools.streaming.shards import keep_top_units
from cliptools.text.vocabularies import Pool

TOOL = "clip-ablate"
LEAST_IMAGES = 500  # number of images from which on a model at chance is an error
SHOWN_MISTAKES = 3  # number of misclassified images that this error names


@dataclass(frozen=True, kw_only=True)
class AblateRequest(ChangeRequest):
    """Arguments of `ablate`, which describes them."""

    templates: tuple[str, ...] = ()
    limit: int | None = None
    sample: int | None = None
    seed: int = ABLATE_SEED
    precision: Precision | None = None
    mask: str | os.PathLike[str] | None = None
    model: LoadedModel | None = None
    device: str = "auto"
    reading: Reading = field(default_factory=Reading)

    def check(self) -> None:
        """Implements ChangeRequest.check, with the arguments about images and the model."""
        super().check()
        require_one_of("precision", self.precision, ("fp32", "bf16", "fp16"))
        for name in ("limit", "sample"):
            require_number(name, getattr(self, name), 1)
        require_number("seed", self.seed, 0)
        require_number("batch_size", self.reading.batch_size, 1)
        require_number("workers", self.reading.workers, 0)
        if self.model is not None and self.precision not in (None, self.model.precision):
            raise UsageError(f"precision={self.precision!r}: the model that is given is loaded in {self.model.precision} already")


def ablate(
    bundles: Bundle | Sequence[Bundle],
    images: Images | None = None,
    labels: Labels | None = None,
    *,
    image_column: str = "image",
    label_column: str = "label",
    classes: str | os.PathLike[str] | Sequence[str] | None = None,
    templates: Sequence[str] = (),
    ablate: str | Sequence[str] = (),
    reconstruct: str | Sequence[str] = (),
    components: int | Sequence[int] = 1,
    m: int | Sequence[int] = (),
    words_along: str | Sequence[str] = (),
    keep: float | Sequence[float] = (),
    layers: Sequence[int] | Sequence[Sequence[int]] = (),
    each_layer: bool = False,
    effect: str | None = None,
    units: str | None = None,
    limit: int | None = None,
    sample: int | None = None,
    seed: int = ABLATE_SEED,
    strict: bool = False,
    batch_size: int = 32,
    workers: int | None = None,
    precision: Precision | None = None,
    mask: str | os.PathLike[str] | None = None,
    model: LoadedModel | None = None,
    device: str = "auto",
    progress: bool = False,
) -> Records:
    """Measure zero-shot accuracy while the effects of units are changed, in one pass over labelled images, as clip-ablate does.

    Args:
        bundles: Effects of units, one bundle or several of one model; with words for `reconstruct="words"`.
        images: Images of any kind that `effects` takes. None: those of the file `labels`; else scenes of one emoji each, for the
            embedded models.
        labels: Classes of the images. For paths: folders, scenes, or the path of a file (see clip-ablate); None: detected. For
            other images: a class for each, as numbers from 0 or names; None: those beside the pictures in each batch, second in
            a tuple, or `labels` or `label` in a mapping.
        image_column: Column of image names, if `labels` is a CSV file.
        label_column: Column of classes, if `labels` is a CSV file.
        classes: Classes to choose from: imagenet, imagenet-r, emoji, cifar10, the path of a file, or a list of names. None: those
            of the labels.
        templates: Sentences with {} in place of the class, whose embeddings are averaged; imagenet, emoji or none.
        ablate: Ablations: any of all, large, small, none and joint. None of these, and neither `reconstruct` nor `keep`: all.
        reconstruct: Reconstructions: pc, words or both.
        components: Numbers of principal directions for pc.
        m: Numbers of texts for words. Empty: all texts of the bundle.
        words_along: What words project on: any of direction, texts and unit-texts. Empty: direction.
        keep: Shares of the units to keep, from 0 to 1, those of largest mean top norm; all others are replaced by their means.
        layers: Layers whose units are changed together, as [8, 9], or several such groups. Empty: all layers of the bundle.
        each_layer: Also change the units of each layer separately.
        effect: Effect that the bundles must hold, as a check: second, first, indirect or pooled.
        units: Kind of unit that the bundles must hold, as a check: pairs, neurons or heads.
        limit: Number of images, the first ones, or of rendered scenes.
        sample: Number of images, drawn at random.
        seed: Random seed for the sample, or for the rendered scenes.
        strict: Raise an error for an unreadable or unusable image instead of a warning.
        batch_size: Images per forward pass.
        workers: Threads that decode images. None: the number of cores, at most 8.
        precision: Floating-point type of the model: fp32, bf16 or fp16. None: the bundle's.
        mask: File of a mask, whose units are put at their means in every setting.
        model: The bundles' model, if it is loaded already.
        device: auto, cpu, cuda, cuda:1 or mps.
        progress: Write progress and messages to standard error; else messages go to the logger `cliptools`.

    Returns:
        A record for each setting, the untouched model first: top1 and top5 with their 95 % intervals, the share of the images
        with the same answer as the untouched model (agreement), and the mean cosine with its output.

    Raises:
        UsageError: an argument is invalid, or does not suit the bundles.
        StreamError: a bundle lacks a tensor that a change needs, a label is missing or no class.
        ModelError: the model is not available, or not the bundles'.
        CliptoolsError: no image can be read, or the untouched model is at chance.
    """
    request = AblateRequest(
        layers=_groups(layers), each_layer=each_layer, effect=effect, units=units, ablate=_names(ablate),
        reconstruct=_names(reconstruct), components=_numbers(components), m=_numbers(m), words_along=_names(words_along),
        keep=_numbers(keep), templates=tuple(templates), limit=limit, sample=sample, seed=seed, precision=precision, mask=mask,
        model=model, device=device, reading=Reading(batch_size=batch_size, workers=workers, strict=strict),
    )  # fmt: skip
    with front_call(progress):
        request.check()
        check_template_options(request.templates)
        several = [bundles] if isinstance(bundles, Bundle) else [*bundles]
        if not several:
            raise UsageError("bundles: an empty list")
        named = [(bundle, "the bundle" if len(several) == 1 else f"bundle {n}") for n, bundle in enumerate(several, 1)]
        settings = settings_of(named, request)
        columns = Columns(image_column, label_column)
        opened = open_labelled(images, labels, classes, columns, several[0].header.model["name"], limit, sample, seed)
        return Records(measure_settings(settings, opened, request), ablate_table)


def _names(given: str | Sequence[str]) -> tuple[str, ...]:
    """Return names that are given in a list, or as a text with commas between them."""
    return tuple(part.strip() for part in given.split(",")) if isinstance(given, str) else tuple(given)


def _numbers(given: Any) -> tuple[Any, ...]:
    """Return numbers that are given in a list, or a single one."""
    return (given,) if isinstance(given, int | float) else tuple(given)


def _groups(layers: Sequence[int] | Sequence[Sequence[int]]) -> tuple[tuple[int, ...], ...]:
    """Return groups of layers, each without duplicates and ascending."""
    if layers and all(isinstance(layer, int) for layer in layers):
        return (tuple(sorted(set(layers))),)  # type: ignore[arg-type]
    return tuple(tuple(sorted(set(group))) for group in layers)  # type: ignore[arg-type]


def measure_settings(bundles: Sequence[BundleSettings], images: ClassifiedImages, request: AblateRequest) -> list[Record]:
    """Return one record per setting, the untouched model first.

    Raises:
        CliptoolsError: no image can be read or none is usable, or the untouched model is at chance.
    """
    indices = choose(images.source, request.limit, request.sample, request.seed)
    model = _model(bundles[0].bundle, request)
    text = _class_embeddings(model, images, request)  # (class, d)
    outputs, order = _changed_outputs(model, bundles, len(indices))
    outputs.hooks, mask = mask_hooks(model, request.mask)
    if model is not request.model:
        drop_text_tower(model)
    tally, skipped, guessing = Tally(len(order) + 1), Skipped(), Guessing([row.name for row in images.classes])
    screen = Screen[int](images.source.names.__getitem__, skipped.add, request.reading.strict)
    mistakes: list[str] = []
    for numbers, output in _output_batches(outputs, images, model, indices, request, skipped, screen):
        tally.add(_score_batch(output[[0, *order]], text, numbers, images, mistakes, guessing))
        if tally.count >= LEAST_IMAGES:
            _check_chance(guessing, images, mistakes)
    screen.require(tally.count)
    if _check_chance(guessing, images, mistakes) == "open":
        warn(
            f"{_comparison_with_guessing(guessing, images)}; too few images to tell if labels and classes "
            f"({images.classes_source}) match"
        )
    skip_text = f", {len(skipped)} skipped" if len(skipped) else ""
    summarise(
        f"{TOOL}: {count_of(tally.count, 'image')}{skip_text}, {count_of(len(images.classes), 'class')}, "
        f"{count_of(len(order), 'setting')} of {model.name}"
    )
    settings: Record = {"classes": images.classes_source, "class_count": len(images.classes)}
    settings |= {"templates": templates_name(model.name, request.templates)}
    settings |= {"images": list_digest([images.source.names[i] for i in indices]), "precision": model.precision}
    settings |= mask
    settings |= {"seed": request.seed} if isinstance(images.source, SceneSource) else {}
    return list(setting_records(bundles, tally, settings))


def _model(bundle: Bundle, request: AblateRequest) -> LoadedModel:
    """Return the bundle's model.

    Raises:
        ModelError: the model that is given is not the bundle's, or the bundle's model cannot be loaded.
    """
    if request.model is None:
        return load_recorded_model(bundle.header.model, request.device, request.precision)
    check_given(request.model, bundle)
    return request.model


def _class_embeddings(model: LoadedModel, images: ClassifiedImages, request: AblateRequest) -> Float[Tensor, "class d"]:
    """Return the unit embeddings of the classes' first names, which the user's cache keeps.

    Classes with the same name get exactly the same embedding, in whatever batches the texts were encoded.
    """
    names = tuple(row.name for row in images.classes)
    t = encode_named(model, Pool("classes", names, digest(*names)), class_templates(model.name, request.templates))
    first_row = {name: row for row, name in reversed(list(enumerate(names)))}
    return t[[first_row[name] for name in names]]


def _output_batches(
    outputs: ChangedOutputs,
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


def _score_batch(
    output: Float[Tensor, "s b d"],
    text: Float[Tensor, "class d"],
    numbers: Sequence[int],
    images: ClassifiedImages,
    mistakes: list[str],
    guessing: Guessing,
) -> Predictions:
    """Compare a batch with the classes; append the first mistakes of the untouched model to `mistakes`, as texts."""
    label = images.label[list(numbers)]
    scored = score(output, text, torch.from_numpy(label))
    guessing.add(label, scored.best[0].cpu().numpy())
    for number, label_class, guess in zip(numbers, label.tolist(), scored.best[0].tolist(), strict=True):
        if len(mistakes) < SHOWN_MISTAKES and label_class != guess:
            label_name, guess_name = images.classes[label_class].name, images.classes[guess].name
            mistakes.append(f"{images.source.names[number]} is labelled {label_name!r} and taken for {guess_name!r}")
    return scored


def _check_chance(guessing: Guessing, images: ClassifiedImages, mistakes: Sequence[str]) -> str:
    """Return how the untouched model compares with guessing; accuracies mean nothing if labels and classes do not match.

    Raises:
        CliptoolsError: over enough images, the untouched model does no better than guessing.
    """
    standing = guessing.standing()
    if standing == "chance":
        raise CliptoolsError(
            f"{_comparison_with_guessing(guessing, images)}: labels and classes ({images.classes_source}) do not match; "
            f"{'; '.join(mistakes)}"
        )
    return standing


def _comparison_with_guessing(guessing: Guessing, images: ClassifiedImages) -> str:
    share = guessing.share
    return (
        f"the untouched model is right on {share.hits} of {share.trials} images, where guessing among "
        f"{len(images.classes)} classes is right on about {guessing.expected:.2g}"
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
