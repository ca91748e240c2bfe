"""Folders of images and masks, paired by name."""

from collections.abc import Iterator
from functools import partial
from pathlib import Path

from cliptools.ground.decode import LABELS, is_picture
from cliptools.ground.errors import CliptoolsError
from cliptools.ground.masked.image import MaskedImage, Reading, guarded, label_pixels, pair


def pairs_in_folder(folder: Path) -> Iterator[Reading]:
    """images/ and masks/ below a folder, paired by their paths without endings, sorted.

    Raises:
        CliptoolsError: no such folders, or an image without a mask.
    """
    images, masks = (by_stem(folder / part) for part in ("images", "masks"))
    if not images:
        raise CliptoolsError(f"{folder}: no images in images/ (expected images/ and masks/, or scenes of clip-scenes)")
    if alone := sorted(set(images) - set(masks)):
        raise CliptoolsError(f"{folder}: {len(alone)} images have no mask in masks/, the first: {alone[0]}")
    return (guarded(stem, partial(_read, stem, images[stem], masks[stem])) for stem in sorted(images))


def _read(stem: str, image: Path, mask: Path) -> MaskedImage:
    return pair(stem, image, (label_pixels(mask) > 0)[None], ())


def by_stem(folder: Path) -> dict[str, Path]:
    """The pictures below a folder by their paths without endings.

    Raises:
        CliptoolsError: two that differ by their ending alone.
    """
    found: dict[str, Path] = {}
    for path in sorted(folder.rglob("*")) if folder.is_dir() else ():
        if not path.is_file() or not (is_picture(path.name) or path.name.endswith(LABELS)):
            continue
        own = path.name.removesuffix(LABELS) if path.name.endswith(LABELS) else path.stem
        stem = str(path.relative_to(folder).parent / own)
        if stem in found:
            raise CliptoolsError(f"{folder}: {found[stem].name} and {path.name} differ by their ending alone; keep one of them")
        found[stem] = path
    return found
