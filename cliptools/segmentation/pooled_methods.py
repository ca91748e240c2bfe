"""Segmentation by a ViT that pools by attention: maps of neuron-head pairs, and of neurons' pooled effects, patch by patch.

A pair (n, g) is a neuron of any layer and a head of the pooling. Its effect on the output is a sum over the tokens i
(unit_effects/vit_pooling.py), so that each patch has a share of its inner product with a text t:

    <r^{n,g}, t> = sum over i of beta_i^g p_i^n <A_g w_n, t>

`effects` sums these shares over the pairs S_c that are selected for a text c, or over all heads of selected neurons. The other
methods are those of paper 2 (arXiv 2509.19943; resnet_methods.py has the equations and the selection): the neuron's activation
times the inner product of the text with the output of its head at the patch, or either factor alone,

    logit_i(c) = 1/k sum over (n, g) in S_c of p_i^n <r_i^g, t_c>      r_i^g at unit norm
    r_i^g = beta_i^g sigma_i P gamma_out W_O^g (W_V^g y_i + b_V^g) + share of b_O

Here the r_i^g add up over heads and tokens to what attention adds to the output (towers/pooling.py): to M(I) without the bias
of the LayerNorm behind it, or without the pooling's MLP. p_i^n is of the neuron's own layer; later layers move what they read
from patch to patch, which the method leaves out.
"""

from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from cliptools.segmentation.resnet_methods import PAIR_LOGITS, Logits, Look, PairUnits, Selection, select_pairs
from cliptools.segmentation.vit_baselines import patch_grid
from cliptools.segmentation.vit_methods import Heat, Method, chosen_neurons
from cliptools.towers.hooks import hooked
from cliptools.towers.kinds import tower_of
from cliptools.towers.pooling import Pooling
from cliptools.towers.readout import PoolingRead, pooling_read_hooks
from cliptools.towers.tower import Tower
from cliptools.unit_effects.vit_pooling import pooling_of


class PatchTokens(NamedTuple):
    """What one forward pass has at the patches."""

    embedding: Float[Tensor, "b d"]
    """M(I), not normalised."""
    p: Float[Tensor, "b patch neuron"]
    """Activations of the neurons of several layers, one layer after the other."""
    read: PoolingRead
    grid: tuple[int, int]
    """Rows and columns of patches."""
    prefix: int
    """Number of tokens before the patches."""


class PooledMaps:
    """Maps of one tower, for neurons of several layers."""

    def __init__(self, visual: nn.Module | Tower, layers: Sequence[int]) -> None:
        """
        Args:
            layers: Layers of the neurons, ascending.

        Raises:
            ModelError: the tower does not pool by attention with learned queries.
        """
        self.tower, self.layers = tower_of(visual), tuple(layers)
        self.pooling: Pooling = pooling_of(self.tower)
        sizes = [self.tower.blocks[layer].output.in_features for layer in self.layers]
        self.first = {layer: sum(sizes[:place]) for place, layer in enumerate(self.layers)}
        self.neurons = sum(sizes)

    @cached_property
    def values(self) -> Float[Tensor, "g e neuron"]:
        """W_V^g gamma_in w_n: values of the pooling's heads for a unit of each neuron's activation."""
        w = torch.cat([self.tower.blocks[layer].neuron_outputs(slice(None)) for layer in self.layers], 1)  # (width, neuron)
        return self.pooling.value_matrix() @ w

    def columns(self, unit: Int[Tensor, "u 3"]) -> Int[Tensor, " u"]:
        """Places of units' neurons among the neurons of all layers."""
        first = torch.zeros(self.tower.depth, dtype=torch.int64, device=unit.device)
        first[list(self.first)] = torch.tensor(list(self.first.values()), device=unit.device)
        return first[unit[:, 0].long()] + unit[:, 1]

    def selection(self, pairs: PairUnits, t: Float[Tensor, "text d"]) -> Selection:
        """The pairs with the largest <r, t> of each text."""
        columns = self.columns(pairs.unit)
        unit = torch.stack([torch.zeros_like(columns), columns, pairs.unit[:, 2]], 1)
        return select_pairs(pairs.r, unit, t, pairs.k, self.pooling.heads, self.neurons)

    def tokens(self, image: Float[Tensor, "b 3 y x"]) -> PatchTokens:
        """One forward pass."""
        tower = self.tower
        p: dict[int, Tensor] = {}
        reads: list[PoolingRead] = []
        hooks = [hook for layer in self.layers for hook in tower.blocks[layer].activation_hooks(p, layer)]
        with hooked(hooks + pooling_read_hooks(self.pooling, reads.append)):
            M = tower.visual(image)
        activations = [p[layer][:, tower.prefix :].to(reads[0].beta) for layer in self.layers]
        return PatchTokens(M, torch.cat(activations, 2), reads[0], patch_grid(tower, image), tower.prefix)

    def head_outputs(self, tokens: PatchTokens) -> Iterator[Float[Tensor, "b patch d"]]:
        """Yield r_i^g of each head g at every patch, at unit norm."""
        for r in self.head_shares(tokens):
            yield F.normalize(r[:, tokens.prefix :], dim=-1)

    def head_shares(self, tokens: PatchTokens) -> Iterator[Float[Tensor, "b token d"]]:
        """Yield r_i^g of each head g at every token."""
        W_V, ends, (b_V, b_O) = self.pooling.value_matrix(gain=False), self.pooling.ends(centred=True), self.pooling.biases()
        rows, y = tokens.read.rows, tokens.read.y
        for g in range(self.pooling.heads):
            share = rows[:, g].sum(1)[:, None, None] * b_O / (self.pooling.heads * rows.shape[2])  # (b, 1, d)
            yield rows[:, g, :, None] * ((y @ W_V[g].T + b_V[g]) @ ends[g]) + share

    def effects(
        self, tokens: PatchTokens, t: Float[Tensor, "text d"], S: Bool[Tensor, "text head neuron"]
    ) -> Float[Tensor, "b text patch"]:
        """Shares of the texts at every patch: the sum over S of beta_i^g p_i^n <A_g w_n, t>."""
        total = tokens.p.new_zeros(*tokens.p.shape[:2], len(t))  # (b, patch, text)
        for g, (values, end) in enumerate(zip(self.values, self.pooling.ends(), strict=True)):
            along = (t.to(values) @ end.T) @ values  # (text, e) @ (e, neuron)
            total += tokens.read.beta[:, g, tokens.prefix :, None] * (tokens.p @ (along * S[:, g]).to(tokens.p).T)
        return total.transpose(1, 2)


