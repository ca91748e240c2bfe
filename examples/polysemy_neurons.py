"""Choose pairs to show below their neurons and print them for clip-top --units, from records of clip-top on stdin."""

import json
import sys
from statistics import median

NEURONS, PAIRS = 3, 3


def main() -> None:
    """Print the pairs of neurons in the stronger half whose strong pairs of least inertia lie furthest below them in inertia."""
    records = [record for record in map(json.loads, sys.stdin) if record["inertia"] is not None]
    kinds = {kind: [record for record in records if record["units"] == kind] for kind in ("pairs", "neurons")}
    strong = {kind: median(record["norm"] for record in of_kind) for kind, of_kind in kinds.items()}
    pairs: dict[int, list[dict]] = {}
    for record in kinds["pairs"]:
        if record["norm"] >= strong["pairs"]:
            pairs.setdefault(record["neuron"], []).append(record)

    def clearest(neuron: int) -> list[dict]:
        return sorted(pairs.get(neuron, []), key=lambda record: record["inertia"])[:PAIRS]

    def gap(record: dict) -> float:
        below = clearest(record["neuron"])
        return sum(record["inertia"] - pair["inertia"] for pair in below) if len(below) == PAIRS else 0.0

    shown = sorted((record for record in kinds["neurons"] if record["norm"] >= strong["neurons"]), key=gap)[-NEURONS:][::-1]
    chosen = (pair for record in shown for pair in clearest(record["neuron"]))
    print(",".join(f"{pair['layer']}:{pair['neuron']}.{pair['head']}" for pair in chosen))


if __name__ == "__main__":
    main()
