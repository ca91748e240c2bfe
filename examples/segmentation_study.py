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

from cliptools.emoji.export import label_pictures
from cliptools.emoji.render import render, to_uint8
from cliptools.emoji.scenes import Recipe, Scene, draw_scene, single_scene
from cliptools.images.loader import fitted_tensor
from cliptools.io.bundle import read_bundle
from cliptools.models.load import LoadedModel, load_recorded_model
from cliptools.models.text_encoder import encode_texts
from cliptools.segmentation.masks import at_size, min_max
from cliptools.segmentation.metrics import Fit, fit
from cliptools.segmentation.vit_methods import ATTENTION_MAPS, GRADIENT_MAPS, Method, baseline, effect_method, neuron_method
from cliptools.text.emoji_concepts import concepts

SEED, SIZE, BATCH, STRIDE, TWO, NEURONS, PATCH = 6_000_000, 128, 16, 3, 120, 200, 8
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


def looks(model: LoadedModel, method: Method, drawn: list[Scene]) -> Iterator[Look]:
    """Each emoji of each scene, asked for by name, but those that others hide."""
    from cliptools.segmentation.towers import on_grid  # once cliptools.effects has seen to torchvision, which it imports

    side = SIZE // model.clip.visual.patch_size[0]
    for start in range(0, len(drawn), BATCH):
        chunk = drawn[start : start + BATCH]
        canvas = render(chunk, SIZE)
        pictures = [Image.fromarray(pixels) for pixels in to_uint8(canvas.image)]
        images = [fitted_tensor(one, SIZE, model.clip.visual.patch_size, model.preprocessing) for one in pictures]
        names = [[concepts()[sprite.concept].name for sprite in scene.sprites] for scene in chunk]
        t = torch.stack([encode_texts(model, own) for own in names])  # (b, text, d)
        with on_grid(model.clip.visual, side, side):
            scores = method(torch.stack(images), t).scores  # (b, text, row, column)
        heat = min_max(at_size(scores.flatten(0, 1), SIZE, SIZE)).unflatten(0, scores.shape[:2]).numpy()
        for scene, label, maps in zip(chunk, label_pictures(canvas.visible), heat, strict=True):
            for i, one in enumerate(maps):
                if (truth := label == i + 1).any():
                    yield Look(one, truth, label, scene.ground.kind in PATTERNED)


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
    """mAP as clip-segment-eval has it."""
    return float(np.mean([fit(look.heat, look.heat >= 0.5, look.truth).mean_precision for look in looked]))


def around(labels: np.ndarray) -> np.ndarray:
    """Pixels of objects, and those at most a patch away."""
    shown = torch.from_numpy(labels > 0)[None].float()
    return torch.nn.functional.max_pool2d(shown, 2 * PATCH + 1, 1, PATCH)[0].numpy() > 0


def mean_over(looked: list[Look], part: str) -> float:
    """Heat, mean over pixels of the object, the ground (near an object or not), or another object; then over looks."""
    masks = {"object": lambda look: look.truth, "ground": lambda look: look.labels == 0}
    masks |= {"near": lambda look: around(look.labels) & (look.labels == 0), "far": lambda look: ~around(look.labels)}
    masks["other"] = lambda look: (look.labels > 0) & ~look.truth
    means = [look.heat[mask].mean() for look in looked if (mask := masks[part](look)).any()]
    return float(np.mean(means)) if means else float("nan")


def row(model: LoadedModel, name: str, method: Method, two: bool) -> dict[str, object]:
    """All figures of one method on one kind of scenes."""
    first, second = (list(looks(model, method, scenes(two, half))) for half in (0, 1))
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
        "heat_ground_near": mean_over(second, "near"),
        "heat_ground_far": mean_over(second, "far"),
        "heat_other": mean_over(second, "other"),
    }
    named = {"scenes": "two" if two else "one", "method": name, "masks": len(second)}
    return named | {key: f"{value:.3f}" for key, value in figures.items()}


def main(path: Path) -> None:
    """A line a method and kind of scenes, as they come."""
    with path.open("rb") as stream:
        bundle = read_bundle(stream, str(path))
    model = load_recorded_model(bundle.header.model, "cpu")
    visual, unit, r = model.clip.visual, torch.from_numpy(bundle["unit"]), torch.from_numpy(bundle["direction"])
    methods = {name: neuron_method(visual, unit, r, NEURONS, name == "signed") for name in ("neurons", "signed")}
    methods["effects"] = effect_method(visual, unit, r, NEURONS)
    methods |= {name: baseline(name, visual) for name in (*ATTENTION_MAPS, *GRADIENT_MAPS)}
    lines: csv.DictWriter[str] | None = None
    for two, (name, method) in itertools.product((False, True), methods.items()):
        found = row(model, name, method, two)
        if lines is None:
            lines = csv.DictWriter(sys.stdout, list(found), lineterminator="\n")
            lines.writeheader()
        lines.writerow(found)
        sys.stdout.flush()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
