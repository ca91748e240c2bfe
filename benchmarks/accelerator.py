"""The utilization of a GPU while a process runs, from nvidia-smi."""

import contextlib
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from datetime import datetime
from typing import Any

EVERY = 100  # milliseconds


@contextlib.contextmanager
def sample_utilization(enabled: bool) -> Iterator[Callable[[float, float], int | None]]:
    """Sample the utilization within the block.

    The yielded function returns the mean share of time, in percent, in which a kernel ran between two moments (seconds since the
    epoch), or None without samples.
    """
    smi = shutil.which("nvidia-smi") if enabled else None
    if smi is None:
        yield lambda begin, end: None
        return
    with tempfile.TemporaryFile("w+") as lines:
        query = "--query-gpu=timestamp,utilization.gpu", "--format=csv,noheader,nounits", f"--loop-ms={EVERY}", "--id=0"
        process = subprocess.Popen([smi, *query], stdout=lines, stderr=subprocess.DEVNULL)

        def between(begin: float, end: float) -> int | None:
            lines.seek(0)
            samples = [_sample(line) for line in lines.read().splitlines() if line.count(",") == 1]
            shares = [share for moment, share in samples if begin <= moment <= end]
            return round(sum(shares) / len(shares)) if shares else None

        try:
            yield between
        finally:
            process.terminate()
            process.wait()


def _sample(line: str) -> tuple[float, Any]:
    moment, share = line.split(",")
    return datetime.strptime(moment.strip(), "%Y/%m/%d %H:%M:%S.%f").timestamp(), float(share)
