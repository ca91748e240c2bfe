"""Intervals with few positives, alarms on few, heavy-tailed and dependent images, blocks, and units chosen by their activity."""

import io
import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import Run
from helpers.second_order import SHAPES, pictures, random_tower
from helpers.shift import png, table, unit_rows
from PIL import Image
from scipy.signal import lfilter
from scipy.stats import t

from cliptools.analysis.concept_units import PARTS, ConceptShare, ShareCorrelations, UnitSelector, choose_units, random_sets
from cliptools.analysis.correlations import correlations, interval_of, point_biserial, sums_of
from cliptools.analysis.shift_statistics import (
    BlockMeans,
    GroupMoments,
    Neighbours,
    Sample,
    chance,
    chance_of_comparison,
    compare,
    limit,
)
from cliptools.cli.run.shift_drift import Alarm, add_drift, baseline_warnings, shift_table, shift_warnings
from cliptools.errors import StreamError
from cliptools.images.groups import by_column, read_table, with_neighbour_blocks
from cliptools.images.tar import write_end, write_member
from cliptools.io.bundle import Bundle
from cliptools.io.header import Header
from cliptools.io.shift_baseline import Baseline, read_baseline
from cliptools.models.load import load_model
from cliptools.unit_effects.factored import UnitActivity
from cliptools.unit_effects.vit_second_order import SecondOrder

LAWS = {
    "normal": lambda random, size: random.normal(size=size),
    "exponential": lambda random, size: random.exponential(size=size) - 1,
    "log-normal": lambda random, size: (random.lognormal(0, 1, size) - np.exp(0.5)) / np.sqrt((np.e - 1) * np.e),
}


@pytest.mark.parametrize("law", LAWS)
@pytest.mark.parametrize(("positives", "n", "r"), [(4, 150, 0.5), (8, 60, 0.0), (8, 400, 0.6), (15, 400, 0.8), (20, 60, 0.4)])
def test_intervals_hold_the_truth_with_few_positives(law: str, positives: int, n: int, r: float) -> None:
    """True r by construction: spread 1 within, means `apart`. The earlier interval contained it in 72 to 93 % of these cases."""
    random, p = np.random.default_rng((positives, n)), positives / n
    apart = np.sqrt(r**2 / (p * (1 - p) * (1 - r**2)))
    held = []
    for _ in range(200):
        label = (random.random(n) < p).astype(float)
        interval = point_biserial(LAWS[law](random, n) + apart * label, label)
        if interval is not None and interval.low is not None:
            held.append(interval.low <= r <= interval.high)
    assert len(held) > 90 and np.mean(held) >= (0.88 if law == "log-normal" else 0.92)


