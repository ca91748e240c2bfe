"""timm's VisionTransformer and Eva behind open_clip's TimmModel that pool by a class token, the mean of tokens or attention.

timm is not imported here: its classes are known by name, and the modules that a tower holds have been made with it.
"""

import copy
import importlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from cliptools.errors import ModelError
from cliptools.models.clip_parts import TimmModel
from cliptools.towers.learned_queries import LatentPooling, latent_fault
from cliptools.towers.open_clip_vit import WrittenAttention
from cliptools.towers.readout import MeanOfTokens
from cliptools.towers.tower import KEYS, QUERIES, Block, Tower
from cliptools.unit_effects.factored import wide

TRUNKS = ("timm.models.vision_transformer.VisionTransformer", "timm.models.eva.Eva")
PRE_NORM = ("timm.models.vision_transformer.Block", "timm.models.eva.EvaBlock")
POST_NORM = ("timm.models.eva.EvaBlockPostNorm",)
ATTENTIONS = ("timm.layers.attention.Attention", "timm.layers.attention.AttentionRope", "timm.models.eva.EvaAttention")
MLPS = {
    "timm.layers.mlp.Mlp": ("norm", "fc2"),
    "timm.layers.mlp.GluMlp": ("norm", "fc2"),
    "timm.layers.mlp.SwiGLU": ("norm", "fc2"),
    "timm.models.vitamin.GeGluMlp": ("drop1", "w2"),
}
"""Names of the modules whose output is p, and of the output matrix; GeGluMlp has its LayerNorm before its first matrices."""


def _class(module: nn.Module) -> str:
    return f"{type(module).__module__}.{type(module).__name__}"


class TimmAttention(WrittenAttention):
    """timm's Attention, AttentionRope and EvaAttention: projections fused or apart, norms of queries and keys, rotation."""

    def __init__(self, attn: Any, rope: Callable[[], Tensor] | None) -> None:
        self.module, self.heads, self.output = attn, attn.num_heads, attn.proj
        self.before_output, self.rope = attn.norm, rope
        self.fused = attn.qkv if _class(attn) in ATTENTIONS[:2] else None  # EvaAttention does not call the module
        self.inner = attn.norm if isinstance(attn.norm, nn.LayerNorm) else None
        self.plain = rope is None and isinstance(attn.q_norm, nn.Identity) and isinstance(attn.k_norm, nn.Identity)

    def weights(self, part: int) -> tuple[Float[Tensor, "j width"], Float[Tensor, " j"] | None]:
        """Implements Attention.weights."""
        attn = self.module
        if attn.qkv is None:
            linear = (attn.q_proj, attn.k_proj, attn.v_proj)[part]
            return linear.weight, linear.bias
        size = len(attn.qkv.weight) // 3
        rows = slice(part * size, (part + 1) * size)
        if getattr(attn, "q_bias", None) is not None:
            return attn.qkv.weight[rows], (attn.q_bias, attn.k_bias, attn.v_bias)[part]
        return attn.qkv.weight[rows], None if attn.qkv.bias is None else attn.qkv.bias[rows]

    def normed(self, part: int, y: Float[Tensor, "b head token e"]) -> Float[Tensor, "b head token e"]:
        """Implements Attention.normed."""
        norms: dict[int, Any] = {QUERIES: self.module.q_norm, KEYS: self.module.k_norm}
        return norms[part](y) if part in norms else y

    def turned(self, y: Float[Tensor, "b head token e"]) -> Float[Tensor, "b head token e"]:
        """Implements Attention.turned; tokens before the patches are not rotated."""
        if self.rope is None:
            return y
        rotate = importlib.import_module("timm.layers").apply_rot_embed_cat
        prefix = self.module.num_prefix_tokens
        patches = rotate(y[:, :, prefix:], self.rope(), half=getattr(self.module, "rotate_half", False))
        return torch.cat([y[:, :, :prefix], patches.to(y.dtype)], 2)


