"""Inputs and checks of test_pipes.py that other tests share."""

import os
import pty
import subprocess
import sys
import tomllib
from pathlib import Path

from helpers import ROOT

SCRIPTS = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]


COMMANDS = sorted(script.removeprefix("clip-") for script in SCRIPTS)


def shell(line: str, **environment: str) -> subprocess.CompletedProcess[bytes]:
    path = f"{ROOT / 'bin'}:{Path(sys.executable).parent}:{os.environ['PATH']}"
    env = os.environ | {"PATH": path, "OMP_NUM_THREADS": "1"} | environment
    return subprocess.run(
        ["bash", "-o", "pipefail", "-c", line], capture_output=True, cwd=ROOT, env=env, timeout=300, check=False
    )


def on_terminal(*arguments: str, stdin_too: bool = False) -> tuple[int, str]:
    """Run with standard output (and input) on a pseudo-terminal; return the exit code and everything shown."""
    master, slave = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", *arguments],
        stdin=slave if stdin_too else subprocess.DEVNULL,
        stdout=slave,
        stderr=slave,
        cwd=ROOT,
        env=os.environ | {"COLUMNS": "100"},
    )
    os.close(slave)
    shown = b""
    while True:
        try:
            part = os.read(master, 4096)
        except OSError:
            break
        if not part:
            break
        shown += part
    os.close(master)
    return process.wait(60), shown.decode()
