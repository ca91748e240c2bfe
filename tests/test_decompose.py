"""clip-decompose as a process: added tensors, unchanged tensors, and errors."""

import io
import json
import os
import pty
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.decompose import WORDS

from cliptools.analysis.pursuit import pursue, text_space
from cliptools.io.bundle import Bundle, json_tensor, read_bundle
from cliptools.io.header import Header
from cliptools.models.load import load_model
from cliptools.models.text_encoder import encode_texts

Run = Callable[..., subprocess.CompletedProcess[bytes]]
UNITS, D, TOP = 7, 20, 3


@pytest.fixture(scope="module")
def effects(tiny_clip_dir: Path) -> Bundle:
    """Return effects as clip-effects would write them for the tiny model; the fifth unit never acted."""
    model = load_model(f"local-dir:{tiny_clip_dir}", device="cpu")
    draw = np.random.default_rng(0)
    direction = draw.normal(size=(UNITS, D))
    direction = (direction / np.linalg.norm(direction, axis=1, keepdims=True)).astype(np.float32)
    direction[4] = 0
    share = np.full(UNITS, 0.5, np.float32)
    tensors = {
        "unit": np.stack([np.full(UNITS, 2), np.arange(UNITS), np.full(UNITS, -1)], axis=1).astype(np.int32),
        "direction": direction,
        "mean": draw.normal(size=(UNITS, D)).astype(np.float32),
        "top_norm": np.sort(draw.random((UNITS, TOP)).astype(np.float32), axis=1)[:, ::-1].copy(),
        "top_image": np.tile(np.arange(TOP, dtype=np.int32), (UNITS, 1)),
        "threshold": share,
        "explained": share,
        "explained_all": share,
        "images": json_tensor(["a.png", "b.png", "c.png"]),
    }
    header = Header("effects", model.identity, {"count": 9, "digest": "0" * 64, "skipped": 0}, {"effect": "second"})
    return Bundle(header.after("clip-effects", {"layers": [2]}), tensors)


@pytest.fixture(scope="module")
def stream(effects: Bundle) -> bytes:
    return effects.to_bytes()


