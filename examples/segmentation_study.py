"""Why methods of clip-segment differ: thresholds chosen on scenes of their own, and what heat maps make of objects and ground.

python segmentation_study.py BUNDLE > results/segmentation-study.csv
"""

import csv
import itertools
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image

from cliptools.commands.segmenting.segmenter import METHODS, Segmenter, heat_maps, load_segmenter
from cliptools.ground.emoji.concepts import concepts
from cliptools.ground.emoji.render import render, to_uint8
from cliptools.ground.emoji.samples import label_pictures
from cliptools.ground.emoji.scenes import Recipe, Scene, draw_scene, single_scene
from cliptools.methods.segmentation.metrics import Fit, fit

SEED, SIZE, BATCH, STRIDE, TWO = 6_000_000, 128, 16, 3, 120
THRESHOLDS = np.linspace(0.05, 0.9, 18)
PATTERNED = ("stripes", "checks")  # grounds with edges, of which captions say nothing


class Look(NamedTuple):
    """One text in one scene."""

    heat: np.ndarray
    truth: np.ndarray
    labels: np.ndarray
    """All that the scene shows: 0 is the ground."""
    patterned: bool


def scenes(two: bool, half: int) -> list[Scene]:
    """Half 0, on which thresholds are chosen, or half 1, on which all is measured."""
    if two:
        return [draw_scene(SEED + half, i, Recipe(counts=(0, 1, 0, 0))) for i in range(TWO)]
    return [single_scene(SEED, half, concept) for concept in range(0, len(concepts()), STRIDE)]


def looks(made: Segmenter, drawn: list[Scene]) -> Iterator[Look]:
    """Each emoji of each scene, asked for by name, but those that others hide."""
    for start in range(0, len(drawn), BATCH):
        chunk = drawn[start : start + BATCH]
        canvas = render(chunk, SIZE)
        pictures = [Image.fromarray(pixels) for pixels in to_uint8(canvas.image)]
        labels = label_pictures(canvas.visible)
        slots = [[i for i in range(len(scene.sprites)) if (one == i + 1).any()] for scene, one in zip(chunk, labels, strict=True)]
        texts = [[concepts()[scene.sprites[i].concept].name for i in own] for scene, own in zip(chunk, slots, strict=True)]
        found = made.find(torch.stack([made.tensor(picture) for picture in pictures]), texts)
        for scene, label, own, each in zip(chunk, labels, slots, found, strict=True):
            for i, heat in zip(own, heat_maps(each, SIZE, SIZE), strict=True):
                yield Look(heat, label == i + 1, label, scene.ground.kind in PATTERNED)


def total(looked: list[Look], threshold: float) -> Fit:
    """All looks, masked at one threshold."""
    whole = Fit()
    for look in looked:
        mask = look.heat >= threshold
        both, either = int((mask & look.truth).sum()), int((mask | look.truth).sum())
        size = look.truth.size
        whole += Fit(np.array([size - either, both]), np.array([size - both, either]), size, 1)
    return whole


def precision(looked: list[Look]) -> float:
    """mAP as clip-segment --evaluate has it."""
    return float(np.mean([fit(look.heat, look.heat >= 0.5, look.truth).mean_precision for look in looked]))


def mean_over(looked: list[Look], part: str) -> float:
    """Heat, mean over pixels of the object, the ground, or another object; then over looks."""
    masks = {"object": lambda look: look.truth, "ground": lambda look: look.labels == 0}
    masks["other"] = lambda look: (look.labels > 0) & ~look.truth
    means = [look.heat[mask].mean() for look in looked if (mask := masks[part](look)).any()]
    return float(np.mean(means)) if means else float("nan")


def row(made: Segmenter, method: str, two: bool) -> dict[str, object]:
    """All figures of one method on one kind of scenes."""
    first, second = (list(looks(made, scenes(two, half))) for half in (0, 1))
    best = max(THRESHOLDS, key=lambda threshold: total(first, threshold).mean_iou)
    flat = [look for look in second if not look.patterned]
    figures = {
        "threshold": best,
        "miou": total(second, best).mean_iou,
        "accuracy": total(second, best).accuracy,
        "miou_half": total(second, 0.5).mean_iou,
        "miou_flat": total(flat, best).mean_iou,
        "map": precision(second),
        "map_flat": precision(flat),
        "map_patterned": precision([look for look in second if look.patterned]),
        "share": float(np.mean([look.truth.mean() for look in second])),
        "masked": float(np.mean([(look.heat >= 0.5).mean() for look in second])),
        "heat_object": mean_over(second, "object"),
        "heat_ground": mean_over(second, "ground"),
        "heat_ground_patterned": mean_over([look for look in second if look.patterned], "ground"),
        "heat_other": mean_over(second, "other"),
    }
    named = {"scenes": "two" if two else "one", "method": method, "masks": len(second)}
    return named | {key: f"{value:.3f}" for key, value in figures.items()}


def main(bundle: Path) -> None:
    """A line a method and kind of scenes, as they come."""
    options = {"templates": (), "thresholds": ("0.5",), "neurons": 200, "device": "cpu", "size": SIZE}
    options |= {"stride": None, "classes": None}
    lines: csv.DictWriter[str] | None = None
    for two, method in itertools.product((False, True), METHODS):
        found = row(load_segmenter(bundle, options | {"method": method}), method, two)
        if lines is None:
            lines = csv.DictWriter(sys.stdout, list(found), lineterminator="\n")
            lines.writeheader()
        lines.writerow(found)
        sys.stdout.flush()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
