"""Files of dictionaries in the layouts that others publish, and slow oracles of their codes and effects, token by token."""

import io
import json
import sys
import types
from pathlib import Path
from typing import Any

import torch
from open_clip.transformer import VisionTransformer
from safetensors.torch import save_file
from torch import Tensor

from helpers.oracles import attention_rows, layer_norm_gain, scale_of

TENSORS = ("W_enc", "b_enc", "W_dec", "b_dec")


def weights(width: int, latents: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> dict[str, Tensor]:
    """Return random W_enc, b_enc, W_dec and b_dec."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, dtype=torch.float64, generator=generator).to(dtype)

    return {
        "W_enc": normal(width, latents), "b_enc": normal(latents), "W_dec": normal(latents, width), "b_dec": normal(width)
    }  # fmt: skip


def plain(path: Path, tensors: dict[str, Tensor], **config: Any) -> Path:
    """Write a plain file with its configuration in its metadata."""
    save_file(tensors, path, {"config": json.dumps(config)} if config else None)
    return path


def prisma_config(**settings: Any) -> dict[str, Any]:
    """Return a configuration as ViT-Prisma writes it, with the fields that matter here and some that do not."""
    config = {
        "model_class_name": "HookedViT", "model_name": "open-clip:laion/CLIP-ViT-B-32-DataComp.XL-s13B-b90K",
        "hook_point_layer": 1, "layer_subtype": "hook_resid_post", "hook_point_head_index": None, "context_size": 50,
        "use_patches_only": False, "architecture": "standard", "expansion_factor": 64, "is_transcoder": False,
        "transcoder_with_skip_connection": True, "out_hook_point_layer": 1, "layer_out_subtype": "hook_mlp_out", "d_out": 768,
        "_device": "cuda", "_dtype": "float32", "d_in": 768, "activation_fn_str": "relu", "activation_fn_kwargs": {},
        "cls_token_only": False, "normalize_activations": "layer_norm", "l1_coefficient": 1e-05, "lp_norm": 1,
    }  # fmt: skip
    return config | settings


def prisma(folder: Path, tensors: dict[str, Tensor], **settings: Any) -> Path:
    """Write weights.pt and config.json as in ViT-Prisma's repositories."""
    folder.mkdir()
    torch.save(tensors, folder / "weights.pt")
    (folder / "config.json").write_text(json.dumps(prisma_config(**settings)))
    return folder


def pickled_prisma(path: Path, tensors: dict[str, Tensor], **settings: Any) -> Path:
    """Write one file with an object of ViT-Prisma's class of configurations, as its trainer saves it."""
    names = ("vit_prisma", "vit_prisma.sae", "vit_prisma.sae.config")
    modules = {name: types.ModuleType(name) for name in names}
    config_class = type("VisionModelSAERunnerConfig", (), {"__module__": names[-1]})
    modules[names[-1]].VisionModelSAERunnerConfig = config_class
    config = config_class()
    vars(config).update(prisma_config(**settings))
    sys.modules.update(modules)
    try:
        torch.save({"cfg": config, "state_dict": tensors}, path)
    finally:
        for name in names:
            del sys.modules[name]
    return path


def saev(path: Path, tensors: dict[str, Tensor], header: dict[str, Any]) -> Path:
    """Write a line of JSON and a state dict, as saev does."""
    stream = io.BytesIO()
    torch.save(tensors, stream)
    path.write_bytes(json.dumps(header).encode() + b"\n" + stream.getvalue())
    return path


def saev_header(activation: str, **params: Any) -> dict[str, Any]:
    """Return saev's header of schema 5."""
    shown = {"cls": activation, "params": {"key": activation.lower(), "aux": {"cls": "AuxK", "params": {}}, **params}}
    return {"schema": 5, "cfg": {"d_model": 36, "d_sae": 50, "activation": shown}, "commit": "0", "lib": "0.1"}


def encoded(tensors: dict[str, Tensor], y: Tensor, activation: str, k: int = 0, threshold: float | Tensor = 0.0) -> Tensor:
    """Return the code of one token [n], latent by latent."""
    h = torch.stack([(y - tensors["b_dec"]) @ column + b for column, b in zip(tensors["W_enc"].T, tensors["b_enc"], strict=True)])
    if activation == "topk":
        least = h.sort(descending=True).values[k - 1]
        return torch.where(h >= least, h, 0).clamp(min=0)
    if activation == "relu":
        return h.clamp(min=0)
    return torch.where(h > threshold, h, 0).clamp(min=0)


def residual_after(visual: VisionTransformer, image: Tensor, layer: int) -> Tensor:
    """Return the residual stream [token, width] after a layer, for one image."""
    x = visual._embeds(image[None])
    for block in visual.transformer.resblocks[: layer + 1]:
        x = block(x)
    return x[0]


def second_pass(visual: VisionTransformer, image: Tensor, layer: int, v: Tensor) -> Tensor:
    """Return the change of M(I) [d] by what v [token, width], added to the stream after a layer, is carried through attention.

    A literal second pass: every later attention layer reads the stream of the first pass with v added, with its rows of attention
    and the means and deviations of LayerNorms as they were; MLPs and what later layers write are those of the first pass.
    """
    blocks = list(visual.transformer.resblocks)
    x = visual._embeds(image[None])[0]
    streams = []
    for block in blocks:
        streams.append(x)
        x = block(x[None])[0]
    first, second = x[0].clone(), x[0].clone()
    for later in range(layer + 1, len(blocks)):
        block, stream = blocks[later], streams[later]
        mean, sigma = stream.mean(-1, keepdim=True), (stream.var(-1, unbiased=False, keepdim=True) + block.ln_1.eps).sqrt()
        rows = attention_rows(block.attn, block.ln_1(stream))  # [head, token]
        for sign, read in ((-1, stream), (1, stream + v)):
            normed = (read - mean) / sigma * block.ln_1.weight + block.ln_1.bias
            second = second + sign * scale_of(block.ls_1) * class_token_output(block.attn, rows, normed)
    gain = layer_norm_gain(visual.ln_post, first)
    return (gain * (second - first)) @ visual.proj


def class_token_output(attn: torch.nn.MultiheadAttention, rows: Tensor, normed: Tensor) -> Tensor:
    """Return attention's output [width] at the class token for given rows of attention [head, token]."""
    width, e = attn.embed_dim, attn.embed_dim // attn.num_heads
    values = normed @ attn.in_proj_weight[2 * width :].T + attn.in_proj_bias[2 * width :]  # [token, width]
    heads = [row @ values[:, h * e : (h + 1) * e] for h, row in enumerate(rows)]
    return torch.cat(heads) @ attn.out_proj.weight.T + attn.out_proj.bias
