"""What paints pictures of descriptions.

The painter that needs nothing: it draws every emoji that a description names, as many of each as fit.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from PIL import Image

from cliptools.emoji.captions import concepts_in, drawn_names, names_of, read
from cliptools.emoji.export import label_pictures
from cliptools.emoji.render import SCENE_SIZE, render, to_uint8
from cliptools.emoji.scenes import MOST_EMOJI, scene_of
from cliptools.text.emoji_concepts import concepts


@dataclass(frozen=True)
class Painted:
    """A picture, and what its maker knows is to be seen in it."""

    image: Image.Image | None
    """None where the painter refuses to show it."""
    shown: tuple[str, ...] | None = None
    """Names of the concepts in it, synonyms among them; None where the painter does not know."""
    refusal: str = ""
    """Why there is no picture."""


@dataclass(frozen=True)
class Understood:
    """The part of a text that a painter shows, known before it paints."""

    drawn: tuple[str, ...]
    """Names of what is drawn, as often as it is drawn."""
    words: tuple[str, ...]
    """Those of the words asked about that are drawn."""
    left_out: tuple[str, ...]
    """Words of the text that the picture does not show."""


class Painter(Protocol):
    """A maker of pictures. The same text and seed give the same picture."""

    @property
    def settings(self) -> dict[str, Any]:
        """What of it changes the pictures."""

    def understood(self, text: str, words: Sequence[str]) -> Understood | None:
        """Tell which part of a text and which of its words will be shown; None for a painter that cannot tell."""

    def paint(self, texts: Sequence[str], seeds: Sequence[int]) -> list[Painted]:
        """A picture for each text.

        Raises:
            CliptoolsError: it cannot go on, out of memory above all, with what to lower.
        """


class EmojiPainter:
    """Scenes of the embedded world, whose truth is known."""

    def __init__(self, size: int | None = None) -> None:
        self.size = size or SCENE_SIZE

    @property
    def settings(self) -> dict[str, Any]:
        """See Painter."""
        return {"painter": "emoji", "size": self.size}

    def understood(self, text: str, words: Sequence[str]) -> Understood:
        """See Painter."""
        reading = read(text).cut(MOST_EMOJI)
        shown = set(reading.concepts)
        drawn_words = tuple(word for word in words if (own := set(concepts_in(word))) and own <= shown)
        return Understood(tuple(drawn_names(reading)), drawn_words, reading.unread)

    def paint(self, texts: Sequence[str], seeds: Sequence[int]) -> list[Painted]:
        """See Painter. Of what is drawn, only what is not covered counts as shown."""
        named = [read(text).cut(MOST_EMOJI).concepts for text in texts]
        faults = [_fault(these) for these in named]
        scenes = [scene_of(these, seed) for these, seed, fault in zip(named, seeds, faults, strict=True) if not fault]
        if not scenes:
            return [Painted(None, refusal=fault) for fault in faults]
        canvas = render(scenes, self.size)
        pictures = iter(zip(scenes, to_uint8(canvas.image), label_pictures(canvas.visible), strict=True))
        painted = []
        for fault in faults:
            if fault:
                painted.append(Painted(None, refusal=fault))
                continue
            scene, pixels, labels = next(pictures)  # (y, x, 3), (y, x)
            seen = [sprite.concept for slot, sprite in enumerate(scene.sprites) if (labels == slot + 1).any()]
            names = tuple(name for c in dict.fromkeys(seen) for name in names_of(concepts()[c]))
            painted.append(Painted(Image.fromarray(pixels), names))
        return painted


def _fault(named: Sequence[int]) -> str:
    if not named:
        return "names no emoji"
    if len(named) > MOST_EMOJI:
        return f"names {len(named)} emoji, a scene holds at most {MOST_EMOJI}"
    return ""
