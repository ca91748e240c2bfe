"""Painters, which make pictures from descriptions, and the built-in `EmojiPainter`, which draws the emoji that a text names."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from PIL import Image

from cliptools.emoji.export import label_pictures
from cliptools.emoji.render import SCENE_SIZE, render, to_uint8
from cliptools.emoji.scenes import MOST_EMOJI, scene_of
from cliptools.emoji.words import concepts_in, drawn_names, names_of, parse_text
from cliptools.text.emoji_concepts import concepts


@dataclass(frozen=True)
class Painting:
    """A picture, and the concepts that its painter knows to be in it."""

    image: Image.Image | None
    """None if the painter withholds the picture."""
    concepts: tuple[str, ...] | None = None
    """Names of the concepts in it, including synonyms; None if the painter does not know."""
    refusal: str = ""
    """The reason for a missing picture."""


@dataclass(frozen=True)
class Depiction:
    """The part of a text that a painter will show."""

    drawn: tuple[str, ...]
    """Names of the drawn concepts, once for each drawing."""
    words: tuple[str, ...]
    """The words asked for that are drawn."""
    left_out: tuple[str, ...]
    """Words of the text that the picture does not show."""


class Painter(Protocol):
    """A maker of pictures; the same text and seed give the same picture."""

    @property
    def settings(self) -> dict[str, Any]:
        """The settings that change the pictures."""

    def depiction(self, text: str, words: Sequence[str]) -> Depiction | None:
        """Return the part of a text and of its words that will be shown; None if the painter cannot tell."""

    def paint(self, texts: Sequence[str], seeds: Sequence[int]) -> list[Painting]:
        """Return a picture for each text.

        Raises:
            CliptoolsError: painting fails, mostly for lack of memory; the message says which option to lower.
        """


class EmojiPainter:
    """A Painter of emoji scenes, in which all objects are known."""

    def __init__(self, size: int | None = None) -> None:
        self.size = size or SCENE_SIZE

    @property
    def settings(self) -> dict[str, Any]:
        """Implements Painter.settings."""
        return {"painter": "emoji", "size": self.size}

    def depiction(self, text: str, words: Sequence[str]) -> Depiction:
        """Implements Painter.depiction."""
        reading = parse_text(text).limited_to(MOST_EMOJI)
        drawn_concepts = set(reading.concepts)
        drawn_words = tuple(
            word for word in words if (word_concepts := set(concepts_in(word))) and word_concepts <= drawn_concepts
        )
        return Depiction(tuple(drawn_names(reading)), drawn_words, reading.unread)

    def paint(self, texts: Sequence[str], seeds: Sequence[int]) -> list[Painting]:
        """Implements Painter.paint; only emoji that are not covered completely count as shown."""
        concept_lists = [parse_text(text).limited_to(MOST_EMOJI).concepts for text in texts]
        faults = [_fault(concept_list) for concept_list in concept_lists]
        scenes = [
            scene_of(concept_list, seed)
            for concept_list, seed, fault in zip(concept_lists, seeds, faults, strict=True)
            if not fault
        ]
        if not scenes:
            return [Painting(None, refusal=fault) for fault in faults]
        canvas = render(scenes, self.size)  # image (b, 3, y, x), visible (b, slot, y, x)
        pictures = iter(zip(scenes, to_uint8(canvas.image), label_pictures(canvas.visible), strict=True))
        paintings = []
        for fault in faults:
            if fault:
                paintings.append(Painting(None, refusal=fault))
                continue
            scene, pixels, labels = next(pictures)  # (y, x, 3), (y, x)
            visible = [sprite.concept for slot, sprite in enumerate(scene.sprites) if (labels == slot + 1).any()]
            names = tuple(name for c in dict.fromkeys(visible) for name in names_of(concepts()[c]))
            paintings.append(Painting(Image.fromarray(pixels), names))
        return paintings


def _fault(concept_list: Sequence[int]) -> str:
    if not concept_list:
        return "names no emoji"
    if len(concept_list) > MOST_EMOJI:
        return f"names {len(concept_list)} emoji, a scene holds at most {MOST_EMOJI}"
    return ""
