"""Zero-shot accuracy of a model while effects of its units are changed, in all settings, from one pass over labelled images.

ablate_settings.py lists the settings, ablate_pass.py measures them; analysis/ablation.py has the equations of changed outputs.
"""

import os
from collections.abc import Mapping, Sequence
from typing import Any

from cliptools.analysis import ABLATE_SEED
from cliptools.arguments import checked, chosen_templates
from cliptools.console import front_call
from cliptools.errors import UsageError
from cliptools.front.ablate_images import Labels, open_with_groups
from cliptools.front.ablate_pass import measure_settings
from cliptools.front.ablate_records import ablate_table
from cliptools.front.ablate_settings import AblateRequest, settings_of
from cliptools.front.images import Images, Reading
from cliptools.front.tables import Records
from cliptools.images.groups import Columns
from cliptools.io.bundle import Bundle
from cliptools.models.load import LoadedModel, Precision
from cliptools.models.templates import check_template_options


@checked
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
    part: str | None = None,
    model: LoadedModel | None = None,
    device: str = "auto",
    progress: bool = False,
    groups: str | Sequence[Any] | None = None,
    split: str | None = None,
    each_template: bool = False,
    train_sizes: str | Mapping[str, int] | None = None,
    against: str | os.PathLike[str] | None = None,
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
        ablate: Ablations: any of all, large, small, none and joint. None of these, and no `reconstruct`, `keep`, `mask` or
            `against`: all.
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
        mask: File of a mask of clip-edit, whose units are at their means in a setting of its own and in all others but that of
            the untouched model.
        part: Part of an attention pooling that has an MLP (SigLIP, Perception Encoder), from which alone the output is computed:
            attention, mlp or both. None: both.
        model: The bundles' model, if it is loaded already.
        device: auto, cpu, cuda, cuda:1 or mps.
        progress: Write progress and messages to standard error; else messages go to the logger `cliptools`.

        groups: Groups for accuracy per group: folders, scenes, a column of `labels` or a file of metadata (see clip-ablate); or
            a value for each image, which with its class is its group. None: no groups.
        split: Images to use, for tables with a column `split` and for scenes of clip-scenes --groups: train, validation or test.
        each_template: Also classify with each template alone; figures of groups are then means over the templates.
        train_sizes: Sizes of the groups in a training set, for a weighted average: by name; or as clip-ablate takes them.
        against: File or folder of other weights of the same architecture, such as clip-edit writes them, measured on the same
            images.

    Returns:
        A record for each setting, the untouched model first, then that with the mask, and `against` last: top1 and top5 with
        their 95 % intervals, the share of the images with the same answer as the untouched model (agreement), and the mean cosine
        with its output. With groups also the accuracy of each group, the least of them (worst), the average, the gap between
        these two, and the differences of all of these from the untouched model.

    Raises:
        UsageError: an argument is invalid, or does not suit the bundles.
        StreamError: a bundle lacks a tensor that a change needs, a label is missing or no class.
        ModelError: the model is not available, or not the bundles'.
        CliptoolsError: no image can be read, or without groups the untouched model is at chance.
    """
    request = AblateRequest(
        layers=_groups(layers), each_layer=each_layer, effect=effect, units=units, ablate=_names(ablate),
        reconstruct=_names(reconstruct), components=_numbers(components), m=_numbers(m), words_along=_names(words_along),
        keep=_numbers(keep), templates=chosen_templates(templates), limit=limit, sample=sample, seed=seed, precision=precision,
        mask=mask,
        part=part, model=model, device=device, reading=Reading(batch_size=batch_size, workers=workers, strict=strict),
        groups=groups, split=split, each_template=each_template, train_sizes=train_sizes,
        against=None if against is None else os.fspath(against),
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
        name = several[0].header.model["name"]
        opened, image_groups = open_with_groups(images, labels, classes, columns, name, request)
        return Records(measure_settings(settings, opened, request, image_groups), ablate_table)


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
