"""Scenes of a planted pair in four groups, and the accuracy of a model in each: a class or another one, beside the cue or not."""

from typing import Any

import numpy as np
import torch

from cliptools.emoji.render import render, to_uint8
from cliptools.emoji.scenes import scene_of
from cliptools.front.images import Pictures
from cliptools.models.load import LoadedModel
from cliptools.models.templates import text_sentences
from cliptools.models.text_encoder import encode_texts
from cliptools.text.emoji_concepts import concepts

GROUPS = ("class + cue", "class + other", "another + cue", "another + other")


class Groups:
    """Scenes of a pair: class A, cue B, another class C, another thing O."""

    def __init__(self, named: int, cue: int, count: int, size: int = 64, seed: int = 7, other: int | None = None) -> None:
        """
        Args:
            named: Number of the concept A.
            cue: Number of the concept B.
            count: Scenes per group.
            other: Number of C in all scenes; None: another one in each.
        """
        rng = np.random.default_rng((seed, named))
        free = [number for number in range(len(concepts())) if number not in (named, cue)]
        self.named = named
        self.other_class = rng.choice(free, (4, count)) if other is None else np.full((4, count), other)  # (group, scene)
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
    def accuracy(self, model: LoadedModel, names: tuple[str, ...] = ("a picture of {}",)) -> dict[str, float]:
        """Return the share of right answers per group; a model chooses between A and C of each scene.

        Args:
            names: Templates of the texts, or the name of a set.
        """
        source = Pictures(list(self.pictures))
        images = torch.stack([model.transform(source.load(index)) for index in range(len(self.pictures))])
        visual: Any = model.clip.visual
        e = torch.nn.functional.normalize(visual(images).float(), dim=1).cpu()  # (4 count, d)
        concept_names = [concept.name for concept in concepts()]
        numbers = sorted({self.named, *self.other_class.flatten().tolist()})
        sentences, templates = text_sentences([concept_names[number] for number in numbers], names)
        t = encode_texts(model, sentences, templates).cpu()
        row = {number: place for place, number in enumerate(numbers)}
        similarity = e @ t.T
        a = similarity[:, row[self.named]]
        c = similarity.gather(1, torch.tensor([[row[n]] for n in self.other_class.flatten().tolist()]))[:, 0]
        right = torch.cat([(a > c)[: len(a) // 2], (c > a)[len(a) // 2 :]]).view(4, -1).double().mean(1)
        return dict(zip(GROUPS, right.tolist(), strict=True))
