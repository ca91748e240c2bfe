"""Small image towers whose output is read by attention with learned queries: SigLIP's, Perception Encoder's and CoCa's kinds."""

from typing import Any

from open_clip.timm_model import TimmModel
from open_clip.transformer import VisionTransformer
from torch import nn

from helpers.other_towers import randomised

SIGLIP: dict[str, dict[str, Any]] = {
    "siglip": {"class_token": False, "num_classes": 0},
    "siglip-norms": {"qk_norm": True, "init_values": 0.4, "reg_tokens": 2, "scale_attn_norm": True},
    "siglip-class": {"num_classes": 11},
}
"""Settings of timm's VisionTransformer: SigLIP's, and with norms, LayerScale, registers and a class token."""
PE: dict[str, dict[str, Any]] = {
    "pe": {"class_token": True, "num_classes": 11},
    "pe-big": {"class_token": False, "init_values": 0.3, "num_classes": 5},
}
"""Settings of timm's Eva: Perception Encoder's, which have rotation and one more LayerNorm before the blocks."""
PE_ALL = {
    "attn_type": "rope", "use_pre_transformer_norm": True, "use_rot_pos_emb": True, "ref_feat_shape": (3, 2),
    "rope_grid_offset": 1.0, "rope_grid_indexing": "xy",
}  # fmt: skip
COCA: dict[str, dict[str, Any]] = {
    "coca": {},
    "coca-mean": {"pool_type": "avg"},
    "coca-same-width": {"output_dim": None},
    "coca-custom": {"scale_attn_inner": True, "scale_attn": True, "scale_fc": True, "ls_init_value": 0.5, "pool_type": "avg"},
}
"""Settings of open_clip's VisionTransformer; an output_dim of None is the width."""
SHAPES = (
    {"img_size": (21, 14), "patch_size": 7, "embed_dim": 24, "depth": 4, "num_heads": 3, "mlp_ratio": 2.3},
    {"img_size": (16, 16), "patch_size": 8, "embed_dim": 40, "depth": 3, "num_heads": 5, "mlp_ratio": 1.4},
    {"img_size": (15, 20), "patch_size": 5, "embed_dim": 16, "depth": 3, "num_heads": 2, "mlp_ratio": 3.1},
)
HEADS = (2, 4, 4)
"""Heads of the pooling where it has a number of its own."""
KINDS = (*SIGLIP, *PE, *COCA)


def pooled_tower(kind: str, number: int) -> Any:
    """Return a tower of this kind in one of the shapes, in float64 with random weights."""
    return _coca(kind, number) if kind in COCA else _timm(kind, number)


def _timm(kind: str, number: int) -> Any:
    from timm.models.eva import Eva
    from timm.models.vision_transformer import VisionTransformer as TimmVit

    shape = SHAPES[number] | {"global_pool": "map"}
    if kind in PE:
        shape["embed_dim"] = 8 * shape["num_heads"]  # rotation turns pairs of pairs
        shape |= {"attn_pool_num_heads": HEADS[number]} | PE_ALL
        trunk = Eva(**shape, **PE[kind])
    else:
        trunk = TimmVit(**shape, **SIGLIP[kind])
    visual: Any = TimmModel.__new__(TimmModel)
    nn.Module.__init__(visual)
    visual.image_size, visual.trunk, visual.head = shape["img_size"], trunk, nn.Sequential()
    return randomised(visual, number)


def _coca(kind: str, number: int) -> Any:
    shape = SHAPES[number]
    settings = {"output_dim": 12, "attn_pooler_queries": 5, "attn_pooler_heads": HEADS[number], "attentional_pool": True}
    settings |= {"image_size": shape["img_size"], "patch_size": shape["patch_size"], "width": shape["embed_dim"]}
    settings |= {"layers": shape["depth"], "heads": shape["num_heads"], "mlp_ratio": shape["mlp_ratio"]} | COCA[kind]
    settings["output_dim"] = settings["output_dim"] or settings["width"]
    return randomised(VisionTransformer(**settings), number)
