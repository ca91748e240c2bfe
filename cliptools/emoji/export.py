"""Scenes as files: the picture, its caption, the exact masks, and a record of the objects with their boxes."""

import itertools
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from difflib import get_close_matches
from io import BytesIO
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image
from torch import Tensor

from cliptools.console import warn
from cliptools.emoji.attributes import attributes_of, describe
from cliptools.emoji.looks import PAINTS
from cliptools.emoji.render import render, scene_key, to_uint8
from cliptools.emoji.scenes import MOST_EMOJI, Recipe, Scene, draw_scene, scene_of, single_scene
from cliptools.emoji.words import Reading, caption, parse_text
from cliptools.emoji.writing import Writing, draw_writing, shuffled, writable
from cliptools.errors import UsageError
from cliptools.text.emoji_concepts import STYLES, concept_index, concepts, fact_words

BATCH = 64  # scenes drawn together
SHOWS = 0.5  # share of a pixel that an emoji must cover to be the label of the pixel
CAPTION_STREAM = 2**31  # makes the random draws of captions independent of those of scenes
DESCRIPTION_STREAM = 2**31 + 3
WORD_STREAM = 2**31 + 4
BRIGHT = 1.5  # sum of red, green and blue from which letters are on a black plate
OTHER, OWN, SHUFFLED, BLANK = WORDS = ("other", "own", "shuffled", "blank")
"""Words for a scene: the name of something that is not shown, the name of something that is, the letters of the first in
disorder, or a plate of its size without letters."""
NEAR = 8  # number of similar names that a message offers for a caption without a name


class Plan(NamedTuple):
    """A scene to draw, with the key of its files and its caption."""

    key: str
    scene: Scene
    caption: str
    """The drawn emoji in words."""
    request: str | None = None
    """The requested text, if it asks for more than is drawn."""
    truth: Mapping[str, Any] = {}
    """Further fields of the record, such as the group of the scene."""


@dataclass(frozen=True)
class Sample:
    """A drawn scene: PNG bytes of the picture and of its labels, and the record."""

    key: str
    caption: str
    image: bytes
    masks: bytes
    record: dict[str, Any]


def drawn_plans(count: int, seed: int, recipe: Recipe) -> Iterator[Plan]:
    """Yield the first `count` scenes of the sequence with this seed."""
    for index in range(count):
        scene = draw_scene(seed, index, recipe)
        yield Plan(scene_key(index), scene, drawn_caption(scene, seed, index))


def single_plans(count: int, seed: int, recipe: Recipe = Recipe()) -> Iterator[Plan]:
    """Yield scenes of one emoji each, every concept in turn, with keys in a folder per concept."""
    for index in range(count):
        turn, concept = divmod(index, len(concepts()))
        scene = single_scene(seed, turn, concept, recipe=recipe)
        yield Plan(f"{slug(concepts()[concept].name)}/{scene_key(index)}", scene, drawn_caption(scene, seed, index))


def captioned_plans(captions: Sequence[str], copies: int, seed: int) -> Iterator[Plan]:
    """Return scenes of the emoji that the captions name, `copies` of each caption.

    Words that ask for anything else cause a warning, and the caption of the scene then lists only its emoji.

    Raises:
        UsageError: a caption names no concept, or more emoji than fit a scene; raised before anything is drawn.
    """
    readings = [_parse_caption(text) for text in captions]
    for text, reading in zip(captions, readings, strict=True):
        if reading.unread:
            warn(f"--caption {text!r}: drawn as {reading.phrase!r}, without: {', '.join(reading.unread)}")
    return (
        Plan(
            scene_key(number * copies + copy),
            scene_of(reading.concepts, seed, copy),
            reading.phrase if reading.unread else text,
            text if reading.unread else None,
        )
        for number, (text, reading) in enumerate(zip(captions, readings, strict=True))
        for copy in range(copies)
    )


def in_style(plans: Iterable[Plan], style: str) -> Iterator[Plan]:
    """Yield the same scenes with all emoji in one style."""
    number = STYLES.index(style)
    for plan in plans:
        sprites = tuple(sprite._replace(style=number) for sprite in plan.scene.sprites)
        yield plan._replace(scene=replace(plan.scene, sprites=sprites))


def described(plans: Iterable[Plan], seed: int) -> Iterator[Plan]:
    """Yield the same scenes with captions that also name colours, sizes, places, the ground, the style and what is written."""
    for index, plan in enumerate(plans):
        yield plan._replace(caption=describe(plan.scene, np.random.default_rng((seed, index, DESCRIPTION_STREAM))).text)


