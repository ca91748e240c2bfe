"""Second-order effects of a ViT's neurons, in factored form.

Paper 1 (arXiv 2406.04341), Eq. 5, with the LayerNorms of its App. A.6. Neuron n of layer l adds p_i w_n to the residual stream
at every token i. Head h of a later layer l' reads it there with the class token's attention a_i and carries it to the class
token, which the final LayerNorm and the projection P take to the joint space:

    phi_n(I) = sum over (l', h, i) of p_i a_i^{l',h} P (gamma_post / sigma_post * W_VO^{l',h} (gamma_{l'} / sigma_i^{l'} * w_n))

Attention and the deviations sigma are those of the real forward pass, frozen. The scalars depend on the image and the vectors on
the weights alone. So with k = (l', h), l' > l, this is a factored effect (factored.py, Eq. 1):

    phi_n(I) = sum over k of S[n, k](I) D[n, k, :]
    S[n, k]  = 1 / sigma_post sum over i of (a_i^k / sigma_i^{l'}) p_i^n
    D[n, k]  = P (gamma_post * ls1_{l'} * W_O^h W_V^h (gamma_{l'} * ls2_l * w_n))

ls1 and ls2 are the gains of LayerScale, where a ViT has them; towers/tower.py has these equations for blocks with further
LayerNorms, whose deviations go into S and whose gains go into D. If the output is read from the mean of tokens, S has the sum of
their rows of attention (towers/readout.py), and D is the same. Bias shares, the same for every neuron of a layer, are left out.

Where a tower pools by attention with learned queries (towers/pooling.py), a change at every token reaches the output, through
each head g of the pooling. The paths are k = (l', h, g), with eff (towers/readout.py) in place of a / (sigma sigma_post):

    S[n, k] = sum over i of eff_i^{l',h,g} p_i^n          D[n, k] = A_g (ls1_{l'} * W_O^h W_V^h (gamma_{l'} * ls2_l * w_n))
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from cliptools.errors import UsageError
from cliptools.towers.dictionary import LatentBlock
from cliptools.towers.hooks import Hooks, hooked
from cliptools.towers.kinds import tower_of
from cliptools.towers.readout import carried_hooks
from cliptools.towers.tower import Tower, norm_gain
from cliptools.unit_effects.factored import Listener, UnitBlock, index_of, neuron_units, wide


class TowerEffect(ABC):
    """A factored effect that listens to the forward pass of a tower."""

    def __init__(self, tower: Tower) -> None:
        self.tower, self.visual = tower, tower.visual

    @abstractmethod
    def listen(self, blocks: Sequence[UnitBlock]) -> Listener:
        """Hooks for a forward pass, and the function that gives S of every block after it."""

    @torch.inference_mode()
    def read(
        self, image: Float[Tensor, "b 3 y x"], blocks: Sequence[UnitBlock]
    ) -> tuple[Iterable[Float[Tensor, "b n k"]], Float[Tensor, "b d"]]:
        """S of every block, and M(I), from one forward pass."""
        listener = self.listen(blocks)
        with hooked(listener.hooks):
            embedding = self.visual(image.to(self.tower.weight.device, self.tower.weight.dtype))
        return listener.scalars(embedding), embedding


class SecondOrder(TowerEffect):
    """Second-order effects: units are neurons, paths are the heads of later layers, with each head of a pooling."""

    def __init__(self, visual: nn.Module | Tower) -> None:
        """
        Raises:
            ModelError: an image tower that pools in an unknown way, or with unknown parts.
        """
        super().__init__(tower_of(visual))
        self._heads: dict[int, Heads] = {}  # by layer, as `directions` fills it

    def size(self, layer: int) -> tuple[int, int]:
        """Numbers of neurons in the layer's MLP and of later heads."""
        return neurons_per_layer(self.tower, layer), paths_per_unit(self.tower, layer)

    def units(self, layer: int) -> Int[Tensor, "n 3"]:
        """Layer and number of every neuron."""
        exists = has_units(self.tower, layer) and layer < self.tower.depth - 1
        return neuron_units(layer, torch.arange(self.size(layer)[0] if exists else 0))

    def listen(self, blocks: Sequence[UnitBlock]) -> Listener:
        """Hooks for activations of the blocks' layers and for the rows of attention in all later layers."""
        hooks, trace_of = trace_hooks(self.tower, sorted({block.layer for block in blocks}))
        device = self.tower.weight.device

        def scalars_of(embedding: Float[Tensor, "b d"]) -> Iterator[Float[Tensor, "b n k"]]:
            trace = trace_of(embedding)
            return (scalars(trace, block.layer, index_of(block.neurons, device)) for block in blocks)

        return Listener(hooks, scalars_of)

    @torch.inference_mode()
    def directions(self, block: UnitBlock) -> Float[Tensor, "n k d"]:
        """D of the block's neurons."""
        neurons = index_of(block.neurons, self.tower.weight.device)
        return directions(self.tower, block.layer, neurons, self._heads)

    @torch.inference_mode()
    def along(self, block: UnitBlock, v: Float[Tensor, " d"]) -> Float[Tensor, "n k"]:
        """<D[n, k], v>: the heads first, so that D is not formed."""
        neurons = index_of(block.neurons, self.tower.weight.device)
        return directions_along(self.tower, block.layer, neurons, v, self._heads)

    @torch.inference_mode()
    def total(self, block: UnitBlock, S: Float[Tensor, "b n k"]) -> Float[Tensor, "b d"]:
        """Sum of phi_n over the block's neurons; neither D nor phi is formed."""
        return effect_sum(self.tower, block.layer, index_of(block.neurons, S.device), S, self._heads)


