"""The interface of an image tower whose output is read from a class token or the mean of tokens, for effects and methods.

With attention, the deviations of LayerNorms and the outputs of later MLPs frozen, the output is affine in the last residual
stream x. Neuron n of layer l writes into that stream, and head h of a later layer l' carries a change delta of it on:

    M(I) = sum over j of beta_j A x_j + const                        A = P diag(gamma_post)
    neuron n:  phat_j^n w_n            at every token j              w_n = ls2 gamma_mlp W_out[:, n]
    head h:    sum over i of alpha_ji^h U^h delta_i  at token j      U^h = ls1 gamma_attn W_O^h gamma_inner W_V^h gamma_1

    phat_j   = p_j / sigma_j^mlp
    alpha_ji = a_ji / (sigma_i^1 sigma_j^inner sigma_j^attn)
    beta_0   = 1 / sigma_0^post for an output at the class token, where no other token has a beta; readout.py has that of a mean

phat, alpha and beta are scalars of the image, w_n, U and A are weights. p is the input of the MLP's output matrix: the neurons of
a gated MLP are the channels behind its gate, and a LayerNorm of the hidden channels comes before p. a_ji is the attention of
token j to token i. Most blocks have few of these parts; a factor whose part is missing is 1:

    1      the LayerNorm of attention's input                        absent where blocks normalise outputs only
    inner  a LayerNorm of the concatenated heads before W_O          EVA02 B and L, open_clip's scale_attn_inner
    attn   a LayerNorm of attention's output                         EVA02 E, open_clip's scale_attn
    mlp    a LayerNorm of the MLP's output                           EVA02 E
    ls     LayerScale

`Tower`, `Block` and `Attention` hold the modules; an adapter of a kind of tower (open_clip_vit.py, timm_vit.py) fills them in.
`Readout` has beta and the parts of effects that depend on it: `ClassToken` here, `MeanOfTokens` in readout.py.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from cliptools.towers.hooks import Hooks, deviation, divide_by_deviation, keep_output, of_class_token
from cliptools.towers.pooling import Pooling
from cliptools.unit_effects.factored import wide

QUERIES, KEYS, VALUES = range(3)
ROW_BYTES = 64 << 20  # bytes of attention rows that are computed together


class Attention(ABC):
    """Self-attention of one block, with `scaled dot products` of queries and keys; x is its input."""

    module: Any
    """Called with x as its first argument."""
    heads: int
    output: nn.Linear
    """W_O and its bias."""
    inner: nn.LayerNorm | None = None
    """LayerNorm of the concatenated heads."""
    fused: nn.Module | None = None
    """A module, called with x, whose output is queries, keys and values of all heads, before norms and rotation."""
    plain: bool = True
    """True if attention depends on products of queries and keys as they are, without norms or positions of their own."""

    @abstractmethod
    def weights(self, part: int) -> tuple[Float[Tensor, "j width"], Float[Tensor, " j"] | None]:
        """Weights and bias of the queries, keys or values of all heads, head after head; values with a gain of the head."""

    @abstractmethod
    def listen(self, norm_1: nn.LayerNorm | None, use: Callable[[Float[Tensor, "b token width"]], None]) -> Hooks:
        """Hooks that give x to `use` in a forward pass."""

    @abstractmethod
    def value_hooks(self, norm_1: nn.LayerNorm | None, use: Callable[[Float[Tensor, "b head e"]], None]) -> Hooks:
        """Hooks that give `use` the class token's sum over i of a_i W_V x_i of every head, without the bias of the values."""

    def normed(self, part: int, y: Float[Tensor, "b head token e"]) -> Float[Tensor, "b head token e"]:
        """Queries or keys after norms of their own."""
        return y

    def turned(self, y: Float[Tensor, "b head token e"]) -> Float[Tensor, "b head token e"]:
        """Queries or keys of all tokens after rotation by their positions; a class token is not rotated."""
        return y

    def projected(self, part: int, x: Float[Tensor, "b token width"]) -> Float[Tensor, "b head token e"]:
        """Queries, keys or values of every head, not rotated."""
        W, bias = self.weights(part)
        return self._by_head(part, nn.functional.linear(x, W, bias))

    def _by_head(self, part: int, y: Float[Tensor, "b token j"]) -> Float[Tensor, "b head token e"]:
        return self.normed(part, y.unflatten(-1, (self.heads, -1)).transpose(1, 2))

    def qkv(self, x: Float[Tensor, "b token width"]) -> list[Float[Tensor, "b head token e"]]:
        """Queries, keys and values of every head, as attention takes them."""
        return [self.turned(self.projected(QUERIES, x)), self.turned(self.projected(KEYS, x)), self.projected(VALUES, x)]

    def class_row(self, x: Float[Tensor, "b token width"]) -> Float[Tensor, "b head token"]:
        """a: the class token's attention row of every head.

        Modules do not return it. A single query needs no keys: W_K moves to the query's side, and the key bias, the same for
        every token, drops out of the softmax. Keys with norms or positions of their own are computed.
        """
        if not self.plain:
            q, k = self.projected(QUERIES, x[:, :1]), self.turned(self.projected(KEYS, x))
            return wide((q * q.shape[-1] ** -0.5) @ k.transpose(-1, -2))[:, :, 0].softmax(-1)  # [b, head, 1, token]
        (W_Q, b_Q), (W_K, _) = self.weights(QUERIES), self.weights(KEYS)
        q = nn.functional.linear(x[:, 0], W_Q, b_Q).unflatten(-1, (self.heads, -1))  # [b, head, e]
        q = torch.einsum("bhe,hew->bhw", q, W_K.unflatten(0, (self.heads, -1))) * q.shape[-1] ** -0.5
        return wide(q @ x.transpose(1, 2)).softmax(-1)  # [b, head, width] @ [b, width, token]

    def row_sums(
        self,
        x: Float[Tensor, "b token width"],
        weight: Float[Tensor, "b g j"],
        tokens: slice,
        fused: Float[Tensor, "b token qkv"] | None = None,
    ) -> Float[Tensor, "b head g token"]:
        """Sums over the tokens j of weight_j a_ji, for every head; some rows of attention at a time.

        Args:
            weight: Several weights of each token j; in float32 at least.
            tokens: The tokens j.
            fused: The output of the module `fused`, where there is one.
        """
        parts = (QUERIES, KEYS)
        if fused is None:
            projected = [self.projected(part, x) for part in parts]
        else:
            projected = [self._by_head(part, fused.chunk(3, -1)[part]) for part in parts]
        q, k = self.turned(projected[QUERIES])[:, :, tokens], self.turned(projected[KEYS])
        step = max(1, ROW_BYTES // (k[..., 0].numel() * weight.element_size()))
        total = weight.new_zeros(len(x), self.heads, weight.shape[1], x.shape[1])
        for start in range(0, q.shape[2], step):
            rows = slice(start, start + step)
            A = wide((q[:, :, rows] * q.shape[-1] ** -0.5) @ k.transpose(-1, -2)).softmax(-1)  # [b, head, row, token]
            total += weight[:, None, :, rows] @ A  # [b, 1, g, row] @ [b, head, row, token]
        return total

    @property
    def head_width(self) -> int:
        """e."""
        return self.output.in_features // self.heads


@dataclass(frozen=True)
class Block:
    """One block: x + ls1 attn(attention(norm 1(x))), then x + ls2 mlp-norm(MLP(norm 2(x))); a part that is missing is None."""

    module: Any
    run: Callable[[Float[Tensor, "b token width"]], Float[Tensor, "b token width"]]
    """The whole block."""
    name: str
    """Name of the module in the image tower."""
    attention: Attention
    mlp: nn.Module
    hidden: nn.Module
    """The module of the MLP whose output is p."""
    output: nn.Linear
    """W_out and its bias."""
    names: tuple[str, str]
    """Names in the block of W_O and W_out."""
    norm_1: nn.LayerNorm | None = None
    norm_2: nn.LayerNorm | None = None
    norm_attn: nn.LayerNorm | None = None
    norm_mlp: nn.LayerNorm | None = None
    ls_1: Tensor | None = None
    ls_2: Tensor | None = None

    @property
    def attention_name(self) -> str:
        """Name of the attention's output matrix in the image tower."""
        return f"{self.name}.{self.names[0]}"

    @property
    def output_name(self) -> str:
        """Name of the MLP's output matrix in the image tower."""
        return f"{self.name}.{self.names[1]}"

    def neuron_outputs(self, neurons: slice | Int[Tensor, "n"]) -> Float[Tensor, "width n"]:
        """w_n: what a unit of phat of each neuron adds to the residual stream; in float32 at least."""
        w = wide(self.output.weight)[:, neurons]
        if self.norm_mlp is not None:
            w = norm_gain(self.norm_mlp, w)[:, None] * w
        return layer_scale_gain(self.ls_2, w) * w

    def value_matrix(self) -> Float[Tensor, "head e width"]:
        """W_V^h gamma_1; in float32 at least."""
        W_V = wide(self.attention.weights(VALUES)[0])  # [head e, width]
        if self.norm_1 is not None:
            W_V = W_V * norm_gain(self.norm_1, W_V)
        return W_V.unflatten(0, (self.attention.heads, -1))

    def output_matrix(self) -> Float[Tensor, "width j"]:
        """ls1 gamma_attn W_O gamma_inner of all heads; in float32 at least."""
        W_O = wide(self.attention.output.weight)  # [width, head e]
        if self.attention.inner is not None:
            W_O = W_O * norm_gain(self.attention.inner, W_O)
        if self.norm_attn is not None:
            W_O = norm_gain(self.norm_attn, W_O)[:, None] * W_O
        return layer_scale_gain(self.ls_1, W_O) * W_O

    def activation_hooks(self, store: dict[int, Tensor], layer: int) -> Hooks:
        """Hooks that keep phat [b, token, neuron] by the number of the layer."""
        hooks: Hooks = [(self.hidden, keep_output(store, layer))]
        if self.norm_mlp is not None:

            def divide(norm: nn.LayerNorm, inputs: tuple[Tensor, ...], output: Tensor) -> None:
                store[layer] = wide(store[layer]) / deviation(inputs[0], norm)[..., None]

            hooks.append((self.norm_mlp, divide))
        return hooks

    def row_hooks(self, store: dict[int, Tensor], layer: int) -> Hooks:
        """Hooks that keep alpha [b, head, token] by the number of the layer."""
        sigma: list[Tensor] = []

        def keep_row(x: Float[Tensor, "b token width"]) -> None:
            row = self.attention.class_row(x)
            while sigma:
                row = row / sigma.pop(0)
            store[layer] = row

        hooks: Hooks = []
        if self.norm_1 is not None:
            hooks.append((self.norm_1, lambda norm, inputs, _: sigma.append(deviation(inputs[0], norm)[:, None, :])))
        if self.attention.inner is not None:
            hooks.append((self.attention.inner, lambda norm, inputs, _: sigma.append(of_class_token(inputs[0], norm))))
        hooks += self.attention.listen(self.norm_1, keep_row)
        return hooks + self._divide_by_attn(store, layer)

    def value_hooks(self, store: dict[int, Tensor], layer: int) -> Hooks:
        """Hooks that keep sum over i of a_i W_V x_i / (sigma^inner sigma^attn) [b, head, e] by the number of the layer."""
        hooks = self.attention.value_hooks(self.norm_1, lambda value: store.update({layer: value}))
        if self.attention.inner is not None:
            hooks.append((self.attention.inner, divide_by_deviation(store, layer)))
        return hooks + self._divide_by_attn(store, layer)

    def _divide_by_attn(self, store: dict[int, Tensor], layer: int) -> Hooks:
        return [] if self.norm_attn is None else [(self.norm_attn, divide_by_deviation(store, layer))]

    def add_attention(
        self, x: Float[Tensor, "b token width"], values: Float[Tensor, "b token j"]
    ) -> Float[Tensor, "b token width"]:
        """The residual stream after attention, from the concatenated values of all heads."""
        y = self.attention.output(values if self.attention.inner is None else self.attention.inner(values))
        y = y if self.norm_attn is None else self.norm_attn(y)
        return x + (y if self.ls_1 is None else y * self.ls_1)

    def add_mlp(self, x: Float[Tensor, "b token width"]) -> Float[Tensor, "b token width"]:
        """The residual stream after the MLP."""
        y = self.mlp(x if self.norm_2 is None else self.norm_2(x))
        y = y if self.norm_mlp is None else self.norm_mlp(y)
        return x + (y if self.ls_2 is None else y * self.ls_2)

    def change_of_mlp(
        self, y: Float[Tensor, "b token width"], change: Float[Tensor, "n b token width"]
    ) -> Float[Tensor, "n b token width"]:
        """Change of the residual stream if the MLP's output y changes, through the LayerNorm that reads it."""
        assert self.norm_mlp is not None
        difference = self.norm_mlp(y + change) - self.norm_mlp(y)
        return difference if self.ls_2 is None else difference * self.ls_2


Beta = Float[Tensor, "b j"]
"""beta of the tokens j that the output is read from."""


class Readout(ABC):
    """The tokens that the output is read from: M(I) = sum over j of beta_j A x_j + const."""

    tokens: slice
    """The tokens j."""

    @abstractmethod
    def beta(self, x: Float[Tensor, "b token width"], norm: nn.LayerNorm) -> Beta:
        """beta from the residual stream after the last block and the final LayerNorm; in float32 at least."""

    @abstractmethod
    def row_hooks(
        self, blocks: Sequence[Block], layers: Iterable[int]
    ) -> tuple[Hooks, Callable[[Beta], dict[int, Float[Tensor, "b head token"]]]]:
        """Hooks, and the function from beta to sum over j of beta_j alpha_ji of these layers after the forward pass."""

    @abstractmethod
    def value_hooks(
        self, blocks: Sequence[Block], layers: Iterable[int]
    ) -> tuple[Hooks, Callable[[Beta], dict[int, Float[Tensor, "b head e"]]]]:
        """The same for sum over i and j of beta_j a_ji W_V x_i / (sigma_j^inner sigma_j^attn) of every head."""


class ClassToken(Readout):
    """The class token, the first one."""

    tokens = slice(0, 1)

    def beta(self, x: Float[Tensor, "b token width"], norm: nn.LayerNorm) -> Beta:
        """Implements Readout.beta."""
        return 1 / deviation(x[:, :1], norm)

    def row_hooks(
        self, blocks: Sequence[Block], layers: Iterable[int]
    ) -> tuple[Hooks, Callable[[Beta], dict[int, Float[Tensor, "b head token"]]]]:
        """Implements Readout.row_hooks; attention of other tokens is not computed."""
        rows: dict[int, Tensor] = {}
        hooks = [hook for layer in layers for hook in blocks[layer].row_hooks(rows, layer)]
        return hooks, lambda beta: {layer: row * beta[..., None] for layer, row in rows.items()}

    def value_hooks(
        self, blocks: Sequence[Block], layers: Iterable[int]
    ) -> tuple[Hooks, Callable[[Beta], dict[int, Float[Tensor, "b head e"]]]]:
        """Implements Readout.value_hooks."""
        values: dict[int, Tensor] = {}
        hooks = [hook for layer in layers for hook in blocks[layer].value_hooks(values, layer)]
        return hooks, lambda beta: {layer: value * beta[..., None] for layer, value in values.items()}


class Tower(ABC):
    """An image tower; tokens before the patches are a class token, registers, or both."""

    visual: Any
    blocks: Sequence[Block]
    readout: Readout = ClassToken()
    final_norm: nn.LayerNorm
    """The LayerNorm between the last block and P; it reads all tokens, or what the output is read from."""
    prefix: int
    """Number of tokens before the patches."""
    grid: tuple[int, int]
    """Rows and columns of patches, for pictures of the tower's own size."""
    stride: tuple[int, int]
    """Pixels per patch, down and across."""
    unit_layers: range | None = None
    """The layers that have units; None for all of them."""
    pooling: Pooling | None = None
    """Attention with learned queries that reads all tokens, in place of the class token; `final_norm` is its LayerNorm `in`."""

    @property
    @abstractmethod
    def projection(self) -> Float[Tensor, "width d"]:
        """P."""

    @abstractmethod
    def on_grid(self, rows: int, columns: int) -> AbstractContextManager[None]:
        """Within the block, the tower takes pictures of rows × columns patches, for which the positions are resized."""

    @abstractmethod
    def embed(self, image: Float[Tensor, "b 3 y x"]) -> Float[Tensor, "b token width"]:
        """The residual stream before the first block."""

    @abstractmethod
    def finish(self, x: Float[Tensor, "b token width"]) -> Float[Tensor, "b d"]:
        """M(I) from the residual stream after the last block; with a class token, that token alone is enough."""

    def rest(self, x: Float[Tensor, "b token width"], layer: int) -> Float[Tensor, "b d"]:
        """M(I) from the residual stream after a layer."""
        for block in self.blocks[layer + 1 :]:
            x = block.run(x)
        return self.finish(x)

    @property
    def readouts(self) -> int:
        """G: number of ways from the last residual stream to the output, the pooling's heads or the class token alone."""
        return 1 if self.pooling is None else self.pooling.heads

    @property
    def depth(self) -> int:
        """Number of layers."""
        return len(self.blocks)

    @property
    def weight(self) -> Tensor:
        """A weight, for the device and type of all."""
        return weight_of(self.visual)

    @property
    def tokens(self) -> int:
        """Number of tokens of pictures of the tower's own size."""
        return self.prefix + self.grid[0] * self.grid[1]

    def beta_hooks(self, store: list[Tensor]) -> Hooks:
        """Hooks that keep beta [b, j]."""

        def keep(block: nn.Module, inputs: tuple[Tensor, ...], x: Float[Tensor, "b token width"]) -> None:
            store.append(self.readout.beta(x, self.final_norm))

        return [(self.blocks[-1].module, keep)]


def weight_of(visual: nn.Module) -> Tensor:
    """A weight of any image tower, for the device and type of all."""
    return next(visual.parameters())


def norm_gain(norm: nn.LayerNorm, like: Tensor) -> Float[Tensor, "width"]:
    """A LayerNorm's gains, in float32 at least; ones where it has none (norm_kwargs of elementwise_affine: false)."""
    return like.new_ones(norm.normalized_shape) if norm.weight is None else wide(norm.weight)


def layer_scale_gain(gamma: Tensor | None, like: Tensor) -> Float[Tensor, "width 1"]:
    """LayerScale's gains as a column; ones for a block without LayerScale."""
    return like.new_ones(like.shape[0], 1) if gamma is None else wide(gamma)[:, None]
