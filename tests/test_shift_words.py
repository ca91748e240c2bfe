"""clip-shift without a concept: statistics of many comparisons, measures of words, drift that is planted, and none."""

import io
import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import Run
from helpers.pipes import on_terminal
from helpers.second_order import SHAPES, pictures, random_tower
from helpers.shift import unit_rows
from helpers.shift_command import lines, only_line
from PIL import Image
from scipy.signal import lfilter
from scipy.stats import false_discovery_control

from cliptools.analysis.concept_units import ConceptShare, choose_units
from cliptools.analysis.seen import ReadDirections
from cliptools.analysis.shift_statistics import (
    GroupMoments,
    chance,
    chances,
    compare,
    compare_all,
    effect_sizes,
    false_discovery,
    limit,
    moments_of,
    pooled_groups,
)
from cliptools.analysis.word_shares import OpenBlocks, WordMeasure, WordSums, units_of_words
from cliptools.emoji.export import Plan, samples
from cliptools.emoji.render import scene_key
from cliptools.emoji.scenes import draw_scene, scene_of
from cliptools.images.tar import write_end, write_member
from cliptools.io.bundle import Bundle, read_bundle
from cliptools.io.header import Header
from cliptools.models.load import load_model
from cliptools.models.text_encoder import encode_texts
from cliptools.text.emoji_concepts import concept_index
from cliptools.unit_effects.resnet_pooling import Pairs
from cliptools.unit_effects.vit_second_order import SecondOrder

LAWS = ("normal", "exponential", "standard_cauchy")
MOMENTS = ("mean", "spread", "skewness", "kurtosis")


def moments(value: np.ndarray) -> GroupMoments:
    sums = GroupMoments(1, value.shape[1])
    sums.add(np.zeros(len(value), np.int64), value)
    return sums


def drawn(random: np.random.Generator, images: int) -> np.ndarray:
    """Return values of every law of LAWS, zeros, and values that the tests move, [image, 5]."""
    values = [getattr(random, law)(size=images) for law in LAWS]
    return np.stack([*values, np.zeros(images), random.normal(size=images)], 1)


def test_all_comparisons_are_those_of_single_concepts() -> None:
    random = np.random.default_rng(1)
    now, before = drawn(random, 23), drawn(random, 301)
    now[:, 4] += 1.3
    a, b = moments(now), moments(before)
    together = compare_all(a, b)
    assert together is not None
    p = chances(together)
    for c in range(5):
        alone = compare(a.sample(0, c), b.sample(0, c))
        assert alone is not None and alone.freedom == together.freedom == 322
        figures = (together.z[c], together.skewness[c], together.kurtosis[c])
        np.testing.assert_allclose(figures, (alone.z, alone.skewness, alone.kurtosis), rtol=1e-9, atol=1e-12)
        if alone.z:
            assert limit(alone, p[c]) == pytest.approx(abs(alone.z), rel=1e-9)  # the chance at which --alarm would just go off
        else:
            assert p[c] == 1
    assert p[4] < 1e-5 < p[0] and p[3] == 1
    assert compare_all(moments(now[:1]), b) is None and compare_all(a, moments(before[:1])) is None


def test_frozen_frames_do_not_move_by_rounding() -> None:
    """Neither sample varies: the difference that float32 or a rounded record leaves is no drift, any other one is."""
    now, before = np.full((5, 3), 0.2), np.full((5, 3), 0.2)
    now[:, 1] += 2e-8
    now[:, 2] += 1e-3
    comparisons = compare_all(moments(now), moments(before))
    assert comparisons is not None
    p = chances(comparisons)
    assert np.isfinite(comparisons.z).all() and p[0] == 1 and p[1] > 0.9 and p[2] < 1e-12


