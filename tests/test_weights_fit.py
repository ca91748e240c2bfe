"""Weights files that do not fit the name: positions of another size, other architectures."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from helpers.weights_files import local_dir, registered, save, state_of

from cliptools.errors import ModelError
from cliptools.models.checkpoints.checkpoint import read_checkpoint
from cliptools.models.load import load_model
from cliptools.models.weights_file import stored_sizes


@pytest.fixture(scope="module", autouse=True)
def tiny_names(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with registered(tmp_path_factory.mktemp("configs")):
        yield


def stored(state: dict[str, torch.Tensor], form: str, folder: Path) -> Path:
    """Return the same weights in common forms of files."""
    if form == "state_dict":
        return save({"epoch": 3, "state_dict": {f"module.{key}": value for key, value in state.items()}}, folder / "epoch.pt")
    if form == "old":  # before torch's zip files
        torch.save(state, folder / "old.pth", _use_new_zipfile_serialization=False)
        return folder / "old.pth"
    return save(state, folder / f"weights.{form}")


@pytest.mark.parametrize("form", ["safetensors", "bin", "state_dict", "old"])
def test_a_larger_grid_is_named_with_the_model_it_fits(form: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = stored(state_of("Tiny-8-64"), form, tmp_path)
    model = load_model("Tiny-8", str(path), "cpu")
    (line,) = [line for line in capsys.readouterr().err.splitlines() if "resized" in line]
    assert line.startswith(f"warning: {path.name}: positions for 8 x 8 tokens (64 x 64 pixels) are resized to the 4 x 4 tokens")
    assert line.endswith("it fits --model Tiny-8-64")
    assert model.identity["grid"] == [4, 4]
    assert model.identity["sources"]["grid"] == f"name Tiny-8, positions resized from 8 x 8 in {path.name}"
    fitting = load_model("Tiny-8-64", str(path), "cpu")
    assert "resized" not in capsys.readouterr().err
    assert fitting.identity["grid"] == [8, 8] and fitting.identity["sources"]["grid"] == "name Tiny-8-64"


def test_a_smaller_grid_in_a_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = local_dir(tmp_path / "model", "Tiny-8-64")
    save(state_of("Tiny-8"), folder / "open_clip_model.safetensors")
    model = load_model(f"local-dir:{folder}", None, "cpu")
    assert "positions for 4 x 4 tokens (32 x 32 pixels) are resized to the 8 x 8 tokens" in capsys.readouterr().err
    assert "resized from 4 x 4 in open_clip_model.safetensors" in model.identity["sources"]["grid"]


def test_texts_of_another_length(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = save(state_of("Tiny-8-long"), tmp_path / "long.safetensors")
    model = load_model("Tiny-8", str(path), "cpu")
    error = capsys.readouterr().err
    assert "long.safetensors: positions for texts of 32 tokens are resized to the 16 of Tiny-8" in error
    assert "it fits --model Tiny-8-long" in error
    assert model.identity["sources"]["context"] == "name Tiny-8, positions resized from 32 in long.safetensors"
    path = save(state_of("Tiny-8"), tmp_path / "short.pt")
    load_model("Tiny-8-long", str(path), "cpu")
    assert "positions for texts of 16 tokens are resized to the 32 of Tiny-8-long" in capsys.readouterr().err


def test_the_text_tower_under_another_prefix(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """open_clip's CustomTextCLIP calls its positions text.positional_embedding."""
    folder = local_dir(tmp_path / "model", "Tiny-8", custom_text=True)
    text = ("positional_embedding", "token_embedding", "transformer.", "ln_final", "text_projection")
    state = {f"text.{key}" if key.startswith(text) else key: value for key, value in state_of("Tiny-8-long").items()}
    save(state, folder / "open_clip_model.safetensors")
    load_model(f"local-dir:{folder}", None, "cpu")
    assert "positions for texts of 32 tokens are resized to the 16" in capsys.readouterr().err


def test_positions_of_a_rectangle_cannot_be_resized(tmp_path: Path) -> None:
    path = save(state_of("Tiny-8-wide"), tmp_path / "wide.safetensors")  # 4 x 10 tokens
    with pytest.raises(ModelError, match=r"wide.safetensors: positions of 40 image tokens, which are not a square .*Tiny-8-wide"):
        load_model("Tiny-8", str(path), "cpu")
    assert load_model("Tiny-8-wide", str(path), "cpu").identity["grid"] == [4, 10]


@pytest.mark.parametrize("form", ["safetensors", "bin"])
def test_attention_pooling_of_another_grid(form: str, tmp_path: Path) -> None:
    path = stored(state_of("Tiny-RN-96"), form, tmp_path)
    expected = (
        r"positions for 3 x 3 tokens \(96 x 96 pixels\), Tiny-RN for 2 x 2 tokens .* cannot be resized; it fits .*Tiny-RN-96$"
    )
    with pytest.raises(ModelError, match=expected):
        load_model("Tiny-RN", str(path), "cpu")
    assert load_model("Tiny-RN-96", str(path), "cpu").identity["grid"] == [3, 3]


@pytest.mark.parametrize(
    ("of", "name", "reason"),
    [
        ("Tiny-4", "Tiny-8", r"patch 4 x 4, expected 8 x 8; it fits --model Tiny-4$"),
        ("Tiny-8-deep", "Tiny-8", r"layers 3, expected 2; it fits --model Tiny-8-deep$"),
        ("Tiny-8", "Tiny-8-broad", r"width 16, expected 24; it fits --model Tiny-8$"),
        ("Tiny-8", "Tiny-8-deep", r"layers 2, expected 3"),
        ("Tiny-RN", "Tiny-8", r"image tower ResNet, .*expected ViT"),
        ("Tiny-8", "Tiny-RN", r"image tower ViT, .*expected ResNet"),
        ("Tiny-RN-deep", "Tiny-RN", r"layers 1 x 2 x 1 x 1, expected 1 x 1 x 1 x 1; it fits --model Tiny-RN-deep$"),
    ],
)
def test_weights_of_another_architecture_say_which(of: str, name: str, reason: str, tmp_path: Path) -> None:
    path = save(state_of(of), tmp_path / "weights.safetensors")
    with pytest.raises(ModelError, match=f"weights of another architecture than {name}: .*{reason}"):
        load_model(name, str(path), "cpu")


def test_a_file_that_is_none_keeps_its_reason(tmp_path: Path) -> None:
    for name, content, reason in (
        ("a.safetensors", b"\xff" * 40, "not a known weights file"),
        ("b.pt", b"PK\x03\x04nothing", "cut short or damaged"),
        ("c.bin", b"", "an empty file"),
    ):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ModelError, match=f"{name}: .*{reason}"):
            load_model("Tiny-8", str(tmp_path / name), "cpu")


@pytest.mark.parametrize("form", ["safetensors", "bin", "state_dict", "old"])
def test_shapes_are_read_as_they_are_stored(form: str, tmp_path: Path) -> None:
    state = state_of("Tiny-8")
    file = read_checkpoint(stored(state, form, tmp_path))
    assert not file.openai
    assert file.shapes == {key: tuple(value.shape) for key, value in state.items()}
    assert stored_sizes(file.shapes) == ("ViT", 16, 2, (8, 8), 16, 12, 16, 1, 16, 100)
