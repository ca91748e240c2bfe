"""Inputs and checks of test_second_order.py that other tests share."""

from functools import partial

import torch
from open_clip.transformer import LayerNorm, QuickGELU, VisionTransformer

SHAPES = [
    {"image_size": 40, "patch_size": 8, "width": 36, "layers": 5, "heads": 3, "mlp_ratio": 2.5, "output_dim": 23},
    {
        "image_size": 21,
        "patch_size": 7,
        "width": 30,
        "layers": 4,
        "heads": 5,
        "mlp_ratio": 1.7,
        "output_dim": 31,
        "ls_init_value": 0.2,
    },
    {
        "image_size": (24, 16),
        "patch_size": 8,
        "width": 26,
        "layers": 3,
        "heads": 2,
        "mlp_ratio": 3.0,
        "output_dim": 9,
        "no_ln_pre": True,
    },
    {
        "image_size": 16,
        "patch_size": 4,
        "width": 28,
        "layers": 6,
        "heads": 7,
        "mlp_ratio": 2.0,
        "output_dim": 28,
        "act_layer": QuickGELU,
    },
    {
        "image_size": 16,
        "patch_size": 8,
        "width": 24,
        "layers": 3,
        "heads": 3,
        "mlp_ratio": 2.0,
        "output_dim": 11,
        "norm_layer": partial(LayerNorm, elementwise_affine=False),
        "patch_dropout": 0.5,
    },
    {
        "image_size": 16,
        "patch_size": 8,
        "width": 24,
        "layers": 2,
        "heads": 2,
        "mlp_ratio": 2.0,
        "output_dim": 13,
        "norm_layer": partial(LayerNorm, bias=False),
        "final_ln_after_pool": True,
    },
]


def random_tower(shape: dict, seed: int = 0) -> VisionTransformer:
    torch.manual_seed(seed)
    visual = VisionTransformer(**shape).double().eval().requires_grad_(False)
    for p in visual.parameters():
        p.data = 0.3 * torch.randn_like(p) + (p.ndim == 1)
    return visual


def pictures(visual: VisionTransformer, count: int) -> torch.Tensor:
    return torch.randn(count, 3, *visual.image_size, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
