"""Count the planted facts that are repaired without naming them, by one edit of all that clip-spurious --mismatch finds.

    clip-spurious --mismatch --head 60 --neurons 10 BUNDLE.safetensors > FINDINGS.jsonl
    clip-edit -o EDITED.safetensors < FINDINGS.jsonl
    python unnamed_repair.py GROUPS BUNDLE.safetensors FINDINGS.jsonl EDITED.safetensors

GROUPS are scenes of clip-scenes --groups of all kinds, of which only the split test is used: nothing is chosen here. For each
kind of what is planted (pairs of things; facts about grounds, written words and ways of drawing) the rows are the edit, and its
control `random`: the same lines with as many random units of the bundle in place of theirs, each in all the lines of the unit
that it replaces. findings is the number of lines, units the number of units that they name. found counts the plants whose cue and
class are a finding, by any of their names; repaired those whose worst group loses at least 60 % of its error, if that was at
least 5 %; found_repaired those of them that were found; worse counts the plants of which a group that was not the worst loses
more than 2 points. The other columns are those of repair.py, as means over the plants of the kind, whose number is `pairs`.
"""

import csv
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Int
from repair import COLUMNS as REPAIR_COLUMNS
from repair import LOSS, Measured, Names, Repairs, Weights, row
from safetensors.torch import load_file

import cliptools as ct
from cliptools.front.edit_choose import image_weights
from cliptools.io.jsonl import file_objects
from cliptools.text.emoji_concepts import PAIR, PLANTED_KINDS, concept_index, concepts, facts, plants

COUNTS = ("findings", "found", "repaired", "found_repaired", "worse")
COLUMNS = tuple(name for name in REPAIR_COLUMNS if name not in ("units", "count"))
COLUMNS = (*COLUMNS[:3], "kind", "units", *COUNTS, *COLUMNS[3:])
REPAIRED = 0.6  # share of the worst group's error that is gone
FAULT = 0.05  # least error of the worst group before, below which there is nothing to repair
KEYS = ("layer", "neuron", "head")
Records = Sequence[dict[str, Any]]


def changed_weights(repairs: Repairs, path: Path) -> Weights:
    """Return the weights of the image tower that differ in an edited file."""
    before = repairs.model.clip.state_dict()
    changed = {name: value.float() for name, value in load_file(path).items() if not torch.equal(value.float(), before[name])}
    return {name.removeprefix("visual."): value for name, value in changed.items()}


def random_lines(findings: Records, unit: Int[np.ndarray, "u 3"], rng: np.random.Generator) -> Records:
    """Return the findings with a random unit in place of each of theirs, the same one in all lines that name it."""
    named = list(dict.fromkeys(unit_key(each) for line in findings for each in line["units"]))
    drawn = unit[rng.choice(len(unit), len(named), replace=False)].tolist()
    other = {
        old: {key: number for key, number in zip(KEYS, new, strict=True) if number >= 0}
        for old, new in zip(named, drawn, strict=True)
    }
    return [line | {"units": [other[unit_key(each)] for each in line["units"]]} for line in findings]


def random_weights(repairs: Repairs, findings: Records) -> Weights:
    """Return the weights of the edit of as many random units."""
    drawn = random_lines(findings, repairs.bundle["unit"], repairs.rng)
    edited = ct.edit(drawn, bundle=repairs.bundle, model=repairs.model)
    return image_weights(edited)


def planted_of(kind: str) -> list[Names]:
    """Return everything planted of a kind."""
    names = [concept.name for concept in concepts()]
    if kind == PAIR:
        return [Names(names[plant.named], names[plant.cue]) for plant in plants()]
    return [Names(names[fact.named], fact.cue) for fact in facts() if fact.kind == kind]


def found(findings: Records, planted: Names) -> bool:
    """Return True if cue and class of a pair or fact are a finding."""
    index = concept_index()

    def meaning(text: str) -> int | str:
        return index.get(text.lower(), text.lower())

    listed = {(meaning(line["sees"]), meaning(line["writes"])) for line in findings}
    return (meaning(planted.cue), meaning(planted.named)) in listed


def count_plants(findings: Records, planted: Sequence[Names], measured: Sequence[Measured]) -> dict[str, int]:
    """Return the numbers of plants that are found, repaired, both, and worse."""
    before, after = (np.array([getattr(one, name) for one in measured]) for name in ("before", "after"))  # (plant, group)
    worst = before.min(1)
    repaired = (after.min(1) - worst >= REPAIRED * (1 - worst)) & (1 - worst >= FAULT)
    loss = np.where(before == worst[:, None], 0, before - after).max(1)
    is_found = np.array([found(findings, one) for one in planted])
    counts = (len(findings), is_found.sum(), repaired.sum(), (is_found & repaired).sum(), (loss > LOSS + 1e-9).sum())
    return dict(zip(COUNTS, map(int, counts), strict=True))


def unit_key(unit: Mapping[str, Any]) -> tuple[int, ...]:
    """Return layer, neuron and head of a unit, -1 for what it does not have."""
    return tuple(int(unit.get(key, -1)) for key in KEYS)


def unit_count(findings: Records) -> int:
    """Return the number of different units of all findings."""
    return len({unit_key(unit) for line in findings for unit in line["units"]})


def main(groups: Path, bundle: Path, findings_file: Path, edited: Path) -> None:
    """Write the rows to stdout."""
    repairs = Repairs(groups, bundle)
    findings = [record for _, record in file_objects(findings_file, str(findings_file))]
    edits = {"unnamed": changed_weights(repairs, edited), "random": random_weights(repairs, findings)}
    writer = csv.DictWriter(sys.stdout, COLUMNS, extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    for kind in PLANTED_KINDS:
        planted = planted_of(kind)
        results: dict[str, list[Measured]] = {name: [] for name in edits}
        for one in planted:
            accuracies = repairs.measure(repairs.open("test", one), list(edits.values()), one)
            right = repairs.single(list(edits.values()))
            for number, name in enumerate(edits, 1):
                results[name].append(Measured(0, accuracies[0], accuracies[number], right[[0, number]]))
            print(f"{edited}: {one.named}", file=sys.stderr, flush=True)
        for name, measured in results.items():
            counts = {"kind": kind, "units": unit_count(findings)} | count_plants(findings, planted, measured)
            writer.writerow(row(repairs, "", name, measured) | counts)
        sys.stdout.flush()


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
