"""Inputs and checks of test_resnet_paths.py that other tests share."""

import torch
from open_clip.modified_resnet import ModifiedResNet

SHAPES = [
    {"layers": [1, 1, 1, 1], "width": 6, "heads": 3, "image_size": 64, "output_dim": 11},
    {"layers": [2, 1, 1, 2], "width": 10, "heads": 5, "image_size": 96, "output_dim": 70},
    {"layers": [1, 2, 1, 1], "width": 6, "heads": 12, "image_size": 160, "output_dim": 24},
]


def randomise(visual: ModifiedResNet, seed: int = 0) -> ModifiedResNet:
    """Set weights, biases and BatchNorm statistics to random values, with gains of bn3 away from 0."""
    torch.manual_seed(seed)
    for module in visual.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.weight.data.uniform_(0.3, 1.0)
            module.bias.data.normal_(0, 0.3)
            module.running_mean.normal_(0, 0.2)
            module.running_var.uniform_(0.5, 2)
        if isinstance(module, torch.nn.Linear):
            module.weight.data = torch.randn_like(module.weight) * module.in_features**-0.5 * 1.5
            module.bias.data.normal_(0, 0.3)
    visual.attnpool.positional_embedding.data.normal_(0, 0.3)
    return visual.eval().requires_grad_(False)


def random_resnet(shape: dict, seed: int = 0) -> ModifiedResNet:
    torch.manual_seed(seed)
    return randomise(ModifiedResNet(**shape).double(), seed)


def pictures(visual: ModifiedResNet, count: int, seed: int = 1) -> torch.Tensor:
    random = torch.Generator().manual_seed(seed)
    return torch.randn(count, 3, visual.image_size, visual.image_size, dtype=torch.float64, generator=random)


def pair_effects(visual: ModifiedResNet, image: torch.Tensor) -> torch.Tensor:
    """Return r [neuron, head, d] of one image [3, y, x], token by token, with explicit queries, keys and values."""
    kept: list[torch.Tensor] = []
    handle = visual.layer4.register_forward_hook(lambda _, __, out: kept.append(out[0]))
    visual(image[None])
    handle.remove()
    pool, z = visual.attnpool, kept[0].flatten(1).T  # (token, neuron)
    x = torch.cat([z.mean(0)[None], z]) + pool.positional_embedding
    e = x.shape[1] // pool.num_heads
    r = torch.zeros(x.shape[1], pool.num_heads, pool.c_proj.out_features, dtype=x.dtype)
    for h in range(pool.num_heads):
        of = slice(h * e, (h + 1) * e)
        q = pool.q_proj.weight[of] @ x[0] + pool.q_proj.bias[of]
        keys = torch.stack([pool.k_proj.weight[of] @ x_i + pool.k_proj.bias[of] for x_i in x])
        a = torch.softmax(keys @ q / e**0.5, 0)
        for i in range(len(x)):
            values = pool.v_proj.weight[of] * x[i]  # (e, neuron): each neuron's own share of the value
            r[:, h] += a[i] * (pool.c_proj.weight[:, of] @ values).T
    return r
