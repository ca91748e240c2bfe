"""Models in headers and records: weights that have moved or are missing, and fields that older records lack."""

import shutil
from collections.abc import Iterator
from contextvars import copy_context
from pathlib import Path

import pytest
from helpers.advgen_input import inside
from helpers.overflowing import save_pictures
from helpers.weights_files import local_dir, registered, save, state_of

from cliptools.console import IN_COMMAND
from cliptools.errors import ModelError
from cliptools.io.header import recorded_model
from cliptools.models.load import hand_over, load_model, load_recorded_model

EARLIER = ("name", "pretrained", "sha256", "precision", "preprocessing")


@pytest.fixture(scope="module", autouse=True)
def tiny_names(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with registered(tmp_path_factory.mktemp("configs")):
        yield


@pytest.mark.parametrize("name", ["weights.pt", "weights.safetensors", "models/weights.safetensors"])
def test_a_relative_file_is_told_from_another_folder(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Commands that take the model from a bundle have no --pretrained, so the message does not mention it."""
    (tmp_path / "elsewhere").mkdir()
    save(state_of("Tiny-8"), tmp_path / name)
    monkeypatch.chdir(tmp_path)
    recorded = load_model("Tiny-8", name, "cpu").identity
    monkeypatch.chdir(tmp_path / "elsewhere")
    message = f"the bundle was made with the weights at {name} (a path from the folder in which clip-effects ran), not found here"
    with pytest.raises(ModelError) as error:
        load_recorded_model(recorded, "cpu")
    assert str(error.value) == f"{message}: run there, or put a link here"
    (tmp_path / "elsewhere" / name).parent.mkdir(exist_ok=True)
    (tmp_path / "elsewhere" / name).symlink_to(tmp_path / name)
    assert load_recorded_model(recorded, "cpu").identity == recorded


def test_an_absolute_file_or_folder_that_has_gone(tmp_path: Path) -> None:
    folder, file = local_dir(tmp_path / "model", "Tiny-8"), save(state_of("Tiny-8"), tmp_path / "file" / "weights.pt")
    models = [load_model(f"local-dir:{folder}", None, "cpu"), load_model("Tiny-8", str(file), "cpu")]
    shutil.rmtree(folder)
    file.unlink()
    for model, path in zip(models, (folder, file), strict=True):
        for record, source in ((model.identity, "the bundle"), (recorded_model(model.identity), "the list of words")):
            with pytest.raises(ModelError, match=f"{source} was made with the weights at {path}, not found here: run there"):
                load_recorded_model(record | {"precision": "fp32"}, "cpu", source=source)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a bundle of first-order effects of a model from a file, with pictures beside it."""
    folder = tmp_path_factory.mktemp("bundle")
    save_pictures(folder / "photos", 6)
    weights = save(state_of("Tiny-8"), folder / "weights.pt")
    common = ("--model", "Tiny-8", "--pretrained", weights, "--effect", "first", "--device", "cpu")
    result = inside("effects", folder / "photos", *common, "-o", folder / "effects.safetensors")
    assert result.returncode == 0, result.stderr.decode()
    return folder / "effects.safetensors"


def commands(bundle: Path) -> list[tuple[object, ...]]:
    photos = bundle.parent / "photos"
    shift = ("shift", photos, "--concept", "cat", "--choose", "overlap", "--bundle", bundle, "-f", "jsonl")
    top = ("top", photos, "--bundle", bundle, "--raw", "--head", 1, "-f", "jsonl")
    return [("decompose", bundle, "--m", 1, "-f", "jsonl"), shift, top]


@pytest.mark.parametrize("which", range(3))
def test_commands_say_in_a_line_that_weights_have_gone(which: int, bundle: Path) -> None:
    weights = bundle.parent / "weights.pt"
    kept = weights.rename(bundle.parent / "kept")
    try:
        result = inside(*commands(bundle)[which])
    finally:
        kept.rename(weights)
    (line,) = result.stderr.decode().splitlines()
    assert result.returncode == 1 and f"was made with the weights at {weights}, not found here: run there" in line


def test_a_bundle_of_an_earlier_version_is_read_with_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The note on missing information about the file is not repeated for bundles and lines of words."""
    for name in ("weights.pt", "laion2b_s32b_b82k.safetensors"):
        model = load_model("Tiny-8", str(save(state_of("Tiny-8"), tmp_path / name)), "cpu").identity
        assert "nothing in weights.pt says which activation" in capsys.readouterr().err or name != "weights.pt"
        for record, source in ((model, "the bundle"), (recorded_model(model), "the list of words")):
            old = {key: record[key] for key in EARLIER if key in record} | {"precision": "fp32"}
            assert load_recorded_model(old, "cpu", source=source).sha256 == model["sha256"]
            (line,) = capsys.readouterr().err.splitlines()
            assert line.startswith(f"{source} has no `architecture` of its model")
    path = save(state_of("Tiny-8"), tmp_path / "openai.pt")
    model = load_model("Tiny-8", str(path), "cpu").identity
    capsys.readouterr()
    load_recorded_model({key: model[key] for key in EARLIER}, "cpu")
    assert "warning: Tiny-8 computes GELU, but openai.pt was trained with QuickGELU" in capsys.readouterr().err


def test_a_model_is_handed_over_within_a_command_only(tiny_resnet_dir: Path) -> None:
    """A caller of the functions gets a separate model, whose towers no other code removes."""
    model = load_model(f"local-dir:{tiny_resnet_dir}", device="cpu")
    hand_over(model)
    assert load_recorded_model(model.identity, "cpu") is not model
    context = copy_context()
    context.run(IN_COMMAND.set, True)
    context.run(hand_over, model)
    assert context.run(load_recorded_model, model.identity, "cpu") is model
    assert load_recorded_model(model.identity, "cpu") is not model
