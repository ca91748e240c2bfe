"""What clip-ablate does with bundles and labelled images: accuracies in all settings, one pass over the images.

The table of clip-ablate.
"""

import itertools
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from rich.table import Table
from rich.text import Text
from torch import Tensor

from cliptools.analysis import ablation
from cliptools.analysis.ablation import Ablation, Change, ChangedOutputs, Joint
from cliptools.analysis.zero_shot import Guessing, Scored, Tally, score
from cliptools.cli.run.ablate_settings import REST, Asked, Setting, joint_of, paths_for, rest_of, units_of
from cliptools.cli.run.bundle_output import record_source, rendered
from cliptools.console import count_of, progress, summarise, warn
from cliptools.devices import in_halves
from cliptools.emoji.render import SceneSource
from cliptools.errors import CliptoolsError
from cliptools.images.classification import ClassifiedImages
from cliptools.images.loader import Skipped, choose, list_digest, load_batches
from cliptools.io.header import digest
from cliptools.io.jsonl import rounded
from cliptools.models.load import LoadedModel, drop_text_tower, load_recorded_model
from cliptools.models.text_encoder import class_templates, encode_named, templates_name
from cliptools.models.unusable import Screen, unusable
from cliptools.streaming.shards import keep_top_units
from cliptools.text.vocabularies import Pool

TOOL = "clip-ablate"
ENOUGH = 500  # images after which a model at chance has shown it
SHOWN = 3  # images named where it is
Record = dict[str, Any]


def measure(bundles: Sequence[Asked], images: ClassifiedImages, options: Record) -> list[Record]:
    """A record a setting, the untouched model first.

    Raises:
        CliptoolsError: not one image can be read or is usable, or the untouched model is at chance.
    """

    indices = choose(images.source, options["limit"], options["sample"], options["seed"])
    model = load_recorded_model(bundles[0].bundle.header.model, options["device"], options["precision"])
    text = _classifier(model, images, options)
    changed, order = _changed(model, bundles, len(indices))
    drop_text_tower(model)
    tally, skipped, guessing = Tally(len(order) + 1), Skipped(), Guessing([row.name for row in images.classes])
    screen = Screen[int](images.source.names.__getitem__, skipped.add, options["strict"])
    wrong: list[str] = []
    for names, output in _outputs(changed, images, model, indices, options, skipped, screen):
        tally.add(_scored(output[[0, *order]], text, names, images, wrong, guessing))
        if tally.count >= ENOUGH:
            _check_chance(guessing, images, wrong)
    screen.require(tally.count)
    if _check_chance(guessing, images, wrong) == "open":
        warn(f"{_right(guessing, images)}: not enough to tell whether labels and classes ({images.classes_source}) match")
    skips = f", {len(skipped)} skipped" if len(skipped) else ""
    summarise(
        f"{TOOL}: {count_of(tally.count, 'image')}{skips}, {count_of(len(images.classes), 'class')}, "
        f"{count_of(len(order), 'setting')} of {model.name}"
    )
    said = {"classes": images.classes_source, "class_count": len(images.classes)}
    said |= {"templates": templates_name(model.name, options["templates"])}
    said |= {"images": list_digest([images.source.names[i] for i in indices]), "precision": model.precision}
    said |= {"seed": options["seed"]} if isinstance(images.source, SceneSource) else {}
    return list(_records(bundles, tally, said))


def _classifier(model: LoadedModel, images: ClassifiedImages, options: Record) -> Tensor:
    """The classes' unit embeddings, by their first names [class, d]; kept in the user's cache.

    Classes of one name get one embedding to the last bit, whatever batches the texts went through.
    """

    names = tuple(each.name for each in images.classes)
    t = encode_named(model, Pool("classes", names, digest(*names)), class_templates(model.name, options["templates"]))
    first = {name: row for row, name in reversed(list(enumerate(names)))}
    return t[[first[name] for name in names]]


