"""Tables of repairs: the measurement of one edit of one pair, as it is kept, and rows of means over the pairs.

repair.py and unnamed_repair.py measure; the docstring of repair.py describes the columns.
"""

import csv
import io
import math
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float
from scipy import stats

GROUPS = ("A_cue", "A_other", "C_cue", "C_other")
COLUMNS = (
    "model", "seed", "units", "edit", "count", "before", "after", "low", "high", "error_gone", *GROUPS,
    "zero_shot", "zero_shot_after", "zero_shot_low", "zero_shot_high", "scenes", "pairs",
)  # fmt: skip


class Measured(NamedTuple):
    """One edit of one pair."""

    count: int
    before: Float[np.ndarray, " group"]
    after: Float[np.ndarray, " group"]
    right: Bool[np.ndarray, "2 scene"]
    """Single emoji named correctly, before and after."""

    @property
    def record(self) -> dict[str, Any]:
        """The measurement as it is kept."""
        return {key: value if isinstance(value, int) else value.tolist() for key, value in self._asdict().items()}

    @classmethod
    def of(cls, record: dict[str, Any]) -> "Measured":
        """Return the measurement that was kept."""
        groups = (np.array(record[name], np.float64) for name in ("before", "after"))
        return cls(record["count"], *groups, np.array(record["right"], bool))


Edits = dict[tuple[str, str], Measured]
"""The measured edits of one pair, by the names of the units and of the edit."""


def row(model: str, seed: int, units: str, edit: str, measured: Sequence[Measured]) -> dict[str, object]:
    """Return the row of one way of editing, over all pairs."""
    before, after = (np.array([getattr(one, name) for one in measured]) for name in ("before", "after"))  # (pair, group)
    worst, worst_after = before.min(1), after.min(1)
    gain, right = worst_after - worst, np.concatenate([one.right for one in measured], 1)
    half = float(stats.sem(gain) * stats.t.ppf(0.975, len(gain) - 1)) if len(gain) > 1 else math.nan
    change = right[1].astype(float) - right[0]
    half_change = 1.96 * change.std(ddof=1) / math.sqrt(len(change))
    numbers = {"before": worst.mean(), "after": worst_after.mean(), "low": gain.mean() - half, "high": gain.mean() + half}
    numbers |= {"error_gone": gain.mean() / max(1e-9, 1 - worst.mean())}
    numbers |= {name: 100 * change for name, change in zip(GROUPS, (after - before).mean(0), strict=True)}
    numbers |= {"zero_shot": right[0].mean(), "zero_shot_after": right[1].mean()}
    numbers |= {"zero_shot_low": change.mean() - half_change, "zero_shot_high": change.mean() + half_change}
    shown = {name: f"{value:.4f}" for name, value in numbers.items()}
    fixed = {"model": model, "seed": seed, "units": units, "edit": edit, "pairs": len(measured)}
    return fixed | shown | {"count": f"{np.mean([one.count for one in measured]):.0f}", "scenes": right.shape[1]}


def table(model: str, seed: int, pairs: Iterable[Edits]) -> bytes:
    """Return the table of one model and one seed."""
    results: dict[tuple[str, str], list[Measured]] = {}
    for edits in pairs:
        for key, measured in edits.items():
            results.setdefault(key, []).append(measured)
    lines = io.StringIO()
    writer = csv.DictWriter(lines, COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(row(model, seed, units, edit, measured) for (units, edit), measured in results.items())
    return lines.getvalue().encode()
