"""clip-spurious as a process: its records, many pairs at once, and errors."""

import json
import subprocess
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from conftest import Run
from helpers.advgen_input import inside
from helpers.spurious import POOL, UNITS, M, eq6, random_words
from sklearn.metrics.pairwise import cosine_similarity

from cliptools.analysis.spurious import near_texts
from cliptools.io.bundle import Bundle, json_tensor
from cliptools.io.header import Header, digest
from cliptools.models.load import load_model
from cliptools.models.text_encoder import encode_texts
from cliptools.text.vocabularies import recorded_pool


@pytest.fixture(scope="module")
def pool_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("pool") / "pool.txt"
    path.write_text("\n".join(POOL))
    return path


@pytest.fixture(scope="module")
def bundle(tiny_clip_dir: Path, pool_file: Path) -> Bundle:
    """Return neurons of the tiny model as clip-decompose would write them; the pool's last text is used by none of them."""
    r, words = random_words(6, len(POOL) - 1)
    tensors = {
        "unit": np.stack([np.arange(UNITS) % 2 + 1, np.arange(UNITS), np.full(UNITS, -1)], 1).astype(np.int32),
        "direction": r.astype(np.float32),
        "word": words.word.astype(np.int32),
        "coefficient": words.gamma.astype(np.float32),
        "residual": np.full(UNITS, 0.5, np.float32),
        "words": json_tensor({"texts": POOL[:-1], "pool": str(pool_file), "digest": digest(*POOL)}),
    }
    identity = load_model(f"local-dir:{tiny_clip_dir}", device="cpu").identity
    header = Header("neurons", identity, {"count": 9, "digest": "0" * 64, "skipped": 0}, {"effect": "second"})
    return Bundle(header.after("clip-decompose", {"m": M}), tensors)


def records(ended: subprocess.CompletedProcess[bytes]) -> list[dict]:
    assert ended.returncode == 0, ended.stderr.decode()
    return [json.loads(line) for line in ended.stdout.splitlines()]


def test_records_say_what_the_equation_says(run: Run, bundle: Bundle, tiny_clip_dir: Path) -> None:
    ended = run("spurious", "--depict", "zeppelin", "--predict", "quay", "--neurons", 11, stdin=bundle.to_bytes())
    found = records(ended)
    assert b"zeppelin: not among the 13 texts of vocabulary" in ended.stderr
    model = load_model(f"local-dir:{tiny_clip_dir}", device="cpu")
    depict, predict = encode_texts(model, ["zeppelin", "quay"]).double().numpy()
    w = eq6(predict - depict, bundle["direction"], bundle["word"], bundle["coefficient"], 11, len(POOL))
    near = near_texts(encode_texts(model, POOL).double().numpy(), predict[None], 0.7)
    order = sorted((j for j in range(len(POOL)) if w[j] > 0 and not near[j] and POOL[j] != "quay"), key=lambda j: -w[j])
    assert order and [record["word"] for record in found] == [POOL[j] for j in order]
    assert [record["score"] for record in found] == pytest.approx([w[j] for j in order], rel=1e-4)
    first = found[0]
    assert [record["rank"] for record in found] == list(range(1, len(found) + 1))
    assert (first["pair"], first["depict"], first["predict"]) == ("zeppelin->quay", "zeppelin", "quay")
    assert (first["by"], first["seed"], first["effect"]) == ("effect", 0, "second")
    assert first["model"] == {key: bundle.header.model[key] for key in ("name", "pretrained", "sha256", "architecture")}
    assert first["bundle"] == bundle.digest and first["exclusions"]["names"] == ["quay"]
    assert first["settings"] == {"neurons": 11, "words": 25, "layers": None, "templates": []}
    neuron = first["neurons"][0]
    row = neuron["neuron"]
    assert neuron["layer"] == bundle["unit"][row, 0]
    gamma = bundle["coefficient"][row][bundle["word"][row] == order[0]].sum()
    assert neuron["share"] == pytest.approx(gamma * bundle["direction"][row] @ (predict - depict) / w[order[0]], rel=1e-4)


