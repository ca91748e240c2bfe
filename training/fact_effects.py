"""Effects of planted facts on a model, by intervention: the same scene with the property of a fact, or with another of its kind.

The scenes have one emoji that is in no fact. The fact's effect is its concept's zero-shot score on the scene with the property (a
red ground, a word, a silhouette), minus the score on the scene with other properties of the same kind.
"""

from dataclasses import asdict, dataclass

import numpy as np
from jaxtyping import Float
from torch import Tensor

from cliptools.emoji.group_scenes import other_properties
from cliptools.emoji.scenes import Scene, single_scene, with_property
from cliptools.models.clip_parts import CLIP
from cliptools.text.emoji_concepts import Fact, concepts, facts
from training.measures import embed_scenes
from training.plant_effects import SEED, bootstrap


@dataclass(frozen=True)
class FactEffect:
    """The effect of one fact. The interval is 95 %, by bootstrap over scenes."""

    named: str
    kind: str
    cue: str
    scenes: int
    cosine: float
    """Mean over scenes of the concept's cosine with the property, minus the mean cosine with others of its kind."""
    cosine_low: float
    cosine_high: float
    learned: bool
    """True if the interval is above 0."""


def fact_effect(model: CLIP, classes: Float[Tensor, "concept d"], fact: Fact, *, scenes: int, controls: int = 3) -> FactEffect:
    """Measure one fact: each scene with its property, and with up to `controls` others that are drawn for this scene."""
    rng, others = np.random.default_rng((SEED, fact.named)), other_properties(fact)
    excluded = {other.named for other in facts()}
    free = [c for c in range(len(concepts())) if c not in excluded]
    count, drawn = min(controls, len(others)), list[Scene]()
    for number in range(scenes):
        base = single_scene(SEED + 7, number, int(rng.choice(free)))
        for cue in (fact.cue, *rng.choice(others, size=count, replace=False)):
            drawn.append(with_property(base, fact.kind, str(cue), np.random.default_rng((SEED, fact.named, number))))
    score = (embed_scenes(model, drawn) @ classes[fact.named]).unflatten(0, (scenes, 1 + count))  # (scene, with)
    mean, low, high = bootstrap((score[:, 0] - score[:, 1:].mean(1)).double().cpu().numpy())
    return FactEffect(concepts()[fact.named].name, fact.kind, fact.cue, scenes, mean, low, high, learned=low > 0)


def as_row(effect: FactEffect) -> dict[str, str | float | int | bool]:
    """Return the row of a table."""
    return {key: round(value, 4) if isinstance(value, float) else value for key, value in asdict(effect).items()}
