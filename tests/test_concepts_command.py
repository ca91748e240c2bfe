"""clip-concepts as a process: its records for images from all sources, and errors."""

import io
import json
import subprocess
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import Run
from helpers.advgen_input import inside
from helpers.oracles import second_order_effects
from helpers.pipes import on_terminal, shell
from PIL import Image

from cliptools.images.tar import write_end, write_member
from cliptools.io.bundle import Bundle, json_tensor
from cliptools.io.header import Header, digest
from cliptools.models.load import load_model
from cliptools.unit_effects.factored import UnitActivity
from cliptools.unit_effects.vit_second_order import SecondOrder

WORDS = ("cat", "dog", "snow", "yacht", "cedar", "sour")
UNITS = ((1, 4), (2, 0), (1, 7), (2, 33), (1, 2))


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder, random = tmp_path_factory.mktemp("photos"), np.random.default_rng(4)
    for i in range(6):
        Image.fromarray(random.integers(0, 256, (24, 24, 3)).astype(np.uint8)).save(folder / f"{i}.png")
    lines = [json.dumps({"key": str(i), "names": [WORDS[i], "walrus"]}) for i in range(6)]
    (folder / "truth.jsonl").write_text("\n".join(lines))
    return folder


@pytest.fixture(scope="module")
def neurons(tiny_clip_dir: Path, photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """Return a decomposed bundle of the tiny model with thresholds that half of the images exceed, and one that none exceeds."""
    model, random = load_model(f"local-dir:{tiny_clip_dir}", device="cpu"), np.random.default_rng(0)
    pool = tmp_path_factory.mktemp("pool") / "pool.txt"
    pool.write_text("\n".join(WORDS))
    n, m = len(UNITS), 3
    columns = {"word": np.stack([random.permutation(len(WORDS))[:m] for _ in range(n)]).astype(np.int32)}
    columns |= {name: random.normal(size=(n, 20)).astype(np.float32) for name in ("mean", "direction")}
    columns["coefficient"] = random.normal(size=(n, m)).astype(np.float32)
    columns |= {name: np.full(n, 0.5, np.float32) for name in ("explained", "explained_all", "residual")}
    columns["unit"] = np.array([(*unit, -1) for unit in UNITS], np.int32)
    columns["top_norm"], columns["top_image"] = np.ones((n, 1), np.float32), np.zeros((n, 1), np.int32)
    columns["images"] = json_tensor(["a.png"])
    columns["words"] = json_tensor({"texts": list(WORDS), "pool": str(pool), "digest": digest(*WORDS)})
    images = torch.stack([model.transform(Image.open(photos / f"{i}.png")) for i in range(6)])
    unit, b, r = (torch.from_numpy(columns[name]) for name in ("unit", "mean", "direction"))
    norm = UnitActivity(SecondOrder(model.clip.visual), unit, b, r)(images).norm.sort(0).values
    columns["threshold"] = ((norm[2] + norm[3]) / 2 + torch.tensor([0, 0, 0, 0, 400])).numpy()
    settings = {"effect": "second", "scale": "unit", "quantile": 0.9, "words": {"center": "pool", "normalize": "texts"}}
    return Bundle(Header("neurons", model.identity, {"count": 9}, settings), columns)


@pytest.fixture(scope="module")
def file(neurons: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("bundle") / "neurons.safetensors"
    path.write_bytes(neurons.to_bytes())
    return path


def lines(result: subprocess.CompletedProcess[bytes]) -> list[dict]:
    assert result.returncode == 0, result.stderr.decode()
    return [json.loads(line) for line in result.stdout.splitlines()]


def only_line(result: subprocess.CompletedProcess[bytes]) -> str:
    assert result.stdout == b"" and "Traceback" not in result.stderr.decode()
    (line,) = (line for line in result.stderr.decode().splitlines() if line and not line.startswith(("Usage:", "Try ")))
    return line


@pytest.fixture(scope="module")
def whole(run: Run, photos: Path, file: Path) -> bytes:
    result = run("concepts", photos, "--score", "signed", "--bundle", file, "-q")
    assert result.returncode == 0 and result.stderr == b"", result.stderr.decode()
    return result.stdout


def test_thresholds_that_no_image_exceeds_are_said(run: Run, photos: Path, neurons: Bundle, tmp_path: Path) -> None:
    """The threshold of a bundle of few images is the largest norm of all."""
    high = replace(neurons, tensors=neurons.tensors | {"threshold": neurons["threshold"] + 400})
    path = tmp_path / "high.safetensors"
    path.write_bytes(high.to_bytes())
    result = run("concepts", photos, "--bundle", path, "-q")
    assert {record["active"] for record in lines(result)} == {0} and b"--neurons all" in result.stderr
    assert b"--neurons" not in run("concepts", photos, "--bundle", path, "--neurons", "all", "-q").stderr


def test_a_finished_run_says_nothing_of_thresholds(run: Run, photos: Path, file: Path, tmp_path: Path) -> None:
    """A resumed run without an image left has seen no neuron act, and none that was silent."""
    words = ("concepts", photos, "--bundle", file, "-o", tmp_path / "concepts.jsonl", "-q")
    for more in ((), ("--resume",)):
        ended = run(*words, *more)
        assert ended.returncode == 0 and ended.stderr == b"", ended.stderr.decode()


def test_records_are_the_papers_sum_over_formed_effects(whole: bytes, photos: Path, neurons: Bundle) -> None:
    model = load_model(neurons.header.model["name"], device="cpu")
    b, r = (torch.from_numpy(neurons[name]) for name in ("mean", "direction"))
    records = [json.loads(line) for line in whole.splitlines()]
    assert [record["image"] for record in records] == [f"{i}.png" for i in range(6)]
    assert len({record["active"] for record in records}) > 1
    for record in records:
        picture = model.transform(Image.open(photos / record["image"]))
        effects = {layer: second_order_effects(model.clip.visual, picture, layer) for layer in (1, 2)}
        scale = 100 / model.clip.visual(picture[None])[0].norm()
        centred = torch.stack([effects[layer][n] * scale for layer, n in UNITS]) - b
        norm, along = centred.norm(dim=1), (centred * r).sum(1)
        active = [n for n in range(len(UNITS)) if norm[n] > neurons["threshold"][n]]
        assert record["active"] == len(active)
        score = dict.fromkeys(WORDS, 0.0)
        for n in active:
            for j, gamma in zip(neurons["word"][n], neurons["coefficient"][n], strict=True):
                score[WORDS[j]] += float(gamma * along[n])
        expected = sorted(((s, word) for word, s in score.items() if s > 0), reverse=True)
        assert [concept["word"] for concept in record["concepts"]] == [word for _, word in expected]
        found = [concept["score"] for concept in record["concepts"]]
        np.testing.assert_allclose(found, [s for s, _ in expected], rtol=1e-3)
        telling = sorted((n for n in active if along[n] > 0), key=lambda n: -along[n])
        assert [(each["layer"], each["neuron"]) for each in record["neurons"]] == [UNITS[n] for n in telling]
        for each, n in zip(record["neurons"], telling, strict=True):
            np.testing.assert_allclose((each["norm"], each["projection"]), (norm[n], along[n]), rtol=1e-3)
        assert record["bundle"] == neurons.digest and record["model"]["sha256"] == model.sha256


def test_a_tar_on_standard_input_gives_the_same(run: Run, photos: Path, file: Path, whole: bytes) -> None:
    tar = io.BytesIO()
    for i in range(6):
        write_member(tar, f"{i}.png", (photos / f"{i}.png").read_bytes())
    write_end(tar)
    ended = run("concepts", "-", "--bundle", file, "--score", "signed", "--workers", "0", stdin=tar.getvalue())
    assert ended.stdout == whole and ended.stderr.startswith(b"clip-concepts: 6 images (")


def test_the_bundle_on_standard_input_and_a_bad_image(run: Run, photos: Path, file: Path, whole: bytes, tmp_path: Path) -> None:
    for i in range(6):
        (tmp_path / f"{i}.png").write_bytes((photos / f"{i}.png").read_bytes())
    (tmp_path / "0a.png").write_bytes(b"no picture")
    ended = run("concepts", tmp_path, "--score", "signed", stdin=file.read_bytes())
    assert ended.stdout == whole
    assert "0a.png: skipped" in ended.stderr.decode() and "6 images, 1 skipped" in ended.stderr.decode()
    target = tmp_path / "out.jsonl"
    strict = inside("concepts", tmp_path, "--strict", "-o", target, stdin=file.read_bytes())
    assert strict.returncode == 1 and only_line(strict).startswith("clip-concepts: 0a.png") and not target.exists()


def test_an_interrupted_run_goes_on(run: Run, photos: Path, file: Path, tmp_path: Path) -> None:
    """After an unreadable image, and then after an interruption in the middle of a line, the result is that of one run."""
    folder, target, part = tmp_path / "in", tmp_path / "out.jsonl", tmp_path / "out.jsonl.part"
    folder.mkdir()
    for i in range(6):
        (folder / f"{i}.png").write_bytes((photos / f"{i}.png").read_bytes())
    words = (folder, "--batch-size", 2, "--bundle", file)
    whole = run("concepts", *words).stdout
    expected = whole.splitlines(keepends=True)
    words = (*words, "-o", target)
    (folder / "5.png").write_bytes(b"no picture")
    assert only_line(run("concepts", *words, "--strict")).startswith("clip-concepts: 5.png") and not target.exists()
    assert part.read_bytes() == b"".join(expected[:4]), "what was written is not lost"
    part.write_bytes(b"".join(expected[:3]) + b'{"image": "3.p')
    (folder / "5.png").write_bytes((photos / "5.png").read_bytes())
    resumed = run("concepts", *words, "--resume")
    assert resumed.stderr.startswith(b"clip-concepts: 6 images, 2 of them by an earlier run (") and resumed.stdout == b""
    assert target.read_bytes() == whole and not part.exists()


def test_images_that_were_added_before_a_run_goes_on_are_described(run: Run, photos: Path, file: Path, tmp_path: Path) -> None:
    """A new image in the middle of the list is read; one that still cannot be read is skipped again."""
    folder, target = tmp_path / "in", tmp_path / "out.jsonl"
    folder.mkdir()
    for i in (0, 1, 2, 4, 5):
        (folder / f"{i}.png").write_bytes((photos / f"{i}.png").read_bytes())
    (folder / "1.png").write_bytes(b"no picture")
    words = (folder, "--batch-size", 2, "--bundle", file)
    assert run("concepts", *words, "-o", target).returncode == 0
    (folder / "3.png").write_bytes((photos / "3.png").read_bytes())
    resumed = run("concepts", *words, "-o", target, "--resume")
    assert resumed.returncode == 0 and b"5 images, 1 of them by an earlier run" in resumed.stderr
    assert target.read_bytes() == run("concepts", *words).stdout
    (folder / "1.png").write_bytes((photos / "1.png").read_bytes())
    again = run("concepts", *words, "-o", target, "--resume", "--strict")
    assert again.returncode == 0 and target.read_bytes() == run("concepts", *words).stdout


def test_what_an_earlier_run_has_left_must_fit(photos: Path, file: Path, tmp_path: Path) -> None:
    target, part = tmp_path / "out.jsonl", tmp_path / "out.jsonl.part"
    words = ("concepts", photos / "0.png", photos / "1.png", photos / "2.png", "--bundle", file, "-o", target)
    assert inside(*words).returncode == 0
    whole = target.read_bytes()
    again = inside(*words, "--resume")
    assert b"3 of them by an earlier run" in again.stderr and target.read_bytes() == whole and not part.exists()
    assert "started with score 'norm', now asked for 'signed'" in only_line(inside(*words, "--score", "signed", "--resume"))
    assert "left by an earlier run; continue it with --resume" in only_line(inside(*words)), "the lines were not dropped"
    truth = (*words, "--truth", photos / "truth.jsonl", "--resume")
    assert "started with truth None, now asked for ['cat', 'walrus']" in only_line(inside(*truth))
    others = ("concepts", photos / "0.png", photos / "2.png", "--bundle", file, "-o", target, "--resume")
    assert "1.png', which is not one of the images that follow" in only_line(inside(*others))
    assert part.read_bytes() == whole
    first, _, third = whole.splitlines(keepends=True)
    part.write_bytes(first + third)
    for strict in ((), ("--strict",)):  # the image that has no record was not there before
        part.write_bytes(first + third)
        assert inside(*words, "--resume", *strict).returncode == 0 and target.read_bytes() == whole
    part.write_bytes(b"no record\n")
    assert "damaged" in only_line(inside(*words, "--resume"))


def test_recall_against_the_truth(photos: Path, file: Path) -> None:
    common = ("concepts", photos, "--bundle", file, "--truth", photos / "truth.jsonl", "--words", 2)
    records = lines(inside(*common))
    for i, record in enumerate(records):
        assert record["truth"] == [WORDS[i], "walrus"]
        assert record["found"] == [name for name in record["truth"] if name in [c["word"] for c in record["concepts"]]]
    (total,) = lines(inside(*common, "--evaluate"))
    found = sum(len(record["found"]) for record in records)
    assert (total["images"], total["names"], total["found"]) == (6, 12, found) and found > 0
    assert total["low"] <= total["recall"] <= total["high"] and total["settings"]["score"] == "norm"


def test_by_text_is_the_models_own_ranking(photos: Path, file: Path, neurons: Bundle) -> None:
    from cliptools.models.text_encoder import encode_texts

    (record,) = lines(inside("concepts", photos / "2.png", "--bundle", file, "--by", "text", "--words", 3, "--no-cache"))
    model = load_model(neurons.header.model["name"], device="cpu")
    embedding = model.clip.encode_image(model.transform(Image.open(photos / "2.png"))[None])
    cosine = torch.nn.functional.cosine_similarity(embedding, encode_texts(model, WORDS))
    order = cosine.argsort(descending=True)[:3].tolist()
    assert [concept["word"] for concept in record["concepts"]] == [WORDS[j] for j in order]
    np.testing.assert_allclose([c["score"] for c in record["concepts"]], cosine[order].numpy(), atol=1e-5)
    assert "active" not in record and record["settings"]["by"] == "text"


def test_directions_of_all_and_random_neurons(photos: Path, file: Path) -> None:
    (record,) = lines(
        inside("concepts", photos / "1.png", "--bundle", file, "--by", "directions", "--neurons", "all", "--layers", "2")
    )
    assert {each["layer"] for each in record["neurons"]} == {2} and len(record["neurons"]) == 2
    (drawn,) = lines(inside("concepts", photos / "1.png", "--bundle", file, "--neurons", "random", "--seed", 3))
    assert drawn["settings"]["seed"] == 3 and len(drawn["neurons"]) == drawn["active"]


def test_a_table_on_a_terminal_and_a_reader_that_leaves(photos: Path, file: Path) -> None:
    code, shown = on_terminal("cliptools.cli.concepts", f"{photos}/0.png", f"{photos}/1.png", "--bundle", str(file), "-q")
    assert code == 0 and "concepts" in shown and "1.png" in shown and any(word in shown for word in WORDS)
    ended = shell(f"clip-concepts -q {photos} --batch-size 1 --bundle {file} | head -c 20")
    assert ended.returncode == 0 and ended.stderr == b"" and len(ended.stdout) == 20


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (("-",), 2, "PATH - and the bundle cannot both come from standard input"),
        ((), 2, "no images named"),
        (("PHOTOS", "--evaluate"), 2, "--evaluate needs --truth FILE"),
        (("PHOTOS", "--by", "text", "--neurons", "all"), 2, "--by text uses no neurons"),
        (("PHOTOS", "--layers", "3"), 2, "the bundle has no layer 3"),
        (("PHOTOS", "--truth", "no-such.jsonl"), 1, "no-such.jsonl: cannot be read"),
        (("no-such.png",), 1, "no-such.png"),
        (("PHOTOS", "--resume"), 2, "--resume needs -o FILE"),
        (("PHOTOS", "--limit", "2", "--sample", "2"), 2, "give one of them"),
    ],
)
def test_refusals_of_the_command_line(photos: Path, file: Path, arguments: tuple[str, ...], code: int, said: str) -> None:
    named = [str(photos) if each == "PHOTOS" else each for each in arguments]
    result = inside("concepts", *named, stdin=file.read_bytes())
    assert said in only_line(result) and result.returncode == code


