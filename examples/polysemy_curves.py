"""Write the share of units whose inertia is below a threshold, from records of clip-top on stdin, one line per unit.

There is one column each for all pairs, all neurons, each neuron's strongest pair, and sets of ten random scenes for comparison.
"""

import json
import sys
from pathlib import Path

import numpy as np
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from cliptools.analysis.retrieval import embeddings, inertia
from cliptools.emoji.render import scenes_for
from cliptools.models.load import load_model

COLOURS = {"pairs": "#1d6f42", "neurons": "#b02a30", "strongest_pairs": "#1c1c1c", "random_scenes": "#b5b5b5"}
SETS, TEN, BATCH = 5000, 10, 50
THRESHOLDS = np.arange(1, 51) / 50


def random_sets(name: str, count: int, seed: int) -> np.ndarray:
    """Return the inertia of many sets of ten random scenes."""
    model, source = load_model(name, device="cpu"), scenes_for(name, count, seed)
    numbers = [list(range(start, min(start + BATCH, count))) for start in range(0, count, BATCH)]
    batches = ((some, torch.stack([model.transform(source.load(i)) for i in some])) for some in numbers)
    _, embedding = embeddings(model.clip.visual, batches)
    draw = np.random.default_rng(0)
    return inertia(embedding, torch.from_numpy(np.stack([draw.permutation(count)[:TEN] for _ in range(SETS)]))).numpy()


def main(table: Path, picture: Path, name: str, count: int, seed: int) -> None:
    """Write a table with one column per kind of units and a picture with one curve per kind."""
    records = [record for record in map(json.loads, sys.stdin) if record["inertia"] is not None]
    strongest: dict[int, dict] = {}
    for record in records:
        if record["units"] == "pairs" and record["norm"] > strongest.get(record["neuron"], {"norm": 0})["norm"]:
            strongest[record["neuron"]] = record
    values = {
        kind: np.array([record["inertia"] for record in records if record["units"] == kind]) for kind in ("pairs", "neurons")
    }
    values["strongest_pairs"] = np.array([record["inertia"] for record in strongest.values()])
    values["random_scenes"] = random_sets(name, count, seed)
    share = {kind: (values[kind][None] < THRESHOLDS[:, None]).mean(1) for kind in COLOURS}
    counts = ", ".join(f"{len(values[kind])} {kind} (median {np.median(values[kind]):.3f})" for kind in COLOURS)
    lines = [f"# make -C examples -f polysemy.mk: of {counts}", ",".join(["inertia_below", *COLOURS])]
    lines += [",".join([f"{t:.2f}", *(f"{share[kind][row]:.4f}" for kind in COLOURS)]) for row, t in enumerate(THRESHOLDS)]
    table.write_text("\n".join(lines) + "\n")
    figure = Figure(figsize=(6, 3.4), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    labels = (
        f"all {len(values['pairs']):,} pairs",
        f"{len(values['neurons'])} neurons",
        "each neuron's strongest pair",
        "ten random scenes",
    )
    for (kind, colour), label in zip(COLOURS.items(), labels, strict=True):
        axes.plot(THRESHOLDS, share[kind], color=colour, label=label)
    axes.set(xlabel="inertia of the ten scenes on which a unit acts most", ylabel="share below", xlim=(0.2, 0.85), ylim=(0, 1))
    axes.legend(frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(picture, dpi=110, metadata={"Software": None})


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3], int(sys.argv[4]), int(sys.argv[5]))
