"""Edits of an image tower's weights after which units no longer write along given directions, or stand at their means.

No edit changes the tower itself: each function returns the changed weights by their names in the tower, in float64.

Null edit of a ViT's neuron n of layer l. The neuron writes w_n = ls2_l * c_n into the residual stream, where c_n is its column of
the MLP's output matrix. With the LayerNorms of the forward pass frozen, one later head k = (l', h) carries p_i w_n from token i
to the output, and the residual stream carries it from where the output is read. Both are multiples, along a vector v of the joint
space, of

    g_k = C (gamma_l' * W_V^h' W_O^h' (ls1_l' * g_0)),        g_0 = C (gamma_post * P v),        C = I - 1 1' / width

where C is the mean that a LayerNorm takes away. If <g, w_n> = 0 for all of them, the neuron writes nothing along v on any image.
With Q an orthonormal basis of their span, the smallest change of w_n that does this is

    c_n <- c_n - Q Q' (ls2_l * c_n) / ls2_l

Where a tower pools by attention (towers/pooling.py), there is one g_0 = C A_g' v for each head g of the pooling.

Paths through the MLPs of later layers remain, and so do effects on the attention of later layers. Several v have several g each.

Null edit of a ResNet's pair (n, h). It writes s w on the output, where w = W_O^h W_V^h[:, n], and on no other path. With U an
orthonormal basis of the span of P v, where P = W_O^h W_O^h+ projects onto what head h can write,

    W_V^h[:, n] <- W_V^h[:, n] - W_O^h+ U U' w,                output bias + mean(s) U U' w

is the smallest change of w after which the pair writes along v what it writes on average, on any image.

Units at their means. Exact, because the output is linear in what is replaced:

    ViT neuron, whole          column n of the MLP's output matrix 0                 bias + mean(p^n) c_n
    ViT head                   its columns of W_O 0                                  bias + W_O^h mean(z^h)
    ResNet pair (n, h)         W_V^h[:, n] = 0                                       output bias + mean(s) w^{n,h}
    ResNet neuron n, head h    W_V[:, n] = 0, or W_V^h = 0                           output bias + b

p^n is the neuron's activation and z^h the head's attention-weighted values, biases included; both get one mean for all tokens. In
the last layer only the class token of z^h is read, so the mean over class tokens makes the edit a mean ablation of the head;
towers whose output is read from the mean of tokens have no such layer.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Float64, Int
from torch import Tensor, nn

from cliptools.devices import to_float64
from cliptools.errors import ModelError
from cliptools.models.clip_parts import ModifiedResNet
from cliptools.towers.kinds import tower_of
from cliptools.towers.tower import VALUES, Block, Tower, layer_scale_gain, norm_gain
from cliptools.unit_effects.resnet_pooling import pair_vectors, value_output

Weights = dict[str, Tensor]
"""Changed weights by their names in the image tower."""


class NeuronGroup(NamedTuple):
    """Neurons of one layer that shall write nothing along the same vectors."""

    layer: int
    neurons: Int[Tensor, " n"]
    v: Float[Tensor, "v d"]
    """Vectors of the joint space."""


class NullEdit(NamedTuple):
    """Changed weights of a null edit, with their effect on each group."""

    weights: Weights
    removed: list[Float64[Tensor, " _"]]
    """For each group and neuron |Q Q' w| / |w|; 0 for a neuron that writes nothing at all."""


def path_directions(visual: nn.Module | Tower, layer: int, v: Float[Tensor, "v d"]) -> Float64[Tensor, "g width"]:
    """g_0 and g_k of every later head, for every v: what w_n must be orthogonal to."""
    tower = tower_of(visual)
    P = to_float64(tower.projection)
    v = to_float64(v).to(P.device)
    if tower.pooling is None:
        g_0 = _centred((v @ P.T) * to_float64(norm_gain(tower.final_norm, P[:, 0])))  # (v, width)
    else:
        A = to_float64(tower.pooling.matrices(centred=True))  # (head, d, width)
        g_0 = _centred((v @ A).flatten(0, 1))  # (head v, width)
    g = [g_0, *(_through_heads(block, g_0).flatten(0, 1) for block in tower.blocks[layer + 1 :])]
    return _before_norm(tower.blocks[layer], torch.cat(g))


