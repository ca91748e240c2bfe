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

ls1 and ls2 are the gains of LayerScale, where a ViT has them. Bias shares, the same for every neuron of a layer, are left out.
"""

import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from cliptools.errors import ModelError, UsageError
from cliptools.models.clip_parts import ResidualAttentionBlock, VisionTransformer
from cliptools.unit_effects.factored import Hooks, Listener, UnitBlock, index_of, neuron_units, wide


class SecondOrder:
    """Second-order effects: units are neurons, paths are the heads of later layers."""

    def __init__(self, visual: VisionTransformer) -> None:
        self.visual = visual
        self._heads: dict[int, Heads] = {}  # by layer, as `directions` fills it

    def size(self, layer: int) -> tuple[int, int]:
        """Numbers of neurons in the layer's MLP and of later heads."""
        return neurons_per_layer(self.visual, layer), paths_per_unit(self.visual, layer)

    def units(self, layer: int) -> Int[Tensor, "n 3"]:
        """Layer and number of every neuron."""
        exists = 0 <= layer < len(self.visual.transformer.resblocks) - 1
        return neuron_units(layer, torch.arange(self.size(layer)[0] if exists else 0))

    @torch.inference_mode()
    def read(
        self, image: Float[Tensor, "b 3 y x"], blocks: Sequence[UnitBlock]
    ) -> tuple[Iterable[Float[Tensor, "b n k"]], Float[Tensor, "b d"]]:
        """S of every block, computed one block at a time, and M(I), from one forward pass."""
        return run_with(self.visual, image, self.listen(blocks))

    def listen(self, blocks: Sequence[UnitBlock]) -> Listener:
        """Hooks for activations of the blocks' layers and the class token's attention in all later layers."""
        hooks, trace_of = trace_hooks(self.visual, sorted({block.layer for block in blocks}))
        device = self.visual.conv1.weight.device

        def scalars_of(embedding: Float[Tensor, "b d"]) -> Iterator[Float[Tensor, "b n k"]]:
            trace = trace_of(embedding)
            return (scalars(trace, block.layer, index_of(block.neurons, device)) for block in blocks)

        return Listener(hooks, scalars_of)

    @torch.inference_mode()
    def directions(self, block: UnitBlock) -> Float[Tensor, "n k d"]:
        """D of the block's neurons."""
        neurons = index_of(block.neurons, self.visual.conv1.weight.device)
        return directions(self.visual, block.layer, neurons, self._heads)

    @torch.inference_mode()
    def along(self, block: UnitBlock, v: Float[Tensor, " d"]) -> Float[Tensor, "n k"]:
        """<D[n, k], v>: the heads first, so that D is not formed."""
        neurons = index_of(block.neurons, self.visual.conv1.weight.device)
        return directions_along(self.visual, block.layer, neurons, v, self._heads)

    @torch.inference_mode()
    def total(self, block: UnitBlock, S: Float[Tensor, "b n k"]) -> Float[Tensor, "b d"]:
        """Sum of phi_n over the block's neurons; neither D nor phi is formed."""
        return effect_sum(self.visual, block.layer, index_of(block.neurons, S.device), S, self._heads)


class Heads(NamedTuple):
    """The heads of one layer, from the residual stream to the joint space."""

    W_V: Float[Tensor, "head e width"]
    """W_V^h gamma_{l'}."""
    ends: Float[Tensor, "head e d"]
    """`head_directions`."""


class Trace(NamedTuple):
    """Result of one forward pass, with what S depends on."""

    embedding: Float[Tensor, "b d"]
    """M(I), not normalised."""
    sigma_post: Float[Tensor, "b"]
    """Deviation of the class token in the final LayerNorm."""
    alpha: dict[int, Float[Tensor, "b head token"]]
    """For each layer l', the class token's attention row over each token's LayerNorm deviation, a_i^{l',h} / sigma_i^{l'}."""
    p: dict[int, Float[Tensor, "b token neuron"]]
    """For each layer l, activations after the MLP's nonlinearity."""


