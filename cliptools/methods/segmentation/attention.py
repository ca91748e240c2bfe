"""Heat maps from attention alone, which know nothing of the text: the last layer's raw attention, and rollout."""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor


def raw_attention(attention: Sequence[Float[Tensor, "b head token token"]]) -> Float[Tensor, "b patch"]:
    """The class token's attention to the patches in the last layer, mean over heads."""
    return attention[-1][:, :, 0, 1:].mean(1)


def rollout(attention: Sequence[Float[Tensor, "b head token token"]]) -> Float[Tensor, "b patch"]:
    """Attention rollout (Abnar and Zuidema 2020): R = A^L … A^1 with A^l = (mean over heads + I) / 2."""
    identity = torch.eye(attention[0].shape[-1], dtype=attention[0].dtype, device=attention[0].device)
    R = identity.expand(len(attention[0]), -1, -1)  # (b, token, token)
    for A in attention:
        R = (A.mean(1) + identity) / 2 @ R
    return R[:, 0, 1:]
