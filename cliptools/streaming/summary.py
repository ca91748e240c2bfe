"""From statistics in S space to a unit's numbers in the joint space, through D of a few units at a time.

r_n = a_n D_n     a_n from principal.py        b_n = mean of S_n times D_n
explained_all = sum over I of <phi_n - b_n, r_n>^2 / sum of ||phi_n - b_n||^2
"""

from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from cliptools.devices import to_float64_device
from cliptools.streaming.principal import SymmetricStack, principal_coefficients, signs
from cliptools.streaming.ranking import top_count
from cliptools.streaming.statistics import Finished, UnitStatistics
from cliptools.streaming.storage import Storage
from cliptools.unit_effects.factored import UNITS_AT_ONCE, FactoredEffect, UnitBlock, gram_of, slices

NUMBERS_AT_ONCE = 4_000_000  # numbers of Gram matrices in float64 at a time


class Settings(NamedTuple):
    """Settings that the statistics depend on."""

    top: int | None = None
    """T; None: `top_count` of the images that could be read."""
    quantile: float = 0.98
    """q of the threshold."""
    components: int = 1
    """Number of principal directions of every unit."""
    scale: bool = True
    """Multiply effects by 100 / ||M(I)||."""
    memory: float = 4e9
    """Bytes of statistics to hold at a time; more than that lies in temporary files, or takes further passes (memory_plan.py)."""
    margin: int | None = None
    """Images kept beyond T; None: what `list_capacity` gives."""
    compact: bool = False
    """Express directions and means as coefficients of the rows of D: no vector of the joint space is formed."""
    moments: bool = False
    """Return the second moments of S, K x K numbers a unit."""

    def top_of(self, images: int) -> int:
        """T for so many images: no more than there are, if it is given."""
        return top_count(images) if self.top is None else min(self.top, max(images, 1))


class Effects(NamedTuple):
    """Statistics of u units, layer by layer. If compact, d is K."""

    unit: Int[Tensor, "u 3"]
    component: Float[Tensor, "u c d"]
    component_explained: Float[Tensor, "u c"]
    explained_all: Float[Tensor, "u"]
    mean: Float[Tensor, "u d"]
    deviation: Float[Tensor, "u"]
    """Root mean square of a = <phi - b, r> over all images."""
    top_norm: Float[Tensor, "u T"]
    top_image: Int[Tensor, "u T"]
    top_along: Float[Tensor, "u T"]
    """a on the top images."""
    threshold: Float[Tensor, "u"]
    threshold_bound: Float[Tensor, "u"]
    moment: Float[Tensor, "u k_or_0 k_or_0"]
    """Mean of x^T x over the images, x = S less its mean; empty unless `Settings.moments`."""


def gram_stack(effect: FactoredEffect, block: UnitBlock, in_files: bool = False) -> SymmetricStack:
    """G = D D^T of every unit, from D of a few units at a time.

    Args:
        in_files: The matrices, and statistics with them, lie in temporary files.

    Raises:
        OSError: the disk is full.
    """
    n, k = len(block.neurons), effect.size(block.layer)[1]
    stack = None
    for rows in slices(n, k):
        G = to_float64_device(gram_of(effect, block.part(rows)))
        stack = SymmetricStack(n, k, G, Storage(in_files)) if stack is None else stack
        stack.put(rows, G)
    assert stack is not None  # a block has units
    stack.storage.release()
    return stack


def summarise(
    effect: FactoredEffect, block: UnitBlock, finished: Finished, statistics: UnitStatistics, settings: Settings
) -> Effects:
    """Results of a block in the joint space, from those in S space, a few units at a time."""
    n, k, dtype = len(block.neurons), statistics.G.k, finished.top_norm.dtype
    at_once = min(UNITS_AT_ONCE // 4, NUMBERS_AT_ONCE // k**2)
    parts = [_summarise_part(rows, finished, statistics, settings) for rows in slices(n, k, at_once)]
    part = _Part(*(torch.cat(column) for column in zip(*parts, strict=True)))
    component, mean = part.a, finished.mean
    if not settings.compact:
        component, mean = _in_joint_space(effect, block, part.a, finished.mean)
    return Effects(
        effect.units(block.layer)[block.neurons.cpu()],
        component.to(dtype),
        part.share.to(dtype),
        part.explained_all.to(dtype),
        mean.to(dtype),
        part.deviation.to(dtype),
        finished.top_norm,
        finished.top_image,
        part.top_along.to(dtype),
        finished.threshold,
        finished.threshold_bound,
        part.moment.to(dtype),
    )


class _Part(NamedTuple):
    """Results of n units in S space."""

    a: Float[Tensor, "n c k"]
    """r = a D."""
    share: Float[Tensor, "n c"]
    explained_all: Float[Tensor, "n"]
    deviation: Float[Tensor, "n"]
    top_along: Float[Tensor, "n T"]
    moment: Float[Tensor, "n k_or_0 k_or_0"]


def _summarise_part(rows: slice, finished: Finished, statistics: UnitStatistics, settings: Settings) -> _Part:
    """Results of a slice of a block's units."""
    G, X, moments = statistics.G.full(rows).double(), finished.top_x[rows].double(), statistics.moments  # (n, k, k), (n, T, k)
    a, share = principal_coefficients(X, G, settings.components)  # (n, c, k), (n, c)
    projection = X @ G @ a.transpose(1, 2)  # (n, T, c)
    sign = signs(projection)  # (n, c)
    a = a * sign[..., None]
    variance, total = moments.along_and_total(rows, (G @ a[:, 0, :, None])[..., 0], G)  # (n) both
    explained_all = torch.where(total > 0, variance / total.clamp(min=torch.finfo(total.dtype).tiny), 0.0).clamp(0, 1)
    moment = moments.about_mean(rows) if settings.moments else G[:, :0, :0]
    return _Part(a, share, explained_all, variance.sqrt(), projection[..., 0] * sign[:, :1], moment)


def _in_joint_space(
    effect: FactoredEffect, block: UnitBlock, a: Float[Tensor, "n c k"], mean: Float[Tensor, "n k"]
) -> tuple[Float[Tensor, "n c d"], Float[Tensor, "n d"]]:
    """The directions a D, of length 1, and the means in the joint space."""
    components, means = [], []
    for rows in slices(len(block.neurons), a.shape[2]):
        D = to_float64_device(effect.directions(block.part(rows)))  # (n, k, d)
        components.append(torch.nn.functional.normalize((a[rows].to(D) @ D).double(), dim=-1))  # (n, c, d)
        means.append((mean[rows, None].to(D) @ D)[:, 0])  # (n, d)
    return torch.cat(components), torch.cat(means)