def scalars(trace: Trace, layer: int, neurons: slice | Int[Tensor, "n"] = slice(None)) -> Float[Tensor, "b n k"]:
    """S: how much of each neuron every later head carries to the class token, heads of the next layer first."""
    a = torch.cat([trace.alpha[later] for later in sorted(trace.alpha) if later > layer], 1)  # [b, k, token]
    p = trace.p[layer][..., neurons].to(a.dtype)  # [b, token, n]
    return p.transpose(1, 2) @ (a / trace.sigma_post[:, None, None]).transpose(1, 2)  # [b, n, k]


def directions(
    visual: VisionTransformer, layer: int, neurons: slice | Int[Tensor, "n"], cache: dict[int, Heads] | None = None
) -> Float[Tensor, "n k d"]:
    """D: where every later head carries a unit activation of each neuron; in float32 at least.

    Args:
        cache: Filled with the heads of the later layers, the same for all neurons, for further calls.
    """
    w = neuron_outputs(visual, layer, neurons)  # [width, n]
    D = w.new_empty(paths_per_unit(visual, layer), w.shape[1], visual.proj.shape[1])  # [k, n, d]
    first = 0
    for W_V, ends in _later_heads(visual, layer, {} if cache is None else cache):
        torch.bmm((W_V @ w).transpose(1, 2), ends, out=D[first : first + len(W_V)])  # [head, e, n] -> [head, n, d]
        first += len(W_V)
    return D.transpose(0, 1)  # [n, k, d]


def directions_along(
    visual: VisionTransformer,
    layer: int,
    neurons: slice | Int[Tensor, "n"],
    v: Float[Tensor, " d"],
    cache: dict[int, Heads] | None = None,
) -> Float[Tensor, "n k"]:
    """<D[n, k], v>, from one vector of the residual stream for each later head.

    Args:
        cache: As in `directions`.
    """
    w = neuron_outputs(visual, layer, neurons)  # [width, n]
    along = []
    for W_V, ends in _later_heads(visual, layer, {} if cache is None else cache):
        g = torch.einsum("he,hew->hw", ends @ v.to(w), W_V)  # [head, e], [head, e, width] -> [head, width]
        along.append(g @ w)  # [head, n]
    return torch.cat(along).T  # [k, n] -> [n, k]


def effect_sum(
    visual: VisionTransformer,
    layer: int,
    neurons: slice | Int[Tensor, "n"],
    S: Float[Tensor, "b n k"],
    cache: dict[int, Heads] | None = None,
) -> Float[Tensor, "b d"]:
    """Sum over neurons and paths of S[n, k] D[n, k], in the type of S: over the neurons first, then head by head.

    Args:
        cache: As in `directions`.
    """
    w = neuron_outputs(visual, layer, neurons).to(S)  # [width, n]
    x = S.transpose(1, 2) @ w.T  # [b, k, width]: share of the residual stream that each path carries
    total = x.new_zeros(len(x), visual.proj.shape[1])
    first = 0
    for W_V, ends in _later_heads(visual, layer, {} if cache is None else cache):
        heads = x[:, first : first + len(W_V)].transpose(0, 1)  # [head, b, width]
        values = heads @ W_V.to(S).transpose(1, 2)  # [head, b, e]
        total = total + (values @ ends.to(S)).sum(0)  # [b, d]
        first += len(W_V)
    return total


def neuron_outputs(visual: VisionTransformer, layer: int, neurons: slice | Int[Tensor, "n"]) -> Float[Tensor, "width n"]:
    """ls2_l * w_n: what a unit activation of each neuron adds to the residual stream; in float32 at least."""
    block = visual.transformer.resblocks[layer]
    w = wide(block.mlp.c_proj.weight)[:, neurons]
    return layer_scale_gain(block.ls_2, w) * w


