"""Scenes of a planted pair in four groups, and the accuracy of a model in each: a class or another one, beside the cue or not."""

from typing import Any

import numpy as np
import torch

from cliptools.emoji.render import render, to_uint8
from cliptools.emoji.scenes import scene_of
from cliptools.front.images import Pictures
from cliptools.models.load import LoadedModel
from cliptools.models.text_encoder import encode_texts
from cliptools.text.emoji_concepts import concepts

GROUPS = ("class + cue", "class + other", "another + cue", "another + other")


class Groups:
    """Scenes of a pair: class A, cue B, another class C, another thing O."""

    def __init__(self, named: int, cue: int, count: int, size: int = 64, seed: int = 7) -> None:
        """
        Args:
            named: Number of the concept A.
            cue: Number of the concept B.
            count: Scenes per group.
        """
        rng = np.random.default_rng((seed, named))
        free = [number for number in range(len(concepts())) if number not in (named, cue)]
        self.named = named
        self.other_class = rng.choice(free, (4, count))  # (group, scene)
        thing = rng.choice(free, (4, count))
        scenes = []
        for group in range(4):
            for n in range(count):
                shown = named if group < 2 else int(self.other_class[group, n])
                beside = cue if group % 2 == 0 else int(thing[group, n])
                while beside == shown or beside == int(self.other_class[group, n]):
                    beside = int(rng.choice(free))
                scenes.append(scene_of([beside, shown], seed, n + group * count))
        self.pictures = to_uint8(render(scenes, size).image)  # (4 count, y, x, 3)

    @torch.inference_mode()
    def accuracy(self, model: LoadedModel) -> dict[str, float]:
        """Return the share of right answers per group; a model chooses between A and C of each scene."""
        source = Pictures(list(self.pictures))
        images = torch.stack([model.transform(source.load(index)) for index in range(len(self.pictures))])
        visual: Any = model.clip.visual
        e = torch.nn.functional.normalize(visual(images).float(), dim=1).cpu()  # (4 count, d)
        names = [concept.name for concept in concepts()]
        numbers = sorted({self.named, *self.other_class.flatten().tolist()})
        t = encode_texts(model, [names[number] for number in numbers], ("a picture of {}",)).cpu()
        row = {number: place for place, number in enumerate(numbers)}
        similarity = e @ t.T
        a = similarity[:, row[self.named]]
        c = similarity.gather(1, torch.tensor([[row[n]] for n in self.other_class.flatten().tolist()]))[:, 0]
        right = torch.cat([(a > c)[: len(a) // 2], (c > a)[len(a) // 2 :]]).view(4, -1).double().mean(1)
        return dict(zip(GROUPS, right.tolist(), strict=True))
