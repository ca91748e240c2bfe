"""Slow, literal forms of the papers' equations in the dtype of the model, with which the fast forms are compared."""

import torch
from open_clip.transformer import VisionTransformer
from torch import Tensor, nn


def layer_norm_gain(norm: nn.LayerNorm, x: Tensor) -> Tensor:
    """Return A = gamma / sqrt(variance + eps) of one token."""
    gamma = 1.0 if norm.weight is None else norm.weight
    return gamma / torch.sqrt(((x - x.mean()) ** 2).mean() + norm.eps)


def attention_rows(attn: nn.MultiheadAttention, normed: Tensor) -> Tensor:
    """Return the class token's attention, [head, token], from explicit queries and keys."""
    width, heads = normed.shape[-1], attn.num_heads
    e = width // heads
    W, b = attn.in_proj_weight, attn.in_proj_bias
    rows = []
    for h in range(heads):
        of = slice(h * e, (h + 1) * e)
        q = W[:width][of] @ normed[0] + b[:width][of]
        keys = normed @ W[width : 2 * width][of].T + b[width : 2 * width][of]
        rows.append(torch.softmax(keys @ q / e**0.5, 0))
    return torch.stack(rows)


def scale_of(module: nn.Module) -> Tensor | float:
    return module.gamma if hasattr(module, "gamma") else 1.0


def second_order_effects(visual: VisionTransformer, image: Tensor, layer: int) -> Tensor:
    """Return phi [neuron, d] of one image [3, y, x] by paper 1's Eq. 5 with App. A.6.

    The computation goes token by token, with frozen attention and sigmas.
    """
    blocks = list(visual.transformer.resblocks)
    x = visual._embeds(image[None])
    inputs, activations = [], []
    for block in blocks:
        inputs.append(x[0])
        x = x + block.ls_1(block.attention(block.ln_1(x)))
        activations.append(block.mlp.gelu(block.mlp.c_fc(block.ln_2(x)))[0])
        x = x + block.ls_2(block.mlp(block.ln_2(x)))
    A_post = layer_norm_gain(visual.ln_post, x[0, 0])
    W_2 = blocks[layer].mlp.c_proj.weight
    N, width = W_2.shape[1], W_2.shape[0]
    phi = torch.zeros(N, visual.proj.shape[1], dtype=x.dtype)
    for later in range(layer + 1, len(blocks)):
        block, tokens = blocks[later], inputs[later]
        heads = block.attn.num_heads
        e = width // heads
        rows = attention_rows(block.attn, block.ln_1(tokens))
        for h in range(heads):
            of = slice(h * e, (h + 1) * e)
            W_VO = block.attn.out_proj.weight[:, of] @ block.attn.in_proj_weight[2 * width :][of]
            for i in range(len(tokens)):
                A = layer_norm_gain(block.ln_1, tokens[i])
                written = scale_of(blocks[layer].ls_2) * W_2.T * activations[layer][i][:, None]  # [N, width]
                carried = scale_of(block.ls_1) * ((A * written) @ W_VO.T)
                phi += rows[h, i] * (A_post * carried) @ visual.proj
    return phi


def centred_statistics(phi: Tensor, top: int, quantile_rank: int) -> dict[str, Tensor]:
    """Return the tensors of a bundle for effects [image, unit, d], from full matrices and their SVDs."""
    mean = phi.mean(0)
    centred = phi - mean
    norms = centred.norm(dim=-1)
    top_norm, top_image = norms.sort(dim=0, descending=True, stable=True)
    direction, explained, explained_all = [], [], []
    for u in range(phi.shape[1]):
        rows = centred[top_image[:top, u], u]
        _, s, V = torch.linalg.svd(rows, full_matrices=False)
        r = V[0] * (1 if float(((rows @ V[0]) ** 3).sum()) > 0 else -1)
        direction.append(r)
        explained.append(s[0] ** 2 / (s**2).sum())
        explained_all.append(((centred[:, u] @ r) ** 2).sum() / (centred[:, u] ** 2).sum())
    return {
        "mean": mean,
        "top_norm": top_norm[:top].T,
        "top_image": top_image[:top].T,
        "threshold": top_norm[quantile_rank - 1],
        "direction": torch.stack(direction),
        "explained": torch.stack(explained),
        "explained_all": torch.stack(explained_all),
    }
