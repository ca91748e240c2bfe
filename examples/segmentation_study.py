"""Study the differences of clip-segment's methods, with thresholds chosen on separate scenes and the heat on parts of a scene.

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
PATTERNED = ("stripes", "checks")  # backgrounds with edges, which captions do not mention


class Look(NamedTuple):
    """One text in one scene."""

    heat: np.ndarray
    truth: np.ndarray
    labels: np.ndarray
    """All emoji of the scene by number; 0 is the background."""
    patterned: bool


def scenes(two: bool, half: int) -> list[Scene]:
    """Return half 0 of the scenes, for choosing thresholds, or half 1, for measuring."""
    if two:
        return [draw_scene(SEED + half, i, Recipe(counts=(0, 1, 0, 0))) for i in range(TWO)]
    return [single_scene(SEED, half, concept) for concept in range(0, len(concepts()), STRIDE)]


def looks(model: LoadedModel, method: Method, drawn: list[Scene]) -> Iterator[Look]:
    """Yield each visible emoji of each scene with the heat map of its name."""
    from cliptools.segmentation.towers import on_grid  # it imports torchvision, which cliptools.unit_effects prepares

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
    """Return the pooled fit of all masks at one threshold."""
    whole = Fit()
    for look in looked:
        mask = look.heat >= threshold
        both, either = int((mask & look.truth).sum()), int((mask | look.truth).sum())
        size = look.truth.size
        whole += Fit(np.array([size - either, both]), np.array([size - both, either]), size, 1)
    return whole


def precision(looked: list[Look]) -> float:
    """Return mAP as defined in clip-segment-eval."""
    return float(np.mean([fit(look.heat, look.heat >= 0.5, look.truth).mean_precision for look in looked]))


def around(labels: np.ndarray) -> np.ndarray:
    """Return a mask of the pixels of objects and of pixels at most one patch away."""
    shown = torch.from_numpy(labels > 0)[None].float()
    return torch.nn.functional.max_pool2d(shown, 2 * PATCH + 1, 1, PATCH)[0].numpy() > 0


def mean_over(looked: list[Look], part: str) -> float:
    """Return the mean heat over the pixels of a part of the scene, then over looks.

    The part is the object, the background (all of it, near an object, or far from objects), or another object.
    """
    masks = {"object": lambda look: look.truth, "ground": lambda look: look.labels == 0}
    masks |= {"near": lambda look: around(look.labels) & (look.labels == 0), "far": lambda look: ~around(look.labels)}
    masks["other"] = lambda look: (look.labels > 0) & ~look.truth
    means = [look.heat[mask].mean() for look in looked if (mask := masks[part](look)).any()]
    return float(np.mean(means)) if means else float("nan")


def row(model: LoadedModel, name: str, method: Method, two: bool) -> dict[str, object]:
    """Return all figures of one method on one kind of scenes."""
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
    """Write one line per method and kind of scenes."""
    with path.open("rb") as stream:
        bundle = read_bundle(stream, str(path))
    model = load_recorded_model(bundle.header.model, "cpu")
    visual, unit, r = model.clip.visual, torch.from_numpy(bundle["unit"]), torch.from_numpy(bundle["direction"])
    methods = {name: neuron_method(visual, unit, r, NEURONS, name == "signed") for name in ("neurons", "signed")}
    methods["effects"] = effect_method(visual, unit, r, NEURONS)
    methods |= {name: baseline(name, visual) for name in (*ATTENTION_MAPS, *GRADIENT_MAPS)}
    lines: csv.DictWriter[str] | None = None
    for two, (name, method) in itertools.product((False, True), methods.items()):
        figures = row(model, name, method, two)
        if lines is None:
            lines = csv.DictWriter(sys.stdout, list(figures), lineterminator="\n")
            lines.writeheader()
        lines.writerow(figures)
        sys.stdout.flush()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
