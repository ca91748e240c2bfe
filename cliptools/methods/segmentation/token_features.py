"""Baselines of segmentation that give every token of the pooling a feature of its own and compare it with texts."""

from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from cliptools.ground.clip_parts import ModifiedResNet
from cliptools.methods.segmentation.pool_tokens import PoolTokens


def maskclip(visual: ModifiedResNet, seen: PoolTokens) -> Float[Tensor, "b patch d"]:
    """MaskCLIP (Zhou et al. 2022): each token by the value path alone, W_O (W_V z_i + b_V) + b_O, at unit norm.

    Without positional embeddings, which its public code leaves out for ResNets.
    """
    return _by_value(visual, seen.Z)


def values(visual: ModifiedResNet, seen: PoolTokens) -> Float[Tensor, "b patch d"]:
    """The same of x_i, with positional embeddings: what the pooling would say if all heads looked at one token alone."""
    return _by_value(visual, seen.x[:, 1:])


def qqkk(visual: ModifiedResNet, seen: PoolTokens) -> Float[Tensor, "b patch d"]:
    """Correlative self-attention (SCLIP, Wang et al. 2024): values gathered by softmax(q q') + softmax(k k'), at unit norm."""
    pool = visual.attnpool
    q, k, v = (_heads(pool, layer, seen.x) for layer in (pool.q_proj, pool.k_proj, pool.v_proj))
    scale = q.shape[-1] ** -0.5
    A = sum((y @ y.transpose(-1, -2) * scale).softmax(-1) for y in (q, k))  # (b, head, token, token)
    gathered = (A @ v).transpose(1, 2).flatten(2)  # (b, token, neuron)
    return F.normalize(_linear(pool.c_proj, gathered[:, 1:]), dim=-1)


def _by_value(visual: ModifiedResNet, tokens: Float[Tensor, "b patch neuron"]) -> Float[Tensor, "b patch d"]:
    pool = visual.attnpool
    return F.normalize(_linear(pool.c_proj, _linear(pool.v_proj, tokens)), dim=-1)


def _heads(pool: nn.Module, layer: nn.Linear, x: Float[Tensor, "b token neuron"]) -> Float[Tensor, "b head token e"]:
    return _linear(layer, x).unflatten(-1, (pool.num_heads, -1)).transpose(1, 2)


def _linear(layer: nn.Linear, x: Tensor) -> Tensor:
    """In the type of x: what is computed of the tokens is in float32 at least, the model may be in less."""
    return F.linear(x, layer.weight.to(x.dtype), layer.bias.to(x.dtype))
