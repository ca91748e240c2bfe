"""The section about repairs on the page of results, and its picture, from tables of a test."""

import csv
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from helpers import ROOT
from helpers.repair_tables import BEFORE, KEPT, write_repairs, write_unnamed
from PIL import Image

from cliptools.embedded_models import EMBEDDED
from examples.result_tables import TableError, Tables
from tools.results_page.page import RESULTS, render
from tools.results_page.repairs import repaired

VIT, RN = EMBEDDED
GOOD = [0.975, 0.95, 0.94, 0.965]  # 0.34 of 0.4 are gone
FAIR = [0.975, 0.95, 0.89, 0.965]  # 0.29 of 0.4
ONE_LOSS = {"A_cue": [0.955, *GOOD[1:]], "A_other": [0.975, 0.94, *GOOD[2:]], "C_other": [*GOOD[:3], 0.95]}


@pytest.fixture(autouse=True)
def modules(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "examples"))


@pytest.fixture
def tables(tmp_path: Path) -> Path:
    folder = tmp_path / "results"
    shutil.copytree(ROOT / RESULTS, folder, ignore=shutil.ignore_patterns("repair*", "typographic*"))
    return folder


def section(folder: Path) -> str:
    page = render(ROOT, folder)
    return " ".join(page[page.index("## Repairs of planted faults") :].split())


def goals_of(text: str, model: str) -> str:
    return text.split(f"* **{model}.** The worst group")[1].partition(" of every control")[0]


def test_goals_that_are_met(tables: Path) -> None:
    write_repairs(tables, GOOD, lost=0.004)
    text = section(tables)
    for model in EMBEDDED:
        goals = goals_of(text, model)
        assert (
            goals.count(" met") == 5 and "not met" not in goals and "three seeds, each by itself, three meet all goals" in goals
        )
        assert "loses 85.0 % of its error: met" in goals and "The class beside the cue: -0.50 points, met" in goals
    assert "All goals are met for both models." in text and text.count("significantly larger than that of every control") == 2
    assert "repairs the 18 planted pairs" in text and "40 test scenes of each group, and of 360 scenes of one emoji" in text
    assert "![Accuracy of the worst group" in text and "(repair.png)" in text and "Nothing named" not in text
    assert (
        "**Written words.**" in text
        and "hardly read words" not in text
        and "Waterbirds and CelebA" in text
        and "test with known truth" in text
    )
    edit = next(line for line in text.split("| neurons that see the cue")[1:] if "`null`" in line)
    assert " | 40 | 60.0 → 94.0 | +34.0 (" in edit and " | 85 % | -0.5 | -1.0 | +34.0 | -0.5 | 100.0 → 99.7 | -0.3 (" in edit
    blind = text.split("(*blind*) | ")[1]
    assert blind.startswith("40 | 60.0 → 70.") and " | 3, 0 |" in blind
    assert text.count("2 heads | ") == 2 and text.count("direction of the cue removed | – | 60.0 → ") == 2


def test_goals_of_one_model_and_of_none(tables: Path) -> None:
    write_repairs(tables, FAIR)
    text = section(tables)
    assert f"All goals are met for {VIT} only." in text and "not met" not in goals_of(text, VIT)
    assert goals_of(text, RN).count("not met") == 1 and "each by itself, none meets all goals" in goals_of(text, RN)
    write_repairs(tables, list(BEFORE), control=[0.97, 0.955, 0.9, 0.965])
    text = section(tables)
    assert "The goals are not all met for either model." in text and "significantly larger than that of no control" in text
    assert text.split("(*blind*) | ")[1].split(" | ")[10].startswith("0, 3")


@pytest.mark.parametrize("group", ONE_LOSS)
def test_a_loss_of_each_group(group: str, tables: Path) -> None:
    write_repairs(tables, ONE_LOSS[group])
    missed = [goal.column for goal in repaired(Tables(tables), VIT).goals(0.6) if not goal.met]
    assert missed == [group] and "The goals are not all met" in section(tables)


def test_a_loss_of_zero_shot_accuracy(tables: Path) -> None:
    write_repairs(tables, GOOD, lost=0.02)
    study = repaired(Tables(tables), RN)
    assert [goal.column for goal in study.goals(0.8) if not goal.met] == ["zero_shot"] and study.seeds_that_meet(0.8) == 0
    change = study.edit.zero_shot_change()
    assert change.low < change.value == pytest.approx(-7 / 360, abs=1e-4) and change.high < 0
    assert "Zero-shot accuracy: -1.94 points, not met" in section(tables)


