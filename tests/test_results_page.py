"""The page of results: made from its template and the tables, with conclusions that follow the figures."""

import csv
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from helpers import ROOT
from scipy import stats

from cliptools.embedded_models import EMBEDDED
from examples.result_tables import Row, Share, TableError, Tables, counts_in, difference, wilson
from tools.results_page.comparison import (
    better,
    better_at,
    compare,
    first_even,
    first_within,
    listed,
    paired,
    shown,
    span,
)
from tools.results_page.formats import fixed, in_words, laid_out, three
from tools.results_page.models import Model
from tools.results_page.page import MODELS, PAGE, RESULTS, SOURCE, fill_parts, pages_with_parts, render

ACCURACIES = ("top1", "low", "high", "agreement")
FIGURES = {
    **dict.fromkeys(("ablation", "reconstruction", "pcs", "sparsity", "pair-words"), ACCURACIES),
    "adversarial": ("mean", "sd"),
    "concepts": ("recall", "low", "high"),
    "heads": ("auc", "auc_any", "variance", "random_directions"),
    "mismatch": ("first", "three", "auc"),
    "normalization": ("top1_texts", "low_texts", "high_texts"),
    "plants": ("found", "half"),
    "resnet-segmentation": ("miou_true",),
    "segmentation": ("miou", "map"),
    "segmentation-study": ("miou", "threshold", "heat_object"),
    "shift": ("correlation", "low", "high", "group_correlation"),
    "shift-alarms": ("comparisons_alarmed",),
    "words": ("correlation", "low", "high"),
}
"""The columns of each table that hold its figures."""
Lines = list[dict[str, str]]


def changed(folder: Path, name: str, change: Callable[[Lines], None]) -> Path:
    """Write the tables into a folder, one of them with other lines, and return the folder."""
    if not folder.exists():
        shutil.copytree(ROOT / RESULTS, folder)
    path = folder / f"{name}.csv"
    comments = [line for line in path.read_text(encoding="utf-8").splitlines(keepends=True) if line.startswith("#")]
    with path.open(encoding="utf-8") as lines:
        rows = list(csv.DictReader(line for line in lines if not line.startswith("#")))
    columns = list(rows[0])
    change(rows)
    with path.open("w", encoding="utf-8", newline="") as stream:
        stream.writelines(comments)
        table = csv.DictWriter(stream, columns, lineterminator="\n")
        table.writeheader()
        table.writerows({column: row[column] for column in columns if column in row} for row in rows)
    return folder


def exchange(column: str, a: str, b: str, bundle: str | None = None) -> Callable[[Lines], None]:
    """Return a change that gives the figures of the one to the other, in all rows or in those of a bundle."""

    def change(rows: Lines) -> None:
        for row in rows:
            if bundle in (None, row.get("bundle")):
                row[column] = {a: b, b: a}.get(row[column], row[column])

    return change


def times(column: str, factor: float, **values: str) -> Callable[[Lines], None]:
    """Return a change that multiplies a column in the rows that have these values."""

    def change(rows: Lines) -> None:
        for row in rows:
            if all(row[key] == value for key, value in values.items()):
                row[column] = str(float(row[column]) * factor)

    return change


def put(**values: float) -> Callable[[Lines], None]:
    """Return a change that puts the same figures into all rows."""
    return lambda rows: [row.update({column: str(value) for column, value in values.items()}) for row in rows]


def plain(page: str) -> str:
    return " ".join(page.split())


def test_the_page_is_that_of_the_tables() -> None:
    assert (ROOT / PAGE).read_text(encoding="utf-8") == render(ROOT), "run python -m tools.results_page"


def test_parts_of_other_pages_are_those_of_the_tables() -> None:
    pages = pages_with_parts(ROOT)
    assert ROOT / "docs" / "speed.md" in pages
    for page in pages:
        text = page.read_text(encoding="utf-8")
        assert fill_parts(ROOT, text) == text, f"{page.name}: run python -m tools.results_page"