class Heads(NamedTuple):
    """The heads of one layer, from the residual stream to the joint space."""

    W_V: Float[Tensor, "head e width"]
    """W_V^h gamma_{l'}."""
    ends: Float[Tensor, "path e d"]
    """`head_directions`: a path is a head, or a head and a head of the pooling, the latter fastest."""

    @property
    def readouts(self) -> int:
        """G: paths of a head."""
        return len(self.ends) // len(self.W_V)


class Trace(NamedTuple):
    """Result of one forward pass, with what S depends on."""

    embedding: Float[Tensor, "b d"]
    """M(I), not normalised."""
    beta: Float[Tensor, "b j"]
    """beta_j of the tokens that the output is read from, with a class token 1 / sigma_post; none where a tower has a pooling."""
    reach: dict[int, Float[Tensor, "b path token"]]
    """For each layer l', sum over j of beta_j alpha_ji, with a class token a_i^{l',h} / (sigma_i^{l'} sigma_post); or eff."""
    p: dict[int, Float[Tensor, "b token neuron"]]
    """For each layer l, activations that the MLP's output matrix reads, over the deviation of a LayerNorm behind it."""


def scalars(trace: Trace, layer: int, neurons: slice | Int[Tensor, "n"] = slice(None)) -> Float[Tensor, "b n k"]:
    """S: how much of each neuron every later head carries to the output, heads of the next layer first."""
    a = torch.cat([trace.reach[later] for later in sorted(trace.reach) if later > layer], 1)  # [b, k, token]
    p = trace.p[layer][..., neurons].to(a.dtype)  # [b, token, n]
    return p.transpose(1, 2) @ a.transpose(1, 2)  # [b, n, k]


def directions(
    visual: nn.Module | Tower, layer: int, neurons: slice | Int[Tensor, "n"], cache: dict[int, Heads] | None = None
) -> Float[Tensor, "n k d"]:
    """D: where every later head carries a unit activation of each neuron; in float32 at least.

    Args:
        cache: Filled with the heads of the later layers, the same for all neurons, for further calls.
    """
    tower = tower_of(visual)
    w = neuron_outputs(tower, layer, neurons)  # [width, n]
    D = w.new_empty(paths_per_unit(tower, layer), w.shape[1], tower.projection.shape[1])  # [k, n, d]
    first = 0
    for heads in _later_heads(tower, layer, {} if cache is None else cache):
        values = (heads.W_V @ w).transpose(1, 2).repeat_interleave(heads.readouts, 0)  # [head, e, n] -> [path, n, e]
        torch.bmm(values, heads.ends, out=D[first : first + len(values)])  # [path, n, d]
        first += len(values)
    return D.transpose(0, 1)  # [n, k, d]


