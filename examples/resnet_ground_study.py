"""Study why the softmax of pairs separates objects badly from background: it is flat, or the maps are bright on the background.

python resnet_ground_study.py BUNDLE METHOD... > results/resnet-ground.csv
"""

import csv
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from sklearn.metrics import roc_auc_score
from torch import Tensor

from cliptools.cli.run.bundle_output import read_neurons
from cliptools.emoji.export import label_pictures
from cliptools.emoji.render import render, to_uint8
from cliptools.emoji.scenes import Recipe, draw_scene
from cliptools.emoji.words import ZERO_SHOT_TEMPLATES
from cliptools.images.loader import fitted_tensor
from cliptools.images.segmentation.label_maps import BACKGROUND, IGNORED
from cliptools.models.load import LoadedModel, load_recorded_model
from cliptools.models.text_encoder import encode_texts
from cliptools.segmentation.masks import SHARPNESS, WindowAverage
from cliptools.segmentation.metrics import label_fit
from cliptools.segmentation.resnet_methods import PairUnits, class_texts, default_pairs, resnet_method
from cliptools.segmentation.towers import pool_tokens
from cliptools.text.emoji_concepts import concepts

SEED, COUNT, SIZE = 9_400_000, 120, 128
GRID = slice(2, None, 4)  # every fourth pixel either way
CHOOSING, MEASURED = slice(0, None, 2), slice(1, None, 2)  # scenes to choose scales and thresholds, and scenes to measure
SCALES = tuple(SHARPNESS * 2**power for power in range(-2, 7))
SPREAD = 1.7  # standard deviation of the heads' logits over classes, times the usual sharpness
QUANTILES = np.linspace(0.01, 0.99, 99)  # thresholds, for scores of any scale


def scenes(model: LoadedModel) -> tuple[Tensor, np.ndarray]:
    """Return scenes as clip-scenes --emoji 2-3 draws them, and labels at every fourth pixel: classes from 1 [scene, y, x]."""
    drawn = [draw_scene(SEED, index, Recipe(counts=(0.0, *Recipe().counts[1:3], 0.0))) for index in range(COUNT)]
    canvas = render(drawn, SIZE)
    pictures = [Image.fromarray(pixels) for pixels in to_uint8(canvas.image)]
    names = [np.array([BACKGROUND, *(sprite.concept + 1 for sprite in scene.sprites)]) for scene in drawn]
    truth = [own[slots[GRID, GRID]] for own, slots in zip(names, label_pictures(canvas.visible), strict=True)]
    return torch.stack([fitted_tensor(one, SIZE, (1, 1), model.preprocessing) for one in pictures]), np.stack(truth)


def at_pixels(maps: Tensor) -> Tensor:
    """Return maps of tokens [map, row, column] at every fourth pixel, interpolated as in clip-segment."""
    return WindowAverage(maps[None], ([0], [0]), (SIZE, SIZE), (SIZE, SIZE)).at(SIZE, SIZE)[:, GRID, GRID]


def miou(labels: np.ndarray, truth: np.ndarray) -> float:
    """Return the mean IoU over the classes of the ground truth."""
    return label_fit(labels.ravel(), truth.ravel(), len(concepts()) + 1).mean_iou_true


def with_ground(labels: np.ndarray, score: np.ndarray, truth: np.ndarray) -> list[float]:
    """Return mIoU on the CHOOSING and the MEASURED scenes.

    A pixel is background if its score is below the threshold that is best on the CHOOSING scenes.
    """
    cuts, parts = np.quantile(score[CHOOSING], QUANTILES), (CHOOSING, MEASURED)
    fits = [[miou(np.where(score[part] < cut, BACKGROUND, labels[part]), truth[part]) for part in parts] for cut in cuts]
    return max(fits, key=lambda fit: fit[0])


def separation(score: np.ndarray, truth: np.ndarray) -> dict[str, float]:
    """Return the AUC of a score for objects against background, and its means on both."""
    thing, score = truth[MEASURED] != BACKGROUND, score[MEASURED]
    return {"auc": roc_auc_score(thing.ravel(), score.ravel()), "thing": score[thing].mean(), "ground": score[~thing].mean()}


def rows(L: Tensor, truth: np.ndarray, activation: np.ndarray) -> Iterator[dict[str, str | float]]:
    """Yield the rows of all scores of one method's logits [scene, class, y, x]."""
    labels, top, sigma = L.argmax(1).numpy() + 1, L.amax(1).numpy(), L.std(1).numpy()
    yield {"score": "ground left out", "miou": miou(labels[MEASURED], np.where(truth == BACKGROUND, IGNORED, truth)[MEASURED])}
    yield {"score": "spread", "scale": SHARPNESS} | separation(SHARPNESS * sigma, truth)
    equal = SPREAD / float(sigma[CHOOSING].mean())
    by_scale = {scale: torch.stack([(scale * one).softmax(0).amax(0) for one in L]).numpy() for scale in (*SCALES, equal)}
    best = max(SCALES, key=lambda scale: with_ground(labels, by_scale[scale], truth)[0])
    for name, scale in {"": SHARPNESS, ", equal spread": equal, ", best scale": best}.items():
        row = {"score": f"probability{name}", "scale": scale, "miou": with_ground(labels, by_scale[scale], truth)[1]}
        yield row | separation(by_scale[scale], truth)
    scores = {"logit": top, "logit by activation": top / activation, "deviations": (top - L.mean(1).numpy()) / sigma}
    for name, score in scores.items():
        yield {"score": name, "miou": with_ground(labels, score, truth)[1]} | separation(score, truth)


@torch.inference_mode()
def main(path: Path, methods: list[str]) -> None:
    """Write the scores of activations alone, and then the scores of each method."""
    bundle = read_neurons(path)
    model = load_recorded_model(bundle.header.model, "cpu")
    visual, r = model.clip.visual, torch.from_numpy(bundle["direction"])
    t = class_texts(encode_texts(model, [concept.name for concept in concepts()], ZERO_SHOT_TEMPLATES))
    pairs = PairUnits(r, torch.from_numpy(bundle["unit"]), default_pairs(len(r)))
    images, truth = scenes(model)
    lines = csv.DictWriter(sys.stdout, ["method", "score", "scale", "auc", "thing", "ground", "miou"], lineterminator="\n")
    lines.writeheader()

    def write(method: str, row: dict[str, str | float]) -> None:
        lines.writerow({"method": method} | {key: x if isinstance(x, str) else f"{x:.4g}" for key, x in row.items()})

    seen = [pool_tokens(visual, image[None]) for image in images]
    level = {"mean": [one.Z[0].mean(-1) for one in seen], "norm": [one.Z[0].norm(dim=-1) for one in seen]}
    activation = {name: at_pixels(torch.stack(maps).unflatten(1, seen[0].grid)).numpy() for name, maps in level.items()}
    for name, score in activation.items():
        write("activation", {"score": name} | separation(score, truth))
    for method in methods:
        look = resnet_method(method, visual, t, pairs)
        L = torch.stack([at_pixels(look(image[None]).logits[0]) for image in images])
        for row in rows(L, truth, activation["mean"]):
            write(method, row)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