def test_layers_words_templates_and_equal_bytes(run: Run, bundle: Bundle, tmp_path: Path) -> None:
    options = ("--depict", "cat", "--predict", "quay", "--layers", 2, "--words", 2, "--template", "a {} here", "--near", 1)
    once = run("spurious", *options, stdin=bundle.to_bytes())
    found = records(once)
    assert len(found) == 2 and {n["layer"] for record in found for n in record["neurons"]} == {2}
    assert found[0]["bundle"] == bundle.digest and found[0]["settings"]["templates"] == ["a {} here"]
    file = tmp_path / "neurons.safetensors"
    file.write_bytes(bundle.to_bytes())
    out = tmp_path / "words.jsonl"
    assert run("spurious", *options, "--no-cache", file, "-o", out).returncode == 0
    assert out.read_bytes() == once.stdout
    table = inside("spurious", *options, "-f", "table", file)
    assert table.returncode == 0 and found[1]["word"] in table.stdout.decode() and "%" in table.stdout.decode()


def test_all_pairs_of_a_list_the_clearest_first(bundle: Bundle, tmp_path: Path) -> None:
    names = ("quay", "snow", "cedar", "zeppelin")
    (tmp_path / "classes.txt").write_text("\n".join(names))
    (tmp_path / "pairs.csv").write_text("\n".join(f"{a},{b}" for a in names for b in names if a != b))
    data = bundle.to_bytes()
    every = records(inside("spurious", "--pairs-file", tmp_path / "pairs.csv", "--near", 1, stdin=data))
    clear = {record["pair"]: 0.0 for record in every}
    for record in every:
        clear[record["pair"]] += record["score"]
    assert len(clear) == 12 and all(r["clearness"] == pytest.approx(clear[r["pair"]], rel=1e-4) for r in every)
    ranked = records(inside("spurious", "--classes", tmp_path / "classes.txt", "--head", 5, "--near", 1, stdin=data))
    assert list(dict.fromkeys(r["pair"] for r in ranked)) == sorted(clear, key=lambda pair: -clear[pair])[:5]
    assert [r for r in every if r["pair"] == ranked[0]["pair"]] == [r for r in ranked if r["pair"] == ranked[0]["pair"]]


def test_similar_words_come_from_the_whole_pool(bundle: Bundle, tiny_clip_dir: Path, tmp_path: Path) -> None:
    options = ("--depict", "cat", "--predict", "snow", "--by", "similar", "--near", 1, "--words", 99)
    found = records(inside("spurious", *options, stdin=bundle.to_bytes()))
    model = load_model(f"local-dir:{tiny_clip_dir}", device="cpu")
    t = encode_texts(model, POOL).double().numpy()
    cosine = dict(zip(POOL, cosine_similarity(t, (t[POOL.index("snow")] - t[0])[None])[:, 0], strict=True))
    assert [r["score"] for r in found] == pytest.approx([cosine[r["word"]] for r in found], abs=1e-5)
    assert all(cosine["frost"] <= 0 or "frost" in [r["word"] for r in found] for _ in found)  # in the pool, not in the bundle
    assert not any(r["neurons"] for r in found)
    lost = {"texts": POOL[:-1], "pool": str(tmp_path / "gone.txt"), "digest": digest(*POOL)}
    elsewhere = replace(bundle, tensors=bundle.tensors | {"words": json_tensor(lost)})
    ended = inside("spurious", *options, stdin=elsewhere.to_bytes())
    assert "frost" not in [r["word"] for r in records(ended)]
    assert b"only the 12 texts in the bundle can be used" in ended.stderr


def test_a_pool_that_has_changed_is_noticed(bundle: Bundle, pool_file: Path, tmp_path: Path, capsys) -> None:
    assert recorded_pool(bundle).texts == POOL
    changed = tmp_path / "changed.txt"
    changed.write_text("\n".join(POOL[1:]))
    lost = {"texts": POOL[:-1], "pool": str(changed), "digest": digest(*POOL)}
    assert recorded_pool(replace(bundle, tensors=bundle.tensors | {"words": json_tensor(lost)})).texts == POOL[:-1]
    assert "has changed since" in capsys.readouterr().err


