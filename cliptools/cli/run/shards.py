"""Functions that clip-effects, its shards and clip-merge share: numbered images, bundles of effects, and partials in files.

The number of an image is its rank among the sorted names. It is the same in every shard and in a run over all images, in whatever
order the command line names files and folders, so that partials can be merged by number.
"""

import contextlib
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from cliptools.cli.app import Measuring, Output, choose_format
from cliptools.console import count_of, note, warn
from cliptools.effects.factored import FactoredEffect, UnitBlock
from cliptools.effects.select import Choice
from cliptools.errors import CliptoolsError, UsageError
from cliptools.images.loader import Batch, ImageSource, Skipped, Transform, choose, load_batches
from cliptools.images.relocate import thumbnail_tensors
from cliptools.io.bundle import Bundle, json_tensor, with_shares
from cliptools.io.files import binary_output, stdout_is_terminal
from cliptools.io.header import Header
from cliptools.io.shard_file import PartialFile, PartialSpool
from cliptools.models.unusable import Screen
from cliptools.streaming.measure import Effects, Settings
from cliptools.streaming.ranking import TOP_SHARE, canonical_order
from cliptools.streaming.shard_statistics import ShardStatistics
from cliptools.streaming.shards import keep_top_units, omitted_mean

FEW = 300  # images; with fewer images, many numbers of a bundle are rough
LARGE_SHARE = 0.1  # of the images; with a larger T, top images include images on which a unit hardly acts


@dataclass(frozen=True, kw_only=True)
class NumberedImages:
    """Images with numbers that do not depend on the order of their listing; a subset shares numbers and skipped images."""

    source: ImageSource
    indices: Sequence[int]
    """Position in the source of each number."""
    order: Sequence[int]
    """Numbers of the images to read, in the order of reading."""
    reading: Measuring
    """Batch size, workers and strictness."""
    skipped: Skipped = field(default_factory=Skipped)

    @property
    def names(self) -> list[str]:
        """Return the names by number."""
        return [self.source.names[index] for index in self.indices]

    def batches(self, transform: Transform, only: Collection[int] | None = None) -> Iterator[Batch]:
        """Yield numbers and preprocessed pictures [b, 3, y, x] in the order of reading; with `only`, of these numbers alone."""
        number = {index: rank for rank, index in enumerate(self.indices)}
        loaded = load_batches(
            self.source,
            [self.indices[rank] for rank in self.order if only is None or rank in only],
            transform,
            batch_size=self.reading.batch_size,
            workers=self.reading.workers,
            strict=self.reading.strict,
            skipped=self.skipped,
        )
        return (([number[index] for index in indices], pictures) for indices, pictures in loaded)

    def screen(self) -> Screen[int]:
        """Return a screen that excludes images without usable numbers and counts them as skipped."""
        return Screen(lambda number: self.source.names[self.indices[number]], self.skipped.add, self.reading.strict)

    def thumbnails(self, numbers: Iterable[int], side: int) -> dict[str, np.ndarray]:
        """Return tensors with small JPEGs of the images with these numbers."""
        return thumbnail_tensors(self.source, (self.indices[number] for number in numbers), side)


def number_images(source: ImageSource, limit: int | None, sample: int | None, seed: int, reading: Measuring) -> NumberedImages:
    """Return the images that --limit or --sample choose, numbered by name, in an order of reading drawn with the seed."""
    selected = choose(source, limit, sample, seed)
    ranks, order = canonical_order([source.names[i] for i in selected], seed)
    return NumberedImages(source=source, indices=[selected[i] for i in ranks], order=order, reading=reading)


class KeptUnits(NamedTuple):
    """The units that --keep keeps."""

    share: float
    units: Bool[Tensor, " u"]
    """True for a unit that is kept."""
    rest: Float[Tensor, " d"]
    """Mean over the images of the sum of the other units' effects."""


