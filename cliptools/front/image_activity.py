"""Two numbers of every unit on every image, for statistics of one's own: clip-effects --per-image.

    activity = a_n(I) = <phi_n(I) - b_n, r_n>        norm = ||phi_n(I) - b_n||

b_n and r_n are known after the last image only, so the images are read again; `UnitActivity` (unit_effects/factored.py) computes
both numbers. Rows are kept in a temporary file until all are there, so that memory does not grow with the number of images.
"""

import contextlib
from collections.abc import Iterable, Sequence
from io import BufferedIOBase
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from cliptools.console import count_of, progress
from cliptools.devices import in_halves
from cliptools.errors import CliptoolsError, UsageError
from cliptools.io.bundle import Bundle, json_tensor
from cliptools.io.header import Header
from cliptools.io.jsonl import unit_name
from cliptools.io.spools import TensorSpool
from cliptools.streaming.measure import check_same
from cliptools.unit_effects.factored import FactoredEffect, UnitActivity
from cliptools.unit_effects.pairs import PairEffect, pair_means, unit_directions

KIND = "activity"


def check_memory(effect: FactoredEffect, layers: Sequence[int], d: int, memory: float) -> None:
    """Check that the coefficients of all units fit into the memory: with K paths, K min(K, d) + K numbers a unit.

    Args:
        d: Dimensions of the joint space.
        memory: Bytes.

    Raises:
        UsageError: they do not.
    """
    sizes = [effect.size(layer) for layer in layers]
    size = sum(4 * n * k * (min(k, d) + 1) for n, k in sizes)
    if size > memory:
        units = count_of(sum(n for n, _ in sizes), "unit")
        raise UsageError(
            f"--per-image: {units} need {size / 1e9:.2g} GB while the images are read again, --memory is {memory / 1e9:.2g}; "
            "choose fewer --layers, or more --memory"
        )


def activity_of(effect: FactoredEffect, bundle: Bundle) -> UnitActivity:
    """Return the function from images to norms and activities of a bundle's units.

    Args:
        effect: The effect that the bundle was measured with.
    """
    unit = torch.from_numpy(bundle["unit"]).long()
    if isinstance(effect, PairEffect):
        r = unit_directions(effect, unit, torch.from_numpy(bundle["sign"]))
        b = pair_means(effect, unit, torch.from_numpy(bundle["mean_scalar"]))
    else:
        b, r = (torch.from_numpy(bundle[name]) for name in ("mean", "direction"))
    return UnitActivity(effect, unit, b, r, bundle.header.scaled)


def write_activity(
    stream: BufferedIOBase,
    folder: Path,
    bundle: Bundle,
    activity: UnitActivity,
    batches: Iterable[tuple[list[int], Tensor]],
    numbers: Int[np.ndarray, " i"],
    names: Sequence[str],
) -> None:
    """Write norms and activities of a bundle's units on its images as safetensors.

    Args:
        folder: Folder of the temporary file.
        batches: The images again; others among them are left out.
        numbers: Numbers of the images that the bundle was measured on, ascending.
        names: Names of all images by number.

    Raises:
        CliptoolsError: images have changed meanwhile, or a number does not fit into float16.
    """
    row_of = {number: row for row, number in enumerate(numbers.tolist())}
    count = 0
    with contextlib.closing(TensorSpool(folder)) as spool:
        shown = progress(batches, "images again", len(numbers), lambda batch: len(batch[0]))
        for images, result in in_halves(shown, lambda _, pictures: activity(pictures)):
            places = [place for place, image in enumerate(images) if image in row_of]
            for name, values in (("activity", result.along), ("norm", result.norm)):
                half = _half(values[places], bundle, [names[images[place]] for place in places])
                for place, row in zip(places, half, strict=True):
                    spool.put(name, len(numbers), row_of[images[place]], row[None])
            count += len(places)
        check_same(count, len(numbers))
        spool.put("unit", bundle.units, 0, bundle["unit"])
        listed = json_tensor([names[number] for number in numbers.tolist()])
        spool.put("names", len(listed), 0, listed)
        header = bundle.header
        spool.write(stream, Header(KIND, header.model, header.images, header.settings, header.history).to_json())


def _half(values: Float[Tensor, "b u"], bundle: Bundle, names: Sequence[str]) -> np.ndarray:
    """Return the numbers of some images in float16.

    Raises:
        CliptoolsError: a number is too large, or not finite.
    """
    half = values.half().cpu().numpy()
    if len(wrong := np.argwhere(~np.isfinite(half))):
        image, unit = wrong[0]
        raise CliptoolsError(
            f"--per-image: {float(values[image, unit]):g} for unit {unit_name(*bundle['unit'][unit].tolist())} on {names[image]} "
            "does not fit into float16, whose largest number is 65504; try --scale unit"
        )
    return half
