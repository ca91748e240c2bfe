"""Paper 2 (arXiv 2509.19943) in its own symbols: attention pooling written out, float64, from the bare weights."""

from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F

from .vit import Array, Weights, softmax


def batch_norm(W: Weights, name: str, x: torch.Tensor) -> torch.Tensor:
    mean, variance, gamma, beta = (
        torch.from_numpy(W[f"visual.{name}.{key}"])[:, None, None] for key in ("running_mean", "running_var", "weight", "bias")
    )
    return (x - mean) / torch.sqrt(variance + 1e-5) * gamma + beta


def convolution(W: Weights, name: str, x: torch.Tensor, stride: int = 1) -> torch.Tensor:
    kernel = torch.from_numpy(W[f"visual.{name}.weight"])
    return F.conv2d(x, kernel, stride=stride, padding=kernel.shape[-1] // 2)


def last_channels(W: Weights, image: Array) -> Array:
    """z [token, channel] of the last block, after its ReLU: three convolutions, then four blocks of one bottleneck each."""
    x = torch.from_numpy(image)[None]
    for number, stride in ((1, 2), (2, 1), (3, 1)):
        x = torch.relu(batch_norm(W, f"bn{number}", convolution(W, f"conv{number}", x, stride)))
    x = F.avg_pool2d(x, 2)
    for layer in (1, 2, 3, 4):
        name, pool = f"layer{layer}.0", 1 if layer == 1 else 2
        y = torch.relu(batch_norm(W, f"{name}.bn1", convolution(W, f"{name}.conv1", x)))
        y = torch.relu(batch_norm(W, f"{name}.bn2", convolution(W, f"{name}.conv2", y)))
        y = batch_norm(W, f"{name}.bn3", convolution(W, f"{name}.conv3", F.avg_pool2d(y, pool)))
        beside = batch_norm(W, f"{name}.downsample.1", convolution(W, f"{name}.downsample.0", F.avg_pool2d(x, pool)))
        x = torch.relu(y + beside)
    return x[0].flatten(1).T.numpy()


def part(W: Weights, name: str) -> tuple[Array, Array]:
    return W[f"visual.attnpool.{name}.weight"], W[f"visual.attnpool.{name}.bias"]


def b_O(W: Weights) -> Array:
    return part(W, "c_proj")[1]


def of_head(W: Weights, heads: int, h: int) -> slice:
    e = part(W, "v_proj")[0].shape[0] // heads
    return slice(h * e, (h + 1) * e)


def output_of_head(W: Weights, heads: int, h: int) -> Array:
    """W_O^h [d, e]."""
    return part(W, "c_proj")[0][:, of_head(W, heads, h)]


def value_of(W: Weights, x: Array, heads: int, h: int) -> Array:
    """W_V^h x + b_V^h of one token. [e]"""
    W_V, b_V = part(W, "v_proj")
    of = of_head(W, heads, h)
    return W_V[of] @ x + b_V[of]


class Pooling(NamedTuple):
    z: Array  # [token, n] channels; the first their mean
    x: Array  # [token, n] with positional embeddings
    a: Array  # [head, token] the mean token's attention
    M: Array  # [d]


def pool(W: Weights, image: Array, heads: int) -> Pooling:
    """M(I) = W_O (Σ_i a_i^h (W_V^h x_i + b_V^h))_h + b_O, the query from x_0."""
    z = last_channels(W, image)
    z = np.vstack([z.mean(0), z])
    x = z + W["visual.attnpool.positional_embedding"]
    (W_Q, b_Q), (W_K, b_K) = part(W, "q_proj"), part(W, "k_proj")
    a = np.zeros((heads, len(x)))
    M = b_O(W).copy()
    for h in range(heads):
        of = of_head(W, heads, h)
        q = W_Q[of] @ x[0] + b_Q[of]
        a[h] = softmax(np.array([(W_K[of] @ x_i + b_K[of]) @ q for x_i in x]) / np.sqrt(len(q)))
        for i in range(len(x)):
            M += a[h, i] * output_of_head(W, heads, h) @ value_of(W, x[i], heads, h)
    return Pooling(z, x, a, M)


def s(run: Pooling, n: int, h: int) -> float:
    """s^{n,h} = Σ_i a_i^h x_i[n]."""
    return float(sum(run.a[h, i] * run.x[i, n] for i in range(len(run.x))))


def w(W: Weights, n: int, h: int, heads: int) -> Array:
    """w^{n,h} = W_O^h W_V^h[:, n]. [d]"""
    return output_of_head(W, heads, h) @ part(W, "v_proj")[0][of_head(W, heads, h), n]


def contribution(W: Weights, run: Pooling, n: int, h: int, heads: int) -> Array:
    """r^{n,h}(I) = s w, its constant left out. [d]"""
    return s(run, n, h) * w(W, n, h, heads)


def constant(W: Weights, heads: int) -> Array:
    """W_O b_V + b_O: what contributions of all pairs lack of M(I). [d]"""
    return part(W, "c_proj")[0] @ part(W, "v_proj")[1] + b_O(W)


def mask_clip(W: Weights, x: Array) -> Array:
    """Every token by the value path alone: W_O (W_V x_i + b_V) + b_O. [token, d]"""
    (W_V, b_V), W_O = part(W, "v_proj"), part(W, "c_proj")[0]
    return np.stack([W_O @ (W_V @ x_i + b_V) + b_O(W) for x_i in x])


def query_and_key_attention(W: Weights, x: Array, heads: int) -> Array:
    """Every token by (softmax(q qᵀ/√e) + softmax(k kᵀ/√e)) v over the tokens given. [token, d]"""
    out = np.tile(b_O(W), (len(x), 1))
    for h in range(heads):
        of = of_head(W, heads, h)
        v = np.stack([value_of(W, x_i, heads, h) for x_i in x])
        for name in ("q_proj", "k_proj"):
            A, b = part(W, name)
            q = x @ A[of].T + b[of]
            for i in range(len(x)):
                out[i] += output_of_head(W, heads, h) @ (softmax(q @ q[i] / np.sqrt(q.shape[1])) @ v)
    return out
