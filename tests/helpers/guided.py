"""Bad streams guided by coverage: python tests/faults/guided.py WHICH COUNT FOLDER. This needs atheris, libFuzzer for Python.

libFuzzer changes its inputs, keeps each input that reaches new code in the readers, and changes it further. A reader may accept
the input or reject it in one line; any other result ends the process with a traceback and keeps the input.
"""

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import atheris

with atheris.instrument_imports(
    include=[
        "cliptools.io",
        "cliptools.text",
        "cliptools.cli.run.shards",
        "cliptools.front.bundles",
        "cliptools.front.unit_records",
        "json",
    ]
):
    from cliptools.errors import CliptoolsError
    from helpers.stream_bundles import apart
    from helpers.stream_bytes import check_line
    from helpers.stream_lines import joined, line_of
    from helpers.streams import TEXTS, bundles, record_readers, use_bundle

WORDS = ("__metadata__", "cliptools", "dtype", "shape", "data_offsets", "F32", "I32", "U8", "model", "sha256", "NaN", "1e999", "\\ud800", "unit", "top_image", "words")  # fmt: skip  # noqa: E501
"""What a header says, for libFuzzer to put in."""


def targets(folder: Path) -> dict[str, tuple[list[bytes], Callable[[bytes], Any]]]:
    """Return the readers with valid inputs to start from.

    For a bundle only the header is fuzzed, followed by the bytes of a valid bundle.
    """
    wholes = [bundle.to_bytes() for bundle in bundles().values()]
    headers = [json.dumps(apart(whole)[0]).encode() for whole in wholes]
    bodies = apart(wholes[0])[1]
    found: dict[str, tuple[list[bytes], Callable[[bytes], Any]]] = {
        "header": (headers, lambda data: use_bundle(len(data).to_bytes(8, "little") + data + bodies)),
        "bundle": (wholes, use_bundle),
    }

    def of(reader: Callable[[Path], Any], name: str) -> Callable[[bytes], Any]:
        path = folder / name

        def read(data: bytes) -> None:
            path.write_bytes(data)
            reader(path)

        return read

    for name, (records, reader) in record_readers(folder).items():
        found[name] = (
            [joined([line_of(record) for record in records])],
            of(reader, "it.part" if name == "parts" else "it.jsonl"),
        )
    for name, (whole, reader) in TEXTS.items():
        found[f"text {name}"] = ([whole], of(reader, "it.txt"))
    return found


def main() -> None:
    which, count, folder = sys.argv[1], int(sys.argv[2]), Path(sys.argv[3])
    good, reader = targets(folder)[which]
    corpus = folder / "corpus"
    corpus.mkdir()
    for number, data in enumerate(good):
        (corpus / str(number)).write_bytes(data)
    (folder / "words").write_text("".join(f'"{word}"\n'.replace("\\", "\\\\") for word in WORDS))
    seen = {"read": 0, "refused": 0, "slowest": 0.0}

    def one(data: bytes) -> None:
        begin = time.perf_counter()
        try:
            reader(data)
        except CliptoolsError as error:
            check_line(error, which)
            seen["refused"] += 1
        seen["read"] += 1
        seen["slowest"] = max(seen["slowest"], time.perf_counter() - begin)
        if seen["read"] == count:
            (folder / "seen.json").write_text(json.dumps(seen))

    options = [f"-runs={count}", "-seed=1", "-max_len=20000", "-timeout=20", f"-dict={folder / 'words'}", "-print_final_stats=1"]
    atheris.Setup([sys.argv[0], *options, f"-artifact_prefix={folder}/", str(corpus)], one)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
