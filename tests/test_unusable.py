"""Images without a usable output: named, counted and left out by every command that runs the image tower."""

import json
import subprocess
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from helpers.advgen_input import inside
from helpers.advgen_input import model as emoji_vit
from helpers.bundle import read
from helpers.overflowing import (
    HALF,
    HUGE,
    overflowing_resnet,
    overflowing_text,
    overflowing_vit,
    save_pictures,
    speechless,
)
from helpers.second_order import SHAPES, pictures, random_tower
from helpers.statistics import batches_of
from PIL import Image

from cliptools.analysis.retrieval import embeddings, largest_norms
from cliptools.analysis.zero_shot import Tally, score
from cliptools.console import count_of
from cliptools.errors import CliptoolsError, ImageError, TextError
from cliptools.io.bundle import Bundle, check_finite
from cliptools.io.cache import cached
from cliptools.models.load import load_model
from cliptools.models.text_encoder import encode_pool, encode_texts
from cliptools.models.unusable import ENOUGH, Screen, unusable
from cliptools.streaming.embeddings import Embeddings
from cliptools.streaming.measure import measure
from cliptools.streaming.shards import measure_shard
from cliptools.streaming.summary import Settings
from cliptools.streaming.vit_indirect import token_means
from cliptools.text.vocabularies import Pool
from cliptools.unit_effects.vit_second_order import SecondOrder

COUNT = 18  # pictures beside the white one
SMALL = ("--layers", "1,2", "--top-images", 5, "--quantile", "0.8", "--batch-size", 5, "--workers", 0)
NAN = "the model's output holds NaN or infinity"
SKIPPED = f"warning: white.png: skipped, {NAN}"


class Place(NamedTuple):
    """Pictures including a white one, and models that fail on it."""

    photos: Path
    vit: str
    half: str
    """Too much in half precision only."""
    resnet: str
    damaged: str
    """Every picture is."""
    folder: Path


