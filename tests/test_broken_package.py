"""A package that is installed but cannot be imported is named in one line, with the remedy."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from helpers import ROOT

FAULTS = {
    "a library is not there": 'raise OSError("libtorch.so: cannot open shared object file")',
    "a name is not there": "from json import nothing_of_the_kind",
    "built for another": 'raise RuntimeError("operator torchvision::nms does not exist elsewhere")',
    "of another version": "import json\njson.no_such_attribute",
}


@pytest.mark.parametrize(
    ("package", "brought_by", "fault"),
    [*(("torch", "torch", fault) for fault in FAULTS), ("open_clip", "open_clip_torch", "a name is not there")],
)
def test_it_is_named(package: str, brought_by: str, fault: str, tmp_path: Path) -> None:
    (tmp_path / package).mkdir()
    (tmp_path / package / "__init__.py").write_text(FAULTS[fault] + "\n")
    environment = os.environ | {"PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}", "OMP_NUM_THREADS": "1"}
    words = [sys.executable, "-m", "cliptools.launch", "effects", "--limit", "1", "-o", str(tmp_path / "x.safetensors")]
    ran = subprocess.run(words, capture_output=True, text=True, env=environment, cwd=ROOT, check=False)
    assert ran.returncode == 1
    (line,) = ran.stderr.splitlines()
    assert line.startswith(f"clip-effects: the package {package} of this Python cannot be imported (")
    assert line.endswith(f"-m pip install --force-reinstall {brought_by}")
    assert not (tmp_path / "x.safetensors").exists()
