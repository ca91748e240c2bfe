"""Choice of the factored effect for a model, by the type of its image tower. No other module decides this."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from torch import nn

from cliptools.errors import ModelError, StreamError, UsageError
from cliptools.models.clip_parts import ModifiedResNet
from cliptools.models.dictionary_file import open_dictionary
from cliptools.towers.dictionary import Dictionary, with_dictionary
from cliptools.towers.kinds import supported_tower
from cliptools.towers.tower import Tower
from cliptools.unit_effects.factored import FactoredEffect
from cliptools.unit_effects.pairs import PairEffect
from cliptools.unit_effects.resnet_pooling import LAYER, Pairs, PooledHeads, PooledNeurons, supported_resnet
from cliptools.unit_effects.vit_direct import FirstOrder, Heads, choose_any_layers, choose_head_layers
from cliptools.unit_effects.vit_pooled_second_order import SecondOrderPooled
from cliptools.unit_effects.vit_pooling import (
    TokenHeads,
    TokenNeurons,
    TokenPairs,
    choose_pooled_layers,
    choose_pooling_heads,
)
from cliptools.unit_effects.vit_second_order import SecondOrder, choose_layers

UNITS = ("pairs", "neurons", "heads")
LATENTS = "latents"
DICTIONARY = "sae:"
"""Start of --units where these are the latents of a dictionary in a file."""
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
    """pairs, neurons, heads, or latents of a dictionary."""
    layers: tuple[int, ...]
    dictionary: Dictionary | None = None
    """The dictionary of latents."""

    @property
    def scale(self) -> str:
        """The papers' scale of these effects: paper 1 multiplies them by 100 / ||M(I)|| (unit), paper 2 does not (raw)."""
        return "raw" if self.effect == "pooled" else "unit"


def pools_by_attention(clip: nn.Module) -> bool:
    """True for an image tower that is a ResNet with attention pooling (arXiv 2509.19943), false for a ViT (arXiv 2406.04341)."""
    return isinstance(clip.visual, ModifiedResNet)


def choose_effects(clip: nn.Module, effect: str | None, units: str | None, layers: Sequence[int] | None) -> Choice:
    """The effects that the options choose; by default second-order effects of neurons, or pairs where attention pools.

    Args:
        units: pairs, neurons or heads, or `sae:` and the file of a dictionary.

    Raises:
        ModelError: an image tower for which no effects are defined.
        UsageError: the image tower does not have the chosen effects.
    """
    if units is not None and units.startswith(DICTIONARY):
        return _choose_latents(clip, effect, units, layers)
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


def _choose_latents(clip: nn.Module, effect: str | None, units: str, layers: Sequence[int] | None) -> Choice:
    """The effects of a dictionary's latents.

    Raises:
        ModelError: the dictionary cannot be read, or does not fit the image tower.
        UsageError: latents do not have the chosen effects, or the layer is another one.
    """
    if pools_by_attention(clip):
        raise UsageError(f"--units {DICTIONARY}FILE: a dictionary of a residual stream needs a ViT, this image tower is a ResNet")
    if effect == "indirect":
        raise UsageError("--effect indirect is of neurons; latents of a dictionary have --effect second, first or pooled")
    tower = supported_tower(clip)
    dictionary = Dictionary(open_dictionary(units.removeprefix(DICTIONARY)))
    dictionary.check_tower(tower)
    layer = dictionary.layer
    if layers is not None and tuple(layers) != (layer,):
        raise UsageError(f"--layers: {dictionary.file.title} is a dictionary of layer {layer}; leave --layers out")
    if tower.pooling is None and effect == "pooled":
        raise UsageError("--effect pooled: this image tower is a ViT that does not pool by attention")
    if tower.pooling is not None and effect == "first":
        raise UsageError("--effect first: this image tower pools by attention, which all latents cross: use --effect pooled")
    effect = effect or ("second" if tower.pooling is None else "pooled")
    if effect == "second":
        choose_layers(tower, (layer,))
    return Choice(effect, LATENTS, (layer,), dictionary)


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


def recorded_effect(clip: nn.Module, settings: Mapping[str, Any]) -> FactoredEffect:
    """The factored effect of the units of a bundle.

    Args:
        settings: Settings of its header.

    Raises:
        ModelError: the model's image tower has no such effect, or the bundle's dictionary is not there.
    """
    return factored_effect(clip, settings["effect"], settings.get("units", "neurons"), recorded_dictionary(settings))


def unit_tower(clip: nn.Module, settings: Mapping[str, Any]) -> Tower:
    """The adapter of a ViT whose units are those of a bundle.

    Args:
        settings: Settings of the bundle's header.

    Raises:
        ModelError: an unsupported image tower, or the bundle's dictionary is not there.
    """
    tower, dictionary = supported_tower(clip), recorded_dictionary(settings)
    return tower if dictionary is None else with_dictionary(tower, dictionary)


def recorded_dictionary(settings: Mapping[str, Any]) -> Dictionary | None:
    """The dictionary that a bundle's header records; None where units are of the model itself.

    Raises:
        ModelError: its file cannot be read, or holds another dictionary.
        StreamError: the header does not name a file.
    """
    if settings.get("units") != LATENTS:
        return None
    record = settings["dictionary"]
    if not all(isinstance(record.get(key), str) for key in ("file", "sha256")):
        raise StreamError("the bundle's header has a `dictionary` without file and sha256")
    try:
        file = open_dictionary(record["file"])
    except (ModelError, UsageError) as error:
        raise ModelError(f"the bundle's dictionary, sae:{record['file']}: {error}") from None
    if file.digest != record["sha256"]:
        raise ModelError(f"{file.title}: not the bundle's dictionary, it has other tensors or settings")
    return Dictionary(file)


def factored_effect(clip: nn.Module, effect: str, units: str, dictionary: Dictionary | None = None) -> FactoredEffect:
    """The factored effect of these units.

    Args:
        effect: second, first or pooled, as bundles record it.
        units: pairs, neurons, heads or latents, as bundles record it.
        dictionary: The dictionary of latents.

    Raises:
        ModelError: the model's image tower has no such effect.
    """
    if effect == "pooled" and pools_by_attention(clip):
        return POOLED[units](supported_resnet(clip))
    visual = supported_tower(clip)
    if dictionary is not None:
        visual, units = with_dictionary(visual, dictionary), "neurons"
    if effect == "pooled":
        return POOLED_TOKENS[units](visual)
    if units == "heads":
        return Heads(visual)
    if effect == "first":
        return FirstOrder(visual)
    return SecondOrder(visual) if visual.pooling is None else SecondOrderPooled(visual)
