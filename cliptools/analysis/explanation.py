"""The margin of an image between two texts, as a sum over the parts of a model.

With unit embeddings t_A and t_B of two texts, v = t_A - t_B, and M(I) the output, the margin is the difference of CLIP's logits

    m(I) = 100 (cos(M, t_A) - cos(M, t_B)) = f <M(I), v>,       f = 100 / ||M(I)||

M(I) is a sum over the parts of the model, with attention and LayerNorms as they are on I, so m(I) is one, too. A unit's share and
its excess over the mean over images b_n are

    share_n = f <phi_n(I), v>,       excess_n = share_n - mean_n,       mean_n = <b_n, v> (times f if b_n is of raw effects)

The other parts of a ViT's margin. The direct effects of heads are sums over all that the heads read; second-order effects are
what they read of neurons, so

    units          second-order effects of the units
    other_units    second-order effects of all other neurons
    heads          direct effects of all heads, less both: what heads read of embeddings, attention layers and biases
    mlps           direct effects of all neurons
    (latents of a dictionary are not neurons: then `other_units` are its other latents, and `mlps` all neurons, as before)
    rest           embedding of the tokens that the output is read from, biases of layers and LayerNorms, and the means that the
                   last LayerNorm takes away

The effects of a CLIP-ResNet's pairs are all that its pooling reads, so it has `units`, `other_units` and `rest`, its biases.

Where a ViT pools by attention, direct effects are those through the pooling alone (unit_effects/vit_pooling.py). Units with
second-order effects have the parts above. Pooled effects of all pairs or neurons are those of `mlps`, of which nothing is left,
and `heads` are the direct effects of all heads of self-attention; the pooling's heads, as units, have neither part, since they
read both. Beside `rest` there is

    pooling_mlp    what the neurons of the MLP behind the pooling's attention write, in SigLIP and Perception Encoder

A unit's share is a sum over tokens, which gives its map over the picture, and over heads (margin_passes.py).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Float, Float64, Int
from torch import Tensor

from cliptools.analysis.ablation import Units
from cliptools.analysis.ablation_units import AblationTerms, PairTerms, VectorTerms
from cliptools.analysis.margin_tower import ExplainedTower, ForwardPass
from cliptools.unit_effects.factored import FactoredEffect, UnitBlock, along_of, scale_of, slices, total_of, unit_blocks_of, wide

OTHER_SCALARS = 1 << 27  # scalars S of units that are not explained by, in memory together
LOGIT_SCALE = 100.0  # of CLIP; also the scale of paper 1's effects


class Along(NamedTuple):
    """Inner products with v = t_A - t_B of all that does not depend on the image."""

    v: Float[Tensor, " d"]
    units: list[Float[Tensor, "_ _"]]
    """<D[n, k], v> of each block of units."""
    mean: Float64[Tensor, " u"]
    """<b_n, v>, in the scale of the means."""
    heads: list[Float[Tensor, "_ _"]]
    """<D[h, j], v> of each layer's heads."""


class ImageShares(NamedTuple):
    """The margin of one image and its shares; units are in the order of the bundle."""

    margin: float
    share: Float64[Tensor, " u"]
    mean: Float64[Tensor, " u"]
    parts: dict[str, float]
    """The parts of the module's docstring, which add up to the margin."""
    through: Float64[Tensor, " head"]
    """Sum of the parts of the units' shares that each head carries."""
    direct: Float64[Tensor, " head"]
    """Share of each head's whole direct effect."""

    @property
    def excess(self) -> Float64[Tensor, " u"]:
        """share - mean."""
        return self.share - self.mean


@dataclass(frozen=True)
class ReadImages:
    """Some images after their forward pass."""

    forward: ForwardPass
    S: list[Float[Tensor, "b _ _"]]
    """Scalars of each block of units."""
    norm: Float[Tensor, "b u"]
    """||phi_n - b_n||, in the scale of the means; units in the order of the bundle."""
    others: Float[Tensor, "b d"]
    """Sum of the effects of all units that are not explained by."""
    scale: Float[Tensor, " b"]
    """Factor of the images' effects in the scale of the means."""

    @property
    def embedding(self) -> Float[Tensor, "b d"]:
        """M(I), not normalised."""
        return self.forward.embedding


