"""Drawing scenes: a batch of descriptions in, pictures and exact instance masks out, on any device.

Rendered emoji scenes as a source of images: what the embedded models look at when no photographs are given.
"""

import functools
import json
import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from PIL import Image
from torch import Tensor

from cliptools.emoji.scenes import GROUNDS, MOST_EMOJI, NOISE_CELLS, Ground, Recipe, Scene, draw_scene, single_scene
from cliptools.text.emoji_concepts import SPRITE, concepts, sprites

LEVELS = 3  # the artwork at 64, 32 and 16 pixels: small emoji are drawn from small sprites, else they alias


class Canvas(NamedTuple):
    """A batch of drawn scenes."""

    image: Float[Tensor, "b 3 y x"]
    """RGB in [0, 1]."""
    visible: Float[Tensor, "b slot y x"]
    """How much of each pixel shows the emoji of that slot (in the scene's order), in [0, 1]."""


def render(scenes: Sequence[Scene], size: int, device: torch.device | str = "cpu") -> Canvas:
    """Draw every scene on a square canvas of `size` pixels."""
    image = _grounds([s.ground for s in scenes], size, device)  # (b, 3, y, x)
    slots = max(len(s.sprites) for s in scenes)
    visible = image.new_zeros(len(scenes), MOST_EMOJI, size, size)
    for slot in range(slots):
        which = [b for b, scene in enumerate(scenes) if slot < len(scene.sprites)]
        layer = _drawn([scenes[b].sprites[slot] for b in which], size, device)  # (n, 4, y, x), premultiplied
        alpha = layer[:, 3:]
        image[which] = layer[:, :3] + image[which] * (1 - alpha)
        visible[which] = visible[which] * (1 - alpha)  # what is drawn later covers what was drawn before
        visible[which, slot] = alpha[:, 0]
    return Canvas(image.clamp(0, 1), visible)


def to_uint8(image: Float[Tensor, "*b 3 y x"]) -> np.ndarray:
    """Pixels as pictures are stored: [..., y, x, 3] in 0…255."""
    return (image.movedim(-3, -1) * 255).round().to(torch.uint8).cpu().numpy()


@functools.cache
def _artwork(device: str) -> tuple[Tensor, ...]:
    """The sprites at each level, [style, concept, 4, side, side] in [0, 1]."""
    full = torch.from_numpy(sprites()).to(device).float() / 255
    return tuple(F.avg_pool2d(full.flatten(0, 1), 2**level).unflatten(0, full.shape[:2]) for level in range(LEVELS))


def _drawn(placed: Sequence, size: int, device: torch.device | str) -> Float[Tensor, "n 4 y x"]:
    """Each sprite alone on a transparent canvas."""
    centre = torch.tensor([[s.x, s.y] for s in placed], device=device) * 2 - 1
    side = torch.tensor([s.size for s in placed], device=device)
    angle = torch.tensor([s.angle for s in placed], device=device)
    flip = torch.tensor([-1.0 if s.mirror else 1.0 for s in placed], device=device)
    cos, sin = torch.cos(angle) / side, torch.sin(angle) / side
    turn = torch.stack([torch.stack([flip * cos, flip * sin], -1), torch.stack([-sin, cos], -1)], 1)  # canvas -> sprite
    theta = torch.cat([turn, -(turn @ centre[..., None])], -1)  # (n, 2, 3)
    grid = F.affine_grid(theta, [len(placed), 4, size, size], align_corners=False)
    style = torch.tensor([s.style for s in placed], device=device)
    concept = torch.tensor([s.concept for s in placed], device=device)
    level = (SPRITE / (side * size)).clamp(min=1).log2().round().long().clamp(max=LEVELS - 1)
    out = grid.new_zeros(len(placed), 4, size, size)
    for number, art in enumerate(_artwork(str(device))):
        of = (level == number).nonzero()[:, 0]
        if len(of):
            out[of] = F.grid_sample(art[style[of], concept[of]], grid[of], align_corners=False)
    return out


def _grounds(grounds: Sequence[Ground], size: int, device: torch.device | str) -> Float[Tensor, "b 3 y x"]:
    """The plain, graded, striped, chequered or clouded picture behind the emoji."""
    axis = (torch.arange(size, device=device) + 0.5) / size
    y, x = torch.meshgrid(axis, axis, indexing="ij")
    colours = torch.tensor([g.colours for g in grounds], device=device, dtype=torch.float32)  # (b, 2, 3)
    angle = torch.tensor([g.angle for g in grounds], device=device)[:, None, None]
    period = torch.tensor([g.period for g in grounds], device=device)[:, None, None]
    along = torch.cos(angle) * x + torch.sin(angle) * y  # (b, y, x)
    across = -torch.sin(angle) * x + torch.cos(angle) * y
    wave = torch.sin(2 * math.pi * along / period)
    clouds = torch.from_numpy(
        np.stack([np.random.default_rng(g.seed).random((1, NOISE_CELLS, NOISE_CELLS), np.float32) for g in grounds])
    ).to(device)
    mixes = {
        "plain": torch.zeros_like(along),
        "gradient": ((along + 1) / 2).clamp(0, 1),
        "stripes": (wave > 0).float(),
        "checks": (wave * torch.sin(2 * math.pi * across / period) > 0).float(),
        "clouds": F.interpolate(clouds, size=(size, size), mode="bilinear", align_corners=False)[:, 0],
    }
    kind = torch.tensor([GROUNDS.index(g.kind) for g in grounds], device=device)
    mix = torch.stack([mixes[k] for k in GROUNDS])[kind, torch.arange(len(grounds), device=device)][:, None]  # (b, 1, y, x)
    return colours[:, 0, :, None, None] * (1 - mix) + colours[:, 1, :, None, None] * mix


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
    from cliptools.embedded_models import EMBEDDED_DIR  # here, as those who only draw need no torch

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
