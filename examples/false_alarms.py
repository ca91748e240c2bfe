"""Measure the rate of alarms of clip-shift --alarm 3: false_alarms.py SHARES.jsonl… > CSV

Groups are resampled with replacement from the images of the streams (records of clip-shift --per-image --truth scenes), at a
frequency of each concept that is equal to the frequency in the baseline or differs from it. Each run compares all concepts in
twelve groups with the code of the command. The columns are the frequencies before and now, the numbers of images of a group and
of the baseline, whether the limit applies to the whole run or (--each) to every comparison, the share of runs that end with exit
status 3, the share expected by chance, and the share of comparisons with an alarm.
"""

import csv
import json
import sys
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from cliptools.analysis.shift_statistics import GroupMoments, chance_of_run
from cliptools.cli.run.shift_drift import Alarm, add_drift
from cliptools.io.shift_baseline import Baseline

GROUPS, BASELINE, SIGMAS = 12, 480, 3.0
COLUMNS = (
    "model", "before", "now", "images", "baseline_images", "comparisons", "held_to",
    "runs", "runs_alarmed", "expected", "comparisons_alarmed",
)  # fmt: skip
RUNS = {False: 400, True: 100}  # number of runs, without and with --each
Population = tuple[np.ndarray, np.ndarray]
"""Shares of the images that show a concept, and shares of the images that do not."""


class Setting(NamedTuple):
    """Frequencies before and now, images of a group, and the part of RUNS that is made."""

    before: float
    now: float
    images: int
    part: float = 1.0


SETTINGS = (
    Setting(0.05, 0.05, 40),
    Setting(0.20, 0.20, 10),
    Setting(0.20, 0.20, 40),
    Setting(0.20, 0.20, 200),
    Setting(0.60, 0.60, 40),
    Setting(0.05, 0.10, 40, 0.1),
    Setting(0.05, 0.20, 40, 0.1),
    Setting(0.05, 0.40, 40, 0.1),
    Setting(0.05, 0.20, 200, 0.1),
)


def read(path: Path) -> tuple[str, dict[str, Population]]:
    """Return the model's name, and the shares of each concept in its own stream."""
    model = ""
    values: dict[str, tuple[list[float], list[float]]] = {}
    with path.open(encoding="utf-8") as lines:
        for record in map(json.loads, lines):
            if "image" in record:
                model = record["model"]["name"]
                for concept, share in record["shares"].items():
                    values.setdefault(concept, ([], []))[not record["labels"][concept]].append(share)
    return model, {concept: (np.array(shown), np.array(rest)) for concept, (shown, rest) in values.items()}


def record_of(concept: str, group: str, population: Population, frequency: float, images: int, random: Any) -> dict[str, Any]:
    """Return a record of resampled images, as clip-shift writes it."""
    shown = int((random.random(images) < frequency).sum())
    value = np.concatenate([random.choice(part, count) for part, count in zip(population, (shown, images - shown), strict=True)])
    moments = GroupMoments(1, 1)
    moments.add(np.zeros(images, np.int64), value[:, None])
    sample = moments.sample(0, 0)
    statistics = {"images": images} | {key: getattr(sample, key) for key in ("mean", "spread", "skewness", "kurtosis")}
    return {"concept": concept, "group": group, "units": [], "settings": {}, "model": {"sha256": ""}} | statistics


def alarms(populations: dict[str, Population], setting: Setting, each: bool, random: Any) -> tuple[int, int]:
    """Return the number of alarms and the number of comparisons of one run."""
    before: dict[str, dict[str, dict[str, Any]]] = {}
    now: list[dict[str, Any]] = []
    for concept, population in populations.items():
        before[concept] = {"": record_of(concept, "", population, setting.before, BASELINE, random)}
        groups = (record_of(concept, str(g), population, setting.now, setting.images, random) for g in range(GROUPS))
        now.extend(groups)
    add_drift(now, Baseline(before, ""), Alarm(SIGMAS, each, match=False))
    return sum(record["drift"]["alarm"] for record in now), len(now)


def row(model: str, populations: dict[str, Population], setting: Setting, each: bool) -> list[Any]:
    """Return the values of COLUMNS for one setting."""
    random = np.random.default_rng(20261121)
    runs = round(RUNS[each] * setting.part)
    counts = [alarms(populations, setting, each, random) for _ in range(runs)]
    comparisons = counts[0][1]
    beyond = sum(alarmed > 0 for alarmed, _ in counts) / runs
    expected = f"{chance_of_run(SIGMAS, comparisons, each):.3g}" if setting.before == setting.now else ""
    alarm_rate = sum(alarmed for alarmed, _ in counts) / (comparisons * runs)
    held_to = "comparison" if each else "run"
    return [model, *setting[:3], BASELINE, comparisons, held_to, runs, f"{beyond:.3g}", expected, f"{alarm_rate:.3g}"]


def main(paths: list[Path]) -> None:
    """Write one line per model, setting and kind of limit."""
    print("# make -C examples -f shift.mk")
    writer = csv.writer(sys.stdout, lineterminator="\n")
    writer.writerow(COLUMNS)
    for path in paths:
        model, populations = read(path)
        for setting in SETTINGS:
            for each in (False, True):
                writer.writerow(row(model, populations, setting, each))


if __name__ == "__main__":
    main([Path(name) for name in sys.argv[1:]])
