"""Scenes of one thing with and without a word on them, for typographic.py: those of clip-scenes --single and --write.

Each thing comes about equally often. The word of a scene has one place and colours in all pictures of it:

    none        no word
    other       the name of another thing, at which a model may read what is written in place of what is shown: the attack
    shuffled    the letters of this name in another order
    blank       a plate of the same size without letters, which covers as much
    own         the name of the thing that is shown, where it is short enough to be written; own_none the same scenes without it
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from PIL import Image
from torch import Tensor

from cliptools.emoji.export import BLANK, OTHER, OWN, SHUFFLED, single_plans, with_words
from cliptools.emoji.render import render, scenes_for, to_uint8
from cliptools.emoji.scenes import Scene
from cliptools.models.load import LoadedModel
from cliptools.text.emoji_concepts import concepts

NONE, OWN_NONE = "none", "own_none"
PICTURES = (NONE, BLANK, SHUFFLED, OTHER, OWN, OWN_NONE)


class Drawn(NamedTuple):
    """Scenes of one kind of picture."""

    scenes: Sequence[Scene]
    thing: Int[np.ndarray, " scene"]
    """What is shown, as a concept."""
    word: Int[np.ndarray, " scene"]
    """What `other` names, or for `own` the thing itself."""

    def __len__(self) -> int:
        return len(self.scenes)

    def first(self, count: int) -> "Drawn":
        """Return the first scenes."""
        return Drawn(self.scenes[:count], self.thing[:count], self.word[:count])


def draw(picture: str, count: int, seed: int) -> Drawn:
    """Return scenes in random order; of `own` and `own_none` those of them that can have the word."""
    plans = list(single_plans(-(-count // len(concepts())) * len(concepts()), seed))
    words = [plan.scene.writing for plan in with_words(plans, seed, OWN if picture in (OWN, OWN_NONE) else OTHER)]
    shown = plans if picture in (NONE, OWN_NONE) else list(with_words(plans, seed, picture))
    rows = np.random.default_rng(seed).permutation(len(plans))[:count].tolist()
    kept = [(shown[row].scene, writing.concept) for row in rows if (writing := words[row]) is not None]
    scenes, word = zip(*kept, strict=True)
    return Drawn(scenes, np.array([scene.sprites[0].concept for scene in scenes]), np.array(word))


def pictures(model: LoadedModel, scenes: Sequence[Scene]) -> Float[Tensor, "b 3 y x"]:
    """Return the pictures of scenes, prepared for an embedded model."""
    image = to_uint8(render(scenes, scenes_for(model.name, 1, 0).size).image)  # (b, y, x, 3)
    return torch.stack([model.transform(Image.fromarray(pixels)) for pixels in image])
