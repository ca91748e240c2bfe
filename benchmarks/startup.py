"""Measure how commands start: --help relative to `import click`, and the time to the model and the first result.

    python benchmarks/startup.py
    python benchmarks/startup.py --commands effects --rounds 20

For --help, the minimum of several runs in turns counts, since a disturbance can only add time; the goal is at most 3 times
`import click`. Other processes do not disturb processor time and the number of imported modules. For the first result, on
emoji-vit2, the table has the seconds from the launch until the model is loaded, also as processor time, and from then to the
first byte on standard output.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from machine import describe, save
from photos import make_scenes
from runs import ROOT, Row, alternating, arguments, module_of, out_of, run, tool

MINUTES = 4
GOAL = 3
CLICK = [sys.executable, "-c", "import click"]
COUNT = "import sys, runpy\nsys.argv = ['clip', '--help']\ntry: runpy.run_module('{}', run_name='__main__')\n"
COUNT += "except SystemExit: print(len(sys.modules), file=sys.stderr)"


def commands() -> list[str]:
    """Return the names of all commands."""
    return sorted(path.name.removeprefix("clip-") for path in (ROOT / "bin").iterdir())


def help_rows(names: Sequence[str], rounds: int) -> list[Row]:
    """Measure --help of each command and import click."""
    commands_by_name = {"import click": CLICK, "python": [sys.executable, "-c", "pass"]}
    commands_by_name |= {f"clip-{name}": [sys.executable, "-m", module_of(name), "--help"] for name in names}
    for command in commands_by_name.values():  # writes bytecode and loads the files into memory
        run(command)
    results = alternating(rounds, {name: partial(run, command) for name, command in commands_by_name.items()})
    seconds = {name: min(ran.seconds for ran in runs) for name, runs in results.items()}
    cpu = {name: min(ran.cpu for ran in runs) for name, runs in results.items()}
    rows = []
    for name in commands_by_name:
        row: Row = {"what": f"{name} --help" if name.startswith("clip-") else name, "ms": round(1000 * seconds[name], 1)}
        row |= {"beside import click": round(seconds[name] / seconds["import click"], 2)}
        row |= {"processor time beside it": round(cpu[name] / cpu["import click"], 2)}
        if name.startswith("clip-"):
            row |= {"modules": int(run([sys.executable, "-c", COUNT.format(module_of(name[5:]))]).stderr), "goal": GOAL}
        rows.append(row)
    return rows


def cases(folder: Path) -> dict[str, list[Any]]:
    """Return the commands that load a model, with arguments for which they have output."""
    files = folder / "scenes"
    make_scenes(files, 40)
    effects, neurons = folder / "effects.safetensors", folder / "neurons.safetensors"
    tool("effects", "--limit", 200, "-q", "-o", effects)
    tool("decompose", effects, "--m", 8, "-q", "-o", neurons)
    bundle = ["--bundle", neurons]
    return {
        "effects": ["--limit", 200],
        "decompose": [effects, "--m", 8],
        "concepts": [files / "images", *bundle],
        "segment": [files / "images", "--text", "cat", *bundle],
        "shift": [files / "images", "--concept", "cat", *bundle],
        "ablate": [files / "images", *bundle],
        "top": [*bundle],
        "spurious": ["--depict", "cat", "--predict", "dog", neurons],
    }


def first_result(name: str, words: Sequence[Any]) -> Row:
    """Measure the seconds from launch to model, and from the model to the first byte."""
    command = [sys.executable, __file__, "--work", name, *map(str, words), "-q"]
    start = time.monotonic()
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout is not None and process.stderr is not None
    process.stdout.read(1)
    first = time.monotonic()
    _, errors = process.communicate()
    end = time.monotonic()
    if process.returncode:
        sys.exit(f"{' '.join(command)}\n{errors.decode()}")
    loads = [line.split()[1:] for line in errors.decode().splitlines() if line.startswith("loaded ")]
    # A command whose texts are cached loads no model.
    loaded, processor = max(((float(clock), float(cpu)) for clock, cpu in loads), default=(start, 0.0))
    times = {
        "until the model is there, s": loaded - start,
        "processor time until the model is there, s": processor,
        "then until the first result, s": first - loaded,
        "in all, s": end - start,
    }
    return {"what": f"clip-{name}"} | {key: round(value, 2) for key, value in times.items()}


def work(name: str, words: list[str]) -> None:
    """Run the command in this process, as a program, and print the time and processor time at which its model is loaded."""
    import importlib

    from cliptools.models import load

    real = load.load_model

    def load_model(*arguments: Any, **options: Any) -> Any:
        loaded = real(*arguments, **options)
        print("loaded", time.monotonic(), time.process_time(), file=sys.stderr)  # all processes have the same monotonic clock
        return loaded

    load.load_model = load_model
    sys.argv = [f"clip-{name}", *words]
    importlib.import_module(module_of(name)).main()


def main() -> None:
    if sys.argv[1:2] == ["--work"]:
        work(sys.argv[2], sys.argv[3:])
        return
    parser = arguments(__doc__)
    parser.add_argument("--commands", nargs="+", choices=commands(), default=commands(), help="[default: all]")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--only-help", action="store_true", help="without first results, which need a model")
    options: argparse.Namespace = parser.parse_args()
    if options.quick:
        options.rounds = 3
    tables = {"--help": help_rows(options.commands, options.rounds)}
    if not options.only_help:
        with tempfile.TemporaryDirectory() as name:
            os.environ["CLIPTOOLS_CACHE"] = str(Path(name) / "cache")  # text embeddings are cached from the second run on
            ready = {key: words for key, words in cases(Path(name)).items() if key in options.commands}
            tries = 1 if options.quick else 3
            rows = [[first_result(key, words) for key, words in ready.items()] for _ in range(tries)]
            column = "then until the first result, s"
            tables["first result, emoji-vit2"] = [min(same, key=lambda row: row[column]) for same in zip(*rows, strict=True)]
    save(out_of(options), "startup", describe(), {"rounds": options.rounds}, {key: rows for key, rows in tables.items() if rows})


if __name__ == "__main__":
    main()