def strongest_units(effect: FactoredEffect, effects: Effects, share: float | None) -> KeptUnits | None:
    """Return the share of units with the largest top norms; None without a share, if all are kept."""
    if share is None:
        return None
    kept = keep_top_units(effects.top_norm, share)
    return KeptUnits(share, kept, omitted_mean(effect, effects, kept))


def bundle_format(options: Output) -> str:
    """Return the output format: that of --format, or the default for this output.

    Raises:
        UsageError: a bundle would be written to a terminal.
    """
    output_format = choose_format(options.output_format, options.output, "safetensors")
    if output_format == "safetensors" and options.output is None and stdout_is_terminal():
        raise UsageError(
            "a bundle is binary and would garble the terminal: redirect it (> FILE), name a file (-o FILE) or ask for -f table"
        )
    return output_format


def statistics_settings(
    choice: Choice, *, top: int | None, quantile: float, components: int, scale: str, gigabytes: float
) -> Settings:
    """Return the settings on which the statistics depend.

    Args:
        top: T; None for the default share of the images.
        scale: `unit` or `raw`.
        gigabytes: Memory for statistics.
    """
    return Settings(
        top=top,
        quantile=quantile,
        components=components,
        scale=scale == "unit",
        memory=gigabytes * 1e9,
        compact=choice.units == "pairs",
        moments=choice.units == "heads",
    )


def recorded_settings(choice: Choice, settings: Settings, images: int) -> dict[str, Any]:
    """Return the settings for a bundle's header; with `top_share` if T was computed from the number of images."""
    record: dict[str, Any] = {"effect": choice.effect, "units": choice.units, "layers": list(choice.layers)}
    record |= {"scale": "unit" if settings.scale else "raw", "quantile": settings.quantile}
    return record | {"top_images": settings.top_of(images)} | ({"top_share": TOP_SHARE} if settings.top is None else {})


def effects_bundle(
    header: Header,
    effects: Effects,
    settings: Settings,
    names: Sequence[str] | Mapping[int, str],
    keep: KeptUnits | None,
    thumbnails: Callable[[Sequence[int]], dict[str, np.ndarray]] | None,
) -> Bundle:
    """Return the bundle of the units that are kept, with the names of the images in their top lists.

    Args:
        names: Names of the images by number.
        keep: None for all units.
        thumbnails: Makes the tensors of small pictures from image numbers; None for a bundle without them.
    """
    if keep is not None:
        header = replace(header, settings=header.settings | {"keep": keep.share, "measured": len(effects.unit)})
        effects = type(effects)(*(column[keep.units.to(column.device)] for column in effects))  # (U, ...) -> (kept, ...)
    tensors = _direction_tensors(effects, settings)
    numbers, top_image = np.unique(effects.top_image.cpu().numpy(), return_inverse=True)  # image numbers -> indices into `images`
    tensors["unit"] = effects.unit.cpu().numpy().astype(np.int32)
    tensors["top_image"] = top_image.reshape(effects.top_image.shape).astype(np.int32)  # (units, T)
    for name in ("top_norm", "threshold", "threshold_bound"):
        tensors[name] = getattr(effects, name).cpu().numpy().astype(np.float32)
    if keep is not None:
        tensors["rest_mean"] = keep.rest.cpu().numpy().astype(np.float32)
    tensors["images"] = json_tensor([names[number] for number in numbers.tolist()])
    if thumbnails is not None:
        tensors |= thumbnails(numbers.tolist())
    return with_shares(Bundle(header, tensors))


