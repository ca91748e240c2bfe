"""Shares of concepts compared with explicit sums, correlations and alarms with scipy and chance, groups and labels of images."""

import html
import io
import json
import re
from pathlib import Path

import numpy as np
import pytest
import scipy.stats
import torch
from helpers.oracles import second_order_effects
from helpers.second_order import SHAPES, pictures, random_tower
from helpers.shift import cars, png, table, unit_rows
from open_clip.modified_resnet import ModifiedResNet
from scipy.io import savemat

from cliptools.analysis.concept_units import ConceptShare, choose_units
from cliptools.analysis.correlations import frequency, group_correlation, point_biserial
from cliptools.analysis.shift_statistics import (
    Comparison,
    GroupMoments,
    Sample,
    chance,
    chance_of_comparison,
    chance_of_run,
    compare,
    limit,
    pooled_sample,
)
from cliptools.errors import CliptoolsError, StreamError
from cliptools.images.annotations import by_class, by_columns, by_scenes
from cliptools.images.groups import Groups, by_column, by_path, read_table
from cliptools.images.stanford_cars import read_cars
from cliptools.images.tar import write_end, write_member
from cliptools.io.shift_baseline import read_baseline
from cliptools.render.shift_plot import Panel, draw_shift
from cliptools.unit_effects.resnet_pooling import Pairs
from cliptools.unit_effects.vit_second_order import SecondOrder


@pytest.mark.parametrize("shape", [shape for shape in SHAPES if shape["layers"] > 2])
def test_shares_are_those_of_effects_summed_one_by_one(shape: dict) -> None:
    visual, d = random_tower(shape), shape["output_dim"]
    images, paths = pictures(visual, 2), SecondOrder(visual)
    unit = torch.cat([paths.units(layer)[[3, 1, 7, 0]] for layer in (1, 0)])
    r, t = unit_rows(8, d), unit_rows(3, d).flip(0)
    chosen = choose_units(r, t, 3)
    found = ConceptShare(paths, unit, chosen.row, t)(images)
    for i, image in enumerate(images):
        M = visual(image[None])[0]
        phi = {layer: second_order_effects(visual, image, layer) for layer in (0, 1)}
        for c in range(3):
            best = sorted(range(8), key=lambda n, c=c: -float(r[n] @ t[c]))[:3]
            total = sum(phi[int(unit[n, 0])][int(unit[n, 1])] for n in best)
            expected = (total.norm() / M.norm(), total @ t[c] / M.norm(), M @ t[c] / M.norm())
            for value, wanted in zip((part[i, c] for part in found[:3]), expected, strict=True):
                torch.testing.assert_close(value, wanted, rtol=1e-9, atol=1e-9)


def test_shares_of_pairs_are_those_of_every_token_and_head() -> None:
    torch.manual_seed(2)
    visual = ModifiedResNet(layers=(1, 1, 1, 1), output_dim=22, heads=4, image_size=64, width=8).double().eval()
    visual.requires_grad_(False)
    images = torch.randn(2, 3, 64, 64, dtype=torch.float64)
    unit, t = torch.tensor([[4, 9, 1], [4, 2, 3], [4, 9, 0], [4, 200, 2]]), unit_rows(2, 22)
    rows = torch.tensor([[3, 0], [1, 2]])
    found = ConceptShare(Pairs(visual), unit, rows, t)(images)
    pool, e = visual.attnpool, 256 // 4
    z = visual.layer4(visual.layer3(visual.layer2(visual.layer1(visual.stem(images))))).flatten(2).transpose(1, 2)
    for i in range(2):
        x = torch.cat([z[i].mean(0, keepdim=True), z[i]]) + pool.positional_embedding
        M = visual(images[i : i + 1])[0]
        for c in range(2):
            total = torch.zeros(22, dtype=torch.float64)
            for _, n, h in unit[rows[c]].tolist():
                of = slice(h * e, (h + 1) * e)
                q = pool.q_proj(x[0])[of]
                a = torch.softmax(torch.stack([q @ pool.k_proj(token)[of] for token in x]) / e**0.5, 0)
                w = pool.c_proj.weight[:, of] @ pool.v_proj.weight[of, n]
                total += sum(a[token] * x[token, n] * w for token in range(len(x)))
            torch.testing.assert_close(found.norm[i, c], total.norm() / M.norm(), rtol=1e-9, atol=1e-9)
            torch.testing.assert_close(found.signed[i, c], total @ t[c] / M.norm(), rtol=1e-9, atol=1e-9)


