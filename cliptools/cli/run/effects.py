"""What clip-effects does with a model and images: the measurement, and the bundle that says what was measured."""

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from cliptools.console import count_of, note, summarise, warn
from cliptools.effects.factored import FactoredEffect
from cliptools.effects.select import Choice, factored_effect
from cliptools.images.loader import ImageSource, Skipped, choose, list_digest, load_batches
from cliptools.images.relocate import thumbnail_tensors
from cliptools.io.bundle import Bundle, json_tensor, with_shares
from cliptools.io.header import Header
from cliptools.models.load import LoadedModel
from cliptools.models.unusable import Screen
from cliptools.streaming.measure import Batches, Effects, Report, Settings, measure
from cliptools.streaming.ranking import TOP_SHARE, canonical_order
from cliptools.streaming.shards import keep_top_units, rest_mean
from cliptools.streaming.vit_indirect import Indirect, cost, draw_sample, keep_all, token_means

TOOL = "clip-effects"
INDIRECT = "indirect"
FEW = 300  # images, below which much of a bundle is rough
LARGE_SHARE = 0.1  # of the images, above which top images are no longer the few on which a unit acts


class Listed(NamedTuple):
    """Images by their names, whatever order the list came in."""

    source: ImageSource
    indices: Sequence[int]
    """Places in the source, by the number that effects know an image by."""
    order: Sequence[int]
    """The numbers, in the order of work."""

    def batches(self, model: LoadedModel, options: dict[str, Any], skipped: Skipped) -> Batches:
        """What the engine reads."""

        number = {index: rank for rank, index in enumerate(self.indices)}

        def read(only: Collection[int] | None) -> Iterator[tuple[list[int], Tensor]]:
            loaded = load_batches(
                self.source,
                [self.indices[rank] for rank in self.order if only is None or rank in only],
                model.transform,
                batch_size=options["batch_size"],
                workers=options["workers"],
                strict=options["strict"],
                skipped=skipped,
            )
            return (([number[index] for index in read], pictures) for read, pictures in loaded)

        return read

    def screen(self, skipped: Skipped, strict: bool) -> Screen[int]:
        """Leaves out images that are not usable, and counts them as skipped."""

        return Screen(lambda number: self.source.names[self.indices[number]], skipped.add, strict)

    @property
    def names(self) -> list[str]:
        """By number."""
        return [self.source.names[index] for index in self.indices]


class Keep(NamedTuple):
    """What --keep leaves."""

    share: float
    units: Tensor
    """Which are kept."""
    rest: Tensor
    """Mean sum of the others' effects [d]."""


class Measured(NamedTuple):
    """A measurement, and the images it is of."""

    report: Report
    listed: Listed
    skipped: Skipped
    keep: Keep | None = None
    token_mean: Tensor | None = None
    """Of indirect effects, the units' mean activations [units, token]."""


def list_images(source: ImageSource, options: dict[str, Any]) -> Listed:
    """The images asked for, by name: a number means the same in whatever order the list came."""

    chosen = choose(source, options["limit"], options["sample"], options["seed"])
    ranked, order = canonical_order([source.names[i] for i in chosen], options["seed"])
    return Listed(source, [chosen[i] for i in ranked], order)


def settings_of(choice: Choice, options: dict[str, Any]) -> Settings:
    """What the statistics depend on."""

    return Settings(
        top=options["top_images"],
        quantile=options["quantile"],
        components=options["components"],
        scale=options["scale"] == "unit",
        memory=options["memory"] * 1e9,
        compact=choice.units == "pairs",
        moments=choice.units == "heads",
    )


def said_of(choice: Choice, options: dict[str, Any]) -> dict[str, Any]:
    """The same, as headers say it."""
    said = {"effect": choice.effect, "units": choice.units, "layers": list(choice.layers), "scale": options["scale"]}
    return said | {"quantile": options["quantile"]}


def top_said(settings: Settings, images: int) -> dict[str, Any]:
    """T of so many images, as headers say it, and the share of the images it follows from, where none was asked for."""

    return {"top_images": settings.top_of(images)} | ({"top_share": TOP_SHARE} if settings.top is None else {})


