"""How many neurons write at a token: the penalty that makes few of them do it, and the one that keeps all of them in use.

A neuron's writing at a token is |p_n - median_n| s_n. The median over tokens stands for what the neuron always writes: a
constant distinguishes nothing, however large it is, and the *mean* of a rare event would make the silent neurons write. The
strength s_n is how far the neuron moves the logits apart. A penalty on |p_n| |w_n| alone is met by constants, and one without the
second term by a few neurons that write everywhere and cancel each other.
"""

import math
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

MEDIAN_TOKENS = 384  # tokens of a batch that the medians are taken over
MEMORY = 0.95  # share of the usage of earlier steps that is kept in each step


class Sparsity:
    """The penalties over some layers; it remembers how much of the writing each neuron has done."""

    def __init__(self, most: int) -> None:
        self.most = most
        """Number k of neurons that may write at a token."""
        self.usage: dict[int, Float[Tensor, " neuron"]] = {}

    def __call__(
        self, neurons: Sequence[Float[Tensor, "b token neuron"]], strengths: Sequence[Float[Tensor, " neuron"]]
    ) -> tuple[Tensor, Tensor]:
        """Return the share of the writing beyond the k strongest neurons, and the crowding, as means over the layers."""
        sparse, crowding = [], []
        for layer, (p, s) in enumerate(zip(neurons, strengths, strict=True)):
            c = writing(p.flatten(0, -2).float(), s)  # (token, neuron)
            sparse.append(beyond(c, self.most))
            crowding.append(self._crowding(layer, c))
        return torch.stack(sparse).mean(), torch.stack(crowding).mean()

    def _crowding(self, layer: int, c: Float[Tensor, "token neuron"]) -> Tensor:
        """Return 1 - H(u) / log N, for the shares u of the neurons in the writing of this and of earlier steps."""
        u = (c / (c.sum(-1, keepdim=True) + 1e-6)).mean(0)  # (neuron,)
        earlier = self.usage.get(layer, u.detach())
        u = MEMORY * earlier + (1 - MEMORY) * u
        self.usage[layer] = u.detach()
        u = u / u.sum()
        # The gradient of a step is that of its own share of the memory, so it is scaled up to that of the step alone.
        entropy = -(u * (u + 1e-9).log()).sum() / math.log(len(u))
        return (1 - entropy).detach() + (entropy.detach() - entropy) / (1 - MEMORY)


def writing(p: Float[Tensor, "token neuron"], strength: Float[Tensor, " neuron"]) -> Float[Tensor, "token neuron"]:
    """Return |p_n - median_n| s_n."""
    median = p.detach()[:: max(1, len(p) // MEDIAN_TOKENS)].median(0).values  # (neuron,)
    return (p - median).abs() * strength


def beyond(c: Float[Tensor, "token neuron"], most: int) -> Tensor:
    """Return the mean share of a token's writing that the `most` strongest neurons do not do."""
    top = c.topk(min(most, c.shape[-1]), -1).values.sum(-1)
    return (1 - top / (c.sum(-1) + 1e-6)).mean()