def _later_heads(visual: VisionTransformer, layer: int, cache: dict[int, Heads]) -> Iterator[Heads]:
    """The heads of every later layer l'."""
    blocks = visual.transformer.resblocks
    for later in range(layer + 1, len(blocks)):
        if later not in cache:
            attn = blocks[later].attn
            W_V = wide(attn.in_proj_weight[2 * attn.embed_dim :])  # [head e, width]
            W_V = W_V * norm_gain(blocks[later].ln_1, W_V)
            cache[later] = Heads(W_V.unflatten(0, (attn.num_heads, -1)), head_directions(visual, later))
        yield cache[later]


def head_directions(visual: VisionTransformer, layer: int) -> Float[Tensor, "head e d"]:
    """P (gamma_post * ls1 * W_O^h): where each value dimension of a layer's heads ends in the joint space."""
    block = visual.transformer.resblocks[layer]
    W_O = wide(block.attn.out_proj.weight)  # [width, head e]
    P = wide(visual.proj) * norm_gain(visual.ln_post, W_O)[:, None]  # [width, d]: gamma_post, then P
    return ((layer_scale_gain(block.ls_1, W_O) * W_O).T @ P).unflatten(
        0, (block.attn.num_heads, -1)
    )  # [head e, d] -> [head, e, d]


def trace(visual: VisionTransformer, image: Float[Tensor, "b 3 y x"], layers: Sequence[int]) -> Trace:
    """One forward pass, with what the second-order effects of these layers' neurons depend on."""
    hooks, trace_of = trace_hooks(visual, layers)
    with hooked(hooks):
        embedding = visual(image)
    return trace_of(embedding)


def trace_hooks(visual: VisionTransformer, layers: Sequence[int]) -> tuple[Hooks, Callable[[Float[Tensor, "b d"]], Trace]]:
    """Hooks for a forward pass, and a function from its M(I) to the Trace that they have collected."""
    p: dict[int, Tensor] = {}
    alpha: dict[int, Tensor] = {}
    sigma_post: list[Tensor] = []
    blocks = visual.transformer.resblocks
    hooks: Hooks = [(visual.ln_post, keep_sigma_post(sigma_post))]
    for layer in layers:
        hooks.append((blocks[layer].mlp.gelu, keep_output(p, layer)))
    for layer in range(min(layers) + 1, len(blocks)):
        hooks.append((blocks[layer].ln_1, _keep_attention(alpha, layer, blocks[layer].attn)))
    return hooks, lambda embedding: Trace(embedding, sigma_post[0], alpha, p)


