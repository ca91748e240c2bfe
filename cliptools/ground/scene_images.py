"""Rendered emoji scenes as a source of images: what the embedded models look at when no photographs are given."""

import json

import numpy as np
from jaxtyping import Int64
from PIL import Image

from cliptools.ground.emoji.concepts import concepts
from cliptools.ground.emoji.render import render, to_uint8
from cliptools.ground.emoji.scenes import Recipe, Scene, draw_scene, single_scene

SCENE_SIZE = 64  # pixels a side, unless a model wants them larger


def scene_key(index: int) -> str:
    """The name of scene number `index`, here and in archives."""
    return f"scene-{index:06d}"


def scenes_for(model: str, count: int, seed: int) -> "SceneSource":
    """Scenes as large as an embedded model takes them."""
    return SceneSource(count, seed, size=_size(model))


def single_scenes_for(model: str, count: int, seed: int) -> "SingleSceneSource":
    """The same of one emoji each."""
    return SingleSceneSource(count, seed, _size(model))


def _size(model: str) -> int:
    from cliptools.ground.model_names import EMBEDDED_DIR  # here, as those who only draw need no torch

    config = json.loads((EMBEDDED_DIR / model / "open_clip_config.json").read_text())
    return int(config["model_cfg"]["vision_cfg"]["image_size"])


class SceneSource:
    """An ImageSource that draws image number i anew whenever it is asked for."""

    def __init__(self, count: int, seed: int, recipe: Recipe = Recipe(), size: int = SCENE_SIZE) -> None:
        self.names: list[str] = [scene_key(i) for i in range(count)]
        self.seed, self.recipe, self.size = seed, recipe, size
        render([self.scene(0)], size)  # fills the cache of artwork before threads ask for it

    def __len__(self) -> int:
        return len(self.names)

    def scene(self, index: int) -> Scene:
        """What image number `index` shows."""
        return draw_scene(self.seed, index, self.recipe)

    def drawn(self, index: int) -> list[str]:
        """Names of the concepts that image number `index` shows, from back to front."""
        return [concepts()[sprite.concept].name for sprite in self.scene(index).sprites]

    def load(self, index: int) -> Image.Image:
        """The picture; never fails."""
        pixels: np.ndarray = to_uint8(render([self.scene(index)], self.size).image[0])  # (y, x, 3)
        return Image.fromarray(pixels)


class SingleSceneSource(SceneSource):
    """Scenes of one emoji each, those of clip-scenes --single: every concept once a turn, in an order drawn for it."""

    def __init__(self, count: int, seed: int, size: int = SCENE_SIZE) -> None:
        everything = len(concepts())
        turns = -(-count // everything)
        orders = [np.random.default_rng((seed, turn)).permutation(everything) for turn in range(turns)]
        self.concept: Int64[np.ndarray, image] = np.concatenate(orders)[:count]
        super().__init__(count, seed, size=size)

    def scene(self, index: int) -> Scene:
        """What image number `index` shows."""
        return single_scene(self.seed, index // len(concepts()), int(self.concept[index]))
