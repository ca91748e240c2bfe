"""Accuracy per group in the settings of `ablate`: hits of every image, and the fields of the records that follow from them.

analysis/group_accuracy.py has the equations. Records of all settings but the first also have the differences from the untouched
model on the same images.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float64, Int64
from torch import Tensor

from cliptools.analysis.group_accuracy import Estimate, GroupAccuracies, mean_differences, mean_figures
from cliptools.analysis.zero_shot import Guessing
from cliptools.console import note
from cliptools.errors import UsageError
from cliptools.front.ablate_settings import AblateRequest
from cliptools.images.classification import ClassifiedImages
from cliptools.images.classification.grouped import ImageGroups
from cliptools.io.header import digest
from cliptools.io.jsonl import rounded, whole_number
from cliptools.models.load import LoadedModel
from cliptools.models.templates import SLOT, class_templates, text_sentences
from cliptools.text.vocabularies import Pool

TABLE = "table"  # value of --train-sizes other than numbers


def single_templates(model: LoadedModel, images: ClassifiedImages, request: AblateRequest) -> list[tuple[Pool, str]]:
    """Return the templates one by one, each with the classes' names as sentences of it have them."""
    names = [row.name for row in images.classes]
    sentences, templates = text_sentences(names, class_templates(model.name, request.templates))
    pool = Pool("classes", tuple(sentences), digest(*sentences))
    return [(pool, template) for template in templates or (SLOT,)]


class HitTable:
    """Hits of all images that have been read, in all settings and with all forms of the texts."""

    def __init__(self) -> None:
        self.numbers: list[int] = []
        self._hits: list[Bool[np.ndarray, "s k b"]] = []

    def add(self, numbers: Sequence[int], hits: Sequence[Bool[Tensor, "s b"]]) -> None:
        """Add the hits of a batch, for each form of the texts."""
        self.numbers += numbers
        self._hits.append(torch.stack(list(hits), 1).cpu().numpy())

    @property
    def hits(self) -> Bool[np.ndarray, "s k n"]:
        """All hits, in the order of `numbers`."""
        return np.concatenate(self._hits, 2)


class GroupFigures:
    """Figures of groups in all settings, for images with groups; without groups, differences of accuracy."""

    def __init__(self, groups: ImageGroups | None, request: AblateRequest, templates: Sequence[tuple[Pool, str]]) -> None:
        """
        Args:
            groups: The group of each image; None for images without groups.
            templates: The templates whose figures are averaged; empty for averaged embeddings.

        Raises:
            UsageError: training sizes do not suit the groups.
        """
        self.groups, self.seed = groups, request.seed
        self.templates = [template for _, template in templates]
        self.sizes = None if groups is None else training_sizes(request.train_sizes, groups)
        self._tasks: list[GroupAccuracies] = []
        self._names: list[list[str]] = []

    @property
    def settings(self) -> dict[str, Any]:
        """Settings of the records that the figures depend on."""
        return {} if self.sizes is None else {"train_sizes": self.sizes}

    @property
    def _several(self) -> bool:
        return self.groups is not None and len(self.groups.tasks) > 1

    def guessing(self, images: ClassifiedImages) -> Guessing:
        """Return the accuracy of guessing among all classes, or among those of a task."""
        if self.groups is None or not self._several:
            return Guessing([row.name for row in images.classes])
        return Guessing([str(row) for row in range(max(len(task.classes) for task in self.groups.tasks))])

    def position(self, rows: Int64[np.ndarray, " b"], numbers: Sequence[int]) -> Int64[np.ndarray, " b"]:
        """Return the places of classes among the classes of their images' tasks."""
        if self.groups is None or not self._several:
            return rows
        tasks = [self.groups.tasks[task] for task in self._task_of(numbers)]
        return np.array([task.classes.index(row) for task, row in zip(tasks, rows.tolist(), strict=True)], np.int64)

    def among(self, images: ClassifiedImages, numbers: Sequence[int]) -> Bool[Tensor, "b class"] | None:
        """Return the classes that each image is classified among; None for all classes."""
        if self.groups is None or not self._several:
            return None
        allowed = torch.zeros(len(self.groups.tasks), len(images.classes), dtype=torch.bool)
        for number, task in enumerate(self.groups.tasks):
            allowed[number, list(task.classes)] = True
        return allowed[self._task_of(numbers)]

    def _task_of(self, numbers: Sequence[int]) -> list[int]:
        assert self.groups is not None
        task_of = {g: number for number, task in enumerate(self.groups.tasks) for g in task.groups}
        return [task_of[g] for g in self.groups.of[list(numbers)].tolist()]

    def compute(self, table: HitTable) -> None:
        """Compute the figures from all hits; groups without an image are left out, with a note."""
        hits = table.hits.astype(np.float64)
        h = hits.reshape(-1, hits.shape[2])  # (s k, n)
        if self.groups is None:
            self._tasks = [GroupAccuracies(h, np.zeros(h.shape[1], np.int64), 1, seed=self.seed)]
            return
        group = self.groups.of[table.numbers]  # (n)
        present = set(group.tolist())
        if missing := [name for g, name in enumerate(self.groups.names) if g not in present]:
            note(f"groups without an image that was read, left out: {', '.join(missing)}")
        for number, task in enumerate(self.groups.tasks):
            groups = [g for g in task.groups if g in present]
            if not groups:
                continue
            place = np.full(len(self.groups.names), -1)
            place[groups] = np.arange(len(groups))
            own = place[group] >= 0  # (n)
            weight = self._weight(groups)
            self._tasks.append(GroupAccuracies(h[:, own], place[group[own]], len(groups), weight, seed=(self.seed, number)))
            self._names.append([self.groups.names[g] for g in groups])

    def _weight(self, groups: Sequence[int]) -> Float64[np.ndarray, " g"] | None:
        """Return the training sizes of groups; None without sizes.

        Raises:
            UsageError: they are all 0.
        """
        if self.sizes is None or self.groups is None:
            return None
        names = [self.groups.names[g] for g in groups]
        weight = np.array([self.sizes[name] for name in names], np.float64)
        if not weight.any():
            raise UsageError(f"--train-sizes: none of the groups that were read has a training image: {', '.join(names)}")
        return weight

    def fields(self, s: int) -> dict[str, Any]:
        """Return the fields of the record of setting s; empty if no figures were computed."""
        if not self._tasks:
            return {}
        if self.groups is None:
            return {"difference": {"top1": _record(mean_differences(self._tasks, s, 0)["average"])}} if s else {}
        rows, untouched = self._rows(s), self._rows(0)
        values = [task.groups(rows) for task in self._tasks]
        record: dict[str, Any] = {"groups": self._group_records(values, with_counts=True)}
        record |= _records(mean_figures(self._tasks, rows))
        if self._several:
            record["tasks"] = [
                {"task": task.name} | _records(accuracies.figures(rows))
                for task, accuracies in zip(self._present_tasks(), self._tasks, strict=True)
            ]
        else:
            record["worst"] = {"group": self._names[0][self._tasks[0].worst_group(rows)]} | record["worst"]
        if self.templates:
            record["templates"] = [
                {"template": template} | _records(mean_figures(self._tasks, row))
                for template, row in zip(self.templates, rows, strict=True)
            ]
        if s:
            differences = [task.group_differences(rows, untouched) for task in self._tasks]
            record["difference"] = {"groups": self._group_records(differences, with_counts=False)}
            record["difference"] |= _records(mean_differences(self._tasks, rows, untouched))
        return record

    def _rows(self, s: int) -> list[int]:
        count = len(self.templates) or 1
        return list(range(s * count, (s + 1) * count))

    def _present_tasks(self) -> list[Any]:
        assert self.groups is not None
        names = {name for names in self._names for name in names}
        return [task for task in self.groups.tasks if any(self.groups.names[g] in names for g in task.groups)]

    def _group_records(self, values: Sequence[Sequence[Estimate]], with_counts: bool) -> list[dict[str, Any]]:
        return [
            {"group": name} | ({"n": int(count)} if with_counts else {}) | _record(value)
            for task, names, task_values in zip(self._tasks, self._names, values, strict=True)
            for name, count, value in zip(names, task.count, task_values, strict=True)
        ]


