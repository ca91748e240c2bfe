"""Inputs and checks of test_text_tower.py that other tests share."""

import torch
from open_clip.model import CLIP
from torch import nn

from cliptools.models.load import LoadedModel

VISION = {"image_size": 16, "patch_size": 8, "width": 16, "layers": 1, "head_width": 8}


TEXT = {"context_length": 24, "vocab_size": 49408, "width": 24, "heads": 3, "layers": 3}


def loaded_with(clip: nn.Module, sha256: str = "0" * 64) -> LoadedModel:
    clip = clip.eval().requires_grad_(False)
    return LoadedModel("ViT-B-32", "random", sha256, "fp32", clip, lambda image: torch.zeros(0), {}, torch.device("cpu"))


def random_clip(kind: type = CLIP, **text: object) -> LoadedModel:
    torch.manual_seed(1)
    clip = kind(12, dict(VISION), TEXT | text)
    for p in clip.parameters():  # larger than at the start of training, so that every position matters
        p.data = torch.randn_like(p) * 0.4
    return loaded_with(clip)
