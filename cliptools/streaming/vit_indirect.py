"""Indirect effects of a ViT's neurons: what the output loses when a neuron says at every token what it says on average.

Paper 1 (arXiv 2406.04341), Sec. 3.2: with p_i the activation of neuron n at token i and m_i its mean over the images,

    phi_n(I) = M(I) - M(I with p_i replaced by m_i at every token i)

Nothing is frozen: later LayerNorms, attention and MLPs all answer to the change. So these effects have no factored form.
They are vectors, one forward pass through the later layers for each neuron and image, after a pass over all images for the
means. To the engine they are S = phi [b, n, d] with K = d paths and D the identity; its Gram matrices are then d x d
identities, which a sample of neurons can afford.

The block of the neuron itself need not be run again: its output changes by (m_i - p_i) w_n. In the last block only the
class token is computed.
"""

import time
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from cliptools.console import LONG, count_of, note, progress, rounded_time
from cliptools.devices import exact, in_halves
from cliptools.effects.factored import Hooks, UnitBlock, neuron_units, wide
from cliptools.effects.vit_second_order import hooked, keep_output, neurons_per_layer, written
from cliptools.models.clip_parts import ResidualAttentionBlock, VisionTransformer
from cliptools.models.unusable import Screen, unusable
from cliptools.streaming.measure import Settings
from cliptools.streaming.statistics import UnitStatistics

ROW_BYTES = 256 << 20  # of activations at a time, while images and neurons together go through the later layers

Sample = Mapping[int, Int[Tensor, "_"]]
"""By layer, the neurons looked at."""


