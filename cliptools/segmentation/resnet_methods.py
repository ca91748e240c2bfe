"""Embeddings of class texts for many classes at once: what all have in common taken away (arXiv 2509.19943).

Which neuron-head pairs speak for a text (arXiv 2509.19943): those whose directions lie furthest along it, sign included.

Where in an image a text is, by neuron-head pairs (arXiv 2509.19943, its segmentation), and by half of each pair alone.

A pair's map for text c is its neuron's activation times how far what its head says of the token lies along the text:

    logit_i(c) = 1/k sum over (n, h) in S_c of Z_i[n] <r_i^h, t_c>,    r_i^h = a_i^h W_O^h (W_V^h x_i + b_V^h) + b_O / (H tokens)

r_i^h, which add up to M(I) over heads and tokens, at unit norm. Pairs of one head share what it says, so only sums over
heads are ever held:

    logit_i(c) = 1/k sum over h of <r_i^h, t_c> sum over n: (n, h) in S_c of Z_i[n]

A CLIP-ResNet's segmentation methods by name: from images to logits of a fixed set of texts at every token.
"""

from collections.abc import Callable, Iterator
from typing import Literal, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional as F

from cliptools.console import count_of
from cliptools.devices import to_float64, to_like
from cliptools.effects.resnet_pooling import value_output
from cliptools.errors import TextError, UsageError
from cliptools.models.clip_parts import ModifiedResNet
from cliptools.segmentation import BY_PAIRS
from cliptools.segmentation.towers import PoolTokens, maskclip, pool_tokens, qqkk, repaired, values
from cliptools.segmentation.vit_methods import Heat, Method

CenterClasses = Literal["classes", "none"]
NOTHING = 1e-6  # what is left of a unit vector that equals the mean up to rounding


def class_texts(t: Float[Tensor, "text d"], center: CenterClasses = "classes") -> Float[Tensor, "text d"]:
    """Unit-norm texts, their mean subtracted and of unit norm again; with `none` as they are.

    Raises:
        TextError: a text that equals the mean, as a single one does.
    """
    if center == "none":
        return t
    centred = to_float64(t) - to_float64(t).mean(0)
    if bool((centred.norm(dim=1) < NOTHING).any()):
        raise TextError(f"--classes: of {len(t)} text(s), one equals their mean: nothing is left of it; try --center none")
    return to_like(F.normalize(centred, dim=1), t)


PAPER_PAIRS, PAPER_OF = 20_000, 147_456  # per text, of all pairs of RN50x16
CHUNK = 16  # texts at a time: their products with all pairs are held together


class Selection(NamedTuple):
    """S_c for every text c."""

    S: Bool[Tensor, "text head neuron"]
    k: int
    """Pairs of each text."""


def default_pairs(pairs: int) -> int:
    """The paper's share of the pairs there are: 20,000 of RN50x16's, fewer of smaller models."""
    return max(1, round(pairs * PAPER_PAIRS / PAPER_OF))


def check_top_pairs(asked: int | None, pairs: int) -> int:
    """k as asked for, or the paper's share.

    Raises:
        UsageError: more pairs than there are.
    """
    if asked is not None and asked > pairs:
        raise UsageError(f"--top-pairs {asked}: the bundle has {count_of(pairs, 'pair')}")
    return default_pairs(pairs) if asked is None else asked


def select_pairs(
    r: Float[Tensor, "pair d"],
    unit: Int[Tensor, "pair 3"],
    t: Float[Tensor, "text d"],
    k: int,
    heads: int,
    neurons: int,
) -> Selection:
    """For each text the k pairs with the largest <r, t>, signs as they are.

    Args:
        r: PC 1 of every pair.
        unit: Layer, neuron and head of every pair.
        t: Embeddings of the texts, as the maps are to see them.
    """
    place = (unit[:, 2].long() * neurons + unit[:, 1].long()).to(r.device)  # of the pair in [head, neuron]
    S = torch.zeros(len(t), heads * neurons, dtype=torch.bool, device=r.device)
    for rows, texts in zip(S.split(CHUNK), t.split(CHUNK), strict=True):
        along = texts @ r.T  # (chunk, pair)
        rows.scatter_(1, place[along.topk(k, dim=1).indices], True)
    return Selection(S.unflatten(1, (heads, neurons)), k)


def pair_maps(
    visual: ModifiedResNet, seen: PoolTokens, t: Float[Tensor, "text d"], chosen: Selection, sink: bool
) -> Float[Tensor, "b text patch"]:
    """The pairs' logits.

    Args:
        sink: Repair the corner token, in the neurons' maps and in the heads'.
    """
    Z = repaired(seen.Z, seen.grid) if sink else seen.Z
    total = Z.new_zeros(len(Z), Z.shape[1], len(t))  # (b, patch, text)
    for h, r in enumerate(each_head(visual, seen, sink)):
        neurons = Z @ chosen.S[:, h].to(Z.dtype).T  # (b, patch, text): sum over n: (n, h) in S_c
        total += neurons * (r @ t.T)
    return (total / chosen.k).transpose(1, 2)