def test_a_part_within_a_line_and_one_of_lines() -> None:
    claims = Tables(ROOT / RESULTS).rows("claims")
    line = fill_parts(ROOT, "Results: <!-- part: findings -->old<!-- end -->.\n")
    assert line.startswith(f"Results: <!-- part: findings -->of {len(claims)} findings") and line.endswith(" not<!-- end -->.\n")
    table = fill_parts(ROOT, "<!-- part: speed-judge -->\nold\n<!-- end -->\n")
    assert table.startswith("<!-- part: speed-judge -->\n| |") and table.endswith(".\n<!-- end -->\n") and "old" not in table


@pytest.mark.parametrize(
    ("name", "change", "before", "after"),
    [
        ("sparsity", exchange("units", "pairs", "neurons"), "Pairs are better than neurons", "Pairs are worse than neurons"),
        ("pair-words", exchange("units", "pairs", "neurons"), "than neurons at m = 1, 2, 4 and 8", "than neurons at no m"),
        ("adversarial", exchange("words", "second-order", "random"), "better than random neurons,", "worse than random neurons,"),
        ("adversarial", exchange("words", "overlap", "similar"), "in 7 of 10 pairs", "in 2 of 10 pairs"),
        ("concepts", exchange("neurons", "active", "random"), "form is better than random", "form is worse than random"),
        ("segmentation", exchange("method", "signed", "effects"), "mIoU belongs to `signed`", "mIoU belongs to `effects`"),
        ("plants", exchange("by", "effect", "overlap", "second"), "it is better than Eq. 6", "it is worse than Eq. 6"),
        ("words", exchange("words", "written", "written dealt"), "other units in 6 of 6", "other units in 0 of 6"),
        ("mismatch", exchange("by", "units", "own"), "do in 3 of 6 runs", "do in 2 of 6 runs"),
        ("ablation", exchange("change", "large", "small"), "carry more of", "carry less of"),
        ("ablation", exchange("layers", "2", "5"), "single layers, layer 5 costs most", "single layers, layer 2 costs most"),
        ("normalization", put(top1_texts=0.1, low_texts=0.0, high_texts=0.2), "code's way in none", "code's way in 20"),
        ("polysemy", times("pairs", 1.7), "0.50 is smaller than that of neurons", "0.50 is larger than that of neurons"),
        ("heads", times("auc", 0.5), "in general do in 4 of 4", "in general do in 0 of 4"),
        ("heads", times("variance", 1.5), "does not show this", "shows a difference too"),
        ("shift", times("correlation", 0.1, by="text"), "concepts worse than CLIP's own", "concepts better than CLIP's own"),
        ("shift-alarms", times("runs_alarmed", 100.0, held_to="run"), "not significantly more than this", ", more than this"),
    ],
)  # fmt: skip
def test_other_figures_give_other_conclusions(
    name: str, change: Callable[[Lines], None], before: str, after: str, tmp_path: Path
) -> None:
    page = plain((ROOT / PAGE).read_text(encoding="utf-8"))
    other = plain(render(ROOT, changed(tmp_path / "results", name, change)))
    assert before in page and after not in page
    assert after in other and other.count(before) < page.count(before)


@pytest.mark.parametrize("seed", range(3))
def test_any_figures_make_a_page(seed: int, tmp_path: Path) -> None:
    """The figures of every table change places, whole intervals together."""
    random = np.random.default_rng(seed)

    def shuffle(columns: tuple[str, ...]) -> Callable[[Lines], None]:
        def change(rows: Lines) -> None:
            whole = [row for row in rows if row.get("change") != "untouched" and all(row[column] for column in columns)]
            figures = [tuple(row[column] for column in columns) for row in whole]
            for row, number in zip(whole, random.permutation(len(whole)), strict=True):
                row |= dict(zip(columns, figures[number], strict=True))

        return change

    for name, columns in FIGURES.items():
        changed(tmp_path / "results", name, shuffle(columns))
    page = render(ROOT, tmp_path / "results")
    assert page != (ROOT / PAGE).read_text(encoding="utf-8") and "nan" not in page.split()


