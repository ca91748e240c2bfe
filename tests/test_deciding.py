"""The experiments that decide about findings, from tables of which one figure is changed at a time."""

import csv
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from helpers import ROOT

EXAMPLES = ROOT / "examples"
SPARSITY = "sparsity of the training"


@pytest.fixture
def results(tmp_path: Path) -> Path:
    """Return the committed tables, with those of a control that equals them."""
    shutil.copytree(EXAMPLES / "results", tmp_path / "results")
    tables = [path for path in (tmp_path / "results").glob("*.csv") if not path.name.startswith("few-")]
    control = tmp_path / "results" / "dense"
    control.mkdir(exist_ok=True)
    for path in tables:
        shutil.copy(path, control)
    return tmp_path / "results"


def decide(results: Path) -> subprocess.CompletedProcess[str]:
    """Run deciding.py."""
    return subprocess.run([sys.executable, EXAMPLES / "deciding.py", results], capture_output=True, text=True, check=False)


def rows(results: Path) -> dict[tuple[str, str, str, str], dict[str, str]]:
    """Return the lines by claim, figure, what is varied, and the other setting."""
    done = decide(results)
    assert done.returncode == 0, done.stderr
    lines = csv.DictReader(done.stdout.splitlines()[1:])
    return {(line["claim"], line["figure"], line["varied"], line["b_setting"]): line for line in lines}


def change(table: Path, start: str, edit: Callable[[list[str]], list[str]]) -> None:
    """Change the one line of a table that starts with some text."""
    lines = table.read_text().splitlines()
    (place,) = [number for number, line in enumerate(lines) if line.startswith(start)]
    lines[place] = ",".join(edit(lines[place].split(",")))
    table.write_text("\n".join(lines) + "\n")


def test_nothing_moves_between_equal_tables(results: Path) -> None:
    same = [line for (_, _, varied, _), line in rows(results).items() if varied == SPARSITY]
    assert len(same) == 11
    assert {line["moves"] for line in same} == {"no", "no sign"}
    assert all(re.match(r"-?0\.000", line["difference"]) and line["a"] == line["b"] for line in same)


def test_a_finding_moves_where_the_control_differs(results: Path) -> None:
    def accuracy(cells: list[str]) -> list[str]:
        return [*cells[:10], "0.10", "0.09", "0.11", *cells[13:14], "0.12", *cells[15:]]

    change(results / "dense" / "ablation.csv", "second,neurons,5 6,small", accuracy)
    maps = results / "dense" / "resnet-segmentation.csv"
    change(maps, '"several",128,"pairs","left out"', lambda cells: [*cells[:8], "0.01", *cells[9:]])
    by_claim = {claim: line["moves"] for (claim, _, varied, _), line in rows(results).items() if varied == SPARSITY}
    assert by_claim.pop("effects are selective: those below τ do little") == "yes"
    assert by_claim.pop("the pairs' label maps segment best") == "sign"
    assert set(by_claim.values()) == {"no", "no sign"}


def test_the_number_of_concepts_is_compared_with_the_table_of_few(results: Path) -> None:
    figures = ["0.2", "0.19", "0.21", "0.5", "0.21"]
    change(results / "few-rn.csv", "pooled,neurons,4,pc,1", lambda cells: [*cells[:10], *figures, *cells[15:]])
    (line,) = [
        line
        for key, line in rows(results).items()
        if key[0] == "a neuron has several directions" and key[2] == "number of concepts"
    ]
    assert line["moves"] == "yes" and line["b"].startswith("-0.")


def test_without_the_control_the_other_experiments_remain(results: Path) -> None:
    shutil.rmtree(results / "dense")
    left = rows(results)
    assert len(left) >= 12 and not any(varied == SPARSITY for _, _, varied, _ in left)


def test_a_missing_line_ends_it_with_its_name(results: Path) -> None:
    table = results / "few-vit.csv"
    table.write_text("".join(line for line in table.read_text().splitlines(keepends=True) if ",small," not in line))
    done = decide(results)
    assert done.returncode == 1 and "few-vit" in done.stderr and "small" in done.stderr and "Traceback" not in done.stderr