def neuron_maps(seen: PoolTokens, chosen: Selection, sink: bool) -> Float[Tensor, "b text patch"]:
    """Neurons alone: the mean of Z_i[n] over the pairs (n, h) of S_c."""
    Z = repaired(seen.Z, seen.grid) if sink else seen.Z
    times = chosen.S.sum(1, dtype=torch.int32).to(Z.dtype)  # (text, neuron): heads by which S_c has the neuron
    return (Z @ times.T / chosen.k).transpose(1, 2)


def head_maps(
    visual: ModifiedResNet, seen: PoolTokens, t: Float[Tensor, "text d"], chosen: Selection, sink: bool
) -> Float[Tensor, "b text patch"]:
    """Heads alone: the mean of <r_i^h, t_c> over the pairs (n, h) of S_c."""
    times = chosen.S.sum(2, dtype=torch.int32).to(seen.Z.dtype)  # (text, head): neurons by which S_c has the head
    total = seen.Z.new_zeros(*seen.Z.shape[:2], len(t))  # (b, patch, text)
    for h, r in enumerate(each_head(visual, seen, sink)):
        total += times[:, h] * (r @ t.T)
    return (total / chosen.k).transpose(1, 2)


def each_head(visual: ModifiedResNet, seen: PoolTokens, sink: bool) -> Iterator[Float[Tensor, "b patch d"]]:
    """r_i^h at every token of the grid and at unit norm, a repaired corner too; head by head."""
    W_V, W_O, _ = value_output(visual)
    pool = visual.attnpool
    b_V, b_O = (layer.bias.to(W_V.dtype) for layer in (pool.v_proj, pool.c_proj))
    share = b_O / seen.a[0].numel()  # (d,): of one head at one token
    for h, b in enumerate(b_V.unflatten(0, (pool.num_heads, -1))):
        v = seen.x[:, 1:] @ W_V[h].T + b  # (b, patch, e)
        r = seen.a[:, h, 1:, None] * (v @ W_O[h].T) + share
        yield F.normalize(repaired(r, seen.grid) if sink else r, dim=-1)


class PairUnits(NamedTuple):
    """Parts of a bundle that the methods by pairs use."""

    r: Float[Tensor, "pair d"]
    unit: Int[Tensor, "pair 3"]
    k: int
    """Pairs for each text."""


class Logits(NamedTuple):
    """Result of a method on images."""

    logits: Float[Tensor, "b text row column"]
    embedding: Float[Tensor, "b d"]
    """M(I), not normalised."""


Look = Callable[[Float[Tensor, "b 3 y x"]], Logits]


def resnet_method(
    name: str, visual: ModifiedResNet, t: Float[Tensor, "text d"], pairs: PairUnits | None = None, sink: bool = False
) -> Look:
    """A method by name, ready for these texts.

    Args:
        t: Unit norm.
        pairs: For the methods of names.BY_PAIRS.
        sink: Repair the corner token in neurons' and heads' maps; the baselines are as their papers have them.
    """
    if name in BY_PAIRS:
        assert pairs is not None
        maps = _by_pairs(name, visual, t, pairs, sink)
    else:
        maps = _by_tokens(name, visual, t)

    @torch.inference_mode()
    def look(image: Float[Tensor, "b 3 y x"]) -> Logits:
        seen = pool_tokens(visual, image)
        return Logits(maps(seen).unflatten(-1, seen.grid), seen.embedding)

    return look


def _by_pairs(
    name: str, visual: ModifiedResNet, t: Float[Tensor, "text d"], pairs: PairUnits, sink: bool
) -> Callable[[PoolTokens], Tensor]:
    heads, neurons = visual.attnpool.num_heads, visual.attnpool.v_proj.in_features
    chosen: Selection = select_pairs(pairs.r, pairs.unit, t, pairs.k, heads, neurons)
    by_name: dict[str, Callable[[PoolTokens], Tensor]] = {
        "pairs": lambda seen: pair_maps(visual, seen, t, chosen, sink),
        "neurons": lambda seen: neuron_maps(seen, chosen, sink),
        "heads": lambda seen: head_maps(visual, seen, t, chosen, sink),
    }
    return by_name[name]


def _by_tokens(name: str, visual: ModifiedResNet, t: Float[Tensor, "text d"]) -> Callable[[PoolTokens], Tensor]:
    features = {"maskclip": maskclip, "qqkk": qqkk, "values": values}[name]
    return lambda seen: (features(visual, seen) @ t.T).transpose(1, 2)


def resnet_heat(name: str, visual: ModifiedResNet, pairs: PairUnits | None = None, sink: bool = False) -> Method:
    """A method's heat maps of each image for its own texts, which do not compete with each other."""

    def heat(image: Float[Tensor, "b 3 y x"], t: Float[Tensor, "b text d"]) -> Heat:
        each = [resnet_method(name, visual, own, pairs, sink)(one[None]) for one, own in zip(image, t, strict=True)]
        return Heat(torch.cat([found.logits for found in each]), torch.cat([found.embedding for found in each]))

    return heat
