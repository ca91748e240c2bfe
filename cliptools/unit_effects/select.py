"""Choice of the factored effect for a model, by the type of its image tower. No other module decides this."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

from torch import nn

from cliptools.errors import UsageError
from cliptools.models.clip_parts import ModifiedResNet
from cliptools.towers.kinds import supported_tower
from cliptools.towers.tower import Tower
from cliptools.unit_effects.factored import FactoredEffect
from cliptools.unit_effects.pairs import PairEffect
from cliptools.unit_effects.resnet_pooling import LAYER, Pairs, PooledHeads, PooledNeurons, supported_resnet
from cliptools.unit_effects.vit_direct import FirstOrder, Heads, choose_any_layers, choose_head_layers
from cliptools.unit_effects.vit_pooling import (
    SecondOrderPooled,
    TokenHeads,
    TokenNeurons,
    TokenPairs,
    choose_pooled_layers,
    choose_pooling_heads,
)
from cliptools.unit_effects.vit_second_order import SecondOrder, choose_layers

POOLED: dict[str, Callable[[ModifiedResNet], FactoredEffect]] = {"pairs": Pairs, "neurons": PooledNeurons, "heads": PooledHeads}
POOLED_TOKENS: dict[str, Callable[[Tower], FactoredEffect]] = {
    "pairs": TokenPairs,
    "neurons": TokenNeurons,
    "heads": TokenHeads,
}


class Choice(NamedTuple):
    """The effects to measure, as bundles record them."""

    effect: str
    """second, first or indirect (ViT); pooled (a ResNet, or a ViT that pools by attention)."""
    units: str
    """pairs, neurons or heads."""
    layers: tuple[int, ...]

    @property
    def scale(self) -> str:
        """The papers' scale of these effects: paper 1 multiplies them by 100 / ||M(I)|| (unit), paper 2 does not (raw)."""
        return "raw" if self.effect == "pooled" else "unit"


def pools_by_attention(clip: nn.Module) -> bool:
    """True for an image tower that is a ResNet with attention pooling (arXiv 2509.19943), false for a ViT (arXiv 2406.04341)."""
    return isinstance(clip.visual, ModifiedResNet)


def choose_effects(clip: nn.Module, effect: str | None, units: str | None, layers: Sequence[int] | None) -> Choice:
    """The effects that the options choose; by default second-order effects of neurons, or pairs where attention pools.

    Raises:
        ModelError: an image tower for which no effects are defined.
        UsageError: the image tower does not have the chosen effects.
    """
    if pools_by_attention(clip):
        supported_resnet(clip)
        if effect not in (None, "pooled"):
            raise UsageError(f"--effect {effect}: a ResNet's neurons act through its attention pooling only; leave --effect out")
        if layers is not None and tuple(layers) != (LAYER,):
            raise UsageError(f"--layers: a ResNet's pooling reads the neurons of layer {LAYER} only; leave --layers out")
        return Choice("pooled", units or "pairs", (LAYER,))
    visual = supported_tower(clip)
    if visual.pooling is not None:
        return _choose_pooled(visual, effect, units, layers)
    if effect == "pooled":
        raise UsageError("--effect pooled: this image tower is a ViT that does not pool by attention")
    if units == "pairs":
        raise UsageError(
            "--units pairs: this image tower is a ViT that does not pool by attention; its units are neurons or heads"
        )
    if units == "heads":
        if effect not in (None, "first"):
            raise UsageError(f"--effect {effect}: a ViT's heads have direct effects only; leave --effect out")
        return Choice("first", "heads", choose_head_layers(visual, layers))
    effect = effect or "second"
    return Choice(effect, "neurons", (choose_layers if effect == "second" else choose_any_layers)(visual, layers))


def _choose_pooled(visual: Tower, effect: str | None, units: str | None, layers: Sequence[int] | None) -> Choice:
    """The effects of a ViT that pools by attention with learned queries.

    Raises:
        UsageError: the image tower does not have the chosen effects.
    """
    if units == "heads":
        if effect not in (None, "pooled"):
            raise UsageError(f"--effect {effect}: the heads of an attention pooling have pooled effects only; leave --effect out")
        return Choice("pooled", "heads", choose_pooling_heads(visual, layers))
    if effect == "first":
        raise UsageError("--effect first: this image tower pools by attention, which all neurons cross: use --effect pooled")
    effect = effect or "pooled"
    if effect == "pooled":
        return Choice(effect, units or "pairs", choose_pooled_layers(visual, layers))
    if units == "pairs":
        raise UsageError(f"--units pairs: a pair has a pooled effect; --effect {effect} is of neurons")
    return Choice(effect, "neurons", (choose_layers if effect == "second" else choose_any_layers)(visual, layers))


def pair_effect(clip: nn.Module) -> PairEffect:
    """The effect of a model's neuron-head pairs.

    Raises:
        ModelError: the model's image tower has no pairs.
    """
    effect = factored_effect(clip, "pooled", "pairs")
    assert isinstance(effect, PairEffect)
    return effect


def factored_effect(clip: nn.Module, effect: str, units: str) -> FactoredEffect:
    """The factored effect of these units.

    Args:
        effect: second, first or pooled, as bundles record it.
        units: pairs, neurons or heads, as bundles record it.

    Raises:
        ModelError: the model's image tower has no such effect.
    """
    if effect == "pooled" and pools_by_attention(clip):
        return POOLED[units](supported_resnet(clip))
    visual = supported_tower(clip)
    if effect == "pooled":
        return POOLED_TOKENS[units](visual)
    if units == "heads":
        return Heads(visual)
    if effect == "first":
        return FirstOrder(visual)
    return SecondOrder(visual) if visual.pooling is None else SecondOrderPooled(visual)
