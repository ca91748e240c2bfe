"""How much is held at once: images kept beyond those wanted, units in a pass over the images, images that wait together.

From images to statistics of effects: the one pass that every factored effect goes through.

An effect is factored when phi_n(I) = sum over k of S[n, k](I) D[n, k, :], the image in S and the weights in D. What S and D
are is the business of `FactoredEffect`; this file knows only that D is too large to be whole and S too large to be kept.
"""

import itertools
import math
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from cliptools.console import count_of, note, progress
from cliptools.devices import exact, home, in_halves
from cliptools.effects.factored import UNITS_AT_ONCE, FactoredEffect, UnitBlock, gram_of, scale_of, slices
from cliptools.errors import CliptoolsError
from cliptools.models.unusable import Screen, unusable
from cliptools.streaming.principal import SymmetricStack, principal_coefficients, signs
from cliptools.streaming.ranking import rank_of
from cliptools.streaming.statistics import Finished, UnitStatistics

TOP_SHARE, LEAST_TOP, MOST_TOP = 0.02, 10, 100
EXACT = 200  # the largest rank of a threshold for which more images are kept, so that it is exact
CHEAP = 3e7  # bytes of kept images that nobody misses
WAITING = 24_000_000  # scalars that may wait to be taken in together
TOGETHER = 96, 512  # images that wait at least, and at most: what is made of them must stay small beside the lists
AMPLE = 2  # times T kept beyond T, where memory allows: every list is certified then, or nearly
ENOUGH = 1.5  # times T, where passes are many anyhow: one more of them costs less than a second look at all images


def top_count(images: int) -> int:
    """T where none is asked for: 2 % of the images, within 10 and 100, and below their number.

    An effect's tail is heavy: the images on which a unit acts are few of many (paper 1: 100 of 5,000).

    >>> [top_count(images) for images in (10_000, 5000, 2000, 501, 60, 8, 1)]
    [100, 100, 40, 11, 10, 7, 1]
    """
    share = math.ceil(TOP_SHARE * images - 1e-6)
    return max(1, min(max(share, LEAST_TOP), MOST_TOP, images - 1))