def without(**values: str) -> Callable[[Lines], None]:
    """Return a change that removes the rows that have these values."""

    def change(rows: Lines) -> None:
        rows[:] = [row for row in rows if any(row[key] != value for key, value in values.items())]

    return change


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("ablation", without(layers="5", change="large"), r"ablation\.csv: expected a row with layers='5', change='large'"),
        ("words", without(model=EMBEDDED[1]), rf"words\.csv: .* row with model='{EMBEDDED[1]}', .*found none: model is one of"),
        ("heads", lambda rows: [row.pop("auc") for row in rows], r"heads\.csv: expected a number in column 'auc', found ''"),
        ("plants", lambda rows: rows.append(rows[0] | {"found": "1"}), r"plants\.csv: expected one row with .*found 2"),
    ],
)  # fmt: skip
def test_what_a_table_lacks_is_named(name: str, change: Callable[[Lines], None], message: str, tmp_path: Path) -> None:
    with pytest.raises(TableError, match=message):
        render(ROOT, changed(tmp_path / "results", name, change))


def test_a_missing_column_table_or_figure_is_named(tmp_path: Path) -> None:
    tables = Tables(ROOT / RESULTS)
    with pytest.raises(TableError, match=r"heads\.csv: expected a column 'miou', found layer, variance"):
        tables.rows("heads")[0].text("miou")
    with pytest.raises(TableError, match=r"heads\.csv: expected a column 'method', found layer"):
        tables.rows("heads", method="textspan")
    with pytest.raises(TableError, match=r"none\.csv: no such table"):
        tables.rows("none")
    model = Model(ROOT / MODELS / EMBEDDED[0])
    with pytest.raises(TableError, match=rf"{EMBEDDED[0]}/figures\.json: expected one row with .*recall@9.*, found 0"):
        model.measured("recall@9")
    with pytest.raises(TableError, match=r"expected a section 'Nothing', found Training"):
        model.figures.section("Nothing")
    with pytest.raises(TableError, match=r"figures\.json: no such file"):
        Model(tmp_path).measures()


def test_models_of_other_names(tmp_path: Path) -> None:
    """The names stand in one place: with other folders and tables, the page names the other models only."""
    new = {name: f"{name}-next" for name in EMBEDDED}
    shutil.copytree(ROOT / SOURCE, tmp_path / SOURCE)
    shutil.copytree(ROOT / RESULTS, tmp_path / RESULTS)
    for path in (tmp_path / RESULTS).rglob("*.csv"):
        text = path.read_text(encoding="utf-8")
        for name, other in new.items():
            text = text.replace(name, other)
        path.write_text(text, encoding="utf-8")
    for name, other in new.items():
        (tmp_path / MODELS / other).mkdir(parents=True)
        for path in (ROOT / MODELS / name).glob("*.json"):
            shutil.copy(path, tmp_path / MODELS / other)
    page = render(tmp_path, names=(new[EMBEDDED[0]], new[EMBEDDED[1]]))
    for name, other in new.items():
        assert other in page and not re.search(rf"{name}(?!-next)", page)


def test_no_figure_stands_in_the_template() -> None:
    text = "".join(path.read_text(encoding="utf-8") for path in sorted((ROOT / SOURCE).rglob("*.md")))
    text = re.sub(r"\{%.*?%\}|\{#.*?#\}|\{\{.*?\}\}|^```.*?^```|\]\(.*?\)", "", text, flags=re.DOTALL | re.MULTILINE)
    settings = {
        "95 %", "5 %", "60 %",  # the level of intervals, and the frequencies of the streams
        "13.6 %", "0.50", "0.8",  # the share of the pairs in paper 2, and limits of a study
    }  # fmt: skip
    assert set(re.findall(r"\d+(?:[.,]\d+)? %|\d+\.\d+", text)) == settings


