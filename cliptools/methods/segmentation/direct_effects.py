"""Heat maps from the direct effects of attention heads (Gandelsman et al. 2024, whose method is known as TextSpan).

The class token after layer l is a sum over layers, heads and tokens of a_i^{l,h} W_O^h (W_V^h x_i + b_V^h), besides what MLPs and
biases add. The final LayerNorm is linear once its sigma is held, so <M(I), t> falls into the same shares; a patch's score is
the sum of its own over all heads of the last layers.
"""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from cliptools.ground.clip_parts import VisionTransformer
from cliptools.methods.segmentation.attention_pass import AttentionPass, project
from cliptools.methods.vit_paths import norm_gain

LAYERS = 4  # as the paper: earlier attention layers have next to no direct effect


def direct_effects(
    visual: VisionTransformer, seen: AttentionPass, t: Float[Tensor, "b text d"], layers: int = LAYERS
) -> Float[Tensor, "b text token"]:
    """What each token adds to <M(I), t> through the attention of the last `layers` layers, all heads, value biases included."""
    u = readout(visual, seen, t)  # (b, text, width)
    total = torch.zeros(1, dtype=t.dtype, device=t.device)
    blocks = list(visual.transformer.resblocks)
    for block, A, read in list(zip(blocks, seen.attention, seen.normed, strict=True))[-layers:]:
        v = project(block.attn, read)[2]  # (b, head, token, e)
        back = (u * gain(block.ls_1)) @ block.attn.out_proj.weight  # (b, text, head e): the text as each head's values see it
        back = back.unflatten(-1, (block.attn.num_heads, -1))
        total = total + torch.einsum("bhi,bhie,bthe->bti", A[:, :, 0], v, back)
    return total


def readout(visual: VisionTransformer, seen: AttentionPass, t: Float[Tensor, "b text d"]) -> Float[Tensor, "b text width"]:
    """u such that <u, x> is what x, a share of the last class token, adds to <M(I), t>: P, then LayerNorm with its sigma held."""
    norm = visual.ln_post
    sigma = (seen.last.var(-1, unbiased=False) + norm.eps).sqrt()  # (b,)
    u = t @ visual.proj.T * norm_gain(norm, t).to(t) / sigma[:, None, None]
    return u - u.mean(-1, keepdim=True)  # LayerNorm subtracts the mean over the width


def gain(scale: nn.Module) -> Tensor | float:
    """LayerScale's gains, 1 where there is none."""
    return getattr(scale, "gamma", 1.0)