@pytest.fixture(scope="module")
def pool(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("pool") / "pool.txt"
    path.write_text("\n".join(WORDS))
    return path


def written(result: subprocess.CompletedProcess[bytes]) -> Bundle:
    assert result.returncode == 0, result.stderr.decode()
    return read_bundle(io.BytesIO(result.stdout), "output")


def only_line(result: subprocess.CompletedProcess[bytes]) -> str:
    """Return the one line of an error (after click's usage line, if there is one)."""
    assert result.stdout == b""
    lines = result.stderr.decode().splitlines()
    assert "Traceback" not in result.stderr.decode()
    assert len([line for line in lines if line and not line.startswith(("Usage:", "Try "))]) == 1, lines
    return lines[-1]


def test_words_are_those_of_the_methods(run: Run, effects: Bundle, stream: bytes, pool: Path, tiny_clip_dir: Path) -> None:
    found = written(run("decompose", "--m", 5, "--pool", pool, "--prefix", "1,4", stdin=stream))
    model = load_model(f"local-dir:{tiny_clip_dir}", device="cpu")
    r = torch.from_numpy(effects["direction"])
    expected = pursue(r, text_space(encode_texts(model, WORDS)), 5)
    listed = found.text_list("words")
    names = [[listed["texts"][j] for j in row if j >= 0] for row in found["word"]]
    assert names == [[WORDS[j] for j in row if j >= 0] for row in expected.word.tolist()]
    assert listed["texts"] == [word for word in WORDS if any(word in row for row in names)]  # in the pool's order
    np.testing.assert_allclose(found["coefficient"], expected.coefficient.numpy(), atol=1e-4)
    np.testing.assert_allclose(found["residual"], expected.residual.numpy(), atol=1e-5)
    np.testing.assert_allclose(found["prefix_residual"], expected.path[:, [0, 3]].numpy(), atol=1e-5)
    shapes = {
        name: (found[name].shape, str(found[name].dtype)) for name in ("word", "coefficient", "residual", "prefix_residual")
    }
    assert shapes == {
        "word": ((UNITS, 5), "int32"),
        "coefficient": ((UNITS, 5), "float32"),
        "residual": ((UNITS,), "float32"),
        "prefix_residual": ((UNITS, 2), "float32"),
    }
    assert found["word"][4].tolist() == [-1] * 5
    assert found["coefficient"][4].tolist() == [0] * 5
    assert found["residual"][4] == 0


def test_the_rest_is_passed_on_and_the_header_says_what_was_done(run: Run, effects: Bundle, stream: bytes, pool: Path) -> None:
    options = (
        "--m",
        3,
        "--pool",
        pool,
        "--template",
        "a {}",
        "--template",
        "the {}",
        "--normalize",
        "dimensions",
        "--center",
        "none",
    )
    found = written(run("decompose", *options, stdin=stream))
    for name, value in effects.tensors.items():
        assert np.array_equal(found[name], value), name
    header, listed = found.header, found.text_list("words")
    assert header.kind == "neurons"
    assert (header.model, header.images) == (effects.header.model, effects.header.images)
    said = {"templates": ["a {}", "the {}"], "center": "none", "normalize": "dimensions", "m": 3, "method": "pursuit"}
    assert header.settings == {"effect": "second", "words": said | {"pool": str(pool), "digest": listed["digest"]}}
    assert [step["command"] for step in header.history] == ["clip-effects", "clip-decompose"]
    assert header.history[-1]["arguments"] == said | {"pool": str(pool)}
    assert "prefix_residual" not in found


def test_equal_runs_give_equal_bytes_from_a_file_or_a_stream(run: Run, stream: bytes, pool: Path, tmp_path: Path) -> None:
    (tmp_path / "in.safetensors").write_bytes(stream)
    first = run("decompose", "--pool", pool, "--m", 4, "--device", "cpu", stdin=stream).stdout
    assert first
    assert run("decompose", "--pool", pool, "--m", 4, "--no-cache", "-", stdin=stream).stdout == first
    out = tmp_path / "out.safetensors"
    result = run("decompose", tmp_path / "in.safetensors", "--pool", pool, "--m", 4, "-o", out)
    assert (result.returncode, result.stdout) == (0, b"")
    assert out.read_bytes() == first


def test_words_given_anew_replace_the_old(run: Run, stream: bytes, pool: Path) -> None:
    once = run("decompose", "--pool", pool, "--m", 6, "--prefix", "2", stdin=stream)
    twice = written(run("decompose", "--pool", pool, "--m", 2, stdin=once.stdout))
    direct = written(run("decompose", "--pool", pool, "--m", 2, stdin=stream))
    assert twice.tensors.keys() == direct.tensors.keys()
    assert all(np.array_equal(twice[name], direct[name]) for name in direct.tensors)
    assert twice.header.settings == direct.header.settings
    assert [step["arguments"]["m"] for step in twice.header.history[1:]] == [6, 2]


def test_lines_and_table(run: Run, stream: bytes, pool: Path) -> None:
    lines = run("decompose", "--pool", pool, "--m", 3, "-f", "jsonl", stdin=stream)
    assert lines.returncode == 0, lines.stderr
    records = [json.loads(line) for line in lines.stdout.splitlines()]
    assert [record["neuron"] for record in records] == list(range(UNITS))
    assert [len(record["words"]) for record in records] == [3, 3, 3, 3, 0, 3, 3]
    assert records[0]["words"][0]["word"] in WORDS
    table = run("decompose", "--pool", pool, "--m", 3, "-f", "table", stdin=stream).stdout.decode()
    assert "writes" in table
    assert records[0]["words"][0]["word"] in table


def test_the_pool_by_default(run: Run, stream: bytes) -> None:
    found = written(run("decompose", "--m", 1, "--no-cache", stdin=stream))
    assert found.header.settings["words"]["pool"] == "words30k"
    assert found.header.history[-1]["arguments"]["pool"] == "words30k"


def test_the_environment_names_options_and_the_cache(run: Run, stream: bytes, pool: Path, tmp_path: Path) -> None:
    environment = {"CLIPTOOLS_POOL": str(pool), "CLIPTOOLS_M": "2", "CLIPTOOLS_CACHE": str(tmp_path / "cache")}
    found = written(run("decompose", stdin=stream, env=environment))
    assert found["word"].shape == (UNITS, 2)
    assert len(list((tmp_path / "cache" / "texts").iterdir())) == 1
    (tmp_path / "none").write_text("")
    blocked = run("decompose", stdin=stream, env=environment | {"CLIPTOOLS_CACHE": str(tmp_path / "none" / "cache")})
    assert blocked.stdout == found.to_bytes()
    assert blocked.stderr.decode().startswith("warning: results cannot be kept in the cache")


def test_two_runs_share_one_cache(stream: bytes, pool: Path, tmp_path: Path) -> None:
    words = [sys.executable, "-m", "cliptools.cli.decompose", "--pool", str(pool), "--m", "2", "-q"]
    environment = os.environ | {"CLIPTOOLS_CACHE": str(tmp_path), "OMP_NUM_THREADS": "1"}
    root = Path(__file__).parent.parent
    runs = [subprocess.Popen(words, stdin=-1, stdout=-1, stderr=-1, cwd=root, env=environment) for _ in range(2)]
    outputs = [run.communicate(stream, timeout=120) for run in runs]
    assert [run.returncode for run in runs] == [0, 0]
    assert outputs[0] == outputs[1]
    assert len(list((tmp_path / "texts").iterdir())) == 1


def test_help_is_instant_and_shows_examples(run: Run) -> None:
    start = time.perf_counter()
    result = run("decompose", "--help")
    assert time.perf_counter() - start < 3
    said = result.stdout.decode()
    assert "clip-effects | clip-decompose" in said
    assert all(option in said for option in ("--m ", "--pool", "--template", "--center", "--normalize", "--prefix", "--no-cache"))


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (("--pool", "words20k"), 1, "pool words20k: neither a file nor one of"),
        (("--template", "a photo"), 1, "expected {} where the text goes"),
        (("--m", "4", "--prefix", "2,8"), 2, "--prefix 2,8: expected numbers from 1 to 4 (--m), found '8'"),
        (("--prefix", "many"), 2, "found 'many'"),
        (("--model", "ViT-B-32"), 2, "the bundle was made with local-dir:"),
        (("--m", "0"), 2, "Invalid value for '--m'"),
        (("--device", "abacus"), 2, "--device abacus: not usable here"),
        (("no-such.safetensors",), 1, "no-such.safetensors: No such file or directory"),
    ],
)
def test_refusals_of_the_command_line(run: Run, stream: bytes, arguments: tuple[str, ...], code: int, said: str) -> None:
    result = run("decompose", *arguments, stdin=stream)
    assert said in only_line(result)
    assert result.returncode == code


