"""Commands whose bundle and cached texts suffice import neither open_clip nor timm, and some import no torch."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from helpers import ROOT
from helpers.soundness import sound

from cliptools.io.bundle import Bundle
from cliptools.io.header import Header
from cliptools.models.load import load_model
from cliptools.models.text_encoder import encode_pool
from cliptools.text.vocabularies import load_pool

TEXTS = "cat\ndog\nvacuum cleaner\n"
LOADED = """
import sys
import importlib
name, *arguments = sys.argv[1:]
try:
    importlib.import_module(f"cliptools.cli.{name}").main(arguments)
except SystemExit as ended:
    assert not ended.code, ended.code
print([package for package in ("open_clip", "timm", "torch") if package in sys.modules], file=sys.stderr)
"""


def imported(folder: Path, *arguments: str | Path) -> str:
    """Run a command in a separate process and return the model libraries that it imported."""
    environment = os.environ | {"CLIPTOOLS_CACHE": str(folder / "cache"), "PYTHONPATH": str(ROOT)}
    words = [sys.executable, "-c", LOADED, *map(str, arguments), "-q"]
    ended = subprocess.run(words, capture_output=True, text=True, env=environment, timeout=300, check=False)
    assert ended.returncode == 0, ended.stderr
    return ended.stderr.splitlines()[-1]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a bundle with words and thumbnails whose header names emoji-vit, and a cache with the texts of a vocabulary."""
    folder = tmp_path_factory.mktemp("light")
    model = load_model("emoji-vit", device="cpu")
    whole = sound()
    width = int(model.clip.text_projection.shape[1])
    tensors = {key: value for key, value in whole.tensors.items() if key not in ("direction", "mean", "component")}
    units = len(whole["unit"])
    direction = whole["direction"].repeat(-(-width // whole["direction"].shape[1]), axis=1)[:, :width]
    tensors["direction"] = (direction / (direction**2).sum(1, keepdims=True).clip(1e-9) ** 0.5).astype("float32")
    assert tensors["direction"].shape == (units, width)
    header = Header("effects", model.identity, whole.header.images, {"effect": "second"})
    (folder / "bundle.safetensors").write_bytes(Bundle(header, tensors).to_bytes())
    (folder / "pool.txt").write_text(TEXTS)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CLIPTOOLS_CACHE", str(folder / "cache"))
        encode_pool(model, load_pool(str(folder / "pool.txt")))
    return folder


def test_decompose_with_cached_texts_loads_no_model(folder: Path) -> None:
    """The cache's key is the same from the header and from the loaded model."""
    words = (
        "decompose",
        folder / "bundle.safetensors",
        "--pool",
        folder / "pool.txt",
        "--m",
        "2",
        "-o",
        folder / "out.safetensors",
    )
    assert imported(folder, *words) == "['torch']"
    assert "open_clip" in imported(folder, *words, "--no-cache")


def test_lists_of_imagenet_are_read_without_open_clip(folder: Path) -> None:
    """Once CLIP's templates and names are cached, they need no model either."""
    bundle = folder / "bundle.safetensors"
    words = ("decompose", bundle, "--pool", "imagenet", "--template", "a {}", "--m", "2", "-o", folder / "imagenet.safetensors")
    assert "open_clip" in imported(folder, *words)
    assert imported(folder, *words) == "['torch']"
    code = (
        "import sys; from cliptools.models.text_encoder import imagenet_templates; "
        "print(len(imagenet_templates()), 'open_clip' in sys.modules)"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    assert ended.stdout.split() == ["80", "False"]


def test_spurious_words_of_cached_texts_need_no_model(folder: Path) -> None:
    """A second run finds the class names in the cache, and writes the same records."""
    words = (
        "decompose",
        folder / "bundle.safetensors",
        "--pool",
        folder / "pool.txt",
        "--m",
        "2",
        "-o",
        folder / "words.safetensors",
    )
    imported(folder, *words)
    options = ("--depict", "cat", "--predict", "a kind of dog", "--near", "1", "--by", "overlap")
    runs = [("spurious", folder / "words.safetensors", *options, "-o", folder / f"{run}.jsonl") for run in ("first", "second")]
    assert "open_clip" in imported(folder, *runs[0])
    assert imported(folder, *runs[1]) == "['torch']"
    first, second = ((folder / f"{run}.jsonl").read_bytes() for run in ("first", "second"))
    assert first == second
    assert first


@pytest.mark.parametrize("name", ["view", "sheet", "gallery"])
def test_commands_that_show_a_bundle_load_neither_model_nor_torch(folder: Path, name: str) -> None:
    options = ("-f", "jsonl") if name == "view" else ()
    assert imported(folder, name, folder / "bundle.safetensors", *options, "-o", folder / f"{name}.out") == "[]"
