"""Tables of the study of repairs with figures of a test, in the columns and by the functions of the study."""

import csv
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

from cliptools.embedded_models import EMBEDDED
from cliptools.text.emoji_concepts import PLANTED_KINDS, plants

SEEDS, SCENES, COUNT = range(3), 20, 40
BEFORE = np.array([0.98, 0.96, 0.6, 0.97])
KEPT = [0.97, 0.955, 0.7, 0.965]
"""Groups of the controls after the edit, of which the worst gains ten points."""
CONTROLS = ("random", "write", "see", "blind")


def measured(after: Sequence[float], lost: float = 0.0, count: int = COUNT) -> list[Any]:
    """Return an edit of all plants with these accuracies of the groups; a share of the single emoji is named wrongly after it."""
    from repair import Measured

    rng, right = np.random.default_rng(1), np.ones((len(plants()) * SCENES, 2), dtype=bool)
    right[: round(lost * len(right)), 1] = False
    shifts = rng.normal(0, 0.002, len(plants()))
    parts = right.T.reshape(2, len(plants()), SCENES)
    groups = [np.array(after) + np.array([0, 0, shift, 0]) for shift in shifts - shifts.mean()]
    return [Measured(count, BEFORE, group, parts[:, number]) for number, group in enumerate(groups)]


def write_repairs(folder: Path, after: Sequence[float], lost: float = 0.0, control: Sequence[float] = KEPT) -> None:
    """Write repair.csv: for both models the edit with these groups after it, controls and baselines with others."""
    from repair import COLUMNS, row

    rows = []
    for name in EMBEDDED:
        for seed in SEEDS:
            study: Any = SimpleNamespace(model=SimpleNamespace(name=name), seed=seed)
            rows.append(row(study, "repair", "null", measured(after, lost)))
            rows += [row(study, units, "null", measured(control)) for units in CONTROLS]
            rows.append(row(study, "repair", "zero", measured(KEPT)))
            rows.append(row(study, "heads", "mean", measured(KEPT, count=2)))
            rows.append(row(study, "none", "projection", measured(KEPT, count=0)))
    comment = f"# make -C examples -f repair.mk: {COUNT} scenes (of each group, pair and split)"
    _write(folder / "repair.csv", comment, COLUMNS, rows)


def write_unnamed(folder: Path, after: Sequence[float], found: int) -> None:
    """Write repair-unnamed.csv: the edit with these groups after it, and its control, with findings of some plants."""
    from repair import row
    from unnamed_repair import COLUMNS, count_plants, planted_of

    findings = [{"sees": plant.cue, "writes": plant.named} for plant in (*planted_of("pair")[:found], planted_of("word")[0])]
    rows = []
    for name in EMBEDDED:
        for seed in SEEDS:
            study: Any = SimpleNamespace(model=SimpleNamespace(name=name), seed=seed)
            for kind in PLANTED_KINDS:
                planted = planted_of(kind)
                for edit, groups in (("unnamed", after), ("random", BEFORE)):
                    edited = measured(groups)[: len(planted)]
                    counts = {"kind": kind, "units": COUNT} | count_plants(findings, planted, edited)
                    rows.append(row(study, "", edit, edited) | counts)
    _write(folder / "repair-unnamed.csv", "# make -C examples -f repair.mk unnamed", COLUMNS, rows)


def _write(path: Path, comment: str, columns: Sequence[str], rows: Sequence[dict[str, Any]]) -> None:
    with path.open("w", encoding="utf-8", newline="") as stream:
        stream.write(f"{comment}\n")
        table = csv.DictWriter(stream, columns, extrasaction="ignore", lineterminator="\n")
        table.writeheader()
        table.writerows(rows)
