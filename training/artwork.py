"""Rebuild the committed sprite sheets and the table of concepts from the npm packages that carry the artwork.

    npm install @lobehub/fluent-emoji-3d emoji-datasource-google emoji-datasource-twitter unicode-emoji-json gemoji \
        emojibase-data
    python -m training.artwork node_modules

This is needed only after a change of the concepts or of the artwork; the result is in cliptools/data/artwork.
"""

import json
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from cliptools.text.emoji_concepts import ARTWORK, COLUMNS, SPRITE, STYLES

CATEGORIES = ("Animals & Nature", "Food & Drink", "Travel & Places", "Activities", "Objects")

# Substrings of Unicode names of emoji that are left out: a person cannot distinguish them at 24 pixels, or they have no clear
# shape.
EXCLUDED_PARTS = (
    "o’clock", "-thirty", "oncoming", "moon face", "quarter moon", "gibbous", "waxing crescent", "waning", "new moon",
    "Japanese post", "love hotel", "convenience", "department", "speaker low", "speaker medium", "muted", "with slash",
    "mailbox", "envelope with", "incoming envelope", "outbox", "inbox", "locked with", "unlocked", "chart increasing with",
    "green book", "blue book", "orange book", "closed book", "page facing", "page with", "notebook", "spiral", "tear-off",
    "euro bank", "yen bank", "pound bank", "airplane departure", "airplane arrival", "small airplane", "2nd place", "3rd place",
    "with arrow", "glass tilted right", "low battery", "camera with flash", "hourglass not", "snowman without", "umbrella on",
    "umbrella with rain", "sun behind", "cloud with", "sunrise over", "cityscape at", "two-hump", "front-facing", "baby chick",
    "Asia-Australia", "showing Americas", "linked", "open file", "card index", "vertical traffic", "clinking glasses",
    "foggy", "night with", "bridge at", "wind face", "map of", "fork and knife with", "half", "field hockey", "lacrosse",
)  # fmt: skip
EXCLUDED = {
    "dog face", "cat face", "tiger face", "horse face", "cow face", "pig face", "mouse face", "rabbit face", "monkey face",
    "guide dog", "service dog", "ewe", "goose", "pig nose", "black bird", "wing", "mango", "softball", "police car light",
    "train", "tram", "metro", "light rail", "trolleybus", "minibus", "railway car", "mountain railway", "suspension railway",
    "high-speed train", "delivery truck", "ferry", "motor boat", "mountain cableway", "house with garden", "derelict house",
    "post office", "bank", "school", "hotel", "milky way", "fog", "cyclone", "tornado", "construction", "motorway",
    "railway track", "admission tickets", "sports medal", "reminder ribbon", "rosette", "wilted flower", "blossom",
    "cherry blossom", "deciduous tree", "leafy green", "herb", "sheaf of rice", "fallen leaf", "leaf fluttering in wind",
    "empty nest", "microbe", "tangerine", "green apple", "flatbread", "stuffed flatbread", "tamale", "burrito", "croissant",
    "cooked rice", "curry rice", "pot of food", "bowl with spoon", "steaming bowl", "shallow pan of food", "green salad",
    "mate", "sake", "tumbler glass", "pouring liquid", "fork and knife", "oden", "fish cake with swirl", "custard",
    "bookmark", "ledger", "books", "rolled-up newspaper", "label", "receipt", "chart decreasing", "memo", "pen", "black nib",
    "file folder", "bookmark tabs", "identification card", "placard", "white cane", "link", "chains", "dvd", "computer disk",
    "videocassette", "film frames", "level slider", "control knobs", "musical note", "loudspeaker", "telephone receiver",
    "mobile phone", "trackball", "keyboard", "video camera", "flat shoe", "woman’s sandal", "woman’s hat", "clutch bag",
    "purse", "briefs", "shorts", "bikini", "woman’s clothes", "hair pick", "military helmet", "hammer and pick",
    "hammer and wrench", "pick", "clamp", "nut and bolt", "drop of blood", "adhesive bandage", "petri dish", "clipboard",
    "round pushpin", "straight ruler", "couch and lamp", "seat", "manual wheelchair", "brick", "wood", "building construction",
    "spade suit", "heart suit", "diamond suit", "club suit", "mahjong red dragon", "flower playing cards", "knot",
    "sewing needle", "Japanese dolls", "carp streamer", "moon viewing ceremony", "pine decoration", "tanabata tree",
    "confetti ball", "sparkles", "high voltage", "droplet", "glowing star", "globe with meridians", "cricket game",
    "cigarette", "coffin", "kaaba", "hamsa", "nazar amulet", "prayer beads", "national park", "wedding", "beach with umbrella",
    "ice", "salt", "oil drum", "elevator", "x-ray", "water wave", "shamrock", "baggage claim", "fish", "whale", "camel",
    "ram", "rat", "boar", "bison", "horse", "ballot box with ballot", "card file box", "pager", "fax machine",
    "long drum", "flute", "cockroach", "cricket", "worm", "playground slide", "hot springs", "stopwatch", "timer clock",
    "sunset", "sunrise", "lotion bottle", "roll of paper", "closed umbrella", "old key", "bubbles", "funeral urn", "canned food",
}  # fmt: skip