def maps_of(visual: nn.Module | Tower, unit: Int[Tensor, "u 3"]) -> PooledMaps:
    """Return the maps for the layers of these units."""
    return PooledMaps(visual, sorted(set(unit[:, 0].tolist())))


def pooled_method(name: str, maps: PooledMaps, t: Float[Tensor, "text d"], pairs: PairUnits) -> Look:
    """Return a method of PAIRS_OF_TOKENS by name, for a fixed set of texts.

    Args:
        maps: Those for the layers of the pairs.
        t: Embeddings of the texts, at unit norm.
    """
    selection = maps.selection(pairs, t)

    @torch.inference_mode()
    def look(image: Float[Tensor, "b 3 y x"]) -> Logits:
        tokens = maps.tokens(image)
        if name == "effects":
            logits = maps.effects(tokens, t, selection.S)
        else:
            logits = PAIR_LOGITS[name](tokens.p, maps.head_outputs(tokens), t, selection)
        return Logits(logits.unflatten(-1, tokens.grid), tokens.embedding)  # (b, text, patch) -> (b, text, row, column)

    return look


def pooled_effect_method(
    visual: nn.Module | Tower, unit: Int[Tensor, "unit 3"], r: Float[Tensor, "unit d"], neurons: int
) -> Method:
    """Return the method by pooled effects of the neurons with the largest |<r_n, t>|: their sum at each patch, if positive."""
    maps = maps_of(visual, unit)
    columns = maps.columns(unit)

    def selected(text: Float[Tensor, " d"]) -> Bool[Tensor, "head neuron"]:
        S = torch.zeros(maps.neurons, dtype=torch.bool, device=unit.device)
        S[columns[chosen_neurons(r.to(text), text, neurons)]] = True
        return S.expand(maps.pooling.heads, -1)

    @torch.no_grad()
    def heat(image: Float[Tensor, "b 3 y x"], t: Float[Tensor, "b text d"]) -> Heat:
        tokens = maps.tokens(image)
        scores = []
        for b, texts in enumerate(t):
            read = PoolingRead(*(part[b : b + 1] for part in tokens.read))
            alone = tokens._replace(p=tokens.p[b : b + 1], read=read)
            scores.append(maps.effects(alone, texts, torch.stack([selected(text) for text in texts])).relu()[0])
        return Heat(torch.stack(scores).unflatten(-1, tokens.grid), tokens.embedding)

    return heat
