"""clip-ablate: accuracies of a model in all settings, from one pass over labelled images, as records or a table.

ablate_settings.py parses the settings; analysis/ablation.py has the equations of the changed outputs.
"""

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from rich.table import Table
from rich.text import Text
from torch import Tensor

from cliptools.analysis import ablation
from cliptools.analysis.ablation import Ablation, ChangedOutputs, Joint
from cliptools.analysis.zero_shot import Guessing, Predictions, Tally, score
from cliptools.cli.app import Batching, Output, Sampling, choose_format
from cliptools.cli.run.ablate_settings import (
    REST,
    BundleSettings,
    ChangeOptions,
    Setting,
    effect_of,
    joint_of,
    open_bundles,
    parse_changes,
    rest_of,
    units_of,
)
from cliptools.console import count_of, progress, summarise, warn
from cliptools.devices import in_halves
from cliptools.embedded_models import EMBEDDED
from cliptools.emoji.render import SceneSource
from cliptools.errors import CliptoolsError, UsageError
from cliptools.front.tables import rendered
from cliptools.front.unit_records import record_source
from cliptools.images.classification import ClassifiedImages, classified_scenes, is_label_file, open_classified
from cliptools.images.groups import Columns
from cliptools.images.loader import Skipped, choose, list_digest, load_batches
from cliptools.io.files import text_output
from cliptools.io.header import digest
from cliptools.io.jsonl import rounded, write_record
from cliptools.models.load import LoadedModel, Precision, drop_text_tower, load_recorded_model
from cliptools.models.text_encoder import check_template_options, class_templates, encode_named, templates_name
from cliptools.models.unusable import Screen, unusable
from cliptools.streaming.shards import keep_top_units
from cliptools.text.vocabularies import Pool

TOOL = "clip-ablate"
SCENES = 1052  # rendered if no images are named: two of every concept
LEAST_IMAGES = 500  # number of images from which on a model at chance is an error
SHOWN_MISTAKES = 3  # number of misclassified images that this error names
Record = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class AblateOptions(ChangeOptions, Sampling, Batching, Output):
    """All parameters of clip-ablate."""

    paths: tuple[str, ...]
    labels: str | None
    image_column: str
    label_column: str
    classes: str | None
    templates: tuple[str, ...]
    precision: Precision | None
    device: str


def run(options: AblateOptions) -> None:
    """Measure all settings and write their records, or a table of them.

    Raises:
        UsageError: options that contradict each other.
    """
    output_format = choose_format(options.output_format, options.output, "jsonl")
    changes = parse_changes(options)
    if "-" in options.paths and ("-" in map(str, options.bundles) or not options.bundles):
        raise UsageError("- reads images from standard input, so the bundle needs a file: --bundle FILE")
    if options.templates:
        check_template_options(options.templates)
    bundles = open_bundles(changes, options)
    images = _open_images(bundles[0].bundle.header.model["name"], options)
    with text_output(options.output) as stream:
        records = _measure(bundles, images, options)
        if output_format == "table":
            stream.write(ablate_table(records))
            return
        for record in records:
            write_record(stream, record)


def _open_images(model: str, options: AblateOptions) -> ClassifiedImages:
    """Return the images that PATHs or --labels name, or rendered scenes for an embedded model."""
    if options.paths or is_label_file(options.labels):
        columns = Columns(options.image_column, options.label_column)
        return open_classified(options.paths, options.labels, options.classes, columns)
    if model not in EMBEDDED:
        raise UsageError(f"no images named: {model} needs a PATH (scenes are rendered for {', '.join(EMBEDDED)} only)")
    if options.sample is not None:
        raise UsageError("--sample needs a PATH to draw images from; for other rendered scenes use --seed")
    if options.labels or options.classes:
        raise UsageError("--labels and --classes need images: name a PATH")
    return classified_scenes(model, options.limit or SCENES, options.seed)


def _measure(bundles: Sequence[BundleSettings], images: ClassifiedImages, options: AblateOptions) -> list[Record]:
    """Return one record per setting, the untouched model first.

    Raises:
        CliptoolsError: no image can be read or none is usable, or the untouched model is at chance.
    """
    indices = choose(images.source, options.limit, options.sample, options.seed)
    model = load_recorded_model(bundles[0].bundle.header.model, options.device, options.precision)
    text = _class_embeddings(model, images, options)  # (class, d)
    outputs, order = _changed_outputs(model, bundles, len(indices))
    drop_text_tower(model)
    tally, skipped, guessing = Tally(len(order) + 1), Skipped(), Guessing([row.name for row in images.classes])
    screen = Screen[int](images.source.names.__getitem__, skipped.add, options.strict)
    mistakes: list[str] = []
    for numbers, output in _output_batches(outputs, images, model, indices, options, skipped, screen):
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
    settings |= {"templates": templates_name(model.name, options.templates)}
    settings |= {"images": list_digest([images.source.names[i] for i in indices]), "precision": model.precision}
    settings |= {"seed": options.seed} if isinstance(images.source, SceneSource) else {}
    return list(_records(bundles, tally, settings))


