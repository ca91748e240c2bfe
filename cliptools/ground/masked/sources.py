"""Any place of masked pictures, by its path."""

from collections.abc import Iterator
from io import BufferedIOBase
from pathlib import Path

from cliptools.ground.errors import CliptoolsError
from cliptools.ground.masked.folder_pairs import pairs_in_folder
from cliptools.ground.masked.image import Reading, Rules
from cliptools.ground.masked.imagenet_segmentation import segmented
from cliptools.ground.masked.scenes import SCENES, scenes_in_folder, scenes_in_tar
from cliptools.ground.masked.turning import Lie


def masked_images(
    path: Path | None,
    stdin: BufferedIOBase | None = None,
    whole: bool = False,
    ignored: tuple[int, ...] = (),
    lie: Lie | None = None,
) -> Iterator[Reading]:
    """Pictures and masks from any of the places known.

    A folder with images/ and masks/ (pairs by stem; 0 is the ground), clip-scenes' folder or tar, or ImageNet-Segmentation's
    `gtsegs_ijcv.mat`.

    Args:
        path: None for a tar of scenes on `stdin`.
        whole: Of scenes, one mask of all that is drawn, without a text; else a mask and the name of every emoji in sight.
        ignored: Numbers in masks of pixels that do not count.
        lie: How masks of images/ and masks/ lie on pictures with an EXIF orientation (turning.py); None: by their sizes.

    Raises:
        CliptoolsError: nothing there, or not one of these.
    """
    rules = Rules(ignored)
    if path is None:
        assert stdin is not None
        return scenes_in_tar(stdin, "standard input", whole, rules)
    if path.is_dir():
        return scenes_in_folder(path, whole, rules) if (path / SCENES).is_file() else pairs_in_folder(path, ignored, lie)
    if not path.exists():
        raise CliptoolsError(f"{path}: no such file or folder")
    if path.suffix.lower() == ".mat":
        return segmented(path, rules)
    return _scenes_in_file(path, whole, rules)


def _scenes_in_file(path: Path, whole: bool, rules: Rules) -> Iterator[Reading]:
    with path.open("rb") as stream:
        yield from scenes_in_tar(stream, str(path), whole, rules)
