"""Inputs and checks of test_textspan.py that other tests share."""

import torch
from torch import Tensor

from helpers.oracles import attention_rows, layer_norm_gain, scale_of


def head_effects(visual: torch.nn.Module, image: Tensor, layer: int) -> Tensor:
    """Return phi [head, d] of one image: sum over tokens of a_i P (A_post * ls1 * W_O^h W_V^h LN(x_i)), head by head."""
    x = visual._embeds(image[None])
    for number, block in enumerate(visual.transformer.resblocks):
        if number == layer:
            read_there = block.ln_1(x)[0]
        x = x + block.ls_1(block.attention(block.ln_1(x)))
        x = x + block.ls_2(block.mlp(block.ln_2(x)))
    A_post, block = layer_norm_gain(visual.ln_post, x[0, 0]), visual.transformer.resblocks[layer]
    rows, width = attention_rows(block.attn, read_there), x.shape[-1]
    heads, e = block.attn.num_heads, width // block.attn.num_heads
    phi = torch.zeros(heads, visual.proj.shape[1], dtype=x.dtype)
    for h in range(heads):
        of = slice(h * e, (h + 1) * e)
        W_VO = block.attn.out_proj.weight[:, of] @ block.attn.in_proj_weight[2 * width :][of]
        for i, token in enumerate(read_there):
            phi[h] += (A_post * scale_of(block.ls_1) * rows[h, i] * (W_VO @ token)) @ visual.proj
    return phi


def greedy(outputs: Tensor, texts: Tensor, m: int) -> tuple[list[int], list[float]]:
    """Run Algorithm 1 on the matrix of outputs [image, d]; return the choices and the share of variance that each explains."""
    _, s, V = torch.linalg.svd(outputs, full_matrices=False)
    V = V[s > 1e-10 * s[0]]
    R = torch.stack([V.T @ (V @ t) for t in texts])  # onto the span of the outputs
    C = outputs - outputs.mean(0)
    total = (C**2).sum()
    chosen, shares = [], []
    for _ in range(m):
        variance = [(C @ t).var(unbiased=False) for t in R]
        if max(variance) < 1e-12 * total / len(C):
            break
        j = max(range(len(R)), key=lambda j: float(variance[j]))
        t = R[j].clone()
        before = (C**2).sum()
        C = torch.stack([c - (c @ t) / (t @ t) * t for c in C])
        R = torch.stack([r - (r @ t) / (t @ t) * t for r in R])
        chosen.append(j)
        shares.append(float((before - (C**2).sum()) / total))
    return chosen, shares
