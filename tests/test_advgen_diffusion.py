"""Painters of diffusers: real pipelines with random weights, and errors for unusable ones."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import Run
from helpers import ROOT
from helpers.advgen_input import WORDS, inside, lines, parsed
from helpers.tiny_pipelines import save_deepfloyd, save_stable_diffusion
from PIL import Image

from cliptools.generate.painters.diffusion import loading_options

pytestmark = pytest.mark.filterwarnings("ignore")  # of diffusers and transformers, when tiny parts are made


@pytest.fixture(scope="module")
def stable(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_stable_diffusion(tmp_path_factory.mktemp("sd"))


@pytest.fixture(scope="module")
def deepfloyd(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return save_deepfloyd(tmp_path_factory.mktemp("if"))


def test_stable_diffusion_paints_what_the_pipeline_paints(stable: Path, tmp_path: Path) -> None:
    options = (
        "--llm",
        "template",
        "--take",
        2,
        "--images",
        2,
        "--painter",
        stable,
        "--steps",
        2,
        "--guidance",
        3.0,
        "-f",
        "jsonl",
    )
    done = inside("advgen", *options, "--batch-size", 1, "--out-dir", tmp_path / "out", stdin=lines(*WORDS))
    assert done.returncode == 0, done.stderr
    records = parsed(done.stdout)
    assert len(records) == 4 and "unchecked" in done.stderr.decode() and "check" not in records[0]
    expected = {
        "pipeline": "StableDiffusionPipeline",
        "dtype": "fp32",
        "steps": 2,
        "guidance": 3.0,
        "upscaler": None,
        "size": None,
    }
    assert expected.items() <= records[0]["settings"].items()
    import diffusers

    pipeline = diffusers.StableDiffusionPipeline.from_pretrained(stable, use_safetensors=True)
    pipeline.set_progress_bar_config(disable=True)
    for record in records[:2]:
        drawn = pipeline(
            record["description"], num_inference_steps=2, guidance_scale=3.0,
            generator=torch.Generator().manual_seed(record["image_seed"]),
        ).images[0]  # fmt: skip
        assert np.array_equal(np.asarray(drawn), np.asarray(Image.open(record["file"])))
    for file in (tmp_path / "out").rglob("000-001.png"):
        file.unlink()
    again = inside("advgen", *options, "--batch-size", 1, "--out-dir", tmp_path / "out", "--resume", stdin=lines(*WORDS))
    assert again.stdout == done.stdout


def test_deepfloyd_in_two_stages(deepfloyd: tuple[Path, Path], tmp_path: Path) -> None:
    first, second = deepfloyd
    options = ("--llm", "template", "--take", 1, "--images", 2, "--painter", first, "--steps", 2, "-f", "jsonl")
    done = inside(
        "advgen", *options, "--upscaler", second, "--judge", "emoji-vit2", "--out-dir", tmp_path / "a", stdin=lines(*WORDS)
    )
    assert done.returncode == 0, done.stderr
    records = parsed(done.stdout)
    assert records[0]["settings"]["pipeline"] == "IFPipeline" and records[0]["settings"]["upscaler"] == str(second)
    assert set(records[0]["check"]) == {"by", "depicted", "predicted"} and records[0]["settings"]["judge"] == "emoji-vit2"
    assert [Image.open(r["file"]).size for r in records] == [(16, 16)] * 2
    small = inside("advgen", *options, "--out-dir", tmp_path / "b", stdin=lines(*WORDS))
    assert [Image.open(r["file"]).size for r in parsed(small.stdout)] == [(8, 8)] * 2


def test_out_of_memory_says_what_to_lower(stable: Path) -> None:
    """Attention over 1024 × 1024 latents needs terabytes."""
    options = ("--llm", "template", "--take", 1, "--images", 1, "--painter", stable, "--steps", 1, "-f", "jsonl")
    done = inside("advgen", *options, "--size", 2**21, stdin=lines(*WORDS))
    assert done.returncode == 1 and done.stdout == b""
    said = done.stderr.decode().splitlines()
    assert len(said) == 1 and "out of memory painting 1 at a time; lower --size" in said[0]


def test_options_a_pipeline_or_device_does_not_take(stable: Path) -> None:
    base = ("--llm", "template", "--painter", stable, "-f", "jsonl")
    done = inside("advgen", *base, "--offload", "model", "--device", "cpu", stdin=lines(*WORDS))
    assert done.returncode == 2 and b"--offload model: the painter is on the CPU already" in done.stderr
    done = inside("advgen", *base, "--size", 15 + 6, "--take", 1, stdin=lines(*WORDS))
    assert done.returncode == 1 and b"divisible by 8" in done.stderr.replace(b"divisible by 2", b"divisible by 8")


def test_pickles_are_not_read(stable: Path, tmp_path: Path) -> None:
    """The pipeline has its weights only in .bin files."""
    folder = tmp_path / "pickled"
    shutil.copytree(stable, folder)
    weights = folder / "unet" / "diffusion_pytorch_model.safetensors"
    from safetensors.torch import load_file

    torch.save(load_file(weights), weights.with_suffix(".bin"))
    weights.unlink()
    done = inside("advgen", "--llm", "template", "--painter", folder, "-f", "jsonl", stdin=lines(*WORDS))
    assert done.returncode == 1 and b"no safetensors weights there" in done.stderr.splitlines()[-1]


def test_a_folder_that_is_no_pipeline(tmp_path: Path) -> None:
    (tmp_path / "model_index.json").write_text(json.dumps({"_class_name": "Nonsense"}))
    done = inside("advgen", "--llm", "template", "--painter", tmp_path, "-f", "jsonl", stdin=lines(*WORDS))
    assert done.returncode == 1 and b"cannot be loaded" in done.stderr and b"Traceback" not in done.stderr


def test_missing_packages_are_named() -> None:
    code = (
        "import sys, importlib.util as util\n"
        "find = util.find_spec\nutil.find_spec = lambda name, *more: None if name == 'diffusers' else find(name, *more)\n"
        "sys.argv = ['clip-advgen', '--llm', 'template', '--painter', 'owner/name', '-f', 'jsonl']\n"
        "from cliptools.cli.advgen import main\nmain()"
    )
    done = subprocess.run([sys.executable, "-c", code], input=lines("key"), capture_output=True, cwd=ROOT, check=False)
    assert done.returncode == 1 and b"diffusers missing; pip install 'cliptools[paint]'" in done.stderr


def test_a_hub_out_of_reach(run: Run) -> None:
    options = ("--llm", "template", "--painter", "nobody/nothing", "-f", "jsonl")
    done = run("advgen", *options, stdin=lines(*WORDS), env={"HF_HUB_OFFLINE": "1"})
    (said,) = done.stderr.decode().splitlines()
    assert done.returncode == 1 and "nobody/nothing: cannot be loaded" in said and "name the folder of a pipeline" in said


def pictures_of(painter: Path, *more: str) -> list[np.ndarray]:
    """Return the pictures that the pipeline paints in two steps."""
    options = ("--llm", "template", "--take", 1, "--images", 1, "--painter", painter, "--steps", 2, "-f", "jsonl", *more)
    done = inside("advgen", *options, "--out-dir", painter.parent / f"out-{painter.name}", stdin=lines(*WORDS))
    assert done.returncode == 0, done.stderr
    return [np.asarray(Image.open(record["file"])) for record in parsed(done.stdout)]


def test_folders_as_people_keep_them(stable: Path, tmp_path: Path) -> None:
    """A folder with weights of a variant only, or without the safety checker that its index names, gives the same pictures."""
    kept = shutil.copytree(stable, tmp_path / "kept")
    for path in kept.rglob("*.safetensors"):
        path.rename(path.with_suffix(".fp16.safetensors"))
    index = json.loads((kept / "model_index.json").read_text())
    index["safety_checker"] = ["stable_diffusion", "StableDiffusionSafetyChecker"]
    index["feature_extractor"] = ["transformers", "CLIPImageProcessor"]
    index.pop("requires_safety_checker", None)
    (kept / "model_index.json").write_text(json.dumps(index))
    for one, other in zip(pictures_of(kept), pictures_of(stable), strict=True):
        assert np.array_equal(one, other)
    mixed = shutil.copytree(kept, tmp_path / "mixed")  # some parts plain, as where a text encoder has no variant
    (weights,) = (mixed / "vae").glob("*.safetensors")
    weights.rename(weights.with_name(weights.name.replace(".fp16", "")))
    assert loading_options(mixed)["variant"] == "fp16"


def test_folders_that_lack_what_is_needed(stable: Path, tmp_path: Path) -> None:
    lacking = shutil.copytree(stable, tmp_path / "lacking")
    shutil.rmtree(lacking / "unet")
    done = inside("advgen", "--llm", "template", "--painter", lacking, stdin=lines(*WORDS))
    assert done.returncode == 1 and b"model_index.json names unet, which the folder lacks" in done.stderr
    parts = shutil.copytree(stable, tmp_path / "variants")
    for name, variant in (("unet", "fp16"), ("vae", "ema")):
        for path in (parts / name).glob("*.safetensors"):
            path.rename(path.with_suffix(f".{variant}.safetensors"))
    with pytest.raises(ValueError, match="different variants"):
        loading_options(parts)
    for path in parts.rglob("*.safetensors"):
        path.rename(path.with_suffix(".bin"))
    done = inside("advgen", "--llm", "template", "--painter", parts, stdin=lines(*WORDS))
    assert done.returncode == 1 and b"no safetensors weights there" in done.stderr
