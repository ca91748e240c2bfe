"""Deletion: the margin of an image while its units are replaced by their means, one after the other.

After the first k units of an order, the output is

    M_k = M + sum over the first k of b_n - phi_n        (in the scale of the means b_n)
    m_k = 100 <M_k, v> / ||M_k||

with everything else frozen, as clip-ablate has it (analysis/ablation.py). An order that puts first what carries the margin lowers
|m_k| soonest, so the area below the curve, the mean of m_k over 0 <= k <= K, tells orders apart. Compared are

    explanation    by share or excess, those that push towards the side of the margin first
    activity       by ||phi_n - b_n||, largest first
    random         the mean curve of several random orders
"""

import zlib
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float64, Int
from torch import Tensor

from cliptools.analysis.explanation import LOGIT_SCALE, Explainer, ReadImages, unit_terms
from cliptools.devices import to_float64

STEPS = 20  # points of a curve after its start


class Curve(NamedTuple):
    """Margins along one order, or their means over several orders."""

    margin: Float64[Tensor, " step"]
    deviation: Float64[Tensor, " step"] | None
    """Standard deviation over the orders; None for a single order."""
    area: float
    """Mean of the margin over the numbers of units from 0 to the last one."""


class Deletion(NamedTuple):
    """The curves of one image."""

    counts: Int[Tensor, " step"]
    """Numbers of units replaced."""
    curves: dict[str, Curve]


def step_counts(most: int, steps: int = STEPS) -> Int[Tensor, " step"]:
    """Numbers of units from 0 to `most`, close together at the beginning: most (j / steps)^2, rounded up, each once."""
    return torch.tensor(sorted({-(-most * j * j // (steps * steps)) for j in range(steps + 1)}))


def deletion(
    explainer: Explainer,
    images: ReadImages,
    image: int,
    v: Tensor,
    weight: Float64[Tensor, " u"],
    counts: Int[Tensor, " step"],
    random_orders: Sequence[Int[Tensor, " u"]],
) -> Deletion:
    """The curves of one of the images.

    Args:
        weight: Shares or excesses of the units, by which the explanation orders them.
        counts: Numbers of units, ascending from 0.
        random_orders: Random orders of the units.
    """

    def margins(order: Int[Tensor, " u"]) -> Float64[Tensor, " step"]:
        return ablated_margins(explainer, images, image, v, order, counts)

    M = images.embedding[image].cpu().double()
    side = 1.0 if float(M @ v.cpu().double()) >= 0 else -1.0
    orders = {
        "explanation": (side * weight).argsort(descending=True, stable=True),
        "activity": images.norm[image].cpu().argsort(descending=True, stable=True),
    }
    curves = {name: _curve(counts, [margins(order)]) for name, order in orders.items()}
    if random_orders:
        curves["random"] = _curve(counts, [margins(order) for order in random_orders])
    return Deletion(counts, curves)


@torch.inference_mode()
def ablated_margins(
    explainer: Explainer, images: ReadImages, image: int, v: Tensor, order: Int[Tensor, " u"], counts: Int[Tensor, " step"]
) -> Float64[Tensor, " step"]:
    """The margins after the first k units of an order are replaced by their means, for each k of `counts`.

    Args:
        order: Numbers of units, in the order of the bundle.
        counts: Ascending from 0.
    """
    most = int(counts[-1])
    step_of = torch.full((len(order),), -1)  # (u,): the step in which a unit is replaced; -1 for none
    step_of[order[:most]] = torch.searchsorted(counts, torch.arange(1, most + 1))
    scale = images.scale[image]
    M = (to_float64(images.embedding[image]) * to_float64(scale)).cpu()  # (d,)
    change = M.new_zeros(len(counts), len(M))
    for block, rows, S in zip(explainer.blocks, explainer.rows, images.S, strict=True):
        chosen = (step_of[rows] >= 0).nonzero()[:, 0]
        if not len(chosen):
            continue
        mask = step_of[rows[chosen]] == torch.arange(len(counts))[:, None]  # (step, n)
        terms = unit_terms(explainer.tower.effect, block.part(chosen), explainer.units, rows[chosen])
        repeated = S[image, chosen.to(S.device)].expand(len(counts), -1, -1)  # (step, n, k)
        change += terms.mean_change(repeated, scale.expand(len(counts)), mask.to(S.device)).cpu()
    M_k = M + change.cumsum(0)  # (step, d)
    return LOGIT_SCALE * (M_k @ v.cpu().double()) / M_k.norm(dim=1)


def _curve(counts: Int[Tensor, " step"], margins: Sequence[Float64[Tensor, " step"]]) -> Curve:
    """The mean of the margins of several orders."""
    stacked = torch.stack(list(margins))  # (order, step)
    mean = stacked.mean(0)
    area = float(torch.trapezoid(mean, counts.double()) / counts[-1]) if len(counts) > 1 else float(mean[0])
    return Curve(mean, stacked.std(0) if len(margins) > 1 else None, area)


def random_orders(units: int, draws: int, name: str, seed: int) -> list[Int[Tensor, " u"]]:
    """Random orders of the units; they depend on the seed and the image's name, not on the order of the images."""
    random = np.random.default_rng((seed, zlib.crc32(name.encode())))
    return [torch.from_numpy(random.permutation(units)) for _ in range(draws)]
