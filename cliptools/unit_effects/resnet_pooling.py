"""Neuron-head pairs, neurons and heads in the attention pooling of a CLIP-ResNet, in factored form.

Paper 2 (arXiv 2509.19943). The last block's channels after ReLU, z_i[n] at token i, and their mean z_0 get positional
embeddings, x_i = z_i + p_i. The pooling reads them with one query, that of the mean token: head h gives token i the attention
a_i^h. So neuron n reaches the output through head h as

    r^{n,h}(I) = s^{n,h}(I) w^{n,h}
    s^{n,h}    = sum over i = 0 ... T of a_i^h x_i[n]
    w^{n,h}    = W_O^h W_V^h[:, n]

and the sum over all pairs, with W_O b_V + b_O, is M(I). Only the scalars s depend on the image, so these are factored effects
(factored.py, Eq. 1) of layer 4:

    pairs (n, h):                     K = 1           S = s^{n,h}                               D = w^{n,h}
    neurons n, sums over the heads:   K = heads       S[h] = s^{n,h}                            D[h] = w^{n,h}
    heads h, sums over the neurons:   K = head width  S[j] = sum over n of W_V^h[j, n] s^{n,h}  D[j] = W_O^h[:, j]

Bias shares are left out.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from cliptools.devices import to_float64, to_like
from cliptools.errors import ModelError
from cliptools.models.clip_parts import AttentionPool2d, ModifiedResNet
from cliptools.unit_effects.factored import UnitBlock, head_units, index_of, neuron_units, wide

LAYER = 4  # number of open_clip's stage layer4, the only layer whose neurons the pooling reads


class PoolTrace(NamedTuple):
    """Result of one forward pass, with what S depends on. Token 0 is the mean."""

    embedding: Float[Tensor, "b d"]
    """M(I), not normalised."""
    x: Float[Tensor, "b token neuron"]
    """Channels of the last block, positional embeddings included."""
    attention: Float[Tensor, "b head token"]
    """a: the mean token's attention row in each head."""


class Pooled(ABC):
    """The common part of pairs, neurons and heads as factored effects."""

    def __init__(self, visual: ModifiedResNet) -> None:
        self.visual = visual
        self.heads, self.neurons = visual.attnpool.num_heads, visual.attnpool.v_proj.in_features

    @abstractmethod
    def scalars(self, trace: PoolTrace) -> Float[Tensor, "b n k"]:
        """S of all units."""

    @torch.inference_mode()
    def read(
        self, image: Float[Tensor, "b 3 y x"], blocks: Sequence[UnitBlock]
    ) -> tuple[Iterator[Float[Tensor, "b n k"]], Float[Tensor, "b d"]]:
        """S of every block, and M(I), from one forward pass."""
        weight = self.visual.conv1.weight
        trace = trace_pool(self.visual, image.to(weight.device, weight.dtype))
        return self.scalars_of(trace, blocks), trace.embedding

    def scalars_of(self, trace: PoolTrace, blocks: Sequence[UnitBlock]) -> Iterator[Float[Tensor, "b n k"]]:
        """S of every block, from a forward pass that has run."""
        S = self.scalars(trace)
        return (S[:, index_of(block.neurons, S.device)] for block in blocks)

    def _pairs(self, trace: PoolTrace) -> Float[Tensor, "b neuron head"]:
        """s of all pairs."""
        return trace.x.transpose(1, 2) @ trace.attention.transpose(1, 2)  # [b, neuron, token] @ [b, token, head]


