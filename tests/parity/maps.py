"""Heat maps (paper 1, Sec. 5.2) and logits of label maps (paper 2, segmentation)."""

import numpy as np

from .resnet import Pooling, b_O, output_of_head, value_of
from .vit import Array, Run, Weights, patch_activations
from .words import chosen_neurons


def along(cells: int, pixels: int) -> Array:
    """Weights of cells for each pixel of one axis: between the two cells whose centres lie about the pixel's. [pixel, cell]"""
    weight = np.zeros((pixels, cells))
    for y in range(pixels):
        v = min(max((y + 0.5) * cells / pixels - 0.5, 0), cells - 1)  # the outer cells are carried on to the edge
        first = min(int(v), cells - 2)
        weight[y, first], weight[y, first + 1] = first + 1 - v, v - first
    return weight


def bilinear(grid: Array, height: int, width: int) -> Array:
    """Values at pixels' centres between those at cells' centres. [y, x]"""
    return along(grid.shape[0], height) @ grid @ along(grid.shape[1], width).T


def heat_map(run: Run, unit: Array, r: Array, t: Array, count: int, size: int) -> Array:
    """The neurons of largest |⟨r, t⟩|: mean of their patch activations, bilinear, from 0 to 1. [y, x]"""
    neurons = chosen_neurons(t, r, count)
    mean = np.mean([patch_activations(run, *unit[n][:2]) for n in neurons], axis=0)
    heat = bilinear(mean, size, size)
    return (heat - heat.min()) / (heat.max() - heat.min())


def without_sink(grid: Array) -> Array:
    """The bottom-right token is the mean of its west, north and north-west neighbours. grid [y, x, …]"""
    out = grid.copy()
    out[-1, -1] = (grid[-1, -2] + grid[-2, -1] + grid[-2, -2]) / 3
    return out


def pairs_of_class(r: Array, t: Array, k: int) -> list[int]:
    """S_c: the k pairs of largest ⟨r, t_c⟩."""
    return [int(n) for n in np.argsort([-(r_n @ t) for r_n in r], kind="stable")[:k]]


def head_maps(W: Weights, run: Pooling, heads: int, side: int, sink: bool = False) -> Array:
    """r_i^h = a_i^h W_O^h (W_V^h x_i + b_V^h) + b_O / (H · tokens), a sink repaired, then at unit norm. [head, y, x, d]"""
    tokens = len(run.x)
    maps = []
    for h in range(heads):
        W_O = output_of_head(W, heads, h)
        r = [run.a[h, i] * W_O @ value_of(W, run.x[i], heads, h) + b_O(W) / (heads * tokens) for i in range(1, tokens)]
        grid = np.reshape(r, (side, side, -1))
        grid = without_sink(grid) if sink else grid
        maps.append(grid / np.linalg.norm(grid, axis=-1, keepdims=True))
    return np.stack(maps)


def pair_logits(Z: Array, R: Array, unit: Array, chosen: list[list[int]], t: Array, what: str = "pairs") -> Array:
    """logit_i(c) = (1/k) Σ_{(n,h) ∈ S_c} Z_i[n] ⟨r_i^h, t_c⟩, or one factor alone. Z [y, x, n], R [head, y, x, d]. [c, y, x]"""
    logits = np.zeros((len(t), *Z.shape[:2]))
    for c, t_c in enumerate(t):
        for y, x in np.ndindex(*Z.shape[:2]):
            for row in chosen[c]:
                _, n, h = unit[row]
                neuron, head = Z[y, x, n], R[h, y, x] @ t_c
                logits[c, y, x] += {"pairs": neuron * head, "neurons": neuron, "heads": head}[what]
        logits[c] /= len(chosen[c])
    return logits
