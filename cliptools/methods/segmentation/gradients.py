"""Heat maps from gradients of y = <M(I), t>: GradCAM, and Chefer et al.'s relevance through attention."""

import torch
from jaxtyping import Float
from torch import Tensor

from cliptools.methods.segmentation.attention_pass import AttentionPass


def gradcam(seen: AttentionPass, t: Float[Tensor, "b d"]) -> Float[Tensor, "b patch"]:
    """GradCAM (Selvaraju et al. 2017) on the last block's input x after ln_1, as it is applied to ViTs.

    The weight of a channel is the mean of dy/dx over the patches; the map is the positive part of the weighted channels' sum.
    """
    x = seen.normed[-1]
    (gradient,) = torch.autograd.grad((seen.embedding * t).sum(), x, retain_graph=True)  # (b, token, width)
    weight = gradient[:, 1:].mean(1)
    return torch.einsum("bpw,bw->bp", x[:, 1:], weight).relu().detach()


def chefer(seen: AttentionPass, t: Float[Tensor, "b d"]) -> Float[Tensor, "b patch"]:
    """Generic attention explainability (Chefer et al. 2021, Eqs. 5 and 6): R = I, then R <- R + mean_h (dy/dA * A)^+ R."""
    gradients = torch.autograd.grad((seen.embedding * t).sum(), seen.attention, retain_graph=True)
    A = seen.attention[0]
    R = torch.eye(A.shape[-1], dtype=A.dtype, device=A.device).expand(len(A), -1, -1)  # (b, token, token)
    for A, gradient in zip(seen.attention, gradients, strict=True):
        R = R + (gradient * A).relu().mean(1) @ R
    return R[:, 0, 1:].detach()