def directions_along(
    visual: nn.Module | Tower,
    layer: int,
    neurons: slice | Int[Tensor, "n"],
    v: Float[Tensor, " d"],
    cache: dict[int, Heads] | None = None,
) -> Float[Tensor, "n k"]:
    """<D[n, k], v>, from one vector of the residual stream for each later head.

    Args:
        cache: As in `directions`.
    """
    tower = tower_of(visual)
    w = neuron_outputs(tower, layer, neurons)  # [width, n]
    along = []
    for heads in _later_heads(tower, layer, {} if cache is None else cache):
        ends = (heads.ends @ v.to(w)).unflatten(0, (-1, heads.readouts))  # [path, e] -> [head, g, e]
        g = (ends @ heads.W_V).flatten(0, 1)  # [head, g, e] @ [head, e, width] -> [path, width]
        along.append(g @ w)  # [path, n]
    return torch.cat(along).T  # [k, n] -> [n, k]


def effect_sum(
    visual: nn.Module | Tower,
    layer: int,
    neurons: slice | Int[Tensor, "n"],
    S: Float[Tensor, "b n k"],
    cache: dict[int, Heads] | None = None,
) -> Float[Tensor, "b d"]:
    """Sum over neurons and paths of S[n, k] D[n, k], in the type of S: over the neurons first, then head by head.

    Args:
        cache: As in `directions`.
    """
    tower = tower_of(visual)
    w = neuron_outputs(tower, layer, neurons).to(S)  # [width, n]
    x = S.transpose(1, 2) @ w.T  # [b, k, width]: share of the residual stream that each path carries
    total = x.new_zeros(len(x), tower.projection.shape[1])
    first = 0
    for heads in _later_heads(tower, layer, {} if cache is None else cache):
        paths = x[:, first : first + len(heads.ends)].unflatten(1, (-1, heads.readouts))  # [b, head, g, width]
        values = paths.permute(1, 2, 0, 3).flatten(1, 2) @ heads.W_V.to(S).transpose(1, 2)  # [head, g b, e]
        values = values.unflatten(1, (heads.readouts, -1)).flatten(0, 1)  # [path, b, e]
        total = total + (values @ heads.ends.to(S)).sum(0)  # [b, d]
        first += len(heads.ends)
    return total


def neuron_outputs(visual: nn.Module | Tower, layer: int, neurons: slice | Int[Tensor, "n"]) -> Float[Tensor, "width n"]:
    """w_n: what a unit activation of each neuron adds to the residual stream; in float32 at least."""
    return tower_of(visual).blocks[layer].neuron_outputs(neurons)


def _later_heads(tower: Tower, layer: int, cache: dict[int, Heads]) -> Iterator[Heads]:
    """The heads of every later layer l'."""
    for later in range(layer + 1, tower.depth):
        if later not in cache:
            cache[later] = Heads(tower.blocks[later].value_matrix(), head_directions(tower, later))
        yield cache[later]


def head_directions(visual: nn.Module | Tower, layer: int) -> Float[Tensor, "path e d"]:
    """P (gamma_post * ls1 * W_O^h): where each value dimension of a layer's heads ends in the joint space.

    In a tower with a pooling A_g (ls1 * W_O^h), head by head and for each head of the pooling.
    """
    tower = tower_of(visual)
    block = tower.blocks[layer]
    W_O = block.output_matrix()  # [width, head e]
    if tower.pooling is not None:
        ends = tower.pooling.through(W_O)  # [g, head e, d]
        return ends.unflatten(1, (block.attention.heads, -1)).transpose(0, 1).flatten(0, 1)  # [path, e, d]
    P = wide(tower.projection) * norm_gain(tower.final_norm, W_O)[:, None]  # [width, d]: gamma_post, then P
    return (W_O.T @ P).unflatten(0, (block.attention.heads, -1))  # [head e, d] -> [head, e, d]


