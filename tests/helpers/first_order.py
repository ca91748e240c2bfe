"""Inputs and checks of test_first_order.py that other tests share."""

import torch

from helpers.oracles import layer_norm_gain, scale_of


def first_order_effects(visual: torch.nn.Module, image: torch.Tensor, layer: int) -> torch.Tensor:
    """Return phi [neuron, d] of one image: P (A_post * ls2 * p_0 w_n), one neuron after the other."""
    x = visual._embeds(image[None])
    for number, block in enumerate(visual.transformer.resblocks):
        x = x + block.ls_1(block.attention(block.ln_1(x)))
        if number == layer:
            p = block.mlp.gelu(block.mlp.c_fc(block.ln_2(x)))[0]
        x = x + block.ls_2(block.mlp(block.ln_2(x)))
    A_post = layer_norm_gain(visual.ln_post, x[0, 0])
    block = visual.transformer.resblocks[layer]
    W_2 = block.mlp.c_proj.weight
    return torch.stack([(A_post * scale_of(block.ls_2) * p[0, n] * W_2[:, n]) @ visual.proj for n in range(W_2.shape[1])])
