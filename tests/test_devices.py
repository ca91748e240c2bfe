"""Every command on simulated accelerators of both kinds: no operation mixes devices, and Apple's never gets float64."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from helpers import ROOT
from helpers.bundle import read
from helpers.records import check_close
from helpers.tiny_suite import Suite, run_case

from cliptools.devices import float64_device, to_float64, to_float64_device, to_like

COMMANDS = {path.stem for path in (ROOT / "bin").iterdir()}
NO_MODEL = {"clip-texts"}  # its language model is llama.cpp's, not torch's
SAME = ("effects second", "effects pooled", "decompose", "decompose pairs", "segment neurons", "concepts all", "shift norm")
"""Of which the results are compared with the CPU's."""


class Devices(NamedTuple):
    """The results of every command on each kind of device."""

    folder: Path
    rows: dict[str, dict[str, dict[str, Any]]]


@pytest.fixture(scope="module")
def devices(suite: Suite) -> Devices:
    """Run one process for each kind, in parallel."""
    folder = suite.folder.parent
    for name, model in (("vit", suite.vit), ("resnet", suite.resnet), ("suite", str(suite.folder))):
        if not (folder / name).exists():
            (folder / name).symlink_to(model.removeprefix("local-dir:"))
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    started = {}
    for kind in ("cuda", "mps"):
        words = [sys.executable, str(ROOT / "tests" / "helpers" / "fake_device.py"), kind, str(folder)]
        started[kind] = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)
    rows = {}
    for kind, process in started.items():
        out, error = process.communicate(timeout=900)
        assert process.returncode == 0, error
        rows[kind] = {row["name"]: row for row in map(json.loads, out.splitlines())}
    return Devices(folder, rows)


def test_every_command_is_tried(suite: Suite) -> None:
    assert {f"clip-{case.command}".replace("_", "-") for case in suite.cases().values()} == COMMANDS


@pytest.mark.parametrize("kind", ["cuda", "mps"])
def test_every_command_runs_on_it(kind: str, devices: Devices, suite: Suite) -> None:
    rows = devices.rows[kind]
    assert rows.keys() == suite.cases().keys()
    faults = {name: row["reported"] or row["error"] for name, row in rows.items() if row["reported"] or row["status"]}
    assert not faults, json.dumps(faults, indent=1)


@pytest.mark.parametrize("kind", ["cuda", "mps"])
@pytest.mark.parametrize("name", SAME)
def test_the_results_are_those_of_the_cpu(kind: str, name: str, devices: Devices, suite: Suite) -> None:
    theirs, ours = (devices.folder / f"{kind} {name}").read_bytes(), run_case(suite.cases()[name], "--device", "cpu").stdout
    if ours[:1] == b"{":
        records = [[json.loads(line) for line in each.splitlines()] for each in (theirs, ours)]
        check_close(*records)
        return
    one, other = read(theirs), read(ours)
    assert one.tensors.keys() == other.tensors.keys()
    for key, value in other.tensors.items():
        if key == "words":  # as JSON, with figures in it
            continue
        if value.dtype.kind == "f":
            np.testing.assert_allclose(one[key], value, rtol=1e-3, atol=1e-4 * max(1.0, np.abs(value).max()), err_msg=key)
        else:
            np.testing.assert_array_equal(one[key], value, err_msg=key)


PROBE = """
import sys, torch
sys.path.insert(0, {tests!r})
from helpers import fake_device
fake_device.KIND = {kind!r}
fake_device.install()
{code}
print(*sorted(fault.split(": ", 1)[1] for fault in fake_device.REPORT), sep="\\n")
"""
PROBES = [
    ("cuda", 'torch.ones(3, device="cuda") + torch.ones(3)', "mixed devices in aten.add.Tensor"),
    ("cuda", 'torch.ones(2, 3).to("cuda:0") @ torch.ones(3, 2)', "mixed devices in aten.mm.default"),
    ("cuda", 'torch.ones(3)[torch.tensor([1, 2], device="cuda")]', "CPU tensor indexed by one on the accelerator"),
    ("cuda", 'torch.rand(3, device="cuda", generator=torch.Generator())', "CPU generator in rand"),
    ("cuda", 'torch.ones(3, device="cuda").numpy()', "numpy of a tensor on the accelerator"),
    (
        "cuda",
        'x = torch.ones(3, device="cuda"); x[torch.tensor([1])] = torch.ones(1)',
        "mixed devices in aten.index_put_.default",
    ),
    ("cuda", 'x = torch.ones(3, device="cuda").double(); x[:2] + 1; x @ x; x.cpu().numpy(); x * torch.tensor(2.0)', ""),
    ("mps", 'torch.ones(3, device="mps").double()', "float64 on mps"),
    ("mps", 'torch.ones(3, device="mps").to(torch.float64)', "float64 on mps"),
    ("mps", 'torch.zeros(3, device="mps", dtype=torch.float64)', "float64 on mps"),
    ("mps", 'torch.ones(3, device="mps").sum(dtype=torch.float64)', "float64 on mps"),
    ("mps", 'torch.linalg.qr(torch.eye(3, device="mps"))', "perhaps missing on mps: aten.linalg_qr.default"),
    (
        "mps",
        'x = torch.ones(3, device="mps"); x.cpu().double(); x[1:] = 5; x[torch.tensor([0])] = torch.ones(1, device="mps")',
        "",
    ),
]


def test_the_make_believe_devices_report_what_real_ones_refuse() -> None:
    """One process tests all operations of a kind."""
    for kind in ("cuda", "mps"):
        mine = [(code, fault) for of, code, fault in PROBES if of == kind]
        code = "\n".join(f"{line}\nprint('probe', *sorted(fake_device.REPORT)); fake_device.REPORT.clear()" for line, _ in mine)
        words = [sys.executable, "-c", PROBE.format(tests=str(ROOT / "tests"), kind=kind, code=code)]
        ran = subprocess.run(words, capture_output=True, text=True, check=False, cwd=ROOT)
        assert ran.returncode == 0, ran.stderr
        lines = [line for line in ran.stdout.splitlines() if line.startswith("probe")]
        for (tried, fault), line in zip(mine, lines, strict=True):
            assert (fault in line and fault) or (not fault and line == "probe"), (tried, line)


def test_double_precision_stays_where_it_exists() -> None:
    x = torch.arange(3.0)
    assert (
        to_float64_device(x) is x
        and to_float64(x).dtype == torch.float64
        and to_float64(to_float64(x)) is not None
        and float64_device(x) == x.device
    )
    assert torch.equal(to_like(to_float64(x), x), x) and to_like(to_float64(x), x).dtype == x.dtype
