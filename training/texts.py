"""Batches of texts with the concepts they name, and the text tower as training sees it: cut to the longest text."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from cliptools.emoji.captions import TEMPLATES, caption, names_of, with_article
from cliptools.emoji.scenes import MOST_EMOJI
from cliptools.models.clip_parts import CLIP
from cliptools.text.emoji_concepts import concepts

Tokenizer = Callable[[Sequence[str]], Tensor]


class TextBatch(NamedTuple):
    """Texts and what they name."""

    tokens: Int[Tensor, "b token"]
    named: Float[Tensor, "b concept"]
    """Equal weight on every concept named."""


def draw_text(rng: np.random.Generator) -> tuple[str, list[int]]:
    """A text and its concepts: a bare name, a name in a template, or a caption of one to four."""
    everything, kind = concepts(), rng.random()
    if kind < 0.5:
        concept = int(rng.integers(len(everything)))
        names = names_of(everything[concept])
        name = names[rng.integers(len(names))]
        if kind < 0.2:
            return name, [concept]
        template = TEMPLATES[rng.integers(len(TEMPLATES))]
        # People write templates for bare words too, so the article is not always there.
        return template.format(with_article(name) if rng.random() < 0.7 else name), [concept]
    named = [int(c) for c in rng.choice(len(everything), size=rng.integers(1, MOST_EMOJI + 1), replace=False)]
    return caption(named, rng), named


def text_batch(rng: np.random.Generator, size: int, tokenizer: Tokenizer, device: torch.device | str) -> TextBatch:
    """`size` drawn texts."""
    texts, named = zip(*(draw_text(rng) for _ in range(size)), strict=True)
    weight = torch.zeros(size, len(concepts()))
    for b, of in enumerate(named):
        weight[b, of] = 1 / len(of)
    return TextBatch(cut(tokenizer(texts)).to(device), weight.to(device))


def cut(tokens: Int[Tensor, "b context"]) -> Int[Tensor, "b token"]:
    """The tokens up to the batch's last end token, which has the highest number of the vocabulary."""
    return tokens[:, : int(tokens.argmax(1).max()) + 1]


def encode_tokens(model: CLIP, tokens: Int[Tensor, "b token"]) -> Float[Tensor, "b d"]:
    """The text tower on sequences cut short: the same as on full ones, since no token sees what follows it."""
    length = tokens.shape[1]
    x = model.token_embedding(tokens) + model.positional_embedding[:length]  # (b, token, width)
    x = model.ln_final(model.transformer(x, attn_mask=model.attn_mask[:length, :length]))
    end = x[torch.arange(len(x), device=x.device), tokens.argmax(1)]  # (b, width)
    return end @ model.text_projection
