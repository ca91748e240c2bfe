"""Draw scenes with their label maps by several methods, cut by the true masks: right names in colour, others grey."""

import json
import sys
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

CELL, GAP, LINE = 128, 8, 22
FAINT = "#767676"
WRONG, GROUND = (190, 190, 190), (20, 20, 20)
COLOURS = ((230, 75, 60), (50, 130, 220), (240, 190, 40))  # of the emoji of a scene, from back to front
FONT = ImageFont.load_default(13)


def coloured(labels: np.ndarray, truth: np.ndarray, shown: list[int]) -> Image.Image:
    """Return the pixels of a label map [y, x] that have the right name, in the emoji's colours; other objects are grey."""
    pixels = np.where((truth > 0)[..., None], WRONG, GROUND).astype(np.uint8)
    for label, colour in zip(shown, COLOURS, strict=False):
        pixels[(labels == label) & (truth == label)] = colour
    return Image.fromarray(pixels)


def main(work: Path, target: Path, methods: list[str]) -> None:
    """Draw one row per scene; `work` contains scenes/, maps/METHOD/ and classes.txt."""
    classes = (work / "classes.txt").read_text().splitlines()
    scenes = [json.loads(line) for line in (work / "scenes/scenes.jsonl").read_text().splitlines()]
    columns = ["scene", "truth", *methods]
    sheet = Image.new("RGB", (GAP + len(columns) * (CELL + GAP), LINE + GAP + len(scenes) * (CELL + GAP)), "white")
    draw = ImageDraw.Draw(sheet)
    for column, title in enumerate(columns):
        draw.text((GAP + column * (CELL + GAP), GAP), title, FAINT, FONT)
    for row, scene in enumerate(scenes):
        shown = [classes.index(name) + 1 for name in scene["names"]]
        truth = np.array([0, *shown])[np.asarray(Image.open(work / "scenes" / scene["masks"]))]  # [y, x]
        stem = Path(scene["image"]).stem
        cells = [Image.open(work / "scenes" / scene["image"]), coloured(truth, truth, shown)]
        for method in methods:
            labels = np.asarray(Image.open(work / "maps" / method / f"{stem}.labels.png"))
            cells.append(coloured(labels, truth, shown))
        for column, cell in enumerate(cells):
            sheet.paste(cell.resize((CELL, CELL)), (GAP + column * (CELL + GAP), LINE + GAP + row * (CELL + GAP)))
    sheet.quantize(200, dither=Image.Dither.NONE).save(target, optimize=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3:])
