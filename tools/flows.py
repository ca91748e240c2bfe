"""Print how many files and functions of the package three commands run through, in one run of each command.

    python tools/flows.py [--list]

The flows are: an image to its bundle (clip-effects), a neuron to its words (clip-decompose), a text to its mask (clip-segment).
Every function of the package is counted once, in all threads. Code that runs during imports is not counted.
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
def record_calls(functions: set[tuple[str, str]]) -> Iterator[None]:
    """Add the package's functions that are called in the context to `functions`, as (file, qualified name)."""

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
    """Return the entry point of a command, as pyproject.toml names it."""
    import importlib
    import tomllib

    scripts = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]
    module, function = scripts[name].split(":")
    return getattr(importlib.import_module(module), function)


def run(line: str) -> set[tuple[str, str]]:
    """Run a command line in this process, and return the functions that it calls, without comprehensions and class bodies."""
    name, *arguments = line.split()
    functions: set[tuple[str, str]] = set()
    main = main_of(name)
    with contextlib.redirect_stdout(io.TextIOWrapper(io.BytesIO())), record_calls(functions), contextlib.suppress(SystemExit):
        main([*arguments, "--quiet"])
    return {(file, name) for file, name in functions if not name.endswith(">")}


def main(list_functions: bool) -> None:
    """Run the three flows and print the table."""
    sys.path.insert(0, str(ROOT))
    start = Path.cwd()
    print("| flow | files | functions |\n|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        run(BEFORE)
        for flow, line in FLOWS.items():
            functions = run(line)
            files = sorted({file for file, _ in functions})
            print(f"| {flow} | {len(files)} | {len(functions)} |")
            for file in files if list_functions else ():
                names = sorted(name for other, name in functions if other == file)
                print(f"    {Path(file).relative_to(PACKAGE)}: {', '.join(names)}")
        os.chdir(start)


if __name__ == "__main__":
    main("--list" in sys.argv[1:])
