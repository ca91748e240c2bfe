"""Whole heads chosen by text, a baseline of repair.py in the way of RepDecompose (arXiv 2406.01583, section 4.2).

The direct effect of a head h is its part phi_h of the output, M = sum over h of phi_h + the rest. Of its variance over images,

    share_h(s) = Var(<phi_h, s>) / E ||phi_h - b_h||^2

lies along the unit vector s of a text, the number by which TextSpan names heads. For a cue, the heads of largest share are put at
their means b_h on every image, M - sum over h of (phi_h - b_h), and nothing else of the model changes. No weights can do this for
heads before the last layer of a ViT.
"""

from collections.abc import Iterator, Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from cliptools.analysis.ablation import read_effects
from cliptools.emoji.render import scenes_for
from cliptools.models.load import LoadedModel
from cliptools.towers.kinds import tower_of
from cliptools.unit_effects.factored import UnitBlock, total_of
from cliptools.unit_effects.resnet_pooling import LAYER
from cliptools.unit_effects.select import factored_effect, pools_by_attention

SCENES = 1000
AT_ONCE = 50  # scenes


class WholeHeads:
    """The heads of one model, with their means and the share of their variance along texts."""

    def __init__(self, model: LoadedModel, s: Float[Tensor, "text d"], seed: int, scenes: int = SCENES) -> None:
        """
        Args:
            s: Embeddings of texts, less the mean of the vocabulary.
            scenes: Number of rendered scenes for means and variances.
        """
        self.model = model
        pooled = pools_by_attention(model.clip)
        self.effect = factored_effect(model.clip, "pooled" if pooled else "first", "heads")
        layers = [LAYER] if pooled else range(tower_of(model.clip.visual).depth)
        self.blocks = [UnitBlock(layer, torch.arange(self.effect.size(layer)[0])) for layer in layers]
        source = scenes_for(model.name, scenes, seed)
        phi = torch.cat([self.read(self._pictures(source, rows))[1] for rows in torch.arange(scenes).split(AT_ONCE)])
        self.mean = phi.mean(0)  # (head, d)
        centred = phi - self.mean  # (image, head, d)
        along = (centred @ F.normalize(s, dim=1).T).square().mean(0)  # (head, text)
        self.share = along / centred.square().sum(2).mean(0)[:, None]  # (head, text)

    def _pictures(self, source: object, rows: Int[Tensor, " b"]) -> Float[Tensor, "b 3 y x"]:
        return torch.stack([self.model.transform(source.load(row)) for row in rows.tolist()])  # type: ignore[attr-defined]

    @torch.inference_mode()
    def read(self, pictures: Float[Tensor, "b 3 y x"]) -> tuple[Float[Tensor, "b d"], Float[Tensor, "b head d"]]:
        """Return M(I) and phi_h(I) of all heads, in float64."""
        scalars, M = read_effects(self.model.clip.visual, pictures, [(self.effect, self.blocks)])
        return M.double(), torch.stack(list(self._effects(scalars[0])), 1)

    def _effects(self, scalars: Sequence[Tensor]) -> Iterator[Float[Tensor, "b d"]]:
        for block, S in zip(self.blocks, scalars, strict=True):
            for head in range(len(block.neurons)):
                yield total_of(self.effect, block.part(slice(head, head + 1)), S[:, head : head + 1]).double()

    def order(self, text: int) -> Int[Tensor, " head"]:
        """Return the heads, the largest share of variance along a text first."""
        return self.share[:, text].argsort(descending=True, stable=True)

    def outputs(self, pictures: Float[Tensor, "b 3 y x"], sets: Sequence[Int[Tensor, " _"]]) -> Float[Tensor, "s b d"]:
        """Return M(I), then for each set of heads the output with these at their means."""
        M, phi = self.read(pictures)
        centred = phi - self.mean
        return torch.stack([M, *(M - centred[:, heads].sum(1) for heads in sets)])