def test_running_moments_are_those_of_all_values() -> None:
    random = np.random.default_rng(0)
    value, group = random.normal(1e3, 1, (50, 3)), random.integers(0, 3, 50)
    moments = GroupMoments(4, 3)
    for start in range(0, 50, 7):
        moments.add(group[start : start + 7], value[start : start + 7])
    assert moments.count.tolist() == [*np.bincount(group).tolist(), 0]
    samples = [moments.sample(g, 1) for g in range(3)]
    for g, sample in enumerate(samples):
        mine = value[group == g, 1]
        np.testing.assert_allclose(
            sample[1:], (mine.mean(), mine.std(ddof=1), scipy.stats.skew(mine), scipy.stats.kurtosis(mine)), rtol=1e-6
        )
        np.testing.assert_allclose(sample.standard_error, scipy.stats.sem(mine), rtol=1e-9)
    assert Sample(1, 2.0, 0.0).standard_error is None and Sample(2, 2.0, 0.0).standard_error == 0
    everything = value[:, 1]
    of_all = (scipy.stats.skew(everything), scipy.stats.kurtosis(everything))
    expected = (50, everything.mean(), everything.std(ddof=1), *of_all)
    np.testing.assert_allclose(pooled_sample(samples), expected, rtol=1e-6)


def test_point_biserial_is_scipys_where_labels_are_known() -> None:
    random = np.random.default_rng(1)
    label = (random.random(80) < 0.3).astype(float)
    share = random.gamma(2, size=80) + label
    expected = scipy.stats.pointbiserialr(label, share).statistic
    unknown = np.concatenate([label, np.full(9, np.nan)])
    found = point_biserial(np.concatenate([share, random.normal(size=9)]), unknown)
    assert found is not None and found.size == 80 and found.low < found.value < found.high
    np.testing.assert_allclose(found.value, expected, rtol=1e-12)
    assert frequency(unknown) == (80, label.mean())
    assert point_biserial(share, np.ones(80)) is None and point_biserial(np.full(80, 0.1), label) is None
    assert frequency(np.full(3, np.nan))[0] == 0 and point_biserial(share[:3], np.full(3, np.nan)) is None


def test_intervals_of_images_hold_the_truth_in_19_of_20_samples() -> None:
    """Skewed shares, a rare label and unequal spreads, for which the interval for normal variables would fail."""
    random = np.random.default_rng(2)

    def draw(n: int) -> tuple[np.ndarray, np.ndarray]:
        label = (random.random(n) < 0.1).astype(float)
        return random.gamma(1.0, 0.3, n) + label * random.gamma(2.0, 1.0, n), label

    truth = scipy.stats.pointbiserialr(*draw(1_000_000)[::-1]).statistic
    intervals = [point_biserial(*draw(400)) for _ in range(600)]
    held = np.mean([found.low <= truth <= found.high for found in intervals if found is not None])
    assert 0.90 <= held <= 0.98
    classical = [np.tanh(np.arctanh(found.value) + np.array([-1.96, 1.96]) / np.sqrt(397)) for found in intervals if found]
    assert np.mean([low <= truth <= high for low, high in classical]) < held - 0.03


def test_correlation_of_groups_is_pearsons_with_fishers_interval() -> None:
    random = np.random.default_rng(3)
    group = np.repeat(np.arange(9), 20)
    label = (random.random(180) < group / 10).astype(float)
    share = random.normal(size=180) + label
    means, shown = (np.array([x[group == g].mean() for g in range(9)]) for x in (share, label))
    expected = scipy.stats.pearsonr(means, shown)
    found = group_correlation(share, label, group)
    assert found is not None and found.size == 9
    np.testing.assert_allclose(found[:3], (expected.statistic, *expected.confidence_interval(0.95)), rtol=1e-5)
    assert group_correlation(share[:60], label[:60], group[:60]) is None


def sample_of(values: np.ndarray) -> Sample:
    shape = (float(scipy.stats.skew(values)), float(scipy.stats.kurtosis(values)))
    return Sample(len(values), float(values.mean()), float(values.std(ddof=1)), *shape)


