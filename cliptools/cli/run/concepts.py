"""What clip-concepts says of a batch of images: by the neurons that act on them, or by CLIP's own texts."""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, SupportsFloat

import torch
from torch import Tensor

from cliptools.analysis.concepts import (
    active_units,
    best,
    counted_units,
    direction_scores,
    sparse_gamma,
    text_scores,
    unit_weights,
    word_scores,
)
from cliptools.analysis.pursuit import text_space
from cliptools.cli.run.bundle_output import signed_words, unit_keys
from cliptools.effects.factored import FactoredEffect, UnitActivity
from cliptools.effects.select import factored_effect
from cliptools.errors import StreamError
from cliptools.io.bundle import Bundle
from cliptools.io.jsonl import rounded
from cliptools.models.load import LoadedModel
from cliptools.models.text_encoder import as_given, encode_named
from cliptools.models.unusable import unusable
from cliptools.text.vocabularies import recorded_pool

if TYPE_CHECKING:
    Describe = Callable[[Sequence[str], Tensor], Iterator[dict[str, Any] | str]]
    """Of the names and pixels of some images, a record each, or the reason why the image is not usable."""
    Voice = Callable[[Tensor], Tensor]
    """Of weights of neurons, the scores of texts."""

TELLING = 5  # neurons shown of an image
TELLING_WORDS = 3  # words shown of a neuron


def by_text(neurons: Bundle, model: LoadedModel, options: dict[str, Any]) -> "Describe":
    """CLIP's own ranking of the pool."""

    texts, t = _pool(neurons, model, options)
    clip: Any = model.clip
    dtype = next(clip.parameters()).dtype

    @torch.inference_mode()
    def describe(names: Sequence[str], pictures: Tensor) -> Iterator[dict[str, Any] | str]:
        embedding: Tensor = clip.encode_image(pictures.to(model.device, dtype))
        reasons = unusable(embedding)
        ranked = best(text_scores(embedding, t), options["words"])
        for row, (index, value) in enumerate(zip(ranked.column.tolist(), ranked.value.tolist(), strict=True)):
            if row in reasons:
                yield reasons[row]
                continue
            yield {"concepts": [{"word": texts[j], "score": rounded(v)} for j, v in zip(index, value, strict=True)]}

    return describe


def by_neurons(neurons: Bundle, model: LoadedModel, options: dict[str, Any]) -> "Describe":
    """The words, or the directions, of the neurons that act."""

    own = neurons.text_list("words")["texts"]
    texts, voice = _voice(neurons, model, options)
    unit, b, r = (torch.from_numpy(neurons[name]) for name in ("unit", "mean", "direction"))
    tau = torch.from_numpy(neurons["threshold"])
    measure = UnitActivity(_paths(neurons, model), unit, b, r, neurons.header.scaled)

    def describe(names: Sequence[str], pictures: Tensor) -> Iterator[dict[str, Any] | str]:
        activity = measure(pictures)
        reasons = unusable(activity.embedding, activity.norm, activity.along)
        active = active_units(activity, tau)
        weight = unit_weights(activity, counted_units(active, options["neurons"], names, options["seed"]), options["score"])
        ranked, telling = best(voice(weight), options["words"]), best(weight, TELLING)
        for row in range(len(names)):
            if row in reasons:
                yield reasons[row]
                continue
            said = zip(ranked.column[row].tolist(), ranked.value[row].tolist(), strict=True)
            shown = zip(telling.column[row].tolist(), telling.value[row].tolist(), strict=True)
            yield {
                "concepts": [{"word": texts[j], "score": rounded(v)} for j, v in said if v > 0],
                "active": int(active[row].sum()),
                "neurons": [_neuron(neurons, own, n, activity.norm[row, n], activity.along[row, n]) for n, v in shown if v > 0],
            }

    return describe


def _voice(neurons: Bundle, model: LoadedModel, options: dict[str, Any]) -> "tuple[Sequence[str], Voice]":
    """The texts that can be said, and what weights of neurons make of them."""

    if options["by"] == "words":
        texts = neurons.text_list("words")["texts"]
        word, coefficient = torch.from_numpy(neurons["word"]), torch.from_numpy(neurons["coefficient"])
        return texts, partial(word_scores, gamma=sparse_gamma(word, coefficient, len(texts)))
    texts, t = _pool(neurons, model, options)
    words = neurons.header.settings.get("words", {})
    atoms = text_space(t, words.get("center", "pool"), words.get("normalize", "texts"))
    return texts, partial(direction_scores, r=torch.from_numpy(neurons["direction"]), atoms=atoms)


def _paths(neurons: Bundle, model: LoadedModel) -> FactoredEffect:
    """How the units of the bundle act in the model.

    Raises:
        StreamError: directions of another width than the model's outputs have.
    """

    settings = neurons.header.settings
    visual: Any = model.clip.visual
    widths = {neurons["mean"].shape[1], neurons["direction"].shape[1]}
    if widths != {visual.output_dim}:
        raise StreamError(f"directions and means of width {sorted(widths)}, the model's outputs have {visual.output_dim}")
    return factored_effect(model.clip, settings["effect"], settings.get("units", "neurons"))


def _pool(neurons: Bundle, model: LoadedModel, options: dict[str, Any]) -> tuple[Sequence[str], Tensor]:
    """The whole pool that the words are from, and its unit embeddings, with the templates it had then."""

    pool = recorded_pool(neurons)
    templates = as_given(neurons.header.settings.get("words", {}).get("templates", ()))
    return pool.texts, encode_named(model, pool, templates, use_cache=not options["no_cache"])


def _neuron(neurons: Bundle, texts: Sequence[str], row: int, norm: SupportsFloat, along: SupportsFloat) -> dict[str, Any]:
    """A unit as a record shows it; `texts` are the bundle's own."""
    words = [{"word": texts[j], "coefficient": rounded(c)} for j, c in signed_words(neurons, row)[:TELLING_WORDS]]
    return unit_keys(*neurons["unit"][row].tolist()) | {"norm": rounded(norm), "projection": rounded(along), "words": words}
