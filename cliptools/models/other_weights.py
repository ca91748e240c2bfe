"""A loaded model with other weights: those of another file, or random ones.

`with_weights` is for comparisons of a model before and after an edit. `with_random_weights` is the control for everything that is
said about a trained model: each tensor of the image tower keeps its own numbers, in a random order. Sizes of weights are those of
the trained tower, so that activations stay in the range of the numbers that the model computes with, and what training has put
where is gone. The text tower stays.
"""

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from cliptools.console import escape, warn
from cliptools.errors import ModelError
from cliptools.models.architecture import weights_sha256
from cliptools.models.checkpoints.checkpoint import load_weights, read_checkpoint
from cliptools.models.checkpoints.edited import parent_of
from cliptools.models.load import DTYPE, LoadedModel
from cliptools.models.origin import LOCAL_DIR, weights_in


def with_weights(model: LoadedModel, place: str, option: str) -> LoadedModel:
    """Return the same architecture, activation and preprocessing with the weights of a file or folder, in the same precision.

    Args:
        model: A complete model, whose weights stay as they are.
        place: The file or folder, also as local-dir:FOLDER.
        option: Option that names the file, for messages.

    Raises:
        ModelError: there is no such file, it cannot be read, or its weights are of another architecture.
    """
    path = Path(place.removeprefix(LOCAL_DIR))
    file = weights_in(path) if path.is_dir() else path
    if file is None or not file.is_file():
        raise ModelError(f"{option} {escape(place)}: expected a file of weights, or a folder with one")
    clip = copy.deepcopy(model.clip).float().cpu()
    checkpoint = read_checkpoint(file)
    load_weights(clip, checkpoint, model.name, None)
    sha256 = weights_sha256(clip)
    if sha256 == model.sha256:
        warn(f"{option} {escape(place)}: holds the weights of the model itself, so nothing differs")
    clip = clip.to(device=model.device, dtype=DTYPE[model.precision]).eval().requires_grad_(False)
    return replace(model, clip=clip, pretrained=place, sha256=sha256, parent=parent_of(checkpoint.edit, sha256))


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
