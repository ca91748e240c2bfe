"""Attention pooling of timm's towers (SigLIP, Perception Encoder) and of open_clip's (CoCa)."""

from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from cliptools.towers.hooks import Hooks, deviation
from cliptools.towers.pooling import Pooling, query_rows
from cliptools.towers.tower import norm_gain
from cliptools.unit_effects.factored import wide

LATENT = "timm.layers.attention_pool.AttentionPoolLatent"


class LatentPooling(Pooling):
    """timm's AttentionPoolLatent: one query, and an MLP behind the attention, whose output is frozen.

    A VisionTransformer gives it the patches, and a class token or registers only if asked to; an Eva gives it all tokens.
    """

    def __init__(self, norm: nn.LayerNorm, pool: Any, projection: Callable[[], Float[Tensor, "width d"]]) -> None:
        """
        Args:
            norm: The trunk's LayerNorm before the pooling.
            projection: P behind the pooling.
        """
        self.norm_in, self.pool, self.projection, self.heads = norm, pool, projection, int(pool.num_heads)

    def value_matrix(self, gain: bool = True) -> Float[Tensor, "g e width"]:
        """Implements Pooling.value_matrix."""
        return _by_head(self, wide(self.pool.kv.weight).chunk(2)[1], gain)  # keys first, then values

    def ends(self, centred: bool = False) -> Float[Tensor, "g e d"]:
        """Implements Pooling.ends; no LayerNorm reads the output of this attention, besides the MLP's."""
        W_O = wide(self.pool.proj.weight)  # [width, g e]
        return (W_O.T @ wide(self.projection())).unflatten(0, (self.heads, -1))

    def biases(self) -> tuple[Float[Tensor, "g e"], Float[Tensor, " d"]]:
        """Implements Pooling.biases."""
        like = wide(self.pool.kv.weight)
        b_V = None if self.pool.kv.bias is None else self.pool.kv.bias.chunk(2)[1]
        return _bias(b_V, len(like) // 2, like).unflatten(0, (self.heads, -1)), wide(self.pool.proj.bias) @ wide(
            self.projection()
        )

    def hooks(self, use: Callable[[Float[Tensor, "b g token"]], None]) -> Hooks:
        """Implements Pooling.hooks."""
        sigma: list[Tensor] = []

        def keep_beta(pool: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            rows, deviations = self._rows(inputs[0]), sigma.pop()[:, None]
            left_out = rows.new_zeros(*rows.shape[:2], deviations.shape[-1] - rows.shape[-1])  # tokens before those it reads
            use(torch.cat([left_out, rows], -1) / deviations)

        return [(self.norm_in, lambda norm, inputs, _: sigma.append(deviation(inputs[0], norm))), (self.pool, keep_beta)]

    def mlp_hooks(self, use: Callable[[Float[Tensor, "b d"]], None]) -> Hooks:
        """Implements Pooling.mlp_hooks."""

        def keep(mlp: Any, inputs: tuple[Tensor, ...], output: Float[Tensor, "b 1 width"]) -> None:
            use((wide(output[:, 0]) - wide(mlp.fc2.bias)) @ wide(self.projection()))

        return [(self.pool.mlp, keep)]

    def part_hooks(self, part: str) -> Hooks:
        """Implements Pooling.part_hooks: the output is P (o + MLP(LN(o))), so the MLP's output becomes 0, or loses o."""
        if part == "attention":
            return [(self.pool.mlp, lambda mlp, inputs, output: torch.zeros_like(output))]
        written: list[Tensor] = []
        return [
            (self.pool.norm, lambda norm, inputs, _: written.append(inputs[0])),
            (self.pool.mlp, lambda mlp, inputs, output: output - written.pop()),
        ]

    def _rows(self, y: Float[Tensor, "b token width"]) -> Float[Tensor, "b g token"]:
        """b: the query's attention of every head."""
        pool = self.pool
        q = pool.q_norm(pool.q(pool.latent).unflatten(-1, (self.heads, -1)).transpose(1, 2))  # [1, g, 1, e]
        W_K = pool.kv.weight.chunk(2)[0]  # [g e, width]
        if isinstance(pool.k_norm, nn.Identity):
            return query_rows(wide(q[0]), wide(W_K).unflatten(0, (self.heads, -1)), wide(y))[:, :, 0]
        bias = None if pool.kv.bias is None else pool.kv.bias.chunk(2)[0]
        k = nn.functional.linear(y, W_K, bias).unflatten(-1, (self.heads, -1)).transpose(1, 2)  # [b, g, token, e]
        return (wide(q * q.shape[-1] ** -0.5) @ wide(pool.k_norm(k)).transpose(-1, -2)).softmax(-1)[:, :, 0]


def _by_head(pooling: Pooling, W_V: Float[Tensor, "j width"], gain: bool) -> Float[Tensor, "g e width"]:
    """W_V^g, with the gain of the LayerNorm `in` W_V^g gamma_in, from the values' weights of all heads, one after the other."""
    return (W_V * norm_gain(pooling.norm_in, W_V) if gain else W_V).unflatten(0, (pooling.heads, -1))


def _bias(bias: Tensor | None, width: int, like: Tensor) -> Float[Tensor, " width"]:
    """A layer's bias in float32 at least; zeros for a layer without one."""
    return like.new_zeros(width) if bias is None else wide(bias)


def latent_fault(trunk: Any) -> str | None:
    """The reason why the pooling of timm's trunk is not supported, as the end of a sentence; None if it is."""
    pool = trunk.attn_pool
    kind = f"{type(pool).__module__}.{type(pool).__name__}"
    if kind != LATENT:
        return f"has attention pooling of the kind {type(pool).__name__}"
    if pool.pos_embed is not None or pool.latent_len != 1 or pool.mlp is None:
        return "has attention pooling with positions, with several queries, or without an MLP, whose effects are not known"
    if not isinstance(trunk.norm, nn.LayerNorm) or isinstance(trunk.fc_norm, nn.LayerNorm):
        return "has no LayerNorm before its attention pooling, or one behind it"
    return None


class QueryPooling(Pooling):
    """open_clip's AttentionalPooler: many queries, of which the output is the first, or the mean of all others."""

    def __init__(self, visual: Any) -> None:
        """
        Args:
            visual: The VisionTransformer, with its LayerNorm and projection behind the pooling.
        """
        self.visual, self.pool, self.attn = visual, visual.attn_pool, visual.attn_pool.attn
        self.norm_in, self.heads = visual.attn_pool.ln_k, int(visual.attn_pool.attn.num_heads)
        self.queries = slice(0, 1) if visual.pool_type == "tok" else slice(1, None)

    def _weights(self, part: int) -> Float[Tensor, "j i"]:
        """Weights of queries (0), keys (1) or values (2); in float32 at least."""
        attn = self.attn
        if attn.in_proj_weight is not None:
            return wide(attn.in_proj_weight.chunk(3)[part])
        return wide((attn.q_proj_weight, attn.k_proj_weight, attn.v_proj_weight)[part])

    def value_matrix(self, gain: bool = True) -> Float[Tensor, "g e width"]:
        """Implements Pooling.value_matrix."""
        return _by_head(self, self._weights(2), gain)

    def ends(self, centred: bool = False) -> Float[Tensor, "g e d"]:
        """Implements Pooling.ends."""
        W_O = wide(self.attn.out_proj.weight)  # [width of the pooling, g e]
        return (W_O.T @ self._projection(centred)).unflatten(0, (self.heads, -1))

    def biases(self) -> tuple[Float[Tensor, "g e"], Float[Tensor, " d"]]:
        """Implements Pooling.biases."""
        attn, like = self.attn, wide(self.attn.out_proj.weight)
        b_V = None if attn.in_proj_bias is None else attn.in_proj_bias.chunk(3)[2]
        b_O = _bias(attn.out_proj.bias, len(like), like)
        return _bias(b_V, like.shape[1], like).unflatten(0, (self.heads, -1)), b_O @ self._projection(centred=True)

    def _projection(self, centred: bool) -> Float[Tensor, "width d"]:
        """gamma_out P; centred with the mean that the LayerNorm takes away."""
        P = wide(self.visual.proj)
        P = P * norm_gain(self.visual.ln_post, P)[:, None]
        return P - P.mean(0, keepdim=True) if centred else P

    def hooks(self, use: Callable[[Float[Tensor, "b g token"]], None]) -> Hooks:
        """Implements Pooling.hooks."""
        rows: list[Tensor] = []

        def keep_rows(norm: nn.LayerNorm, inputs: tuple[Tensor, ...], y: Float[Tensor, "b token width"]) -> None:
            W_Q = self._weights(0)
            bias = None if self.attn.in_proj_bias is None else wide(self.attn.in_proj_bias.chunk(3)[0])
            query = wide(self.pool.ln_q(self.pool.query[self.queries]))
            q = nn.functional.linear(query, W_Q, bias).unflatten(-1, (self.heads, -1)).transpose(0, 1)  # [g, q, e]
            a = query_rows(q, self._weights(1).unflatten(0, (self.heads, -1)), wide(y))  # [b, g, q, token]
            rows.append(a / deviation(inputs[0], norm)[:, None, None])

        def keep_beta(norm: nn.LayerNorm, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            sigma = deviation(inputs[0][:, self.queries], norm)  # [b, q]
            use(torch.einsum("bgqt,bq->bgt", rows.pop(), 1 / sigma) / sigma.shape[1])

        return [(self.norm_in, keep_rows), (self.visual.ln_post, keep_beta)]
