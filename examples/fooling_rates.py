"""Write fooling rates of clip-advgen's records as CSV: one row per pair and kind of words, with mean and deviation over repeats.

    python examples/fooling_rates.py REPEAT.jsonl REPEAT.jsonl … > rates.csv

Each file is one repeat. Only pictures that pass the check count (the depicted class is in the picture, the predicted class is
not); `pictures` is their number. The row `all` averages over pairs within a repeat and then gives the mean and the standard
deviation of these averages.
"""

import csv
import json
import statistics
import sys
from collections import defaultdict
from pathlib import Path

ORDERS = {"second": "second-order", "first": "first-order"}
Hits = dict[tuple[str, str], list[bool]]


def sound(path: Path) -> Hits:
    """Return, for each pair and kind of words, whether each picture that passes the check fools the model."""
    hits: Hits = defaultdict(list)
    with path.open() as stream:
        for record in map(json.loads, stream):
            kind = ORDERS.get(record["effect"], record["effect"]) if record["by"] == "effect" else record["by"]
            if record["check"]["depicted"] and not record["check"]["predicted"]:
                hits[record["pair"], kind].append(record["fooled"])
    return hits


def percent(hits: list[bool]) -> float:
    return 100 * sum(hits) / len(hits)


def main() -> None:
    repeats = [sound(Path(name)) for name in sys.argv[1:]]
    pairs = list(dict.fromkeys(pair for pair, _ in repeats[0]))
    kinds = list(dict.fromkeys(kind for _, kind in repeats[0]))
    writer = csv.writer(sys.stdout, lineterminator="\n")
    writer.writerow(["pair", "words", "mean", "sd", "repeats", "pictures"])
    for pair in [*pairs, "all"]:
        for kind in kinds:
            of = pairs if pair == "all" else [pair]
            each = [statistics.mean(percent(repeat[one, kind]) for one in of) for repeat in repeats]
            pictures = sum(len(repeat[one, kind]) for repeat in repeats for one in of)
            deviation = f"{statistics.stdev(each):.1f}" if len(each) > 1 else ""
            writer.writerow([pair, kind, f"{statistics.mean(each):.1f}", deviation, len(each), pictures])


if __name__ == "__main__":
    main()
