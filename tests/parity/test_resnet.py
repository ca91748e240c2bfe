"""Paper 2: what the commands write of a small CLIP-ResNet, against the transcription's results."""

from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load

from . import maps, resnet, study
from .agreement import (
    CONCEPTS,
    CONDITIONED,
    EXACT,
    TEMPLATES,
    WRITTEN,
    characters_agree,
    effects_of,
    shift_agrees,
    words_agree,
)
from .reading import Bundle, Held, Pipeline, Within, records


@pytest.fixture(scope="module")
def expected() -> study.Results:
    return study.results("resnet")


def test_pairs_add_up(expected: study.Results) -> None:
    """Of the transcription itself: contributions of all pairs and their constant are M(I)."""
    assert expected["sum_of_pairs"] < 1e-12
    assert np.abs(expected["pairs.explained"] - 1).max() < 1e-12


def scalar_form(found: Bundle, expected: study.Results, held: Held, rows: np.ndarray) -> None:
    """Bundles of pairs hold a sign, a mean of s and norms; with w of the weights they are the directions and means."""
    W = study.given("resnet").W
    w = np.stack([resnet.w(W, n, h, study.HEADS["resnet"]) for n, h in np.array(study.PAIRS)[rows]])
    assert found["unit"].tolist() == [[study.LAST, *study.PAIRS[row]] for row in rows]
    largest = expected["pairs.top_norm"][rows, :1]
    r = found["sign"][:, None] * w / np.linalg.norm(w, axis=1, keepdims=True)
    held("pairs: r = sign · w / ‖w‖", r, expected["pairs.r"][rows, 0], EXACT)
    size = np.maximum(largest, np.abs(expected["pairs.b"][rows]).max(1, keepdims=True))
    held("pairs: b", found["mean_scalar"][:, None] * w, expected["pairs.b"][rows], EXACT, size)
    held("pairs: ‖φ − b‖", found["top_norm"], expected["pairs.top_norm"][rows], EXACT, size)
    held("pairs: τ", found["threshold"], expected["pairs.tau"][rows], EXACT, size[:, 0])


def test_pairs(resnet_pairs: Bundle, expected: study.Results, held: Held) -> None:
    scalar_form(resnet_pairs, expected, held, np.arange(len(study.PAIRS)))
    gaps = np.abs(np.diff(expected["pairs.top_norm"], axis=1)).min(1)
    clear = gaps > EXACT * expected["pairs.top_norm"][:, 0]
    assert clear.mean() > 0.9 and np.array_equal(resnet_pairs.top_images()[clear], expected["pairs.top_image"][clear])


def test_keeping_and_words(expected: study.Results, pipeline: Pipeline, place: Path, held: Held) -> None:
    effects = f"clip-effects measured {effects_of('resnet')} --keep {study.KEPT:.0%}"
    pipeline(f"{effects} | clip-decompose --m {study.M} --pool {study.POOL} > kept")
    kept = Bundle((place / "kept").read_bytes())
    assert expected["keep.margin"] > EXACT  # the last one kept is clearly stronger than the first one left out
    scalar_form(kept, expected, held, expected["keep.units"])
    held("--keep: rest_mean", kept["rest_mean"], expected["keep.rest_mean"], EXACT)
    words_agree(held, "pursuit of pairs", kept, expected, "pursuit", "gamma")
    held("pursuit of pairs: ‖r − r̂‖", kept["residual"], expected["pursuit.residual"], EXACT)


def test_neurons(resnet_neurons: Bundle, expected: study.Results, held: Held) -> None:
    found = resnet_neurons
    assert found["unit"][:, 1].tolist() == list(range(study.NEURONS["resnet"]))
    characters_agree(held, "neurons of a ResNet", found, expected, "neurons")
    held("neurons of a ResNet: two components", found["component"], expected["neurons.r"], CONDITIONED)
    held("neurons of a ResNet: explained by each", found["component_explained"], expected["neurons.explained"], EXACT)


def test_textspan(expected: study.Results, within: Within, place: Path, held: Held) -> None:
    heads = within("effects", "measured", "shown", *effects_of("resnet").split(), "--units", "heads", "-f", "safetensors", "-q")
    (place / "heads").write_bytes(heads)
    words = ("--method", "textspan", "--m", study.SPANNED, "--pool", study.POOL, "-f", "safetensors", "-q")
    words_agree(held, "TextSpan of a ResNet", Bundle(within("decompose", "heads", *words)), expected, "textspan", "share")


@pytest.mark.parametrize("method", ["pairs", "sink", "neurons", "heads", "maskclip", "values", "qqkk"])
def test_label_maps(method: str, resnet_pairs: Bundle, expected: study.Results, within: Within, held: Held) -> None:
    """One window: the logits of each token, bilinear to the image."""
    paths = [path.relative_to(study.FIXTURES / "images") for path in study.pictures("shown")[:2]]
    sink = "on" if method == "sink" else "off"
    asked = [*paths, "--classes", "classes.txt", *TEMPLATES]
    asked += [] if method in ("maskclip", "values", "qqkk") else ["--top-pairs", study.PAIRS_OF_CLASS, "--sink", sink]
    asked += ["--method", "pairs" if method == "sink" else method, "-f", "safetensors", "--bundle", "pairs"]
    data = within("segment", *asked, "-q")
    found = [value for _, value in sorted(load(data).items()) if value.ndim == 3]
    for logits, grids in zip(found, expected[f"logits.{method}"], strict=True):
        drawn = np.stack([maps.bilinear(grid, study.SIDE, study.SIDE) for grid in grids])
        held(f"logits of label maps: {method}", logits, drawn, EXACT)


def test_shift(resnet_pairs: Bundle, expected: study.Results, within: Within, held: Held) -> None:
    groups = [f"shown/{group}" for group in study.GROUPS]
    choice = ("--units-per-concept", study.CONCEPT_UNITS, "--choose", "overlap")
    more = (*choice, "--labels", "presence.csv", "--per-image", "-f", "jsonl", "-q")
    data = within("shift", *groups, *CONCEPTS, *TEMPLATES, *more, "--bundle", "pairs")
    shift_agrees(held, "shift by pairs", data, expected)


def test_inertia(resnet_pairs: Bundle, expected: study.Results, within: Within, held: Held) -> None:
    more = ("--images-per-unit", 1, "--sort", "index", "--head", 100000, "-f", "jsonl", "-q", "--bundle", "pairs")
    found = records(within("top", "measured", "--inertia-images", study.INERTIA_IMAGES, *more))
    held("inertia of pairs", [record["inertia"] for record in found], expected["inertia"], EXACT + WRITTEN)
