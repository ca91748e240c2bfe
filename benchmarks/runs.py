"""What the benchmarks share: runs in processes of their own, and a log in which nothing measured is lost."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any


def in_own_process(script: str, **options: object) -> dict[str, Any]:
    """Run a benchmark's script once more, with these options; what it says in its last line on stderr."""
    command = [sys.executable, script]
    for name, value in options.items():
        command += [f"--{name.replace('_', '-')}", str(value)]
    done = subprocess.run(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True, check=False)
    if done.returncode:
        sys.exit(done.stderr)
    found: dict[str, Any] = json.loads(done.stderr.splitlines()[-1])
    return found


def keep(log: Path, line: dict[str, Any]) -> None:
    """Add a line to the log and show it."""
    log.parent.mkdir(exist_ok=True)
    with log.open("a", encoding="utf-8") as file:
        file.write(json.dumps(line) + "\n")
    print(line, flush=True)