class Explainer:
    """Shares of the units of one bundle in the margins of images."""

    def __init__(self, tower: ExplainedTower, units: Units, scaled: bool) -> None:
        """
        Args:
            scaled: The means are of effects that are multiplied by 100 / ||M(I)||.

        Raises:
            StreamError: a unit that the model does not have.
        """
        self.tower, self.units, self.scaled = tower, units, scaled
        self.blocks, self.rows = unit_blocks_of(tower.effect, units.unit)
        self.terms = [unit_terms(tower.effect, block, units, rows) for block, rows in zip(self.blocks, self.rows, strict=True)]
        self.order = torch.cat(self.rows).argsort()  # (u,): from the order of the blocks back to that of the bundle
        self.others = [block for layer in tower.layers if len((block := self._others(layer)).neurons)]

    def _others(self, layer: int) -> UnitBlock:
        """All units of a layer that are not among the units."""
        left = torch.ones(self.tower.effect.size(layer)[0], dtype=torch.bool)
        for block in self.blocks:
            if block.layer == layer:
                left[block.neurons] = False
        return UnitBlock(layer, left.nonzero()[:, 0])

    @torch.inference_mode()
    def along(self, v: Float[Tensor, " d"]) -> Along:
        """Inner products with v, for every image with this v."""
        effect, units = self.tower.effect, self.units
        along = [along_of(effect, block, v) for block in self.blocks]
        if units.pairs:
            by_block = [a[:, 0].cpu() * units.mean[row, 0] for a, row in zip(along, self.rows, strict=True)]
            mean = torch.cat(by_block)[self.order]
        else:
            mean = units.mean.double() @ v.cpu().double()
        heads = [along_of(self.tower.head_effect, block, v) for block in self.tower.head_blocks]
        return Along(v, along, mean.double(), heads)

    @torch.inference_mode()
    def read(self, image: Float[Tensor, "b 3 y x"]) -> ReadImages:
        """One forward pass, with what the shares of these images depend on."""
        forward = self.tower.read(image)
        scale = scale_of(forward.embedding, self.scaled)
        S = [forward.scalars(block) for block in self.blocks]
        norm = torch.cat([terms.norms(s, scale) for terms, s in zip(self.terms, S, strict=True)], 1)  # (b, u)
        others = torch.zeros_like(forward.embedding)
        for block in self.others:
            paths = self.tower.effect.size(block.layer)[1]
            for rows in slices(len(block.neurons), paths, max(1, OTHER_SCALARS // (len(image) * paths))):
                part = block.part(rows)
                others = others + total_of(self.tower.effect, part, forward.scalars(part)).to(others)
        return ReadImages(forward, S, norm[:, self.order.to(norm.device)], others, scale)

    @torch.inference_mode()
    def shares(self, images: ReadImages, image: int, along: Along) -> ImageShares:
        """The margin of one of the images along v, and its shares."""
        M, v = images.embedding[image].cpu().double(), along.v.cpu().double()
        f = LOGIT_SCALE / float(M.norm())
        margin = f * float(M @ v)
        paths = [(S[image] * a).cpu().double() * f for S, a in zip(images.S, along.units, strict=True)]  # (n, k) a block
        share = torch.cat([path.sum(1) for path in paths])[self.order]  # (u,)
        direct = torch.cat(
            [(S[image] * a).sum(1).cpu().double() * f for S, a in zip(images.forward.head_scalars, along.heads, strict=True)]
        )  # (head,)
        through = torch.zeros(len(self.tower.heads), dtype=torch.float64)
        for block, path in zip(self.blocks, paths, strict=True):
            through.index_add_(0, self.tower.path_heads(block).flatten(), path.flatten())
        parts = {"units": float(share.sum()), "other_units": f * float(images.others[image].cpu().double() @ v)}
        if self.tower.carried:
            parts["heads"] = float(direct.sum()) - parts["units"] - parts["other_units"]
        parts |= {name: f * float(part[image].cpu().double() @ v) for name, part in images.forward.parts.items()}
        parts["rest"] = margin - sum(parts.values())
        mean = along.mean if self.scaled else along.mean * f
        return ImageShares(margin, share, mean, parts, through, direct)

    @torch.inference_mode()
    def maps(
        self, images: ReadImages, image: int, along: Along, units: Sequence[int]
    ) -> tuple[Float64[Tensor, "unit row column"], Float64[Tensor, " unit"]]:
        """Shares of some units at every token of the grid, and at the tokens before them (class token and registers, or mean
        token); both add up to the share.

        Args:
            units: Numbers of units, in the order of the bundle.
        """
        f = LOGIT_SCALE / float(images.embedding[image].norm())
        prefix = self.tower.prefix
        tokens = torch.zeros(len(units), prefix + self.tower.grid[0] * self.tower.grid[1], dtype=torch.float64)
        for number, unit in enumerate(units):
            block, place = self._place(unit)
            alone = self.blocks[block].part(torch.tensor([place]))
            S = images.forward.token_scalars(image, alone)[:, 0]  # (token, k)
            tokens[number] = f * (S @ along.units[block][place].to(S)).cpu().double()
        return tokens[:, prefix:].unflatten(1, self.tower.grid), tokens[:, :prefix].sum(1)

    @torch.inference_mode()
    def path_shares(self, images: ReadImages, image: int, along: Along, unit: int) -> tuple[Tensor, Int[Tensor, " k"]]:
        """Parts of a unit's share that its paths carry [k], and the number of each path's head."""
        f = LOGIT_SCALE / float(images.embedding[image].norm())
        block, place = self._place(unit)
        part = images.S[block][image, place] * along.units[block][place]  # (k,)
        return f * part.cpu().double(), self.tower.path_heads(self.blocks[block].part(torch.tensor([place])))[0]

    def _place(self, unit: int) -> tuple[int, int]:
        """The block of a unit, and its place in it."""
        place = int(self.order[unit])
        for block, rows in enumerate(self.rows):
            if place < len(rows):
                return block, place
            place -= len(rows)
        raise IndexError(unit)


def unit_terms(effect: FactoredEffect, block: UnitBlock, units: Units, rows: Int[Tensor, " n"]) -> AblationTerms:
    """The terms of these rows of the units, which are those of the block."""
    if units.pairs:
        return PairTerms(effect, block, units.mean[rows, 0], units.component[rows, 0, 0])
    return VectorTerms(effect, block, units.mean[rows], units.component[rows])


def cosines(embedding: Float[Tensor, "b d"], t: Float[Tensor, "text d"]) -> Float64[Tensor, "b text"]:
    """Cosines of M(I) with unit embeddings of texts, in float64 on the CPU."""
    return torch.nn.functional.normalize(wide(embedding).cpu().double(), dim=1) @ t.cpu().double().T
