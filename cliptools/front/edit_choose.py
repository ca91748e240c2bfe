"""The number of units of an edit, chosen on validation images by the worst group and reported on test images.

With a_g the accuracy of group g and the untouched model as 0: among 5, 10, 20, ... units that no other group pays for,
a_g >= a_g(0) - loss for every g but the worst group of the untouched model, the number is the one of largest min_g a_g; of equal
ones the smallest. Test images have no part in this. They measure the untouched model, the edited model, and the same edit of as
many random units.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from cliptools.analysis.edited_passes import Weights, edited_outputs
from cliptools.analysis.zero_shot import score
from cliptools.console import count_of, progress, summarise
from cliptools.devices import in_halves
from cliptools.errors import CliptoolsError, UsageError
from cliptools.front.ablate_groups import GroupFigures, HitTable
from cliptools.front.ablate_settings import AblateRequest
from cliptools.front.edit_model import TOOL, editor_of
from cliptools.front.edit_request import EditRequest
from cliptools.front.edited import Edited
from cliptools.front.images import Reading, read_batches
from cliptools.images.classification import ClassifiedImages
from cliptools.images.classification.grouped import FOLDERS, ImageGroups, open_grouped
from cliptools.images.loader import ListedImages, Skipped, list_digest
from cliptools.io.bundle import Bundle
from cliptools.io.header import digest
from cliptools.models.load import LoadedModel, load_recorded_model
from cliptools.models.templates import class_templates
from cliptools.models.text_encoder import encode_named
from cliptools.models.unusable import Screen, unusable
from cliptools.text.vocabularies import Pool
from cliptools.towers.tower import weight_of

FIRST = 5  # units; then twice as many each time
LOSS = 0.02
Record = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class ChoiceRequest:
    """Images on which the number of units is chosen and reported."""

    validation: tuple[str, ...]
    test: tuple[str, ...]
    groups: str
    """folders, scenes, or a file of metadata."""
    classes: str | None = None
    loss: float = LOSS
    """Largest loss of accuracy of another group."""
    reading: Reading = field(default_factory=Reading)

    def check(self) -> None:
        """Reject a missing argument before any input is read.

        Raises:
            UsageError: images or groups are missing.
        """
        for option, given in (("--choose", self.validation), ("--test", self.test), ("--groups", self.groups)):
            if not given:
                raise UsageError(
                    f"{option} is missing: the number of units is chosen on --choose, by --groups, and reported on --test"
                )


class Grouped(NamedTuple):
    """Images with the class and the group of each."""

    images: ClassifiedImages
    groups: ImageGroups


def choose_units(bundle: Bundle, request: EditRequest, choice: ChoiceRequest) -> Edited:
    """Return the edit of the number of units that is best on validation images, with its figures on test images.

    Raises:
        UsageError: the request does not score units, or images stand in both sets.
        CliptoolsError: no number of units raises the worst group within the limit.
    """
    if not request.sees:
        raise UsageError("--choose tries 5, 10, 20, … units by score: it needs --sees and --writes")
    if request.head is not None:
        raise UsageError("--choose chooses the number of units: leave --head out")
    validation, test = _open(choice.validation, choice, "validation"), _open(choice.test, choice, "test")
    contents = [_contents(grouped) for grouped in (validation, test)]
    refuse_common(*contents)
    model = request.model or load_recorded_model(bundle.header.model, request.device, "fp32")
    request = replace(request, model=model)
    edits = _edits(bundle, request)
    figures = measure_groups(model, [{}, *(image_weights(edit) for edit in edits)], validation, choice)
    trials = [_trial(figures, s, edit) for s, edit in enumerate(edits, 1)]
    units, worst, loss = ([record[name] for record in trials] for name in ("units", "worst", "loss"))
    best = best_trial(units, worst, loss, _worst(figures), choice.loss)
    edited = edits[best]
    random = editor_of(_random_units(bundle, edited), None, _unscored(request, edited.record["how"])).edited()
    on_test = measure_groups(model, [{}, image_weights(edited), image_weights(random)], test, choice)
    record: Record = {"groups": choice.groups, "limit": choice.loss, "trials": trials, "chosen": edited.record["count"]}
    record["validation"] = {"images": _images(contents[0]), "before": figures.fields(0), "after": figures.fields(best + 1)}
    names = ("before", "after", "random")
    record["test"] = {"images": _images(contents[1])} | {name: on_test.fields(s) for s, name in enumerate(names)}
    before, after = (on_test.fields(s)["worst"]["value"] for s in (0, 1))
    summarise(f"{TOOL}: {count_of(edited.record['count'], 'unit')} chosen, worst group on test {before:.3f} -> {after:.3f}")
    return replace(edited, record=edited.record | {"choice": record})


def _open(paths: Sequence[str], choice: ChoiceRequest, split: str) -> Grouped:
    """Open the images of a split.

    Raises:
        UsageError: they are of several tasks, one of which an edit is for.
    """
    of_split = None if choice.groups == FOLDERS else split
    images, groups = open_grouped(list(paths), choice.groups, None, choice.classes, split=of_split)
    if len(groups.tasks) > 1:
        names = ", ".join(task.name for task in groups.tasks[:3])
        raise UsageError(f"{split} images of several tasks ({names}, …): an edit is for one, name the images of one")
    return Grouped(images, groups)


Contents = Sequence[tuple[str, bytes | None]]
"""Name and digest of the bytes of each image, None where they cannot be read."""


def _contents(grouped: Grouped) -> Contents:
    source = grouped.images.source
    assert isinstance(source, ListedImages)  # as open_grouped opens them
    return [(name, source.content(index)) for index, name in enumerate(source.names)]


def refuse_common(validation: Contents, test: Contents) -> None:
    """Refuse images that stand in both sets: with the same bytes, whatever their names and folders.

    Raises:
        UsageError: there is one.
    """
    name_of = {content: name for name, content in test if content is not None}
    for name, content in validation:
        if (other := name_of.get(content or b"")) is not None:
            there = "" if other == name else f" as {other}"
            raise UsageError(f"{name} stands in --choose and in --test{there}: what chooses the units must not judge them")


def _edits(bundle: Bundle, request: EditRequest) -> list[Edited]:
    """Return the edits of 5, 10, 20, ... units, up to all that have a score."""
    edits: list[Edited] = []
    head = FIRST
    while not edits or edits[-1].record["count"] * 2 == head:
        edits.append(editor_of(bundle, None, replace(request, head=head)).edited())
        head *= 2
    if len(edits) > 1 and edits[-1].record["count"] == edits[-2].record["count"]:
        edits.pop()
    return edits


def image_weights(edit: Edited) -> dict[str, Tensor]:
    """Return the changed weights of an edit's image tower, in float32, by their names in it."""
    return {name: edit.tensors[f"visual.{name}"].float() for name in edit.changed}


