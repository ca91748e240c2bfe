"""All of some neurons at their mean activation at once: an intervention, with nothing frozen.

Indirect effects (indirect.py) are taken one neuron at a time. Their sum is not what ablating all of them does, since every
later layer answers to all changes together. Here the activations of a group of neurons are set to their means m_i at every
token i, in one further forward pass. This is, as far as its text tells, the mean ablation by indirect effect in paper 1's
(arXiv 2406.04341) Table 1.
"""

from collections.abc import Callable, Mapping

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from cliptools.ground.clip_parts import VisionTransformer
from cliptools.methods.paths import Hooks
from cliptools.methods.vit_paths import hooked


@torch.inference_mode()
def jointly_ablated(
    visual: VisionTransformer,
    image: Float[Tensor, "b 3 y x"],
    neurons: Mapping[int, Int[Tensor, "_"]],
    means: Mapping[int, Float[Tensor, "token _"]],
) -> Float[Tensor, "b d"]:
    """M of the images with these neurons' activations replaced.

    Args:
        neurons: By layer.
        means: By layer, of these neurons.
    """
    weight = visual.conv1.weight
    hooks: Hooks = [
        (visual.transformer.resblocks[layer].mlp.gelu, _replace(chosen.to(weight.device), means[layer].to(weight)))
        for layer, chosen in neurons.items()
    ]
    with hooked(hooks):
        return visual(image.to(weight.device, weight.dtype))


def _replace(neurons: Int[Tensor, "n"], mean: Float[Tensor, "token n"]) -> Callable[..., Tensor]:
    def hook(module: nn.Module, given: tuple[Tensor, ...], output: Float[Tensor, "b token neuron"]) -> Tensor:
        changed = output.clone()
        changed[..., neurons] = mean
        return changed

    return hook
