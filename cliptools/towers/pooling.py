"""The interface of attention pooling: learned queries read the residual stream after the last block.

With attention and the deviations of LayerNorms frozen, the output is a sum over the pooling's heads g and the tokens j:

    M(I) = sum over g, j of beta_j^g A_g x_j + const       A_g = P gamma_out W_O^g W_V^g gamma_in

    beta_j^g = sum over queries q of weight_q b_qj^g / (sigma_j^in sigma_q^out)

b is the attention of the queries, which do not depend on the image. `in` is the LayerNorm that reads every token, `out` the one
that reads what a query has collected, where a tower has one. beta is a scalar of the image, A_g are weights.

The heads themselves read y, the output of `in`, and add up to the output of attention. With b_V and b_O the biases of values and
of the output matrix,

    M(I) = sum over g, j of beta_j^g sigma_j^in P gamma_out (W_O^g (W_V^g y_j + b_V^g) + b_O / heads) + parts that no head writes

timm's pooling (SigLIP, Perception Encoder) has an MLP behind its attention: M(I) = P (o + MLP(LN(o))) with o the output of
attention. The output of that MLP counts as a constant, as that of every later MLP does in paper 1. open_clip's pooling (CoCa) has
no such MLP. The classes of both are in learned_queries.py.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor, nn

from cliptools.errors import ModelError
from cliptools.towers.hooks import Hooks


class Pooling(ABC):
    """Attention with learned queries between the last block and the output."""

    heads: int
    norm_in: nn.LayerNorm
    """The LayerNorm that reads every token of the last residual stream."""

    @abstractmethod
    def value_matrix(self, gain: bool = True) -> Float[Tensor, "g e width"]:
        """W_V^g gamma_in, or W_V^g alone without the gain; in float32 at least."""

    @abstractmethod
    def ends(self, centred: bool = False) -> Float[Tensor, "g e d"]:
        """P gamma_out W_O^g, transposed: where each value dimension of each head ends; in float32 at least.

        Args:
            centred: Include the mean that the LayerNorm `out` takes away; effects leave it out.
        """

    @abstractmethod
    def biases(self) -> tuple[Float[Tensor, "g e"], Float[Tensor, " d"]]:
        """b_V^g, and P gamma_out b_O without the mean that the LayerNorm `out` takes away; in float32 at least."""

    @abstractmethod
    def hooks(self, use: Callable[[Float[Tensor, "b g token"]], None]) -> Hooks:
        """Hooks that give beta to `use` at the end of a forward pass."""

    def mlp_hooks(self, use: Callable[[Float[Tensor, "b d"]], None]) -> Hooks:
        """Hooks that give `use` what the neurons of an MLP behind the attention add to the output; none without an MLP."""
        return []

    def part_hooks(self, part: str) -> Hooks:
        """Hooks under which the output is P of what one part writes: the `attention`, or the `mlp` behind it.

        Raises:
            ModelError: the pooling has no MLP.
        """
        raise ModelError("the attention pooling of this image tower has no MLP, so its output has no parts")

    def matrices(self, centred: bool = False) -> Float[Tensor, "g d width"]:
        """A_g of every head; in float32 at least."""
        return self.ends(centred).transpose(1, 2) @ self.value_matrix()

    def through(self, W_O: Float[Tensor, "width j"]) -> Float[Tensor, "g j d"]:
        """(A_g W_O)^T: where columns of a matrix that writes into the residual stream end, through every head."""
        return (self.value_matrix() @ W_O).transpose(1, 2) @ self.ends()  # [g, e, j] -> [g, j, e] @ [g, e, d]


def query_rows(
    q: Float[Tensor, "g q e"], W_K: Float[Tensor, "g e width"], y: Float[Tensor, "b token width"]
) -> Float[Tensor, "b g q token"]:
    """Attention of queries that do not depend on the image: W_K on their side, without its bias, which the softmax removes."""
    u = torch.einsum("gqe,gew->gqw", q * q.shape[-1] ** -0.5, W_K)
    return torch.einsum("gqw,btw->bgqt", u, y).softmax(-1)
