"""Check that every command of pyproject.toml is installed beside this interpreter and starts; print only those that do not."""

import subprocess
import sys
import sysconfig
import tomllib
from pathlib import Path

ROOT = Path(__file__).parent.parent


def fault(program: Path) -> str | None:
    """Return the reason why a program does not start, or None."""
    try:
        ended = subprocess.run([program, "--version"], capture_output=True, text=True, timeout=120, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        return str(error)
    lines = ended.stderr.strip().splitlines() or ["nothing on stderr"]
    return f"exit status {ended.returncode}: {lines[-1]}" if ended.returncode else None


def main() -> int:
    """Return the exit status: 1 where a command does not start."""
    names = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["scripts"]
    faults = {name: fault(Path(sysconfig.get_path("scripts")) / name) for name in names}
    for name, reason in faults.items():
        if reason is not None:
            print(f"{name} does not start after the tests ({reason})", file=sys.stderr)
    return int(any(faults.values()))


if __name__ == "__main__":
    sys.exit(main())
