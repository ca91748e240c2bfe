"""What paints pictures of descriptions."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from PIL import Image


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
