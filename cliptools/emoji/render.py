"""Rendering of emoji scenes.

`render` draws a batch of scenes as pictures with exact instance masks, on any device. `SceneSource` is an ImageSource of rendered
scenes, the default images of the embedded models.
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

from cliptools.embedded_models import EMBEDDED_DIR
from cliptools.emoji.looks import BLENDED, Look, painted
from cliptools.emoji.scenes import GROUNDS, MOST_EMOJI, NOISE_CELLS, Ground, Recipe, Scene, Sprite, draw_scene, single_scene
from cliptools.emoji.writing import write
from cliptools.text.emoji_concepts import SPRITE, concepts, sprites

LEVELS = 3  # the artwork at 64, 32 and 16 pixels: small emoji are drawn from small sprites to avoid aliasing


class Canvas(NamedTuple):
    """A batch of drawn scenes."""

    image: Float[Tensor, "b 3 y x"]
    """RGB in [0, 1]."""
    visible: Float[Tensor, "b slot y x"]
    """Share of each pixel that shows the emoji of that slot (in the scene's order), in [0, 1]."""
    word: Float[Tensor, "b y x"]
    """Share of each pixel that lies in the rectangle of the written word, in [0, 1]."""


def render(scenes: Sequence[Scene], size: int, device: torch.device | str = "cpu") -> Canvas:
    """Draw every scene on a square canvas of `size` pixels."""
    image = _backgrounds([s.ground for s in scenes], size, device)  # (b, 3, y, x)
    slots = max(len(s.sprites) for s in scenes)
    visible = image.new_zeros(len(scenes), MOST_EMOJI, size, size)
    for slot in range(slots):
        rows = [b for b, scene in enumerate(scenes) if slot < len(scene.sprites)]
        layer = _draw_sprites([scenes[b].sprites[slot] for b in rows], size, device)  # (n, 4, y, x), premultiplied
        alpha = layer[:, 3:]
        image[rows] = layer[:, :3] + image[rows] * (1 - alpha)
        visible[rows] = visible[rows] * (1 - alpha)  # later emoji cover earlier ones
        visible[rows, slot] = alpha[:, 0]
    word = image.new_zeros(len(scenes), size, size)
    if rows := [b for b, scene in enumerate(scenes) if scene.writing]:
        image[rows], covered, word[rows] = write(image[rows], [writing for b in rows if (writing := scenes[b].writing)])
        visible[rows] = visible[rows] * (1 - covered[:, None])
    return Canvas(image.clamp(0, 1), visible, word)


def to_uint8(image: Float[Tensor, "*b 3 y x"]) -> np.ndarray:
    """Convert pixels to the form in which pictures are stored: [..., y, x, 3] in 0…255."""
    return (image.movedim(-3, -1) * 255).round().to(torch.uint8).cpu().numpy()


@functools.cache
def _artwork(device: str) -> tuple[Tensor, ...]:
    """Return the sprites at each level, [style, concept, 4, side, side] in [0, 1]."""
    artwork = torch.from_numpy(sprites()).to(device).float() / 255
    return tuple(F.avg_pool2d(artwork.flatten(0, 1), 2**level).unflatten(0, artwork.shape[:2]) for level in range(LEVELS))


def _draw_sprites(sprite_list: Sequence[Sprite], size: int, device: torch.device | str) -> Float[Tensor, "n 4 y x"]:
    """Draw each sprite alone on a transparent canvas."""
    centre = torch.tensor([[s.x, s.y] for s in sprite_list], device=device) * 2 - 1
    side = torch.tensor([s.size for s in sprite_list], device=device)
    angle = torch.tensor([s.angle for s in sprite_list], device=device)
    flip = torch.tensor([-1.0 if s.mirror else 1.0 for s in sprite_list], device=device)
    cos, sin = torch.cos(angle) / side, torch.sin(angle) / side
    turn = torch.stack([torch.stack([flip * cos, flip * sin], -1), torch.stack([-sin, cos], -1)], 1)  # canvas -> sprite
    varied = [n for n, s in enumerate(sprite_list) if s.look != Look()]
    if varied:
        stretch = torch.tensor([s.look.stretch for s in sprite_list], device=device).exp()
        turn = turn * torch.stack([stretch, 1 / stretch], -1)[..., None]
    theta = torch.cat([turn, -(turn @ centre[..., None])], -1)  # (n, 2, 3)
    grid = F.affine_grid(theta, [len(sprite_list), 4, size, size], align_corners=False)
    style = torch.tensor([s.style for s in sprite_list], device=device)
    concept = torch.tensor([s.concept for s in sprite_list], device=device)
    level = (SPRITE / (side * size)).clamp(min=1).log2().round().long().clamp(max=LEVELS - 1)
    out = _sampled(style, concept, level, grid)
    if blended := [n for n in varied if sprite_list[n].look.way == BLENDED]:
        other = torch.tensor([sprite_list[n].look.other for n in blended], device=device)
        share = torch.tensor([sprite_list[n].look.share for n in blended], device=device)[:, None, None, None]
        second = _sampled(other, concept[blended], level[blended], grid[blended])
        out[blended] = (1 - share) * out[blended] + share * second
    if varied:
        out[varied] = painted(out[varied], [sprite_list[n].look for n in varied])
    return out


def _sampled(
    style: Int64[Tensor, " n"], concept: Int64[Tensor, " n"], level: Int64[Tensor, " n"], grid: Float[Tensor, "n y x 2"]
) -> Float[Tensor, "n 4 y x"]:
    """Sample the artwork of each style and concept, at a level of detail, on the grid."""
    out = grid.new_zeros(len(style), 4, *grid.shape[1:3])
    for number, art in enumerate(_artwork(str(grid.device))):
        rows = (level == number).nonzero()[:, 0]
        if len(rows):
            out[rows] = F.grid_sample(art[style[rows], concept[rows]], grid[rows], align_corners=False)
    return out


def _backgrounds(backgrounds: Sequence[Ground], size: int, device: torch.device | str) -> Float[Tensor, "b 3 y x"]:
    """Draw the plain, graded, striped, chequered or clouded background."""
    axis = (torch.arange(size, device=device) + 0.5) / size
    y, x = torch.meshgrid(axis, axis, indexing="ij")
    colours = torch.tensor([g.colours for g in backgrounds], device=device, dtype=torch.float32)  # (b, 2, 3)
    angle = torch.tensor([g.angle for g in backgrounds], device=device)[:, None, None]
    period = torch.tensor([g.period for g in backgrounds], device=device)[:, None, None]
    along = torch.cos(angle) * x + torch.sin(angle) * y  # (b, y, x)
    across = -torch.sin(angle) * x + torch.cos(angle) * y
    wave = torch.sin(2 * math.pi * along / period)
    clouds = torch.from_numpy(
        np.stack([np.random.default_rng(g.seed).random((1, NOISE_CELLS, NOISE_CELLS), np.float32) for g in backgrounds])
    ).to(device)
    mixes = {
        "plain": torch.zeros_like(along),
        "gradient": ((along + 1) / 2).clamp(0, 1),
        "stripes": (wave > 0).float(),
        "checks": (wave * torch.sin(2 * math.pi * across / period) > 0).float(),
        "clouds": F.interpolate(clouds, size=(size, size), mode="bilinear", align_corners=False)[:, 0],
    }
    kind = torch.tensor([GROUNDS.index(g.kind) for g in backgrounds], device=device)
    mix = torch.stack([mixes[k] for k in GROUNDS])[kind, torch.arange(len(backgrounds), device=device)][:, None]  # (b, 1, y, x)
    return colours[:, 0, :, None, None] * (1 - mix) + colours[:, 1, :, None, None] * mix


SCENE_SIZE = 64  # default pixels per side; some models need larger pictures


def scene_key(index: int) -> str:
    """Return the name of scene number `index`, in image lists and in archives."""
    return f"scene-{index:06d}"


def scenes_for(model: str, count: int, seed: int) -> "SceneSource":
    """Return scenes rendered at the image size of an embedded model."""
    return SceneSource(count, seed, size=_size(model))


def single_scenes_for(model: str, count: int, seed: int) -> "SingleSceneSource":
    """Return scenes of one emoji each at the image size of an embedded model."""
    return SingleSceneSource(count, seed, _size(model))


def _size(model: str) -> int:
    config = json.loads((EMBEDDED_DIR / model / "open_clip_config.json").read_text())
    return int(config["model_cfg"]["vision_cfg"]["image_size"])


class SceneSource:
    """An ImageSource that renders an image each time it is loaded."""

    def __init__(self, count: int, seed: int, recipe: Recipe = Recipe(), size: int = SCENE_SIZE) -> None:
        self.names: list[str] = [scene_key(i) for i in range(count)]
        self.seed, self.recipe, self.size = seed, recipe, size
        render([self.scene(0)], size)  # fills the cache of artwork before threads use it

    def __len__(self) -> int:
        return len(self.names)

    def scene(self, index: int) -> Scene:
        """Return the scene of image number `index`."""
        return draw_scene(self.seed, index, self.recipe)

    def names_in(self, index: int) -> list[str]:
        """Return the names of the concepts in image number `index`, from back to front."""
        return [concepts()[sprite.concept].name for sprite in self.scene(index).sprites]

    def load(self, index: int) -> Image.Image:
        """Render image number `index`; never fails."""
        pixels: np.ndarray = to_uint8(render([self.scene(index)], self.size).image[0])  # (y, x, 3)
        return Image.fromarray(pixels)


class SingleSceneSource(SceneSource):
    """Scenes of one emoji each, like clip-scenes --single: every concept once per turn, in a random order per turn."""

    def __init__(self, count: int, seed: int, size: int = SCENE_SIZE) -> None:
        total = len(concepts())
        turns = -(-count // total)
        orders = [np.random.default_rng((seed, turn)).permutation(total) for turn in range(turns)]
        self.concept: Int64[np.ndarray, image] = np.concatenate(orders)[:count]
        super().__init__(count, seed, size=size)

    def scene(self, index: int) -> Scene:
        """Return the scene of image number `index`."""
        return single_scene(self.seed, index // len(concepts()), int(self.concept[index]))
