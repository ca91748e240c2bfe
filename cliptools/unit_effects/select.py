"""Choice of the factored effect for a model, by the type of its image tower. No other module decides this."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

from torch import nn

from cliptools.errors import UsageError
from cliptools.models.clip_parts import ModifiedResNet
from cliptools.towers.kinds import supported_tower
from cliptools.unit_effects.factored import FactoredEffect
from cliptools.unit_effects.resnet_pooling import LAYER, Pairs, PooledHeads, PooledNeurons, supported_resnet
from cliptools.unit_effects.vit_direct import FirstOrder, Heads, choose_any_layers, choose_head_layers
from cliptools.unit_effects.vit_second_order import SecondOrder, choose_layers

POOLED: dict[str, Callable[[ModifiedResNet], FactoredEffect]] = {"pairs": Pairs, "neurons": PooledNeurons, "heads": PooledHeads}


class Choice(NamedTuple):
    """The effects to measure, as bundles record them."""

    effect: str
    """second, first or indirect (ViT); pooled (ResNet)."""
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
    """The effects that the options choose; by default second-order effects of a ViT's neurons, or a ResNet's neuron-head pairs.

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
    if effect == "pooled":
        raise UsageError("--effect pooled: only a ResNet has effects through attention pooling; this image tower is a ViT")
    if units == "pairs":
        raise UsageError("--units pairs: only a ResNet has pairs; this image tower is a ViT, whose units are neurons or heads")
    if units == "heads":
        if effect not in (None, "first"):
            raise UsageError(f"--effect {effect}: a ViT's heads have direct effects only; leave --effect out")
        return Choice("first", "heads", choose_head_layers(visual, layers))
    effect = effect or "second"
    return Choice(effect, "neurons", (choose_layers if effect == "second" else choose_any_layers)(visual, layers))


def factored_effect(clip: nn.Module, effect: str, units: str) -> FactoredEffect:
    """The factored effect of these units.

    Args:
        effect: second, first or pooled, as bundles record it.
        units: pairs, neurons or heads, as bundles record it.

    Raises:
        ModelError: the model's image tower has no such effect.
    """
    if effect == "pooled":
        return POOLED[units](supported_resnet(clip))
    visual = supported_tower(clip)
    if units == "heads":
        return Heads(visual)
    return (FirstOrder if effect == "first" else SecondOrder)(visual)
