"""Draw the words of clip-spurious for planted pairs as emoji, with two kinds of scores; the cue has a frame.

python plants_picture.py PLANTS.jsonl EFFECT.jsonl OVERLAP.jsonl PICTURE.png
"""

import json
import sys
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from cliptools.emoji.render import render, to_uint8
from cliptools.emoji.scenes import Ground, Scene, Sprite
from cliptools.text.emoji_concepts import concept_index

PAIRS, ACROSS = 5, 12
EMOJI, CELL, LINE, LEFT, RIGHT, GAP = 44, 66, 14, 190, 150, 12
SMALL_LINE = 11
NAME = 2 * SMALL_LINE  # height of a name
WAYS = ("sparse sums (Eq. 6)", "overlaps")
INK, FAINT, GREEN = "#1c1c1c", "#767676", "#1d6f42"
SMALL, FONT = ImageFont.load_default(10), ImageFont.load_default(13)


def emoji(word: str) -> Image.Image:
    """Return the emoji that a word of the pool names, on white."""
    scene = Scene((Sprite(concept_index()[word], 0, 0.5, 0.5, 0.94, 0.0, False),), Ground(), ())
    return Image.fromarray(to_uint8(render([scene], 2 * EMOJI).image)[0]).resize((EMOJI, EMOJI), Image.Resampling.LANCZOS)


def chosen(plants: list[dict], records: list[dict]) -> list[tuple[str, str, str]]:
    """Return depicted class, predicted class and cue of the first plants, each with another depicted class, in list order."""
    depicted = list(dict.fromkeys(record["depict"] for record in records))
    return [(depicted[i], plant["named"], plant["cue"]) for i, plant in enumerate(plants[:PAIRS])]


def in_two_lines(draw: ImageDraw.ImageDraw, text: str) -> list[str]:
    """Return a text in at most two lines of a cell's width, the second one cut where it is too long."""
    lines = [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".strip()
        if lines[-1] and len(lines) < 2 and draw.textlength(longer, SMALL) > CELL - 2:
            lines.append(word)
        else:
            lines[-1] = longer
    return [cut_to_width(draw, line) for line in lines]


def cut_to_width(draw: ImageDraw.ImageDraw, line: str) -> str:
    """Return a line, with three dots in place of what does not fit into a cell."""
    if draw.textlength(line, SMALL) <= CELL - 2:
        return line
    return next(f"{line[:end]}..." for end in range(len(line), -1, -1) if draw.textlength(f"{line[:end]}...", SMALL) <= CELL - 2)


def draw_words(sheet: Image.Image, draw: ImageDraw.ImageDraw, y: int, words: list[str], cue: str) -> None:
    """Draw the first words in their order, and write the rank of the cue among all words."""
    for place, word in enumerate(words[:ACROSS]):
        x = LEFT + place * CELL
        if word in concept_index():  # an attribute has no emoji
            sheet.paste(emoji(word), (x + (CELL - EMOJI) // 2, y))
        for number, line in enumerate(in_two_lines(draw, word)):
            where = (x + CELL // 2, y + EMOJI + 2 + number * SMALL_LINE)
            draw.text(where, line, GREEN if word == cue else FAINT, SMALL, anchor="ma")
        if word == cue:
            draw.rectangle((x + 3, y - 4, x + CELL - 4, y + EMOJI + NAME + 3), outline=GREEN, width=2)
    label = f"{cue}: number {words.index(cue) + 1}" if cue in words else f"{cue}: not among {len(words)}"
    where = (LEFT + ACROSS * CELL + GAP, y + EMOJI // 2 - 2)
    draw.text(where, label, GREEN if cue in words else INK, FONT, anchor="lm")


def main(plants: Path, *records: Path) -> None:
    """Draw one block per pair, with one row per kind of score."""
    *records, target = records
    ways = [[json.loads(line) for line in path.read_text().splitlines()] for path in records]
    pairs = chosen([json.loads(line) for line in plants.read_text().splitlines()], ways[0])
    row, head = EMOJI + NAME + GAP, LINE + GAP
    block = head + len(ways) * row + GAP
    sheet = Image.new("RGB", (LEFT + ACROSS * CELL + GAP + RIGHT, GAP + len(pairs) * block), "white")
    draw = ImageDraw.Draw(sheet)
    for number, (depict, predict, cue) in enumerate(pairs):
        y = GAP + number * block
        draw.text((GAP, y), f"pictures of {depict}, to be taken for {predict}", INK, FONT)
        for line, (way, title) in enumerate(zip(ways, WAYS, strict=True)):
            words = [record["word"] for record in way if (record["depict"], record["predict"]) == (depict, predict)]
            top = y + head + line * row
            draw.text((GAP, top + EMOJI // 2 - 2), title, FAINT, FONT, anchor="lm")
            draw_words(sheet, draw, top, words, cue)
    sheet.save(target, quality=80, method=6)


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
