"""Shared code of the benchmarks: runs in separate processes, their cost per image, and a log that keeps every measurement."""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from machine import RESULTS, describe, save

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))  # a benchmark runs from a checkout, installed or not
Row = dict[str, Any]
Measure = TypeVar("Measure")


class Ran(NamedTuple):
    """A process that has ended."""

    seconds: float
    cpu: float
    """Seconds of processor time in user and system mode, which other processes disturb less."""
    peak: float
    """Peak memory in GB. It is at least the memory of the parent process, which should therefore be small."""
    stderr: str
    """Text on stderr."""


def run(command: Sequence[object], stdin: Path | None = None) -> Ran:
    """Run a command to its end and discard its standard output; a failure ends this script."""
    path = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    source_path = Path(stdin or os.devnull)
    with source_path.open("rb") as source, tempfile.TemporaryFile() as errors:
        start = time.perf_counter()
        words = [str(word) for word in command]
        process = subprocess.Popen(
            words, stdin=source, stdout=subprocess.DEVNULL, stderr=errors, env=os.environ | {"PYTHONPATH": path}
        )
        _, status, used = os.wait4(process.pid, 0)
        seconds = time.perf_counter() - start
        process.returncode = os.waitstatus_to_exitcode(status)
        errors.seek(0)
        text = errors.read().decode()
    if process.returncode:
        sys.exit(f"{' '.join(words)}\n{text}")
    return Ran(seconds, used.ru_utime + used.ru_stime, used.ru_maxrss * 1024 / 1e9, text)  # maxrss counts KiB


def module_of(name: str) -> str:
    """Return the module of clip-NAME."""
    return f"cliptools.cli.{name.replace('-', '_')}"


def tool(name: str, *arguments: object, stdin: Path | None = None) -> Ran:
    """Run clip-NAME."""
    return run([sys.executable, "-m", module_of(name), *arguments], stdin)


def in_own_process(script: str, **options: object) -> Row:
    """Run a benchmark's script in a new process with these options; return its cost and the JSON of its last line on stderr."""
    command = [sys.executable, script]
    for name, value in options.items():
        command += [f"--{name.replace('_', '-')}", *(map(str, value) if isinstance(value, list) else [str(value)])]
    ran = run(command)
    measured = {"seconds": ran.seconds, "cpu": ran.cpu, "peak GB": ran.peak}
    report: Row = json.loads(ran.stderr.splitlines()[-1])
    return measured | report


def say(**figures: object) -> None:
    """Print the last line of a process that in_own_process has started."""
    print(json.dumps(figures), file=sys.stderr)


def slopes(short: Row, long: Row, few: int, many: int) -> Row:
    """Return the cost per image in elapsed time and in processor time, and the fixed cost, which is the rest of the long run."""
    figures: Row = {}
    for key, title in (("seconds", ""), ("cpu", "cpu ")):
        each = (long[key] - short[key]) / (many - few)
        figures |= {f"{title}ms": round(1000 * each, 2), f"fixed {title}s": round(long[key] - each * many, 2)}
    return figures


def compared(log: Iterable[Row], same: Sequence[str], plain: str = "plain") -> list[Row]:
    """Return medians over the rounds, and ratios to the plain setting of the same round, by the keys `same` and by setting."""
    rows: list[Row] = []
    lines = [line for line in log if "round" in line]
    baseline = {(*(line[key] for key in same), line["round"]): line for line in lines if line["setting"] == plain}
    groups: dict[tuple[Any, ...], list[Row]] = {}
    for line in lines:
        groups.setdefault((*(line[key] for key in same), line["setting"]), []).append(line)
    for key, of in groups.items():
        row = dict(zip((*same, "setting"), key, strict=True))
        for clock in ("ms", "cpu ms"):
            row[f"{clock} an image"] = round(statistics.median(line[clock] for line in of), 2)
            pairs = [(line[clock], baseline.get((*key[:-1], line["round"]), line)[clock]) for line in of]
            ratios = [round(each / base, 3) if base > 0 < each else None for each, base in pairs]
            valid = [ratio for ratio in ratios if ratio is not None]
            row |= {f"ratio of {clock}": round(statistics.median(valid), 3) if valid else None, f"ratios of {clock}": ratios}
        row["fixed s"] = round(statistics.median(line["fixed s"] for line in of), 2)
        for more in sorted({name for line in of for name in line if name.endswith("%")}):
            row[more] = round(statistics.median(line[more] for line in of if more in line))
        rows.append(row)
    return rows


def alternating(rounds: int, measures: dict[str, Callable[[], Measure]]) -> dict[str, list[Measure]]:
    """Call the functions in turns and return the results of each."""
    results: dict[str, list[Measure]] = {name: [] for name in measures}
    for _ in range(rounds):
        for name, measure in measures.items():
            results[name].append(measure())
    return results


class Log:
    """The measurements as lines, which are also written to a file if there is one."""

    def __init__(self, path: Path | None, more: bool) -> None:
        """`more`: begin with the lines of the existing file."""
        self.path, self.lines = path, list[Row]()
        if path is not None and path.exists():
            if more:
                self.lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
            else:
                path.unlink()

    def keep(self, line: Row) -> None:
        """Add a line and show it."""
        self.lines.append(line)
        if self.path is not None:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")
        print(line, flush=True)


def arguments(doc: str | None, log: bool = False) -> argparse.ArgumentParser:
    """Return the options of all benchmarks; benchmarks with a log also have options to add to the log and to show it."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a small run to test the script; do not quote its figures")
    where = "folder of the results [default: benchmarks/results; none with --quick]"
    parser.add_argument("--out", type=Path, metavar="FOLDER", help=where)
    if log:
        parser.add_argument("--more", action="store_true", help="add to the results of the last run")
        parser.add_argument("--report", action="store_true", help="only print the tables of the last run")
    return parser


def out_of(options: argparse.Namespace) -> Path | None:
    """Return the folder of the results."""
    return options.out or (None if options.quick else RESULTS)


def log_of(options: argparse.Namespace, name: str) -> Log:
    """Return the log of a benchmark."""
    out = out_of(options)
    return Log(None if out is None else out / f"{name}.jsonl", options.more or options.report)


def conclude(options: argparse.Namespace, name: str, settings: Row, candidates: dict[str, list[Row]]) -> None:
    """Print the tables that have rows, and write them to the folder of the results."""
    tables = {title: rows for title, rows in candidates.items() if rows}
    if not tables:
        sys.exit("nothing was measured")
    save(out_of(options), name, describe(), settings, tables)
