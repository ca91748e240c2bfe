"""Files of clip-top: names of the images on which units act, for cleaning data sets, from the top images that a bundle lists,
without a model; and pictures with outlines of where units act in them, which clip-sheet draws as well.
"""

import os
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from PIL import Image
from torch import Tensor

from cliptools.analysis.margin_passes import explained_tower
from cliptools.analysis.margin_tower import ExplainedTower, unit_maps
from cliptools.console import count_of, escape, warn
from cliptools.console import progress as shown
from cliptools.errors import UsageError
from cliptools.front.images import Reading
from cliptools.front.top import candidates, first_rows, require_top_images
from cliptools.front.top_images import TopImages, TopRequest
from cliptools.images.listing import ListedImage, find, full_name
from cliptools.images.loader import ListedImages, open_images
from cliptools.images.relocate import locate_images, recorded_source
from cliptools.io.bundle import Bundle
from cliptools.io.jsonl import unit_name
from cliptools.models.load import LoadedModel
from cliptools.models.preprocessing import seen_picture
from cliptools.models.unusable import unusable
from cliptools.render.contact_sheet import outlined
from cliptools.unit_effects.factored import EQUAL
from cliptools.unit_effects.select import recorded_effect

THRESHOLD = "threshold"  # value of --above other than a number
OUTLINE_SHARE = 0.5  # of a map's largest value, where its outline lies
OUTLINED_EFFECTS = ("second", "pooled")
IMAGES_FROM = "--images-from"  # option of clip-sheet that names the images


class PlacedUnit(NamedTuple):
    """A unit and its top images, the largest norm first."""

    bundle: Bundle
    row: int
    places: Sequence[int]
    """Positions in the source; −1 for an image that the source does not have."""


def check_outlines(bundle: Bundle) -> None:
    """Check that the effects of a bundle have maps.

    Raises:
        UsageError: they have none.
    """
    if (effect := bundle.header.settings.get("effect")) not in OUTLINED_EFFECTS:
        raise UsageError(
            f"--outlines: a bundle of {effect or 'unknown'} effects; only second-order and pooled effects have maps of tokens"
        )


def outlined_tops(
    bundle: Bundle, rows: Int[np.ndarray, " unit"], count: int, paths: Sequence[str], device: str, strict: bool
) -> list[list[Image.Image | None]]:
    """Return the first top images of each unit, which are read again, with outlines as `outlined_pictures` draws them.

    Args:
        rows: Rows of the units in the bundle.
        count: Number of top images per unit, at most.
        paths: Those of --images-from; empty for the scenes that were rendered for the bundle.
        device: Device to load the bundle's model on.
        strict: An unreadable or unusable image is an error.

    Raises:
        UsageError: the bundle's effects have no maps, or the images are not those of the bundle.
        StreamError: the bundle has no top images.
        ModelError: the bundle's model is not available.
    """
    check_outlines(bundle)
    top = require_top_images(bundle)["top_image"][rows, :count]  # (unit, n)
    source = open_images(paths) if paths else recorded_source(bundle, (), IMAGES_FROM)
    search = TopImages(bundle, source, TopRequest(device=device, reading=Reading(strict=strict)))
    places = locate_images(bundle, source, (int(i) for i in top.flat if i >= 0), IMAGES_FROM)
    units = zip(rows.tolist(), top.tolist(), strict=True)
    return outlined_pictures(
        [PlacedUnit(bundle, row, [places.get(i, -1) for i in images if i >= 0]) for row, images in units], search
    )


def outlined_pictures(units: Sequence[PlacedUnit], search: TopImages) -> list[list[Image.Image | None]]:
    """Return the top images of each unit as the model sees them, with outlines of where the unit acts.

    An outline lies where the token parts of the unit's effect along its direction reach half of the largest one. None takes the
    place of an image that is missing, unreadable or unusable.

    Raises:
        StreamError: a unit that the model does not have.
        ImageError: an image is unreadable or unusable, with `strict`.
        CliptoolsError: no image can be read.
    """
    drawn: dict[tuple[int, int], Image.Image] = {}  # (unit, place)
    order = list(dict.fromkeys(place for unit in units for place in unit.places if place >= 0))
    if order:
        model, screen, usable = search.model, search.screen, 0
        towers = {id(unit.bundle): _tower_of(unit.bundle, model) for unit in units}
        batches = shown(search.batches(order), "outlines", len(order), lambda batch: len(batch[0]))
        for place, pixels in ((place, pixels) for places, batch in batches for place, pixels in zip(places, batch, strict=True)):
            image = pixels[None].to(model.device)  # (1, 3, y, x)
            passes = {key: tower.read(image) for key, tower in towers.items()}
            maps = {
                number: unit_maps(towers[id(unit.bundle)], passes[id(unit.bundle)], *_named(unit))
                for number, unit in enumerate(units)
                if place in unit.places
            }
            embedding = next(iter(passes.values())).embedding
            if screen.places([place], unusable(embedding, *(heat.flatten(1) for heat in maps.values()))):
                usable += 1
                picture = seen_picture(pixels, model.preprocessing)
                drawn |= {(n, place): outlined(picture, heat[0].float().numpy(), OUTLINE_SHARE) for n, heat in maps.items()}
        screen.require(usable)
    return [[drawn.get((number, place)) for place in unit.places] for number, unit in enumerate(units)]


