"""Small image towers of timm's kinds and of open_clip's custom blocks, and effects by a second pass with frozen statistics."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from open_clip.timm_model import TimmModel
from open_clip.transformer import VisionTransformer
from torch import Tensor, nn

from cliptools.towers.kinds import tower_of

EVA = {
    "eva02-b": {"qkv_fused": False, "swiglu_mlp": True, "scale_mlp": True, "scale_attn_inner": True, "use_rot_pos_emb": True},
    "eva02-e": {"use_post_norm": True},
    "eva02-e-all": {"use_post_norm": True, "swiglu_mlp": True, "scale_mlp": True, "scale_attn_inner": True},
    "eva01-g": {},
    "eva-registers": {
        "init_values": 0.4, "swiglu_mlp": True, "num_reg_tokens": 3, "use_rot_pos_emb": True, "no_embed_class": True,
    },
    "eva-rope-norm": {"attn_type": "rope", "qk_norm": True, "qkv_fused": False, "use_rot_pos_emb": True, "init_values": 0.6},
    "eva-rope-fused": {"attn_type": "rope", "scale_attn_inner": True, "use_rot_pos_emb": True, "rope_rotate_half": True},
}  # fmt: skip
"""Settings of timm's Eva."""
VIT = {
    "vit": {},
    "vit-norms": {"qk_norm": True, "init_values": 0.3, "pre_norm": True, "reg_tokens": 2},
    "vit-inner": {"scale_attn_norm": True, "scale_mlp_norm": True, "no_embed_class": True, "fc_norm": True},
}
"""Settings of timm's VisionTransformer: MobileCLIP's and BiomedCLIP's kind, with norms of queries and keys, with inner norms."""
MEANS: dict[str, dict[str, Any]] = {
    "vit-gap": {"class_token": False, "fc_norm": False},
    "vit-registers-mean": {"reg_tokens": 2, "qk_norm": True, "scale_attn_norm": True},
    "vit-all-tokens": {"pool_include_prefix": True, "fc_norm": False, "init_values": 0.3},
    "eva-mean": EVA["eva02-b"],
    "eva-e-mean": EVA["eva02-e-all"] | {"use_fc_norm": False},
    "vitamin": {},
}
"""Settings of timm's towers whose output is the mean of tokens, with the final LayerNorm before the mean and behind it."""
CLIPA: dict[str, dict[str, Any]] = {
    "clipa": {"no_ln_pre": True, "final_ln_after_pool": True},
    "norm-first": {},
    "scale_attn": {"block_type": "custom", "scale_attn": True, "scale_attn_inner": True},
    "all": {"qk_norm": True, "scale_heads": True, "scale_attn_inner": True, "ls_init_value": 1, "final_ln_after_pool": True},
}
"""Settings of open_clip's towers whose output is the mean of the patches, CLIPA's first."""
SHAPES = (
    {"img_size": (21, 14), "patch_size": 7, "embed_dim": 24, "depth": 4, "num_heads": 3, "mlp_ratio": 2.3},
    {"img_size": (16, 16), "patch_size": 8, "embed_dim": 40, "depth": 3, "num_heads": 5, "mlp_ratio": 1.4},
    {"img_size": (15, 20), "patch_size": 5, "embed_dim": 16, "depth": 3, "num_heads": 2, "mlp_ratio": 3.1},
)
WIDTHS = (13, 9, 17)
CUSTOM: dict[str, dict[str, Any]] = {
    "custom": {"block_type": "custom"},
    "qk_norm": {"qk_norm": True},
    "scale_heads": {"scale_heads": True, "ls_init_value": 0.5},
    "scale_attn_inner": {"scale_attn_inner": True},
    "scale_attn": {"scale_attn": True},
    "scale_fc": {"scale_fc": True},
    "all": {
        "qk_norm": True,
        "scale_heads": True,
        "scale_attn_inner": True,
        "scale_attn": True,
        "scale_fc": True,
        "ls_init_value": 1,
    },
}
"""Settings of open_clip's custom blocks."""
CUSTOM_SHAPES = (
    {"image_size": (21, 14), "patch_size": 7, "width": 24, "layers": 4, "heads": 3, "mlp_ratio": 2.3, "output_dim": 13},
    {"image_size": (16, 16), "patch_size": 8, "width": 40, "layers": 3, "heads": 5, "mlp_ratio": 1.4, "output_dim": 9},
    {"image_size": (15, 20), "patch_size": 5, "width": 18, "layers": 3, "heads": 2, "mlp_ratio": 3.1, "output_dim": 17},
)


