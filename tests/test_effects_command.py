"""clip-effects as a process: pictures from all sources give one bundle, which is equal for equal sets."""

import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from conftest import Run
from helpers.bundle import read
from PIL import Image

from cliptools.io.bundle import Bundle


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return forty small pictures in two class folders."""
    folder = tmp_path_factory.mktemp("photos")
    random = np.random.default_rng(4)
    for i in range(40):
        path = folder / ("bright" if i < 20 else "dark") / f"{i:02d}.png"
        path.parent.mkdir(exist_ok=True)
        pixels = random.integers(0, 256, (30, 26, 3)) // (1 if i < 20 else 3)
        Image.fromarray(pixels.astype(np.uint8)).save(path)
    return folder


@pytest.fixture(scope="module")
def common(tiny_clip_dir: Path) -> list[str]:
    return ["--model", f"local-dir:{tiny_clip_dir}", "--layers", "1,2", "--top-images", "6", "--quantile", "0.9", "-q"]


@pytest.fixture(scope="module")
def whole(run: Run, photos: Path, common: list[str]) -> bytes:
    ended = run("effects", photos, *common)
    assert ended.returncode == 0, ended.stderr.decode()
    return ended.stdout


def test_bundle_says_what_it_is(whole: bytes, tiny_clip_dir: Path) -> None:
    bundle = read(whole)
    assert bundle.units == 2 * 54 and bundle["direction"].shape == (108, 20) and bundle["top_norm"].shape == (108, 6)
    assert bundle.header.kind == "effects" and bundle.header.images["count"] == 40
    assert bundle.header.settings["layers"] == [1, 2] and bundle.header.model["name"] == f"local-dir:{tiny_clip_dir}"
    (step,) = bundle.header.history
    assert step["command"] == "clip-effects" and not {"output", "device", "workers", "paths"} & set(step["arguments"])
    acted = bundle["top_norm"][:, 0] > 0
    np.testing.assert_allclose(np.linalg.norm(bundle["direction"], axis=1), acted, atol=1e-5)
    assert set(bundle.text_list("images")) <= {f"{'bright' if i < 20 else 'dark'}/{i:02d}.png" for i in range(40)}


def test_equal_runs_give_equal_bytes_also_into_a_file(
    run: Run, photos: Path, common: list[str], whole: bytes, tmp_path: Path
) -> None:
    target = tmp_path / "effects.safetensors"
    ended = run("effects", photos, *common, "-o", target, "--workers", "0")
    assert ended.returncode == 0 and not ended.stdout
    assert target.read_bytes() == whole and os.listdir(tmp_path) == [target.name]


def same_but_for_rounding(one: Bundle, other: Bundle) -> None:
    for name, value in one.tensors.items():
        if value.dtype == np.float32:
            np.testing.assert_allclose(other[name], value, rtol=1e-4, atol=1e-4, err_msg=name)
        else:
            assert np.array_equal(other[name], value), name


def test_order_of_the_list_leaves_no_trace(run: Run, photos: Path, common: list[str], whole: bytes) -> None:
    """Class folders, shuffled, or reversed: the same set gives the same bytes if the names agree."""
    random = np.random.default_rng(0)
    files = sorted(photos.glob("*/*.png"))
    shuffled = [files[i] for i in random.permutation(len(files))]
    forwards, backwards = (run("effects", *order, *common).stdout for order in (files, shuffled))
    assert forwards == backwards
    same_but_for_rounding(read(whole).select(np.arange(108)), read(run("effects", photos, *common, "--batch-size", 7).stdout))


def test_tar_on_standard_input(run: Run, photos: Path, common: list[str], whole: bytes, tmp_path: Path) -> None:
    archive = shutil.make_archive(str(tmp_path / "photos"), "tar", photos)
    piped = read(run("effects", "-", *common, stdin=Path(archive).read_bytes()).stdout)
    same_but_for_rounding(read(whole), Bundle(piped.header, piped.tensors | {"images": read(whole)["images"]}))
    assert [name.removeprefix("./") for name in piped.text_list("images")] == read(whole).text_list("images")


def test_memory_is_a_bound_not_a_setting(run: Run, photos: Path, common: list[str], whole: bytes) -> None:
    small = run("effects", photos, *common, "--memory", "0.01").stdout
    same_but_for_rounding(read(whole), read(small))
    assert read(small).header == read(whole).header


def test_limit_and_sample(run: Run, photos: Path, common: list[str]) -> None:
    first = read(run("effects", photos, *common, "--limit", 10).stdout)
    assert first.header.images["count"] == 10 and all(name.startswith("bright/0") for name in first.text_list("images"))
    drawn = read(run("effects", photos, *common, "--sample", 16).stdout)
    assert drawn.header.images["count"] == 16 and any(name.startswith("dark") for name in drawn.text_list("images"))


def test_more_top_images_than_there_are_take_no_more_memory(run: Run, photos: Path, common: list[str]) -> None:
    bundle = read(run("effects", photos, *common, "--limit", 9, "--top-images", 1 << 62).stdout)
    assert bundle["top_norm"].shape == (108, 9) and bundle.header.images["count"] == 9


def test_components_and_thumbnails(run: Run, photos: Path, common: list[str]) -> None:
    bundle = read(run("effects", photos, *common, "--components", 2, "--thumbnails", 16).stdout)
    assert bundle["component"].shape == (108, 2, 20) and bundle["component_explained"].shape == (108, 2)
    np.testing.assert_array_equal(bundle["component"][:, 0], bundle["direction"])
    offsets = bundle["thumbnail_offsets"]
    assert len(offsets) == len(bundle.text_list("images")) + 1 and offsets[-1] == len(bundle["thumbnails"])


def test_bad_images_are_named_counted_and_skipped(run: Run, photos: Path, common: list[str], tmp_path: Path) -> None:
    folder = tmp_path / "mixed"
    shutil.copytree(photos, folder)
    (folder / "bright" / "00.png").write_bytes(b"")
    (folder / "bright" / "01.png").write_bytes((photos / "bright/01.png").read_bytes()[:200])
    ended = run("effects", folder, *common)
    assert ended.returncode == 0 and read(ended.stdout).header.images == read(ended.stdout).header.images | {
        "count": 38,
        "skipped": 2,
    }
    said = ended.stderr.decode()
    assert said.count("bright/00.png") == 1 and said.count("bright/01.png") == 1
    strict = run("effects", folder, *common, "--strict")
    assert strict.returncode == 1 and not strict.stdout and "bright/0" in strict.stderr.decode()


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["--layers", "3"], 2, "no later attention layer"),
        (["--layers", "7"], 2, "layers 0 to 3"),
        (["--layers", "a"], 2, "expected layers like"),
        (["--limit", "3", "--sample", "3"], 2, "give one of them"),
        (["--quantile", "1.5"], 2, "not in the range"),
        (["--layers", "2-1"], 2, "expected layers like"),
        (["--memory", "inf"], 2, "not a finite number"),
        (["--seed", str(1 << 63)], 2, "too large"),
        (["--preprocess", ""], 2, "empty; give a value"),
        (["--device", "nonsense"], 2, "not usable here"),
    ],
)
def test_misuse(run: Run, photos: Path, tiny_clip_dir: Path, arguments: list[str], code: int, message: str) -> None:
    ended = run("effects", photos, "--model", f"local-dir:{tiny_clip_dir}", *arguments)
    assert (ended.returncode, ended.stdout) == (code, b"")
    assert message in ended.stderr.decode() and b"Traceback" not in ended.stderr


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["--model", "ViT-B-32"], 2, "needs a PATH"),
        (["--model", "ViT-B-32", "{photos}"], 2, "needs --pretrained: one of openai"),
        (["--model", "ViT-B-33", "--pretrained", "openai", "{photos}"], 1, "did you mean"),
        (["--model", "ViT-B-32", "--pretrained", "nothing", "{photos}"], 2, "neither a file nor a tag"),
        (["--model", "local-dir:/nowhere", "{photos}"], 1, "/nowhere"),
        (["--model", "emoji-vit2", "--pretrained", "openai", "{photos}"], 2, "brings its own weights"),
        (["--model", "MobileCLIP-S1", "--pretrained", "random", "{photos}"], 1, "fastvit"),
        (["/nowhere/at/all"], 1, "/nowhere/at/all"),
        (["{empty}"], 1, "no images in"),
    ],
)
def test_wrong_models_and_images(run: Run, photos: Path, tmp_path: Path, arguments: list[str], code: int, message: str) -> None:
    ended = run("effects", *(a.format(photos=photos, empty=tmp_path) for a in arguments))
    assert (ended.returncode, ended.stdout) == (code, b"")
    assert message in ended.stderr.decode() and b"Traceback" not in ended.stderr


def test_weights_with_nan_are_refused(run: Run, photos: Path, tiny_clip_dir: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    shutil.copytree(tiny_clip_dir, tmp_path / "model")
    weights = load_file(tmp_path / "model" / "open_clip_model.safetensors")
    weights["visual.proj"][0, 0] = float("nan")
    save_file(weights, tmp_path / "model" / "open_clip_model.safetensors")
    ended = run("effects", photos, "--model", f"local-dir:{tmp_path / 'model'}")
    assert ended.returncode == 1 and "NaN or infinity, first in visual.proj" in ended.stderr.decode()


def test_local_weights_file_and_quickgelu_warning(run: Run, photos: Path, tmp_path: Path) -> None:
    """Real weights are read in this way: an architecture of open_clip and a local file."""
    import open_clip
    from safetensors.torch import save_file

    model = open_clip.create_model("ViT-S-32-alt")
    save_file({k: v.contiguous() for k, v in model.state_dict().items()}, tmp_path / "openai-like.safetensors")
    ended = run(
        "effects",
        photos,
        "--limit",
        4,
        "--model",
        "ViT-S-32-alt",
        "--pretrained",
        tmp_path / "openai-like.safetensors",
        "--layers",
        "10",
    )
    assert ended.returncode == 0, ended.stderr.decode()
    assert "QuickGELU" in ended.stderr.decode() and read(ended.stdout).units == 1536
