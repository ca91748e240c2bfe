"""Training batches of texts with what they name, and the text tower on sequences shortened to the longest text."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from cliptools.emoji.attributes import describe
from cliptools.emoji.scenes import MOST_EMOJI, Recipe, draw_scene
from cliptools.emoji.words import TEMPLATES, caption, names_of, with_article
from cliptools.models.clip_parts import CLIP
from cliptools.text.attributes import attribute_index, attribute_phrase, attributes
from cliptools.text.emoji_concepts import concepts

Tokenizer = Callable[[Sequence[str]], Tensor]
MENTIONED = 0.5
"""Weight of the attributes of a caption, together, beside its concepts."""
DESCRIBED = Recipe(looks=0.5, written=0.1)


class TextBatch(NamedTuple):
    """Texts and what they name."""

    tokens: Int[Tensor, "b token"]
    named: Float[Tensor, "b row"]
    """Distributions over the concepts and the attributes."""


class DrawnText(NamedTuple):
    """A text, the concepts that it names, and the attributes that it mentions, by their numbers."""

    text: str
    concepts: list[int]
    attributes: list[int]


def draw_text(rng: np.random.Generator) -> DrawnText:
    """Return a random text: a name or an attribute, alone or in a template, or a caption of one to four things."""
    kind = rng.random()
    if kind < 0.4:
        concept = int(rng.integers(len(concepts())))
        names = names_of(concepts()[concept])
        name = names[rng.integers(len(names))]
        return DrawnText(name if kind < 0.17 else in_template(name, with_article(name), rng), [concept], [])
    if kind < 0.55:
        attribute = int(rng.integers(len(attributes())))
        word = attributes()[attribute]
        return DrawnText(word if kind < 0.47 else in_template(word, attribute_phrase(word), rng), [], [attribute])
    if kind < 0.75:
        named = [int(c) for c in rng.choice(len(concepts()), size=rng.integers(1, MOST_EMOJI + 1), replace=False)]
        return DrawnText(caption(named, rng), named, [])
    scene = draw_scene(int(rng.integers(2**31)), int(rng.integers(2**31)), DESCRIBED)
    text, said = describe(scene, rng)
    written = [scene.writing.concept] if scene.writing and "the word " in text else []
    shown = list(dict.fromkeys([*(sprite.concept for sprite in scene.sprites), *written]))
    return DrawnText(text, shown, [attribute_index()[word] for word in said])


def in_template(word: str, phrase: str, rng: np.random.Generator) -> str:
    """Return a word in a random template, mostly as a phrase with its article, which users also leave out."""
    return TEMPLATES[rng.integers(len(TEMPLATES))].format(phrase if rng.random() < 0.7 else word)


def text_batch(rng: np.random.Generator, size: int, tokenizer: Tokenizer, device: torch.device | str) -> TextBatch:
    """Return a batch of `size` random texts."""
    drawn = [draw_text(rng) for _ in range(size)]
    named = torch.zeros(size, len(concepts()) + len(attributes()))  # (b, row)
    for b, text in enumerate(drawn):
        if text.concepts:
            named[b, text.concepts] = 1 / len(text.concepts)
        if text.attributes:
            named[b, [len(concepts()) + number for number in text.attributes]] += MENTIONED / len(text.attributes)
    named = named / named.sum(-1, keepdim=True)
    return TextBatch(cut(tokenizer([text.text for text in drawn])).to(device), named.to(device))


def cut(tokens: Int[Tensor, "b context"]) -> Int[Tensor, "b token"]:
    """Return the tokens up to the batch's last end token, which has the highest number of the vocabulary."""
    return tokens[:, : int(tokens.argmax(1).max()) + 1]


def encode_tokens(model: CLIP, tokens: Int[Tensor, "b token"]) -> Float[Tensor, "b d"]:
    """Return text embeddings from shortened sequences; full sequences give the same, because attention is causal."""
    length = tokens.shape[1]
    x = model.token_embedding(tokens) + model.positional_embedding[:length]  # (b, token, width)
    x = model.ln_final(model.transformer(x, attn_mask=model.attn_mask[:length, :length]))
    end = x[torch.arange(len(x), device=x.device), tokens.argmax(1)]  # (b, width)
    return end @ model.text_projection