def test_no_interval_is_given_where_none_can_hold() -> None:
    random = np.random.default_rng(0)
    share = random.normal(size=40)
    for positives in (1, 2):
        few = point_biserial(share, (np.arange(40) < positives).astype(float))
        assert few.low is None and few.high is None and f"one of them has {positives}" in few.why
        rest = point_biserial(share, (np.arange(40) >= positives).astype(float))
        assert rest.low is None and rest.value == pytest.approx(-few.value)
    label = (np.arange(40) < 9).astype(float)
    alone = point_biserial((np.arange(40) == 3).astype(float), label)
    assert alone.low is None and alone.why == "one of the images decides alone"
    blocks = point_biserial(share, label, np.arange(40) // 9)
    assert blocks.low is None and "3 blocks with either label" in blocks.why
    assert point_biserial(share, label).low is not None


def test_the_jackknife_of_sums_is_that_of_the_values_written_out() -> None:
    random = np.random.default_rng(1)
    x = random.gamma(1.0, size=36)
    y = x + random.normal(size=36)
    x, y = x - x.mean(), y - y.mean()
    z = np.arctanh(np.corrcoef(x, y)[0, 1])
    without = np.array([np.arctanh(np.corrcoef(np.delete(x, i), np.delete(y, i))[0, 1]) for i in range(36)])
    value, low, high = interval_of(sums_of(x, y))
    centre, variance = 36 * z - 35 * without.mean(), 35 / 36 * ((without - without.mean()) ** 2).sum()
    assert value == pytest.approx(np.tanh(z)) and (np.arctanh(low) + np.arctanh(high)) / 2 == pytest.approx(centre)
    d2 = (without - without.mean()) ** 2
    reach = t.isf(0.025, max(1, d2.sum() ** 2 / (d2**2).sum() - 1)) * np.sqrt(variance)
    assert np.arctanh(high) - centre == pytest.approx(reach)
    blocks = sums_of(x, y, np.arange(36) // 6)
    assert blocks.shape == (6, 6) and correlations(blocks.sum(0)) == pytest.approx(value)


def sample_of(values: np.ndarray) -> Sample:
    centred = values - values.mean()
    second, third, fourth = ((centred**power).mean() for power in (2, 3, 4))
    return Sample(len(values), values.mean(), values.std(ddof=1), third / second**1.5, fourth / second**2 - 3)


def film(random: np.random.Generator, n: int, rho: float) -> np.ndarray:
    """Return shares of frames: a first-order autoregression of variance 1."""
    noise = random.normal(size=n) * np.sqrt(1 - rho**2)
    noise[0] = random.normal()
    return lfilter([1.0], [1.0, -rho], noise)


@pytest.mark.parametrize("rho", [0.5, 0.9])
def test_blocks_hold_the_alarm_to_its_chance_on_frames_that_are_alike(rho: float) -> None:
    random, runs, size = np.random.default_rng(3), 500, {0.5: 20, 0.9: 80}[rho]
    alarms = {"images": 0, "blocks": 0}
    for _ in range(runs):
        now, before = (film(random, size * count, rho) for count in (10, 30))
        for way, (a, b) in {
            "images": (now, before),
            "blocks": (now.reshape(-1, size).mean(1), before.reshape(-1, size).mean(1)),
        }.items():
            comparison = compare(sample_of(a), sample_of(b))
            alarms[way] += abs(comparison.z) > limit(comparison, chance(2.5))
    assert alarms["blocks"] / runs <= 0.025 and alarms["images"] / runs > 0.10


def test_five_images_of_heavy_tails_alarm_as_often_as_promised() -> None:
    """Student's law with 3 degrees of freedom, 5 images against 480, 12 comparisons: 8 times as often without the kurtosis."""
    random, runs, tail = np.random.default_rng(7), 4000, chance_of_comparison(3.0, 12, uncorrected=False)
    alarms = np.zeros(2)
    for _ in range(runs):
        now, before = random.standard_t(3, 5), random.standard_t(3, 480)
        comparison = compare(sample_of(now), sample_of(before))
        alarms += [abs(comparison.z) > limit(one, tail) for one in (comparison, comparison._replace(kurtosis=0.0))]
    assert alarms[0] <= 2 and alarms[1] >= 4  # 0.9 of 4,000 are promised


def test_neighbours_of_films_are_alike_and_those_of_photographs_are_not() -> None:
    random = np.random.default_rng(7)
    value = np.stack([film(random, 600, 0.8), random.gamma(1.0, size=600)], 1)
    group = np.repeat([0, 1, 2], 200)
    moments, neighbours = GroupMoments(3, 2), Neighbours(3, 2)
    for start in range(0, 600, 70):
        moments.add(group[start : start + 70], value[start : start + 70])
        neighbours.add(group[start : start + 70], value[start : start + 70])
    assert neighbours.pairs == 597
    assert neighbours.correlation(moments, 0) == pytest.approx(0.8, abs=0.1)
    assert abs(neighbours.correlation(moments, 1)) < 0.12
    means = BlockMeans(6, 2)
    means.add(np.arange(600) // 120, value)
    known, mean = means.means()
    assert known.tolist() == [0, 1, 2, 3, 4]
    np.testing.assert_allclose(mean[1], value[120:240].mean(0))


def test_blocks_are_neighbours_in_a_group_or_a_column(tmp_path: Path) -> None:
    rows = ["image,group,film"]
    for i in range(7):
        png(tmp_path / f"{i}.png")
        rows.append(f"{i}.png,{'ab'[i > 4]},{'xyx'[i % 3]}")
    known = read_table(table(tmp_path, "\n".join(rows)), "image")
    groups = by_column([], known, tmp_path, "group", "film")
    assert groups.block == [0, 1, 0, 0, 1, 0, 0]
    assert with_neighbour_blocks(groups, 2).block == [0, 0, 1, 1, 1, 2, 2]  # the fifth of a joins the block before
    assert with_neighbour_blocks(groups, 9).block == [0] * 5 + [1] * 2
    with pytest.raises(StreamError, match=r"no column 'reel' \(--block\)"):
        by_column([], known, tmp_path, "group", "reel")
    holes = read_table(table(tmp_path, "image,group,film\n0.png,a,x\n1.png,a,\n"), "image")
    with pytest.raises(StreamError, match=r"1\.png has no block \(column 'film' is empty\)"):
        by_column([], holes, tmp_path, "group", "film")


@pytest.mark.parametrize("shape", [shape for shape in SHAPES if shape["layers"] > 2])
def test_units_are_chosen_by_what_they_write_and_see(shape: dict) -> None:
    visual, d = random_tower(shape), shape["output_dim"]
    paths, images = SecondOrder(visual), pictures(visual, 12)
    unit = torch.cat([paths.units(layer)[[3, 1, 7, 0]] for layer in (1, 0)])
    r, t = unit_rows(8, d), unit_rows(3, d).flip(0)
    seeing = UnitSelector(paths, unit, r, t)
    for some in images.split(5):
        seeing.add(seeing.measure(some))
    chosen = seeing.choose(3)
    activity = UnitActivity(paths, unit, torch.zeros_like(r), r)(images)
    e = torch.nn.functional.normalize(activity.embedding, dim=-1)
    a, s = (activity.along / 100).numpy(), (e @ t.T).numpy()
    overlap = (t @ r.T).numpy()
    for c in range(3):
        # The similarity without the unit's own effect along its direction
        own = [np.cov(a[:, n], s[:, c], ddof=0)[0, 1] - a[:, n].var() * overlap[c, n] for n in range(8)]
        seen = np.array(own) / (a.std(0) * s[:, c].std())
        score = np.maximum(overlap[c], 0) * np.maximum(seen + 12**-0.5, 0)
        positive = [n for n in np.argsort(-score) if score[n] > 0][:3]
        assert chosen.row[c].tolist()[: len(positive)] == positive
        np.testing.assert_allclose(chosen.seen[c], seen[chosen.row[c]], atol=1e-9)
    nothing = UnitSelector(paths, unit, r, t).choose(3)  # not one image: by what they write alone
    assert [row[: int((overlap[c] > 0).sum())] for c, row in enumerate(nothing.row.tolist())] == [
        row[: int((overlap[c] > 0).sum())] for c, row in enumerate(choose_units(r, t, 3).row.tolist())
    ]


def test_random_sets_are_measured_beside() -> None:
    visual, d = random_tower(SHAPES[0]), SHAPES[0]["output_dim"]
    paths, images = SecondOrder(visual), pictures(visual, 2)
    unit, t = paths.units(1)[:20], unit_rows(3, d)
    sets = random_sets(20, 5, 4)
    assert sets.shape == (4, 5) and torch.equal(sets, random_sets(20, 5, 4)) and len(random_sets(19, 5, 4)) == 0
    rows = choose_units(unit_rows(20, d), t, 5).row
    together = ConceptShare(paths, unit, rows, t, sets)(images)
    for c in range(3):
        alone = ConceptShare(paths, unit, sets, t[[c] * 4])(images)
        torch.testing.assert_close(together.random_norm, alone.norm)
        torch.testing.assert_close(together.random_signed[..., c], alone.signed)
    torch.testing.assert_close(together.norm, ConceptShare(paths, unit, rows, t)(images).norm)


def test_following_is_the_correlation_and_chance_that_of_the_sets() -> None:
    random = np.random.default_rng(2)
    rest = random.normal(0.2, 0.05, (500, 2))
    share = np.stack([rest[:, 0] + random.normal(0, 0.05, 500), random.gamma(1.0, size=500)], 1)
    random_share, random_rest = random.normal(size=(500, 20, 2)), random.normal(size=(500, 20, 2))
    following = ShareCorrelations(2, 20, PARTS)
    for part in np.split(np.arange(500), (3, 200)):
        following.add(part % PARTS, share[part], rest[part], random_share[part], random_rest[part])
    first, second = following.correlation(0), following.correlation(1)
    assert first.value == pytest.approx(np.corrcoef(share[:, 0], rest[:, 0])[0, 1]) and first.size == 500
    assert first.low < 2**-0.5 < first.high and first.low > 0.6 and second.low < 0 < second.high
    by_chance = np.arctanh([np.corrcoef(random_share[:, i, 1], random_rest[:, i, 1])[0, 1] for i in range(20)])
    assert second.chance == pytest.approx(np.tanh(np.mean(by_chance) + 1.959964 * np.std(by_chance, ddof=1)))
    assert first.value > first.chance


@pytest.mark.parametrize("images", [4, 8, 30])
def test_what_chance_reaches_is_a_correlation_with_few_images_too(images: int) -> None:
    """All or nearly all random sets may follow the concept: the mean plus 1.96 deviations is then above 1."""
    random = np.random.default_rng(3)
    following, model = ShareCorrelations(1, 20, PARTS), random.normal(size=images)
    share = model[:, None, None] * np.where(np.arange(20) < 12, 1, -0.5)[:, None] + random.normal(size=(images, 20, 1)) / 5
    rest = np.repeat(model[:, None, None], 20, 1)
    following.add(np.arange(images), share[:, 0], rest[:, 0], share, rest)
    plain = [np.corrcoef(share[:, i, 0], model)[0, 1] for i in range(20)]
    assert np.mean(plain) + 1.959964 * np.std(plain, ddof=1) > 1 > following.correlation(0).chance > np.mean(plain)


def record(concept: str, value: float, **more: object) -> dict:
    follows = {"value": value, "low": value - 0.1, "high": value + 0.1, "count": 300, "chance": 0.2}
    base = {"concept": concept, "group": "new", "images": 300, "mean": 1.0, "spread": 1.0, "standard_error": 0.1, "skewness": 0.0}
    source = {"settings": {"choose": "overlap"}, "model": {"sha256": ""}, "units": [{"layer": 1, "neuron": 2}]}
    return base | source | {"follows": follows, "neighbours": {"correlation": 0.0, "pairs": 299}} | more


def test_warnings_name_what_does_not_hold() -> None:
    assert not list(shift_warnings([record("boat", 0.5)], None))
    (line,) = shift_warnings([record("boat", 0.5), record("cat", 0.1)], None)
    assert line.startswith("cat: its 1 unit does not follow the concept") and "--choose seen" in line
    shown = shift_table([record("boat", 0.5), record("cat", 0.1)], []).decode()
    assert "cat: units 1:2, following 0.10 (0.00 to 0.20; chance 0.20) NOT THE CONCEPT" in shown
    assert "boat: units 1:2, following 0.50 (0.40 to 0.60; chance 0.20)\n" in shown
    wide = record("cat", 0.1) | {"follows": {"value": 0.1, "low": -0.8, "high": 0.9, "count": 9}}
    assert not list(shift_warnings([wide], None))  # too few images to tell
    alike = {"correlation": 0.8, "pairs": 99}
    (line,) = shift_warnings([record("cat", 0.5, neighbours=alike)], None)
    assert "next to each other are alike (correlation of their shares: cat 0.80)" in line and "--block" in line
    (line,) = shift_warnings([record("cat", 0.5, neighbours=alike)], "9")
    assert "blocks next to each other are still alike" in line
    assert not list(shift_warnings([record("cat", 0.5, neighbours={"correlation": 0.2, "pairs": 30})], None))


def test_units_that_followed_in_the_baseline_are_no_strays_where_all_images_show_it() -> None:
    now, before = record("cat", -0.3), record("cat", 0.5, group="old")
    add_drift([now], Baseline({"cat": {"old": before}}, "old.jsonl"), Alarm(3.0, False, False))
    assert now["drift"]["before"]["follows"]["value"] == 0.5 and not list(shift_warnings([now], None))


@pytest.mark.parametrize(("size", "few"), [(3, True), (4, True), (5, False)])
def test_an_alarm_says_where_groups_are_too_small_for_it(size: int, few: bool) -> None:
    now, before = record("cat", 0.5, images=size), record("cat", 0.5, images=90)
    add_drift([now], Baseline({"cat": {"old": before}}, "old.jsonl"), Alarm(3.0, False, False))
    assert now["drift"].get("few", False) == few
    lines = list(shift_warnings([now], None))
    assert [line.startswith("fewer than 5 images") for line in lines] == [True] * few


def test_groups_that_an_alarm_cannot_compare_are_named() -> None:
    """One image or one block has no standard error: such a group never alarms, which must not count as no drift."""
    for more, what in (({}, "images"), ({"blocks": 1}, "blocks")):
        whole = {"blocks": 9} if more else {}
        records = [record("cat", 0.5, **whole), record("cat", 0.5, group="lone", **(more or {"images": 1}))]
        baseline = Baseline({"cat": {"old": record("cat", 0.5, images=90, **({"blocks": 30} if more else {}))}}, "old.jsonl")
        add_drift(records, baseline, Alarm(3.0, False, False))
        assert "drift" not in records[1]
        (line,) = shift_warnings(records, "9" if more else None)
        assert line == f"not compared with the baseline, since a mean needs at least two {what}, here and there: lone"


def test_a_baseline_without_kurtosis_is_read_with_a_line() -> None:
    old = Baseline({"cat": {"old": record("cat", 0.5)}, "dog": {"old": record("dog", 0.5, kurtosis=1.0)}}, "old.jsonl")
    (line,) = baseline_warnings(old, ("cat", "dog"), 3.0)
    assert line.startswith("--baseline old.jsonl: made by an earlier version, without `kurtosis`")
    assert not list(baseline_warnings(old, ("cat", "dog"), None)) and not list(baseline_warnings(old, ("dog",), 3.0))


@pytest.fixture(scope="module")
def effects(tiny_clip_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    model, random = load_model(f"local-dir:{tiny_clip_dir}", device="cpu"), np.random.default_rng(0)
    unit = np.array([(layer, neuron, -1) for layer in (1, 2) for neuron in range(12)], np.int32)
    direction = random.normal(size=(len(unit), 20)).astype(np.float32)
    header = Header("effects", model.identity, {"count": 9}, {"effect": "second", "units": "neurons"})
    path = tmp_path_factory.mktemp("effects") / "effects.safetensors"
    path.write_bytes(Bundle(header, {"unit": unit, "direction": direction}).to_bytes())
    return path


def frames(count: int) -> bytes:
    """Return a tar of films of six frames each: one picture with a little noise."""
    random, tar = np.random.default_rng(9), io.BytesIO()
    for i in range(count):
        if i % 6 == 0:
            base = random.integers(0, 200, (24, 24, 3))
        picture = io.BytesIO()
        Image.fromarray((base + random.integers(0, 20, base.shape)).astype(np.uint8)).save(picture, "PNG")
        write_member(tar, f"{i:03d}.png", picture.getvalue())
    write_end(tar)
    return tar.getvalue()


def test_blocks_and_choices_from_a_tar_on_standard_input(run: Run, effects: Path, tmp_path: Path) -> None:
    words = ("shift", "-", "--concept", "cat", "--template", "{}", "--bundle", effects, "-q", "-f", "jsonl")
    images, blocks = (run(*words, *more, stdin=frames(72)) for more in ((), ("--block", 6)))
    (single,), (blocked,) = ([json.loads(line) for line in result.stdout.splitlines()] for result in (images, blocks))
    assert b"next to each other are alike" in images.stderr and blocks.returncode == 0
    assert b"images next to each other" not in blocks.stderr
    assert "blocks" not in single and "block" not in single["settings"] and single["neighbours"]["correlation"] > 0.5
    assert (blocked["images"], blocked["blocks"], blocked["settings"]["block"]) == (72, 12, 6)
    assert blocked["mean"] == pytest.approx(single["mean"]) and blocked["standard_error"] > 1.5 * single["standard_error"]
    assert blocked["standard_error"] == pytest.approx(blocked["spread"] / 12**0.5)
    assert single["settings"]["choose"] == "seen" and single["looked_at"] == 72 and len(single["units"]) == 5
    assert all({"overlap", "seen"} <= set(unit) for unit in single["units"]) and single["follows"]["count"] == 72
    old = tmp_path / "old.jsonl"
    old.write_bytes(blocks.stdout)
    compared = ("--baseline", old, "--alarm", 3)
    other = run(*words, *compared, stdin=frames(72))
    assert other.returncode == 1 and b"other settings (block 6, here None)" in other.stderr
    same = run(*words, *compared, "--block", 6, stdin=frames(36))
    now = json.loads(same.stdout)
    assert same.returncode == 0 and now["units"] == blocked["units"] and now["looked_at"] == 72
    assert now["drift"]["before"]["blocks"] == 12 and now["blocks"] == 6
    otherwise = run(*words, *compared, "--block", 6, "--choose", "overlap", stdin=frames(36))
    assert otherwise.returncode == 1 and b"choose seen, here overlap" in otherwise.stderr
    elsewhere = run(*words, *compared, "--block", 6, "--layers", 1, stdin=frames(36))
    assert elsewhere.returncode == 1 and b"other settings (layers None, here [1])" in elsewhere.stderr
    record = json.loads(blocks.stdout)
    record["units"][0]["neuron"] = 99999
    old.write_text(json.dumps(record))
    changed = run(*words, *compared, "--block", 6, stdin=frames(36))
    assert changed.returncode == 1 and b":99999, which is not in the bundle" in changed.stderr
    one_layer = run(*words, "--block", 6, "--layers", 1, stdin=frames(36))
    old.write_bytes(one_layer.stdout)
    again = run(*words, *compared, "--block", 6, "--layers", "1", stdin=frames(36))
    assert again.returncode == 0 and json.loads(again.stdout)["bundle"] == blocked["bundle"], "the digest of the whole bundle"


@pytest.mark.parametrize(
    ("more", "place"),
    [
        ({"blocks": 0}, ">= 1.0 - at `$.blocks`"),
        ({"blocks": None}, "got `null` - at `$.blocks`"),
        ({"blocks": "x"}, "got `str` - at `$.blocks`"),
        ({"blocks": 1.5}, "multiple of 1.0 - at `$.blocks`"),
        ({"settings": 3}, "Expected `object`, got `int` - at `$.settings`"),
        ({"units": [{"layer": "a"}]}, "got `str` - at `$.units[0].layer`"),
        ({"follows": {"value": 1}}, "missing required field `low` - at `$.follows`"),
        ({"mean": True}, "Expected `float`, got `bool` - at `$.mean`"),
    ],
)
def test_baselines_with_damaged_fields(tmp_path: Path, more: dict, place: str) -> None:
    (tmp_path / "old.jsonl").write_text(json.dumps(record("cat", 0.5) | more))
    with pytest.raises(StreamError, match="line 1 is not a record of a group.*" + re.escape(place)):
        read_baseline(tmp_path / "old.jsonl")


def test_a_group_that_the_baseline_has_not() -> None:
    baseline = Baseline({"cat": {"old": record("cat", 0.5, group="old")}}, "old.jsonl")
    with pytest.raises(StreamError, match=r"no record of concept 'cat' in a group 'new' \(--match\)"):
        baseline.comparable("cat", "new", record("cat", 0.5))
    with pytest.raises(StreamError, match=r"no record of concept 'dog'$"):
        baseline.comparable("dog", None, record("dog", 0.5))
