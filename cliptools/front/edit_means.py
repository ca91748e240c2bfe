"""Means of units over images for an edit: from the bundle where it has them in the right scale, else from a pass over images."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from jaxtyping import Float64, Int
from torch import Tensor

from cliptools.analysis.token_means import TokenMeans
from cliptools.analysis.weight_edit import pair_means_float64
from cliptools.console import progress
from cliptools.devices import in_halves, to_float64
from cliptools.embedded_models import EMBEDDED
from cliptools.emoji.render import scenes_for
from cliptools.errors import UsageError
from cliptools.front.images import Images, NumberedImages, Reading, number_images, open_any
from cliptools.images.loader import list_digest
from cliptools.io.bundle import Bundle
from cliptools.models.load import LoadedModel
from cliptools.models.unusable import unusable
from cliptools.unit_effects.factored import FactoredEffect, UnitBlock, unit_blocks_of

SCENES = 1000


@dataclass(frozen=True, kw_only=True)
class MeanImages:
    """Images over which means are taken."""

    images: Images | None = None
    """None: rendered scenes for an embedded model."""
    limit: int | None = None
    sample: int | None = None
    seed: int = 0
    reading: Reading = field(default_factory=Reading)


def open_mean_images(request: MeanImages, model: LoadedModel, reason: str) -> NumberedImages:
    """Return the images, or rendered scenes for an embedded model.

    Args:
        reason: Units whose means are needed, for the message.

    Raises:
        UsageError: there are no images, and the model is not embedded.
    """
    if request.images is not None:
        return number_images(open_any(request.images), request.limit, request.sample, request.seed, request.reading)
    if model.name not in EMBEDDED:
        raise UsageError(f"{reason} are put at their means over images: name the images as PATH")
    return number_images(scenes_for(model.name, request.limit or SCENES, request.seed), None, None, request.seed, request.reading)


def record_of(images: NumberedImages, count: int) -> dict[str, Any]:
    """Return count and digest of the images, as headers record them."""
    return {"count": count, "skipped": len(images.skipped), "digest": list_digest(images.names)}


def token_means(
    model: LoadedModel, neurons: dict[int, Int[Tensor, " _"]], heads: dict[int, Int[Tensor, " _"]], images: NumberedImages
) -> TokenMeans:
    """Return the means of a ViT's neurons and heads at every token.

    Raises:
        CliptoolsError: no image is usable.
    """
    visual: Any = model.clip.visual
    means = TokenMeans(visual, neurons, heads)
    screen = images.screen()
    for numbers, (activations, values, embedding) in in_halves(_batches(images, model), lambda _, pictures: means.read(pictures)):
        usable = list(screen.places(numbers, unusable(embedding)))
        if usable:
            means.add({n: p[usable] for n, p in activations.items()}, {n: z[usable] for n, z in values.items()})
    screen.require(means.count)
    return means


def _batches(images: NumberedImages, model: LoadedModel) -> Iterator[Any]:
    return progress(images.batches(model), "images for means", len(images.order), lambda batch: len(batch[0]))


def pooled_means(
    model: LoadedModel, effect: FactoredEffect, unit: Int[np.ndarray, "u 3"], images: NumberedImages
) -> tuple[Float64[Tensor, "u d"], int]:
    """Return the mean effects b of units of a ResNet's pooling, not scaled, and the number of images.

    Raises:
        CliptoolsError: no image is usable.
    """
    blocks, rows = unit_blocks_of(effect, torch.from_numpy(unit).long())
    total: list[Tensor] | None = None  # S summed over images, (n, k) a block
    count, screen = 0, images.screen()

    def read(_: object, pictures: Tensor) -> tuple[list[Tensor], Tensor]:
        S, embedding = effect.read(pictures, blocks)
        return list(S), embedding

    for numbers, (S, embedding) in in_halves(_batches(images, model), read):
        usable = list(screen.places(numbers, unusable(embedding)))
        sums = [to_float64(s[usable]).sum(0) for s in S]
        total = sums if total is None else [a + b for a, b in zip(total, sums, strict=True)]
        count += len(usable)
    screen.require(count)
    b = torch.empty(len(unit), effect.directions(_first(blocks[0])).shape[-1], dtype=torch.float64)
    for block, place, s in zip(blocks, rows, total or [], strict=True):
        b[place] = torch.einsum("nk,nkd->nd", s / count, to_float64(effect.directions(block)).to(s)).cpu()
    return b, count


def _first(block: UnitBlock) -> UnitBlock:
    return UnitBlock(block.layer, block.neurons[:1])


def bundle_means(model: LoadedModel, bundle: Bundle | None, unit: Int[np.ndarray, "u 3"]) -> Float64[Tensor, "u d"] | None:
    """Return the mean effects b of units of a ResNet's pooling from a bundle; None if it has none in the raw scale."""
    if bundle is None or bundle.header.scaled:
        return None
    row_of = {tuple(name): row for row, name in enumerate(bundle["unit"].tolist())}
    if any(tuple(name) not in row_of for name in unit.tolist()):
        return None
    rows = np.array([row_of[tuple(name)] for name in unit.tolist()])
    if "mean_scalar" in bundle:
        visual: Any = model.clip.visual
        return pair_means_float64(visual, torch.from_numpy(unit).long(), torch.from_numpy(bundle["mean_scalar"][rows])).cpu()
    return torch.from_numpy(bundle["mean"][rows]).double()