def _class_embeddings(model: LoadedModel, images: ClassifiedImages, options: AblateOptions) -> Float[Tensor, "class d"]:
    """Return the unit embeddings of the classes' first names, which the user's cache keeps.

    Classes with the same name get exactly the same embedding, in whatever batches the texts were encoded.
    """
    names = tuple(row.name for row in images.classes)
    t = encode_named(model, Pool("classes", names, digest(*names)), class_templates(model.name, options.templates))
    first_row = {name: row for row, name in reversed(list(enumerate(names)))}
    return t[[first_row[name] for name in names]]


def _output_batches(
    outputs: ChangedOutputs,
    images: ClassifiedImages,
    model: LoadedModel,
    indices: Sequence[int],
    options: AblateOptions,
    skipped: Skipped,
    screen: Screen[int],
) -> Iterator[tuple[list[int], Float[Tensor, "s b d"]]]:
    """Yield the indices of some images and their outputs in all settings, a batch at a time."""
    batches = load_batches(
        images.source, indices, model.transform,
        batch_size=options.batch_size, workers=options.workers, strict=options.strict, skipped=skipped,
    )  # fmt: skip
    counted_batches = progress(batches, "images", len(indices), lambda batch: len(batch[0]))
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


def _records(bundles: Sequence[BundleSettings], tally: Tally, settings: Record) -> Iterator[Record]:
    """Yield the record of the untouched model, then one per setting."""
    source = record_source(bundles[0].bundle)
    untouched_source = source if len(bundles) == 1 else {"model": source["model"]}
    yield {"layers": [], "ablate": "none"} | _accuracies(tally, 0) | {"settings": settings} | untouched_source
    number = 1
    for bundle_settings in bundles:
        source, header = record_source(bundle_settings.bundle), bundle_settings.bundle.header.settings
        record_settings = settings | {"scale": header.get("scale", "unit")}
        if "rest_mean" in bundle_settings.bundle:
            record_settings |= {"rest": header["measured"] - bundle_settings.bundle.units}
        if "words" in bundle_settings.bundle and "words" in header:
            record_settings |= {"words": {key: value for key, value in header["words"].items() if key != "prefix"}}
        for setting in bundle_settings.settings:
            record = {
                "effect": bundle_settings.effect,
                "units": bundle_settings.units,
                "layers": list(setting.layers),
            } | setting.change.record()
            yield record | _accuracies(tally, number) | {"settings": record_settings} | source
            number += 1


def _accuracies(tally: Tally, setting: int) -> Record:
    """Return the accuracies of a setting with their intervals, and its agreement with the untouched model."""
    record: Record = {"n": tally.count}
    for name, share in {"top1": tally.top1(setting), "top5": tally.top5(setting)}.items():
        low, high = share.interval()
        record[name] = {"value": rounded(share.value), "low": rounded(low), "high": rounded(high)}
    return record | {"agreement": rounded(tally.agreement(setting)), "cosine": rounded(tally.cosine(setting))}


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


def ablate_table(records: Sequence[Record]) -> bytes:
    """Return the table with one row per setting, the untouched model first."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for title in ("effect", "layers", "change"):
        table.add_column(title)
    for title in ("top-1", "(95 %)", "top-5", "same answer", "cosine"):
        table.add_column(title, justify="right", no_wrap=True)
    for record in records:
        top1, top5 = record["top1"], record["top5"]
        effect = f"{record['effect']}, {record['units']}" if "effect" in record else ""
        cells = [effect, _layers(record["layers"]), setting_text(record), f"{top1['value']:.1%}"]
        cells += [f"{top1['low']:.1%}–{top1['high']:.1%}", f"{top5['value']:.1%}"]
        table.add_row(*map(Text, [*cells, f"{record['agreement']:.1%}", f"{record['cosine']:.4f}"]))
    return rendered(
        table, Text(f"{count_of(records[0]['n'], 'image')}, {count_of(records[0]['settings']['class_count'], 'class')}")
    )


def setting_text(record: Record) -> str:
    """Return a setting as a text: `means`, `PC 1–4 of 20 %`, `16 words`."""
    share = f"{100 * record.get('keep', 1):.4g} %"
    if "effect" not in record:
        return "untouched"
    if "reconstruct" in record:
        count = int(record.get("components") or record.get("m") or 1)
        parts = ("PC 1" if count == 1 else f"PC 1–{count}") if record["reconstruct"] == "pc" else count_of(count, "word")
        parts += f" along {record['along']}" if record.get("along", "direction") != "direction" else ""
        return f"{parts} of {share}" if "keep" in record else parts
    names = {
        "all": "means",
        "none": "untouched",
        "large": "large to means",
        "small": "small to means",
        "joint": "activations to means",
    }
    return names.get(record["ablate"]) or f"all but {share} to means"


def _layers(layers: Sequence[int]) -> str:
    """Return layers as a text with runs joined: `5–6, 8`."""
    runs: list[list[int]] = []
    for layer in layers:
        if runs and runs[-1][-1] == layer - 1:
            runs[-1].append(layer)
        else:
            runs.append([layer])
    return ", ".join(str(run[0]) if len(run) == 1 else f"{run[0]}–{run[-1]}" for run in runs)