def test_a_comparison_is_students_and_its_limit_pearsons() -> None:
    random = np.random.default_rng(4)
    now, before = random.normal(0.4, 2, 17), random.normal(0, 1, 60)
    expected = scipy.stats.ttest_ind(now, before)
    found = compare(sample_of(now), sample_of(before))
    np.testing.assert_allclose((found.z, found.freedom), (expected.statistic, expected.df), rtol=1e-9)
    skewness = scipy.stats.skew(np.concatenate([now, before])) * (1 / 17**2 - 1 / 60**2) / (1 / 17 + 1 / 60) ** 1.5
    np.testing.assert_allclose(found.skewness, skewness, rtol=1e-9)
    student = scipy.stats.t.isf(0.005, 75)
    for skew, side, law in ((0.0, 1, scipy.stats.norm), (0.7, -1, scipy.stats.norm), (0.7, 1, scipy.stats.pearson3(0.7))):
        expected = law.isf(0.005) * student / scipy.stats.norm.isf(0.005)
        np.testing.assert_allclose(limit(Comparison(side * 2.0, skew, 75), 0.01), expected, rtol=1e-6)
        np.testing.assert_allclose(limit(Comparison(-side * 2.0, -skew, 75), 0.01), expected, rtol=1e-6)
    constant = Sample(5, 1.0, 0.0)
    assert compare(Sample(1, 0.0, 0.0), constant) is None and compare(constant, constant).z == 0
    assert compare(Sample(4, 2.0, 0.0), constant).z == np.inf and abs(limit(compare(Sample(4, 2.0, 0.0), constant), 1e-3)) < 99


def test_the_chance_of_an_alarm_is_what_it_is_said_to_be() -> None:
    np.testing.assert_allclose(chance(3.0), 0.0026998, rtol=1e-4)
    np.testing.assert_allclose(chance_of_run(3.0, 120, uncorrected=True), 0.2770, atol=1e-3)
    np.testing.assert_allclose(chance_of_run(3.0, 120, uncorrected=False), chance(3.0), rtol=1e-9)
    assert chance_of_comparison(3.0, 120, uncorrected=False) < chance(3.0) / 119 and chance_of_comparison(
        3.0, 1, uncorrected=False
    ) == chance(3.0)


@pytest.mark.parametrize("each", [False, True])
def test_runs_alarm_by_chance_as_often_as_theory_has_it(each: bool) -> None:
    random, m, runs = np.random.default_rng(6), 5, 300
    tail, alarms = chance_of_comparison(2.0, m, each), 0
    for _ in range(runs):
        pairs = [(sample_of(random.normal(size=12)), sample_of(random.normal(0, 1, 40))) for _ in range(m)]
        found = [compare(*pair) for pair in pairs]
        alarms += any(abs(one.z) > limit(one, tail) for one in found)
    expected = chance_of_run(2.0, m, each)
    assert abs(alarms / runs - expected) < 4 * np.sqrt(expected * (1 - expected) / runs)


def test_rare_concepts_in_small_groups_do_not_alarm_more_often() -> None:
    """A few images show much of it, the others almost nothing: Welch's test would alarm in a fifth of these runs and more."""
    random, m, runs = np.random.default_rng(7), 12, 100

    def draw(n: int) -> np.ndarray:
        return random.gamma(2.0, 0.005, n) + (random.random(n) < 0.05) * random.gamma(4.0, 0.02, n)

    tail, alarms, welch = chance_of_comparison(3.0, m, uncorrected=False), 0, 0
    for _ in range(runs):
        before = draw(480)
        groups = [draw(40) for _ in range(m)]
        found = [compare(sample_of(now), sample_of(before)) for now in groups]
        alarms += any(abs(one.z) > limit(one, tail) for one in found)
        welch += bool((scipy.stats.ttest_ind(np.stack(groups), before, axis=1, equal_var=False).pvalue < tail).any())
    assert alarms / runs <= 0.02 and welch / runs > 0.2


@pytest.mark.parametrize("whole", [True, False])
def test_stanford_cars_are_grouped_by_model_year(tmp_path: Path, whole: bool) -> None:
    groups = by_path([str(cars(tmp_path, whole))])
    assert groups.names == ("2001", "2010", "2012") and groups.of == [0, 2, 1, 2]
    assert all(groups.source.load(i).size == (8, 8) for i in range(4))
    labels = by_class([car.name for car in groups.cars], ("convertible", "yellow"))
    assert labels[:, 0].tolist() == [0, 1, 1, 1] and np.isnan(labels[:, 1]).all()