def _through_heads(block: Block, g_0: Float64[Tensor, "v width"]) -> Float64[Tensor, "v head width"]:
    """g_k of one block's heads."""
    attention = block.attention
    W_V = to_float64(attention.weights(VALUES)[0]).unflatten(0, (attention.heads, -1))  # (head, e, width)
    W_O = to_float64(attention.output.weight).unflatten(1, (attention.heads, -1))  # (width, head, e)
    g = to_float64(layer_scale_gain(block.ls_1, g_0.T))[:, 0] * g_0  # (v, width)
    if block.norm_attn is not None:
        g = _centred(g * to_float64(norm_gain(block.norm_attn, g[0])))
    if attention.inner is None:
        heads = torch.einsum("vw,whe,hex->vhx", g, W_O, W_V)  # (v, head, width)
    else:
        values = (g @ W_O.flatten(1)) * to_float64(norm_gain(attention.inner, W_O[0].flatten()))  # (v, head e)
        heads = torch.einsum("vhe,hex->vhx", _centred(values).unflatten(1, (attention.heads, -1)), W_V)
    return heads if block.norm_1 is None else _centred(heads * to_float64(norm_gain(block.norm_1, g[0])))


def _before_norm(block: Block, g: Float64[Tensor, "g width"]) -> Float64[Tensor, "g width"]:
    """g taken back through the LayerNorm that reads the MLP's output, if there is one, so that <g, c_n> is what matters."""
    if block.norm_mlp is None:
        return g
    return _centred(g * to_float64(layer_scale_gain(block.ls_2, g.T))[:, 0] * to_float64(norm_gain(block.norm_mlp, g[0])))


def _gain_of_mlp(block: Block, c: Float64[Tensor, "width neuron"]) -> Float64[Tensor, "width 1"]:
    """ls2, with which w_n = ls2 c_n; ones for a block whose `_before_norm` has it."""
    return to_float64(layer_scale_gain(None if block.norm_mlp is not None else block.ls_2, c))


def _centred(x: Float64[Tensor, "*v width"]) -> Float64[Tensor, "*v width"]:
    """C x."""
    return x - x.mean(-1, keepdim=True)


def null_edit(visual: nn.Module | Tower, groups: Sequence[NeuronGroup]) -> NullEdit:
    """Weights after which the neurons of each group write nothing along its vectors; a neuron belongs to one group only."""
    tower = tower_of(visual)
    weights: Weights = {}
    removed = []
    for layer, numbers, v in groups:
        block = tower.blocks[layer]
        c = weights.setdefault(f"{block.output_name}.weight", to_float64(block.output.weight).clone())  # (width, neuron)
        ls_2 = _gain_of_mlp(block, c)  # (width, 1)
        neurons = numbers.to(c.device)
        w = ls_2 * c[:, neurons]  # (width, n)
        Q = row_space(path_directions(tower, layer, v).to(c.device) * (ls_2[:, 0] != 0))  # (q, width)
        change = Q.T @ (Q @ w)  # (width, n): Q Q' w
        c[:, neurons] -= torch.where(ls_2 != 0, change / ls_2, 0.0)
        removed.append(_ratio(change.norm(dim=0), w.norm(dim=0)))
    return NullEdit(weights, removed)


def row_space(g: Float64[Tensor, "g width"]) -> Float64[Tensor, "q width"]:
    """Orthonormal basis of the span of the rows, whatever their lengths."""
    length = g.norm(dim=1, keepdim=True)  # (g, 1)
    rows = g[length[:, 0] > 0] / length[length[:, 0] > 0]
    if not len(rows):
        return rows
    _, singular, V = torch.linalg.svd(rows, full_matrices=False)
    return V[singular > singular[0] * max(rows.shape) * torch.finfo(torch.float64).eps]