def test_choices_by_accuracy(tmp_path: Path) -> None:
    lines = ["change,units,m,n,top1,low,high,agreement", "untouched,,,1000,0.8,0.77,0.82,1"]
    lines += [f"words,{units},{m},1000,{top},{top - 0.03},{top + 0.03},0.9" for units, m, top in (
        ("a", 16, 0.79), ("a", 4, 0.5), ("a", 8, 0.76), ("b", 16, 0.7), ("b", 4, 0.5), ("b", 8, 0.73))]  # fmt: skip
    (tmp_path / "t.csv").write_text("\n".join(lines))
    tables, a, b = Tables(tmp_path), {"units": "a"}, {"units": "b"}
    assert first_within(tables, "t", "m", 0.05, **a) == "8" and first_within(tables, "t", "m", 0.05, **b) is None
    assert first_even(tables, "t", "m", **a) == "16" and first_even(tables, "t", "m", **b) is None
    assert better_at(tables, "t", "m", a, b) == ["16"] and better_at(tables, "t", "m", b, a) == []


def test_intervals() -> None:
    """Newcombe's own example (56 of 70, 48 of 80), Wilson's formula, and scipy's paired test."""
    d = difference(wilson(56 / 70, 70), wilson(48 / 80, 80))
    assert d == pytest.approx((0.2, 0.0524, 0.3339), abs=5e-5)
    p, n, z = 0.3, 50, stats.norm.ppf(0.975)
    middle, half = (p + z**2 / (2 * n)) / (1 + z**2 / n), z * np.sqrt(p * (1 - p) / n + z**2 / (4 * n**2)) / (1 + z**2 / n)
    assert wilson(p, n) == pytest.approx((p, middle - half, middle + half), abs=1e-9)
    a, b = np.random.default_rng(0).normal(size=(2, 7))
    interval = stats.ttest_rel(a, b).confidence_interval()
    assert paired(a.tolist(), b.tolist()) == pytest.approx(((a - b).mean(), interval.low, interval.high), abs=1e-9)
    assert not np.isfinite(paired([1.0], [0.0]).low)


def test_words_for_figures() -> None:
    low, high, between = Share(0.2, 0.1, 0.3), Share(0.8, 0.7, 0.9), Share(0.3, 0.2, 0.4)
    assert [compare(high, low), compare(low, high), compare(low, between)] == ["more", "less", "even"]
    assert better(high, low) == "better than" and better(low, between) == "not significantly different from"
    assert -Share(0.2, 0.1, 0.4) == (-0.2, -0.4, -0.1)
    assert [listed(values) for values in ("", "a", "ab", "abc")] == ["none", "a", "a and b", "a, b and c"]
    assert [span(layers) for layers in ("5", "5 6", "0 1 2", "0 2 3")] == ["5", "5 and 6", "0 to 2", "0, 2 and 3"]
    assert [in_words(number) for number in (0, 3, 12.0, 1300)] == ["none", "three", "twelve", "1,300"]
    assert [three(figure) for figure in (0.1234, 10.35, 99.4, 124.31, 1300)] == ["0.123", "10.3", "99.4", "124", "1,300"]
    assert fixed(-0.0001) == "0.00" and fixed(Share(0.126, 0, 1)) == "0.13"
    assert counts_in("of 8192 pairs (median 0.5), 512 strongest_pairs (median 0.6)") == {"pairs": 8192, "strongest_pairs": 512}
    rows = [Row("t", {"method": name, "x": x}) for name, x in (("a", "0.1"), ("b", "0.25"), ("control", "0.9"))]
    assert shown(rows, "method", "x", ["control"]) == {"a": "10.0", "b": "**25.0**", "control": "90.0"}


def test_prose_is_filled_and_tables_stay() -> None:
    prose = laid_out("a\nb 5 %\n\n\n| a | \n|---|\n\n* c\n  d\n* e\n\n```sh\nf   g\n\nh\n```\n\n" + 45 * "xy 9 % ")
    *blocks, last = prose.split("\n\n")
    assert blocks == ["a b 5 %", "| a |\n|---|", "* c d\n* e", "```sh\nf   g", "h\n```"]
    assert all(len(line) <= 140 and line.startswith("xy") for line in last.splitlines()) and len(last.splitlines()) > 1


def test_figures_json_is_that_of_both_models() -> None:
    """The page shows each measure of the ViT for the ResNet too."""
    first, second = (json.loads((ROOT / MODELS / name / "figures.json").read_text()) for name in EMBEDDED)
    title = "Accuracy on held-out scenes"
    assert [row["measure"] for row in first[title]] == [row["measure"] for row in second[title]]