def test_block_list_and_a_list_that_is_emptied(bundle: Bundle, tmp_path: Path) -> None:
    block = tmp_path / "block.txt"
    block.write_text("Snow\n")
    options = ("--depict", "cat", "--predict", "quay", "--near", 1, "--block-list", block)
    found = records(inside("spurious", *options, stdin=bundle.to_bytes()))
    assert "snow" not in [r["word"] for r in found] and found[0]["exclusions"]["block_list"] == str(block)
    block.write_text("\n".join(POOL))
    ended = inside("spurious", *options, stdin=bundle.to_bytes())
    (line,) = ended.stderr.decode().splitlines()
    assert ended.returncode == 1 and "cat->quay: no words left: all" in line and "--block-list" in line
    (tmp_path / "classes.txt").write_text("cat\nquay")
    ended = inside("spurious", "--classes", tmp_path / "classes.txt", "--block-list", block, stdin=bundle.to_bytes())
    assert ended.returncode == 1 and b"none of 2 pairs has a word left" in ended.stderr


@pytest.mark.parametrize(
    ("options", "code", "message"),
    [
        ((), 2, "expected exactly one of: --depict with --predict"),
        (("--depict", "cat"), 2, "need each other"),
        (("--depict", "cat", "--predict", "dog", "--classes", "cifar10"), 2, "expected exactly one of"),
        (("--pairs-file", "cifar10", "--head", "3"), 2, "--head 3 needs --classes"),
        (("--depict", "cat", "--predict", "cat"), 1, "expected two classes"),
        (("--depict", " ", "--predict", "cat"), 2, "empty"),
        (("--classes", "no-such-file"), 1, "neither a file nor one of"),
        (("--pairs-file", "no-such-file"), 1, "neither a file nor one of cifar10"),
        (("--depict", "cat", "--predict", "dog", "--block-list", "no-such-file"), 1, "block list no-such-file: no such file"),
        (("--depict", "cat", "--predict", "dog", "--layers", "7"), 2, "the bundle has no layer 7"),
        (("--depict", "cat", "--predict", "dog", "--template", "a thing"), 1, "expected {}"),
        (("--depict", "cat", "--predict", "dog", "--near", "1.5"), 2, "1.5"),
        (("--depict", "cat", "--predict", "dog", "no-such-bundle"), 1, "no-such-bundle: No such file"),
    ],
)
def test_bad_input_is_one_line(bundle: Bundle, options: tuple[str, ...], code: int, message: str) -> None:
    ended = inside("spurious", *options, stdin=bundle.to_bytes())
    said = [line for line in ended.stderr.decode().splitlines() if line and not line.startswith(("Usage:", "Try "))]
    assert ended.returncode == code and len(said) == 1 and message in said[0], ended.stderr.decode()
    assert ended.stdout == b""


def test_bundles_that_will_not_do(bundle: Bundle) -> None:
    options = ("--depict", "cat", "--predict", "quay")
    bare = {key: value for key, value in bundle.tensors.items() if key not in ("word", "coefficient", "words")}
    ended = inside("spurious", *options, stdin=replace(bundle, tensors=bare).to_bytes())
    assert ended.returncode == 1 and b"without `word`; run clip-decompose first" in ended.stderr
    ended = inside("spurious", *options, stdin=bundle.select(np.arange(0)).to_bytes())
    assert ended.returncode == 1 and b"has no neurons" in ended.stderr and ended.stderr.count(b"\n") == 1
    ended = inside("spurious", *options, stdin=bundle.to_bytes()[:-9])
    assert ended.returncode == 1 and b"truncated bundle" in ended.stderr
    other = replace(bundle.header, model=bundle.header.model | {"sha256": "0" * 64})
    ended = inside("spurious", *options, stdin=replace(bundle, header=other).to_bytes())
    assert ended.returncode == 1 and b"another model" in ended.stderr
