"""Inputs and checks of test_statistics.py that other tests share."""

from collections.abc import Collection, Iterator

import torch

from cliptools.streaming.principal import SymmetricStack
from cliptools.streaming.statistics import Finished, UnitStatistics


def stack(full: torch.Tensor) -> SymmetricStack:
    made = SymmetricStack(len(full), full.shape[1], full)
    made.put(slice(None), full)
    return made


def second_look(measured: UnitStatistics, finished: Finished, S: torch.Tensor) -> UnitStatistics:
    """Measure the uncertain units again with the images that the first pass has in doubt."""
    rows = (~finished.certified).nonzero()[:, 0]
    doubtful = finished.doubtful[rows]
    images = torch.arange(len(S)) if finished.beyond.any() else doubtful[doubtful >= 0].unique()
    second = measured.second_look(rows)
    second.list.forget(images)
    for chunk in images.split(11):
        second.update(S[chunk][:, rows], chunk)
    return second


def batches_of(images: torch.Tensor, order: torch.Tensor, size: int):
    def batches(only: Collection[int] | None) -> Iterator[tuple[list[int], torch.Tensor]]:
        wanted = order if only is None else order[torch.isin(order, torch.tensor(sorted(only)))]
        for start in range(0, len(wanted), size):
            of = wanted[start : start + size]
            yield of.tolist(), images[of]

    return batches


def law(name: str, shape: tuple[int, ...], random: torch.Generator) -> torch.Tensor:
    """Return scalars of images with a distribution that units may have."""
    normal = torch.randn(shape, dtype=torch.float64, generator=random)
    if name == "normal":
        return normal + 0.7
    if name == "heavy":  # as heavy as Student's t with 2 degrees of freedom: no variance
        spread = torch.empty(shape, dtype=torch.float64).exponential_(generator=random).sqrt()
        return normal / spread
    acts = torch.rand(shape[:2], generator=random)[..., None] < (0.02 if name == "acts on 2 %" else 0.003)
    if name == "silent at first":
        acts[: shape[0] // 3] = False
    return torch.where(acts, normal.abs() + 1, 1e-3 * normal if name == "acts on 2 %" else torch.zeros_like(normal))


LAWS = ("normal", "heavy", "acts on 2 %", "acts on 3 of 1000", "silent at first")