def margin_for(
    paths: FactoredEffect, layers: Sequence[int], expected: int, top: int, memory: float, quantile: float | None = None
) -> int:
    """Images kept beyond T, so that few lists need a second pass: what is cheap, else what the memory leaves room for.

    Of few images that may be all there are; then there is nothing to certify.

    Args:
        expected: The number of images to come, roughly.
        top: T, images wanted per unit.
        memory: Bytes of statistics to hold at once.
        quantile: q of a threshold that is to be exact where that takes few images more.
    """
    sizes = [paths.size(layer) for layer in layers]
    least = max(16, top // 2)
    fixed = sum(n * UnitStatistics.bytes_per_unit(k, top) for n, k in sizes)
    each = sum(n * UnitStatistics.bytes_per_unit(k, 1) for n, k in sizes) - sum(
        n * UnitStatistics.bytes_per_unit(k, 0) for n, k in sizes
    )
    room = int((memory - fixed) // each)
    if room < least:
        least = min(int(ENOUGH * top), expected)
    rank = 0 if quantile is None else rank_of(quantile, expected)
    for_threshold = rank + max(16, rank // 2) - top if rank <= EXACT else 0
    wanted = max(int(AMPLE * top), for_threshold)
    return max(least, min(expected - top, max(int(CHEAP // each), min(room, wanted))))


def plan(paths: FactoredEffect, layers: Sequence[int], kept: int, memory: float) -> list[list[UnitBlock]]:
    """Slabs for each pass over the images, so that no pass holds more statistics than the memory allowed.

    Args:
        kept: Images kept per unit.
        memory: Bytes of statistics to hold at once.
    """
    passes: list[list[UnitBlock]] = [[]]
    free = memory
    for layer in layers:
        n, k = paths.size(layer)
        each = UnitStatistics.bytes_per_unit(k, kept)
        start = 0
        while start < n:
            fit = min(n - start, int(free // each))
            if fit < min(n - start, UNITS_AT_ONCE) and passes[-1]:
                passes.append([])
                free = memory
                continue
            fit = max(1, fit)
            passes[-1].append(UnitBlock(layer, torch.arange(start, start + fit)))
            start, free = start + fit, free - fit * each
    return passes


def at_once(paths: FactoredEffect, slabs: Sequence[UnitBlock]) -> int:
    """Images whose scalars may wait together."""
    least, most = TOGETHER
    return min(most, max(least, WAITING // sum(len(slab.neurons) * paths.size(slab.layer)[1] for slab in slabs)))


def pass_label(number: int, passes: int) -> str:
    """What a bar says of a pass over the images."""
    return "images" if passes == 1 else f"images, pass {number + 1} of {passes}"


Batches = Callable[[Collection[int] | None], Iterator[tuple[list[int], Tensor]]]
"""Image numbers and preprocessed pictures [b, 3, y, x], of these images or of all, always in the same order."""


class Settings(NamedTuple):
    """What the statistics depend on."""

    top: int | None = None
    """T; None: as many as top_count says of the images read."""
    quantile: float = 0.98
    components: int = 1
    scale: bool = True
    """Multiply effects by 100 / ||M(I)||."""
    memory: float = 4e9
    """Bytes of statistics to hold at once; layers that do not fit together take further passes."""
    margin: int | None = None
    compact: bool = False
    """Leave directions and means as coefficients of the rows of D: no vector of the joint space is formed."""
    moments: bool = False
    """Keep the second moments of S, K numbers squared a unit."""

    def top_of(self, images: int) -> int:
        """T of so many images."""
        return top_count(images) if self.top is None else self.top

    def held(self, listed: int) -> int:
        """Top images held of a list of so many, of which fewer may be read: the most that T can be."""
        return min(MOST_TOP, listed) if self.top is None else self.top


class Effects(NamedTuple):
    """Statistics of U units, in the order of the layers asked for. Where compact, d is K."""

    unit: Int[Tensor, "u 3"]
    component: Float[Tensor, "u c d"]
    component_explained: Float[Tensor, "u c"]
    explained_all: Float[Tensor, "u"]
    mean: Float[Tensor, "u d"]
    top_norm: Float[Tensor, "u T"]
    top_image: Int[Tensor, "u T"]
    threshold: Float[Tensor, "u"]
    threshold_bound: Float[Tensor, "u"]
    moment: Float[Tensor, "u k_or_0 k_or_0"]
    """Mean of x^T x over the images, x = S less its mean; empty unless asked for."""


class Report(NamedTuple):
    """How the measurement went."""

    effects: Effects
    images: int
    passes: int
    """Over all images; more than one where the statistics do not fit into the memory allowed together."""
    redone: int
    """Units whose top images one pass could not certify and a second look settled."""
    reread: int
    """Images looked at again for these."""


class Unsettled(NamedTuple):
    """Units whose top images are not certain yet."""

    slab: UnitBlock
    """Where they come from,"""
    rows: Int[Tensor, "r"]
    """and which of its units they are."""
    statistics: UnitStatistics
    images: Collection[int] | None
    """The images to look at again; None: all of them."""


def measure(
    paths: FactoredEffect,
    batches: Batches,
    layers: Sequence[int],
    expected: int,
    settings: Settings,
    screen: Screen[int] | None = None,
) -> Report:
    """Statistics of all units of the layers, exact, in one forward pass an image wherever one can certify them.

    Args:
        expected: The number of images that `batches` will bring, skipped ones included.
        screen: Leaves out images that are not usable; to be called by its `again`. None: such an image is an error.

    Raises:
        CliptoolsError: no image could be read, or not as many in a further pass or look as before; or one that is not usable.
        SpoiltError: a later look has found that an image is not usable.
    """
    screen = Screen() if screen is None else screen
    top, margin = settings.top_of(expected), settings.margin
    if margin is None:
        held = settings.held(expected)
        margin = margin_for(paths, layers, expected, held, settings.memory, settings.quantile) + held - top
    measurement = Measurement(paths, layers, settings)
    passes = plan(paths, layers, top + margin, settings.memory)
    count = 0
    for number, slabs in enumerate(passes):
        label = pass_label(number, len(passes))
        statistics = [
            UnitStatistics(
                gram_stack(paths, slab),
                top,
                expected,
                settings.quantile,
                margin,
                at_once=at_once(paths, slabs),
            )
            for slab in slabs
        ]
        looked = read_images(paths, batches(None), slabs, statistics, settings, label, expected, screen)
        screen.require(looked)
        screen.end_look()
        check_same(looked, count or looked)
        count = looked
        for slab in slabs:
            measurement.take(slab, statistics.pop(0))  # and let go of it: the next slab's summary needs the room
    redone = measurement.uncertain
    reread = measurement.settle(batches, count, screen) if redone else 0
    return Report(measurement.effects(), count, len(passes), redone, reread)


def check_same(found: int, before: int) -> None:
    """Every look must have seen the same images, or statistics are of none of them.

    Raises:
        CliptoolsError: images have come, gone or been damaged meanwhile.
    """
    if found != before:
        raise CliptoolsError(f"images changed while they were looked at: {before} could be read, then {found}; run again")


def read_images(
    paths: FactoredEffect,
    batches: Iterator[tuple[list[int], Tensor]],
    slabs: Sequence[UnitBlock],
    statistics: Sequence[UnitStatistics],
    settings: Settings,
    label: str,
    expected: int,
    screen: Screen[int],
) -> int:
    """Images into the statistics of these slabs, but for those that are not usable; how many there were."""
    count = 0
    shown = progress(batches, label, expected, lambda batch: len(batch[0]))
    for images, scalars in in_halves(shown, lambda _, pictures: _begun(*paths.read(pictures, slabs))):
        count += take_in(statistics, images, *scalars, settings.scale, screen)
    return count


def _begun(
    S: Iterable[Float[Tensor, "b _ _"]], embedding: Float[Tensor, "b d"]
) -> tuple[Iterator[Float[Tensor, "b _ _"]], Float[Tensor, "b d"]]:
    """The same, of the first slab made already: if that needs too much memory nothing has been taken in yet."""
    scalars = map(home, S)
    return itertools.chain([next(scalars)], scalars), home(embedding)


def take_in(
    statistics: Sequence[UnitStatistics],
    images: Sequence[int],
    S: Iterable[Float[Tensor, "b _ _"]],
    embedding: Float[Tensor, "b d"],
    scaled: bool,
    screen: Screen[int],
) -> int:
    """One batch of images into the statistics of as many slabs as S has; how many of them are usable."""
    scale = scale_of(embedding, scaled)
    numbers = torch.tensor(images, device=embedding.device)
    stay: Sequence[int] = ()
    for number, (slab, scalars) in enumerate(zip(statistics, S, strict=True)):
        stay = screen.places(images, unusable(embedding, scalars, scale=scale), taken=number > 0)
        if len(stay) == len(images):
            slab.update(scalars, numbers, scale)
        elif stay:
            rows = torch.tensor(stay, device=embedding.device)
            slab.update(scalars[rows], numbers[rows], scale[rows])
    return len(stay)


class Measurement:
    """Statistics of slab after slab, brought to the joint space; and what a second look has to settle."""

    def __init__(self, paths: FactoredEffect, layers: Sequence[int], settings: Settings) -> None:
        self.paths, self.settings = paths, settings
        self.parts: dict[int, list[tuple[UnitBlock, Effects]]] = {layer: [] for layer in layers}
        self.unsettled: list[Unsettled] = []

    @property
    def uncertain(self) -> int:
        """How many units' top images one pass could not certify."""
        return sum(len(each.rows) for each in self.unsettled)

    def take(self, slab: UnitBlock, measured: UnitStatistics) -> None:
        """A slab that has seen all images."""
        measured.take_all()  # T follows from their number
        finished = measured.finish(self.settings.top_of(measured.count))
        self.parts[slab.layer].append((slab, summarise(self.paths, slab, finished, measured, self.settings)))
        rows = (~finished.certified).nonzero()[:, 0]
        if len(rows):
            doubtful = finished.doubtful[rows]
            images = None if finished.beyond.any() else set(doubtful[doubtful >= 0].tolist())
            self.unsettled.append(Unsettled(slab, rows, measured.again(rows), images))

    def settle(self, batches: Batches, count: int, screen: Screen[int]) -> int:
        """A second look at the images in doubt: with the mean known, lists need no certificate. How many images it took."""
        images: set[int] | None = set()
        for each in self.unsettled:
            images = None if images is None or each.images is None else images | set(each.images)
        for each in self.unsettled:
            each.statistics.forget(None if images is None else torch.tensor(sorted(images), device=each.rows.device))
        looked = "all images" if images is None else count_of(len(images), "image")
        note(f"a second look at {looked} is needed for {count_of(self.uncertain, 'unit')}")
        slabs = [UnitBlock(each.slab.layer, each.slab.neurons[each.rows.to(each.slab.neurons.device)]) for each in self.unsettled]
        statistics, total = [each.statistics for each in self.unsettled], count if images is None else len(images)
        if images is not None:
            screen.end_look()  # these have all been taken in
        reread = read_images(self.paths, batches(images), slabs, statistics, self.settings, "second look", total, screen)
        screen.end_look()
        check_same(reread, total)
        for each, part in zip(self.unsettled, slabs, strict=True):
            finished = each.statistics.finish(self.settings.top_of(each.statistics.count))
            again = summarise(self.paths, part, finished, each.statistics, self.settings)
            (old,) = (effects for slab, effects in self.parts[each.slab.layer] if slab is each.slab)
            for before, after in zip(old, again, strict=True):
                before[each.rows.to(before.device)] = after
        return reread

    def effects(self) -> Effects:
        """Of all units, in the order of the layers."""
        of = [part for parts in self.parts.values() for _, part in parts]
        return Effects(*(torch.cat(column) for column in zip(*of, strict=True)))


def gram_stack(paths: FactoredEffect, slab: UnitBlock) -> SymmetricStack:
    """G = D D^T of every unit, a few units at a time."""
    n, k = len(slab.neurons), paths.size(slab.layer)[1]
    G = None
    for of in slices(n, k):
        part = home(gram_of(paths, slab._replace(neurons=slab.neurons[of])))
        G = SymmetricStack(n, k, part) if G is None else G
        G.put(of, part)
    assert G is not None  # a slab has units
    return G


def summarise(
    paths: FactoredEffect, slab: UnitBlock, finished: Finished, measured: UnitStatistics, settings: Settings
) -> Effects:
    """From S space to the joint space, a few units at a time."""
    parts = []
    for of in slices(len(slab.neurons), measured.G.k):
        some = UnitBlock(slab.layer, slab.neurons[of])
        part = Finished(*(column[of] for column in finished))
        moment = measured.moment.full(of) / measured.count
        parts.append(_summarise_some(paths, some, part, measured.G.full(of), moment, settings))
    return Effects(*(torch.cat(column) for column in zip(*parts, strict=True)))


def _summarise_some(
    paths: FactoredEffect, slab: UnitBlock, finished: Finished, G: Tensor, moment: Tensor, settings: Settings
) -> Effects:
    X, G, moment = finished.top_x.double(), G.double(), moment.double()
    a, share = principal_coefficients(X, G, settings.components)  # (n, c, k), (n, c)
    a = a * signs(X @ G @ a.transpose(1, 2))[..., None]
    first = (G @ a[:, 0, :, None])[..., 0]  # (n, k)
    along = torch.einsum("nk,nkj,nj->n", first, moment, first)
    total = (moment * G).sum((1, 2))
    explained_all = torch.where(total > 0, along / total.clamp(min=torch.finfo(torch.float64).tiny), 0.0).clamp(0, 1)
    component, mean = a, finished.mean
    if not settings.compact:
        D = exact(paths.directions(slab))  # (n, k, d)
        component = torch.nn.functional.normalize(a @ D, dim=-1)
        mean = torch.einsum("nk,nkd->nd", mean, D)
    out = finished.top_norm.dtype
    return Effects(
        paths.units(slab.layer)[slab.neurons.cpu()],
        component.to(out),
        share.to(out),
        explained_all.to(out),
        mean.to(out),
        finished.top_norm,
        finished.top_image,
        finished.threshold,
        finished.threshold_bound,
        moment.to(out) if settings.moments else finished.threshold.new_zeros(len(moment), 0, 0),
    )
