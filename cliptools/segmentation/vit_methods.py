"""Heat maps from neurons whose second-order effects point at a text (arXiv 2406.04341, section 5.2).

The paper's map is the mean activation of the neurons chosen. It knows nothing of what later heads read of it: a neuron that is
active on the ground counts there, even if no head looks. `effect_maps` are the same neurons' second-order effects along the
text, patch by patch, so that it does not count.

Heat-map methods by name: each is a function from images and texts to scores of every patch.

What a method needs besides (a tower, neurons' directions) it holds; whatever has patches can offer another.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from cliptools.effects.vit_second_order import Trace, directions, trace
from cliptools.models.clip_parts import VisionTransformer
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


def neuron_weights(
    r: Float[Tensor, "unit d"], t: Float[Tensor, "b text d"], neurons: int, signed: bool
) -> Float[Tensor, "b text unit"]:
    """Weights of the activations: of the `neurons` units with the largest |<r_n, t>|, 0 for all others.

    Args:
        signed: Weigh by <r_n, t>, over the sum of their absolute values; else, as the paper does, all alike.
    """
    along = t @ r.T  # (b, text, unit)
    size, chosen = along.abs().topk(min(neurons, len(r)), dim=-1)
    picked = along.gather(-1, chosen) / size.sum(-1, keepdim=True).clamp(min=1e-12) if signed else size * 0 + 1 / size.shape[-1]
    return torch.zeros_like(along).scatter(-1, chosen, picked)


def neuron_maps(p: Sequence[Float[Tensor, "b token _"]], weight: Float[Tensor, "b text unit"]) -> Float[Tensor, "b text patch"]:
    """Weighted sum of the neurons' patch activations; the units are those of `p`, one layer after the other."""
    sizes = [activations.shape[-1] for activations in p]
    parts = [w @ a[:, 1:].to(w.dtype).transpose(1, 2) for a, w in zip(p, weight.split(sizes, dim=-1), strict=True)]
    return torch.stack(parts).sum(0)  # (layer, b, text, patch) -> (b, text, patch)


def chosen_neurons(r: Float[Tensor, "unit d"], t: Float[Tensor, " d"], neurons: int) -> Int[Tensor, " chosen"]:
    """The `neurons` units with the largest |<r_n, t>|, in the units' order."""
    return (r @ t).abs().topk(min(neurons, len(r))).indices.sort().values


def effect_maps(
    visual: VisionTransformer, traced: Trace, layer: int, neurons: Int[Tensor, " n"], image: int, t: Float[Tensor, " d"]
) -> Float[Tensor, " patch"]:
    """Return what one layer's neurons add to <M(I), t> at each patch through later heads.

    The sum over n, k of p_i a_i^k <D[n, k], t>, where a_i^k is the class token's attention in head k over the LayerNorm
    deviations of patch and output (effects/vit_second_order.py).
    """
    along = directions(visual, layer, neurons) @ t  # (n, k)
    a = torch.cat([traced.alpha[later][image] for later in sorted(traced.alpha) if later > layer]).to(t)  # (k, token)
    p = traced.p[layer][image][:, neurons].to(t)  # (token, n)
    return torch.einsum("in,nk,ki->i", p, along, a / traced.sigma_post[image])[1:]


class Heat(NamedTuple):
    """Result of a method on images."""

    scores: Float[Tensor, "b text row column"]
    embedding: Float[Tensor, "b d"]
    """M(I), not normalised."""


Method = Callable[[Float[Tensor, "b 3 y x"], Float[Tensor, "b text d"]], Heat]
"""Scores of every patch for each image's own texts (unit norm)."""
PatchMap = Callable[[VisionTransformer, AttentionPass, Tensor], Tensor]

ATTENTION_MAPS: dict[str, PatchMap] = {
    "attention": lambda visual, seen, t: _alike(raw_attention(seen.attention), t),
    "rollout": lambda visual, seen, t: _alike(rollout(seen.attention), t),
    "textspan": lambda visual, seen, t: direct_effects(visual, seen, t)[..., 1:],
}
GRADIENT_MAPS: dict[str, PatchMap] = {
    "gradcam": lambda visual, seen, t: torch.stack([gradcam(seen, one) for one in t.unbind(1)], 1),
    "chefer": lambda visual, seen, t: torch.stack([chefer(seen, one) for one in t.unbind(1)], 1),
}


def baseline(name: str, visual: VisionTransformer) -> Method:
    """A method that looks at attention, gradients or direct effects: a name of ATTENTION_MAPS or GRADIENT_MAPS."""
    gradients = name in GRADIENT_MAPS
    patch_map = (ATTENTION_MAPS | GRADIENT_MAPS)[name]

    def heat(image: Float[Tensor, "b 3 y x"], t: Float[Tensor, "b text d"]) -> Heat:
        with torch.set_grad_enabled(gradients):
            seen = attention_pass(visual, image, gradients)
            scores = patch_map(visual, seen, t.to(seen.embedding.dtype))  # (b, text, patch)
        return Heat(scores.detach().unflatten(-1, seen.grid), seen.embedding.detach())

    return heat