def trace(visual: nn.Module | Tower, image: Float[Tensor, "b 3 y x"], layers: Sequence[int], rows: bool = True) -> Trace:
    """One forward pass, with what the second-order effects of these layers' neurons depend on.

    Args:
        rows: As in `trace_hooks`.
    """
    tower = tower_of(visual)
    hooks, trace_of = trace_hooks(tower, layers, rows)
    with hooked(hooks):
        embedding = tower.visual(image)
    return trace_of(embedding)


def trace_hooks(
    visual: nn.Module | Tower, layers: Sequence[int], rows: bool = True
) -> tuple[Hooks, Callable[[Float[Tensor, "b d"]], Trace]]:
    """Hooks for a forward pass, and a function from its M(I) to the Trace that they have collected.

    Args:
        rows: Collect `Trace.reach` too; it is empty otherwise.
    """
    p: dict[int, Tensor] = {}
    beta: list[Tensor] = []
    tower = tower_of(visual)
    hooks: Hooks = [hook for layer in layers for hook in tower.blocks[layer].activation_hooks(p, layer)]
    later = range(min(layers) + 1, tower.depth) if rows else range(0)
    if tower.pooling is not None:
        carried, eff = carried_hooks(tower, later)
        return hooks + carried, lambda M: Trace(M, wide(M).new_ones(len(M), 0), eff(), p)
    row_hooks, reach_of = tower.readout.row_hooks(tower.blocks, later)
    hooks += row_hooks + tower.beta_hooks(beta)
    return hooks, lambda M: Trace(M, beta[0], reach_of(beta[0]), p)


def neurons_per_layer(visual: nn.Module | Tower, layer: int) -> int:
    """N: the width of the layer's MLP, or the number of a dictionary's latents (towers/dictionary.py)."""
    block = tower_of(visual).blocks[layer]
    return block.latents if isinstance(block, LatentBlock) else block.output.in_features


def has_units(tower: Tower, layer: int) -> bool:
    """True for a layer of the tower whose units have effects; False for the other layers of a tower with a dictionary."""
    return 0 <= layer < tower.depth and (tower.unit_layers is None or layer in tower.unit_layers)


def paths_per_unit(visual: nn.Module | Tower, layer: int) -> int:
    """K: the number of heads in later layers, times that of the pooling's heads."""
    tower = tower_of(visual)
    return tower.readouts * sum(block.attention.heads for block in tower.blocks[layer + 1 :])


def choose_layers(visual: nn.Module | Tower, requested: Sequence[int] | None) -> tuple[int, ...]:
    """The requested layers; by default those from two thirds of the depth to the last that has a later attention layer.

    Raises:
        UsageError: a layer that does not exist, or the last one, which has no second-order effects.
    """
    depth = tower_of(visual).depth
    if depth == 1:
        raise UsageError(
            "this ViT has one layer, which no later attention layer reads: no second-order effects; use --effect first"
        )
    if requested is None:
        return default_layers(depth)
    for layer in requested:
        if layer >= depth:
            raise UsageError(f"--layers: layer {layer} does not exist, this model has layers 0 to {depth - 1}")
        if layer == depth - 1:
            raise UsageError(f"--layers: the last layer ({layer}) has no later attention layer, so no second-order effects")
    return tuple(requested)


def default_layers(depth: int) -> tuple[int, ...]:
    """The layers from two thirds of the depth to the last but one; the only layer of a ViT that has no other."""
    return tuple(range(max(0, min(2 * depth // 3, depth - 2)), depth - 1)) or tuple(range(depth))
