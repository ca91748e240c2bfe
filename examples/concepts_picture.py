"""Draw scenes with their words as bars, from records of clip-concepts --truth on stdin: by words, directions and text."""

import json
import sys
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from cliptools.images.annotations import matching_names

SCENE, BAR, WORD, LINE, GAP = 190, 90, 176, 17, 14
TITLES = {
    "words": "words of the active neurons",
    "directions": "directions of all neurons",
    "text": "CLIP's own text ranking",
}
INK, FAINT, RIGHT, WRONG = "#1c1c1c", "#767676", "#1d6f42", "#c9c9c9"
FONT = ImageFont.load_default(13)


def draw_bars(draw: ImageDraw.ImageDraw, x: int, y: int, record: dict) -> None:
    """Draw one bar per word of a record, in green if the scene shows the word."""
    scores = [concept["score"] for concept in record["concepts"]]
    for place, concept in enumerate(record["concepts"]):
        right = bool(matching_names(record["truth"], [concept["word"]]))
        top = y + place * LINE
        draw.text((x + WORD - 6, top), concept["word"], RIGHT if right else INK, FONT, anchor="ra")
        length = int(BAR * concept["score"] / max(scores))
        draw.rectangle((x + WORD, top + 3, x + WORD + length, top + LINE - 3), RIGHT if right else WRONG)


def main(images: Path, target: Path) -> None:
    """Draw one row per scene and one column per ranking."""
    records = [json.loads(line) for line in sys.stdin]
    names = list(dict.fromkeys(record["image"] for record in records))
    record_of = {(record["image"], record["settings"]["by"]): record for record in records}
    columns = [GAP + SCENE + GAP + number * (WORD + BAR + GAP) for number in range(len(TITLES))]
    height = 2 * GAP + LINE + len(names) * (SCENE + LINE + GAP)
    sheet = Image.new("RGB", (columns[-1] + WORD + BAR + GAP, height), "white")
    draw = ImageDraw.Draw(sheet)
    for x, title in zip(columns, TITLES.values(), strict=True):
        draw.text((x + WORD, GAP), title, FAINT, FONT, anchor="ma")
    for row, name in enumerate(names):
        y = 2 * GAP + LINE + row * (SCENE + LINE + GAP)
        with Image.open(images / name) as picture:
            sheet.paste(picture.convert("RGB").resize((SCENE, SCENE), Image.Resampling.LANCZOS), (GAP, y))
        draw.text((GAP, y + SCENE + 2), ", ".join(record_of[name, "words"]["truth"]), FAINT, FONT)
        for x, by in zip(columns, TITLES, strict=True):
            draw_bars(draw, x, y + 8, record_of[name, by])
    sheet.save(target, quality=80, method=6)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