def _record(x: Estimate) -> dict[str, float]:
    return {"value": rounded(x.value), "low": rounded(x.low), "high": rounded(x.high)}


def _records(estimates: Mapping[str, Estimate]) -> dict[str, dict[str, float]]:
    return {name: _record(x) for name, x in estimates.items()}


def training_sizes(given: str | Mapping[str, int] | None, groups: ImageGroups) -> dict[str, int] | None:
    """Return the training size of each group; None if none are asked for.

    Args:
        given: `table`; or a number for each group, in their order, separated by commas; or GROUP=NUMBER for each.

    Raises:
        UsageError: the number of sizes is not that of the groups, a size is not a number, all sizes are 0, or the table has no
            training images.
    """
    if given is None:
        return None
    expected = f"the groups are {', '.join(groups.names)}"
    if given == TABLE:
        if groups.training is None:
            raise UsageError(f"--train-sizes {TABLE}: the groups come from no table with rows of the split train; {expected}")
        return _with_images(dict(groups.training), given, groups)
    if isinstance(given, str):
        parts = [part.strip() for part in given.split(",")]
        names = [part.rpartition("=")[0].strip() for part in parts]
        sizes = [whole_number(part.rpartition("=")[2].strip()) for part in parts]
        if not any(names) and len(sizes) == len(groups.names):
            names = list(groups.names)
    else:
        names, sizes = list(given), [whole_number(size) for size in given.values()]
    if sorted(names) != sorted(groups.names):
        raise UsageError(f"--train-sizes {given}: expected a number for each group, or GROUP=NUMBER; {expected}")
    if any(size is None or size < 0 for size in sizes) or not any(sizes):
        raise UsageError(f"--train-sizes {given}: expected whole numbers, one of them above 0; {expected}")
    by_name = dict(zip(names, (size or 0 for size in sizes), strict=True))
    return _with_images({name: by_name[name] for name in groups.names}, given, groups)


def _with_images(sizes: dict[str, int], given: object, groups: ImageGroups) -> dict[str, int]:
    """Return training sizes, checked for a task all of whose groups have none."""
    for task in groups.tasks:
        names = [groups.names[g] for g in task.groups]
        if not any(sizes[name] for name in names):
            raise UsageError(f"--train-sizes {given}: none of the groups {', '.join(names)} has a training image")
    return sizes
