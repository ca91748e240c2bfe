"""The files of make run: all are read, both papers' in small to their tables, and the committed claims are those of the tables."""

import csv
import os
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT

EXAMPLES = ROOT / "examples"
STUDIES = sorted(path.name for path in EXAMPLES.glob("*.mk") if path.name not in ("common.mk", "papers.mk"))
SMALL = ["SCENES=120", "COUNT=60", "M=2,4"]


def make(*arguments: str, timeout: float = 300) -> subprocess.CompletedProcess[str]:
    environment = {key: value for key, value in os.environ.items() if key != "MAKEFLAGS"} | {"PYTHON": sys.executable}
    return subprocess.run(
        ["make", "-C", str(EXAMPLES), *arguments], capture_output=True, text=True, timeout=timeout, env=environment, check=False
    )


def table(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8") as lines:
        assert next(lines).startswith("# make -C examples -f ")
        return list(csv.DictReader(lines))


@pytest.mark.parametrize("name", STUDIES)
def test_every_study_knows_how_its_targets_are_made(name: str, tmp_path: Path) -> None:
    ended = make("-n", "-B", "-f", name, f"WORK={tmp_path}/work")
    assert ended.returncode == 0, ended.stderr
    assert "clip-" in ended.stdout or "claims.py" in ended.stdout


def test_second_order_in_small(tmp_path: Path) -> None:
    targets = ["ablation", "reconstruction"]
    ended = make("-f", "second-order.mk", *targets, *SMALL, "POOLS=emoji", "LAYERS=4-6", f"WORK={tmp_path}/work", f"RESULTS={tmp_path}")
    assert ended.returncode == 0, ended.stderr
    rows = table(tmp_path / "ablation.csv")
    assert rows[0]["change"] == "untouched" and float(rows[0]["top1"]) > 0.6 and {row["n"] for row in rows} == {"60"}
    assert {row["layers"] for row in rows} == {"", "5 6", "4 5 6", *"456"}
    assert {row["change"] for row in rows[1:]} == {"all", "large", "small", "pc"}
    assert [row["m"] for row in table(tmp_path / "reconstruction.csv") if row["change"] == "words"] == ["2", "4"]
    for name in ("ablation.png", "reconstruction.png"):
        assert (tmp_path / name).read_bytes().startswith(b"\x89PNG")


def test_neuron_attention_in_small(tmp_path: Path) -> None:
    ended = make("-f", "neuron-attention.mk", "pcs", "sparsity", *SMALL, "KEEP=20%", f"WORK={tmp_path}/work", f"RESULTS={tmp_path}")
    assert ended.returncode == 0, ended.stderr
    rows = {(row["units"], row["change"], row["components"]): row for row in table(tmp_path / "pcs.csv")}
    assert rows["pairs", "pc", "1"]["top1"] == rows["", "untouched", ""]["top1"]
    assert {key[2] for key in rows if key[0] == "neurons"} == {"1", "2", "4"}
    assert {(row["units"], row["keep"]) for row in table(tmp_path / "sparsity.csv")} >= {("pairs", "0.2"), ("neurons", "0.2")}


def test_claims_are_those_of_the_results() -> None:
    made = subprocess.run(
        [sys.executable, str(EXAMPLES / "claims.py"), str(EXAMPLES / "results")], capture_output=True, text=True, check=True
    )
    assert made.stdout == (EXAMPLES / "results" / "claims.csv").read_text(encoding="utf-8"), "make -C examples -f claims.mk"
