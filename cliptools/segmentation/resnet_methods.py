"""Segmentation by a CLIP-ResNet (arXiv 2509.19943): from images to logits of a fixed set of texts at every token.

`class_texts` subtracts from the class texts what they have in common. `select_pairs` chooses for each text c the set S_c of the k
neuron-head pairs whose directions have the largest inner product with the text, sign included. `pair_logits` computes the logits.
A pair's share of logit_i(c) is the activation of its neuron, times the inner product of the text with the output of its head at
the token:

    logit_i(c) = 1/k sum over (n, h) in S_c of Z_i[n] <r_i^h, t_c>,    r_i^h = a_i^h W_O^h (W_V^h x_i + b_V^h) + b_O / (H tokens)

The r_i^h add up to M(I) over heads and tokens; in the logits each is at unit norm. All pairs of a head share r_i^h, so only sums
over heads are computed:

    logit_i(c) = 1/k sum over h of <r_i^h, t_c> sum over n: (n, h) in S_c of Z_i[n]

`neuron_logits` and `head_logits` use one factor of each pair alone. `resnet_method` returns a method by name, baselines of
towers.py included; `heat_of` returns any such method for heat maps. pooled_methods.py has the same equations for other towers.
"""

from collections.abc import Callable, Iterable, Iterator
from typing import Literal, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional as F

from cliptools.console import count_of
from cliptools.devices import to_float64, to_like
from cliptools.errors import TextError, UsageError
from cliptools.models.clip_parts import ModifiedResNet
from cliptools.segmentation import BY_PAIRS
from cliptools.segmentation.towers import PoolTokens, maskclip, pool_tokens, qqkk, repair_corner, values
from cliptools.segmentation.vit_methods import Heat, Method
from cliptools.unit_effects.resnet_pooling import value_output

CenterClasses = Literal["classes", "none"]
SMALLEST_NORM = 1e-6  # a text whose centred norm is below this equals the mean up to rounding


def class_texts(t: Float[Tensor, "text d"], center: CenterClasses = "classes") -> Float[Tensor, "text d"]:
    """Unit-norm texts after their mean is subtracted, at unit norm again; with `none` unchanged.

    Raises:
        TextError: a text equals the mean, as a single text always does.
    """
    if center == "none":
        return t
    centred = to_float64(t) - to_float64(t).mean(0)
    if bool((centred.norm(dim=1) < SMALLEST_NORM).any()):
        raise TextError(f"--classes: of {len(t)} text(s), one equals their mean, so centring leaves 0; try --center none")
    return to_like(F.normalize(centred, dim=1), t)


PAPER_PAIRS, PAPER_ALL_PAIRS = 20_000, 147_456  # k of the paper, and the number of pairs of RN50x16
CHUNK = 16  # texts at a time, whose products with all pairs are in memory together


class Selection(NamedTuple):
    """The selected pairs S_c of every text c."""

    S: Bool[Tensor, "text head neuron"]
    """True for the pairs of S_c."""
    k: int
    """Number of pairs for each text."""


def default_pairs(pairs: int) -> int:
    """The paper's share of a model's pairs: 20,000 for RN50x16, fewer for smaller models."""
    return max(1, round(pairs * PAPER_PAIRS / PAPER_ALL_PAIRS))


def check_top_pairs(top_pairs: int | None, pairs: int) -> int:
    """k: the value of --top-pairs, or by default the paper's share.

    Args:
        pairs: Number of pairs in the bundle.

    Raises:
        UsageError: --top-pairs is larger than the number of pairs.
    """
    if top_pairs is not None and top_pairs > pairs:
        raise UsageError(f"--top-pairs {top_pairs}: the bundle has {count_of(pairs, 'pair')}")
    return default_pairs(pairs) if top_pairs is None else top_pairs


def select_pairs(
    r: Float[Tensor, "pair d"],
    unit: Int[Tensor, "pair 3"],
    t: Float[Tensor, "text d"],
    k: int,
    heads: int,
    neurons: int,
) -> Selection:
    """Select for each text the k pairs with the largest <r, t>, sign included.

    Args:
        r: Direction (PC 1) of every pair.
        unit: Layer, neuron and head of every pair.
        t: Embeddings of the texts, the same as for the maps.
    """
    position = (unit[:, 2].long() * neurons + unit[:, 1].long()).to(r.device)  # (pair,): index in the flattened (head, neuron)
    S = torch.zeros(len(t), heads * neurons, dtype=torch.bool, device=r.device)
    for rows, texts in zip(S.split(CHUNK), t.split(CHUNK), strict=True):
        along = texts @ r.T  # (chunk, pair)
        rows.scatter_(1, position[along.topk(k, dim=1).indices], True)
    return Selection(S.unflatten(1, (heads, neurons)), k)  # (text, head neuron) -> (text, head, neuron)


Activations = Float[Tensor, "b patch neuron"]
Outputs = Iterable[Float[Tensor, "b patch d"]]
"""r_i^h of every head, at unit norm."""


def pair_logits(
    Z: Activations, outputs: Outputs, t: Float[Tensor, "text d"], selection: Selection
) -> Float[Tensor, "b text patch"]:
    """Logits by pairs."""
    total = Z.new_zeros(len(Z), Z.shape[1], len(t))  # (b, patch, text)
    for h, r in enumerate(outputs):
        neurons = Z @ selection.S[:, h].to(Z.dtype).T  # (b, patch, text): sum over n: (n, h) in S_c
        total += neurons * (r @ t.to(r).T)
    return (total / selection.k).transpose(1, 2)  # (b, patch, text) -> (b, text, patch)


