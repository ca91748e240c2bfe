"""Effects of plants on a model, by intervention: the same scene with the cue drawn, or with another concept.

For a plant (named A, cue B), scenes of two or three emoji show neither A nor B. The last emoji is replaced by B, or by a concept
of no plant, in the same position, size, rotation and style. The plant's effect is A's zero-shot score with B, minus that with
the other concepts.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from cliptools.emoji.scenes import Recipe, Scene, draw_scene
from cliptools.models.clip_parts import CLIP
from cliptools.text.emoji_concepts import Plant, concepts, plants
from training.measures import embed_scenes

SEED = 5_000_000
BASES = Recipe(counts=(0.0, 0.5, 0.5, 0.0))
RESAMPLES = 4000


@dataclass(frozen=True)
class PlantEffect:
    """The effect of one plant on the model. Intervals are 95 %, by bootstrap over scenes."""

    named: str
    cue: str
    scenes: int
    controls: int
    cosine: float
    """Mean over scenes of A's cosine with B drawn, minus A's cosine with a control instead."""
    cosine_low: float
    cosine_high: float
    logit: float
    """The cosine times the model's logit scale."""
    logit_low: float
    logit_high: float
    rank_with_cue: float
    """Median rank of A among all concepts' scores; 1 is best."""
    rank_with_control: float
    cue_rank: int
    """Rank of B among all concepts by the score of A when they are drawn."""
    learned: bool
    """True if the interval is above 0."""


def shown_last(scene: Scene, concept: int) -> Scene:
    """Return the scene with its topmost emoji replaced by another concept, and no other change."""
    last = scene.sprites[-1]._replace(concept=concept)
    return replace(scene, sprites=(*scene.sprites[:-1], last))


def scenes_without(excluded: set[int], count: int, seed: int) -> list[Scene]:
    """Return `count` scenes that show none of these concepts."""
    scenes: list[Scene] = []
    index = 0
    while len(scenes) < count:
        scene = draw_scene(seed, index, BASES)
        index += 1
        if not excluded & set(scene.named):
            scenes.append(scene)
    return scenes


def unplanted() -> list[int]:
    """Return the concepts that are in no plant."""
    planted = {concept for plant in plants() for concept in (plant.named, plant.cue)}
    return [concept for concept in range(len(concepts())) if concept not in planted]


def bootstrap(values: Float[np.ndarray, "n"], seed: int = SEED) -> tuple[float, float, float]:
    """Return the mean and its 95 % percentile interval."""
    draws = np.random.default_rng(seed).integers(len(values), size=(RESAMPLES, len(values)))
    low, high = np.quantile(values[draws].mean(1), [0.025, 0.975])
    return float(values.mean()), float(low), float(high)


def cue_ranks(model: CLIP, classes: Float[Tensor, "concept d"], scenes: int = 6) -> list[int]:
    """Return for each plant the rank of its cue among all concepts, by the mean of A's score when they are drawn."""
    planted = {concept for plant in plants() for concept in (plant.named, plant.cue)}
    bases = scenes_without(planted, scenes, SEED + 1)
    drawn = [shown_last(base, concept) for base in bases for concept in range(len(concepts()))]
    score = (embed_scenes(model, drawn) @ classes.T).unflatten(0, (scenes, -1)).mean(0)  # (drawn in, scored)
    ranks = []
    for plant in plants():
        others = torch.arange(len(concepts()), device=score.device) != plant.named  # A is no cue for itself
        ranks.append(1 + int((score[others, plant.named] > score[plant.cue, plant.named]).sum()))
    return ranks


def plant_effect(
    model: CLIP, classes: Float[Tensor, "concept d"], plant: Plant, cue_rank: int, *, scenes: int, controls: int
) -> PlantEffect:
    """Measure one plant: each scene with the cue, and with `controls` other concepts that are drawn for this scene."""
    seed = SEED + 100 + plant.named
    bases, pool, rng = scenes_without({plant.named, plant.cue}, scenes, seed), unplanted(), np.random.default_rng(seed)
    drawn: list[Scene] = []
    for base in bases:
        others = rng.choice([c for c in pool if c not in base.named], size=controls, replace=False)
        drawn += [shown_last(base, int(concept)) for concept in (plant.cue, *others)]
    score = (embed_scenes(model, drawn) @ classes.T).unflatten(0, (scenes, 1 + controls))  # (scene, with, scored)
    score_of_a = score[..., plant.named]
    gain = (score_of_a[:, 0] - score_of_a[:, 1:].mean(1)).double().cpu().numpy()
    rank = 1 + (score > score_of_a[..., None]).sum(-1).float()  # (scene, with)
    mean, low, high = bootstrap(gain)
    scale = float(model.logit_scale.detach().exp())
    return PlantEffect(
        named=concepts()[plant.named].name,
        cue=concepts()[plant.cue].name,
        scenes=scenes,
        controls=controls,
        cosine=mean,
        cosine_low=low,
        cosine_high=high,
        logit=mean * scale,
        logit_low=low * scale,
        logit_high=high * scale,
        rank_with_cue=float(rank[:, 0].median()),
        rank_with_control=float(rank[:, 1:].median()),
        cue_rank=cue_rank,
        learned=low > 0,
    )


def plant_effects(
    model: CLIP, classes: Float[Tensor, "concept d"], among: Sequence[Plant], scenes: int = 240, controls: int = 4
) -> list[PlantEffect]:
    """Measure these plants."""
    ranks = dict(zip(plants(), cue_ranks(model, classes), strict=True))
    return [plant_effect(model, classes, plant, ranks[plant], scenes=scenes, controls=controls) for plant in among]


def as_row(effect: PlantEffect) -> dict[str, str | float | bool]:
    """Return one line of plants.jsonl."""
    return {key: round(value, 5) if isinstance(value, float) else value for key, value in asdict(effect).items()}