RENAMED = {
    "T-Rex": "tyrannosaurus", "man’s shoe": "shoe", "woman’s boot": "boot", "rescue worker’s helmet": "rescue helmet",
    "globe showing Europe-Africa": "globe", "hourglass done": "hourglass", "horizontal traffic light": "traffic light",
    "speaker high volume": "loudspeaker", "magnifying glass tilted left": "magnifying glass", "1st place medal": "gold medal",
    "clinking beer mugs": "beer mugs", "one-piece swimsuit": "swimsuit", "open book": "book",
    "snow-capped mountain": "snowy mountain", "glass of milk": "milk", "bottle with popping cork": "champagne",
    "hot beverage": "coffee", "military medal": "medal", "red paper lantern": "red lantern", "e-mail": "email",
    "musical notes": "music notes", "soft ice cream": "soft serve", "pool 8 ball": "billiard ball",
    "teacup without handle": "teacup", "meat on bone": "roast meat", "cut of meat": "steak",
}  # fmt: skip


def unicode_rows(packages: Path) -> Iterator[tuple[str, str, str]]:
    """Yield category, Unicode name and character of every emoji that is kept."""
    for group in json.loads((packages / "unicode-emoji-json/data-by-group.json").read_text()):
        if group["name"] not in CATEGORIES:
            continue
        for row in group["emojis"]:
            if row["name"] not in EXCLUDED and not any(part in row["name"] for part in EXCLUDED_PARTS):
                yield group["name"], row["name"], row["emoji"]


def sprite_files(packages: Path, emoji: str) -> list[Path] | None:
    """Return one picture per style, or None if a style lacks the emoji."""
    code = "-".join(f"{ord(character):04x}" for character in emoji)
    spellings = dict.fromkeys((code, code.replace("-fe0f", ""), f"{code}-fe0f"))
    patterns = (
        "@lobehub/fluent-emoji-3d/assets/{}.webp",
        "emoji-datasource-google/img/google/64/{}.png",
        "emoji-datasource-twitter/img/twitter/64/{}.png",
    )
    files = [next((p for s in spellings if (p := packages / pattern.format(s)).exists()), None) for pattern in patterns]
    return None if None in files else [p for p in files if p]


def nicknames(packages: Path) -> dict[str, list[str]]:
    """Return other English names by emoji: the short names of emoji-datasource and of gemoji."""
    names: dict[str, list[str]] = {}
    for row in json.loads((packages / "emoji-datasource-google/emoji.json").read_text()):
        emoji = "".join(chr(int(code, 16)) for code in row["unified"].split("-"))
        names.setdefault(emoji.replace("\ufe0f", ""), []).extend(row["short_names"])
    emoji = ""
    for line in (packages / "gemoji/index.js").read_text().splitlines():
        key, _, value = line.strip().partition(": ")
        if key == "emoji":
            emoji = value.strip("',").replace("\ufe0f", "")
        elif key == "names":
            names.setdefault(emoji, []).extend(json.loads(value.rstrip(",").replace("'", '"')))
    return names


def subgroups(packages: Path) -> dict[str, str]:
    """Return Unicode's subgroup of every emoji, such as `animal-bird`, without the variation selector."""
    titles = json.loads((packages / "emojibase-data/meta/groups.json").read_text())["subgroups"]
    rows = json.loads((packages / "emojibase-data/en/data.json").read_text())
    return {row["emoji"].replace("\ufe0f", ""): titles[str(row["subgroup"])] for row in rows if "subgroup" in row}


def readable(name: str) -> str:
    """Return the name of an emoji as captions use it."""
    return RENAMED.get(name, name).replace("’", "'").replace("“", "").replace("”", "").replace("ñ", "n")


def main(packages: Path) -> None:
    """Write concepts.jsonl and one sprite sheet per style."""
    rows = [(c, n, e, f) for c, n, e in unicode_rows(packages) if (f := sprite_files(packages, e))]
    known, subgroup = nicknames(packages), subgroups(packages)
    others = {e: {s.replace("_", " ").replace("-", " ") for s in known.get(e.replace("\ufe0f", ""), [])} for _, _, e, _ in rows}
    names = {readable(n).lower() for _, n, _, _ in rows}
    shared = Counter(s for synonyms in others.values() for s in synonyms)
    ARTWORK.mkdir(parents=True, exist_ok=True)
    sheets = [Image.new("RGBA", (COLUMNS * SPRITE, -(-len(rows) // COLUMNS) * SPRITE)) for _ in STYLES]
    lines: list[dict[str, Any]] = []
    for i, (category, name, emoji, files) in enumerate(rows):
        for sheet, file in zip(sheets, files, strict=True):
            picture = (
                Image.open(file)
                .convert("RGBA")
                .convert("RGBa")
                .resize((SPRITE, SPRITE), Image.Resampling.LANCZOS)
                .convert("RGBA")
            )
            sheet.paste(picture, (i % COLUMNS * SPRITE, i // COLUMNS * SPRITE))
        # A second name is kept only if it names no other concept and has only letters.
        synonyms = sorted(s for s in others[emoji] if s.replace(" ", "").isalpha() and shared[s] == 1 and s.lower() not in names)
        group = {"category": category, "subgroup": subgroup[emoji.replace("\ufe0f", "")]}
        lines.append({"name": readable(name), "synonyms": synonyms, **group, "emoji": emoji})
    for style, sheet in zip(STYLES, sheets, strict=True):
        pixels = np.asarray(sheet).copy()
        pixels[pixels[..., 3] == 0] = 0  # fully transparent pixels must not cost bytes
        Image.fromarray(pixels).save(ARTWORK / f"{style}.webp", lossless=True, method=6, exact=False)
    table = "\n".join(json.dumps(line, ensure_ascii=False) for line in lines) + "\n"
    (ARTWORK / "concepts.jsonl").write_text(table, encoding="utf-8")
    print(f"{len(lines)} concepts, {len(STYLES)} styles -> {ARTWORK}", file=sys.stderr)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