def test_refusals_of_the_bundle(photos: Path, neurons: Bundle) -> None:
    header, tensors = neurons.header, neurons.tensors
    cases = [
        (b"", "empty input, expected a bundle"),
        (neurons.to_bytes()[:-5], "truncated bundle"),
        (replace(neurons, tensors={k: v for k, v in tensors.items() if k != "word"}).to_bytes(), "run clip-decompose first"),
        (replace(neurons, header=replace(header, model=header.model | {"sha256": "f" * 64})).to_bytes(), "another model"),
        (
            replace(neurons, header=replace(header, settings=header.settings | {"effect": "indirect"})).to_bytes(),
            "a bundle of indirect effects; clip-concepts needs second-order effects",
        ),
        (
            replace(neurons, tensors=tensors | {"unit": tensors["unit"] + np.array([[2, 0, 0]], np.int32)}).to_bytes(),
            "has a neuron 3:4",
        ),
        (replace(neurons, tensors=tensors | {"mean": tensors["mean"][:, :7].copy()}).to_bytes(), "`mean` has 7"),
    ]
    for data, said in cases:
        result = inside("concepts", photos, stdin=data)
        assert said in only_line(result) and result.returncode == 1


def test_a_pool_that_is_gone_is_said(photos: Path, neurons: Bundle) -> None:
    words = {"texts": list(WORDS), "pool": "no-such-pool.txt", "digest": digest(*WORDS)}
    moved = replace(neurons, tensors=neurons.tensors | {"words": json_tensor(words)})
    result = inside("concepts", photos / "0.png", "--by", "text", "--no-cache", stdin=moved.to_bytes())
    assert len(lines(result)) == 1 and "vocabulary 'no-such-pool.txt' not found" in result.stderr.decode()
