"""From images to statistics of effects: the one pass that every factored effect goes through.

An effect is factored when phi_n(I) = sum over k of S[n, k](I) D[n, k, :], the image in S and the weights in D. What S and D
are is the business of `Paths`; this file knows only that D is too large to be whole and S too large to be kept.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple, Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from cliptools.ground.errors import CliptoolsError
from cliptools.ground.progress import note, progress
from cliptools.methods.principal import principal_coefficients
from cliptools.methods.statistics import Finished, UnitStatistics

Batches = Callable[[], Iterator[tuple[list[int], Tensor]]]
"""Image numbers and preprocessed pictures [b, 3, y, x], from the first again at each call, always in the same order."""
UNITS_AT_ONCE = 256  # for which D is held
CHEAP = 0.5e9  # bytes of kept images that nobody misses


class Slab(NamedTuple):
    """Some neurons of one layer."""

    layer: int
    neurons: Int[Tensor, "n"]


@runtime_checkable
class Paths(Protocol):
    """A factored effect on one model."""

    def size(self, layer: int) -> tuple[int, int]:
        """Units of the layer and paths per unit."""
        ...

    def read(
        self, image: Float[Tensor, "b 3 y x"], slabs: Sequence[Slab]
    ) -> tuple[list[Float[Tensor, "b n k"]], Float[Tensor, "b d"]]:
        """S of every slab, and M(I), from one forward pass."""
        ...

    def directions(self, slab: Slab) -> Float[Tensor, "n k d"]:
        """D."""
        ...


class Settings(NamedTuple):
    """What the statistics depend on."""

    top: int = 100
    quantile: float = 0.98
    components: int = 1
    scale: bool = True
    """Multiply effects by 100 / ||M(I)||."""
    memory: float = 4e9
    """Bytes of statistics to hold at once; layers that do not fit together take further passes."""
    margin: int | None = None


class Effects(NamedTuple):
    """Statistics of U units, in the order of the layers asked for."""

    unit: Int[Tensor, "u 3"]
    component: Float[Tensor, "u c d"]
    component_explained: Float[Tensor, "u c"]
    explained_all: Float[Tensor, "u"]
    mean: Float[Tensor, "u d"]
    top_norm: Float[Tensor, "u T"]
    top_image: Int[Tensor, "u T"]
    threshold: Float[Tensor, "u"]


class Report(NamedTuple):
    """How the measurement went."""

    effects: Effects
    images: int
    passes: int
    redone: int
    """Units whose top images one pass could not certify and a further pass settled."""


def measure(paths: Paths, batches: Batches, layers: Sequence[int], expected: int, settings: Settings) -> Report:
    """Statistics of all units of the layers, exact, in one forward pass an image wherever one can certify them.

    Args:
        expected: The number of images that `batches` will bring, skipped ones included.

    Raises:
        CliptoolsError: no image could be read.
    """
    settings = settings._replace(margin=_margin(paths, layers, expected, settings))
    parts: dict[int, list[tuple[Slab, Effects]]] = {layer: [] for layer in layers}
    unsettled: list[tuple[Slab, Tensor, Tensor]] = []  # slab, which of its units, their means
    plan = _plan(paths, layers, settings)
    count = 0
    for number, slabs in enumerate(plan):
        label = "images" if len(plan) == 1 else f"images, pass {number + 1} of {len(plan)}"
        statistics, count = _pass(paths, batches, slabs, expected, settings, label)
        for slab, measured in zip(slabs, statistics, strict=True):
            finished = measured.finish()
            parts[slab.layer].append((slab, _summarise(paths, slab, finished, measured.G, settings)))
            redo = (~finished.certified).nonzero()[:, 0]
            if len(redo):
                unsettled.append((slab, redo, finished.mean[redo]))
        del statistics
    redone = sum(len(redo) for _, redo, _ in unsettled)
    if redone:
        note(f"{redone} units need a second pass: their top images could not be certified in one")
        _settle(paths, batches, parts, unsettled, expected, settings)
    joined = [torch.cat(column) for column in zip(*(part for layer in layers for _, part in parts[layer]), strict=True)]
    return Report(Effects(*joined), count, len(plan) + bool(redone), redone)


def _margin(paths: Paths, layers: Sequence[int], expected: int, settings: Settings) -> int:
    """Images kept beyond T: half as many, or as many as are cheap. All there are, perhaps; then there is nothing to certify."""
    if settings.margin is not None:
        return settings.margin
    sizes = [paths.size(layer) for layer in layers]
    each = sum(n * (UnitStatistics.bytes_per_unit(k, 1) - UnitStatistics.bytes_per_unit(k, 0)) for n, k in sizes)
    return max(16, settings.top // 2, min(int(CHEAP // each), expected) - settings.top)


def _plan(paths: Paths, layers: Sequence[int], settings: Settings) -> list[list[Slab]]:
    """Slabs for each pass over the images, so that no pass holds more statistics than the memory allowed."""
    passes: list[list[Slab]] = [[]]
    free = settings.memory
    for layer in layers:
        n, k = paths.size(layer)
        each = UnitStatistics.bytes_per_unit(k, settings.top + (settings.margin or 0))
        start = 0
        while start < n:
            fit = min(n - start, int(free // each))
            if fit < min(n - start, UNITS_AT_ONCE) and passes[-1]:
                passes.append([])
                free = settings.memory
                continue
            fit = max(1, fit)
            passes[-1].append(Slab(layer, torch.arange(start, start + fit)))
            start, free = start + fit, free - fit * each
    return passes


def _pass(
    paths: Paths,
    batches: Batches,
    slabs: Sequence[Slab],
    expected: int,
    settings: Settings,
    label: str,
    centres: Sequence[Tensor] | None = None,
) -> tuple[list[UnitStatistics], int]:
    """All images once, into the statistics of these slabs."""
    statistics = [
        UnitStatistics(
            _gram(paths, slab),
            settings.top,
            expected,
            settings.quantile,
            settings.margin or 0,
            None if centres is None else centres[i],
        )
        for i, slab in enumerate(slabs)
    ]
    count = 0
    for images, pictures in progress(batches(), label, expected, lambda batch: len(batch[0])):
        S, embedding = paths.read(pictures, slabs)
        scale = 100 / embedding.to(S[0].dtype).norm(dim=-1) if settings.scale else None
        numbers = torch.tensor(images, device=embedding.device)
        for each, scalars in zip(statistics, S, strict=True):
            each.update(scalars if scale is None else scalars * scale[:, None, None], numbers)
        count += len(images)
    if not count:
        raise CliptoolsError("not one image could be read")
    return statistics, count


def _settle(
    paths: Paths,
    batches: Batches,
    parts: dict[int, list[tuple[Slab, Effects]]],
    unsettled: Sequence[tuple[Slab, Tensor, Tensor]],
    expected: int,
    settings: Settings,
) -> None:
    """A further pass for the units that one pass could not certify; with the mean known, it needs no certificate."""
    slabs = [Slab(slab.layer, slab.neurons[redo.to(slab.neurons.device)]) for slab, redo, _ in unsettled]
    statistics, _ = _pass(paths, batches, slabs, expected, settings, "second pass", [mean for _, _, mean in unsettled])
    for (slab, redo, _), part, measured in zip(unsettled, slabs, statistics, strict=True):
        again = _summarise(paths, part, measured.finish(), measured.G, settings)
        (old,) = (effects for s, effects in parts[slab.layer] if s is slab)
        for before, after in zip(old, again, strict=True):
            before[redo.to(before.device)] = after


def _gram(paths: Paths, slab: Slab) -> Float[Tensor, "n k k"]:
    """G = D D^T of every unit, from D a few units at a time."""
    grams = []
    for start in range(0, len(slab.neurons), UNITS_AT_ONCE):
        D = paths.directions(slab._replace(neurons=slab.neurons[start : start + UNITS_AT_ONCE]))
        grams.append(D @ D.transpose(1, 2))
    return torch.cat(grams)


def _summarise(paths: Paths, slab: Slab, finished: Finished, G: Tensor, settings: Settings) -> Effects:
    """From S space to the joint space, a few units at a time."""
    parts = []
    for start in range(0, len(slab.neurons), UNITS_AT_ONCE):
        of = slice(start, start + UNITS_AT_ONCE)
        some = Slab(slab.layer, slab.neurons[of])
        parts.append(_summarise_some(paths, some, Finished(*(column[of] for column in finished)), G[of], settings))
    return Effects(*(torch.cat(column) for column in zip(*parts, strict=True)))


def _summarise_some(paths: Paths, slab: Slab, finished: Finished, G: Tensor, settings: Settings) -> Effects:
    D = paths.directions(slab).double()  # (n, k, d)
    X, G = finished.top_x.double(), G.double()
    a, share = principal_coefficients(X, G, settings.components)  # (n, c, k), (n, c)
    shadow = X @ G @ a.transpose(1, 2)  # (n, T, c): the top images' effects along each direction
    majority = (shadow > 0).sum(1) - (shadow < 0).sum(1)
    sign = torch.where(majority != 0, majority.double(), shadow.sum(1)).sign()  # by most of the top images, a tie by their sum
    a = a * torch.where(sign == 0, 1.0, sign)[..., None]
    first = (G @ a[:, 0, :, None])[..., 0]  # (n, k)
    along = torch.einsum("nk,nkj,nj->n", first, finished.moment.double(), first)
    total = (finished.moment.double() * G).sum((1, 2))
    explained_all = torch.where(total > 0, along / total.clamp(min=torch.finfo(torch.float64).tiny), 0.0).clamp(0, 1)
    unit = torch.stack([torch.full_like(slab.neurons, slab.layer), slab.neurons, torch.full_like(slab.neurons, -1)], 1)
    out = finished.top_norm.dtype
    return Effects(
        unit,
        torch.nn.functional.normalize(a @ D, dim=-1).to(out),
        share.to(out),
        explained_all.to(out),
        torch.einsum("nk,nkd->nd", finished.mean, D).to(out),
        finished.top_norm,
        finished.top_image,
        finished.threshold,
    )
