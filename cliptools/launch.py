"""Start a command from a checkout (bin/), or report in one line what this Python lacks; imports the standard library only."""

from __future__ import annotations

import importlib.util
import runpy
import sys
from pathlib import Path

OLDEST = (3, 11)
NEEDED = {
    "click": "click", "torch": "torch", "torchvision": "torchvision", "open_clip": "open_clip_torch", "numpy": "numpy",
    "safetensors": "safetensors", "PIL": "pillow", "rich": "rich", "jaxtyping": "jaxtyping", "msgspec": "msgspec",
}  # fmt: skip
"""Modules that every command needs, and the packages that contain them."""


def missing_packages() -> list[str]:
    """Return the required packages that this Python lacks."""
    return [package for module, package in NEEDED.items() if importlib.util.find_spec(module) is None]


def main(arguments: list[str]) -> None:
    """Run a command; if it cannot start, exit with status 1 and one line."""
    name, root = arguments[0], Path(__file__).resolve().parents[1]
    version = ".".join(map(str, sys.version_info[:2]))
    python = f"this Python ({sys.executable}, {version})"
    if sys.version_info[:2] < OLDEST:
        sys.exit(f"clip-{name}: {python} is too old, expected 3.11 or later: python3.11 -m venv {root}/.venv")
    packages = missing_packages()
    if packages:
        install = f"python3 -m venv {root}/.venv && {root}/.venv/bin/pip install -e {root}"
        sys.exit(f"clip-{name}: {python} has no {', '.join(packages)}; install what cliptools needs: {install}")
    sys.argv = ["clip-" + name, *arguments[1:]]
    runpy.run_module("cliptools.cli." + name.replace("-", "_"), run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main(sys.argv[1:])