def test_what_is_no_stanford_cars_is_said(tmp_path: Path) -> None:
    (tmp_path / "cars_annos.mat").write_bytes(b"nothing")
    with pytest.raises(StreamError, match="expected a MATLAB file of Stanford Cars"):
        read_cars(tmp_path)
    savemat(tmp_path / "cars_annos.mat", {"annotations": np.zeros(3)})
    with pytest.raises(StreamError, match="no variable class_names"):
        read_cars(tmp_path)
    savemat(tmp_path / "cars_annos.mat", {"annotations": np.zeros(3), "class_names": np.array(["a 2001"], dtype=object)})
    with pytest.raises(StreamError, match="without relative_im_path and class"):
        read_cars(tmp_path)
    rows = np.array([("1.png", 9)], dtype=[("relative_im_path", object), ("class", object)])
    savemat(tmp_path / "cars_annos.mat", {"annotations": rows, "class_names": np.array(["a 2001"], dtype=object)})
    with pytest.raises(StreamError, match="is of class 9, expected 1 to 1"):
        read_cars(tmp_path)
    rows["class"] = 1
    savemat(tmp_path / "cars_annos.mat", {"annotations": rows, "class_names": np.array(["a car"], dtype=object)})
    with pytest.raises(StreamError, match="expected a model year at its end"):
        by_path([str(tmp_path)])


def test_folders_and_archives_are_groups(tmp_path: Path) -> None:
    for name in ("may/a.png", "may/deep/b.png", "june/a.png"):
        png(tmp_path / name)
    tar = io.BytesIO()
    write_member(tar, "x/c.png", png(tmp_path / "c.png").read_bytes())
    write_end(tar)
    (tmp_path / "july.tar").write_bytes(tar.getvalue())
    groups = by_path([str(tmp_path / name) for name in ("may", "june", "july.tar", "c.png")])
    assert groups.names == ("may", "june", "july.tar", tmp_path.name) and groups.of == [0, 0, 1, 2, 3]
    png(tmp_path / "2024/may/a.png")
    assert by_path([f"{tmp_path}/may", f"{tmp_path}/2024/may"]).names == (f"{tmp_path}/may", f"{tmp_path}/2024/may")


def test_a_table_groups_its_images_or_those_named(tmp_path: Path) -> None:
    for name in ("a/1.png", "a/2.png", "b/1.png"):
        png(tmp_path / name)
    known = read_table(table(tmp_path, "file,year,cat\nb/1.png,10,yes\n./a/1.png,9,0\na/2.png,10,\n"), "file")
    groups = by_column([], known, tmp_path, "year")
    assert groups.names == ("9", "10") and groups.of == [1, 0, 1] and groups.source.load(1).size == (8, 8)
    for years in (("3", "nan", "1"), ("nan", "3", "1")):  # as pandas writes what is missing
        lines = "".join(f"{name},{year}\n" for name, year in zip(("a/1.png", "a/2.png", "b/1.png"), years, strict=True))
        missing = by_column([], read_table(table(tmp_path, f"file,year\n{lines}"), "file"), tmp_path, "year")
        assert missing.names == ("1", "3", "nan")
    named = by_column([str(tmp_path / "a")], read_table(table(tmp_path, "file,year\n1,x\n2.jpg,y\n"), "file"), tmp_path, "year")
    assert named.names == ("x", "y") and named.of == [0, 1]
    labels = by_columns(groups, known, ("Cat", "dog"))
    assert labels[:2, 0].tolist() == [1, 0] and np.isnan(labels[2, 0]) and np.isnan(labels[:, 1]).all()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "no column 'image'"),
        ("image,group\n", "expected a line an image"),
        ("image,group\na.png\n", "line 2 has another number of fields"),
        ("image,group\na.png,1\n./a.png,2\n", "line 3 names a.png a second time"),
        ("image,group\n,1\n", "line 2 names no image"),
        ("image,year\na.png,1\n", r"no column 'group' \(--group-column\); it has image, year"),
        ("image,group\na.png,\n", "a.png has no group"),
        ('image,group\n"a.png,1\n', "is no CSV"),
    ],
)
def test_tables_that_are_none(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(StreamError, match=said):
        by_column([], read_table(table(tmp_path, text), "image"), tmp_path, "group")


def test_labels_that_are_none(tmp_path: Path) -> None:
    known = read_table(table(tmp_path, "image,group,cat\na.png,1,maybe\n"), "image")
    groups = by_column([], known, tmp_path, "group")
    with pytest.raises(StreamError, match=r"a\.png has cat 'maybe', expected 1, 0, yes, no or nothing"):
        by_columns(groups, known, ("cat",))
    with pytest.raises(StreamError, match="no column has the name of a concept; it has image, group, cat"):
        by_columns(groups, known, ("dog",))
    png(tmp_path / "z.png")
    with pytest.raises(StreamError, match=r"has no row for .*z\.png"):
        by_column([str(tmp_path / "z.png")], known, tmp_path, "group")


def scenes(folder: Path, names: dict[str, list[str]]) -> None:
    for key in names:
        png(folder / "images" / f"{key}.png")
    lines = [json.dumps({"key": key, "names": shown}) for key, shown in names.items()]
    (folder / "scenes.jsonl").write_text("\n".join(lines))


def test_scenes_tell_what_they_show_in_folders_and_archives(tmp_path: Path) -> None:
    scenes(tmp_path / "old", {"s-0": ["cat"], "s-1": ["violin", "dog face"]})
    scenes(tmp_path / "new", {"s-0": ["violin"]})
    tar = io.BytesIO()
    for key, shown in (("s-0", ["cat"]), ("s-1", ["violin"])):
        write_member(tar, f"{key}.png", (tmp_path / "new/images/s-0.png").read_bytes())
        write_member(tar, f"{key}.txt", b"words")
        write_member(tar, f"{key}.json", json.dumps({"names": shown}).encode())
    write_end(tar)
    (tmp_path / "more.tar").write_bytes(tar.getvalue())
    groups = by_path([str(tmp_path / name) for name in ("old", "new", "more.tar")])
    assert by_scenes(groups, ("violin", "CAT")).T.tolist() == [[0, 1, 1, 0, 1], [1, 0, 0, 1, 0]]
    with pytest.raises(StreamError, match=r"has no scenes.jsonl in a folder above it"):
        by_scenes(by_path([str(png(tmp_path / "bare" / "p.png").parent)]), ("cat",))


def test_a_picture_in_an_archive_without_its_record(tmp_path: Path) -> None:
    tar = io.BytesIO()
    for key in ("a.png", "b.png"):
        write_member(tar, key, png(tmp_path / "p.png").read_bytes())
    write_end(tar)
    (tmp_path / "some.tar").write_bytes(tar.getvalue())
    groups: Groups = by_path([str(tmp_path / "some.tar")])
    with pytest.raises(StreamError, match=r"some.tar/a.png is not followed by a.json"):
        by_scenes(groups, ("cat",))


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        ("", "no record of a group"),
        ("{", "line 1: expected a JSON object"),
        ('{"group": "a", "concept": "cat"}', "line 1 is not a record of a group"),
        ("MEAN x", "line 1: expected a JSON object"),
        ("MEAN NaN", "line 1: expected a JSON object"),
        ("MEAN 1\nMEAN 1", "line 2 has 'cat' in group 'a' a second time"),
    ],
)
def test_baselines_that_are_none(tmp_path: Path, lines: str, said: str) -> None:
    record = r'{"group": "a", "concept": "cat", "images": 3, "spread": 1, "skewness": 0, "mean": \1}'
    (tmp_path / "old.jsonl").write_text(re.sub(r"MEAN (\w+)", record, lines))
    with pytest.raises(StreamError, match=said):
        read_baseline(tmp_path / "old.jsonl")