def test_some_controls_behind(tables: Path) -> None:
    write_repairs(tables, FAIR)
    path = tables / "repair.csv"
    lines = path.read_text().splitlines()
    strong = next(line.split(",")[5:9] for line in lines if line.startswith(f"{VIT},0,repair,null"))
    cells = [line.split(",") for line in lines]
    changed = [[*row[:5], *strong, *row[9:]] if row[2:3] in (["see"], ["blind"]) else row for row in cells]
    path.write_text("".join(f"{','.join(row)}\n" for row in changed))
    words = "larger than that of random units and the units that write the class most, but not than that of the units that see"
    assert section(tables).count(f"{words} the cue most or blind units.") == 2


@pytest.mark.parametrize(("after", "repairs", "seeds"), [(GOOD, 18, "three"), (BEFORE, 0, "none")])
def test_the_blind_repair(after: list[float], repairs: int, seeds: str, tables: Path) -> None:
    write_repairs(tables, GOOD)
    write_unnamed(tables, after, found=12)
    text = section(tables)
    assert (
        text.count(f"Of 18 plants, 12.0 are found and {repairs}.0 repaired on average, {min(12, repairs)}.0 of them found") == 2
    )
    assert text.count(f"than random units with {seeds} of three seeds") == 2 and "of the first 13 findings" in text
    three = ", ".join([str(repairs)] * 3)
    assert f"| {VIT} | 40, 40, 40 | 12, 12, 12 | {three} | " in text
    assert "| *control:* random pairs | 40, 40, 40 | – | 0, 0, 0 | – | 0, 0, 0 | 60.0 → 6" in text
    words = ", ".join([str(min(3, repairs))] * 3)
    both = ", ".join([str(min(1, repairs))] * 3)
    assert text.count(f"| written words | 3 | 1, 1, 1 | {words} | {both} | 0, 0, 0 |") == 2
    assert "| *control:* random neurons | ways of drawing | 2 | – | 0, 0, 0 | – | 0, 0, 0 |" in text


def test_a_table_of_pairs_only(tables: Path) -> None:
    """A table without kinds gives the same text without facts."""
    write_repairs(tables, GOOD)
    write_unnamed(tables, GOOD, found=12)
    text, path = section(tables), tables / "repair-unnamed.csv"
    comment, *lines = path.read_text().splitlines()
    rows = [row for row in csv.DictReader(lines) if row.pop("kind") == "pair"]
    with path.open("w", newline="") as stream:
        stream.write(f"{comment}\n")
        table = csv.DictWriter(stream, rows[0])
        table.writeheader()
        table.writerows(rows)
    before, _, after = text.partition("The same edits on the planted facts")
    assert section(tables) == before + after[after.index("**What this shows.**") :]


def test_without_the_tables_the_page_is_as_before(tables: Path) -> None:
    page = render(ROOT, tables)
    assert "Repairs" not in page and "repair.png" not in page and "monitoring and planted cues" in page
    write_repairs(tables, GOOD)
    before, after = (" ".join(text.split()) for text in (page, render(ROOT, tables)))
    assert after.replace("monitoring, planted cues and their repair", "monitoring and planted cues").startswith(before)
    (tables / "repair.csv").write_text((tables / "repair.csv").read_text().replace(f"{RN},", "another,"))
    with pytest.raises(TableError, match=rf"repair\.csv: expected a row with model='{RN}'"):
        render(ROOT, tables)


def test_the_picture_of_repairs_by_make(tmp_path: Path) -> None:
    """Drawn from the table that is there, and nothing else is run."""
    write_repairs(tmp_path, FAIR, control=KEPT)
    words = (
        "picture",
        f"RESULTS={tmp_path}",
        f"WORK={tmp_path}/work",
        f"PICTURE={tmp_path}/repair.png",
        f"PYTHON={sys.executable}",
    )
    ended = subprocess.run(
        ["make", "-C", str(ROOT / "examples"), "-f", "repair.mk", *words], capture_output=True, text=True, check=False
    )
    assert ended.returncode == 0, ended.stderr
    with Image.open(tmp_path / "repair.png") as picture:
        assert picture.width > 2 * picture.height and len(picture.convert("RGB").getcolors(1 << 20) or ()) > 20
    assert not (tmp_path / "work").exists()


def test_ways_of_a_picture(tmp_path: Path) -> None:
    from curves import rows_of
    from repair_picture import LABELS, ways_of

    write_repairs(tmp_path, FAIR)
    rows = rows_of(tmp_path / "repair.csv")
    assert list(ways_of([row for row in rows if row["model"] == VIT])) == list(LABELS)
    of_rn = ways_of([row for row in rows if row["model"] == RN])
    assert list(of_rn) == list(LABELS) and {len(found) for found in of_rn.values()} == {3}