def randomised(visual: Any, seed: int) -> Any:
    """Return the tower in float64 and evaluation mode, with random weights; gains are around 1."""
    visual = visual.double().eval().requires_grad_(False)
    generator = torch.Generator().manual_seed(seed)
    for value in visual.parameters():
        value.data = 0.3 * torch.randn(value.shape, dtype=value.dtype, generator=generator) + (value.ndim == 1)
    return visual


def vitamin_settings(shape: dict[str, Any]) -> dict[str, Any]:
    """Return the settings of a small ViTamin with stages of convolutions, one token for 16 pixels down and across."""
    from timm.layers import HybridEmbed
    from timm.models.vitamin import GeGluMlp, MbConvStages, VitCfg

    stages = MbConvStages(VitCfg(embed_dim=(4, 6, shape["embed_dim"]), depths=(1, 1, 1), stem_width=5))
    rows, columns = (side // shape["patch_size"] for side in shape["img_size"])
    return shape | {
        "img_size": (16 * rows, 16 * columns), "patch_size": 1, "class_token": False, "mlp_layer": GeGluMlp,
        "embed_layer": partial(HybridEmbed, backbone=stages, proj=False),
    }  # fmt: skip


def timm_tower(kind: str, shape: dict[str, Any], width: int, seed: int = 0, projection: str = "head") -> Any:
    """Return a tower of timm's behind open_clip's TimmModel.

    Args:
        projection: The last layer is the trunk's (head), open_clip's (proj), or both are there (both).
    """
    from timm.models.eva import Eva
    from timm.models.vision_transformer import VisionTransformer as TimmVit

    if kind == "vitamin":
        shape = vitamin_settings(shape)
    settings = shape | {"global_pool": "avg" if kind in MEANS else "token", "num_classes": 0 if projection == "proj" else width}
    if kind.startswith("eva") and shape["embed_dim"] // shape["num_heads"] % 4:  # rotation turns pairs of pairs
        settings["embed_dim"] = 8 * shape["num_heads"]
    trunk = (Eva if kind.startswith("eva") else TimmVit)(**settings, **(EVA | VIT | MEANS)[kind])
    visual: Any = TimmModel.__new__(TimmModel)
    nn.Module.__init__(visual)
    visual.image_size, visual.trunk, visual.head = shape["img_size"], trunk, nn.Sequential()
    if projection != "head":
        visual.head.add_module("drop", nn.Dropout(0.1))
        inputs = width if projection == "both" else trunk.embed_dim
        visual.head.add_module("proj", nn.Linear(inputs, width + 1, bias=False))
    return randomised(visual, seed)


def custom_tower(kind: str, shape: dict[str, Any], seed: int = 0) -> Any:
    """Return open_clip's VisionTransformer with custom blocks."""
    return randomised(VisionTransformer(**shape, **CUSTOM[kind]), seed)


def mean_tower(kind: str, shape: dict[str, Any], seed: int = 0) -> Any:
    """Return open_clip's VisionTransformer whose output is the mean of the patches."""
    return randomised(VisionTransformer(**shape, **CLIPA[kind], pool_type="avg"), seed)


def pictures(visual: Any, count: int = 2) -> Tensor:
    """Return random pictures of the tower's own size."""
    return torch.randn(count, 3, *visual.image_size, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


class Frozen:
    """A tower whose modules give the outputs of one recorded pass, plus what is linear in the change of their inputs.

    A LayerNorm's output changes by gamma times the change over its recorded deviation, without a mean unless `centred`;
    self-attention's by its recorded matrix times the change of the values, times eps; the output of an MLP after `layer` stays.
    Attention after that of the blocks is a pooling, which changes in the same way without eps, and whose MLP's output stays.
    Attention matrices are made of the queries and keys that the modules give to torch's scaled_dot_product_attention.
    """

    def __init__(self, visual: Any, image: Tensor, layer: int, centred: bool = False) -> None:
        self.visual, self.image, self.layer, self.centred = visual, image, layer, centred
        self.norms: dict[nn.Module, tuple[Tensor, Tensor]] = {}
        self.attention: list[tuple[Tensor, Tensor]] = []
        self.mlps: dict[nn.Module, Tensor] = {}
        self.blocks = list(visual.trunk.blocks) if hasattr(visual, "trunk") else list(visual.transformer.resblocks)
        self.keys = {id(norm) for block in self.blocks for norm in self._of_queries(block.attn)}
        with self._recording():
            self.output = visual(image)

    @staticmethod
    def _of_queries(attn: Any) -> list[nn.Module]:
        return [getattr(attn, name) for name in ("q_norm", "k_norm", "ln_q", "ln_k") if hasattr(attn, name)]

    @property
    def _pooling_mlp(self) -> list[nn.Module]:
        """The MLP of timm's attention pooling, if there is one."""
        pool = getattr(getattr(self.visual, "trunk", None), "attn_pool", None)
        return [] if pool is None else [pool.mlp]

    @contextmanager
    def _recording(self) -> Iterator[None]:
        handles = []
        for module in [module for name, module in self.visual.named_modules() if "patch_embed" not in name]:
            if isinstance(module, nn.LayerNorm):
                handles.append(module.register_forward_hook(lambda m, i, o: self.norms.__setitem__(m, (i[0], o))))
        for block in self.blocks:
            handles.append(block.mlp.register_forward_hook(lambda m, i, o: self.mlps.__setitem__(m, o)))
        for mlp in self._pooling_mlp:
            handles.append(mlp.register_forward_hook(lambda m, i, o: self.mlps.__setitem__(m, o)))

        def record(q: Tensor, k: Tensor, v: Tensor, *_: Any, **__: Any) -> Tensor:
            A = (q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5).softmax(-1)
            self.attention.append((A, v))
            return A @ v

        with attention_as(record):
            yield
        for handle in handles:
            handle.remove()

    def run(self, change: Callable[[Tensor], Tensor], eps: float) -> Tensor:
        """Return the output if the hidden activations of the layer's MLP become change(p)."""
        handles = [tower_of(self.visual).blocks[self.layer].hidden.register_forward_hook(lambda m, i, o: change(o))]
        hidden = tower_of(self.visual).blocks[self.layer].hidden
        for module, (x, y) in self.norms.items():
            if module is not hidden and id(module) not in self.keys:
                handles.append(module.register_forward_hook(self._linear_norm(x, y)))
        mlps = [*(block.mlp for block in self.blocks[self.layer + 1 :]), *self._pooling_mlp]
        handles += [mlp.register_forward_hook(lambda m, i, o: self.mlps[m]) for mlp in mlps]
        recorded = iter(enumerate(self.attention))

        def attend(q: Tensor, k: Tensor, v: Tensor, *_: Any, **__: Any) -> Tensor:
            number, (A, before) = next(recorded)
            return A @ before + (eps if number < len(self.blocks) else 1) * (A @ (v - before))

        with attention_as(attend):
            output = self.visual(self.image)
        for handle in handles:
            handle.remove()
        return output

    def _linear_norm(self, x: Tensor, y: Tensor) -> Callable[..., Tensor]:
        def hook(norm: nn.LayerNorm, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
            sigma = ((x - x.mean(-1, keepdim=True)).square().mean(-1, keepdim=True) + norm.eps).sqrt()
            change = inputs[0] - x
            return y + norm.weight * (change - change.mean(-1, keepdim=True) if self.centred else change) / sigma

        return hook

    def coefficients(self, neuron: int, token: int | slice = slice(None)) -> list[Tensor]:
        """Return the neuron's effect by the number of attention layers that it crosses: [0, 1, ...], each [b, d].

        Args:
            token: The only token at which the neuron acts.
        """
        degree = len(self.blocks) - self.layer - 1
        points = torch.arange(degree + 1, dtype=torch.float64)

        def without(p: Tensor) -> Tensor:
            changed = p.clone()
            changed[:, token, neuron] = 0
            return changed

        effects = [self.run(torch.clone, float(eps)) - self.run(without, float(eps)) for eps in points]  # (b, d) a point
        powers = points[:, None] ** torch.arange(degree + 1)
        return list(torch.linalg.solve(powers, torch.stack(effects).flatten(1)).unflatten(1, effects[0].shape))


@contextmanager
def attention_as(function: Callable[..., Tensor]) -> Iterator[None]:
    """Replace torch's scaled_dot_product_attention within the block, also where torch has a faster way of its own."""
    original, fast = nn.functional.scaled_dot_product_attention, torch.backends.mha.get_fastpath_enabled()
    nn.functional.scaled_dot_product_attention = function  # type: ignore[assignment]
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        nn.functional.scaled_dot_product_attention = original
        torch.backends.mha.set_fastpath_enabled(fast)