def test_refusals_of_the_input(run: Run, effects: Bundle, stream: bytes, pool: Path, tmp_path: Path) -> None:
    other = replace(effects.header, model=effects.header.model | {"sha256": "f" * 64})
    narrow = effects.tensors | {name: effects[name][:, :9].copy() for name in ("direction", "mean") if name in effects}
    without = {name: value for name, value in effects.tensors.items() if name != "direction"}
    (tmp_path / "one.txt").write_text("cat")
    cases = [
        (b"", "empty input, expected a bundle", ()),
        (stream[:-7], "truncated bundle", ()),
        (b"not a bundle at all", "not a safetensors file", ()),
        (replace(effects, header=other).to_bytes(), "same name, another model", ()),
        (replace(effects, tensors=narrow).to_bytes(), "directions have width 9, the model's texts have 20", ()),
        (replace(effects, tensors=without).to_bytes(), "a bundle without `direction`; run clip-effects first", ()),
        (stream, "leave nothing after centring", ("--pool", tmp_path / "one.txt")),
    ]
    for data, said, more in cases:
        result = run("decompose", "--pool", pool, *more, stdin=data)
        assert said in only_line(result)
        assert result.returncode == 1


def test_a_terminal_for_standard_input_is_refused_at_once(pool: Path) -> None:
    leader, follower = pty.openpty()
    words = [sys.executable, "-m", "cliptools.cli.decompose", "--pool", str(pool)]
    result = subprocess.run(words, stdin=follower, capture_output=True, timeout=60, check=False, cwd=Path(__file__).parent.parent)
    os.close(leader)
    os.close(follower)
    assert result.returncode == 2
    assert "pipe it in or name" in only_line(result)
