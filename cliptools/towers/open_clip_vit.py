"""open_clip's VisionTransformer that pools by its class token, the mean of its patches or attention, with all its blocks."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from cliptools.errors import ModelError
from cliptools.models.clip_parts import CustomResidualAttentionBlock, ResidualAttentionBlock, VisionTransformer
from cliptools.towers.hooks import Hooks
from cliptools.towers.learned_queries import QueryPooling
from cliptools.towers.readout import MeanOfTokens
from cliptools.towers.tower import KEYS, QUERIES, VALUES, Attention, Block, ClassToken, Tower
from cliptools.unit_effects.factored import wide


class TorchAttention(Attention):
    """torch's nn.MultiheadAttention, which calls no module of its own: x is read behind the LayerNorm before it."""

    def __init__(self, attn: nn.MultiheadAttention) -> None:
        self.module, self.heads, self.output = attn, attn.num_heads, attn.out_proj

    def weights(self, part: int) -> tuple[Float[Tensor, "j width"], Float[Tensor, " j"] | None]:
        """Implements Attention.weights."""
        return _rows(self.module, part)

    def listen(self, norm_1: nn.LayerNorm | None, use: Callable[[Float[Tensor, "b token width"]], None]) -> Hooks:
        """Implements Attention.listen."""
        assert norm_1 is not None
        return [(norm_1, lambda _, inputs, normed: use(normed))]

    def value_hooks(self, norm_1: nn.LayerNorm | None, use: Callable[[Float[Tensor, "b head e"]], None]) -> Hooks:
        """Implements Attention.value_hooks."""

        def values(x: Float[Tensor, "b token width"]) -> None:
            W_V = wide(self.weights(VALUES)[0]).unflatten(0, (self.heads, -1))  # [head, e, width]
            a = self.class_row(x)  # [b, head, token]
            use(torch.einsum("bhw,hew->bhe", a @ wide(x), W_V))  # [b, head, width] -> [b, head, e]

        return self.listen(norm_1, values)

    def qkv(self, x: Float[Tensor, "b token width"]) -> list[Float[Tensor, "b head token e"]]:
        """Queries, keys and values of every head, from one product."""
        qkv = nn.functional.linear(x, self.module.in_proj_weight, self.module.in_proj_bias)  # (b, token, 3 width)
        return [part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in qkv.chunk(3, dim=-1)]


