"""The painter that needs nothing: it draws every emoji that a description names, as many of each as fit."""

from collections.abc import Sequence
from typing import Any

from PIL import Image

from cliptools.ground.emoji.captions import concepts_in, names_of
from cliptools.ground.emoji.concepts import concepts
from cliptools.ground.emoji.reading import drawn_names, read
from cliptools.ground.emoji.render import render, to_uint8
from cliptools.ground.emoji.samples import label_pictures
from cliptools.ground.emoji.scenes import MOST_EMOJI, scene_of
from cliptools.ground.painters import Painted, Understood
from cliptools.ground.scene_images import SCENE_SIZE


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
