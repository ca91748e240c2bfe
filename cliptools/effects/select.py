"""Which effects a model has. The type of its image tower decides, here and nowhere else."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

from torch import nn

from cliptools.effects.factored import FactoredEffect
from cliptools.effects.resnet_pooling import LAYER, Pairs, PooledHeads, PooledNeurons, supported_resnet
from cliptools.effects.vit_direct import FirstOrder, Heads, choose_any_layers, choose_head_layers
from cliptools.effects.vit_second_order import SecondOrder, choose_layers, supported_tower
from cliptools.errors import UsageError
from cliptools.models.clip_parts import ModifiedResNet

POOLED: dict[str, Callable[[ModifiedResNet], FactoredEffect]] = {"pairs": Pairs, "neurons": PooledNeurons, "heads": PooledHeads}


class Choice(NamedTuple):
    """What is to be measured."""

    effect: str
    """second, first or indirect of a ViT, pooled of a ResNet."""
    units: str
    """pairs, neurons or heads."""
    layers: tuple[int, ...]

    @property
    def scale(self) -> str:
        """The papers' scale of these effects: paper 1 multiplies them by 100 / ||M(I)|| (unit), paper 2 does not (raw)."""
        return "raw" if self.effect == "pooled" else "unit"


def pools_by_attention(clip: nn.Module) -> bool:
    """Whether the image tower is a ResNet with attention pooling (arXiv 2509.19943), not a ViT (arXiv 2406.04341)."""
    return isinstance(clip.visual, ModifiedResNet)


def choose_effects(clip: nn.Module, effect: str | None, units: str | None, layers: Sequence[int] | None) -> Choice:
    """What is asked for, or by default what suits the model: second-order effects of neurons, or a ResNet's pairs.

    Raises:
        ModelError: the tower has no effects that are known here.
        UsageError: it has others than those asked for.
    """
    if pools_by_attention(clip):
        supported_resnet(clip)
        if effect not in (None, "pooled"):
            raise UsageError(f"--effect {effect}: a ResNet's neurons act through its attention pooling only; leave --effect out")
        if layers is not None and tuple(layers) != (LAYER,):
            raise UsageError(f"--layers: a ResNet's pooling reads the neurons of layer {LAYER} alone; leave --layers out")
        return Choice("pooled", units or "pairs", (LAYER,))
    visual = supported_tower(clip)
    if effect == "pooled":
        raise UsageError("--effect pooled: effects through attention pooling are a ResNet's; this image tower is a ViT")
    if units == "pairs":
        raise UsageError("--units pairs: those are a ResNet's; this image tower is a ViT, whose units are neurons or heads")
    if units == "heads":
        if effect not in (None, "first"):
            raise UsageError(f"--effect {effect}: what is known of a ViT's heads is their direct effect; leave --effect out")
        return Choice("first", "heads", choose_head_layers(visual, layers))
    effect = effect or "second"
    return Choice(effect, "neurons", (choose_layers if effect == "second" else choose_any_layers)(visual, layers))


def factored_effect(clip: nn.Module, effect: str, units: str) -> FactoredEffect:
    """The factored effect of these units.

    Args:
        effect: second, first or pooled, as bundles record it.
        units: Likewise.

    Raises:
        ModelError: the model's image tower has no such effect.
    """
    if effect == "pooled":
        return POOLED[units](supported_resnet(clip))
    visual = supported_tower(clip)
    if units == "heads":
        return Heads(visual)
    return (FirstOrder if effect == "first" else SecondOrder)(visual)
