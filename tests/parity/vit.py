"""Paper 1 (arXiv 2406.04341) in its own symbols: one image at a time, a loop for every sum, float64, from the bare weights."""

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

Array = np.ndarray
Weights = dict[str, Array]
Activation = Callable[[Array], Array]
EPSILON = 1e-5  # of every LayerNorm


class Run(NamedTuple):
    """What one forward pass leaves behind, layers first."""

    x: list[Array]  # [token, width] what enters each block
    a: list[Array]  # [head, token, token] attention, a row a query
    p: list[Array]  # [token, neuron] post-GELU activations
    last: Array  # [token, width] what leaves the last block
    M: Array  # [d] the output


class Replaced(NamedTuple):
    """Activations that stand in for those of neuron n of layer l."""

    l: int  # noqa: E741
    n: int
    p: Array  # [token]


def sigma(x: Array) -> float:
    """√(σ² + ε) of one token."""
    return float(np.sqrt(((x - x.mean()) ** 2).mean() + EPSILON))


def layer_norm(x: Array, gamma: Array, beta: Array) -> Array:
    return np.stack([gamma * (token - token.mean()) / sigma(token) + beta for token in x])


def quick_gelu(x: Array) -> Array:
    return x / (1 + np.exp(-1.702 * x))


def gelu(x: Array) -> Array:
    return x * 0.5 * (1 + np.vectorize(math.erf)(x / np.sqrt(2)))


def softmax(x: Array) -> Array:
    e = np.exp(x - x.max())
    return e / e.sum()


def block(W: Weights, name: str, layer: int) -> Weights:
    """The weights of one residual block, by short names."""
    prefix = f"{name}transformer.resblocks.{layer}."
    return {key.removeprefix(prefix): value for key, value in W.items() if key.startswith(prefix)}


def depth(W: Weights, name: str) -> int:
    return len({key.split("resblocks.")[1].split(".")[0] for key in W if key.startswith(f"{name}transformer.resblocks.")})


def attention(B: Weights, y: Array, heads: int, causal: bool = False) -> tuple[Array, Array]:
    """Multi-head attention of normalised tokens y: its rows [head, token, token] and its output [token, width]."""
    width = y.shape[1]
    e = width // heads
    W_Q, W_K, W_V = np.split(B["attn.in_proj_weight"], 3)
    b_Q, b_K, b_V = np.split(B["attn.in_proj_bias"], 3)
    W_O, b_O = B["attn.out_proj.weight"], B["attn.out_proj.bias"]
    out = np.tile(b_O, (len(y), 1))
    a = np.zeros((heads, len(y), len(y)))
    for h in range(heads):
        of = slice(h * e, (h + 1) * e)
        q, k, v = y @ W_Q[of].T + b_Q[of], y @ W_K[of].T + b_K[of], y @ W_V[of].T + b_V[of]
        for i in range(len(y)):
            seen = i + 1 if causal else len(y)
            a[h, i, :seen] = softmax(k[:seen] @ q[i] / np.sqrt(e))
        out += a[h] @ v @ W_O[:, of].T
    return a, out


def embed_patches(W: Weights, image: Array) -> Array:
    """Class token and patches with their positions, after ln_pre: [token, width]."""
    kernel = W["visual.conv1.weight"]  # [width, 3, y, x]
    side = kernel.shape[2]
    tokens = [W["visual.class_embedding"]]
    for y in range(0, image.shape[1], side):
        for x in range(0, image.shape[2], side):
            tokens.append((kernel * image[:, y : y + side, x : x + side]).sum((1, 2, 3)))
    return layer_norm(np.stack(tokens) + W["visual.positional_embedding"], W["visual.ln_pre.weight"], W["visual.ln_pre.bias"])


def scales(B: Weights) -> tuple[Array | float, Array | float]:
    """LayerScale's gains after attention and after the MLP, 1 where a model has none."""
    return B.get("ls_1.gamma", 1.0), B.get("ls_2.gamma", 1.0)


