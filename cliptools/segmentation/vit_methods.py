"""Heat maps of texts over a ViT's patches: methods by neurons (arXiv 2406.04341, section 5.2), and the baselines, by name.

A method is a function from images and the texts of each image to scores of every patch (`Method`); it holds all else that it
needs, such as a tower and the directions of neurons. Three methods use neurons whose second-order effects point at the text:

* `neuron_method` with signed=False is the paper's: the mean activation of the `neurons` neurons with the largest |<r_n, t>|.
* With signed=True the activations are weighted by <r_n, t>.
* `effect_method` sums the same neurons' second-order effects along the text, patch by patch (`effect_maps`). The mean activation
  does not depend on later heads: a neuron that is active on the background counts there even if no head attends to it. Its
  effect does not count there.

`baseline` makes the methods of vit_baselines.py. `sliding_heat` runs any method in windows of a larger image.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from cliptools.segmentation.masks import window_starts
from cliptools.segmentation.vit_baselines import (
    AttentionPass,
    attention_pass,
    chefer,
    direct_effects,
    gradcam,
    patch_grid,
    raw_attention,
    rollout,
)
from cliptools.towers.kinds import tower_of
from cliptools.towers.tower import Tower
from cliptools.unit_effects.vit_second_order import Trace, directions, trace


def neuron_weights(
    r: Float[Tensor, "unit d"], t: Float[Tensor, "b text d"], neurons: int, signed: bool
) -> Float[Tensor, "b text unit"]:
    """Weights of the activations: nonzero for the `neurons` units with the largest |<r_n, t>|.

    Args:
        signed: The weights are <r_n, t> over the sum of the absolute values; otherwise all are equal, as in the paper.
    """
    along = t @ r.T  # (b, text, unit)
    size, chosen = along.abs().topk(min(neurons, len(r)), dim=-1)  # both (b, text, chosen)
    weight = along.gather(-1, chosen) / size.sum(-1, keepdim=True).clamp(min=1e-12) if signed else size * 0 + 1 / size.shape[-1]
    return torch.zeros_like(along).scatter(-1, chosen, weight)  # (b, text, chosen) -> (b, text, unit)


def neuron_maps(
    p: Sequence[Float[Tensor, "b token _"]], weight: Float[Tensor, "b text unit"], prefix: int = 1
) -> Float[Tensor, "b text patch"]:
    """Weighted sum of the neurons' activations at every patch; the units of `weight` are those of `p`, layer after layer."""
    sizes = [activations.shape[-1] for activations in p]
    # for each layer: (b, text, n) @ (b, n, patch)
    parts = [w @ a[:, prefix:].to(w.dtype).transpose(1, 2) for a, w in zip(p, weight.split(sizes, dim=-1), strict=True)]
    return torch.stack(parts).sum(0)  # (layer, b, text, patch) -> (b, text, patch)


def chosen_neurons(r: Float[Tensor, "unit d"], t: Float[Tensor, " d"], neurons: int) -> Int[Tensor, " chosen"]:
    """Indices of the `neurons` units with the largest |<r_n, t>|, in ascending order."""
    return (r @ t).abs().topk(min(neurons, len(r))).indices.sort().values


def effect_maps(
    visual: nn.Module | Tower, traced: Trace, layer: int, neurons: Int[Tensor, " n"], image: int, t: Float[Tensor, " d"]
) -> Float[Tensor, " patch"]:
    """Return the second-order effect on <M(I), t> of one layer's neurons, separately for each patch.

    This is the sum over n, k of p_i a_i^k <D[n, k], t>, where a_i^k is what head k carries of patch i to the output: the class
    token's attention, divided by the LayerNorm deviations of patch and output (unit_effects/vit_second_order.py).

    Args:
        neurons: Numbers of the neurons in the layer.
        image: Index of the image in the batch.
    """
    along = directions(visual, layer, neurons) @ t  # (n, k, d) -> (n, k)
    a = torch.cat([traced.reach[later][image] for later in sorted(traced.reach) if later > layer]).to(t)  # (k, token)
    p = traced.p[layer][image][:, neurons].to(t)  # (token, n)
    return torch.einsum("in,nk,ki->i", p, along, a)[tower_of(visual).prefix :]


class Heat(NamedTuple):
    """Scores of a batch of images."""

    scores: Float[Tensor, "b text row column"]
    embedding: Float[Tensor, "b d"]
    """M(I), not normalised."""


Method = Callable[[Float[Tensor, "b 3 y x"], Float[Tensor, "b text d"]], Heat]
"""Scores of every patch for each image's own texts (unit norm)."""
PatchMap = Callable[[Tower, AttentionPass, Tensor], Tensor]
"""Scores (b, text, patch) from a tower, its forward pass and the texts (b, text, d)."""

ATTENTION_MAPS: dict[str, PatchMap] = {
    "attention": lambda visual, forward, t: _repeat(raw_attention(forward.attention, forward.prefix, forward.tokens), t),
    "rollout": lambda visual, forward, t: _repeat(rollout(forward.attention, forward.prefix, forward.tokens), t),
    "textspan": lambda visual, forward, t: direct_effects(visual, forward, t)[..., forward.prefix :],
}
GRADIENT_MAPS: dict[str, PatchMap] = {
    "gradcam": lambda visual, forward, t: torch.stack([gradcam(forward, text) for text in t.unbind(1)], 1),
    "chefer": lambda visual, forward, t: torch.stack([chefer(forward, text) for text in t.unbind(1)], 1),
}


