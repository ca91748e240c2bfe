"""From statistics of units to a bundle: settings as its header records them, the units that are kept, and its tensors.

Bundles of pairs lack directions, which `with_directions` adds from the weights of their model.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from cliptools.console import count_of, note, warn
from cliptools.io.bundle import Bundle, json_tensor, with_shares
from cliptools.io.header import Header
from cliptools.models.load import LoadedModel, hand_over, load_recorded_model
from cliptools.streaming.embeddings import Embeddings, read_directions
from cliptools.streaming.ranking import TOP_SHARE
from cliptools.streaming.shards import keep_top_units, omitted_mean
from cliptools.streaming.summary import Effects, Settings
from cliptools.unit_effects.factored import FactoredEffect
from cliptools.unit_effects.pairs import PairEffect, pair_means, unit_directions
from cliptools.unit_effects.select import Choice, pair_effect

FEW = 300  # images; with fewer images, many numbers of a bundle are rough
LARGE_SHARE = 0.1  # of the images; with a larger T, top images include images on which a unit hardly acts


class KeptUnits(NamedTuple):
    """The units that --keep keeps."""

    share: float
    units: Bool[Tensor, " u"]
    """True for a unit that is kept."""
    rest: Float[Tensor, " d"]
    """Mean over the images of the sum of the other units' effects."""


def directions_of(effect: FactoredEffect, effects: Effects) -> Float[Tensor, "u d"]:
    """Return r of units; for pairs, whose statistics are scalars, from the weights."""
    if isinstance(effect, PairEffect):
        return unit_directions(effect, effects.unit.cpu(), effects.component[:, 0, 0].sign().to(torch.int8).cpu())
    return effects.component[:, 0]


def strongest_units(effect: FactoredEffect, effects: Effects, share: float | None) -> KeptUnits | None:
    """Return the share of units with the largest top norms; None without a share, if all are kept."""
    if share is None:
        return None
    kept = keep_top_units(effects.top_norm, share)
    return KeptUnits(share, kept, omitted_mean(effect, effects, kept))


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
    if choice.dictionary is not None:
        record["dictionary"] = choice.dictionary.record
    record |= {"scale": "unit" if settings.scale else "raw", "quantile": settings.quantile}
    return record | {"top_images": settings.top_of(images)} | ({"top_share": TOP_SHARE} if settings.top is None else {})


def effects_bundle(
    header: Header,
    effects: Effects,
    settings: Settings,
    names: Sequence[str] | Mapping[int, str],
    keep: KeptUnits | None,
    embeddings: Embeddings,
    directions: Callable[[Effects], Float[Tensor, "u d"]],
    thumbnails: Callable[[Sequence[int]], dict[str, np.ndarray]] | None,
) -> Bundle:
    """Return the bundle of the units that are kept, with the names of the images in their top lists.

    Args:
        names: Names of the images by number.
        keep: None for all units.
        embeddings: Embeddings of all images.
        directions: Gives r of units.
        thumbnails: Makes the tensors of small pictures from image numbers; None for a bundle without them.
    """
    if keep is not None:
        header = replace(header, settings=header.settings | {"keep": keep.share, "measured": len(effects.unit)})
        effects = type(effects)(*(column[keep.units.to(column.device)] for column in effects))  # (U, ...) -> (kept, ...)
    tensors = _direction_tensors(effects, settings)
    numbers, top_image = np.unique(effects.top_image.cpu().numpy(), return_inverse=True)  # image numbers -> indices into `images`
    tensors["unit"] = effects.unit.cpu().numpy().astype(np.int32)
    tensors["top_image"] = top_image.reshape(effects.top_image.shape).astype(np.int32)  # (units, T)
    for name in ("top_norm", "threshold", "threshold_bound", "deviation"):
        tensors[name] = getattr(effects, name).cpu().numpy().astype(np.float32)
    mean, covariance = embeddings.moments()
    tensors["embedding_mean"] = mean.numpy().astype(np.float32)
    tensors["embedding_covariance"] = covariance.numpy().astype(np.float32)
    if keep is not None or not settings.compact:
        q = read_directions(embeddings, mean, effects.top_image, effects.top_along, directions(effects), settings.scale)
        tensors["read"] = q.numpy().astype(np.float32)
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
    """Return `1536 neurons, 307 kept of emoji-vit2, thresholds within 0.9 % (worst 3 %)`; the end if thresholds are bounds."""
    kept_text = "" if keep is None else f", {int(keep.units.sum())} kept"
    summary = f"{len(effects.unit)} {choice.units}{kept_text} of {model}"
    bound = (effects.threshold_bound / effects.threshold.clamp(min=1e-30))[effects.threshold_bound > 0]
    if not len(bound):
        return summary
    return f"{summary}, thresholds within {100 * float(bound.median()):.2g} % (worst {100 * float(bound.max()):.2g} %)"


def with_directions(bundle: Bundle, means: bool = False, device: str = "auto", model: LoadedModel | None = None) -> Bundle:
    """Add `direction`, and with `means` also `mean`, to a bundle of pairs, from the weights of its model.

    In a command, the next call of load_recorded_model returns the model that is loaded here.

    Args:
        model: The bundle's model, if it is loaded already.

    Raises:
        StreamError: The bundle has units that the model lacks.
        ModelError: The model is not available, or has no pairs.
    """
    if model is None:
        model = load_recorded_model(bundle.header.model, device)
        hand_over(model)
    effect = pair_effect(model.clip)
    unit, sign = torch.from_numpy(bundle["unit"]).long(), torch.from_numpy(bundle["sign"])
    tensors = {"direction": unit_directions(effect, unit, sign).numpy()}  # (unit, d)
    if means:
        tensors["mean"] = pair_means(effect, unit, torch.from_numpy(bundle["mean_scalar"])).numpy()  # (unit, d)
    return bundle.with_derived(**tensors)