@pytest.fixture(scope="module")
def place(tiny_clip_dir: Path, tiny_resnet_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Place:
    folder = tmp_path_factory.mktemp("unusable")
    vit = overflowing_vit(tiny_clip_dir, folder / "vit", HUGE)
    half = overflowing_vit(tiny_clip_dir, folder / "half", HALF)
    damaged = overflowing_vit(tiny_clip_dir, folder / "damaged", HUGE, always=True)
    resnet = overflowing_resnet(tiny_resnet_dir, folder / "resnet")
    names = (f"local-dir:{each}" for each in (vit, half, resnet, damaged))
    return Place(save_pictures(folder / "photos", COUNT), *names, folder)


def ok(ended: subprocess.CompletedProcess[bytes]) -> subprocess.CompletedProcess[bytes]:
    assert ended.returncode == 0, ended.stderr.decode()
    return ended


def said(ended: subprocess.CompletedProcess[bytes]) -> list[str]:
    assert "Traceback" not in ended.stderr.decode()
    return ended.stderr.decode().splitlines()


def records(ended: subprocess.CompletedProcess[bytes]) -> list[dict[str, Any]]:
    return [json.loads(line) for line in ok(ended).stdout.splitlines()]


def check_without_white(bundle: Bundle) -> None:
    """Check 18 images with one skipped: every number is finite, and the white picture appears nowhere."""
    assert (bundle.header.images["count"], bundle.header.images["skipped"]) == (COUNT, 1)
    assert all(np.isfinite(values).all() for values in bundle.tensors.values() if values.dtype.kind == "f")
    assert "white.png" not in bundle.text_list("images") and (bundle["top_norm"][:, 0] > 0).any()


def same(ours: Bundle, theirs: Bundle) -> None:
    """Compare apart from the list's digest and the last digits, which depend on the sizes of batches."""
    assert ours.text_list("images") == theirs.text_list("images")
    for name, values in theirs.tensors.items():
        if values.dtype.kind == "f":
            np.testing.assert_allclose(ours[name], values, rtol=2e-3, atol=2e-3 * np.abs(values).max(), err_msg=name)


@pytest.fixture(scope="module")
def bundles(place: Place) -> dict[str, bytes]:
    """Return effects of each kind over the pictures, including the white one."""
    made: dict[str, bytes] = {}
    asked: dict[str, tuple[Any, ...]] = {
        "second": ("--model", place.vit, *SMALL),
        "first": ("--model", place.vit, *SMALL, "--effect", "first"),
        "indirect": ("--model", place.vit, *SMALL, "--effect", "indirect", "--sample-neurons", 4),
        "heads": ("--model", place.vit, *SMALL, "--units", "heads"),
        "pooled": ("--model", place.resnet, *SMALL[2:]),
        "raw": ("--model", place.resnet, *SMALL[2:], "--units", "neurons", "--scale", "raw"),
        "passes": ("--model", place.vit, *SMALL, "--memory", "0.01"),
        "fp16": ("--model", place.half, *SMALL, "--precision", "fp16"),
    }
    for name, words in asked.items():
        ended = ok(inside("effects", place.photos, *words))
        lines = said(ended)
        assert lines.count(SKIPPED) == 1 and "images changed" not in ended.stderr.decode()
        assert any(line.startswith(f"clip-effects: {COUNT} images, 1 skipped") for line in lines)
        made[name] = ended.stdout
    return made


def test_effects_of_every_kind_leave_the_image_out(bundles: dict[str, bytes], place: Place) -> None:
    for data in bundles.values():
        check_without_white(read(data))
    without = save_pictures(place.folder / "without", COUNT, white=None)
    same(read(bundles["second"]), read(ok(inside("effects", without, "--model", place.vit, *SMALL)).stdout))
    same(read(bundles["pooled"]), read(ok(inside("effects", without, "--model", place.resnet, *SMALL[2:])).stdout))
    sound = ok(inside("effects", place.photos, "--model", place.half, *SMALL))
    assert read(sound.stdout).header.images["count"] == COUNT + 1 and "skipped" not in sound.stderr.decode()


def test_strict_makes_it_an_error(place: Place, bundles: dict[str, bytes]) -> None:
    target = place.folder / "strict.safetensors"
    given: list[tuple[tuple[Any, ...], bytes]] = [
        (("effects", place.photos, "--model", place.vit, *SMALL, "-o", target), b""),
        (("effects", place.photos, "--model", place.vit, *SMALL, "--effect", "indirect", "--sample-neurons", 2), b""),
        (("effects", place.photos, "--model", place.vit, *SMALL, "--shard", "1/1"), b""),
        (("shift", place.photos, "--concept", "cat"), bundles["second"]),
        (("segment", place.photos, "--text", "cat"), bundles["second"]),
    ]
    for (name, *words), stdin in given:
        ended = inside(name, *words, "--strict", stdin=stdin)
        assert ended.returncode == 1 and said(ended)[-1] == f"clip-{name}: white.png: {NAN}"
        assert b"white.png" not in ended.stdout and b"NaN" not in ended.stdout
    assert not target.exists()


def test_shards_and_their_merge(place: Place, bundles: dict[str, bytes]) -> None:
    parts = [place.folder / f"part-{i}.safetensors" for i in (1, 2)]
    for i, part in enumerate(parts, 1):
        ok(inside("effects", place.photos, "--model", place.vit, *SMALL, "--shard", f"{i}/2", "-o", part))
    for images in ((), ("--images", place.photos)):
        merged = ok(inside("merge", *parts, *images, "--batch-size", 5))
        check_without_white(read(merged.stdout))
        assert any(line.startswith(f"clip-merge: {COUNT} images, 1 skipped") for line in said(merged))
    same(read(merged.stdout), read(bundles["second"]))


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (("--effect", "second"), NAN),
        (("--effect", "first"), NAN),
        (("--effect", "indirect", "--sample-neurons", 2), NAN),
        (("--shard", "1/2"), NAN),
        (("--precision", "fp16"), NAN),
        (("--effect", "second", "--scale", "raw"), "the model's output is zero"),
    ],
)
def test_a_damaged_layer_is_one_error(
    place: Place, tiny_clip_dir: Path, words: tuple[Any, ...], reason: str, tmp_path: Path
) -> None:
    model = place.damaged if reason == NAN else f"local-dir:{speechless(tiny_clip_dir, tmp_path / 'speechless')}"
    ended = inside("effects", place.photos, "--model", model, *SMALL, *words, "-q")
    (line,) = said(ended)
    assert ended.returncode == 1 and not ended.stdout
    assert line.startswith("clip-effects: not one of ") and reason in line and "--precision" in line