def measure_bundle(
    model: LoadedModel, source: ImageSource, choice: Choice, options: dict[str, Any], arguments: dict[str, Any]
) -> Bundle:
    """Measure and say what was measured."""

    settings = settings_of(choice, options)
    measured = _measure(model, source, choice, settings, options)
    report = measured.report
    warn_of_few(report.images, settings.top, report.effects.top_norm.shape[1])
    passes = "" if report.passes == 1 else f", {report.passes} passes"
    passes += f", {report.reread} looked at twice" if report.reread else ""
    skips = f", {len(measured.skipped)} skipped" if len(measured.skipped) else ""
    units = units_said(report.effects, choice, measured.keep)
    bounded = threshold_said(report.effects)
    summarise(f"{TOOL}: {count_of(report.images, 'image')}{skips}{passes}, {units} of {model.name}{bounded}")
    return _bundle(measured, model, choice, settings, options, arguments)


def warn_of_few(images: int, asked: int | None, top: int) -> None:
    """Say what a bundle of few images, or with a T that is a large share of them, does not tell.

    Args:
        asked: T as asked for, if it was.
        top: T as it is.
    """

    if asked is not None and top >= images > 1:
        warn(f"--top-images {asked}: all {images} images are top images, so `explained` is `explained_all`, the share over all")
    elif asked is not None and top > images * LARGE_SHARE:
        warn(
            f"--top-images {asked} is more than a tenth of {count_of(images, 'image')}: top images are no "
            f"longer those on which a unit acts"
        )
    if images < FEW:
        note(
            f"{count_of(images, 'image')} {'is' if images == 1 else 'are'} few (below {FEW}): directions and "
            f"their words are rough, "
            "thresholds rest on a handful of "
            "images, shares explained are too high"
        )


def threshold_said(effects: Effects) -> str:
    """`, thresholds within 0.9 % (worst 3 %)`, where they are bounded and not exact."""
    share = (effects.threshold_bound / effects.threshold.clamp(min=1e-30))[effects.threshold_bound > 0]
    if not len(share):
        return ""
    return f", thresholds within {100 * float(share.median()):.2g} % (worst {100 * float(share.max()):.2g} %)"


def units_said(effects: Effects, choice: Choice, keep: Keep | None) -> str:
    """`1536 neurons`, and how many of them are kept."""
    return f"{len(effects.unit)} {choice.units}" + ("" if keep is None else f", {int(keep.units.sum())} kept")


def _measure(model: LoadedModel, source: ImageSource, choice: Choice, settings: Settings, options: dict[str, Any]) -> Measured:
    """Images into statistics."""

    listed, skipped = list_images(source, options), Skipped()
    batches, screen = listed.batches(model, options, skipped), listed.screen(skipped, options["strict"])
    expected = len(listed.indices)

    def look() -> tuple[Any, Report]:
        if choice.effect == INDIRECT:
            paths, own = _indirect(model, batches, choice.layers, expected, settings, options, screen)
        else:
            paths, own = factored_effect(model.clip, choice.effect, choice.units), settings
        return paths, measure(paths, batches, choice.layers, expected, own, screen)

    paths, report = screen.again(look)
    measured = Measured(report, listed, skipped)
    if choice.effect == INDIRECT:
        measured = measured._replace(token_mean=torch.cat([paths.means[layer].T for layer in choice.layers]))
    return measured._replace(keep=keep_strongest(paths, report.effects, options["keep"]))


def keep_strongest(paths: FactoredEffect, effects: Effects, share: float | None) -> Keep | None:
    """The units that act most; None for all."""

    if share is None:
        return None
    kept = keep_top_units(effects.top_norm, share)
    return Keep(share, kept, rest_mean(paths, effects, kept))


def _indirect(
    model: LoadedModel,
    batches: Batches,
    layers: Sequence[int],
    expected: int,
    settings: Settings,
    options: dict[str, Any],
    screen: Screen[int],
) -> tuple[Any, Settings]:
    """Means of activations, which indirect effects need first; and how much to keep of the effects to come."""

    visual = model.clip.visual
    sample = draw_sample(visual, layers, options["sample_neurons"], options["seed"])
    note(f"{TOOL}: {cost(visual, sample, expected)}")
    paths = Indirect(visual, sample, token_means(visual, batches(None), sample, expected, screen), expected)
    return paths, settings._replace(margin=keep_all(paths, layers, expected, settings))


