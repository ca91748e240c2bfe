"""Pictures with masks from folders, scenes and ImageNet-Segmentation's file, and errors."""

import io
import tarfile
from pathlib import Path

import h5py
import numpy as np
import pytest
from conftest import Run
from helpers.masked_images import read, save_pair, write_gtsegs

from cliptools.errors import CliptoolsError, ImageError, StreamError
from cliptools.images.segmentation.masked_image import MaskedImage
from cliptools.images.segmentation.sources import masked_images


def picture_and_mask(width: int, height: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    return rng.integers(0, 256, (height, width, 3), dtype=np.uint8), rng.random((height, width)) < 0.3


def test_gtsegs(tmp_path: Path) -> None:
    pairs = [picture_and_mask(w, h, w) for w, h in ((31, 20), (12, 40), (16, 16))]
    write_gtsegs(tmp_path / "gtsegs_ijcv.mat", *map(list, zip(*pairs, strict=True)))
    found = read(masked_images(tmp_path / "gtsegs_ijcv.mat"))
    assert [one.name for one in found] == [f"gtsegs_ijcv/{i:04d}" for i in range(3)]
    for one, (image, mask) in zip(found, pairs, strict=True):
        assert (np.asarray(one.picture) == image).all() and (one.masks[0] == mask).all() and one.texts == ()


def test_files_that_are_no_gtsegs(tmp_path: Path) -> None:
    (tmp_path / "old.mat").write_bytes(b"MATLAB 5.0 MAT-file" + bytes(500))
    with pytest.raises(StreamError, match="found no HDF5"):
        list(masked_images(tmp_path / "old.mat"))
    with h5py.File(tmp_path / "other.mat", "w") as file:
        file["value/img"] = np.zeros(3)
    with pytest.raises(StreamError, match="/value/gt"):
        list(masked_images(tmp_path / "other.mat"))
    image, mask = picture_and_mask(8, 6)
    write_gtsegs(tmp_path / "mixed.mat", [image, image], [mask, mask[:-1]])
    good, bad = masked_images(tmp_path / "mixed.mat")
    assert isinstance(good, MaskedImage) and isinstance(bad, ImageError) and "mixed/0001" in str(bad)


def test_pairs_by_stem(tmp_path: Path) -> None:
    pairs = {name: picture_and_mask(14, 9, i) for i, name in enumerate(("b.1", "b.2", "sub/a"))}
    for name, pair in pairs.items():
        save_pair(tmp_path, name, *pair)
    found = {one.name: one for one in read(masked_images(tmp_path))}
    assert sorted(found) == sorted(pairs)
    for name, (image, mask) in pairs.items():
        assert (np.asarray(found[name].picture) == image).all() and (found[name].masks[0] == mask).all()


def test_pairs_that_do_not_match(tmp_path: Path) -> None:
    image, mask = picture_and_mask(14, 9)
    save_pair(tmp_path, "a", image, mask)
    save_pair(tmp_path, "b", image, mask[:, :-1])
    (tmp_path / "images" / "c.bmp").write_bytes(b"broken")
    save_pair(tmp_path / "other", "c", image, mask)
    (tmp_path / "other/masks/c.png").rename(tmp_path / "masks/c.png")
    good, size, broken = masked_images(tmp_path)
    assert isinstance(good, MaskedImage)
    assert str(size) == "b: the image has 14 × 9 pixels, its mask 13 × 9" and str(broken).startswith("c: ")
    (tmp_path / "masks" / "b.png").unlink()
    (tmp_path / "masks" / "b.mask.png").write_bytes(b"")
    (tmp_path / "images" / "._a.png").write_bytes(b"of macOS")
    with pytest.raises(
        CliptoolsError, match=r"1 of 3 images without a mask in masks/, the first: b \(masks/ has b\.mask\.png; expected"
    ):
        list(masked_images(tmp_path))
    with pytest.raises(CliptoolsError, match="no images in images/"):
        list(masked_images(tmp_path / "masks"))
    with pytest.raises(CliptoolsError, match="no such file"):
        list(masked_images(tmp_path / "nowhere"))


@pytest.fixture(scope="module")
def scenes(run: Run, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the same scenes as a tar and as a folder."""
    place = tmp_path_factory.mktemp("scenes")
    for where in (("-o", place / "scenes.tar"), ("--out-dir", place / "folder")):
        assert run("scenes", "--count", 5, "--seed", 3, *where).returncode == 0
    return place


def test_scenes_alike_from_tar_and_folder(scenes: Path) -> None:
    folder, tar = (read(masked_images(scenes / name)) for name in ("folder", "scenes.tar"))
    assert len(folder) == len(tar) == 5 and max(len(one.texts) for one in tar) > 1
    for one, other in zip(folder, tar, strict=True):
        assert one.name == other.name and one.texts == other.texts and (one.masks == other.masks).all()
        assert len(one.masks) == len(one.texts) and all(mask.any() for mask in one.masks) and one.masks.sum(0).max() == 1
        assert one.picture.tobytes() == other.picture.tobytes()
    for one, whole in zip(tar, read(masked_images(scenes / "scenes.tar", single=True)), strict=True):
        assert whole.texts == () and (whole.masks[0] == one.masks.any(0)).all()


def test_damaged_tars(scenes: Path, tmp_path: Path) -> None:
    data = (scenes / "scenes.tar").read_bytes()
    ends = [i for i in range(512, len(data), 512) if data[i : i + 10].startswith(b"scene-") and i > len(data) // 2]
    middle = ends[0]  # a header that is none: tarfile alone would take it for the end
    data_damaged = data[:middle] + b"?" * 512 + data[middle + 512 :] + bytes(20480)
    for cut, message in (
        (data_damaged, "damaged"),
        (data[:0], "expected a tar"),
        (data[:-1700], "tar"),
        (data[: ends[0]], "truncated"),
        (b"x" * 3000, "tar"),
    ):
        with pytest.raises(StreamError, match=message):
            list(masked_images(None, io.BufferedReader(io.BytesIO(cut))))
    with tarfile.open(tmp_path / "other.tar", "w") as archive:
        archive.add(scenes / "folder" / "scenes.jsonl", "a.json")
    with pytest.raises(StreamError, match="without scenes"):
        list(masked_images(tmp_path / "other.tar"))
