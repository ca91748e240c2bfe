"""A model whose image tower has random weights: the control for everything that is said about a trained one.

Each tensor keeps its own numbers, in a random order. Sizes of weights are those of the trained tower, so that activations stay in
the range of the numbers that the model computes with, and what training has put where is gone. The text tower stays.
"""

import copy
from dataclasses import replace
from typing import Any

import torch

from cliptools.models.architecture import weights_sha256
from cliptools.models.load import LoadedModel


def with_random_weights(model: LoadedModel, seed: int) -> LoadedModel:
    """Return a copy of the model whose image tower has every parameter tensor in a random order; it shares the text tower.

    Args:
        seed: Random seed of the orders.
    """
    clip: Any = copy.copy(model.clip)
    clip._modules = dict(model.clip._modules)
    visual: Any = copy.deepcopy(model.clip.visual)
    clip._modules["visual"] = visual
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in visual.parameters():
            order = torch.randperm(parameter.numel(), generator=generator).to(parameter.device)
            parameter.copy_(parameter.flatten()[order].view_as(parameter))
    return replace(model, clip=clip, sha256=weights_sha256(clip))