def test_concepts_and_words(place: Place, bundles: dict[str, bytes], tmp_path: Path) -> None:
    pool = tmp_path / "pool.txt"
    pool.write_text("".join(f"{word}\n" for word in ("cat", "dog", "red car", "tree", "house", "a big boat")))
    words = ok(inside("decompose", "--pool", pool, "--m", 3, "-q", stdin=bundles["second"])).stdout
    for by in ("words", "directions", "text"):
        ended = inside("concepts", place.photos, "--by", by, "-f", "jsonl", "--batch-size", 4, stdin=words)
        assert [record["image"] for record in records(ended)] == [f"{number:02d}.png" for number in range(COUNT)]
        assert said(ended).count(SKIPPED) == 1 and any(f"{COUNT} images, 1 skipped" in line for line in said(ended))
    assert said(inside("concepts", place.photos, "--strict", "-o", tmp_path / "c.jsonl", stdin=words))[-1].endswith(NAN)
    (tmp_path / "only").mkdir()
    Image.new("RGB", (40, 40), "white").save(tmp_path / "only" / "paper.png")
    none = inside("concepts", tmp_path / "only", "-f", "jsonl", stdin=words)
    assert none.returncode == 1 and said(none) == [
        f"clip-concepts: not one of 1 image is usable (first paper.png: {NAN}): the weights are damaged, or too large for "
        "--precision (of clip-effects); try bf16 or fp32"
    ]


def test_shift_and_top(place: Place, bundles: dict[str, bytes]) -> None:
    for by in ("norm", "signed", "text"):
        ended = inside("shift", place.photos, "--concept", "cat", "--by", by, "--per-image", stdin=bundles["second"])
        lines = records(ended)
        assert len(lines) == COUNT + 1 and lines[-1]["images"] == COUNT and said(ended).count(SKIPPED) == 1
    for raw in ((), ("--raw",)):
        ended = inside("top", place.photos, "--head", 3, "-f", "jsonl", *raw, stdin=bundles["second"])
        assert {record["image"] for record in records(ended)} <= {f"{number:02d}.png" for number in range(COUNT)}
        assert all(record["inertia"] is not None for record in records(ended)) or raw == ()


def labelled(place: Place, folder: Path) -> Path:
    """Return pictures in folders by their classification, a third of them in a wrong folder; the white one twice."""
    model = load_model(place.vit, device="cpu")
    names = ["cat", "dog", "tree"]
    t = encode_texts(model, names)
    files = sorted(place.photos.glob("[0-9]*.png"))
    with torch.no_grad():
        best = (model.clip.visual(torch.stack([model.transform(Image.open(file)) for file in files])) @ t.T).argmax(1).tolist()
    for number, (file, label) in enumerate(zip(files, best, strict=True)):
        target = folder / names[label if number % 3 else (label + 1) % 3]
        target.mkdir(parents=True, exist_ok=True)
        (target / file.name).write_bytes(file.read_bytes())
    for name in names[:2]:
        (folder / name).mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (30, 30), "white").save(folder / name / "white.png")
    return folder


