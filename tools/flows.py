"""Print how far the three flows go through the package: files crossed and functions called in one run of a command.

    python tools/flows.py [--list]

The flows: an image to its bundle (clip-effects), a neuron to its words (clip-decompose), a text to its mask (clip-segment).
Functions of the package are counted once each, in all threads; what runs while modules are imported is not counted.
"""

import contextlib
import inspect
import io
import os
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "cliptools"
FLOWS = {
    "image to bundle": "clip-effects --limit 40 -o effects.safetensors",
    "neuron to words": "clip-decompose effects.safetensors --m 4 -o words.safetensors",
    "text to mask": "clip-segment scenes/images --text cat --bundle words.safetensors --out-dir masks -f jsonl",
}
BEFORE = "clip-scenes --count 4 --out-dir scenes"


@contextlib.contextmanager
def called(functions: set[tuple[str, str]]) -> Iterator[None]:
    """Add the package's functions that are called meanwhile, as (file, qualified name)."""

    def profile(frame: FrameType, event: str, _: Any) -> None:
        code = frame.f_code
        is_function = code.co_flags & inspect.CO_OPTIMIZED  # not the body of a module or a class
        if event == "call" and code.co_filename.startswith(str(PACKAGE)) and is_function:
            functions.add((code.co_filename, code.co_qualname))

    sys.setprofile(profile)
    threading.setprofile(profile)
    try:
        yield
    finally:
        sys.setprofile(None)
        threading.setprofile(None)


def main_of(name: str) -> Callable[..., Any]:
    """The entry point of a command, as installed scripts name it."""
    import importlib
    import tomllib

    scripts = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]
    module, function = scripts[name].split(":")
    return getattr(importlib.import_module(module), function)


def run(line: str) -> set[tuple[str, str]]:
    """Run a command line in this process; the functions it calls, comprehensions and classes' bodies left out."""
    name, *arguments = line.split()
    functions: set[tuple[str, str]] = set()
    main = main_of(name)
    with contextlib.redirect_stdout(io.TextIOWrapper(io.BytesIO())), called(functions), contextlib.suppress(SystemExit):
        main([*arguments, "--quiet"])
    return {(file, name) for file, name in functions if not name.endswith(">")}


def main(listed: bool) -> None:
    """Run the three flows and print the table."""
    sys.path.insert(0, str(ROOT))
    home = Path.cwd()
    print("| flow | files | functions |\n|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        run(BEFORE)
        for flow, line in FLOWS.items():
            functions = run(line)
            files = sorted({file for file, _ in functions})
            print(f"| {flow} | {len(files)} | {len(functions)} |")
            for file in files if listed else ():
                names = sorted(name for other, name in functions if other == file)
                print(f"    {Path(file).relative_to(PACKAGE)}: {', '.join(names)}")
        os.chdir(home)


if __name__ == "__main__":
    main("--list" in sys.argv[1:])
