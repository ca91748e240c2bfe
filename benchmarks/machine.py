"""Description of the machine on which a benchmark runs, and output of its results."""

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
    """Return the processor's name and the number of cores this process may use."""
    name = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        names = [line.partition(":")[2].strip() for line in info.read_text().splitlines() if line.startswith("model name")]
        name = names[0] if names else name
    return f"{name}, {len(os.sched_getaffinity(0))} cores"


def describe() -> dict[str, Any]:
    """Return processor or accelerator, threads, versions, and the load of the machine.

    The function imports torch, whose size would be part of the peak memory of any process started later: call it last.
    """
    import torch

    versions = {name: version(name) for name in PACKAGES}
    facts = {"processor": processor(), "threads": torch.get_num_threads(), "python": platform.python_version()} | versions
    facts["load over 15 minutes"] = round(os.getloadavg()[2], 1)
    return facts | ({"accelerator": torch.cuda.get_device_name()} if torch.cuda.is_available() else {})


def save(
    out: Path | None, name: str, machine: dict[str, Any], settings: dict[str, Any], tables: dict[str, list[dict[str, Any]]]
) -> None:
    """Print tables, each of at least one row, and write OUT/NAME.json."""
    console = Console(width=160)
    console.print(", ".join(f"{key} {value}" for key, value in (machine | settings).items()), highlight=False)
    for title, rows in tables.items():
        titles = dict.fromkeys(key for row in rows for key in row)
        table = Table(*titles, title=title)
        for row in rows:
            table.add_row(*("" if row.get(key) is None else str(row[key]) for key in titles))
        console.print(table)
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
        document = {"machine": machine, "settings": settings} | tables
        (out / f"{name}.json").write_text(json.dumps(document, indent=1, ensure_ascii=False) + "\n")
