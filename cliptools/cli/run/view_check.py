"""Whether a bundle can be what it says: beyond what every consumer relies on, all that its tensors mean."""

import itertools
from collections.abc import Callable, Iterator

import numpy as np

from cliptools.console import count_of
from cliptools.errors import ImageError
from cliptools.images.relocate import thumbnail
from cliptools.io.bundle import Bundle
from cliptools.io.bundle_faults import faults
from cliptools.io.jsonl import unit_name

ROUNDING = 1e-3  # of a length or a share, in float32 and after sums of many


def flaws(bundle: Bundle) -> list[str]:
    """Everything that is wrong; nothing of a sound bundle."""
    found = list(faults(bundle.tensors))
    return found or list(itertools.chain.from_iterable(look(bundle) for look in LOOKS))


def _units(bundle: Bundle) -> Iterator[str]:
    once, count = np.unique(bundle["unit"], axis=0, return_counts=True)
    if (count > 1).any():
        yield f"{(count > 1).sum()} units stand there twice, as {unit_name(*once[count > 1][0].tolist())}"


def _lengths(bundle: Bundle) -> Iterator[str]:
    for name in ("direction", "component"):
        if name in bundle:
            length = np.linalg.norm(bundle[name].astype(np.float64), axis=-1)
            yield from _where(bundle, (np.abs(length - 1) > ROUNDING) & (length > 0), f"`{name}` has neither length 1 nor 0")


def _shares(bundle: Bundle) -> Iterator[str]:
    for name in ("explained", "explained_all", "component_explained", "residual", "prefix_residual"):
        if name in bundle:
            yield from _where(bundle, (bundle[name] < -ROUNDING) | (bundle[name] > 1 + ROUNDING), f"`{name}` is no share of 1")


def _norms(bundle: Bundle) -> Iterator[str]:
    for name in ("top_norm", "threshold", "threshold_bound"):
        if name in bundle:
            known = bundle["top_image"] >= 0 if name == "top_norm" and "top_image" in bundle else True
            yield from _where(bundle, (bundle[name] < 0) & known, f"`{name}` is negative")
    if "top_norm" in bundle:
        yield from _where(bundle, np.diff(bundle["top_norm"], axis=1) > 0, "`top_norm` does not descend")


def _lists(bundle: Bundle) -> Iterator[str]:
    for name, what in (("top_image", "an image"), ("word", "a text")):
        if name in bundle:
            rows = np.sort(bundle[name], axis=1)
            yield from _where(bundle, (np.diff(rows, axis=1) == 0) & (rows[:, 1:] >= 0), f"`{name}` has {what} twice")
            gap = (bundle[name][:, :-1] < 0) & (bundle[name][:, 1:] >= 0)
            yield from _where(bundle, gap, f"`{name}` goes on after its end, -1")
    if "word" in bundle and "coefficient" in bundle:
        surplus = (bundle["word"] < 0) & (bundle["coefficient"] != 0)
        yield from _where(bundle, surplus, "`coefficient` is not 0 where there is no text")


def _images(bundle: Bundle) -> Iterator[str]:
    if "images" not in bundle:
        return
    names = bundle.text_list("images")
    if len(set(names)) < len(names):
        yield f"`images` has {count_of(len(names) - len(set(names)), 'name')} twice"
    if "thumbnails" not in bundle:
        return
    offsets = bundle["thumbnail_offsets"]
    if len(offsets) != len(names) + 1:
        yield f"{count_of(len(offsets) - 1, 'thumbnail')} of {count_of(len(names), 'image')}"
    for number in range(len(offsets) - 1):
        try:
            thumbnail(bundle["thumbnails"], offsets, number)
        except ImageError:
            yield f"thumbnail {number} is no picture"
            return


LOOKS: tuple[Callable[[Bundle], Iterator[str]], ...] = (_units, _lengths, _shares, _norms, _lists, _images)


def _where(bundle: Bundle, wrong: np.ndarray, what: str) -> Iterator[str]:
    """A line, if any unit is so, with the number of these and the first."""
    units = np.flatnonzero(wrong.reshape(len(wrong), -1).any(1))
    if len(units):
        yield f"{what}: {len(units)} of {count_of(bundle.units, 'unit')}, as {unit_name(*bundle['unit'][units[0]].tolist())}"