def baseline(name: str, visual: nn.Module | Tower) -> Method:
    """Return a method by attention, direct effects or gradients: a name of ATTENTION_MAPS or GRADIENT_MAPS."""
    gradients = name in GRADIENT_MAPS
    patch_map = (ATTENTION_MAPS | GRADIENT_MAPS)[name]

    def heat(image: Float[Tensor, "b 3 y x"], t: Float[Tensor, "b text d"]) -> Heat:
        tower = tower_of(visual)
        with torch.set_grad_enabled(gradients):
            forward = attention_pass(tower, image, gradients)
            scores = patch_map(tower, forward, t.to(forward.embedding.dtype))  # (b, text, patch)
        # (b, text, patch) -> (b, text, row, column)
        return Heat(scores.detach().unflatten(-1, forward.grid), forward.embedding.detach())

    return heat


def neuron_method(
    visual: nn.Module | Tower, unit: Int[Tensor, "unit 3"], r: Float[Tensor, "unit d"], neurons: int, signed: bool
) -> Method:
    """Return the method of paper 1: the mean activation of the neurons with the largest |<r_n, t>|.

    Args:
        unit: Layer and number of every neuron.
        r: Direction of every neuron.
        neurons: Number of neurons for each text.
        signed: Weight the activations by <r_n, t>.
    """
    layers = sorted(set(unit[:, 0].tolist()))
    rows = [(unit[:, 0] == layer).nonzero()[:, 0] for layer in layers]
    directions = torch.cat([r[layer_rows] for layer_rows in rows])  # (unit, d), layer by layer as the activations

    @torch.no_grad()
    def heat(image: Float[Tensor, "b 3 y x"], t: Float[Tensor, "b text d"]) -> Heat:
        tower = tower_of(visual)
        traced = trace(tower, image, layers, rows=False)
        numbers = [unit[layer_rows, 1].to(image.device) for layer_rows in rows]
        p = [traced.p[layer][..., n] for layer, n in zip(layers, numbers, strict=True)]  # for each layer (b, token, n)
        weight = neuron_weights(directions.to(t), t, neurons, signed)
        # (b, text, patch) -> (b, text, row, column)
        return Heat(neuron_maps(p, weight, tower.prefix).unflatten(-1, patch_grid(tower, image)), traced.embedding)

    return heat


def effect_method(visual: nn.Module | Tower, unit: Int[Tensor, "unit 3"], r: Float[Tensor, "unit d"], neurons: int) -> Method:
    """Return the method by the same neurons' second-order effects along the text: their sum at each patch, if positive."""
    layers = sorted(set(unit[:, 0].tolist()))

    @torch.no_grad()
    def heat(image: Float[Tensor, "b 3 y x"], t: Float[Tensor, "b text d"]) -> Heat:
        tower = tower_of(visual)
        traced = trace(tower, image, layers)

        def scores(b: int, text: Float[Tensor, " d"]) -> Float[Tensor, " patch"]:
            chosen = unit[chosen_neurons(r.to(t), text, neurons)]  # (chosen, 3)
            total = torch.zeros(1, dtype=t.dtype, device=t.device)
            for layer in sorted(set(chosen[:, 0].tolist())):
                numbers = chosen[chosen[:, 0] == layer, 1]
                total = total + effect_maps(tower, traced, layer, numbers, b, text)
            return total.relu()

        maps = torch.stack([torch.stack([scores(b, text) for text in texts]) for b, texts in enumerate(t)])  # (b, text, patch)
        return Heat(maps.unflatten(-1, patch_grid(tower, image)), traced.embedding)

    return heat


def best_text(embedding: Float[Tensor, "b d"], t: Float[Tensor, "text d"]) -> Int[Tensor, " b"]:
    """Index of the text with the largest inner product with each image's embedding."""
    return (embedding.to(t.dtype) @ t.T).argmax(1)


def cosines(embedding: Float[Tensor, "b d"], t: Float[Tensor, "b text d"]) -> Float[Tensor, "b text"]:
    """Return the cosine of each image with its texts."""
    unit = torch.nn.functional.normalize(embedding.to(t.dtype), dim=-1)
    return torch.einsum("bd,btd->bt", unit, t)


def _repeat(scores: Float[Tensor, "b patch"], t: Float[Tensor, "b text d"]) -> Float[Tensor, "b text patch"]:
    """Repeat one map for every text."""
    return scores[:, None].expand(-1, t.shape[1], -1)


def sliding_heat(
    method: Method,
    image: Float[Tensor, "b 3 y x"],
    t: Float[Tensor, "b text d"],
    corners: Sequence[tuple[int, int]],
    side: tuple[int, int],
) -> Heat:
    """Run a method in windows of an image; scores are interpolated to pixels and averaged where windows overlap.

    The embedding is the mean of the windows' M(I).

    Args:
        corners: Top and left pixel of every window.
        side: Height and width of a window, in pixels.
    """
    total = image.new_zeros(len(image), t.shape[1], *image.shape[-2:], dtype=t.dtype)  # (b, text, y, x)
    windows = image.new_zeros(image.shape[-2:], dtype=t.dtype)  # (y, x): number of windows that hold a pixel
    embeddings = []
    for top, left in corners:
        rows, columns = slice(top, top + side[0]), slice(left, left + side[1])
        heat = method(image[..., rows, columns], t)
        # (b, text, row, column) -> (b, text, y, x) of the window
        pixels = torch.nn.functional.interpolate(heat.scores.to(t.dtype), size=side, mode="bilinear")
        total[..., rows, columns] += pixels
        windows[rows, columns] += 1
        embeddings.append(heat.embedding)
    return Heat(total / windows, torch.stack(embeddings).mean(0))


def window_corners(rows: int, columns: int, side: tuple[int, int], stride: int) -> list[tuple[int, int]]:
    """Top and left pixel of windows that cover a picture; the last ones end at its bottom and right edges."""
    tops, lefts = (window_starts(length, window, stride) for length, window in zip((rows, columns), side, strict=True))
    return [(top, left) for top in tops for left in lefts]
