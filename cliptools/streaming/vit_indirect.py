"""Indirect effects of a ViT's neurons: the change of the output when a neuron is replaced by its mean at every token.

Paper 1 (arXiv 2406.04341), Sec. 3.2: with p_i the activation of neuron n at token i and m_i its mean over the images,

    phi_n(I) = M(I) - M(I with p_i replaced by m_i at every token i)

Nothing is frozen: later LayerNorms, attention and MLPs all respond to the change, so these effects have no factored form. They
are vectors that take a forward pass through the later layers for each neuron and image, after a pass over all images for the
means (`token_means`). For the statistics they are S = phi [b, n, d] with K = d paths and D the identity; its Gram matrices are
d x d identities, which fit into memory for a sample of neurons (`draw_sample`).

The block of the neuron itself does not run again: its output changes by (m_i - p_i) w_n, where no LayerNorm reads the output of
the MLP. In open_clip's towers the last block computes only the class token.
"""

import time
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from cliptools.console import LONG, count_of, note, progress, rounded_time
from cliptools.devices import in_halves, to_float64
from cliptools.models.unusable import Screen, unusable
from cliptools.towers.hooks import Hooks, hooked, keep_output
from cliptools.towers.kinds import tower_of
from cliptools.towers.tower import Tower
from cliptools.unit_effects.factored import UnitBlock, neuron_units, wide
from cliptools.unit_effects.vit_second_order import neurons_per_layer

ROW_BYTES = 256 << 20  # bytes of activations while images times neurons go through the later layers together
MLP_ROWS = 12  # rows of activations that a token takes in a block, those of its MLP included

Sample = Mapping[int, Int[Tensor, "_"]]
"""Sampled neurons of each layer."""


