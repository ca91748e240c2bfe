"""Words for batches of images, from the neurons that are active on them or from CLIP's own ranking of texts.

The equations of the scores are in analysis/concepts.py.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, SupportsFloat

import torch
from jaxtyping import Float
from torch import Tensor

from cliptools.analysis.concepts import (
    Neurons,
    Score,
    active_units,
    counted_units,
    direction_scores,
    largest,
    sparse_gamma,
    text_scores,
    unit_weights,
    word_scores,
)
from cliptools.analysis.pursuit import text_space
from cliptools.errors import StreamError
from cliptools.front.unit_records import signed_words, unit_keys
from cliptools.io.bundle import Bundle
from cliptools.io.jsonl import rounded
from cliptools.models.load import LoadedModel
from cliptools.models.templates import template_options
from cliptools.models.text_encoder import encode_named
from cliptools.models.unusable import unusable
from cliptools.text.vocabularies import Pool, recorded_pool
from cliptools.towers.kinds import output_width
from cliptools.unit_effects.factored import FactoredEffect, UnitActivity
from cliptools.unit_effects.select import recorded_effect

SHOWN_NEURONS = 5  # in a record: the neurons of largest weight
SHOWN_WORDS = 3  # of each of these neurons
Record = dict[str, Any]
Describe = Callable[[Sequence[str], Tensor], Iterator[Record | str]]
"""Function from names and pixels [b, 3, y, x] of images to a record of each image, or the reason why it is not usable."""
ScoreTexts = Callable[[Tensor], Tensor]
"""Function from weights of neurons [b, u] to scores of texts [b, text]."""


@dataclass(frozen=True, kw_only=True)
class Scoring:
    """How the words of an image are chosen, as the arguments of `cliptools.concepts`."""

    by: str
    score: Score
    neurons: Neurons
    words: int
    seed: int
    pool: Pool | None
    """The vocabulary to compare with; None for that of the bundle's words."""
    cache: bool


def describer(neurons: Bundle, model: LoadedModel, scoring: Scoring) -> Describe:
    """Return the function that describes images.

    Args:
        neurons: The units that may count, with their words.

    Raises:
        StreamError: the bundle's vectors are not as wide as the model's outputs, or it does not name its vocabulary.
    """
    return (_text_describer if scoring.by == "text" else _neuron_describer)(neurons, model, scoring)


def _text_describer(neurons: Bundle, model: LoadedModel, scoring: Scoring) -> Describe:
    """Return a function that describes images by CLIP's own ranking of the vocabulary."""
    texts, t = _vocabulary(neurons, model, scoring)
    clip: Any = model.clip
    dtype = next(clip.parameters()).dtype

    @torch.inference_mode()
    def describe(names: Sequence[str], pictures: Tensor) -> Iterator[Record | str]:
        embedding: Tensor = clip.visual(pictures.to(model.device, dtype))  # (b, d)
        reasons = unusable(embedding)
        ranked = largest(text_scores(embedding, t), scoring.words)
        for row, (column, value) in enumerate(zip(ranked.column.tolist(), ranked.value.tolist(), strict=True)):
            if row in reasons:
                yield reasons[row]
                continue
            yield {"concepts": [{"word": texts[j], "score": rounded(v)} for j, v in zip(column, value, strict=True)]}

    return describe


def _neuron_describer(neurons: Bundle, model: LoadedModel, scoring: Scoring) -> Describe:
    """Return a function that describes images by the words or the directions of the neurons active on them."""
    own_texts = neurons.text_list("words")["texts"]
    texts, score_texts = _score_texts(neurons, model, scoring)
    unit, b, r = (torch.from_numpy(neurons[name]) for name in ("unit", "mean", "direction"))
    tau = torch.from_numpy(neurons["threshold"])
    measure = UnitActivity(_effect_of(neurons, model), unit, b, r, neurons.header.scaled)

    def describe(names: Sequence[str], pictures: Tensor) -> Iterator[Record | str]:
        activity = measure(pictures)
        reasons = unusable(activity.embedding, activity.norm, activity.along)
        active = active_units(activity, tau)  # (b, u)
        weight = unit_weights(activity, counted_units(active, scoring.neurons, names, scoring.seed), scoring.score)  # (b, u)
        words, strongest = largest(score_texts(weight), scoring.words), largest(weight, SHOWN_NEURONS)
        for row in range(len(names)):
            if row in reasons:
                yield reasons[row]
                continue
            scores = zip(words.column[row].tolist(), words.value[row].tolist(), strict=True)
            weights = zip(strongest.column[row].tolist(), strongest.value[row].tolist(), strict=True)
            yield {
                "concepts": [{"word": texts[j], "score": rounded(v)} for j, v in scores if v > 0],
                "active": int(active[row].sum()),
                "neurons": [
                    _neuron(neurons, own_texts, n, activity.norm[row, n], activity.along[row, n]) for n, v in weights if v > 0
                ],
            }

    return describe


def _score_texts(neurons: Bundle, model: LoadedModel, scoring: Scoring) -> tuple[Sequence[str], ScoreTexts]:
    """Return the texts that can describe images, and the function that scores them."""
    if scoring.by == "words":
        texts = neurons.text_list("words")["texts"]
        word, coefficient = torch.from_numpy(neurons["word"]), torch.from_numpy(neurons["coefficient"])
        return texts, partial(word_scores, gamma=sparse_gamma(word, coefficient, len(texts)))
    texts, t = _vocabulary(neurons, model, scoring)
    words = neurons.header.settings.get("words", {})
    atoms = text_space(t, words.get("center", "pool"), words.get("normalize", "texts"))  # (text, d)
    return texts, partial(direction_scores, r=torch.from_numpy(neurons["direction"]), atoms=atoms)


def _effect_of(neurons: Bundle, model: LoadedModel) -> FactoredEffect:
    """Return the effect that the bundle was measured with.

    Raises:
        StreamError: the bundle's vectors are not as wide as the model's outputs.
    """
    settings = neurons.header.settings
    visual: Any = model.clip.visual
    widths = {neurons["mean"].shape[1], neurons["direction"].shape[1]}
    if widths != {width := output_width(visual)}:
        raise StreamError(f"directions and means have width {sorted(widths)}, the model's outputs have width {width}")
    return recorded_effect(model.clip, settings)


def _vocabulary(neurons: Bundle, model: LoadedModel, scoring: Scoring) -> tuple[Sequence[str], Float[Tensor, "text d"]]:
    """Return the vocabulary, and its unit embeddings with the templates of the bundle's words."""
    pool = scoring.pool or recorded_pool(neurons)
    templates = template_options(neurons.header.settings.get("words", {}).get("templates", ()))
    return pool.texts, encode_named(model, pool, templates, use_cache=scoring.cache)


def _neuron(neurons: Bundle, texts: Sequence[str], row: int, norm: SupportsFloat, along: SupportsFloat) -> Record:
    """Return the fields of a unit for the record of an image.

    Args:
        texts: The texts of the bundle's words.
    """
    words = [{"word": texts[j], "coefficient": rounded(c)} for j, c in signed_words(neurons, row)[:SHOWN_WORDS]]
    return unit_keys(*neurons["unit"][row].tolist()) | {"norm": rounded(norm), "projection": rounded(along), "words": words}
