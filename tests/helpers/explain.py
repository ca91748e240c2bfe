"""Slow forms of the parts of a margin and of deletion, with which tests compare the fast ones."""

from itertools import pairwise

import torch
from torch import Tensor

from cliptools.analysis.ablation import Units
from cliptools.analysis.deletion import deletion, random_orders, step_counts
from cliptools.analysis.explanation import Explainer
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


def unit_vector(d: int, seed: int = 8) -> Tensor:
    v = torch.randn(d, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    return v / v.norm()


def shuffled(count: int, left_out: int = 4) -> Tensor:
    return torch.randperm(count, generator=torch.Generator().manual_seed(3))[: count - left_out]


def vector_units(phi: Tensor, unit: Tensor) -> Units:
    """Return units with the means of their effects and directions that deletion does not use."""
    b = phi.mean(0)
    return Units(unit, b, torch.nn.functional.normalize(b, dim=1)[:, None], b.new_zeros(len(unit)))


def close(found: Tensor | float, expected: Tensor | float) -> None:
    expected = torch.as_tensor(expected, dtype=torch.float64)
    torch.testing.assert_close(
        torch.as_tensor(found, dtype=torch.float64), expected, rtol=1e-9, atol=1e-9 * max(1.0, float(expected.abs().max()))
    )


def check_units(explainer: Explainer, images: Tensor, phi: Tensor, embedding: Tensor, v: Tensor) -> None:
    """Compare shares, norms and deletion with effects [image, unit, d] that are not multiplied by any scale."""
    read, along = explainer.read(images), explainer.along(v)
    f = 100 / embedding.norm(dim=1)
    scale = f if explainer.scaled else torch.ones_like(f)
    b = (phi * scale[:, None, None]).mean(0)
    norm = (phi * scale[:, None, None] - b).norm(dim=-1)
    close(read.norm, norm)
    for i in range(len(images)):
        shares = explainer.shares(read, i, along)
        close(shares.margin, f[i] * embedding[i] @ v)
        close(shares.share, f[i] * phi[i] @ v)
        close(shares.mean, b @ v * (1 if explainer.scaled else f[i]))
        close(shares.excess, shares.share - shares.mean)
        close(sum(shares.parts.values()), shares.margin)
        close(shares.parts["units"], shares.share.sum())
        counts = step_counts(len(phi[i]) // 2, 5)
        random = random_orders(len(phi[i]), 2, "image", 1)
        result = deletion(explainer, read, i, v, shares.excess, counts, random)
        side = 1 if shares.margin >= 0 else -1
        orders = {
            "explanation": [(-side * shares.excess).argsort()],
            "activity": [(-norm[i]).argsort()],
            "random": random,
        }
        for name, several in orders.items():
            curves = torch.stack([literal_curve(phi[i] * scale[i], b, embedding[i] * scale[i], v, o, counts) for o in several])
            close(result.curves[name].margin, curves.mean(0))
            mean = curves.mean(0).tolist()
            steps = zip(pairwise(counts.tolist()), pairwise(mean), strict=True)
            area = sum((k - j) * (x + y) / 2 for (j, k), (x, y) in steps) / int(counts[-1])
            close(result.curves[name].area, area)


def literal_curve(phi: Tensor, b: Tensor, M: Tensor, v: Tensor, order: Tensor, counts: Tensor) -> Tensor:
    margins = []
    for k in counts.tolist():
        changed = M.clone()
        for n in order[:k].tolist():
            changed = changed + b[n] - phi[n]
        margins.append(100 * changed @ v / changed.norm())
    return torch.stack(margins)
