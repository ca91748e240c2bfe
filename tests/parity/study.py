"""What is asked of both sides: the small models, images, texts and settings."""

import json
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image
from safetensors.numpy import load_file

from . import texts, vit
from .vit import Array, Weights

FIXTURES = Path(__file__).parent / "fixtures"
POOL = FIXTURES / "pool.txt"
MEASURED, SHOWN = 16, 12  # images for the statistics, and others to which these are applied: none of them lies on a threshold
GROUPS = ("early", "late")  # halves of those shown
SIDE = 96
TEXT_TOWER = {"context_length": 16, "vocab_size": 49408, "width": 24, "heads": texts.HEADS, "layers": 2}
VIT = {
    "embed_dim": 20,
    "quick_gelu": True,
    "vision_cfg": {"image_size": SIDE, "patch_size": 24, "width": 24, "layers": 3, "head_width": 8, "mlp_ratio": 1.5},
    "text_cfg": TEXT_TOWER,
}
RESNET = {
    "embed_dim": 20,
    "quick_gelu": False,
    "vision_cfg": {"image_size": SIDE, "layers": [1, 1, 1, 1], "width": 6, "head_width": 48},
    "text_cfg": TEXT_TOWER,
}
SCALED = VIT | {"quick_gelu": False, "vision_cfg": VIT["vision_cfg"] | {"ls_init_value": 0.5}}  # LayerScale, and GELU
MODELS = {"vit": VIT, "scaled": SCALED, "resnet": RESNET}
HEADS = {"vit": 3, "resnet": 4}
NEURONS = {"vit": 36, "resnet": 192}  # of a layer
TOP, QUANTILE, ABOVE = 6, 0.75, 4  # a quarter of 16 images reach tau
M = 5  # texts of each pursuit
SPANNED = 4  # texts of each head
CLASSES = ("cat", "truck", "frog", "ship", "violin", "snow", "pizza", "bridge")
TEMPLATES = ("{}.", "my {}")
DEPICT, PREDICT = "truck", "cat"
NEAR = 0.7
SPURIOUS_NEURONS, SPURIOUS_WORDS = 20, 8
CONCEPT_WORDS = 6
SEGMENTED, MAP_NEURONS = ("frog", "snow"), 10
CONCEPTS, CONCEPT_UNITS = ("pizza", "snow"), 5
INERTIA_IMAGES = 5
KEPT = 0.2
WORDS = (3, M)  # texts of reconstructions
PAIRS_OF_CLASS = 100
SECOND, FIRST, INDIRECT, SPAN = range(0, 2), range(0, 3), range(1, 3), range(1, 3)  # layers of the ViT
PAIRS = [(n, h) for n in range(NEURONS["resnet"]) for h in range(HEADS["resnet"])]
LAST = 4  # the number of the block that the pooling reads
MEAN, DEVIATION = np.array([0.48145466, 0.4578275, 0.40821073]), np.array([0.26862954, 0.26130258, 0.27577711])

Results = dict[str, Array]


class Given(NamedTuple):
    """All that the transcription reads."""

    W: Weights
    act: vit.Activation
    measured: Array  # [image, 3, y, x]
    shown: Array
    tokens: dict[str, list[int]]
    pool: tuple[str, ...]


def token_embedding() -> Array:
    """Two million numbers that need not be kept: of RandomState, whose stream NumPy has promised not to change."""
    size = (TEXT_TOWER["vocab_size"], TEXT_TOWER["width"])
    return (0.5 * np.random.RandomState(11).standard_normal(size)).astype(np.float16)


def weights(name: str) -> dict[str, Array]:
    """Every tensor of a model, in float32."""
    kept = load_file(FIXTURES / f"{name}.safetensors") | {"token_embedding.weight": token_embedding()}
    return {key: value.astype(np.float32) if value.dtype == np.float16 else value for key, value in kept.items()}


def pictures(folder: str) -> list[Path]:
    return sorted((FIXTURES / "images" / folder).rglob("*.png"))


def pixels(path: Path) -> Array:
    """What CLIP makes of an image that has its size already. [3, y, x]"""
    with Image.open(path) as image:
        rgb = np.asarray(image.convert("RGB"), dtype=np.float64) / 255
    return ((rgb - MEAN) / DEVIATION).transpose(2, 0, 1)


def pool() -> tuple[str, ...]:
    return tuple(POOL.read_text().splitlines())


def given(name: str) -> Given:
    W = {key: value.astype(np.float64) for key, value in weights(name).items()}
    images = {folder: np.stack([pixels(path) for path in pictures(folder)]) for folder in ("measured", "shown")}
    tokens = json.loads((FIXTURES / "tokens.json").read_text())
    act = vit.quick_gelu if MODELS[name]["quick_gelu"] else vit.gelu
    return Given(W, act, images["measured"], images["shown"], tokens, pool())


def results(name: str) -> Results:
    return dict(load_file(FIXTURES / f"{name}-results.safetensors"))


def presence() -> Array:
    """What the labels of clip-shift say: made up, [concept, image]."""
    return np.array([[i % 2 for i in range(SHOWN)], [int(i % 3 == 0) for i in range(SHOWN)]])


def units_of(layers: range) -> list[tuple[int, int]]:
    return [(layer, n) for layer in layers for n in range(NEURONS["vit"])]
