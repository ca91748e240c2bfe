"""Inputs and checks of test_shift_command.py that other tests share."""

import json
import subprocess


def lines(data: bytes) -> list[dict]:
    return [json.loads(line) for line in data.splitlines()]


def only_line(result: subprocess.CompletedProcess[bytes]) -> str:
    assert result.stdout == b"" and "Traceback" not in result.stderr.decode()
    (line,) = (line for line in result.stderr.decode().splitlines() if line and not line.startswith(("Usage:", "Try ")))
    return line