def test_plots_are_whole_and_the_same_for_the_same_figures(tmp_path: Path) -> None:
    groups = ("spring", "summer", "autumn")
    panels = [
        Panel("cat", (0.1, 0.2, None), (0.01, 0.02, None), (0.1, 0.5, None), (False, True, False)),
        Panel("violin", (0.3, 0.2, 0.1), (0.01, 0.02, 0.03), (None, None, None), (False, False, False)),
    ]
    for name, start in (("a.png", b"\x89PNG"), ("b.SVG", b"<?xml")):
        first, second = (draw_shift(groups, panels, "share", tmp_path / name) for _ in range(2))
        assert first == second and first.startswith(start) and len(first) > 2000


def test_plots_show_names_as_they_are_and_notes(tmp_path: Path) -> None:
    groups = (r"g2/$\foo{$", "a$x_$b", "cost $5 to $9", *(f"place of no order {letter}" for letter in "abcdefghijklmnopqrstuv"))
    values = [0.1] * len(groups)
    rest = ([0.01] * len(groups), [None] * len(groups), [False] * len(groups))
    panel = Panel(r"$\foo{$ " + 9 * "a long concept ", values, *rest, "a note")
    svg = draw_shift(groups, [panel], "share", tmp_path / "a.svg").decode()
    for name in groups:
        assert name in html.unescape(svg)
    assert "a note" in svg and panel.title not in html.unescape(svg)
    few = draw_shift(groups[:3], [Panel("a", values[:3], *(part[:3] for part in rest))], "share", tmp_path / "b.svg").decode()
    wide, narrow = (float(re.findall(r'width="([\d.]+)pt"', figure)[0]) for figure in (svg, few))
    assert wide > 1.2 * narrow, "names of many groups without an order have room"


def test_a_table_of_images_names_the_file_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(CliptoolsError, match=r"gone\.csv: cannot be read"):
        read_table(tmp_path / "gone.csv", "image")