def _outputs(
    changed: ChangedOutputs,
    images: ClassifiedImages,
    model: LoadedModel,
    indices: Sequence[int],
    options: Record,
    skipped: Skipped,
    screen: Screen[int],
) -> Iterator[tuple[list[int], Tensor]]:
    """Numbers of some images, and their outputs in all settings."""

    batches = load_batches(
        images.source, indices, model.transform,
        batch_size=options["batch_size"], workers=options["workers"], strict=options["strict"], skipped=skipped,
    )  # fmt: skip
    read = progress(batches, "images", len(indices), lambda batch: len(batch[0]))
    for some, outputs in in_halves(read, lambda _, pictures: changed(pictures)):
        stay = screen.places(some, unusable(outputs[0], outputs.transpose(0, 1)))
        if stay:
            yield [some[place] for place in stay], outputs if len(stay) == len(some) else outputs[:, list(stay)]


def _scored(
    output: Tensor,
    text: Tensor,
    read: Sequence[int],
    images: ClassifiedImages,
    wrong: list[str],
    guessing: Guessing,
) -> Scored:
    """A batch against the classes; the first images taken for others by the untouched model, in words, are added to `wrong`."""

    label = images.label[list(read)]
    scored = score(output, text, torch.from_numpy(label))
    guessing.add(label, scored.best[0].cpu().numpy())
    for image, true, best in zip(read, label.tolist(), scored.best[0].tolist(), strict=True):
        if len(wrong) < SHOWN and true != best:
            shown, seen = images.classes[true].name, images.classes[best].name
            wrong.append(f"{images.source.names[image]} is labelled {shown!r} and taken for {seen!r}")
    return scored


def _check_chance(guessing: Guessing, images: ClassifiedImages, wrong: Sequence[str]) -> str:
    """How the untouched model stands to guessing: accuracies say nothing where labels and classes do not match.

    Raises:
        CliptoolsError: the untouched model does no better than guessing, and there are enough images to say so.
    """
    standing = guessing.standing()
    if standing == "chance":
        raise CliptoolsError(
            f"{_right(guessing, images)}, as by chance: labels and classes ({images.classes_source}) do not match; "
            f"{'; '.join(wrong)}"
        )
    return standing


def _right(guessing: Guessing, images: ClassifiedImages) -> str:
    """On how many images the untouched model is right, and guessing would be."""
    share = guessing.share
    return (
        f"the untouched model is right on {share.hits} of {share.trials} images, guessing among {len(images.classes)} classes on "
        f"about {guessing.expected:.2g}"
    )


def _records(bundles: Sequence[Asked], tally: Tally, said: Record) -> Iterator[Record]:
    """The untouched model's, and one a setting."""
    source = record_source(bundles[0].bundle)
    alone = source if len(bundles) == 1 else {"model": source["model"]}
    yield {"layers": [], "ablate": "none"} | _measured(tally, 0) | {"settings": said} | alone
    number = 1
    for asked in bundles:
        source, settings = record_source(asked.bundle), asked.bundle.header.settings
        own = said | {"scale": settings.get("scale", "unit")}
        if "rest_mean" in asked.bundle:
            own |= {"rest": settings["measured"] - asked.bundle.units}
        if "words" in asked.bundle and "words" in settings:
            own |= {"words": {key: value for key, value in settings["words"].items() if key != "prefix"}}
        for setting in asked.settings:
            record = {"effect": asked.effect, "units": asked.units, "layers": list(setting.layers)} | setting.change.said()
            yield record | _measured(tally, number) | {"settings": own} | source
            number += 1


def _measured(tally: Tally, setting: int) -> Record:
    shares = {"top1": tally.top1(setting), "top5": tally.top5(setting)}
    record: Record = {"n": tally.count}
    for name, share in shares.items():
        low, high = share.interval()
        record[name] = {"value": rounded(share.value), "low": rounded(low), "high": rounded(high)}
    return record | {"agreement": rounded(tally.agreement(setting)), "cosine": rounded(tally.cosine(setting))}


class _Prepared(NamedTuple):
    """One bundle's settings, ready to run."""

    ablation: ablation.Ablation | None
    joints: list[Joint]


