"""The machine a benchmark ran on, and where its results go."""

import json
import os
import platform
from importlib.metadata import version
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

PACKAGES = ("torch", "open_clip_torch", "numpy", "scikit-learn")
RESULTS = Path(__file__).parent / "results"


def processor() -> str:
    """The processor's name and how many cores this process may use."""
    name = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        names = [line.partition(":")[2].strip() for line in info.read_text().splitlines() if line.startswith("model name")]
        name = names[0] if names else name
    return f"{name}, {len(os.sched_getaffinity(0))} cores"


def describe() -> dict[str, Any]:
    """Processor, threads and versions."""
    import torch

    found = {name: version(name) for name in PACKAGES}
    return {"processor": processor(), "threads": torch.get_num_threads(), "python": platform.python_version()} | found


def save(name: str, machine: dict[str, Any], settings: dict[str, Any], tables: dict[str, list[dict[str, Any]]]) -> None:
    """Print tables and write results/NAME.json."""
    console = Console(width=140)
    console.print(", ".join(f"{key} {value}" for key, value in (machine | settings).items()))
    for title, rows in tables.items():
        table = Table(*rows[0], title=title)
        for row in rows:
            table.add_row(*("" if value is None else str(value) for value in row.values()))
        console.print(table)
    RESULTS.mkdir(exist_ok=True)
    document = {"machine": machine, "settings": settings} | tables
    (RESULTS / f"{name}.json").write_text(json.dumps(document, indent=1, ensure_ascii=False) + "\n")
