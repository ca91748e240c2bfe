"""Slow forms of the parts of a margin, which test_explanation.py compares with the fast ones."""

import torch
from torch import Tensor

from helpers.oracles import attention_rows, layer_norm_gain, scale_of


def residual_stream(visual: torch.nn.Module, image: Tensor) -> tuple[list[Tensor], list[Tensor], Tensor]:
    """Return the inputs of all blocks, the activations of their MLPs, and the output of the last one, of one image."""
    x = visual._embeds(image[None])
    inputs, activations = [], []
    for block in visual.transformer.resblocks:
        inputs.append(x[0])
        x = x + block.ls_1(block.attention(block.ln_1(x)))
        activations.append(block.mlp.gelu(block.mlp.c_fc(block.ln_2(x)))[0])
        x = x + block.ls_2(block.mlp(block.ln_2(x)))
    return inputs, activations, x[0]


def rest_of_output(visual: torch.nn.Module, image: Tensor) -> Tensor:
    """Return what neither heads nor neurons add to the output: embedding, biases, and the mean that ln_post takes away."""
    inputs, _, x = residual_stream(visual, image)
    stream = inputs[0][0] - x[0].mean()
    for block in visual.transformer.resblocks:
        value_bias = block.attn.in_proj_bias[2 * x.shape[-1] :]
        stream = stream + scale_of(block.ls_1) * (block.attn.out_proj.weight @ value_bias + block.attn.out_proj.bias)
        stream = stream + scale_of(block.ls_2) * block.mlp.c_proj.bias
    bias = 0 if visual.ln_post.bias is None else visual.ln_post.bias @ visual.proj
    return (layer_norm_gain(visual.ln_post, x[0]) * stream) @ visual.proj + bias


def token_effects(visual: torch.nn.Module, image: Tensor, layer: int, neuron: int) -> Tensor:
    """Return the second-order effect [token, path, d] of one neuron, for each token and later head."""
    inputs, activations, x = residual_stream(visual, image)
    blocks = list(visual.transformer.resblocks)
    A_post, width = layer_norm_gain(visual.ln_post, x[0]), x.shape[-1]
    effects = []
    for i in range(len(x)):
        paths = []
        for later in range(layer + 1, len(blocks)):
            block, e = blocks[later], width // blocks[later].attn.num_heads
            rows = attention_rows(block.attn, block.ln_1(inputs[later]))
            written = scale_of(blocks[layer].ls_2) * blocks[layer].mlp.c_proj.weight[:, neuron] * activations[layer][i, neuron]
            normed = layer_norm_gain(block.ln_1, inputs[later][i]) * written
            for h in range(block.attn.num_heads):
                of = slice(h * e, (h + 1) * e)
                value = block.attn.in_proj_weight[2 * width :][of] @ normed
                carried = scale_of(block.ls_1) * (block.attn.out_proj.weight[:, of] @ value)
                paths.append(rows[h, i] * (A_post * carried) @ visual.proj)
        effects.append(torch.stack(paths))
    return torch.stack(effects)


def pair_token_effects(visual: torch.nn.Module, image: Tensor, neuron: int, head: int) -> Tensor:
    """Return the effect [token, d] of one neuron-head pair of a ResNet, for the mean token and every other one."""
    outputs: list[Tensor] = []
    handle = visual.layer4.register_forward_hook(lambda _, __, out: outputs.append(out[0]))
    visual(image[None])
    handle.remove()
    pool, z = visual.attnpool, outputs[0].flatten(1).T
    x = torch.cat([z.mean(0)[None], z]) + pool.positional_embedding
    e = x.shape[1] // pool.num_heads
    of = slice(head * e, (head + 1) * e)
    q = pool.q_proj.weight[of] @ x[0] + pool.q_proj.bias[of]
    keys = torch.stack([pool.k_proj.weight[of] @ token + pool.k_proj.bias[of] for token in x])
    a = torch.softmax(keys @ q / e**0.5, 0)
    w = pool.c_proj.weight[:, of] @ pool.v_proj.weight[of][:, neuron]
    return torch.stack([a[i] * x[i, neuron] * w for i in range(len(x))])