def test_an_accuracy_does_not_count_what_is_no_answer(place: Place, bundles: dict[str, bytes], tmp_path: Path) -> None:
    folder = labelled(place, tmp_path / "classed")
    (tmp_path / "classes.txt").write_text("cat\ndog\ntree\n")
    asked = ("--classes", tmp_path / "classes.txt", "--ablate", "all,large", "--template", "{}", "-f", "jsonl")
    ended = inside("ablate", folder, *asked, "--batch-size", 4, stdin=bundles["second"])
    untouched, *others = records(ended)
    assert untouched["n"] == COUNT and untouched["top1"]["value"] == pytest.approx(12 / 18, abs=1e-5)
    assert all(record["n"] == COUNT and np.isfinite(record["cosine"]) for record in others)
    assert sum("white.png: skipped" in line for line in said(ended)) == 2
    strict = inside("ablate", folder, *asked, "--strict", stdin=bundles["second"])
    assert strict.returncode == 1 and said(strict)[-1].endswith(f"white.png: {NAN}") and not strict.stdout


def test_ranks_are_honest() -> None:
    """NaN and an output without information are misses for every label; of equal scores the first wins, as in argmax."""
    text = torch.eye(7, dtype=torch.float64)
    nan, zero, twins = torch.full((7,), torch.nan), torch.zeros(7), torch.tensor([0.0, 1, 1, 0, 0, 0, 0])
    for label in range(7):
        labels = torch.full((3,), label)
        tally = Tally(1)
        tally.add(score(torch.stack([nan, zero, twins])[None].double(), text, labels))
        assert tally.top1(0).hits == (label == 1) and tally.top5(0).hits == (label < 5)
    one = score(torch.ones(1, 1, 7), text[:1].float(), torch.zeros(1, dtype=torch.int64))
    assert one.rank.tolist() == [[0]]  # a single class is always the answer
    infinite = score(torch.tensor([[[torch.inf, 0, 0, 0, 0, 0, 0]]]), text.float(), torch.tensor([3]))
    assert infinite.rank.item() >= 5


def test_segmentation(place: Place, bundles: dict[str, bytes], tmp_path: Path) -> None:
    for words in ((), ("--method", "gradcam"), ("--size", 48, "--stride", 24)):
        ended = inside("segment", place.photos, "--text", "cat", "--batch-size", 4, *words, stdin=bundles["second"])
        assert len(records(ended)) == COUNT and said(ended).count(SKIPPED) == 1
        assert any(f"{COUNT} images, 1 skipped" in line for line in said(ended))
    maps = ok(inside("segment", place.photos, "--text", "cat", "-f", "safetensors", stdin=bundles["second"])).stdout
    from safetensors.numpy import load

    assert set(load(maps)) == {f"{number:02d}.png" for number in range(COUNT)}
    out = ("--out-dir", tmp_path / "out", "--text", "cat")
    ok(inside("segment", place.photos, *out, stdin=bundles["second"]))
    again = inside("segment", place.photos, *out, "--resume", stdin=bundles["second"])
    assert len(records(again)) == COUNT and said(again).count(SKIPPED) == 1


def test_label_maps_and_evaluation(place: Place, bundles: dict[str, bytes], tmp_path: Path) -> None:
    (tmp_path / "classes.txt").write_text("cat\ndog\ntree\n")
    classes = ("--classes", tmp_path / "classes.txt", "--template", "{}")
    ended = inside("segment", place.photos, *classes, stdin=bundles["pooled"])
    assert len(records(ended)) == COUNT and said(ended).count(SKIPPED) == 1
    assert said(inside("segment", place.photos, *classes, "--strict", stdin=bundles["pooled"]))[-1].endswith(f"white.png: {NAN}")
    labels = tmp_path / "labels"
    labels.mkdir()
    for picture in place.photos.iterdir():
        Image.fromarray((np.arange(900).reshape(30, 30) % 3 + 1).astype(np.uint8)).save(labels / picture.name)
    ended = inside("segment_eval", place.photos, "--labels", labels, *classes, "-f", "jsonl", stdin=bundles["pooled"])
    whole = records(ended)[-1]
    assert (whole["count"], whole["skipped"]) == (COUNT, 1) and f"warning: white: {NAN} (skipped)" in said(ended)
    pairs = tmp_path / "pairs"
    for part, source in (("images", place.photos), ("masks", labels)):
        (pairs / part).mkdir(parents=True)
        for picture in source.iterdir():
            (pairs / part / picture.name).write_bytes(picture.read_bytes())
    ended = inside("segment_eval", pairs, "--text", "cat", "-f", "jsonl", stdin=bundles["second"])
    whole = records(ended)[-1]
    assert (whole["count"], whole["skipped"]) == (COUNT, 1) and sum(NAN in line for line in said(ended)) == 1