def neuron_logits(
    Z: Activations, outputs: Outputs, t: Float[Tensor, "text d"], selection: Selection
) -> Float[Tensor, "b text patch"]:
    """Logits by neurons alone: the mean of Z_i[n] over the pairs (n, h) of S_c."""
    counts = selection.S.sum(1, dtype=torch.int32).to(Z.dtype)  # (text, neuron): heads with which the neuron is in S_c
    return (Z @ counts.T / selection.k).transpose(1, 2)  # (b, patch, text) -> (b, text, patch)


def head_logits(
    Z: Activations, outputs: Outputs, t: Float[Tensor, "text d"], selection: Selection
) -> Float[Tensor, "b text patch"]:
    """Logits by heads alone: the mean of <r_i^h, t_c> over the pairs (n, h) of S_c."""
    counts = selection.S.sum(2, dtype=torch.int32).to(Z.dtype)  # (text, head): neurons with which the head is in S_c
    total = Z.new_zeros(*Z.shape[:2], len(t))  # (b, patch, text)
    for h, r in enumerate(outputs):
        total += counts[:, h] * (r @ t.to(r).T)
    return (total / selection.k).transpose(1, 2)  # (b, patch, text) -> (b, text, patch)


PAIR_LOGITS = {"pairs": pair_logits, "neurons": neuron_logits, "heads": head_logits}


def head_outputs(visual: ModifiedResNet, tokens: PoolTokens, sink: bool) -> Iterator[Float[Tensor, "b patch d"]]:
    """Yield r_i^h of each head h at every token of the grid, at unit norm; a repaired corner is at unit norm too."""
    W_V, W_O, _ = value_output(visual)  # (head, e, neuron), (head, d, e)
    pool = visual.attnpool
    b_V, b_O = (layer.bias.to(W_V.dtype) for layer in (pool.v_proj, pool.c_proj))
    share = b_O / tokens.a[0].numel()  # (d,): the part of b_O for one head at one token
    for h, b in enumerate(b_V.unflatten(0, (pool.num_heads, -1))):
        v = tokens.x[:, 1:] @ W_V[h].T + b  # (b, patch, e)
        r = tokens.a[:, h, 1:, None] * (v @ W_O[h].T) + share  # (b, patch, d)
        yield F.normalize(repair_corner(r, tokens.grid) if sink else r, dim=-1)


class PairUnits(NamedTuple):
    """Neuron-head pairs of a bundle, for the methods that use pairs."""

    r: Float[Tensor, "pair d"]
    """Direction (PC 1) of every pair."""
    unit: Int[Tensor, "pair 3"]
    """Layer, neuron and head of every pair."""
    k: int
    """Number of pairs for each text."""


class Logits(NamedTuple):
    """Logits of a batch of images."""

    logits: Float[Tensor, "b text row column"]
    embedding: Float[Tensor, "b d"]
    """M(I), not normalised."""


Look = Callable[[Float[Tensor, "b 3 y x"]], Logits]


def resnet_method(
    name: str, visual: ModifiedResNet, t: Float[Tensor, "text d"], pairs: PairUnits | None = None, sink: bool = False
) -> Look:
    """Return a method by name, for a fixed set of texts.

    Args:
        t: Embeddings of the texts, at unit norm.
        pairs: Needed for the methods of BY_PAIRS; other methods do not use it.
        sink: Repair the corner token in the maps of neurons and heads; the baselines stay as in their papers.
    """
    if name in BY_PAIRS:
        assert pairs is not None
        maps = _by_pairs(name, visual, t, pairs, sink)
    else:
        maps = _by_tokens(name, visual, t)

    @torch.inference_mode()
    def look(image: Float[Tensor, "b 3 y x"]) -> Logits:
        tokens = pool_tokens(visual, image)
        return Logits(maps(tokens).unflatten(-1, tokens.grid), tokens.embedding)  # (b, text, patch) -> (b, text, row, column)

    return look


def _by_pairs(
    name: str, visual: ModifiedResNet, t: Float[Tensor, "text d"], pairs: PairUnits, sink: bool
) -> Callable[[PoolTokens], Tensor]:
    heads, neurons = visual.attnpool.num_heads, visual.attnpool.v_proj.in_features
    selection: Selection = select_pairs(pairs.r, pairs.unit, t, pairs.k, heads, neurons)

    def maps(tokens: PoolTokens) -> Float[Tensor, "b text patch"]:
        Z = repair_corner(tokens.Z, tokens.grid) if sink else tokens.Z
        return PAIR_LOGITS[name](Z, head_outputs(visual, tokens, sink), t, selection)

    return maps


def _by_tokens(name: str, visual: ModifiedResNet, t: Float[Tensor, "text d"]) -> Callable[[PoolTokens], Tensor]:
    features = {"maskclip": maskclip, "qqkk": qqkk, "values": values}[name]
    return lambda tokens: (features(visual, tokens) @ t.T).transpose(1, 2)  # (b, patch, text) -> (b, text, patch)


def heat_of(method: Callable[[Float[Tensor, "text d"]], Look]) -> Method:
    """Return a method for heat maps: each image has its own texts, which do not compete with each other.

    Args:
        method: The method for a fixed set of texts.
    """

    def heat(image: Float[Tensor, "b 3 y x"], t: Float[Tensor, "b text d"]) -> Heat:
        results = [method(texts)(one_image[None]) for one_image, texts in zip(image, t, strict=True)]
        return Heat(torch.cat([result.logits for result in results]), torch.cat([result.embedding for result in results]))

    return heat
