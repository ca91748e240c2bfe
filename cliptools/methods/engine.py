"""From images to statistics of effects: the one pass that every factored effect goes through.

An effect is factored when phi_n(I) = sum over k of S[n, k](I) D[n, k, :], the image in S and the weights in D. What S and D
are is the business of `Paths`; this file knows only that D is too large to be whole and S too large to be kept.
"""

import itertools
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from cliptools.ground.counted import count_of
from cliptools.ground.double_precision import exact, home
from cliptools.ground.errors import CliptoolsError
from cliptools.ground.halving import in_halves
from cliptools.ground.progress import note, progress
from cliptools.ground.unusable import Screen, unusable
from cliptools.methods.passes import MOST_TOP, at_once, margin_for, pass_label, plan, top_count
from cliptools.methods.paths import Paths, Slab, gram_of, scale_of, slices
from cliptools.methods.principal import principal_coefficients, signs
from cliptools.methods.statistics import Finished, UnitStatistics
from cliptools.methods.symmetric import SymmetricStack

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

    slab: Slab
    """Where they come from,"""
    rows: Int[Tensor, "r"]
    """and which of its units they are."""
    statistics: UnitStatistics
    images: Collection[int] | None
    """The images to look at again; None: all of them."""


def measure(
    paths: Paths,
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
    paths: Paths,
    batches: Iterator[tuple[list[int], Tensor]],
    slabs: Sequence[Slab],
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

    def __init__(self, paths: Paths, layers: Sequence[int], settings: Settings) -> None:
        self.paths, self.settings = paths, settings
        self.parts: dict[int, list[tuple[Slab, Effects]]] = {layer: [] for layer in layers}
        self.unsettled: list[Unsettled] = []

    @property
    def uncertain(self) -> int:
        """How many units' top images one pass could not certify."""
        return sum(len(each.rows) for each in self.unsettled)

    def take(self, slab: Slab, measured: UnitStatistics) -> None:
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
        slabs = [Slab(each.slab.layer, each.slab.neurons[each.rows.to(each.slab.neurons.device)]) for each in self.unsettled]
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


def gram_stack(paths: Paths, slab: Slab) -> SymmetricStack:
    """G = D D^T of every unit, a few units at a time."""
    n, k = len(slab.neurons), paths.size(slab.layer)[1]
    G = None
    for of in slices(n, k):
        part = home(gram_of(paths, slab._replace(neurons=slab.neurons[of])))
        G = SymmetricStack(n, k, part) if G is None else G
        G.put(of, part)
    assert G is not None  # a slab has units
    return G


def summarise(paths: Paths, slab: Slab, finished: Finished, measured: UnitStatistics, settings: Settings) -> Effects:
    """From S space to the joint space, a few units at a time."""
    parts = []
    for of in slices(len(slab.neurons), measured.G.k):
        some = Slab(slab.layer, slab.neurons[of])
        part = Finished(*(column[of] for column in finished))
        moment = measured.moment.full(of) / measured.count
        parts.append(_summarise_some(paths, some, part, measured.G.full(of), moment, settings))
    return Effects(*(torch.cat(column) for column in zip(*parts, strict=True)))


def _summarise_some(paths: Paths, slab: Slab, finished: Finished, G: Tensor, moment: Tensor, settings: Settings) -> Effects:
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