def test_pictures_that_are_to_fool_a_model(place: Place, tmp_path: Path) -> None:
    """For the model itself and for the second, judging model, such a picture is neither success nor failure."""
    loaded = load_model(place.vit, device="cpu")
    mine = {"name": place.vit, "pretrained": None, "sha256": loaded.sha256}
    files = [place.photos / name for name in ("00.png", "white.png", "01.png")]

    def lines(model: dict[str, Any]) -> bytes:
        base = {"depict": "panda", "predict": "cat", "model": model}
        return b"".join(json.dumps(base | {"file": str(file)}).encode() + b"\n" for file in files)

    for stdin, words in ((lines(mine), ()), (lines(emoji_vit()), ("--judge", place.vit, "--judge-classes", "emoji"))):
        ended = inside("advgen", "--images-only", "-f", "jsonl", *words, stdin=stdin)
        assert [Path(record["file"]).name for record in records(ended)] == ["00.png", "01.png"]
        assert sum("white.png: skipped" in line for line in said(ended)) == 1 and "of 2 pictures" in said(ended)[-1]
        strict = inside("advgen", "--images-only", "-f", "jsonl", *words, "--strict", stdin=stdin)
        assert strict.returncode == 1 and NAN in said(strict)[-1]


# --- methods, without a command


def batches_with(images: torch.Tensor, bad: Collection[int], size: int) -> Any:
    """Return the pictures in batches; some are NaN, and so are all their values in the tower."""
    spoilt = images.clone()
    spoilt[sorted(bad)] = torch.nan
    return batches_of(spoilt, torch.arange(len(images)), size)


def lenient() -> tuple[Screen[int], list[str]]:
    told: list[str] = []
    return Screen[int](str, lambda name, reason: told.append(name), strict=False), told


def test_a_second_look_does_not_speak_of_other_images() -> None:
    """One pass cannot certify the lists and some images are left out: the doubtful images, or all, are read again."""
    visual, n = random_tower(SHAPES[0]), 600
    images, bad = pictures(visual, n), {3, 77, 149}
    good = [number for number in range(n) if number not in bad]
    for margin in (1, 0):
        settings = Settings(top=20, margin=margin)
        screen, told = lenient()
        work = lambda: measure(SecondOrder(visual), batches_with(images, bad, 32), [1], n, settings, screen)  # noqa: B023, E731
        report = screen.retry(work)
        expected = measure(SecondOrder(visual), batches_of(images, torch.tensor(good), 32), [1], n, settings)
        assert told == ["3", "77", "149"] and report.images == n - 3 and report.redone and report.reread
        assert torch.equal(report.effects.top_image, expected.effects.top_image)
        torch.testing.assert_close(report.effects.mean, expected.effects.mean, rtol=1e-9, atol=1e-12)


class Late(SecondOrder):
    """Images whose first pixel has a given sign are unusable only in the highest layer, which is measured last."""

    def read(self, image: torch.Tensor, slabs: Any) -> Any:
        S, embedding = super().read(image, slabs)
        bad = image[:, 0, 0, 0] > 2.2

        def spoilt() -> Iterator[torch.Tensor]:
            for slab, scalars in zip(slabs, S, strict=True):
                yield torch.where(bad[:, None, None], torch.inf, scalars) if slab.layer == 2 else scalars

        return spoilt(), embedding


