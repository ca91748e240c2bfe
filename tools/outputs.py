"""Record the outputs of the lines in tools/command_lines.txt in a folder, or compare two such folders byte for byte.

    python tools/outputs.py record FOLDER [ROOT]     # run the lines by the commands of the checkout ROOT (default: this one)
    python tools/outputs.py compare BEFORE AFTER     # exit 1 if anything differs

A change that should not change any output is checked with it: record before the change, record after it, and compare.
"""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open

LINES = Path(__file__).with_name("command_lines.txt")


def lines() -> dict[str, str]:
    """Return the shell lines by name, in the order in which they run."""
    named = (line for line in LINES.read_text().splitlines() if line and not line.startswith("#"))
    return {name: line for name, _, line in (row.partition(": ") for row in named)}


def record(folder: Path, root: Path) -> None:
    """Run every line in FOLDER/work; write standard output, messages and exit codes to FOLDER/NAME.*."""
    work = folder / "work"
    work.mkdir(parents=True)
    path = f"{root / 'bin'}:{Path(sys.executable).parent}:{os.environ['PATH']}"
    inherited = {key: value for key, value in os.environ.items() if not key.startswith(("CLIPTOOLS_", "PYTHON"))}
    environment = inherited | {
        "PATH": path,
        "PYTHONPATH": str(root),
        "XDG_CACHE_HOME": str((folder / "cache").resolve()),
        "COLUMNS": "120",
    }
    for name, line in lines().items():
        start = time.monotonic()
        process = subprocess.run(
            ["bash", "-o", "pipefail", "-c", line],
            cwd=work,
            env=environment,
            capture_output=True,
            stdin=subprocess.DEVNULL,
            check=False,
        )
        (folder / f"{name}.stdout").write_bytes(process.stdout)
        (folder / f"{name}.status").write_text(f"{process.returncode}\n")
        (folder / f"{name}.stderr").write_bytes(process.stderr)
        print(f"{name}: exit {process.returncode}, {time.monotonic() - start:.1f} s", flush=True)


def compared_files(folder: Path) -> dict[str, Path]:
    """Return the files that are compared: outputs and exit codes, but not messages, which contain times."""
    files = [path for path in folder.rglob("*") if path.is_file() and path.suffix != ".stderr"]
    return {str(path.relative_to(folder)): path for path in files if path.relative_to(folder).parts[0] != "cache"}


def differences(before: Path, after: Path) -> list[str]:
    """Return sentences on the differences of two files: by tensor and header field for safetensors, by line for texts."""
    if before.read_bytes() == after.read_bytes():
        return []
    try:
        return tensor_differences(before, after)
    except SafetensorError:
        pass
    try:
        pairs = zip(before.read_text().splitlines(), after.read_text().splitlines(), strict=False)
    except UnicodeDecodeError:
        return [f"bytes differ ({before.stat().st_size} and {after.stat().st_size})"]
    return [f"line {i + 1}: {a[:200]} | {b[:200]}" for i, (a, b) in enumerate(pairs) if a != b][:3] or ["one is longer"]


def tensor_differences(before: Path, after: Path) -> list[str]:
    """Describe the differences of two safetensors files."""
    sentences = []
    with safe_open(before, "np") as old, safe_open(after, "np") as new:
        for name in sorted({*old.keys(), *new.keys()}):
            if name not in old.keys() or name not in new.keys():  # noqa: SIM118
                sentences.append(f"tensor {name} in one only")
            elif not np.array_equal(old.get_tensor(name), new.get_tensor(name)):
                sentences.append(f"tensor {name} differs")
        a, b = (json.loads((file.metadata() or {}).get("cliptools", "{}")) for file in (old, new))
        sentences += [f"header {key}: {a.get(key)} | {b.get(key)}"[:300] for key in sorted({*a, *b}) if a.get(key) != b.get(key)]
    return sentences or ["bytes differ, tensors and header do not"]


def compare(before: Path, after: Path) -> int:
    """Print every difference of two records, and return the number of files that differ."""
    old, new, count = compared_files(before), compared_files(after), 0
    for name in sorted({*old, *new}):
        sentences = differences(old[name], new[name]) if name in old and name in new else ["in one record only"]
        count += bool(sentences)
        for sentence in sentences:
            print(f"{name}: {sentence}")
    print(f"{len({*old, *new})} files of {len(lines())} command lines compared, {count} differ")
    return count


if __name__ == "__main__":
    if len(sys.argv) in (3, 4) and sys.argv[1] == "record":
        record(Path(sys.argv[2]), Path(sys.argv[3] if len(sys.argv) == 4 else LINES.parents[1]).resolve())
    elif len(sys.argv) == 4 and sys.argv[1] == "compare":
        sys.exit(1 if compare(Path(sys.argv[2]), Path(sys.argv[3])) else 0)
    else:
        sys.exit(__doc__)
