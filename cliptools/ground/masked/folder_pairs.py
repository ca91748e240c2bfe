"""Folders of images and masks, paired by name."""

from collections.abc import Iterator
from functools import partial
from pathlib import Path

from cliptools.ground.counted import count_of
from cliptools.ground.decode import LABELS, is_picture
from cliptools.ground.errors import CliptoolsError
from cliptools.ground.masked.image import Reading, Rules, guarded, masked
from cliptools.ground.masked.turning import Folders, Lie, Placing


def pairs_in_folder(folder: Path, ignored: tuple[int, ...] = (), lie: Lie | None = None) -> Iterator[Reading]:
    """images/ and masks/ below a folder, paired by their paths without endings, sorted.

    Args:
        ignored: Numbers in masks of pixels that do not count.
        lie: How masks lie on pictures with an EXIF orientation (turning.py); None: by their sizes.

    Raises:
        CliptoolsError: no such folders, or an image without a mask.
    """
    images, masks = (by_stem(folder / part) for part in ("images", "masks"))
    if not images:
        raise CliptoolsError(f"{folder}: no images in images/ (expected images/ and masks/, or scenes of clip-scenes)")
    if alone := sorted(set(images) - set(masks)):
        near = next((masks[stem].name for stem in sorted(set(masks) - set(images)) if stem.startswith(alone[0])), None)
        hint = f" (masks/ has {near}; expected the image's name, with any ending)" if near else ""
        raise CliptoolsError(
            f"{folder}: {len(alone)} of {count_of(len(images), 'image')} without a mask in masks/, the first: {alone[0]}{hint}"
        )
    rules = Rules(ignored, placing(images, masks, lie))
    return (guarded(stem, partial(masked, stem, images[stem], masks[stem], rules)) for stem in sorted(images))


def placing(images: dict[str, Path], masks: dict[str, Path], lie: Lie | None) -> Placing:
    """How the masks of two folders are laid on the images."""
    folders = Folders([(images[stem], masks[stem]) for stem in sorted(set(images) & set(masks))])
    return Placing(lie, lambda: folders.lie)


def by_stem(folder: Path) -> dict[str, Path]:
    """The pictures below a folder by their paths without endings.

    Raises:
        CliptoolsError: two that differ by their ending alone.
    """
    found: dict[str, Path] = {}
    for path in sorted(folder.rglob("*")) if folder.is_dir() else ():
        if not path.is_file() or path.name.startswith(".") or not (is_picture(path.name) or path.name.endswith(LABELS)):
            continue
        own = path.name.removesuffix(LABELS) if path.name.endswith(LABELS) else path.stem
        stem = str(path.relative_to(folder).parent / own)
        if stem in found:
            raise CliptoolsError(f"{folder}: {found[stem].name} and {path.name} differ by their ending alone; keep one of them")
        found[stem] = path
    return found
