"""Streams that coverage leads to, by libFuzzer: guided.py, in a process of its own for each kind."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from helpers import ROOT

HERE = Path(__file__).parent
KINDS = (
    *("header", "bundle", "words", "descriptions", "concepts", "fooled", "baseline", "truth", "pool", "parts"),
    *("text pool", "text classes", "text pairs", "text groups", "text labels", "text Caffe", "text Kaggle"),
)
SLOWEST = 5.0  # seconds that a small stream may take, on a machine that does other things too


@pytest.mark.parametrize("which", KINDS)
def test_streams_that_coverage_leads_to(
    which: str, often: Callable[[int, int], int], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("atheris", reason="atheris is not here: pip install atheris")
    if not often(0, 1) and which not in ("header", "words", "text groups"):
        pytest.skip("only with --thorough")
    count = often(300, 100_000 if which in ("header", "bundle") else 20_000)
    found = os.pathsep.join(map(str, (HERE, HERE.parent, ROOT)))
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": found}
    words = [sys.executable, HERE / "guided.py", which, str(count), tmp_path]
    ended = subprocess.run(words, env=environment, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, "\n".join(ended.stderr.splitlines()[-40:])
    seen = json.loads((tmp_path / "seen.json").read_text())
    ways = len(list((tmp_path / "corpus").iterdir()))
    with capfd.disabled():
        print(f"\nguided, {which}: {seen['read']} read, {seen['refused']} refused, {ways} kept, slowest {seen['slowest']:.3f} s")
    assert seen["slowest"] < SLOWEST and ways > 5
