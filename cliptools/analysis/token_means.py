"""Mean activities of a ViT's neurons and heads at every token, and a mask of hooks that puts the units at these means.

The activity of a neuron is its activation p_i^n at token i, after the MLP's nonlinearity. The activity of a head is its
attention-weighted sum of values, biases included, as the head's part of the output matrix reads it:

    z_i^h = sum over j of a_ij^h (W_V^h LN(x_j) + b_V^h)          with a LayerNorm or a gain of the head, where a tower has one

A mask replaces p_i^n and z_i^h by their means over images, token by token, in the forward pass. No weights can do this, since a
bias is the same for all tokens; and in a layer before the last every token of a head is read. A picture of another size has
other tokens: its class token gets the mean of the class token, each patch the mean over all patches.
"""

from collections.abc import Callable, Mapping
from typing import NamedTuple

import torch
from jaxtyping import Float, Float64, Int
from torch import Tensor, nn
from torch.nn import functional

from cliptools.devices import to_float64
from cliptools.towers.hooks import Hooks, hooked, keep_output
from cliptools.towers.kinds import tower_of
from cliptools.towers.open_clip_vit import TorchAttention
from cliptools.towers.tower import Block, Tower
from cliptools.unit_effects.factored import wide

Numbers = Mapping[int, Int[Tensor, " _"]]
"""Numbers of neurons or heads, by layer."""


def head_values(
    attn: nn.MultiheadAttention, normed: Float[Tensor, "b token width"], heads: Int[Tensor, " h"]
) -> Float[Tensor, "b token h e"]:
    """z of some heads at every token; in float32 at least."""
    x, heads = wide(normed), heads.to(normed.device)
    q, k, v = (
        torch.einsum("btw,hew->bhte", x, weight) + bias[:, None]
        for weight, bias in zip(_rows(wide(attn.in_proj_weight), heads, attn), _rows(_bias(attn), heads, attn), strict=True)
    )  # (b, h, token, e)
    return functional.scaled_dot_product_attention(q, k, v).transpose(1, 2)


def _bias(attn: nn.MultiheadAttention) -> Float[Tensor, " j"]:
    weight = wide(attn.in_proj_weight)
    return weight.new_zeros(len(weight)) if attn.in_proj_bias is None else wide(attn.in_proj_bias)


def _rows(x: Tensor, heads: Int[Tensor, " h"], attn: nn.MultiheadAttention) -> Tensor:
    """Rows of queries, keys and values that belong to these heads: (3, h, e, ...)."""
    return x.unflatten(0, (3, attn.num_heads, -1))[:, heads]


class TokenMeans:
    """Means of activities over images that come in batches."""

    def __init__(self, visual: nn.Module | Tower, neurons: Numbers, heads: Numbers) -> None:
        self.tower, self.neurons, self.heads = tower_of(visual), neurons, heads
        self.count = 0
        self._neuron_sum: dict[int, Tensor] = {}  # by layer: (token, n)
        self._head_sum: dict[int, Tensor] = {}  # by layer: (token, h, e)

    @torch.inference_mode()
    def read(self, image: Float[Tensor, "b 3 y x"]) -> tuple[dict[int, Tensor], dict[int, Tensor], Float[Tensor, "b d"]]:
        """Activities of the neurons and of the heads by layer, (b, token, n) and (b, token, h, e), and M(I)."""
        p: dict[int, Tensor] = {}
        values: dict[int, Tensor] = {}
        blocks = self.tower.blocks
        hooks: Hooks = [(blocks[layer].hidden, keep_output(p, layer)) for layer in self.neurons]
        hooks += [hook for layer, heads in self.heads.items() for hook in _keep_heads(values, layer, blocks[layer], heads)]
        with hooked(hooks):
            embedding = self.tower.visual(image.to(self.tower.weight))
        activations = {layer: p[layer][..., numbers.to(p[layer].device)] for layer, numbers in self.neurons.items()}
        return activations, values, embedding

    def add(self, activations: Mapping[int, Tensor], values: Mapping[int, Tensor]) -> None:
        """Add activities of further images, as `read` returns them."""
        for sums, batch in ((self._neuron_sum, activations), (self._head_sum, values)):
            for layer, activity in batch.items():
                total = to_float64(activity).sum(0)
                sums[layer] = sums[layer] + total if layer in sums else total
        self.count += len(next(iter((*activations.values(), *values.values()))))

    @property
    def neuron_means(self) -> dict[int, Float64[Tensor, "token _"]]:
        """Means of the neurons at every token, by layer."""
        return {layer: total / self.count for layer, total in self._neuron_sum.items()}

    @property
    def head_means(self) -> dict[int, Float64[Tensor, "token _ e"]]:
        """Means of the heads at every token, by layer."""
        return {layer: total / self.count for layer, total in self._head_sum.items()}