class Indirect:
    """Units are the sampled neurons, numbered within the sample; paths are the dimensions of the joint space."""

    def __init__(self, visual: VisionTransformer, sample: Sample, means: Mapping[int, Tensor], expected: int) -> None:
        """
        Args:
            means: By layer, the per-token means of the sampled neurons [token, n], from token_means.
            expected: The number of images to come; only the estimate of the time depends on it.
        """
        self.visual, self.sample, self.means = visual, sample, means
        self.expected: int | None = expected
        self.passes = sum(len(neurons) for neurons in sample.values())

    def size(self, layer: int) -> tuple[int, int]:
        """Sampled neurons of the layer, and d."""
        return len(self.sample[layer]), self.visual.proj.shape[1]

    def units(self, layer: int) -> Int[Tensor, "n 3"]:
        """The sampled neurons by their own numbers."""
        return neuron_units(layer, self.sample.get(layer, torch.arange(0)))

    @torch.inference_mode()
    def read(
        self, image: Float[Tensor, "b 3 y x"], slabs: Sequence[UnitBlock]
    ) -> tuple[list[Float[Tensor, "b n d"]], Float[Tensor, "b d"]]:
        """phi of every slab, and M(I): one forward pass, and one through the later layers for each neuron."""
        began = time.perf_counter()
        weight = self.visual.conv1.weight
        p, x, embedding = _streams(self.visual, image.to(weight.device, weight.dtype), {slab.layer for slab in slabs})
        phi = [self._effects(slab, p[slab.layer], x[slab.layer], wide(embedding)) for slab in slabs]
        if self.expected is not None:
            share = sum(len(slab.neurons) for slab in slabs) / self.passes
            phi[-1].sum().item()  # waits for the device
            left = (time.perf_counter() - began) / len(image) / share * max(0, self.expected - len(image))
            if left >= LONG:
                note(f"indirect effects: about {rounded_time(left)} to go, by the first {count_of(len(image), 'image')}")
            self.expected = None
        return phi, embedding

    def directions(self, slab: UnitBlock) -> Float[Tensor, "n d d"]:
        """The identity for every unit: S is the effect itself."""
        like = wide(self.visual.proj)
        d = like.shape[1]
        return torch.eye(d, dtype=like.dtype, device=like.device).expand(len(slab.neurons), d, d)

    def total(self, slab: UnitBlock, S: Float[Tensor, "b n d"]) -> Float[Tensor, "b d"]:
        """Sum over some sampled neurons."""
        return S.sum(1)

    def _effects(
        self,
        slab: UnitBlock,
        p: Float[Tensor, "b token neuron"],
        x: Float[Tensor, "b token width"],
        embedding: Float[Tensor, "b d"],
    ) -> Float[Tensor, "b n d"]:
        neurons = self.sample[slab.layer][slab.neurons.cpu()].to(x.device)
        w = written(self.visual, slab.layer, neurons).T  # (n, width)
        change = self.means[slab.layer][:, slab.neurons.to(x.device)] - wide(p[..., neurons])  # (b, token, n)
        b, token, width = x.shape
        each = b * token * width * x.element_size() * 12  # the MLP's own activations among them
        some = max(1, ROW_BYTES // each)
        parts = []
        for start in range(0, len(neurons), some):
            of = slice(start, start + some)
            moved = x + torch.einsum("btn,nw->nbtw", change[..., of], w[of]).to(x.dtype)  # (n, b, token, width)
            parts.append(_output(self.visual, slab.layer, moved.flatten(0, 1)).unflatten(0, (-1, b)))  # (n, b, d)
        return embedding[:, None] - wide(torch.cat(parts)).transpose(0, 1)


def draw_sample(visual: VisionTransformer, layers: Sequence[int], count: int | None, seed: int) -> dict[int, Tensor]:
    """`count` neurons of each layer, drawn, in order of their numbers; all for None."""
    sample = {}
    for layer in layers:
        n = neurons_per_layer(visual, layer)
        chosen = np.arange(n)
        if count is not None and count < n:
            chosen = np.sort(np.random.default_rng([seed, layer]).choice(n, size=count, replace=False))
        sample[layer] = torch.from_numpy(chosen)
    return sample


@torch.inference_mode()
def token_means(
    visual: VisionTransformer,
    batches: Iterator[tuple[list[int], Tensor]],
    sample: Sample,
    expected: int,
    screen: Screen[int] | None = None,
) -> dict[int, Float[Tensor, "token _"]]:
    """The mean activation of each sampled neuron at each token over all images, summed in float64.

    Args:
        screen: As for engine.measure.

    Raises:
        CliptoolsError: no image could be read; or one that is not usable.
    """
    screen = Screen() if screen is None else screen
    total: dict[int, Tensor] = {}
    count = 0
    weight = visual.conv1.weight

    def look(numbers: Sequence[int], pictures: Tensor) -> tuple[dict[int, Tensor], Tensor]:
        p, _, embedding = _streams(visual, pictures.to(weight.device, weight.dtype), set(sample))
        return {layer: p[layer][..., neurons.to(weight.device)] for layer, neurons in sample.items()}, embedding  # (b, token, n)

    shown = progress(batches, "mean activations", expected, lambda batch: len(batch[0]))
    for images, (activation, embedding) in in_halves(shown, look):
        stay = screen.places(images, unusable(embedding, *activation.values()))
        for layer, numbers in activation.items():
            added = exact(numbers if len(stay) == len(images) else numbers[list(stay)]).sum(0)  # (token, n)
            total[layer] = total[layer] + added if layer in total else added
        count += len(stay)
    screen.require(count)
    screen.end_look()
    return {layer: (each / count).to(wide(weight).dtype).to(weight.device) for layer, each in total.items()}


def keep_all(paths: Indirect, layers: Sequence[int], expected: int, settings: Settings) -> int | None:
    """The margin with which every image's effects are kept, so that no second pass is needed; None where they do not fit."""
    units, d = sum(paths.size(layer)[0] for layer in layers), paths.size(layers[0])[1]
    top = settings.top_of(expected)  # T of the settings that take the margin
    fits = units * UnitStatistics.bytes_per_unit(d, max(expected, top)) <= settings.memory
    return max(0, expected - top) if fits else None


def cost(visual: VisionTransformer, sample: Sample, images: int, passes: int = 2) -> str:
    """What the indirect effects of these neurons take, in words.

    Args:
        passes: Whole ones an image: 2, or 1 where the means are known.
    """
    depth, neurons = len(visual.transformer.resblocks), sum(map(len, sample.values()))
    later = ", ".join(f"{len(chosen)} of layer {layer} through {depth - 1 - layer} later" for layer, chosen in sample.items())
    return f"{passes * images} forward passes and {images * neurons} partial ones ({count_of(images, 'image')}; neurons: {later})"


def _output(visual: VisionTransformer, layer: int, x: Float[Tensor, "b token width"]) -> Float[Tensor, "b d"]:
    """M from the residual stream after a block; only the class token in the last one."""
    blocks = list(visual.transformer.resblocks)
    for block in blocks[layer + 1 : -1]:
        x = block(x)
    cls = x[:, :1] if layer == len(blocks) - 1 else _class_token(blocks[-1], x)  # (b, 1, width)
    return visual.ln_post(cls)[:, 0] @ visual.proj


def _class_token(block: ResidualAttentionBlock, x: Float[Tensor, "b token width"]) -> Float[Tensor, "b 1 width"]:
    """The block's output at the class token."""
    normed = block.ln_1(x)
    cls = x[:, :1] + block.ls_1(block.attention(normed[:, :1], normed, normed))
    return cls + block.ls_2(block.mlp(block.ln_2(cls)))


def _streams(
    visual: VisionTransformer, image: Float[Tensor, "b 3 y x"], layers: set[int]
) -> tuple[dict[int, Tensor], dict[int, Tensor], Float[Tensor, "b d"]]:
    """One forward pass: by layer, activations after the nonlinearity and the residual stream after the block; and M(I)."""
    p: dict[int, Tensor] = {}
    x: dict[int, Tensor] = {}
    blocks = visual.transformer.resblocks
    hooks: Hooks = [(blocks[layer].mlp.gelu, keep_output(p, layer)) for layer in layers]
    hooks += [(blocks[layer], keep_output(x, layer)) for layer in layers]
    with hooked(hooks):
        embedding = visual(image)
    return p, x, embedding
