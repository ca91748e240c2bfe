"""Draw a contact sheet of pictures that fool the model, from clip-advgen's records: one row per pair, largest margin first.

    python examples/fooling_sheet.py RECORDS SHEET.png

The sheet shows only pictures that pass the check, and at most one picture of each description.
"""

import json
import sys
from collections import Counter
from pathlib import Path

from PIL import Image

from cliptools.render.contact_sheet import SheetRow, contact_sheet

ROWS, ACROSS = 6, 6


def main() -> None:
    records = [json.loads(line) for line in Path(sys.argv[1]).read_text().splitlines()]
    sound = [r for r in records if r["check"]["depicted"] and not r["check"]["predicted"]]
    rows = []
    for pair in list(dict.fromkeys(r["pair"] for r in sound))[:ROWS]:
        of_pair = [r for r in sound if r["pair"] == pair]
        fooled = sorted((r for r in of_pair if r["fooled"]), key=lambda r: -r["margin"])
        best = {r["caption"]: r for r in reversed(fooled)}  # the picture of largest margin of each description
        shown = sorted(best.values(), key=lambda r: -r["margin"])[:ACROSS]
        often = Counter(word for r in fooled for word in r["words"]).most_common(8)
        words = [(word, number / len(of_pair)) for word, number in often]
        facts = f"{len(fooled)} of {len(of_pair)} fool"
        rows.append(SheetRow(pair.replace("->", " taken for "), facts, words, [Image.open(r["file"]) for r in shown]))
    notes = "share of all pictures that fool and show the word · pictures with the largest margins, one a description"
    contact_sheet("Scenes of the first class that emoji-vit2 takes for the second", notes, rows).save(
        sys.argv[2], quality=80, method=6
    )


if __name__ == "__main__":
    main()