def with_words(plans: Iterable[Plan], seed: int, word: str) -> Iterator[Plan]:
    """Yield the same scenes with a word on each, which the captions do not name.

    Each of WORDS is in the same place and the same colours on a scene, on a plate. A plate without letters covers as much.
    Words of planted facts, which stand for other things, are not written. An own name that is not one of the rest is left out.
    """
    facts_words = fact_words()
    free = [concept for concept in writable() if concept not in facts_words]
    for index, plan in enumerate(plans):
        rng = np.random.default_rng((seed, index, WORD_STREAM))
        shown = [sprite.concept for sprite in plan.scene.sprites]
        writing: Writing | None = draw_writing(rng, int(rng.choice([concept for concept in free if concept not in shown])))
        assert writing is not None
        writing = writing._replace(plate=writing.plate or PAINTS["black" if sum(writing.colour) > BRIGHT else "white"])
        if word == SHUFFLED:
            writing = writing._replace(letters=shuffled(rng, writing.concept))
        elif word == BLANK:
            writing = writing._replace(letters="")
        elif word == OWN:
            own = next((concept for concept in shown if concept in free), None)
            writing = None if own is None else writing._replace(concept=own)
        yield plan._replace(scene=replace(plan.scene, writing=writing))


def samples(plans: Iterable[Plan], size: int) -> Iterator[Sample]:
    """Yield the scenes in order, drawn in batches at `size` pixels per side."""
    plans = iter(plans)
    while chunk := list(itertools.islice(plans, BATCH)):
        canvas = render([plan.scene for plan in chunk], size)  # image (b, 3, y, x), visible (b, slot, y, x)
        pictures = to_uint8(canvas.image)  # (b, y, x, 3)
        for plan, picture, labels in zip(chunk, pictures, label_pictures(canvas.visible), strict=True):
            yield Sample(plan.key, plan.caption, _png(picture), _png(labels), _record(plan, labels))


def label_pictures(visible: Float[Tensor, "b slot y x"]) -> UInt8[np.ndarray, "b y x"]:
    """Return each pixel's label: 1 + the slot of the emoji that covers at least half of it, or 0 for the background."""
    share, slot = visible.flip(1).max(1)  # (b, y, x); flipped so that the front emoji wins a tie
    label = visible.shape[1] - slot
    return (label * (share >= SHOWS)).cpu().numpy().astype(np.uint8)


def slug(name: str) -> str:
    """Return a concept's name as a folder name: `high-heeled-shoe`."""
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")


def _record(plan: Plan, labels: UInt8[np.ndarray, "y x"]) -> dict[str, Any]:
    """Return the record of a scene; lists go from back to front like labels 1, 2, …, boxes are [left, top, right, bottom)."""
    all_concepts = concepts()
    sprites = plan.scene.sprites
    return {
        "key": plan.key,
        "caption": plan.caption,
        **({} if plan.request is None else {"asked": plan.request}),
        "names": [all_concepts[sprite.concept].name for sprite in sprites],
        "styles": [STYLES[sprite.style] for sprite in sprites],
        "looks": [sprite.look.way for sprite in sprites],
        "boxes": [_box(labels == slot + 1) for slot in range(len(sprites))],
        "named": [all_concepts[concept].name for concept in dict.fromkeys(plan.scene.named)],
        "hidden": [all_concepts[concept].name for concept in plan.scene.hidden],
        "attributes": list(attributes_of(plan.scene)),
        **({} if plan.scene.writing is None or not plan.scene.writing.text else {"written": plan.scene.writing.text}),
        "size": labels.shape[0],
        **plan.truth,
    }


def _box(mask: np.ndarray) -> list[int] | None:
    """Return the bounding box of a mask; None if other emoji cover it completely."""
    box = Image.fromarray(mask).getbbox()
    return None if box is None else list(box)


def _png(pixels: np.ndarray) -> bytes:
    buffer = BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def drawn_caption(scene: Scene, seed: int, index: int) -> str:
    """Return a caption with random words for the named concepts of a scene."""
    return caption(scene.named, np.random.default_rng((seed, index, CAPTION_STREAM)))


def _parse_caption(text: str) -> Reading:
    reading = parse_text(text)
    if not reading.concepts:
        near = _near_names(text)
        hint = f"near names: {', '.join(near)}" if near else "clip-scenes --single draws every one of them"
        raise UsageError(f"--caption {text!r} names none of the {len(concepts())} emoji; {hint}")
    if (count := len(reading.concepts)) > MOST_EMOJI:
        raise UsageError(f"--caption {text!r} names {count} emoji ({reading.phrase}), a scene holds at most {MOST_EMOJI}")
    return reading


def _near_names(text: str) -> list[str]:
    words = re.findall(r"\w+", text.lower())
    names = sorted(concept_index())
    parts = [name for name in names for word in words if len(word) > 3 and word in name]
    close = [name for word in words if len(word) > 2 for name in get_close_matches(word, names, n=3, cutoff=0.65)]
    return list(dict.fromkeys(close + parts))[:NEAR]