@torch.inference_mode()
def measure_groups(model: LoadedModel, weights: Sequence[Weights], grouped: Grouped, choice: ChoiceRequest) -> GroupFigures:
    """Return the figures of groups of a model with each of these weights, from one reading of the images.

    Raises:
        CliptoolsError: no image is usable.
    """
    images, groups = grouped
    visual: Any = model.clip.visual
    figures = GroupFigures(groups, AblateRequest(groups=choice.groups), [])
    names = tuple(row.name for row in images.classes)
    text = encode_named(model, Pool("classes", names, digest(*names)), class_templates(model.name, ()))  # (class, d)
    table, skipped = HitTable(), Skipped()
    screen = Screen[int](images.source.names.__getitem__, skipped.add, choice.reading.strict)
    order = list(range(len(images.source)))
    batches = read_batches(images.source, order, model, choice.reading, skipped)
    shown = progress(batches, "images of groups", len(order), lambda batch: len(batch[0]))
    placed = [{name: value.to(model.device) for name, value in changed.items()} for changed in weights]

    def outputs(_: object, pictures: Tensor) -> Tensor:
        pictures = pictures.to(weight_of(visual))
        return edited_outputs(visual, placed, pictures)  # (s, b, d)

    for numbers, output in in_halves(shown, outputs):
        usable = list(screen.places(numbers, unusable(output[0], output.transpose(0, 1))))
        if usable:
            kept = [numbers[place] for place in usable]
            label = torch.from_numpy(images.label[kept])
            table.add(kept, [score(output[:, usable], text, label, figures.among(images, kept)).rank == 0])
    screen.require(len(table.numbers))
    figures.compute(table)
    return figures


def _worst(figures: GroupFigures) -> float:
    return float(figures.fields(0)["worst"]["value"])


def _trial(figures: GroupFigures, s: int, edit: Edited) -> Record:
    """Return the record of a number of units: its worst group, and the largest loss of a group that was not the worst before."""
    before, after = figures.fields(0), figures.fields(s)
    losses = [
        group["value"] - changed["value"]
        for group, changed in zip(before["groups"], after["groups"], strict=True)
        if group["group"] != before["worst"]["group"]
    ]
    loss = round(max(losses, default=0.0), 6)
    return {"units": edit.record["count"], "worst": after["worst"]["value"], "average": after["average"]["value"], "loss": loss}


def best_trial(units: Sequence[int], worst: Sequence[float], loss: Sequence[float], before: float, limit: float) -> int:
    """Return the trial of largest worst-group accuracy among those whose loss is within the limit; of equal ones the first.

    Args:
        units: Number of units of each trial.
        before: Worst-group accuracy of the untouched model.

    Raises:
        CliptoolsError: none is better than the untouched model.
    """
    allowed = [s for s in range(len(worst)) if loss[s] <= limit + 1e-9 and worst[s] > before]
    if not allowed:
        tried = ", ".join(f"{n} units {w:.3f} ({x:.3f})" for n, w, x in zip(units, worst, loss, strict=True))
        raise CliptoolsError(
            f"no number of units raises the worst group of --choose from {before:.3f} with a loss of at most {limit:g} (--loss) "
            f"in the others: {tried}"
        )
    return max(allowed, key=lambda s: (worst[s], -s))


def _random_units(bundle: Bundle, edited: Edited) -> Bundle:
    """Return as many other units of the bundle, drawn with a fixed seed.

    Raises:
        CliptoolsError: there are none.
    """
    chosen = {tuple(name) for name in edited.header.settings["names"]}
    others = [row for row, name in enumerate(bundle["unit"].tolist()) if tuple(name) not in chosen]
    count = min(len(chosen), len(others))
    if not count:
        raise CliptoolsError("every unit of the bundle is edited: no random units are left to compare with")
    return bundle.select(np.sort(np.random.default_rng(0).choice(others, count, replace=False)))


def _unscored(request: EditRequest, how: str) -> EditRequest:
    """Return the request for units that are given; of those at their means, without texts."""
    writes = () if how == "zero" else request.writes
    return replace(request, sees=(), writes=writes, by=None, head=None, layers=None, how=how)


def _images(contents: Contents) -> Record:
    """Return the number of images, and a digest of their names and contents: names below two folders may be the same."""
    digests = [(content or b"").hex() for _, content in contents]
    return {"count": len(contents), "digest": list_digest([*(name for name, _ in contents), *digests])}