def keep_sigma_post(store: list[Tensor]) -> Callable[..., None]:
    """A hook on ln_post that keeps the class token's deviation; its input may be all tokens or the class token alone."""

    def hook(norm: nn.LayerNorm, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        store.append(deviation(inputs[0][:, 0] if inputs[0].ndim == 3 else inputs[0], norm))

    return hook


def keep_output(store: dict[int, Tensor], layer: int) -> Callable[..., None]:
    """A hook that keeps a module's output by the number of its layer."""

    def hook(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        store[layer] = output

    return hook


def _keep_attention(store: dict[int, Tensor], layer: int, attn: nn.MultiheadAttention) -> Callable[..., None]:
    """A hook on ln_1 that keeps a_i / sigma_i of the attention behind it."""

    def hook(norm: nn.LayerNorm, inputs: tuple[Tensor, ...], normed: Tensor) -> None:
        store[layer] = class_attention(attn, normed) / deviation(inputs[0], norm)[:, None, :]

    return hook


def class_attention(attn: nn.MultiheadAttention, normed: Float[Tensor, "b token width"]) -> Float[Tensor, "b head token"]:
    """The class token's attention row of every head.

    nn.MultiheadAttention does not return it. A single query needs no keys: W_K moves to the query's side, and the key bias,
    the same for every token, drops out of the softmax.
    """
    width, heads = normed.shape[-1], attn.num_heads
    W_Q, W_K = attn.in_proj_weight[:width], attn.in_proj_weight[width : 2 * width]
    q = nn.functional.linear(normed[:, 0], W_Q, attn.in_proj_bias[:width]).unflatten(-1, (heads, -1))  # [b, head, e]
    q = torch.einsum("bhe,hew->bhw", q, W_K.unflatten(0, (heads, -1))) * (width // heads) ** -0.5
    return wide(q @ normed.transpose(1, 2)).softmax(-1)  # [b, head, width] @ [b, width, token]


def deviation(x: Float[Tensor, "*b width"], norm: nn.LayerNorm) -> Float[Tensor, "*b"]:
    """A LayerNorm's sigma of each token, epsilon included."""
    return (wide(x).var(-1, unbiased=False) + norm.eps).sqrt()


def norm_gain(norm: nn.LayerNorm, like: Tensor) -> Float[Tensor, "width"]:
    """A LayerNorm's gains, in float32 at least; ones where it has none (norm_kwargs of elementwise_affine: false)."""
    return like.new_ones(norm.normalized_shape) if norm.weight is None else wide(norm.weight)


def layer_scale_gain(scale: nn.Module, like: Tensor) -> Float[Tensor, "width 1"]:
    """LayerScale's gains as a column; ones where there is no LayerScale."""
    gamma = getattr(scale, "gamma", None)
    return like.new_ones(like.shape[0], 1) if gamma is None else wide(gamma)[:, None]


def run_with(
    visual: VisionTransformer, image: Float[Tensor, "b 3 y x"], listener: Listener
) -> tuple[Iterable[Float[Tensor, "b n k"]], Float[Tensor, "b d"]]:
    """The listener's S and M(I), from one forward pass with its hooks."""
    with hooked(listener.hooks):
        embedding = visual(image.to(visual.conv1.weight.device, visual.conv1.weight.dtype))
    return listener.scalars(embedding), embedding


@contextmanager
def hooked(hooks: Hooks) -> Iterator[None]:
    """Register the hooks until the block ends; they run only in this thread, though others may use the same modules."""
    handles = [module.register_forward_hook(_in_this_thread(hook)) for module, hook in hooks]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _in_this_thread(hook: Callable[..., Any]) -> Callable[..., Any]:
    """The hook, without effect in calls from other threads."""
    thread = threading.get_ident()

    def guarded(*arguments: Any) -> Any:
        return hook(*arguments) if threading.get_ident() == thread else None

    return guarded


def neurons_per_layer(visual: VisionTransformer, layer: int) -> int:
    """N: the width of the layer's MLP."""
    return visual.transformer.resblocks[layer].mlp.c_proj.in_features


def paths_per_unit(visual: VisionTransformer, layer: int) -> int:
    """K: the number of heads in later layers."""
    return sum(block.attn.num_heads for block in list(visual.transformer.resblocks)[layer + 1 :])


def supported_tower(clip: nn.Module) -> VisionTransformer:
    """The model's image tower, checked to be a ViT on which the paper's second-order path is defined.

    Raises:
        ModelError: another kind of tower, with the reason.
    """
    visual = clip.visual
    if not isinstance(visual, VisionTransformer):
        raise ModelError(
            f"second-order effects need open_clip's VisionTransformer, this image tower is a {type(visual).__name__}"
        )
    if visual.attn_pool is not None:
        raise ModelError("this ViT pools by attention (attn_pool), not by its class token: no second-order path to the output")
    if visual.pool_type != "tok":
        raise ModelError(f"this ViT pools by pool_type={visual.pool_type!r}, not by its class token ('tok')")
    for layer, block in enumerate(visual.transformer.resblocks):
        if type(block) is not ResidualAttentionBlock or type(block.attn) is not nn.MultiheadAttention:
            raise ModelError(
                f"layer {layer} of this ViT has custom attention ({type(block).__name__}), whose heads cannot be read"
            )
    return visual


def choose_layers(visual: VisionTransformer, requested: Sequence[int] | None) -> tuple[int, ...]:
    """The requested layers; by default those from two thirds of the depth to the last that has a later attention layer.

    Raises:
        UsageError: a layer that does not exist, or the last one, which has no second-order effects.
    """
    depth = len(visual.transformer.resblocks)
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