def _direction_tensors(effects: Effects, settings: Settings) -> dict[str, np.ndarray]:
    """Return directions, means and explained shares; for pairs, whose directions follow from weights, sign and mean scalar."""
    component, mean = effects.component.cpu().numpy(), effects.mean.cpu().numpy().astype(np.float32)
    if settings.compact:  # pairs have scalars: d is 1
        return {"sign": np.sign(component[:, 0, 0]).astype(np.int8), "mean_scalar": mean[:, 0]}
    explained = effects.component_explained.cpu().numpy().astype(np.float32)  # (units, c)
    tensors = {
        "direction": component[:, 0].astype(np.float32),
        "mean": mean,
        "explained": explained[:, 0],
    }  # (units, c) -> (units,)
    tensors["explained_all"] = effects.explained_all.cpu().numpy().astype(np.float32)
    if settings.components > 1:
        tensors["component"], tensors["component_explained"] = component.astype(np.float32), explained
    if settings.moments:
        tensors["moment"] = effects.moment.cpu().numpy().astype(np.float32)
    return tensors


def warn_of_few_images(images: int, settings: Settings, top: int) -> None:
    """Warn of unreliable numbers in a bundle of few images, or with a T that is a large share of the images.

    Args:
        settings: Settings whose `top` is the T of --top-images, None for the default.
        top: T of the bundle.
    """
    requested = settings.top
    if requested is not None and top >= images > 1:
        warn(f"--top-images {requested}: all {images} images are top images, so `explained` equals `explained_all`")
    elif requested is not None and top > images * LARGE_SHARE:
        warn(
            f"--top-images {requested} is more than a tenth of {count_of(images, 'image')}: "
            "many top images will be ones on which the unit hardly acts"
        )
    if images < FEW:
        note(
            f"{count_of(images, 'image')} {'is' if images == 1 else 'are'} few (fewer than {FEW}): directions and their words "
            "are rough, thresholds rest on a handful of images, and explained shares are too high"
        )


def units_summary(effects: Effects, choice: Choice, keep: KeptUnits | None, model: str) -> str:
    """Return `1536 neurons, 307 kept of emoji-vit, thresholds within 0.9 % (worst 3 %)`; the end if thresholds are bounds."""
    kept_text = "" if keep is None else f", {int(keep.units.sum())} kept"
    summary = f"{len(effects.unit)} {choice.units}{kept_text} of {model}"
    bound = (effects.threshold_bound / effects.threshold.clamp(min=1e-30))[effects.threshold_bound > 0]
    if not len(bound):
        return summary
    return f"{summary}, thresholds within {100 * float(bound.median()):.2g} % (worst {100 * float(bound.max()):.2g} %)"


def read_partial(file: PartialFile, block: UnitBlock) -> ShardStatistics:
    """Return the statistics of a block of units in a partial."""
    fields = ShardStatistics._fields[1:]
    rows = file.rows(block.layer, fields, int(block.neurons[0]), int(block.neurons[-1]) + 1)
    return ShardStatistics(file.count, **{name: torch.from_numpy(rows[name]) for name in fields})


def write_partial(
    parts: Iterable[tuple[UnitBlock, ShardStatistics]],
    units: Callable[[int], int],
    header: Callable[[int], Header],
    names: Callable[[Set[int]], Mapping[int, str]],
    output: Path | None,
) -> int:
    """Write the statistics of all blocks of units as one partial, and return the number of their images.

    Args:
        units: Number of units in a layer.
        header: Makes the header from the number of images.
        names: Names of the images with these numbers.

    Raises:
        CliptoolsError: the statistics of two blocks come from different numbers of images.
    """
    folder = None if output is None or str(output) == "-" else output.parent
    count: int | None = None
    top_images: set[int] = set()
    with contextlib.closing(PartialSpool(folder)) as spool:
        for block, part in parts:
            if count not in (None, part.seen):
                raise CliptoolsError(f"{count_of(count or 0, 'image')} could be read in one pass, {part.seen} in another")
            count = part.seen
            rows = {name: column.numpy() for name, column in zip(part._fields[1:], part[1:], strict=True)}
            spool.add(block.layer, units(block.layer), int(block.neurons[0]), rows)
            top_images.update(part.image.unique().tolist())
        assert count is not None  # every model has units
        spool.add_names(names(top_images))
        text = spool.with_digest(header(count)).to_json()
        with binary_output(output) as stream:
            spool.write(stream, text)
    return count
