"""Files of clip-top: names of the images on which units act, for cleaning data sets, from the top images that a bundle lists,
without a model; and pictures with outlines of where units act in them.
"""

import os
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from PIL import Image

from cliptools.analysis.margin_passes import Tower, tower_of, unit_maps
from cliptools.console import count_of, escape, warn
from cliptools.errors import ImageError, UsageError
from cliptools.front.top import Top, TopImages, TopRequest, candidates, first_rows, require_top_images
from cliptools.images.groups import full_name
from cliptools.images.listing import ListedImage, find
from cliptools.images.loader import ListedImages
from cliptools.images.relocate import locate_images
from cliptools.io.bundle import Bundle
from cliptools.io.jsonl import unit_name
from cliptools.models.preprocessing import seen_picture
from cliptools.render.contact_sheet import outlined
from cliptools.unit_effects.factored import EQUAL
from cliptools.unit_effects.select import factored_effect

THRESHOLD = "threshold"  # value of --above other than a number
OUTLINE_SHARE = 0.5  # of a map's largest value, where its outline lies
OUTLINED_EFFECTS = ("second", "pooled")


def check_outlines(bundle: Bundle) -> None:
    """Check that the effects of a bundle have maps.

    Raises:
        UsageError: they have none.
    """
    if (effect := bundle.header.settings.get("effect")) not in OUTLINED_EFFECTS:
        raise UsageError(f"--outlines: a bundle of {effect} effects; only second-order and pooled effects have maps of tokens")


def outlined_pictures(top: Top, search: TopImages) -> list[Image.Image | None]:
    """Return the top images of a unit as the model sees them, with outlines of where the unit acts; None for a missing image.

    An outline lies where the token parts of the unit's effect along its direction reach half of the largest one.
    """
    settings, model = top.bundle.header.settings, search.model
    tower: Tower = tower_of(factored_effect(model.clip, settings["effect"], settings["units"]))
    unit = torch.from_numpy(top.bundle["unit"][top.row]).long()
    r = torch.from_numpy(top.bundle["direction"][top.row]) if "direction" in top.bundle else None
    pictures: list[Image.Image | None] = []
    for place in top.places:
        try:
            tensor = model.transform(search.source.load(place)) if place >= 0 else None
        except ImageError:  # a warning was given when its embedding was computed
            tensor = None
        if tensor is None:
            pictures.append(None)
            continue
        heat = unit_maps(tower, unit, r, tensor[None].to(model.device))[0]
        pictures.append(outlined(seen_picture(tensor, model.preprocessing), heat.float().numpy(), OUTLINE_SHARE))
    return pictures


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
