"""Scenes as files: the picture, its caption, the exact masks and a record of what is where."""

import itertools
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from io import BytesIO
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image
from torch import Tensor

from cliptools.console import warn
from cliptools.emoji.captions import Reading, caption, read
from cliptools.emoji.render import render, scene_key, to_uint8
from cliptools.emoji.scenes import MOST_EMOJI, Recipe, Scene, draw_scene, scene_of, single_scene
from cliptools.errors import UsageError
from cliptools.text.emoji_concepts import STYLES, concept_index, concepts

BATCH = 64  # scenes drawn together
SHOWS = 0.5  # how much of a pixel an emoji must make up to be what the pixel shows
CAPTION_STREAM = 2**31  # keeps the draws of captions apart from those of scenes
NEAR = 8  # names offered where a caption names none


class Plan(NamedTuple):
    """A scene to draw, the key of its files and its caption."""

    key: str
    scene: Scene
    caption: str
    """In words: the emoji that are drawn."""
    asked: str | None = None
    """The text that was to be drawn, where it asks for more than that."""


@dataclass(frozen=True)
class Sample:
    """A drawn scene: PNG bytes of the picture and of its labels, and the record."""

    key: str
    caption: str
    image: bytes
    masks: bytes
    record: dict[str, Any]


def drawn_plans(count: int, seed: int, recipe: Recipe) -> Iterator[Plan]:
    """The first `count` scenes of the sequence that `seed` names."""
    for index in range(count):
        scene = draw_scene(seed, index, recipe)
        yield Plan(scene_key(index), scene, _drawn_caption(scene, seed, index))


def single_plans(count: int, seed: int) -> Iterator[Plan]:
    """One emoji a scene, every concept in turn, with keys in a folder for each concept."""
    for index in range(count):
        turn, concept = divmod(index, len(concepts()))
        scene = single_scene(seed, turn, concept)
        yield Plan(f"{slug(concepts()[concept].name)}/{scene_key(index)}", scene, _drawn_caption(scene, seed, index))


def captioned_plans(captions: Sequence[str], copies: int, seed: int) -> Iterator[Plan]:
    """What the captions name, each caption drawn `copies` times. A word that asks for anything else is warned of, and the
    caption of the scene is then its emoji in words.

    Raises:
        UsageError: a caption that names no concept, or more emoji than a scene holds; before anything is drawn.
    """
    readings = [_reading(text) for text in captions]
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
    """The same scenes, all emoji in one style: nothing else about them changes."""
    number = STYLES.index(style)
    for plan in plans:
        sprites = tuple(sprite._replace(style=number) for sprite in plan.scene.sprites)
        yield plan._replace(scene=replace(plan.scene, sprites=sprites))


def samples(plans: Iterable[Plan], size: int) -> Iterator[Sample]:
    """The scenes drawn at `size` pixels a side, some at a time, in order."""
    plans = iter(plans)
    while chunk := list(itertools.islice(plans, BATCH)):
        canvas = render([plan.scene for plan in chunk], size)
        pictures = to_uint8(canvas.image)  # (b, y, x, 3)
        for plan, picture, labels in zip(chunk, pictures, label_pictures(canvas.visible), strict=True):
            yield Sample(plan.key, plan.caption, _png(picture), _png(labels), _record(plan, labels))


def label_pictures(visible: Float[Tensor, "b slot y x"]) -> UInt8[np.ndarray, "b y x"]:
    """What each pixel shows: 1 + the slot of the emoji that makes up at least half of it, or 0 for the ground."""
    most, slot = visible.flip(1).max(1)  # (b, y, x); of two with exactly a half each, the one in front
    label = visible.shape[1] - slot
    return (label * (most >= SHOWS)).cpu().numpy().astype(np.uint8)


def slug(name: str) -> str:
    """A concept's name as a folder: `high-heeled-shoe`."""
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")


def _record(plan: Plan, labels: UInt8[np.ndarray, "y x"]) -> dict[str, Any]:
    """Lists go from back to front, as the labels 1, 2, … do; a box is [left, top, right, bottom) in pixels."""
    everything = concepts()
    sprites = plan.scene.sprites
    return {
        "key": plan.key,
        "caption": plan.caption,
        **({} if plan.asked is None else {"asked": plan.asked}),
        "names": [everything[sprite.concept].name for sprite in sprites],
        "styles": [STYLES[sprite.style] for sprite in sprites],
        "boxes": [_box(labels == slot + 1) for slot in range(len(sprites))],
        "named": [everything[concept].name for concept in dict.fromkeys(plan.scene.named)],
        "hidden": [everything[concept].name for concept in plan.scene.hidden],
        "size": labels.shape[0],
    }


def _box(mask: np.ndarray) -> list[int] | None:
    """Around the pixels that show an emoji; None where others cover it all."""
    if not mask.any():
        return None
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    return [int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1]


def _png(pixels: np.ndarray) -> bytes:
    buffer = BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def _drawn_caption(scene: Scene, seed: int, index: int) -> str:
    return caption(scene.named, np.random.default_rng((seed, index, CAPTION_STREAM)))


def _reading(text: str) -> Reading:
    reading = read(text)
    if not reading.concepts:
        near = _near_names(text)
        hint = f"near names: {', '.join(near)}" if near else "clip-scenes --single draws every one of them"
        raise UsageError(f"--caption {text!r} names none of the {len(concepts())} emoji; {hint}")
    if (count := len(reading.concepts)) > MOST_EMOJI:
        raise UsageError(f"--caption {text!r} names {count} emoji ({reading.phrase}), a scene holds at most {MOST_EMOJI}")
    return reading


def _near_names(text: str) -> list[str]:
    from difflib import get_close_matches

    words = re.findall(r"\w+", text.lower())
    names = sorted(concept_index())
    parts = [name for name in names for word in words if len(word) > 3 and word in name]
    close = [name for word in words if len(word) > 2 for name in get_close_matches(word, names, n=3, cutoff=0.65)]
    return list(dict.fromkeys(close + parts))[:NEAR]