def neuron_method(
    visual: VisionTransformer, unit: Int[Tensor, "unit 3"], r: Float[Tensor, "unit d"], neurons: int, signed: bool
) -> Method:
    """Paper 1's method: mean activation of the neurons whose directions r the text lies along."""
    layers = sorted(set(unit[:, 0].tolist()))
    rows = [(unit[:, 0] == layer).nonzero()[:, 0] for layer in layers]
    directions = torch.cat([r[of] for of in rows])  # layer by layer, as the activations come

    @torch.no_grad()
    def heat(image: Float[Tensor, "b 3 y x"], t: Float[Tensor, "b text d"]) -> Heat:
        traced = trace(visual, image, layers)
        p = [traced.p[layer][..., unit[of, 1].to(image.device)] for layer, of in zip(layers, rows, strict=True)]
        weight = neuron_weights(directions.to(t), t, neurons, signed)
        return Heat(neuron_maps(p, weight).unflatten(-1, patch_grid(visual, image)), traced.embedding)

    return heat


def effect_method(visual: VisionTransformer, unit: Int[Tensor, "unit 3"], r: Float[Tensor, "unit d"], neurons: int) -> Method:
    """Method by these neurons' second-order effects along the text, patch by patch: their positive part."""
    layers = sorted(set(unit[:, 0].tolist()))

    @torch.no_grad()
    def heat(image: Float[Tensor, "b 3 y x"], t: Float[Tensor, "b text d"]) -> Heat:
        traced = trace(visual, image, layers)

        def scores(b: int, text: Float[Tensor, " d"]) -> Float[Tensor, " patch"]:
            chosen = unit[chosen_neurons(r.to(t), text, neurons)]  # (chosen, 3)
            total = torch.zeros(1, dtype=t.dtype, device=t.device)
            for layer in sorted(set(chosen[:, 0].tolist())):
                of = chosen[chosen[:, 0] == layer, 1]
                total = total + effect_maps(visual, traced, layer, of, b, text)
            return total.relu()

        found = torch.stack([torch.stack([scores(b, text) for text in texts]) for b, texts in enumerate(t)])
        return Heat(found.unflatten(-1, patch_grid(visual, image)), traced.embedding)

    return heat


def best_text(embedding: Float[Tensor, "b d"], t: Float[Tensor, "text d"]) -> Int[Tensor, " b"]:
    """The text that the model itself finds closest to each image."""
    return (embedding.to(t.dtype) @ t.T).argmax(1)


def cosines(embedding: Float[Tensor, "b d"], t: Float[Tensor, "b text d"]) -> Float[Tensor, "b text"]:
    """Return the cosine of each image with its texts."""
    unit = torch.nn.functional.normalize(embedding.to(t.dtype), dim=-1)
    return torch.einsum("bd,btd->bt", unit, t)


def _alike(one: Float[Tensor, "b patch"], t: Float[Tensor, "b text d"]) -> Float[Tensor, "b text patch"]:
    """Repeat one map for every text."""
    return one[:, None].expand(-1, t.shape[1], -1)


def heat_of(
    method: Method,
    image: Float[Tensor, "b 3 y x"],
    t: Float[Tensor, "b text d"],
    corners: Sequence[tuple[int, int]],
    side: tuple[int, int],
) -> Heat:
    """A method in windows of an image, scores brought to pixels and averaged where windows overlap; M(I) is their mean.

    Args:
        corners: Top and left of every window, in pixels.
        side: Height and width of a window, in pixels.
    """
    total = image.new_zeros(len(image), t.shape[1], *image.shape[-2:], dtype=t.dtype)  # (b, text, y, x)
    times = image.new_zeros(image.shape[-2:], dtype=t.dtype)
    embeddings = []
    for top, left in corners:
        window = slice(top, top + side[0]), slice(left, left + side[1])
        heat = method(image[..., window[0], window[1]], t)
        pixels = torch.nn.functional.interpolate(heat.scores.to(t.dtype), size=side, mode="bilinear")
        total[..., window[0], window[1]] += pixels
        times[window] += 1
        embeddings.append(heat.embedding)
    return Heat(total / times, torch.stack(embeddings).mean(0))


def window_corners(rows: int, columns: int, side: tuple[int, int], stride: int) -> list[tuple[int, int]]:
    """Top and left of windows that cover a picture of so many pixels, the last ones flush with its far edges."""

    def starts(length: int, window: int) -> list[int]:
        return [*range(0, length - window, stride), length - window]

    return [(top, left) for top in starts(rows, side[0]) for left in starts(columns, side[1])]