class Pairs(Pooled):
    """Units are neuron-head pairs, neuron by neuron; the only path is the pair itself."""

    def __init__(self, visual: ModifiedResNet) -> None:
        super().__init__(visual)
        self._norm2: Tensor | None = None  # [n]: ||w||^2 of all pairs

    def size(self, layer: int) -> tuple[int, int]:
        """Number of pairs, and 1."""
        return self.neurons * self.heads, 1

    def units(self, layer: int) -> Int[Tensor, "n 3"]:
        """Layer, neuron and head of every pair."""
        number = torch.arange(self.neurons * self.heads if layer == LAYER else 0)
        return torch.stack([torch.full_like(number, LAYER), number // self.heads, number % self.heads], 1)

    def scalars(self, trace: PoolTrace) -> Float[Tensor, "b n 1"]:
        """s of every pair."""
        return self._pairs(trace).flatten(1)[..., None]  # [b, neuron, head] -> [b, n, 1]

    @torch.inference_mode()
    def gram(self, block: UnitBlock) -> Float[Tensor, "n 1 1"]:
        """||w||^2 = W_V^h[:, n]^T (W_O^h^T W_O^h) W_V^h[:, n] of the block's pairs; no w is formed."""
        if self._norm2 is None:
            W_V, W_O, bias = value_output(self.visual)
            W_V, W_O = to_float64(W_V), to_float64(W_O)
            square = (W_V * (W_O.transpose(1, 2) @ W_O @ W_V)).sum(1)  # [head, neuron]
            self._norm2 = to_like(square.T.flatten().clamp(min=0), bias)
        return self._norm2[block.neurons.to(self._norm2.device)][:, None, None]

    @torch.inference_mode()
    def along(self, block: UnitBlock, v: Float[Tensor, " d"]) -> Float[Tensor, "n 1"]:
        """<w, v> of the block's pairs; no w is formed."""
        along = _along_heads(self.visual, v).flatten()  # [neuron, head] -> [n]
        return along[index_of(block.neurons, along.device), None]

    @torch.inference_mode()
    def total(self, block: UnitBlock, S: Float[Tensor, "b n 1"]) -> Float[Tensor, "b d"]:
        """Sum over the block's pairs of s w; no w is formed."""
        s = S.new_zeros(len(S), self.neurons * self.heads)
        s[:, index_of(block.neurons, S.device)] = S[..., 0]
        return _through_heads(self.visual, s.unflatten(1, (self.neurons, self.heads)))

    @torch.inference_mode()
    def directions(self, block: UnitBlock) -> Float[Tensor, "n 1 d"]:
        """w of the block's pairs."""
        return pair_directions(self.visual, block.neurons // self.heads, block.neurons % self.heads)[:, None]


class PooledNeurons(Pooled):
    """Units are neurons; paths are the heads that read them."""

    def size(self, layer: int) -> tuple[int, int]:
        """Numbers of neurons and of heads."""
        return self.neurons, self.heads

    def units(self, layer: int) -> Int[Tensor, "n 3"]:
        """Layer and number of every neuron."""
        return neuron_units(LAYER, torch.arange(self.neurons if layer == LAYER else 0))

    def scalars(self, trace: PoolTrace) -> Float[Tensor, "b n k"]:
        """s of every neuron's pairs."""
        return self._pairs(trace)

    @torch.inference_mode()
    def along(self, block: UnitBlock, v: Float[Tensor, " d"]) -> Float[Tensor, "n k"]:
        """<w, v> of all pairs of the block's neurons; no w is formed."""
        along = _along_heads(self.visual, v)  # [neuron, head]
        return along[index_of(block.neurons, along.device)]

    @torch.inference_mode()
    def total(self, block: UnitBlock, S: Float[Tensor, "b n k"]) -> Float[Tensor, "b d"]:
        """Sum over the block's neurons and over all heads of s w; no w is formed."""
        return _through_heads(self.visual, S, index_of(block.neurons, S.device))

    @torch.inference_mode()
    def directions(self, block: UnitBlock) -> Float[Tensor, "n k d"]:
        """w of all pairs of the block's neurons."""
        n, h = block.neurons.repeat_interleave(self.heads), torch.arange(self.heads).repeat(len(block.neurons))
        return pair_directions(self.visual, n, h).unflatten(0, (-1, self.heads))  # [n head, d] -> [n, head, d]


class PooledHeads(Pooled):
    """Units are heads; paths are the dimensions of their values."""

    def size(self, layer: int) -> tuple[int, int]:
        """Number of heads, and their width e."""
        return self.heads, self.neurons // self.heads

    def units(self, layer: int) -> Int[Tensor, "n 3"]:
        """Layer and number of every head."""
        return head_units(LAYER, torch.arange(self.heads if layer == LAYER else 0))

    def scalars(self, trace: PoolTrace) -> Float[Tensor, "b n k"]:
        """Attention-weighted values of each head, before its output matrix and without the bias."""
        return torch.einsum("bhn,hen->bhe", trace.attention @ trace.x, value_output(self.visual)[0])  # [b, head, e]

    @torch.inference_mode()
    def directions(self, block: UnitBlock) -> Float[Tensor, "n k d"]:
        """Columns of W_O of the block's heads."""
        W_O = value_output(self.visual)[1]
        return W_O[block.neurons.to(W_O.device)].transpose(1, 2)  # [n, d, e] -> [n, e, d]


def _through_heads(
    visual: ModifiedResNet, s: Float[Tensor, "b n head"], neurons: slice | Int[Tensor, "n"] = slice(None)
) -> Float[Tensor, "b d"]:
    """Sum over these neurons and all heads of s^{n,h} w^{n,h}: over the neurons first, head by head, in the type of s."""
    W_V, W_O, _ = value_output(visual)
    values = s.permute(2, 0, 1) @ W_V[:, :, neurons].to(s).transpose(1, 2)  # [head, b, n] @ [head, n, e]
    return (values @ W_O.to(s).transpose(1, 2)).sum(0)  # [head, b, e] @ [head, e, d]


def _along_heads(visual: ModifiedResNet, v: Float[Tensor, " d"]) -> Float[Tensor, "neuron head"]:
    """<w^{n,h}, v> of all pairs: through W_O first, one vector of the values for each head."""
    W_V, W_O, _ = value_output(visual)
    return torch.einsum("he,hen->nh", torch.einsum("hde,d->he", W_O, v.to(W_O)), W_V)


def trace_pool(visual: ModifiedResNet, image: Float[Tensor, "b 3 y x"]) -> PoolTrace:
    """One forward pass that computes of the pooling only the output of the mean token's query.

    open_clip's own pooling computes the output of every token and does not return its attention. A single query needs no keys:
    W_K moves to the query's side, and the key bias, the same for every token, drops out of the softmax.

    Raises:
        ModelError: the images have more or fewer tokens than there are positional embeddings.
    """
    z = visual.layer4(visual.layer3(visual.layer2(visual.layer1(visual.stem(image)))))  # [b, neuron, row, column]
    pool, heads = visual.attnpool, visual.attnpool.num_heads
    if z.shape[2] * z.shape[3] + 1 != len(pool.positional_embedding):
        tokens, expected = z[0, 0].numel(), len(pool.positional_embedding) - 1
        raise ModelError(
            f"images of {image.shape[2]} × {image.shape[3]} pixels give {tokens} tokens, this model expects {expected}"
        )
    z = z.flatten(2).transpose(1, 2)  # [b, T, neuron]
    x = torch.cat([z.mean(1, keepdim=True), z], 1) + pool.positional_embedding.to(z.dtype)  # [b, 1 + T, neuron]
    W_K = pool.k_proj.weight.unflatten(0, (heads, -1))  # [head, e, neuron]
    q = pool.q_proj(x[:, 0]).unflatten(-1, (heads, -1)) * W_K.shape[1] ** -0.5  # [b, head, e]
    q = torch.einsum("bhe,hen->bhn", q, W_K)
    a = wide(q @ x.transpose(1, 2)).softmax(-1)  # [b, head, token]
    x = wide(x)
    W_V, W_O, bias = value_output(visual)
    values = torch.einsum("bhn,hen->bhe", a @ x, W_V)  # a @ x: [b, head, token] @ [b, token, neuron]
    return PoolTrace(torch.einsum("bhe,hde->bd", values, W_O) + bias, x, a)


def value_output(
    visual: ModifiedResNet,
) -> tuple[Float[Tensor, "head e neuron"], Float[Tensor, "head d e"], Float[Tensor, "d"]]:
    """W_V and W_O of each head, and W_O b_V + b_O, which the pooling adds on every image; in float32 at least."""
    pool = visual.attnpool
    W_V = wide(pool.v_proj.weight).unflatten(0, (pool.num_heads, -1))
    W_O = wide(pool.c_proj.weight)  # [d, head e]
    bias = W_O @ wide(pool.v_proj.bias) + wide(pool.c_proj.bias)
    return W_V, W_O.unflatten(1, (pool.num_heads, -1)).transpose(0, 1), bias


def pair_directions(visual: ModifiedResNet, neurons: Int[Tensor, "n"], heads: Int[Tensor, "n"]) -> Float[Tensor, "n d"]:
    """w^{n,h} of n pairs: what each adds to the output for every unit of its scalar s."""
    W_V, W_O, _ = value_output(visual)
    return pair_vectors(W_V, W_O, neurons, heads)


def pair_vectors(
    W_V: Float[Tensor, "head e neuron"], W_O: Float[Tensor, "head d e"], neurons: Int[Tensor, "n"], heads: Int[Tensor, "n"]
) -> Float[Tensor, "n d"]:
    """w^{n,h} = W_O^h W_V^h[:, n] of n pairs, from weights of any precision."""
    neurons, heads = neurons.to(W_V.device), heads.to(W_V.device)
    w = W_V.new_empty(len(neurons), W_O.shape[1])
    for head in heads.unique().tolist():
        rows = (heads == head).nonzero()[:, 0]
        w[rows] = W_V[head][:, neurons[rows]].T @ W_O[head].T  # [row, e] @ [e, d]
    return w


def supported_resnet(clip: nn.Module) -> ModifiedResNet:
    """The model's image tower, checked to be a ResNet with attention pooling.

    Raises:
        ModelError: another kind of tower.
    """
    visual = clip.visual
    if not isinstance(visual, ModifiedResNet) or type(visual.attnpool) is not AttentionPool2d:
        raise ModelError(f"neuron-head pairs need open_clip's ModifiedResNet, this image tower is a {type(visual).__name__}")
    return visual