def _tower_of(bundle: Bundle, model: LoadedModel) -> ExplainedTower:
    """Return the tower whose passes have the effects of a bundle's units."""
    return explained_tower(recorded_effect(model.clip, bundle.header.settings), set(bundle["unit"][:, 0].tolist()))


def _named(unit: PlacedUnit) -> tuple[Int[Tensor, " 3"], Float[Tensor, " d"] | None]:
    """Return layer, neuron and head of a unit, and its direction; None for pairs, whose weights have it."""
    bundle, row = unit.bundle, unit.row
    r = torch.from_numpy(bundle["direction"][row]) if "direction" in bundle else None
    return torch.from_numpy(bundle["unit"][row]).long(), r


def acting_images(bundle: Bundle, request: TopRequest, above: float | str | None) -> list[int]:
    """Return the images on which the selected units act, as indices into the bundle's `images`, each image once.

    Images are in the order of the units, and of a unit in that of their centred norms, the largest first.

    Args:
        above: A centred norm that a unit must exceed on an image, or `threshold`, each unit's own of the bundle. None: the first
            images of each unit, `images_per_unit` of them.

    Raises:
        UsageError: no unit is selected, or the bundle has no thresholds.
        StreamError: the bundle has no top images.
    """
    if above == THRESHOLD and THRESHOLD not in bundle:
        raise UsageError(f"--above {THRESHOLD}: the bundle has no thresholds; expected a number")
    if request.sort == "inertia":
        raise UsageError("--files: --sort inertia reads the images; expected another order")
    rows = first_rows(bundle, candidates(require_top_images(bundle), request), request)
    images: dict[int, None] = {}
    cut = []
    for row in rows.tolist():
        norm, image = bundle["top_norm"][row], bundle["top_image"][row]  # (T), (T)
        least = 0.0 if above is None else (1 + EQUAL) * float(bundle[THRESHOLD][row]) if above == THRESHOLD else float(above)
        acting = np.flatnonzero((norm > least) & (image >= 0))
        if above is None:
            acting = acting[: request.images_per_unit]
        elif len(acting) == len(norm):
            cut.append(row)
        images |= dict.fromkeys(image[acting].tolist())
    if above is not None and not images:
        exceeded = "its threshold" if above == THRESHOLD else above
        warn(f"--above: of {count_of(len(rows), 'unit')}, none has a top image whose norm exceeds {exceeded}")
    if cut:
        name = unit_name(*bundle["unit"][cut[0]].tolist())
        warn(
            f"--above: all {count_of(bundle['top_norm'].shape[1], 'top image')} that the bundle lists of {name} exceed it, as of "
            f"{len(cut)} of {count_of(len(rows), 'unit')}; further images may (clip-effects --top-images lists more)"
        )
    return list(images)


def file_names(bundle: Bundle, images: Sequence[int], paths: Sequence[str]) -> Iterator[str]:
    """Yield the names of images of a bundle: as the bundle has them, or the paths of the files below PATHs.

    A member of an archive has the name of its archive before its own.

    Raises:
        UsageError: the PATHs have none of the images.
        CliptoolsError: a PATH cannot be read.
    """
    if not paths:
        listed: list[str] = bundle.text_list("images")
        yield from (listed[image] for image in images)
        return
    found = find(paths)
    places = locate_images(bundle, ListedImages(found), images, "PATH") if images else {}
    yield from (_path_of(found[places[image]]) for image in images if image in places)


def _path_of(image: ListedImage) -> str:
    return image.place if isinstance(image.place, str) else full_name(image)


def lines_of(names: Iterator[str], null: bool) -> Iterator[bytes]:
    """Yield names as lines, with unprintable characters escaped; with `null` as they are, each before a zero byte."""
    for name in names:
        yield os.fsencode(name) + b"\0" if null else escape(name).encode() + b"\n"