class Indirect:
    """Indirect effects: units are the sampled neurons, numbered within the sample; paths are the dimensions of the output."""

    def __init__(self, visual: nn.Module | Tower, sample: Sample, means: Mapping[int, Tensor], expected: int) -> None:
        """
        Args:
            means: By layer, the per-token means of the sampled neurons [token, n], from `token_means`.
            expected: Number of images to come, for the estimate of the time.
        """
        self.tower, self.sample, self.means = tower_of(visual), sample, means
        self.expected: int | None = expected
        self.passes = sum(len(neurons) for neurons in sample.values())

    def size(self, layer: int) -> tuple[int, int]:
        """Sampled neurons of the layer, and d."""
        return len(self.sample[layer]), self.tower.projection.shape[1]

    def units(self, layer: int) -> Int[Tensor, "n 3"]:
        """Layer and number of every sampled neuron."""
        return neuron_units(layer, self.sample.get(layer, torch.arange(0)))

    @torch.inference_mode()
    def read(
        self, image: Float[Tensor, "b 3 y x"], blocks: Sequence[UnitBlock]
    ) -> tuple[list[Float[Tensor, "b n d"]], Float[Tensor, "b d"]]:
        """phi of every block, and M(I): one forward pass, and one through the later layers for each neuron."""
        start = time.perf_counter()
        weight = self.tower.weight
        p, x, y, embedding = _streams(self.tower, image.to(weight.device, weight.dtype), {block.layer for block in blocks})
        phi = [self._effects(block, p[block.layer], x[block.layer], y.get(block.layer), wide(embedding)) for block in blocks]
        if self.expected is not None:
            share = sum(len(block.neurons) for block in blocks) / self.passes
            phi[-1].sum().item()  # waits for the device
            seconds = (time.perf_counter() - start) / len(image) / share * max(0, self.expected - len(image))
            if seconds >= LONG:
                first = count_of(len(image), "image")
                note(f"indirect effects: about {rounded_time(seconds)} to go, estimated from the first {first}")
            self.expected = None
        return phi, embedding

    def directions(self, block: UnitBlock) -> Float[Tensor, "n d d"]:
        """The identity for every unit, since S is the effect itself."""
        like = wide(self.tower.projection)
        d = like.shape[1]
        return torch.eye(d, dtype=like.dtype, device=like.device).expand(len(block.neurons), d, d)

    def total(self, block: UnitBlock, S: Float[Tensor, "b n d"]) -> Float[Tensor, "b d"]:
        """Sum of phi_n over the block's neurons."""
        return S.sum(1)

    def _effects(
        self,
        block: UnitBlock,
        p: Float[Tensor, "b token neuron"],
        x: Float[Tensor, "b token width"],
        y: Float[Tensor, "b token width"] | None,
        embedding: Float[Tensor, "b d"],
    ) -> Float[Tensor, "b n d"]:
        neurons = self.sample[block.layer][block.neurons.cpu()].to(x.device)
        of_block = self.tower.blocks[block.layer]
        w = (of_block.neuron_outputs(neurons) if y is None else wide(of_block.output.weight)[:, neurons]).T  # [n, width]
        change = self.means[block.layer][:, block.neurons.to(x.device)] - wide(p[..., neurons])  # [b, token, n]: m_i - p_i
        b, token, width = x.shape
        step = max(1, ROW_BYTES // (b * token * width * x.element_size() * MLP_ROWS))
        parts = []
        for start in range(0, len(neurons), step):
            rows = slice(start, start + step)
            written = torch.einsum("btn,nw->nbtw", change[..., rows], w[rows]).to(x.dtype)  # [n, b, token, width]
            changed = x + (written if y is None else of_block.change_of_mlp(y, written))
            parts.append(self.tower.rest(changed.flatten(0, 1), block.layer).unflatten(0, (-1, b)))  # [n, b, d]
        return embedding[:, None] - wide(torch.cat(parts)).transpose(0, 1)


def draw_sample(visual: nn.Module | Tower, layers: Sequence[int], count: int | None, seed: int) -> dict[int, Tensor]:
    """A random sample of `count` neurons of each layer, ascending; all neurons for None."""
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
    visual: nn.Module | Tower,
    batches: Iterator[tuple[list[int], Tensor]],
    sample: Sample,
    expected: int,
    screen: Screen[int] | None = None,
) -> dict[int, Float[Tensor, "token _"]]:
    """The mean activation of each sampled neuron at each token over all images, summed in float64.

    Args:
        screen: As for `measure`.

    Raises:
        CliptoolsError: no image could be read, or an image is not usable.
    """
    screen = Screen() if screen is None else screen
    total: dict[int, Tensor] = {}
    count = 0
    tower = tower_of(visual)
    weight = tower.weight

    def look(numbers: Sequence[int], pictures: Tensor) -> tuple[dict[int, Tensor], Tensor]:
        p, _, _, embedding = _streams(tower, pictures.to(weight.device, weight.dtype), set(sample))
        return {layer: p[layer][..., neurons.to(weight.device)] for layer, neurons in sample.items()}, embedding  # [b, token, n]

    counted = progress(batches, "mean activations", expected, lambda batch: len(batch[0]))
    for images, (activation, embedding) in in_halves(counted, look):
        usable = screen.places(images, unusable(embedding, *activation.values()))
        for layer, p in activation.items():
            batch = to_float64(p if len(usable) == len(images) else p[list(usable)]).sum(0)  # [token, n]
            total[layer] = total[layer] + batch if layer in total else batch
        count += len(usable)
    screen.require(count)
    screen.end_look()
    return {layer: (p / count).to(wide(weight).dtype).to(weight.device) for layer, p in total.items()}


def cost(visual: nn.Module | Tower, sample: Sample, images: int, passes: int = 2) -> str:
    """A sentence about the work that the indirect effects of these neurons take.

    Args:
        passes: Whole forward passes an image: 2, or 1 if the means are known.
    """
    depth, neurons = tower_of(visual).depth, sum(map(len, sample.values()))
    later = ", ".join(f"{len(chosen)} of layer {layer} through {depth - 1 - layer} later" for layer, chosen in sample.items())
    return f"{passes * images} forward passes and {images * neurons} partial ones ({count_of(images, 'image')}; neurons: {later})"


def _streams(
    tower: Tower, image: Float[Tensor, "b 3 y x"], layers: set[int]
) -> tuple[dict[int, Tensor], dict[int, Tensor], dict[int, Tensor], Float[Tensor, "b d"]]:
    """One forward pass: by layer, the MLP's activations, the residual stream after the block, and an MLP's output that a
    LayerNorm reads; and M(I).
    """
    p: dict[int, Tensor] = {}
    x: dict[int, Tensor] = {}
    y: dict[int, Tensor] = {}
    blocks = tower.blocks
    hooks: Hooks = [(blocks[layer].hidden, keep_output(p, layer)) for layer in layers]
    hooks += [(blocks[layer].module, keep_output(x, layer)) for layer in layers]
    hooks += [(blocks[layer].mlp, keep_output(y, layer)) for layer in layers if blocks[layer].norm_mlp is not None]
    with hooked(hooks):
        embedding = tower.visual(image)
    return p, x, y, embedding