def test_figures_give_the_moments_back() -> None:
    random = np.random.default_rng(2)
    value, group = random.gamma(1.0, size=(40, 3)), np.arange(40) % 3
    whole = GroupMoments(3, 3)
    whole.add(group, value)
    samples = [[whole.sample(g, c) for c in range(3)] for g in range(3)]
    figures = (
        np.array([[getattr(s, name) for s in row] for row in samples]) for name in ("mean", "spread", "skewness", "kurtosis")
    )
    again = moments_of(whole.count, *figures)
    for name in ("count", "mean", "square", "cube", "fourth"):
        np.testing.assert_allclose(getattr(again, name), getattr(whole, name), rtol=1e-9)
    pooled, slow = pooled_groups(whole, [0, 2]), moments(value[group != 1])
    for name in ("count", "mean", "square", "cube", "fourth"):
        np.testing.assert_allclose(getattr(pooled, name), getattr(slow, name), rtol=1e-9)


@pytest.mark.parametrize("m", [1, 2, 50])
def test_false_discoveries_are_those_of_benjamini_and_yekutieli(m: int) -> None:
    p = np.random.default_rng(m).random(m) ** 4
    np.testing.assert_allclose(false_discovery(p), false_discovery_control(p, method="by"), rtol=1e-12)
    c, order = sum(1 / i for i in range(1, m + 1)), sorted(range(m), key=lambda i: p[i])
    slow = {i: min([p[order[j]] * m * c / (j + 1) for j in range(rank, m)] + [1.0]) for rank, i in enumerate(order)}
    np.testing.assert_allclose(false_discovery(p), [slow[i] for i in range(m)], rtol=1e-12)


def test_intervals_hold_the_true_effect() -> None:
    random, held = np.random.default_rng(4), []
    for law, spread in (("normal", 1.0), ("exponential", 1.0)):
        for true in (0.0, 0.7):
            now, before = (getattr(random, law)(size=(n, 400)) for n in (40, 300))
            comparisons = compare_all(moments(now + true * spread), moments(before))
            assert comparisons is not None
            d = effect_sizes(comparisons)
            assert d.value.mean() == pytest.approx(true, abs=0.05)
            held.append(((d.low <= true) & (true <= d.high)).mean())
    assert min(held) >= 0.92 and max(held) <= 0.98


def chances_of(now: np.ndarray, before: np.ndarray) -> np.ndarray:
    comparisons = compare_all(moments(now), moments(before))
    assert comparisons is not None
    return chances(comparisons)


@pytest.mark.parametrize("size", [20, 200])
def test_runs_without_drift_alarm_no_more_often_than_promised(size: int) -> None:
    """80 words of skewed shares that depend on each other: at --alarm 2 at most 4.6 % of runs; single words reach it in most."""
    random, runs = np.random.default_rng(size), 100
    mix, false, single = random.normal(size=(30, 80)), 0, 0
    for _ in range(runs):
        now, before = (random.exponential(size=(n, 30)) @ mix + random.exponential(size=(n, 80)) ** 2 for n in (size, 400))
        p = chances_of(now, before)
        false += false_discovery(p).min() <= chance(2.0)
        single += p.min() <= chance(2.0)
    assert false / runs <= 0.0455 and single / runs > 0.5


def test_blocks_keep_films_from_alarming() -> None:
    """Frames that follow each other are alike (0.9): without blocks nearly every run alarms, with them as few as promised."""
    random, runs, counts = np.random.default_rng(6), 80, {"images": 0, "blocks": 0}
    for _ in range(runs):
        films = [lfilter([1.0], [1.0, -0.9], random.normal(size=(160 * n, 30)), axis=0) for n in (12, 30)]
        means = [film.reshape(-1, 160, 30).mean(1) for film in films]
        for kind, (now, before) in {"images": films, "blocks": means}.items():
            counts[kind] += false_discovery(chances_of(now, before)).min() <= chance(2.0)
    assert counts["blocks"] / runs <= 0.0455 and counts["images"] / runs > 0.9


