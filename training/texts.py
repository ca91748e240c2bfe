"""Training batches of texts with the concepts that they name, and the text tower on sequences shortened to the longest text."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from cliptools.emoji.scenes import MOST_EMOJI, TEMPLATES, caption, names_of, with_article
from cliptools.models.clip_parts import CLIP
from cliptools.text.emoji_concepts import concepts

Tokenizer = Callable[[Sequence[str]], Tensor]


class TextBatch(NamedTuple):
    """Texts and the concepts that they name."""

    tokens: Int[Tensor, "b token"]
    named: Float[Tensor, "b concept"]
    """Distributions with equal weight on every named concept."""


def draw_text(rng: np.random.Generator) -> tuple[str, list[int]]:
    """Return a random text and its concepts: a name alone, a name in a template, or a caption of one to four."""
    all_concepts, kind = concepts(), rng.random()
    if kind < 0.5:
        concept = int(rng.integers(len(all_concepts)))
        names = names_of(all_concepts[concept])
        name = names[rng.integers(len(names))]
        if kind < 0.2:
            return name, [concept]
        template = TEMPLATES[rng.integers(len(TEMPLATES))]
        # Users also write templates for words without an article, so it is sometimes left out.
        return template.format(with_article(name) if rng.random() < 0.7 else name), [concept]
    named = [int(c) for c in rng.choice(len(all_concepts), size=rng.integers(1, MOST_EMOJI + 1), replace=False)]
    return caption(named, rng), named


def text_batch(rng: np.random.Generator, size: int, tokenizer: Tokenizer, device: torch.device | str) -> TextBatch:
    """Return a batch of `size` random texts."""
    texts, named = zip(*(draw_text(rng) for _ in range(size)), strict=True)
    weight = torch.zeros(size, len(concepts()))  # (b, concept)
    for b, concept_numbers in enumerate(named):
        weight[b, concept_numbers] = 1 / len(concept_numbers)
    return TextBatch(cut(tokenizer(texts)).to(device), weight.to(device))


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