def _changed(model: LoadedModel, bundles: Sequence[Asked], expected: int) -> tuple[ChangedOutputs, list[int]]:
    """What computes the outputs, and where in them the settings are, in their order."""

    prepared = [_prepared(model, asked, expected) for asked in bundles]
    ablations = [
        (each.ablation, asked.bundle.header.scaled)
        for each, asked in zip(prepared, bundles, strict=True)
        if each.ablation is not None
    ]
    before = 1 + sum(each.settings for each, _ in ablations)  # outputs that come before joint ones
    additive, joint = iter(range(1, before)), itertools.count(before)
    order = [next(joint if setting.change.kind == "joint" else additive) for asked in bundles for setting in asked.settings]
    joints = [each for one in prepared for each in one.joints]
    visual: Any = model.clip.visual
    return ChangedOutputs(visual, ablations, joints), order


def _prepared(model: LoadedModel, asked: Asked, expected: int) -> _Prepared:
    """Raises StreamError where the bundle and the model do not fit."""

    joints = [joint_of(asked, setting.layers) for setting in asked.settings if setting.change.kind == "joint"]
    additive = [setting for setting in asked.settings if setting.change.kind != "joint"]
    if not additive:
        return _Prepared(None, joints)
    paths = paths_for(model, asked, additive, expected)
    units = units_of(model, asked)
    rest = rest_of(asked, paths)
    return _Prepared(Ablation(paths, units, [_setting(asked, setting) for setting in additive], rest), joints)


def _setting(asked: Asked, setting: Setting) -> ablation.Setting:
    """Which change each unit gets."""

    rows = torch.from_numpy(asked.rows(setting.layers))
    kind, size, keep, along = setting.change
    kept = rows.clone()
    if keep is not None:
        kept[rows] = keep_top_units(torch.from_numpy(asked.bundle["top_norm"])[rows], keep)
    others = [(Change("mean"), rows & ~kept)]
    if kind == "none":
        return []
    if kind == REST:
        return others
    if kind == "all":
        return [(Change("mean"), rows)]
    if kind in ("large", "small"):
        return [(Change(kind), rows)]  # type: ignore[arg-type]
    return [(Change(kind, size or 1, along or "direction"), kept), *others]  # type: ignore[arg-type]


def ablate_table(records: Sequence[Record]) -> bytes:
    """A row a setting, the untouched model first."""

    table = Table(box=None, pad_edge=False, header_style="bold")
    for title in ("effect", "layers", "change"):
        table.add_column(title)
    for title in ("top-1", "(95 %)", "top-5", "same answer", "cosine"):
        table.add_column(title, justify="right", no_wrap=True)
    for record in records:
        top1, top5 = record["top1"], record["top5"]
        effect = f"{record['effect']}, {record['units']}" if "effect" in record else ""
        cells = [effect, _layers(record["layers"]), in_words(record), f"{top1['value']:.1%}"]
        cells += [f"{top1['low']:.1%}–{top1['high']:.1%}", f"{top5['value']:.1%}"]
        table.add_row(*map(Text, [*cells, f"{record['agreement']:.1%}", f"{record['cosine']:.4f}"]))
    return rendered(
        table, Text(f"{count_of(records[0]['n'], 'image')}, {count_of(records[0]['settings']['class_count'], 'class')}")
    )


def in_words(record: Record) -> str:
    """`all means`, `PC 1–4 of 20 %`, `16 words`."""
    kept = f"{100 * record.get('keep', 1):.4g} %"
    if "effect" not in record:
        return "untouched"
    if "reconstruct" in record:
        count = int(record.get("components") or record.get("m") or 1)
        what = ("PC 1" if count == 1 else f"PC 1–{count}") if record["reconstruct"] == "pc" else count_of(count, "word")
        what += f" along {record['along']}" if record.get("along", "direction") != "direction" else ""
        return f"{what} of {kept}" if "keep" in record else what
    kind = record["ablate"]
    said = {
        "all": "means",
        "none": "untouched",
        "large": "large to means",
        "small": "small to means",
        "joint": "activations to means",
    }
    return said.get(kind) or f"all but {kept} to means"


def _layers(layers: Sequence[int]) -> str:
    """`5–6, 8`."""
    runs: list[list[int]] = []
    for layer in layers:
        if runs and runs[-1][-1] == layer - 1:
            runs[-1].append(layer)
        else:
            runs.append([layer])
    return ", ".join(str(run[0]) if len(run) == 1 else f"{run[0]}–{run[-1]}" for run in runs)