def forward(W: Weights, image: Array, heads: int, act: Activation, replaced: tuple[Replaced, ...] = ()) -> Run:
    """M(I) = P · LN(x_0) of the last block's class token, and all on the way."""
    x = embed_patches(W, image)
    xs, rows, activations = [], [], []
    for layer in range(depth(W, "visual.")):
        B = block(W, "visual.", layer)
        after_attention, after_mlp = scales(B)
        xs.append(x)
        a, z = attention(B, layer_norm(x, B["ln_1.weight"], B["ln_1.bias"]), heads)
        x = x + after_attention * z
        p = act(layer_norm(x, B["ln_2.weight"], B["ln_2.bias"]) @ B["mlp.c_fc.weight"].T + B["mlp.c_fc.bias"])
        for one in replaced:
            if one.l == layer:
                p[:, one.n] = one.p
        x = x + after_mlp * (p @ B["mlp.c_proj.weight"].T + B["mlp.c_proj.bias"])
        rows.append(a)
        activations.append(p)
    P = W["visual.proj"].T  # [d, width]
    M = P @ layer_norm(x[:1], W["visual.ln_post.weight"], W["visual.ln_post.bias"])[0]
    return Run(xs, rows, activations, x, M)


def A_post(W: Weights, run: Run) -> Array:
    """App. A.6: the gain γ/√(σ² + ε) of the last LayerNorm at the class token."""
    return W["visual.ln_post.weight"] / sigma(run.last[0])


def w(W: Weights, layer: int, n: int) -> Array:
    """w_n: what one unit of the neuron's activation adds to a token. [width]"""
    B = block(W, "visual.", layer)
    return scales(B)[1] * B["mlp.c_proj.weight"][:, n]


def second_order(W: Weights, run: Run, layer: int, n: int, heads: int) -> Array:
    """Eq. 5 with App. A.6: φ_n = Σ_l' Σ_h Σ_i p_i a_i P (A_post ∗ W_VO (A_l',i ∗ w_n)), biases left out. [d]"""
    P = W["visual.proj"].T
    w_n = w(W, layer, n)
    p, gain = run.p[layer][:, n], A_post(W, run)
    phi = np.zeros(len(P))
    for later in range(layer + 1, len(run.x)):
        B = block(W, "visual.", later)
        e = len(w_n) // heads
        for h in range(heads):
            of = slice(h * e, (h + 1) * e)
            W_O, W_V = B["attn.out_proj.weight"][:, of], np.split(B["attn.in_proj_weight"], 3)[2][of]
            W_VO = np.diag(scales(B)[0] * np.ones(len(w_n))) @ W_O @ W_V
            for i, x_i in enumerate(run.x[later]):
                A = B["ln_1.weight"] / sigma(x_i)
                phi += p[i] * run.a[later][h, 0, i] * (P @ (gain * (W_VO @ (A * w_n))))
    return phi


def first_order(W: Weights, run: Run, layer: int, n: int) -> Array:
    """P (A_post ∗ p_0 w_n): what the neuron writes at the class token itself. [d]"""
    w_n = w(W, layer, n)
    return W["visual.proj"].T @ (A_post(W, run) * run.p[layer][0, n] * w_n)


def indirect(W: Weights, image: Array, layer: int, n: int, mean: Array, heads: int, act: Activation) -> Array:
    """M(I) less M(I) with p_i replaced by its mean over images, at every token i. [d]"""
    return forward(W, image, heads, act).M - forward(W, image, heads, act, (Replaced(layer, n, mean),)).M


def head_effect(W: Weights, run: Run, layer: int, h: int, heads: int) -> Array:
    """P (A_post ∗ W_O^h Σ_i a_i W_V^h LN(x_i)): what a head writes at the class token, its bias W_O^h b_V^h left out. [d]"""
    B = block(W, "visual.", layer)
    e = run.x[layer].shape[1] // heads
    of = slice(h * e, (h + 1) * e)
    W_V = np.split(B["attn.in_proj_weight"], 3)[2][of]
    y = layer_norm(run.x[layer], B["ln_1.weight"], B["ln_1.bias"])
    S = sum(run.a[layer][h, 0, i] * (W_V @ y[i]) for i in range(len(y)))
    return W["visual.proj"].T @ (A_post(W, run) * scales(B)[0] * (B["attn.out_proj.weight"][:, of] @ S))


def patch_activations(run: Run, layer: int, n: int) -> Array:
    """Activations at the patches, as they lie in the image: [y, x]."""
    p = run.p[layer][1:, n]
    side = round(len(p) ** 0.5)
    return p.reshape(side, side)