def _bundle(
    measured: Measured,
    model: LoadedModel,
    choice: Choice,
    settings: Settings,
    options: dict[str, Any],
    arguments: dict[str, Any],
) -> Bundle:
    """What was measured, as DESIGN's table of names has it."""

    keep, token_mean = measured.keep, measured.token_mean
    if token_mean is not None and keep is not None:
        token_mean = token_mean[keep.units.to(token_mean.device)]
    names = measured.listed.names
    images = {"count": measured.report.images, "digest": list_digest(names), "skipped": len(measured.skipped)}
    said = said_of(choice, options) | top_said(settings, measured.report.images)
    header = Header("effects", model.identity, images, said).after(TOOL, arguments)
    thumbnails = thumbnailer(measured.listed, options["thumbnails"])
    bundle = effects_bundle(header, measured.report.effects, settings, names, keep, thumbnails)
    if token_mean is None:
        return bundle
    return bundle.with_tensors(bundle.header, token_mean=token_mean.cpu().numpy().astype(np.float32))


def effects_bundle(
    header: Header,
    effects: Effects,
    settings: Settings,
    names: Sequence[str] | Mapping[int, str],
    keep: Keep | None,
    thumbnails: Callable[[Sequence[int]], dict[str, np.ndarray]] | None,
) -> Bundle:
    """Tensors of the units to be kept, and of their top images the names.

    Args:
        names: Of the images, by number.
        keep: None for all units.
        thumbnails: Makes tensors of the images with these numbers.
    """

    if keep is not None:
        header = replace(header, settings=header.settings | {"keep": keep.share, "measured": len(effects.unit)})
        effects = type(effects)(*(column[keep.units.to(column.device)] for column in effects))
    tensors = _directions(effects, settings)
    seen, top_image = np.unique(effects.top_image.cpu().numpy(), return_inverse=True)
    tensors["unit"] = effects.unit.cpu().numpy().astype(np.int32)
    tensors["top_image"] = top_image.reshape(effects.top_image.shape).astype(np.int32)
    for name in ("top_norm", "threshold", "threshold_bound"):
        tensors[name] = getattr(effects, name).cpu().numpy().astype(np.float32)
    if keep is not None:
        tensors["rest_mean"] = keep.rest.cpu().numpy().astype(np.float32)
    tensors["images"] = json_tensor([names[i] for i in seen.tolist()])
    if thumbnails is not None:
        tensors |= thumbnails(seen.tolist())
    return with_shares(Bundle(header, tensors))


def thumbnailer(listed: Listed, side: int | None) -> Callable[[Sequence[int]], dict[str, np.ndarray]] | None:
    """Thumbnails of images by their numbers; None where none are asked for."""

    if side is None:
        return None
    return lambda numbers: thumbnail_tensors(listed.source, (listed.indices[i] for i in numbers), side)


def _directions(effects: Effects, settings: Settings) -> dict[str, np.ndarray]:
    """Directions, means and shares; of pairs, whose directions are the weights', the sign and the mean of the scalar."""

    component, mean = effects.component.cpu().numpy(), effects.mean.cpu().numpy().astype(np.float32)
    if settings.compact:
        return {"sign": np.sign(component[:, 0, 0]).astype(np.int8), "mean_scalar": mean[:, 0]}
    explained = effects.component_explained.cpu().numpy().astype(np.float32)
    tensors = {"direction": component[:, 0].astype(np.float32), "mean": mean, "explained": explained[:, 0]}
    tensors["explained_all"] = effects.explained_all.cpu().numpy().astype(np.float32)
    if settings.components > 1:
        tensors["component"], tensors["component_explained"] = component.astype(np.float32), explained
    if settings.moments:
        tensors["moment"] = effects.moment.cpu().numpy().astype(np.float32)
    return tensors