class Mask(NamedTuple):
    """Units of a ViT, with the mean of each at every token."""

    neurons: dict[int, Int[Tensor, " _"]]
    neuron_means: dict[int, Float[Tensor, "token _"]]
    heads: dict[int, Int[Tensor, " _"]]
    head_means: dict[int, Float[Tensor, "token _ e"]]

    def hooks(self, visual: nn.Module | Tower) -> Hooks:
        """Hooks that put the units at their means in every forward pass; hooks registered later see the replaced activities."""
        tower = tower_of(visual)
        blocks, weight = tower.blocks, tower.weight
        hooks: Hooks = [
            (blocks[layer].hidden, replace_neurons(numbers.to(weight.device), self.neuron_means[layer].to(weight), tower.prefix))
            for layer, numbers in self.neurons.items()
        ]
        for layer, heads in self.heads.items():
            normed: dict[int, Tensor] = {}
            attention, mean = blocks[layer].attention, self.head_means[layer].to(weight.device)
            if isinstance(attention, TorchAttention):
                hooks += attention.listen(blocks[layer].norm_1, _keep(normed, layer))
                hooks.append((attention.module, _replace_heads(normed, layer, heads.to(weight.device), mean)))
            hooks.append((attention.output, _replace_values(attention.heads, heads, mean, tower.prefix)))
        return hooks


def _keep(store: dict[int, Tensor], layer: int) -> Callable[[Tensor], None]:
    return lambda x: store.update({layer: x})


def _keep_heads(store: dict[int, Tensor], layer: int, block: Block, heads: Int[Tensor, " h"]) -> Hooks:
    """Hooks that keep z of some heads by the number of the layer."""
    attention = block.attention
    if isinstance(attention, TorchAttention):
        return attention.listen(block.norm_1, lambda x: store.update({layer: head_values(attention.module, x, heads)}))

    def keep(output_matrix: nn.Linear, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        store[layer] = wide(inputs[0]).unflatten(-1, (attention.heads, -1))[:, :, heads.to(inputs[0].device)]  # (b, token, h, e)

    return [(attention.output, keep)]


def for_tokens(mean: Float[Tensor, "token *n"], count: int, prefix: int = 1) -> Float[Tensor, "count *n"]:
    """Means for a picture with this many tokens, of which `prefix` come before the patches."""
    if len(mean) == count:
        return mean
    return torch.cat([mean[:prefix], mean[prefix:].mean(0, keepdim=True).expand(count - prefix, *mean.shape[1:])])


def replace_neurons(neurons: Int[Tensor, " n"], mean: Float[Tensor, "token n"], prefix: int = 1) -> Callable[..., Tensor]:
    """A hook that replaces these activations of an MLP's nonlinearity by their means."""

    def hook(module: nn.Module, inputs: tuple[Tensor, ...], output: Float[Tensor, "b token neuron"]) -> Tensor:
        replaced = output.clone()
        replaced[..., neurons] = for_tokens(mean, output.shape[1], prefix)
        return replaced

    return hook


def _replace_heads(
    normed: dict[int, Tensor], layer: int, heads: Int[Tensor, " h"], mean: Float[Tensor, "token h e"]
) -> Callable[..., tuple[Tensor, Tensor | None]]:
    """A hook on an attention layer that replaces z of these heads by its means: its output changes by W_O^h (mean z - z)."""

    def hook(
        attn: nn.MultiheadAttention, inputs: tuple[Tensor, ...], output: tuple[Tensor, Tensor | None]
    ) -> tuple[Tensor, Tensor | None]:
        z = head_values(attn, normed.pop(layer), heads)  # (b, token, h, e)
        W_O = wide(attn.out_proj.weight).unflatten(1, (attn.num_heads, -1))[:, heads]  # (width, h, e)
        change = torch.einsum("bthe,whe->btw", for_tokens(mean, z.shape[1]).to(z) - z, W_O)
        return output[0] + change.to(output[0]), output[1]

    return hook


def _replace_values(count: int, heads: Int[Tensor, " h"], mean: Float[Tensor, "token h e"], prefix: int) -> Callable[..., Tensor]:
    """The same as a hook on the output matrix; torch's attention does not call it as a module, code that writes it out does.

    Args:
        count: Number of all heads of the layer.
    """

    def hook(output_matrix: nn.Linear, inputs: tuple[Tensor, ...], output: Float[Tensor, "b token width"]) -> Tensor:
        z = wide(inputs[0]).unflatten(-1, (count, -1))[:, :, heads]  # (b, token, h, e)
        W_O = wide(output_matrix.weight).unflatten(1, (count, -1))[:, heads]  # (width, h, e)
        change = torch.einsum("bthe,whe->btw", for_tokens(mean, z.shape[1], prefix).to(z) - z, W_O)
        return output + change.to(output)

    return hook