def _rows(attn: Any, part: int) -> tuple[Float[Tensor, "j width"], Float[Tensor, " j"] | None]:
    """Rows of in_proj_weight and in_proj_bias of the queries, keys or values."""
    rows = slice(part * len(attn.in_proj_weight) // 3, (part + 1) * len(attn.in_proj_weight) // 3)
    return attn.in_proj_weight[rows], None if attn.in_proj_bias is None else attn.in_proj_bias[rows]


class WrittenAttention(Attention):
    """Attention whose module calls W_O, and the module before it, as modules."""

    before_output: nn.Module
    """Called with the concatenated values of all heads."""

    def listen(self, norm_1: nn.LayerNorm | None, use: Callable[[Float[Tensor, "b token width"]], None]) -> Hooks:
        """Implements Attention.listen."""
        return [(self.module, lambda _, inputs, output: use(inputs[0]))]

    def value_hooks(self, norm_1: nn.LayerNorm | None, use: Callable[[Float[Tensor, "b head e"]], None]) -> Hooks:
        """Implements Attention.value_hooks."""

        def values(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            value, bias = wide(inputs[0][:, 0]), self.weights(VALUES)[1]  # [b, head e]
            use((value if bias is None else value - wide(bias)).unflatten(-1, (self.heads, -1)))

        return [(self.before_output, values)]


class CustomAttention(WrittenAttention):
    """open_clip's own Attention: norms of queries and keys, gains of heads, a LayerNorm of the concatenated heads."""

    def __init__(self, attn: Any) -> None:
        self.module, self.heads, self.output = attn, attn.num_heads, attn.out_proj
        self.before_output = attn.ln_inner
        self.inner = attn.ln_inner if isinstance(attn.ln_inner, nn.LayerNorm) else None
        self.plain = isinstance(attn.ln_q, nn.Identity)

    def weights(self, part: int) -> tuple[Float[Tensor, "j width"], Float[Tensor, " j"] | None]:
        """Implements Attention.weights."""
        W, bias = _rows(self.module, part)
        if part != VALUES or self.module.head_scale is None:
            return W, bias
        gain = self.module.head_scale.flatten().repeat_interleave(self.head_width)  # [head] -> [head e]
        return W * gain[:, None], None if bias is None else bias * gain

    def normed(self, part: int, y: Float[Tensor, "b head token e"]) -> Float[Tensor, "b head token e"]:
        """Implements Attention.normed."""
        norms: dict[int, Any] = {QUERIES: self.module.ln_q, KEYS: self.module.ln_k}
        return norms[part](y) if part in norms else y


class OpenClipTower(Tower):
    """open_clip's VisionTransformer."""

    def __init__(self, visual: VisionTransformer) -> None:
        """
        Raises:
            ModelError: the tower pools in another way, or its blocks are of an unknown kind.
        """
        _check_pooling(visual)
        if visual.attn_pool is None and visual.pool_type == "avg":
            self.readout = MeanOfTokens(slice(1, None), not visual.final_ln_after_pool)
        self.visual, self.final_norm, self.prefix = visual, visual.ln_post, 1
        if visual.attn_pool is not None:
            self.pooling = QueryPooling(visual)
            self.final_norm = self.pooling.norm_in
        rows, columns = visual.grid_size
        down, across = visual.patch_size
        self.grid, self.stride = (int(rows), int(columns)), (int(down), int(across))
        self.blocks = [_block(layer, block) for layer, block in enumerate(visual.transformer.resblocks)]

    @property
    def projection(self) -> Float[Tensor, "width d"]:
        """Implements Tower.projection."""
        return self.visual.proj

    @contextmanager
    def on_grid(self, rows: int, columns: int) -> Iterator[None]:
        """Implements Tower.on_grid."""
        with with_positions(self.visual, self.grid, rows, columns):
            yield

    def embed(self, image: Float[Tensor, "b 3 y x"]) -> Float[Tensor, "b token width"]:
        """Implements Tower.embed."""
        return self.visual._embeds(image)

    @property
    def _alone(self) -> bool:
        """True if the output is read from the class token alone."""
        return isinstance(self.readout, ClassToken) and self.pooling is None

    def finish(self, x: Float[Tensor, "b token width"]) -> Float[Tensor, "b d"]:
        """Implements Tower.finish."""
        pooled: Tensor = self.visual._pool(x[:, :1] if self._alone else x)[0]
        return pooled @ self.visual.proj

    def rest(self, x: Float[Tensor, "b token width"], layer: int) -> Float[Tensor, "b d"]:
        """Implements Tower.rest; where open_clip's own code can, the last block computes the class token alone."""
        block: Any = self.blocks[-1].module
        if layer == self.depth - 1 or not isinstance(block, ResidualAttentionBlock) or not self._alone:
            return super().rest(x, layer)
        for earlier in self.blocks[layer + 1 : -1]:
            x = earlier.run(x)
        normed = block.ln_1(x)
        cls = x[:, :1] + block.ls_1(block.attention(normed[:, :1], normed, normed))
        return self.finish(cls + block.ls_2(block.mlp(block.ln_2(cls))))


def resized_positions(
    positions: Float[Tensor, "token width"], grid: tuple[int, int], rows: int, columns: int
) -> Float[Tensor, "new_token width"]:
    """The first token's embedding (class or mean) unchanged, those of the other tokens resized to another grid (bicubic)."""
    wide = positions if positions.dtype == torch.float64 else positions.float()  # bicubic does not support half precision
    patches = wide[1:].T.unflatten(1, grid)[None]  # (patch, width) -> (1, width, row, column)
    resized = torch.nn.functional.interpolate(patches, size=(rows, columns), mode="bicubic", antialias=True)
    # (1, width, row, column) -> (patch, width), after the first token
    return torch.cat([positions[:1], resized[0].flatten(1).T.to(positions.dtype)])


@contextmanager
def with_positions(holder: Any, grid: tuple[int, int], rows: int, columns: int) -> Iterator[None]:
    """Within the block, the module's positional embeddings are those of another grid; open_clip's ViT and attention pooling."""
    if grid == (rows, columns):
        yield
        return
    original = holder.positional_embedding
    resized = resized_positions(original.detach(), grid, rows, columns)
    holder.positional_embedding = nn.Parameter(resized, requires_grad=False)
    try:
        yield
    finally:
        holder.positional_embedding = original


def _check_pooling(visual: VisionTransformer) -> None:
    """Check that the output is read from the class token, the mean of the patches, or by attention with one set of queries.

    Raises:
        ModelError: it is not.
    """
    if visual.attn_pool is not None:
        if visual.attn_pool_contrastive is not None or visual.pool_type not in ("tok", "avg"):
            kind = visual.attn_pool_type or visual.pool_type
            raise ModelError(f"this ViT pools by attention of the kind {kind!r} (attn_pool), which open_clip calls untested")
    elif visual.pool_type not in ("tok", "avg"):
        raise ModelError(f"this ViT pools by pool_type={visual.pool_type!r}, not by its class token ('tok') or a mean ('avg')")


def _block(layer: int, block: Any) -> Block:
    """One block of open_clip's.

    Raises:
        ModelError: it is of an unknown kind.
    """
    plain = type(block) is ResidualAttentionBlock and type(block.attn) is nn.MultiheadAttention
    custom = type(block) is CustomResidualAttentionBlock and block.attn.logit_scale is None
    if not (plain or custom):
        raise ModelError(
            f"layer {layer} of this ViT has custom attention ({type(block).__name__}) of a kind whose heads cannot be read"
        )
    norm_attn = getattr(block, "ln_attn", None)
    return Block(
        module=block,
        run=block,
        name=f"transformer.resblocks.{layer}",
        attention=TorchAttention(block.attn) if plain else CustomAttention(block.attn),
        mlp=block.mlp,
        hidden=block.mlp.gelu if plain else block.mlp.ln,
        output=block.mlp.c_proj,
        names=("attn.out_proj", "mlp.c_proj"),
        norm_1=block.ln_1,
        norm_2=block.ln_2,
        norm_attn=norm_attn if isinstance(norm_attn, nn.LayerNorm) else None,
        ls_1=getattr(block.ls_1, "gamma", None),
        ls_2=getattr(block.ls_2, "gamma", None),
    )