def largest_overlap(visual: nn.Module | Tower, groups: Sequence[NeuronGroup], weights: Mapping[str, Tensor]) -> float:
    """Largest |<g, w>| / (|g| |w|) of all neurons and directions, with weights as they are stored.

    Args:
        weights: Weights of the MLPs' outputs in place of the tower's, by name.
    """
    tower = tower_of(visual)
    largest = 0.0
    for layer, neurons, v in groups:
        block = tower.blocks[layer]
        c = to_float64(weights[f"{block.output_name}.weight"])
        w = (_gain_of_mlp(block, c) * c)[:, neurons.to(c.device)]  # (width, n)
        g = path_directions(tower, layer, v).to(c.device)  # (g, width)
        overlap = _ratio((g @ w).abs(), g.norm(dim=1)[:, None] * w.norm(dim=0))  # (g, n)
        largest = max(largest, float(overlap.max()))
    return largest


def _ratio(x: Float64[Tensor, "*n"], y: Float64[Tensor, "*n"]) -> Float64[Tensor, "*n"]:
    """x / y, and 0 where y is 0."""
    return torch.where(y > 0, x / torch.where(y > 0, y, 1.0), 0.0)


def neurons_at_mean(
    visual: nn.Module | Tower, neurons: Mapping[int, Int[Tensor, " _"]], means: Mapping[int, Float[Tensor, " _"]]
) -> Weights:
    """Weights of a ViT with whole neurons at one mean for all tokens.

    Args:
        neurons: Numbers of the neurons, by layer.
        means: Their mean activations, by layer.
    """
    weights: Weights = {}
    for layer in neurons:
        block = tower_of(visual).blocks[layer]
        output, name = block.output, block.output_name
        c = to_float64(output.weight).clone()  # (width, neuron)
        numbers = neurons[layer].to(c.device)
        weights[f"{name}.bias"] = _bias(output, name) + c[:, numbers] @ to_float64(means[layer]).to(c)
        c[:, numbers] = 0
        weights[f"{name}.weight"] = c
    return weights


def _bias(output: nn.Linear, name: str) -> Float64[Tensor, " width"]:
    """The bias of an output matrix.

    Raises:
        ModelError: it has none, and no weights can hold a mean.
    """
    if output.bias is None:
        raise ModelError(f"{name} of this image tower has no bias, in which an edit could put means; use --mask")
    return to_float64(output.bias)


def heads_at_mean(
    visual: nn.Module | Tower, heads: Mapping[int, Int[Tensor, " _"]], means: Mapping[int, Float[Tensor, "_ e"]]
) -> Weights:
    """Weights of a ViT with whole heads at one mean for all tokens.

    Args:
        heads: Numbers of the heads, by layer.
        means: Their mean attention-weighted values with the value bias, by layer.
    """
    weights: Weights = {}
    for layer in heads:
        block = tower_of(visual).blocks[layer]
        output, name = block.attention.output, block.attention_name
        W_O = to_float64(output.weight).unflatten(1, (block.attention.heads, -1)).clone()  # (width, head, e)
        numbers, z = heads[layer].to(W_O.device), to_float64(means[layer]).to(W_O)  # z: (h, e)
        weights[f"{name}.bias"] = _bias(output, name) + torch.einsum("whe,he->w", W_O[:, numbers], z)
        W_O[:, numbers] = 0
        weights[f"{name}.weight"] = W_O.flatten(1)
    return weights


class PairGroup(NamedTuple):
    """Pairs of one head of a ResNet's pooling that shall write along the same vectors only their mean."""

    head: int
    neurons: Int[Tensor, " n"]
    v: Float[Tensor, "v d"]
    """Vectors of the joint space."""
    b: Float[Tensor, "n d"]
    """Mean effects of the pairs on the output, not scaled by its length."""


