"""clip-view: parts of a bundle, and their output."""

import json
from pathlib import Path

import numpy as np
import pytest
from conftest import Run
from helpers.bundle import read, small_bundle

from cliptools.analysis.selection import by_comparison, by_units, by_word, rows_named
from cliptools.errors import UsageError
from cliptools.front.unit_records import order_units, unit_records


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("view") / "neurons.safetensors"
    path.write_bytes(small_bundle(words=True).to_bytes())
    return path


def test_whole_bundle_passes_unchanged(run: Run, file: Path) -> None:
    assert run("view", stdin=file.read_bytes()).stdout == file.read_bytes()


def test_part_says_in_its_history_how_it_was_made(run: Run, file: Path) -> None:
    part = read(run("view", "--units", "6:2,6:0", file).stdout)
    assert part["unit"][:, 1].tolist() == [0, 2]
    assert part.header.history[-1]["command"] == "clip-view" and part.header.history[-1]["arguments"]["units"] == "6:2,6:0"


def test_jsonl_carries_words_by_size_model_and_digest(run: Run, file: Path) -> None:
    lines = [json.loads(line) for line in run("view", "-f", "jsonl", file).stdout.splitlines()]
    assert [line["neuron"] for line in lines] == [0, 1, 2]
    assert [w["word"] for w in lines[1]["words"]] == ["cat", "boat", "dog"]
    assert lines[0]["model"]["name"] == "m" and len(lines[0]["bundle"]) == 64
    assert lines == list(unit_records(small_bundle(words=True)))


def test_table_and_header(run: Run, file: Path) -> None:
    table = run("view", "-f", "table", file).stdout.decode()
    assert "6:1" in table and "+cat" in table and "−boat" in table
    header = json.loads(run("view", "--header", file).stdout)
    assert header["tensors"]["unit"] == "I32 [3, 3]" and header["history"][0]["command"] == "clip-effects"


@pytest.mark.parametrize(
    ("arguments", "neurons"),
    [
        (["--word", "Cat"], [1]),
        (["--word", "boat", "--strongest", "1"], []),
        (["--residual", "<=0.5"], [0, 1]),
        (["--sort", "residual", "--head", "1"], [0]),
        (["--layers", "6"], [0, 1, 2]),
    ],
)
def test_selections(run: Run, file: Path, arguments: list[str], neurons: list[int]) -> None:
    assert read(run("view", *arguments, file).stdout)["unit"][:, 1].tolist() == neurons


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--layers", "9"], "no layer 9"),
        (["--layers", "x"], "expected layers like"),
        (["--layers", "6-5"], "expected layers like"),
        (["--layers", "6²"], "expected layers like"),
        (["--layers", "0-99999999999"], "expected layers like"),
        (["--units", "6:77"], "no unit 6:77"),
        (["--units", "six"], "layer:neuron"),
        (["--explained", "0.5"], "expected a comparison"),
    ],
)
def test_misuse_is_one_line_and_code_2(run: Run, file: Path, arguments: list[str], message: str) -> None:
    ended = run("view", *arguments, file)
    assert ended.returncode == 2 and not ended.stdout
    assert message in ended.stderr.decode() and len(ended.stderr.splitlines()) == 1


def test_a_part_without_units_is_sound(run: Run, file: Path) -> None:
    empty = run("view", "--explained", ">2", file).stdout
    assert read(empty).units == 0
    ended = run("view", "--check", stdin=empty)
    assert (ended.returncode, ended.stdout.split(b",")[0]) == (0, b"sound: 0 units")


def test_orders() -> None:
    bundle = small_bundle()
    assert order_units(bundle, "norm")[0] == bundle["top_norm"].mean(1).argmax()
    assert (np.diff(bundle["explained"][order_units(bundle, "explained")]) <= 0).all()
    with pytest.raises(UsageError, match="no words yet"):
        order_units(bundle, "residual")
    with pytest.raises(UsageError, match="no words yet"):
        by_word(bundle, "dog", 8)


def test_comparisons_and_units() -> None:
    values = np.array([0.1, 0.5, 0.9])
    assert by_comparison(values, ">=.5", "--x").tolist() == [False, True, True]
    assert by_comparison(values, "< 1e-1", "--x").tolist() == [False, False, False]
    assert by_units(small_bundle(), "6:1").tolist() == [False, True, False]
    assert rows_named(small_bundle(), "6:1,6:0,6:1").tolist() == [1, 0]  # one that is named twice counts once