@pytest.mark.parametrize("memory", [4e9, 5e5])
def test_an_image_left_out_of_one_slab_is_left_out_of_all(
    memory: float, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cliptools.streaming.memory_plan.files_fit", lambda size, device: False)
    visual, n = random_tower(SHAPES[0]), 80
    images = pictures(visual, n)
    good = [number for number in range(n) if images[number, 0, 0, 0] <= 2.2]
    settings = Settings(top=8, memory=memory)
    screen, told = lenient()
    report = screen.retry(lambda: measure(Late(visual), batches_of(images, torch.arange(n), 16), [1, 2], n, settings, screen))
    assert 0 < len(told) == n - len(good) < 10 and report.images == len(good) and (report.passes > 1) == (memory < 1e9)
    expected = measure(SecondOrder(visual), batches_of(images, torch.tensor(good), 16), [1, 2], n, settings)
    for ours, theirs in zip(report.effects, expected.effects, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-7, atol=1e-9)
    assert f"measuring again without {count_of(len(told), 'image')} that had been included" in capsys.readouterr().err


def test_shards_begin_anew_too() -> None:
    visual, n = random_tower(SHAPES[0]), 60
    images = pictures(visual, n)
    images[7, 0, 0, 0] = 9
    good = [number for number in range(n) if images[number, 0, 0, 0] <= 2.2]
    settings, batches = Settings(top=4, memory=4e5), batches_of(images, torch.arange(n), 16)
    screen, told = lenient()

    def shard() -> list:
        return list(measure_shard(Late(visual), batches, batches, [1, 2], n, n, settings, Embeddings(n), screen=screen))

    slabs = screen.retry(shard)
    assert "7" in told and {part.seen for _, part in slabs} == {len(good)} and len(slabs) > 1
    assert all(column.isfinite().all() for _, part in slabs for column in part[1:] if column.is_floating_point())


def test_whoever_imports_is_told_by_an_error() -> None:
    """Without a screen for such images, the first unusable image raises an error with its number."""
    visual, n = random_tower(SHAPES[0]), 6
    images = pictures(visual, n)
    batches = batches_with(images, {4}, 3)
    with pytest.raises(ImageError, match=f"image 4: {NAN}"):
        measure(SecondOrder(visual), batches, [1], n, Settings(top=3))
    with pytest.raises(ImageError, match=f"image 4: {NAN}"):
        largest_norms(SecondOrder(visual), torch.tensor([[1, 0, -1]]), batches(None), 3, True)
    with pytest.raises(ImageError, match=f"image 4: {NAN}"):
        embeddings(visual, batches(None))
    with pytest.raises(ImageError, match=f"image 4: {NAN}"):
        token_means(visual, batches(None), {1: torch.arange(3)}, n)
    screen, told = lenient()
    numbers, rows = embeddings(visual, batches(None), screen)
    assert told == ["4"] and numbers == [0, 1, 2, 3, 5] and rows.isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_rows_that_are_usable(dtype: torch.dtype) -> None:
    row = torch.linspace(-3, 4, 9)
    rows = torch.stack([row, row, row, row, 0 * row, row]).to(dtype)
    rows[1, 3], rows[2, 0], rows[3, 8] = torch.nan, torch.inf, -torch.inf
    inner = torch.zeros(6, 2, 3)
    inner[5, 1, 1] = 1e30  # finite in float32, its square is not
    assert unusable(rows[:1], inner[:1]) == {}
    found = unusable(rows, inner)
    assert list(found) == [1, 2, 3, 4, 5] and {found[place] for place in (1, 2, 3)} == {NAN}
    assert found[4] == "the model's output is zero" and found[5].startswith("the model's inner numbers are NaN")
    assert unusable(torch.full((1, 4), 1e30)) == {0: "the model's output is too large to compute with"}
    assert unusable(rows[:1], inner[:1] + 1e10, scale=torch.tensor([1e10]))


def test_many_images_of_which_none_is_usable_are_not_all_looked_at(capsys: pytest.CaptureFixture[str]) -> None:
    screen = Screen[int](strict=False)
    with pytest.raises(CliptoolsError, match=rf"not one of {ENOUGH} images is usable \(first image 0: zero\)"):
        for start in range(0, 10 * ENOUGH, 64):
            screen.places(range(start, start + 64), dict.fromkeys(range(64), "zero"))
    assert capsys.readouterr().err == ""
    screen = Screen[int](strict=False)
    assert list(screen.places([5, 6], {0: "zero"})) == [1] and list(screen.places([6, 5], {})) == [0]
    screen.require(1)
    assert capsys.readouterr().err == "warning: image 5: skipped, zero\n"


# --- texts, and what is written


def test_a_text_that_is_too_much_is_named_and_not_kept(tiny_clip_dir: Path, tmp_path: Path) -> None:
    model = load_model(f"local-dir:{overflowing_text(tiny_clip_dir, tmp_path / 'model', 'zebra')}", device="cpu")
    assert encode_texts(model, ["cat", "dog"]).isfinite().all()
    pool = Pool("mine", ("cat", "a zebra", "zebra", "dog"), "digest-of-mine")
    for _ in range(2):  # nothing was kept the first time
        with pytest.raises(TextError, match=f"text 'a zebra': {NAN}, as of 1 more texts of 4"):
            encode_pool(model, pool)
    with pytest.raises(TextError, match=r"text 'no cat': .* output is zero"):
        encode_texts(_silent(model), ["no cat"])


def test_a_pool_with_such_a_text(place: Place, tiny_clip_dir: Path, tmp_path: Path) -> None:
    model = f"local-dir:{overflowing_text(tiny_clip_dir, tmp_path / 'model', 'zebra')}"
    effects = ok(inside("effects", place.photos, "--model", model, *SMALL, "-q")).stdout
    (tmp_path / "pool.txt").write_text("cat\na zebra\ndog\n")
    given: list[tuple[Any, ...]] = [("decompose", "--pool", tmp_path / "pool.txt"), ("shift", place.photos, "--concept", "zebra")]
    given += [("segment", place.photos, "--text", "zebra")]
    for name, *words in given:
        ended = inside(name, *words, "-q", stdin=effects)
        assert ended.returncode == 1 and not ended.stdout and "zebra" in said(ended)[-1] and NAN in said(ended)[-1]


def _silent(model: Any) -> Any:
    model.clip.text_projection.data.zero_()
    return model


def test_what_the_cache_holds_is_finite(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Values that an earlier version cached are computed again."""
    monkeypatch.setenv("CLIPTOOLS_CACHE", str(tmp_path))
    bad, good = np.array([[1, np.nan]], np.float32), np.array([[1, 2]], np.float32)
    assert np.isnan(cached("texts", "key", (1, 2), lambda: bad)[0, 1])
    assert np.array_equal(cached("texts", "key", (1, 2), lambda: good), good)
    assert np.array_equal(cached("texts", "key", (1, 2), lambda: bad), good)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_nothing_that_is_written_holds_nan(bundles: dict[str, bytes], value: float) -> None:
    bundle = read(bundles["second"])
    mean = bundle["mean"].copy()
    mean[3, 2] = value
    with pytest.raises(CliptoolsError, match="tensor `mean` would hold NaN or infinity, so nothing is written"):
        bundle.with_tensors(bundle.header, mean=mean).to_bytes()
    bundle.with_derived(mean_of_late=mean).to_bytes()  # is not written
    check_finite({"unit": np.zeros(3, np.int32), "x": np.zeros(3, np.float16)})