def null_pairs(visual: ModifiedResNet, groups: Sequence[PairGroup]) -> NullEdit:
    """Weights after which the pairs of each group write only their mean along its vectors; a pair belongs to one group only."""
    W_V, W_O, _ = (to_float64(weight) for weight in value_output(visual))  # (head, e, neuron), (head, d, e)
    W_V, bias = W_V.clone(), to_float64(visual.attnpool.c_proj.bias).clone()
    removed = []
    for head, numbers, v, b in groups:
        neurons, inverse = numbers.to(W_V.device), torch.linalg.pinv(W_O[head])  # inverse: (e, d)
        w = W_O[head] @ W_V[head][:, neurons]  # (d, n)
        U = row_space(to_float64(v).to(w) @ W_O[head] @ inverse)  # (u, d)
        change = U.T @ (U @ w)  # (d, n): U U' w
        s = _ratio((to_float64(b).to(w).T * w).sum(0), w.square().sum(0))  # (n): b = mean(s) w
        W_V[head][:, neurons] -= inverse @ change
        bias += change @ s
        removed.append(_ratio(change.norm(dim=0), w.norm(dim=0)))
    return NullEdit({"attnpool.v_proj.weight": W_V.flatten(0, 1), "attnpool.c_proj.bias": bias}, removed)


def largest_overlap_of_pairs(visual: ModifiedResNet, groups: Sequence[PairGroup], weights: Mapping[str, Tensor]) -> float:
    """Largest |<P v, w>| / (|P v| |w|) of all pairs and vectors, with the values' weights as they are stored."""
    _, W_O, _ = (to_float64(weight) for weight in value_output(visual))  # (head, d, e)
    W_V = to_float64(weights["attnpool.v_proj.weight"]).to(W_O).unflatten(0, (len(W_O), -1))  # (head, e, neuron)
    largest = 0.0
    for head, neurons, v, _ in groups:
        w = W_O[head] @ W_V[head][:, neurons.to(W_O.device)]  # (d, n)
        Pv = to_float64(v).to(w) @ W_O[head] @ torch.linalg.pinv(W_O[head])  # (v, d)
        overlap = _ratio((Pv @ w).abs(), Pv.norm(dim=1)[:, None] * w.norm(dim=0))  # (v, n)
        largest = max(largest, float(overlap.max()))
    return largest


def pooled_at_mean(visual: ModifiedResNet, unit: Int[Tensor, "u 3"], mean: Float[Tensor, "u d"]) -> Weights:
    """Weights of a ResNet with units of its attention pooling at their means; no unit is a part of another one.

    Args:
        unit: Layer, neuron and head, -1 for all neurons of a head or all heads of a neuron.
        mean: Mean effects b of the units on the output, not scaled by its length.
    """
    pool = visual.attnpool
    W_V = to_float64(pool.v_proj.weight).unflatten(0, (pool.num_heads, -1))  # (head, e, neuron)
    cut = cut_pairs(visual, unit).to(W_V.device)
    weight = torch.where(cut.T[:, None], 0.0, W_V).flatten(0, 1)  # (head e, neuron)
    bias = to_float64(pool.c_proj.bias)
    return {"attnpool.v_proj.weight": weight, "attnpool.c_proj.bias": bias + to_float64(mean).sum(0).to(bias)}


def cut_pairs(visual: ModifiedResNet, unit: Int[Tensor, "u 3"]) -> Bool[Tensor, "neuron head"]:
    """True for the pairs that belong to these units."""
    cut = torch.zeros(visual.attnpool.v_proj.in_features, visual.attnpool.num_heads, dtype=torch.bool)
    for _, neuron, head in unit.tolist():
        cut[slice(None) if neuron < 0 else neuron, slice(None) if head < 0 else head] = True
    return cut


def pair_means_float64(visual: ModifiedResNet, unit: Int[Tensor, "u 3"], s: Float[Tensor, " u"]) -> Float64[Tensor, "u d"]:
    """mean(s) w^{n,h} of pairs, from the means of their scalars, in float64."""
    W_V, W_O, _ = (to_float64(weight) for weight in value_output(visual))  # (head, e, neuron), (head, d, e)
    w = pair_vectors(W_V, W_O, unit[:, 1], unit[:, 2])  # (u, d)
    return w * to_float64(s).to(w)[:, None]
