"""The text tower written out, and what is done with texts before neurons meet them."""

import numpy as np

from .vit import Activation, Array, Weights, attention, block, depth, layer_norm

HEADS = 2


def unit(x: Array) -> Array:
    return x / np.linalg.norm(x)


def encode(W: Weights, tokens: list[int], act: Activation) -> Array:
    """M_text of one text, not normalised: causal attention, the end token's place read. [d]"""
    length = len(W["positional_embedding"])
    ids = np.array(tokens + [0] * (length - len(tokens)))
    x = W["token_embedding.weight"][ids] + W["positional_embedding"]
    for layer in range(depth(W, "")):
        B = block(W, "", layer)
        x = x + attention(B, layer_norm(x, B["ln_1.weight"], B["ln_1.bias"]), HEADS, causal=True)[1]
        y = layer_norm(x, B["ln_2.weight"], B["ln_2.bias"])
        x = x + act(y @ B["mlp.c_fc.weight"].T + B["mlp.c_fc.bias"]) @ B["mlp.c_proj.weight"].T + B["mlp.c_proj.bias"]
    end = int(ids.argmax())
    return W["text_projection"].T @ layer_norm(x[end : end + 1], W["ln_final.weight"], W["ln_final.bias"])[0]


def sentence_mean(W: Weights, sentences: list[list[int]], act: Activation) -> Array:
    """One text in several templates: unit vectors, their mean, at unit norm. [d]"""
    return unit(np.mean([unit(encode(W, tokens, act)) for tokens in sentences], axis=0))


def pool_texts(t: Array) -> Array:
    """Unit texts [j, d] less the pool's mean, each at unit norm again."""
    centred = t - t.mean(0)
    return np.stack([unit(row) for row in centred])


def pool_dimensions(t: Array) -> Array:
    """The same, but each dimension at unit norm over the pool, as the public code has it."""
    centred = t - t.mean(0)
    return np.stack([unit(column) for column in centred.T], axis=1)


def class_texts(t: Array) -> Array:
    """Unit class texts [c, d] less their mean, at unit norm again (paper 2, segmentation)."""
    return pool_texts(t)
