"""Commands on a terminal: their output and its width."""

import fcntl
import os
import re
import struct
import subprocess
import sys
import termios
from collections.abc import Mapping
from typing import Any

from helpers import ROOT

COLOURS = re.compile(r"\x1b\[[\d;]*m")


def on_terminal(name: str, *arguments: Any, columns: int = 80, env: Mapping[str, str | None] | None = None) -> tuple[int, str]:
    """Return the exit status and the output of a command on a separate terminal."""
    ours, theirs = os.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    changed = os.environ | {"OMP_NUM_THREADS": "1", "TERM": "xterm-256color", "COLORTERM": ""} | dict(env or {})
    environment = {key: value for key, value in changed.items() if value is not None and key not in ("COLUMNS", "LINES")}
    words = [sys.executable, "-m", f"cliptools.cli.{name}", *map(str, arguments)]
    process = subprocess.Popen(
        words, stdin=theirs, stdout=theirs, stderr=theirs, cwd=ROOT, env=environment, start_new_session=True
    )
    os.close(theirs)
    parts = []
    while True:
        try:
            part = os.read(ours, 65536)
        except OSError:  # as Linux says that the other end is closed
            break
        if not part:
            break
        parts.append(part)
    os.close(ours)
    return process.wait(60), b"".join(parts).decode("utf-8", "replace").replace("\r\n", "\n")
