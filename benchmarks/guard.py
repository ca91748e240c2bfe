"""Compare a few ratios with the committed ones and warn if a ratio has doubled; the script always ends with 0.

    make bench-guard
    python benchmarks/guard.py --write      # saves the measured ratios as the new baseline

Each ratio is between the processor time of our code and of a reference measured in turns with it, as the median over some rounds.
Therefore neither a slow machine nor other processes on it change a ratio by a factor of two.
"""

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from machine import describe, processor, save
from photos import make_scenes
from plain import plain
from runs import Row, alternating, arguments, module_of, run, tool
from startup import CLICK, COUNT

MINUTES = 1
BASELINE = Path(__file__).parent / "baseline.json"
BOUND = 2.0
SCENES = 200
ROUNDS = 3
Pair = tuple[Callable[[], float], Callable[[], float]]
"""Functions that return the seconds of our code, and of the reference."""


def processor_seconds(work: Callable[[], object]) -> float:
    """Return the processor time of a function in this process."""
    start = time.process_time()
    work()
    return time.process_time() - start


def command(name: str, *words: object) -> None:
    """Run clip-NAME in this process and discard its output."""
    import importlib

    try:
        importlib.import_module(f"cliptools.cli.{name}").main([*map(str, words), "-q", "-o", os.devnull])
    except SystemExit as stop:
        if stop.code:
            raise


def pursuit_pair() -> Pair:
    """Return the pursuit of 64 units with 8 of 4,000 texts of width 256, and scikit-learn's."""
    import torch
    from sklearn.linear_model import orthogonal_mp

    from cliptools.analysis.pursuit import pursue

    draw = torch.Generator().manual_seed(0)
    r, t = (torch.nn.functional.normalize(torch.randn(n, 256, generator=draw), dim=1) for n in (64, 4000))
    pursue(r[:8], t, 2)
    X, y = t.numpy().T, r.numpy().T

    def scikit() -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)
            orthogonal_mp(X, y, n_nonzero_coefs=8, precompute=False)

    return partial(processor_seconds, lambda: pursue(r, t, 8)), partial(processor_seconds, scikit)


def pairs(folder: Path, scenes: int) -> dict[str, Pair]:
    """Return the functions of all ratios by title."""
    import torch

    from cliptools.models.load import load_model

    torch.set_num_threads(1)
    make_scenes(folder / "scenes", scenes)
    files = folder / "scenes" / "images"
    effects = partial(command, "effects", files)
    help_ = [sys.executable, "-m", "cliptools.cli.effects", "--help"]
    loop = partial(plain, files, scenes, 32, load_model("emoji-vit2", device="cpu"))
    command("effects", files, "--limit", 8)  # imports everything once
    pursuit = pursuit_pair()
    halves = [folder / f"half-{i}.safetensors" for i in (1, 2)]
    for i, half in enumerate(halves):
        tool("effects", files, "--shard", f"{i + 1}/2", "-q", "-o", half)
    merge = partial(command, "merge", *halves, "--images", files)
    return {
        "clip-effects beside encode_image, emoji-vit2": (
            partial(processor_seconds, effects),
            partial(processor_seconds, loop),
        ),
        "pursuit beside scikit-learn's": pursuit,
        "clip-merge of two halves beside clip-effects of both": (
            partial(processor_seconds, merge),
            partial(processor_seconds, effects),
        ),
        "clip-effects --help beside import click": (lambda: run(help_).cpu, lambda: run(CLICK).cpu),
    }


def measured(rounds: int, scenes: int) -> dict[str, float]:
    """Measure the ratios."""
    with tempfile.TemporaryDirectory() as name:
        ratios = {}
        for what, (ours, theirs) in pairs(Path(name), scenes).items():
            turns = alternating(rounds, {"ours": ours, "theirs": theirs})
            ratios[what] = round(statistics.median(a / b for a, b in zip(turns["ours"], turns["theirs"], strict=True)), 3)
    modules = [run([sys.executable, "-c", code]).stderr for code in (COUNT.format(module_of("effects")), _MODULES)]
    ratios["modules that clip-effects --help imports beside import click's"] = round(int(modules[0]) / int(modules[1]), 3)
    return ratios


_MODULES = "import sys, click; print(len(sys.modules), file=sys.stderr)"


def judged(now: dict[str, float], baseline: dict[str, float]) -> tuple[list[Row], list[str]]:
    """Return a row for each ratio, and the warnings."""
    rows, warning_lines = [], []
    for what, ratio in now.items():
        before = baseline.get(what)
        row: Row = {"what": what, "ratio": ratio, "baseline": before}
        if before is not None:
            row["beside it"] = round(ratio / before, 2)
            if ratio > BOUND * before:
                warning_lines.append(f"warning: {what}: {ratio}, more than {BOUND:g} times the baseline's {before}")
        rows.append(row)
    gone = [what for what in baseline if what not in now]
    return rows, warning_lines + [f"warning: {what}: no longer measured" for what in gone]


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--baseline", type=Path, default=BASELINE, metavar="FILE")
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--write", action="store_true", help="write the baseline")
    options: argparse.Namespace = parser.parse_args()
    now = measured(1, 50) if options.quick else measured(options.rounds, SCENES)
    if options.write:
        document: dict[str, Any] = {"processor": processor(), "ratios": now}
        options.baseline.write_text(json.dumps(document, indent=1) + "\n")
    baseline = json.loads(options.baseline.read_text())["ratios"]
    rows, warning_lines = judged(now, baseline)
    save(options.out, "guard", describe(), {"rounds": options.rounds}, {"ratios of processor time": rows})
    print("\n".join(warning_lines) or f"no ratio is more than {BOUND:g} times its baseline")


if __name__ == "__main__":
    main()
