"""Lines in the format of clip-spurious, and functions with which clip-advgen's tests read its output."""

import functools
import importlib
import io
import json
import subprocess
import sys
from typing import Any

from cliptools.models.load import load_model


@functools.cache
def model() -> dict[str, Any]:
    """Return the fields of emoji-vit2 in records."""
    loaded = load_model()
    return {"name": loaded.name, "pretrained": None, "sha256": loaded.sha256}


def lines(*words: str, depict: str = "panda", predict: str = "cat", by: str = "effect", seed: int = 0, **more: Any) -> bytes:
    """Return one record per word, best first."""
    records = []
    for rank, word in enumerate(words, 1):
        named = {
            "pair": f"{depict}->{predict}",
            "depict": depict,
            "predict": predict,
            "rank": rank,
            "word": word,
            "score": 1 / rank,
        }
        said = {"by": by, "effect": "second", "seed": seed, "neurons": [{"layer": 6, "neuron": 391, "share": 0.12}]}
        records.append(named | said | {"exclusions": {"names": [predict]}, "model": model(), "bundle": "f00d"} | more)
    return b"".join(json.dumps(record).encode() + b"\n" for record in records)


def parsed(data: bytes) -> list[dict[str, Any]]:
    """Return the records of the lines."""
    return [json.loads(line) for line in data.decode().splitlines()]


WORDS = ("rocket", "crown", "key", "anchor", "trophy", "lemon")


def inside(name: str, *arguments: Any, stdin: bytes = b"") -> subprocess.CompletedProcess[bytes]:
    """Run a command within this process, where the libraries are loaded already; otherwise like conftest's `run`."""
    main = importlib.import_module(f"cliptools.cli.{name}").main
    words = [str(argument) for argument in arguments]
    streams = [io.TextIOWrapper(io.BytesIO(data), "utf-8") for data in (stdin, b"", b"")]
    before = sys.stdin, sys.stdout, sys.stderr
    sys.stdin, sys.stdout, sys.stderr = streams
    try:
        main.main(words)
    except SystemExit as stop:
        status = int(stop.code or 0)
    finally:
        sys.stdin, sys.stdout, sys.stderr = before
    written = []
    for stream in streams[1:]:
        stream.flush()
        written.append(stream.buffer.getvalue())
    return subprocess.CompletedProcess(words, status, *written)