class TimmTower(Tower):
    """A VisionTransformer or Eva of timm's, such as the last stage of ViTamin, whose other stages embed the picture."""

    def __init__(self, visual: TimmModel) -> None:
        """
        Raises:
            ModelError: the tower is of another class, pools in another way, or has parts whose effects are not known.
        """
        trunk: Any = visual.trunk
        self.visual, self.trunk = visual, trunk
        if (fault := _trunk_fault(trunk) or _head_fault(visual)) is not None:
            raise ModelError(f"timm's {type(trunk).__name__} of this model {fault}")
        (self.final_norm,) = _final_norms(trunk)
        if trunk.attn_pool is not None:
            self.pooling = LatentPooling(self.final_norm, trunk.attn_pool, lambda: self.projection)
        self.prefix = int(trunk.num_prefix_tokens)
        if trunk.attn_pool is None and trunk.global_pool == "avg":
            first = 0 if getattr(trunk, "pool_include_prefix", False) else self.prefix
            self.readout = MeanOfTokens(slice(first, None), self.final_norm is trunk.norm)
        rows, columns = trunk.patch_embed.grid_size
        height, width = trunk.patch_embed.img_size
        self.grid, self.stride = (int(rows), int(columns)), (int(height) // int(rows), int(width) // int(columns))
        self.blocks = [self._block(layer, block) for layer, block in enumerate(trunk.blocks)]

    def _block(self, layer: int, block: Any) -> Block:
        post = _class(block) in POST_NORM
        rope = None if getattr(self.trunk, "rope", None) is None else lambda: self._rope(layer)
        hidden, output = MLPS[_class(block.mlp)]
        return Block(
            module=block,
            run=block if rope is None else lambda x: block(x, rope=rope()),
            name=f"trunk.blocks.{layer}",
            attention=TimmAttention(block.attn, rope),
            mlp=block.mlp,
            hidden=getattr(block.mlp, hidden),
            output=getattr(block.mlp, output),
            names=("attn.proj", f"mlp.{output}"),
            **({"norm_attn": block.norm1, "norm_mlp": block.norm2} if post else {"norm_1": block.norm1, "norm_2": block.norm2}),
            ls_1=_scale(block, 1),
            ls_2=_scale(block, 2),
        )

    def _rope(self, layer: int) -> Tensor:
        """Rotations of the patches in a layer's attention."""
        embedded: Tensor = self.trunk.rope.get_embed(shape=list(self.trunk.patch_embed.grid_size))
        return embedded[layer] if getattr(self.trunk, "rope_mixed", False) else embedded

    @property
    def projection(self) -> Float[Tensor, "width d"]:
        """Implements Tower.projection: one or both of the trunk's and open_clip's last layers."""
        linear = _linear_layers(self.visual)
        P = linear[0].weight.T if linear else torch.eye(self.trunk.embed_dim, dtype=self.weight.dtype, device=self.weight.device)
        return P if len(linear) < 2 else wide(P) @ wide(linear[1].weight).T

    @contextmanager
    def on_grid(self, rows: int, columns: int) -> Iterator[None]:
        """Implements Tower.on_grid; timm resizes positions, and takes one size of pictures, 384 pixels for 27 patches of 14."""
        trunk, size = self.trunk, tuple(self.trunk.patch_embed.img_size)
        if (rows * self.stride[0], columns * self.stride[1]) == size:
            yield
            return
        positions, rope = trunk.pos_embed, getattr(trunk, "rope", None)
        if rope is not None:
            trunk.rope = copy.deepcopy(rope)
        trunk.set_input_size((rows * self.stride[0], columns * self.stride[1]))
        try:
            yield
        finally:
            trunk.set_input_size(size)
            trunk.pos_embed = positions
            if rope is not None:
                trunk.rope = rope

    def embed(self, image: Float[Tensor, "b 3 y x"]) -> Float[Tensor, "b token width"]:
        """Implements Tower.embed."""
        x = self.trunk._pos_embed(self.trunk.patch_embed(image))
        return self.trunk.norm_pre(x[0] if isinstance(x, tuple) else x)

    def finish(self, x: Float[Tensor, "b token width"]) -> Float[Tensor, "b d"]:
        """Implements Tower.finish."""
        return self.visual.head(self.trunk.forward_head(self.trunk.norm(x)))


def _scale(block: Any, number: int) -> Tensor | None:
    """LayerScale's gains of attention (1) or the MLP (2)."""
    gamma = getattr(block, f"gamma_{number}", None)
    return gamma if gamma is not None else getattr(getattr(block, f"ls{number}", None), "gamma", None)


def _final_norms(trunk: Any) -> list[nn.LayerNorm]:
    return [norm for norm in (trunk.norm, trunk.fc_norm) if isinstance(norm, nn.LayerNorm)]


def _linear_layers(visual: Any) -> list[nn.Linear]:
    """The linear layers between the final LayerNorm and the output."""
    return [layer for layer in (visual.trunk.head, getattr(visual.head, "proj", None)) if isinstance(layer, nn.Linear)]


def _trunk_fault(trunk: Any) -> str | None:
    """The reason why a trunk is not supported, as the end of a sentence; None if it is."""
    if _class(trunk) not in TRUNKS:
        return "is not one of its VisionTransformer and Eva"
    if trunk.attn_pool is not None:
        if fault := latent_fault(trunk):
            return fault
    elif trunk.global_pool not in (("token", "avg") if trunk.num_prefix_tokens else ("avg",)):
        return f"pools by {trunk.global_pool or 'nothing'!r}, not by its class token ('token') or a mean ('avg')"
    for layer, block in enumerate(trunk.blocks):
        if fault := _block_fault(block):
            return f"has {fault} in layer {layer}, whose effects are not known"
    return None if len(_final_norms(trunk)) == 1 else "has several LayerNorms, or none, before its output"


def _block_fault(block: Any) -> str | None:
    """The part of a block that is not known; None if all are."""
    if _class(block) not in PRE_NORM + POST_NORM:
        return f"a block of the kind {type(block).__name__}"
    if _class(block.attn) not in ATTENTIONS:
        return f"attention of the kind {type(block.attn).__name__}"
    if getattr(block.attn, "gate", None) is not None or getattr(block.attn, "num_kv_groups", 1) > 1:
        return "attention with gates or shared keys"
    if _class(block.mlp) not in MLPS:
        return f"an MLP of the kind {type(block.mlp).__name__}"
    norms = (block.norm1, block.norm2, block.attn.norm, block.mlp.norm)
    unknown = [norm for norm in norms if not isinstance(norm, nn.LayerNorm | nn.Identity)]
    return f"a norm of the kind {type(unknown[0]).__name__}" if unknown else None


def _head_fault(visual: Any) -> str | None:
    """The reason why the layers after the trunk are not supported; None if they are."""
    unknown = [name for name, _ in visual.head.named_children() if name not in ("drop", "proj")]
    return f"has a nonlinear projection ({', '.join(unknown)}), with which effects have no fixed directions" if unknown else None
