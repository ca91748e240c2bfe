"""The files of make: all are parsed, two run in a small version, and the committed claims are those of the tables."""

import csv
import os
import subprocess
import sys
from pathlib import Path

import pytest
from helpers import ROOT

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
    assert any(run in ended.stdout for run in ("clip-", "claims.py", "claims.mk"))


def test_second_order_in_small(tmp_path: Path) -> None:
    ended = make("-f", "second-order.mk", "ablation", *SMALL, "LAYERS=4-6", f"WORK={tmp_path}/work", f"RESULTS={tmp_path}")
    assert ended.returncode == 0, ended.stderr
    rows = table(tmp_path / "ablation.csv")
    assert rows[0]["change"] == "untouched" and float(rows[0]["top1"]) > 0.6 and {row["n"] for row in rows} == {"60"}
    assert {row["layers"] for row in rows} == {"", "5 6", "4 5 6", *"456"}
    assert {row["change"] for row in rows[1:]} == {"all", "large", "small", "pc"}
    assert (tmp_path / "ablation.png").read_bytes().startswith(b"\x89PNG")


def test_neuron_attention_in_small(tmp_path: Path) -> None:
    ended = make("-f", "neuron-attention.mk", "sparsity", *SMALL, "KEEP=20%", f"WORK={tmp_path}/work", f"RESULTS={tmp_path}")
    assert ended.returncode == 0, ended.stderr
    rows = [(row["units"], row["change"], row["keep"]) for row in table(tmp_path / "sparsity.csv")]
    assert rows == [("", "untouched", ""), ("pairs", "rest", "0.2"), ("neurons", "rest", "0.2")]
    assert (tmp_path / "sparsity.png").read_bytes().startswith(b"\x89PNG")


def test_claims_are_those_of_the_results() -> None:
    made = subprocess.run(
        [sys.executable, str(EXAMPLES / "claims.py"), str(EXAMPLES / "results")], capture_output=True, text=True, check=True
    )
    assert made.stdout == (EXAMPLES / "results" / "claims.csv").read_text(encoding="utf-8"), "make -C examples -f claims.mk"


def test_the_quickstart_runs_every_command(tmp_path: Path) -> None:
    ended = make("-n", "-B", "-f", "quickstart.mk", f"WORK={tmp_path}/work")
    assert ended.returncode == 0, ended.stderr
    missing = [path.name for path in (ROOT / "bin").iterdir() if path.name not in ended.stdout]
    assert not missing


def test_a_launcher_says_what_its_python_lacks(tmp_path: Path) -> None:
    """With a Python without packages, each launcher prints one line and exits with 1."""
    bare = tmp_path / "python3"
    bare.write_text(f'#!/bin/sh\nexec "{sys.executable}" -S -s "$@"\n')
    bare.chmod(0o755)
    for launcher in sorted((ROOT / "bin").iterdir()):
        copy = tmp_path / "checkout" / "bin" / launcher.name
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_text(launcher.read_text())
        copy.chmod(0o755)
    (tmp_path / "checkout" / "cliptools").symlink_to(ROOT / "cliptools")
    for name in ("clip-effects", "clip-view", "clip-texts"):
        environment = {"PATH": f"{tmp_path}:/usr/bin:/bin"}
        ended = subprocess.run(
            [tmp_path / "checkout" / "bin" / name, "--help"], capture_output=True, text=True, env=environment, check=False
        )
        (line,) = ended.stderr.splitlines()
        assert ended.returncode == 1 and line.startswith(f"{name}: this Python (") and "click, torch" in line
        assert "pip install -e" in line
