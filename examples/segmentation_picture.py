"""Draw scenes with the true masks and the heat maps that clip-segment wrote by several methods, for two texts."""

import sys
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from cliptools.render.contact_sheet import label_picture

CELL, GAP, LINE = 128, 8, 22
TEXTS = ("pizza", "violin")
FAINT = "#767676"
FONT = ImageFont.load_default(13)


def truth(masks: Path, names: tuple[str, ...]) -> Image.Image:
    """Return the true label map in the order of the texts, which are the captions of the scenes, from back to front."""
    return label_picture(np.asarray(Image.open(masks)).clip(max=len(names))).convert("RGB")


def main(scenes: Path, maps: Path, target: Path) -> None:
    """Draw one row per scene; `maps` contains one folder per method."""
    images = sorted((scenes / "images").iterdir())
    columns = [
        "scene",
        "truth",
        *(f"neurons: {text}" for text in TEXTS),
        "label map",
        f"rollout: {TEXTS[0]}",
        f"chefer: {TEXTS[0]}",
    ]
    sheet = Image.new("RGB", (GAP + len(columns) * (CELL + GAP), LINE + GAP + len(images) * (CELL + GAP)), "white")
    draw = ImageDraw.Draw(sheet)
    for column, title in enumerate(columns):
        draw.text((GAP + column * (CELL + GAP), GAP), title, FAINT, FONT)
    for row, image in enumerate(images):
        neurons, rollout, chefer = (maps / method / image.stem for method in ("neurons", "rollout", "chefer"))
        cells = [Image.open(image), truth(scenes / "masks" / f"{image.stem}.masks.png", TEXTS)]
        cells += [Image.open(f"{neurons}.{text}.overlay.png") for text in TEXTS]
        cells += [Image.open(f"{neurons}.labels.png").convert("RGB")]
        cells += [Image.open(f"{stem}.{TEXTS[0]}.overlay.png") for stem in (rollout, chefer)]
        for column, cell in enumerate(cells):
            sheet.paste(cell.resize((CELL, CELL)), (GAP + column * (CELL + GAP), LINE + GAP + row * (CELL + GAP)))
    sheet.save(target, quality=80, method=6)


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
