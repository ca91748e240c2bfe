"""Plot the shares of the first four concepts of the drifting streams for each model: shift_picture.py SHARES.jsonl… PNG"""

import json
import sys
from pathlib import Path

from cliptools.cli.run.shift import panels
from cliptools.io.files import put_whole
from cliptools.render.shift_plot import Panel, draw_shift

CONCEPTS = 4


def drawn(path: Path) -> tuple[list[str], list[Panel]]:
    """Return the groups, and one panel per concept."""
    with path.open(encoding="utf-8") as lines:
        records = [record for record in map(json.loads, lines) if "group" in record and "image" not in record]
    groups, concepts = (list(dict.fromkeys(record[key] for record in records)) for key in ("group", "concept"))
    titles = [f"{concept}, {records[0]['model']['name']}" for concept in concepts]
    titled = zip(panels(records, groups, concepts), titles, strict=True)
    return [group.removesuffix(".tar") for group in groups], [panel._replace(title=title) for panel, title in titled][:CONCEPTS]


def main(paths: list[Path], target: Path) -> None:
    """Draw one row per model."""
    results = [drawn(path) for path in paths]
    rows = [panel for _, row in results for panel in row]
    put_whole(target, draw_shift(results[0][0], rows, "share of the concept's five units", target))


if __name__ == "__main__":
    *named, last = map(Path, sys.argv[1:])
    main(named, last)
