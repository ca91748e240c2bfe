"""A CLIP-ResNet's segmentation methods by name: from images to logits of a fixed set of texts at every token."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from cliptools.ground.clip_parts import ModifiedResNet
from cliptools.ground.segmentation_names import BY_PAIRS
from cliptools.methods.segmentation.heat_maps import Heat, Method
from cliptools.methods.segmentation.pair_maps import head_maps, neuron_maps, pair_maps
from cliptools.methods.segmentation.pair_selection import Selection, select_pairs
from cliptools.methods.segmentation.pool_tokens import PoolTokens, pool_tokens
from cliptools.methods.segmentation.token_features import maskclip, qqkk, values


class PairUnits(NamedTuple):
    """What the methods by pairs need of a bundle."""

    r: Float[Tensor, "pair d"]
    unit: Int[Tensor, "pair 3"]
    k: int
    """Pairs for each text."""


class Logits(NamedTuple):
    """What a method says of images."""

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
    """The same methods as heat maps: of each image for its own texts, none of which loses to another."""

    def heat(image: Float[Tensor, "b 3 y x"], t: Float[Tensor, "b text d"]) -> Heat:
        each = [resnet_method(name, visual, own, pairs, sink)(one[None]) for one, own in zip(image, t, strict=True)]
        return Heat(torch.cat([found.logits for found in each]), torch.cat([found.embedding for found in each]))

    return heat
