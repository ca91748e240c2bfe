"""Fooling rates of clip-advgen's records as CSV: a row a pair, mean and standard deviation over repeats for each kind of words.

    python examples/fooling_rates.py effect=FILE,FILE,FILE random=FILE,FILE,FILE … > rates.csv

A file is one repeat. Only pictures that pass the check (the depicted class is there, the predicted one is not) are counted;
`pictures` says how many those are. The row `all` averages over pairs within a repeat, then takes mean and deviation of that.
"""

import csv
import json
import statistics
import sys
from collections import defaultdict
from pathlib import Path


def rates(path: Path) -> dict[str, tuple[float, int]]:
    """Per pair: the share in percent of sound pictures that fool, and their number."""
    found: dict[str, list[bool]] = defaultdict(list)
    for line in path.read_text().splitlines():
        record = json.loads(line)
        if record["check"]["depicted"] and not record["check"]["predicted"]:
            found[record["pair"]].append(record["fooled"])
    return {pair: (100 * sum(hits) / len(hits), len(hits)) for pair, hits in found.items()}


def main() -> None:
    kinds = {
        kind: [rates(Path(name)) for name in files.split(",")]
        for kind, _, files in (word.partition("=") for word in sys.argv[1:])
    }
    pairs = list(next(iter(kinds.values()))[0])
    writer = csv.writer(sys.stdout, lineterminator="\n")
    writer.writerow(["pair", "kind", "mean", "sd", "repeats", "pictures"])
    for pair in [*pairs, "all"]:
        for kind, repeats in kinds.items():
            each = [
                statistics.mean(rate for rate, _ in repeat.values()) if pair == "all" else repeat[pair][0] for repeat in repeats
            ]
            pictures = sum(number for repeat in repeats for name, (_, number) in repeat.items() if pair in (name, "all"))
            writer.writerow([pair, kind, f"{statistics.mean(each):.1f}", f"{statistics.stdev(each):.1f}", len(each), pictures])


if __name__ == "__main__":
    main()
