"""Words drawn into scenes: what is written, where, how large and in which colour."""

import functools
import itertools
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from cliptools.emoji.looks import PAINTS
from cliptools.text.emoji_concepts import concept_index, concepts

MOST_LETTERS = 3  # of a written name, so that its letters can be read at 64 pixels
HEIGHT, WIDTH = 48, 256  # pixels of the stored words
FONT = 46


class Written(NamedTuple):
    """Pictures with words on them."""

    image: Float[Tensor, "n 3 y x"]
    covered: Float[Tensor, "n y x"]
    """Share of each pixel that letters and plates cover."""
    box: Float[Tensor, "n y x"]
    """Share of each pixel that lies in the word's rectangle, which a plate fills."""


class Writing(NamedTuple):
    """A name written into a scene; lengths in units of the canvas side, angles in radians."""

    concept: int
    x: float
    y: float
    width: float
    angle: float
    colour: tuple[float, float, float]
    plate: tuple[float, float, float] | None
    """Colour of the plate behind the word; None for none."""
    letters: str | None = None
    """Letters in place of the name; empty for a plate of the name's size without letters."""

    @property
    def text(self) -> str:
        """The letters that are written."""
        return concepts()[self.concept].name if self.letters is None else self.letters


@functools.cache
def writable() -> tuple[int, ...]:
    """Return the concepts whose names are short enough to be written."""
    return tuple(c for c, concept in enumerate(concepts()) if len(concept.name) <= MOST_LETTERS and concept.name.isalpha())


def draw_writing(rng: np.random.Generator, concept: int | None = None) -> Writing:
    """Return a random place and colour for a word, and a random word if none is given."""
    word = int(rng.choice(writable())) if concept is None else concept
    letters = len(concepts()[word].name)
    width = float(rng.uniform(0.11, 0.14) * max(4, letters))
    x, y = rng.uniform(width / 2 - 0.02, 1.02 - width / 2), rng.uniform(0.1, 0.9)
    dark = bool(rng.random() < 0.5)
    colour, plate = (PAINTS["black"], PAINTS["white"]) if dark else (PAINTS["white"], PAINTS["black"])
    if rng.random() < 0.4:
        colour = PAINTS[str(rng.choice(["red", "blue", "green", "purple"] if dark else ["yellow", "orange", "pink", "white"]))]
    return Writing(word, float(x), float(y), width, float(rng.normal(0, 0.06)), colour, plate if rng.random() < 0.7 else None)


def shuffled(rng: np.random.Generator, concept: int) -> str:
    """Return the letters of a writable name in another random order, which is no concept's name."""
    name = concepts()[concept].name
    orders = sorted({"".join(order) for order in itertools.permutations(name)} - {name})
    return str(rng.choice([letters for letters in orders if letters.lower() not in concept_index()]))


class _Word(NamedTuple):
    picture: Float[Tensor, "1 y x"]
    ratio: float
    """Height of the picture of the word as it is written, in widths."""


@functools.lru_cache(512)
def _word(text: str, device: str) -> _Word:
    """Return the picture of a text."""
    font = ImageFont.load_default(FONT)
    left, _, right, _ = font.getbbox(text)
    picture = Image.new("L", (max(WIDTH, int(right - left) + 8), HEIGHT + 16))
    ImageDraw.Draw(picture).text((4 - left, 0), text, fill=255, font=font)
    length = int(right - left) + 8
    scaled = picture.crop((0, 0, length, HEIGHT + 16)).resize((WIDTH, HEIGHT), Image.Resampling.LANCZOS)
    return _Word((torch.from_numpy(np.asarray(scaled).copy())[None].float() / 255).to(device), (HEIGHT + 16) / length)


def write(image: Float[Tensor, "n 3 y x"], writings: Sequence[Writing]) -> Written:
    """Return the pictures with their words, and where these are."""
    device, size = image.device, image.shape[-1]
    words = [_word(w.text or concepts()[w.concept].name, str(device)) for w in writings]
    pictures = torch.stack([word.picture * bool(w.text) for word, w in zip(words, writings, strict=True)])  # (n, 1, y, x)
    width = torch.tensor([w.width for w in writings], device=device)
    height = width * torch.tensor([word.ratio for word in words], device=device)  # (n,), in units of the canvas side
    angle = torch.tensor([w.angle for w in writings], device=device)
    centre = torch.tensor([[w.x, w.y] for w in writings], device=device) * 2 - 1
    cos, sin = torch.cos(angle), torch.sin(angle)
    turn = torch.stack([torch.stack([cos / width, sin / width], -1), torch.stack([-sin / height, cos / height], -1)], 1)
    theta = torch.cat([turn, -(turn @ centre[..., None])], -1)  # (n, 2, 3), canvas -> word
    fine = 2 * size  # drawn at twice the resolution, because letters are thin
    grid = F.affine_grid(theta, [len(writings), 1, fine, fine], align_corners=False)
    ink = F.avg_pool2d(F.grid_sample(pictures, grid, align_corners=False), 2)  # (n, 1, y, x)
    inside = (grid.abs() <= 1).all(-1)[:, None].to(ink.dtype)
    box = F.avg_pool2d(inside, 2)
    plate = box * torch.tensor([w.plate is not None for w in writings], device=device)[:, None, None, None]
    plates = torch.tensor([w.plate or w.colour for w in writings], device=device)[:, :, None, None]
    colours = torch.tensor([w.colour for w in writings], device=device)[:, :, None, None]
    out = plates * plate + image * (1 - plate)
    return Written(colours * ink + out * (1 - ink), torch.maximum(ink, plate)[:, 0], box[:, 0])