@pytest.mark.parametrize("shape", [shape for shape in SHAPES if shape["layers"] > 2][:2])
def test_words_are_the_signed_shares_of_their_units(shape: dict) -> None:
    visual, d = random_tower(shape), shape["output_dim"]
    effect, images = SecondOrder(visual), pictures(visual, 3)
    unit = torch.cat([effect.units(layer)[[3, 1, 7, 0, 5]] for layer in (1, 0)])
    t = unit_rows(7, d)
    row = choose_units(unit_rows(10, d).flip(0), t, 3).row
    words, shares = WordMeasure(effect, unit, row, t)(images), ConceptShare(effect, unit, row, t)(images)
    torch.testing.assert_close(words.part.sum(-1), shares.signed, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(words.similarity, shares.text, rtol=1e-9, atol=1e-12)
    for n in range(3):
        alone = ConceptShare(effect, unit, row[:, n : n + 1], t)(images)
        torch.testing.assert_close(words.part[..., n], alone.signed, rtol=1e-9, atol=1e-12)
    bare = WordMeasure(effect, unit, row[:, :0], t)(images)
    assert bare.part.shape == (3, 7, 0)
    torch.testing.assert_close(bare.similarity, shares.text, rtol=1e-9, atol=1e-12)


def test_few_numbers_at_once_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    shape = SHAPES[0]
    visual, d = random_tower(shape), shape["output_dim"]
    effect, images = SecondOrder(visual), pictures(visual, 2)
    layer = shape["layers"] - 2
    unit, t = effect.units(layer)[:12], unit_rows(9, d)
    r, random = unit_rows(12, d), np.random.default_rng(0)
    read = ReadDirections(torch.from_numpy(random.normal(size=(12, d))), torch.ones(12), torch.eye(d))
    whole, row = units_of_words(r, t, 4, read, 50), units_of_words(r, t, 4, read, 50).row
    words = WordMeasure(effect, unit, row, t)(images)
    monkeypatch.setattr("cliptools.analysis.word_shares.AT_ONCE", 30)
    parts = units_of_words(r, t, 4, read, 50)
    assert torch.equal(parts.row, whole.row) and parts.seen is not None and whole.seen is not None
    torch.testing.assert_close(parts.seen, whole.seen)
    torch.testing.assert_close(WordMeasure(effect, unit, row, t)(images).part, words.part, rtol=1e-9, atol=1e-12)


def test_units_of_words_write_and_see_them() -> None:
    random, d, u, w, n = np.random.default_rng(3), 6, 11, 5, 40
    e, r, t = random.normal(size=(200, d)), unit_rows(u, d), unit_rows(w, d).flip(0)
    a = random.normal(size=(200, u)) + e @ random.normal(size=(d, u))
    q = (a - a.mean(0)).T @ (e - e.mean(0)) / 200
    read = ReadDirections(*(torch.from_numpy(x) for x in (q, a.std(0), np.cov(e.T, ddof=0))))
    chosen, plain = units_of_words(r, t, 4, read, n), units_of_words(r, t, 4)
    assert torch.equal(plain.row, choose_units(r, t, 4).row) and plain.seen is None and chosen.seen is not None
    for c in range(w):
        see = np.array([np.corrcoef(a[:, i], e @ t[c].numpy())[0, 1] for i in range(u)])
        score = np.maximum((r @ t[c]).numpy(), 0) * np.maximum(see + n**-0.5, 0)
        best = [i for i in np.argsort(-score) if score[i] > 0][:4]
        assert chosen.row[c].tolist()[: len(best)] == best
        np.testing.assert_allclose(chosen.seen[c], see[chosen.row[c]], atol=1e-9)
        np.testing.assert_allclose(chosen.overlap[c], (r @ t[c])[chosen.row[c]], atol=1e-12)


def test_open_blocks_are_few_and_their_means_those_of_all_images() -> None:
    """Three interleaved films with gaps, read in parts; images 4 and 17, the last of a block, cannot be read."""
    random, block = np.random.default_rng(5), np.repeat(np.arange(6), 3)[np.argsort(np.tile(np.arange(3), 6), kind="stable")]
    value, order = random.normal(size=(18, 2)), list(range(18))
    blocks, means, largest = OpenBlocks(block, order), {}, 0
    readable = [i for i in order if i not in (4, 17)]
    for part in (readable[:5], readable[5:6], readable[6:13], readable[13:]):
        blocks.add(part, value[part])
        largest = max(largest, len(blocks.sums))
        complete = blocks.complete(part[-1])
        means |= {} if complete is None else dict(zip(complete[0].tolist(), complete[1], strict=True))
    rest = blocks.complete(None)
    means |= {} if rest is None else dict(zip(rest[0].tolist(), rest[1], strict=True))
    assert blocks.complete(None) is None and not blocks.sums and sorted(means) == sorted(set(block[readable].tolist()))
    for b, mean in means.items():
        np.testing.assert_allclose(mean, value[[i for i in readable if block[i] == b]].mean(0), rtol=1e-12)
    straight = OpenBlocks(np.arange(4000) // 10, range(4000))
    for start in range(0, 4000, 32):
        images = list(range(start, min(start + 32, 4000)))
        straight.add(images, np.ones((len(images), 1)))
        straight.complete(images[-1])
        assert len(straight.sums) <= 1  # however many blocks have gone by


def test_sums_of_words() -> None:
    random = np.random.default_rng(6)
    value, group = random.normal(size=(30, 7)), np.arange(30) % 2
    sums = WordSums(3, 2, 5)
    for start in (0, 11, 12):
        stop = {0: 11, 11: 12, 12: 30}[start]
        sums.add(group[start:stop], value[start:stop])
    for g in (0, 1):
        np.testing.assert_allclose(sums.part_means()[g], value[group == g, 2:].mean(0), rtol=1e-12)
        np.testing.assert_allclose(sums.moments.mean[g], value[group == g, :2].mean(0), rtol=1e-12)
    assert not sums.part_means()[2].any() and sums.alike().shape == (2,) and np.abs(sums.alike()).max() < 0.6


POOL = ("cat", "red car", "sea", "a tree", "clock")
TEMPLATE = "a photo of {}"


@pytest.fixture(scope="module")
def tiny(tiny_clip_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with a bundle without read directions, and a vocabulary."""
    model, random = load_model(f"local-dir:{tiny_clip_dir}", device="cpu"), np.random.default_rng(0)
    unit = np.array([(layer, neuron, -1) for layer in (1, 2) for neuron in range(12)], np.int32)
    direction = random.normal(size=(len(unit), 20)).astype(np.float32)
    header = Header("effects", model.identity, {"count": 9}, {"effect": "second", "units": "neurons"})
    folder = tmp_path_factory.mktemp("words")
    (folder / "effects.safetensors").write_bytes(Bundle(header, {"unit": unit, "direction": direction}).to_bytes())
    (folder / "pool.txt").write_text("\n".join(POOL))
    return folder


def asked(tiny: Path, *more: object) -> tuple[object, ...]:
    named = ("--bundle", tiny / "effects.safetensors", "--pool", tiny / "pool.txt", "--template", TEMPLATE)
    return ("shift", "-", *named, "--units-per-concept", 3, "-q", "-f", "jsonl", *more)


def film(count: int, seed: int, length: int = 6) -> list[np.ndarray]:
    """Return pictures in films of `length` frames each: one picture with a little noise."""
    random, frames = np.random.default_rng(seed), []
    for i in range(count):
        base = random.integers(0, 200, (24, 24, 3)) if i % length == 0 else base
        frames.append((base + random.integers(0, 20, base.shape)).astype(np.uint8))
    return frames


def tar_of(frames: list[np.ndarray]) -> bytes:
    tar = io.BytesIO()
    for i, frame in enumerate(frames):
        picture = io.BytesIO()
        Image.fromarray(frame).save(picture, "PNG")
        write_member(tar, f"{i:03d}.png", picture.getvalue())
    write_end(tar)
    return tar.getvalue()


def test_records_are_means_over_images_or_blocks(run: Run, tiny: Path, tiny_clip_dir: Path) -> None:
    frames = film(26, 9)
    model = load_model(f"local-dir:{tiny_clip_dir}", device="cpu")
    t = encode_texts(model, POOL, (TEMPLATE,))
    bundle = read_bundle(io.BytesIO((tiny / "effects.safetensors").read_bytes()), "tiny")
    row = units_of_words(torch.from_numpy(bundle["direction"]), t, 3).row
    measured = WordMeasure(SecondOrder(model.clip.visual), torch.from_numpy(bundle["unit"]), row, t)(
        torch.stack([model.transform(Image.fromarray(frame)) for frame in frames])
    )
    values = {"units": measured.part.sum(-1).numpy(), "similarities": measured.similarity.numpy()}
    block = np.minimum(np.arange(26) // 6, 3)  # the shorter rest joins the last block
    for more, groups in (((), np.arange(26)), (("--block", 6), block)):
        result = run(*asked(tiny, *more), stdin=tar_of(frames))
        assert result.returncode == 0, result.stderr.decode()
        assert (b"next to each other" in result.stderr) == (not more)
        records = lines(result.stdout)
        assert [(r["by"], r["word"]) for r in records] == [(by, word) for by in values for word in POOL]
        for record in records:
            value = values[record["by"]][:, POOL.index(record["word"])]
            value = np.array([value[groups == b].mean() for b in np.unique(groups)])
            figures = [record[key] for key in ("mean", "spread", "standard_error")]
            np.testing.assert_allclose(
                figures, (value.mean(), value.std(ddof=1), value.std(ddof=1) / len(value) ** 0.5), rtol=1e-3
            )
            assert (record["images"], record.get("blocks", 26)) == (26, len(value)) and record["bundle"] == bundle.digest
            if record["by"] == "units":
                w = POOL.index(record["word"])
                assert [[u["layer"], u["neuron"]] for u in record["units"]] == bundle["unit"][row[w], :2].tolist()
                parts = measured.part[:, w].numpy()
                parts = np.stack([parts[groups == b].mean(0) for b in np.unique(groups)]).mean(0)
                np.testing.assert_allclose([u["mean"] for u in record["units"]], parts, rtol=1e-3, atol=1e-7)
                assert record["settings"]["choose"] == "overlap"
            else:
                assert "units" not in record and "choose" not in record["settings"]


def test_an_equal_run_is_no_drift_and_a_changed_one_is(run: Run, tiny: Path, tmp_path: Path) -> None:
    old, new = tmp_path / "old.jsonl", film(40, 1, 1)
    first = run(*asked(tiny, "-o", old), stdin=tar_of(film(60, 2, 1)))
    assert first.returncode == 0 and first.stderr == b""
    itself = run(*asked(tiny, "--baseline", old, "--alarm", 3), stdin=tar_of(film(60, 2, 1)))
    assert itself.returncode == 0
    assert all(abs(record["drift"]["z"]) < 1e-3 and record["drift"]["q"] == 1 for record in lines(itself.stdout))
    other = run(*asked(tiny, "--baseline", old, "--alarm", 3), stdin=tar_of(new))
    assert other.returncode == 0 and not any(record["drift"]["alarm"] for record in lines(other.stdout))
    dark = run(*asked(tiny, "--baseline", old, "--alarm", 3), stdin=tar_of([frame // 8 for frame in new]))
    records, before = lines(dark.stdout), {(r["by"], r["word"]): r for r in lines(old.read_bytes())}
    assert dark.returncode == 3 and dark.stderr.decode().startswith("warning: drift: -, ") and len(records) == len(before) == 10
    assert [record["drift"]["rank"] for record in records] == list(range(1, 11))
    p = np.array([record["drift"]["p"] for record in records])
    assert (np.diff(p) >= 0).all()
    np.testing.assert_allclose([record["drift"]["q"] for record in records], false_discovery_control(p, method="by"), rtol=1e-4)
    for record in records:
        drift, earlier = record["drift"], before[record["by"], record["word"]]
        difference = record["mean"] - earlier["mean"]
        spread = math.sqrt((39 * record["spread"] ** 2 + 59 * earlier["spread"] ** 2) / 98)
        assert drift["effect"]["value"] == pytest.approx(difference / spread, rel=1e-4)
        assert drift["effect"]["low"] < drift["effect"]["value"] < drift["effect"]["high"]
        assert drift["z"] == pytest.approx(difference / spread / math.sqrt(1 / 40 + 1 / 60), rel=1e-4)
        assert drift["direction"] == ("up" if difference > 0 else "down") and drift["alarm"] == (drift["q"] <= chance(3.0))
        assert drift["before"] | {"mean": 0, "standard_error": 0} == {
            "groups": 1, "group": "-", "images": 60, "mean": 0, "standard_error": 0,
        }  # fmt: skip
        units = drift["units"]
        assert len(units) == 3 and (np.diff([-abs(unit["moved"]) for unit in units]) >= 0).all()
        if record["by"] == "units":
            assert sum(unit["moved"] for unit in units) == pytest.approx(difference, rel=1e-3, abs=1e-7)


def test_one_measure_groups_and_their_names(run: Run, tiny: Path, tmp_path: Path) -> None:
    for name, seed in (("a", 1), ("b", 2), ("c", 3)):
        (tmp_path / f"{name}.tar").write_bytes(tar_of(film(1 if name == "c" else 4, seed, 1)))
    paths, old = [tmp_path / f"{name}.tar" for name in "ab"], tmp_path / "old.jsonl"
    words = asked(tiny)[2:]
    assert run("shift", *paths, *words, "-o", old).returncode == 0
    for by, one in (("text", "similarities"), ("signed", "units")):
        compared = ("--by", by, "--baseline", old, "--match", "--alarm", 3)
        units = words.index("--units-per-concept")
        result = run("shift", *paths, *(words if by == "signed" else words[:units] + words[units + 2 :]), *compared)
        records = lines(result.stdout)
        assert result.returncode == 0 and len(records) == 10 and {record["by"] for record in records} == {one}
        assert all(record["drift"]["before"]["group"] == record["group"] for record in records)
        assert all(record["drift"]["few"] and record["drift"]["comparisons"] == 10 for record in records)
        assert b"fewer than 5 images here or in the baseline" in result.stderr
        assert all(len(record["drift"]["units"]) == (3 if by == "signed" else 0) for record in records)
    lone = run("shift", paths[0], tmp_path / "c.tar", *words, "--baseline", old)
    assert b"not compared with the baseline" in lone.stderr and b"c.tar" in lone.stderr
    assert [("drift" in record, record["group"]) for record in lines(lone.stdout)] == [(True, "a.tar")] * 10 + [
        (False, "c.tar")
    ] * 10
    matched = run("shift", tmp_path / "c.tar", *words, "--baseline", old, "--match")
    assert matched.returncode == 1 and "no record of a word in a group 'c.tar' (--match)" in only_line(matched)
    nothing = run("shift", tmp_path / "c.tar", *words, "--baseline", old)
    assert nothing.returncode == 1 and "nothing to compare: a mean needs at least two images" in only_line(nothing)


def test_planted_drift_is_first(run: Run, tmp_path: Path) -> None:
    """Ordinary scenes before; now 40 of 60 show a shrimp. The word comes first by similarities and among the first by units,
    which also see things that look like it, and an alarm is the exit.

    The units are those of a bundle of 250 scenes: of a few scenes, none has the neurons that write shrimp.
    """
    bundle = tmp_path / "effects.safetensors"
    assert run("effects", "--limit", 250, "--layers", "5,6", "-q", "-o", bundle).returncode == 0
    concept = concept_index()["shrimp"]
    others = [index for index in range(200) if concept not in draw_scene(77, index).named]
    scenes = {"old": [draw_scene(77, index) for index in others[:80]], "new": [draw_scene(77, index) for index in others[80:140]]}
    scenes["new"][:40] = [scene_of([concept, *scene.named[1:]], 78, i) for i, scene in enumerate(scenes["new"][:40])]
    for name, drawn_scenes in scenes.items():
        with (tmp_path / f"{name}.tar").open("wb") as stream:
            for sample in samples((Plan(scene_key(i), scene, "") for i, scene in enumerate(drawn_scenes)), 64):
                write_member(stream, f"{sample.key}.png", sample.image)
            write_end(stream)
    words, old = ("-q", "-f", "jsonl", "--pool", "emoji", "--bundle", bundle), tmp_path / "old.jsonl"
    first = run("shift", tmp_path / "old.tar", *words, "-o", old)
    assert first.returncode == 0 and b"250 images only in the bundle" in first.stderr
    result = run("shift", tmp_path / "new.tar", *words, "--baseline", old, "--alarm", 3)
    records = lines(result.stdout)
    assert result.returncode == 3 and b"drift: new.tar," in result.stderr and b"shrimp by similarities" in result.stderr
    assert (
        records[0]["word"] in ("shrimp", "lobster") and records[0]["pool"] == "emoji" and records[0]["drift"]["direction"] == "up"
    )
    found = {record["by"]: record["drift"]["rank"] for record in records if record["word"] == "shrimp"}
    assert found.keys() == {"units", "similarities"} and max(found.values()) <= 10
    assert sum(record["drift"]["alarm"] for record in records) < 100 and records[0]["drift"]["comparisons"] == len(records)


def test_tables_show_what_moved(tiny: Path, tmp_path: Path) -> None:
    for name, seed in (("old", 1), ("new", 2)):
        (tmp_path / f"{name}.tar").write_bytes(tar_of(film(24, seed, 1)))
    words = [str(word) for word in asked(tiny)[2:]]
    plain = [word for word in words if word not in ("-f", "jsonl")]
    code, shown = on_terminal("cliptools.cli.shift", str(tmp_path / "old.tar"), *plain)
    assert code == 0 and all(word in shown for word in (*POOL, "similarities", "units", "± s.e."))
    code, _ = on_terminal("cliptools.cli.shift", str(tmp_path / "old.tar"), *words, "-o", str(tmp_path / "old.jsonl"))
    assert code == 0
    code, shown = on_terminal("cliptools.cli.shift", str(tmp_path / "new.tar"), *plain, "--baseline", str(tmp_path / "old.jsonl"))
    assert code == 0 and "effect (95 %)" in shown and "DRIFT" not in shown


def test_pairs_of_a_resnet_have_words(run: Run, tiny_resnet_dir: Path, tiny: Path) -> None:
    model = load_model(f"local-dir:{tiny_resnet_dir}", device="cpu")
    unit = np.array([(4, n, h) for n, h in ((3, 1), (9, 0), (9, 5), (40, 2), (190, 3))], np.int32)
    header = Header("effects", model.identity, {"count": 9}, {"effect": "pooled", "units": "pairs"})
    tensors = {"unit": unit, "sign": np.array([1, -1, 0, 1, -1], np.int8), "mean_scalar": np.zeros(5, np.float32)}
    (tiny / "pairs.safetensors").write_bytes(Bundle(header, tensors).to_bytes())
    words = [*asked(tiny)]
    words[words.index(tiny / "effects.safetensors")] = tiny / "pairs.safetensors"
    records = lines(run(*words, stdin=tar_of(film(6, 1, 1))).stdout)
    assert len(records) == 10 and all("head" in unit for record in records for unit in record.get("units", []))
    assert {record["settings"].get("effect") for record in records} == {"pooled", None}
    t, row = encode_texts(model, POOL, (TEMPLATE,)), [[u["neuron"], u["head"]] for u in records[0]["units"]]
    rows = torch.tensor([[unit[:, 1:].tolist().index(pair) for pair in row]])
    pictures = torch.stack([model.transform(Image.fromarray(frame)) for frame in film(6, 1, 1)])
    share = ConceptShare(Pairs(model.clip.visual), torch.from_numpy(unit), rows, t[:1])(pictures).signed[:, 0].numpy()
    np.testing.assert_allclose(records[0]["mean"], share.mean(), rtol=1e-3, atol=1e-7)


def test_a_vocabulary_of_the_environment_is_no_error_with_a_concept(run: Run, tiny: Path, tmp_path: Path) -> None:
    (tmp_path / "film.tar").write_bytes(tar_of(film(6, 1, 1)))
    words = ("shift", tmp_path / "film.tar", "--concept", "cat", "--template", TEMPLATE, "--bundle", tiny / "effects.safetensors")
    plain, named = run(*words), run(*words, env={"CLIPTOOLS_POOL": str(tiny / "pool.txt")})
    assert plain.returncode == named.returncode == 0 and plain.stdout == named.stdout


@pytest.mark.parametrize(
    ("more", "code", "message"),
    [
        (("--concept", " "), 2, "no concept to look for"),
        (("--concept", "cat"), 2, "--pool is the vocabulary of a run without a concept"),
        (("--labels", "a.csv"), 2, "--labels needs a concept"),
        (("--truth", "scenes"), 2, "--truth needs a concept"),
        (("--per-image",), 2, "--per-image needs a concept"),
        (("--plot", "a.png"), 2, "--plot needs a concept"),
        (("--each",), 2, "--each needs a concept"),
        (("--by", "norm"), 2, "--by norm needs a concept"),
        (("--alarm", "3"), 2, "--baseline FILE"),
        (("--choose", "seen"), 1, "--choose seen: a bundle without `read`"),
        (("--baseline", "BARE"), 1, "no record of a word"),
        (("--baseline", "TEXT"), 1, "no record of a word by units; give the --by of that run"),
        (("--baseline", "FEWER"), 1, "no record of word (by units) 'clock'"),
        (("--baseline", "TWICE"), 1, "has 'cat' by units in group '-' a second time"),
        (("--baseline", "HALF"), 1, "is not a record of a word of clip-shift"),
        (("--baseline", "SIZES"), 1, "has another number of images or blocks in group '-' than lines before it"),
        (("--baseline", "GROUPS"), 1, "'clock' by similarities has the groups -, other lines -, more"),
        (("--baseline", "WHOLE", "--units-per-concept", "2"), 1, "other settings (units_per_concept 3, here 2)"),
        (("--baseline", "WHOLE", "--block", "2"), 1, "other settings (block None, here 2)"),
    ],
)
def test_refusals(run: Run, tiny: Path, baselines: dict[str, Path], more: tuple[str, ...], code: int, message: str) -> None:
    words = [baselines.get(word, word) for word in more]
    result = run(*asked(tiny, *words), stdin=tar_of(film(6, 1, 1)))
    assert message in only_line(result) and result.returncode == code


@pytest.fixture(scope="module")
def baselines(run: Run, tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Return baselines by name: a whole one, and others that lack something or have too much."""
    records = lines(run(*asked(tiny), stdin=tar_of(film(12, 5, 1))).stdout)
    more = [record | {"group": "more"} for record in records]
    contents = {
        "WHOLE": records,
        "BARE": [{"group": "a", "concept": "cat"}],
        "TEXT": [record for record in records if record["by"] == "similarities"],
        "FEWER": [record for record in records if record["word"] != "clock"],
        "TWICE": [*records, records[0]],
        "HALF": [records[0] | {"mean": "much"}],
        "SIZES": [*records[:-1], records[-1] | {"images": 13}],
        "GROUPS": [*records, *more[:-1]],
    }
    folder = tmp_path_factory.mktemp("baselines")
    for name, content in contents.items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(record) + "\n" for record in content))
    return {name: folder / f"{name}.jsonl" for name in contents}
