"""Arguments of an edit, checked before any input is read."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from cliptools.analysis.seen import SCORES
from cliptools.arguments import require_number, require_one_of
from cliptools.errors import UsageError
from cliptools.front.edit_means import MeanImages
from cliptools.front.vocabulary import Vocabulary
from cliptools.models.load import LoadedModel, Precision
from cliptools.models.templates import check_template_options

HEAD = {"neurons": 80, "pairs": 400, "heads": 8}
"""Number of units by score without --head."""
HOW = ("null", "zero")


@dataclass(frozen=True, kw_only=True)
class EditRequest:
    """Arguments of `edit`, which describes them."""

    sees: Sequence[str] = ()
    writes: Sequence[str] = ()
    how: str | None = None
    head: int | None = None
    by: str | None = None
    layers: Sequence[int] | None = None
    texts: Vocabulary = None
    templates: Sequence[str] = ()
    precision: Precision = "fp32"
    approximate: bool = False
    mask: bool = False
    """Units are put at their means at every token, by a mask of hooks."""
    means: MeanImages = field(default_factory=MeanImages)
    model: LoadedModel | None = None
    device: str = "auto"
    cache: bool = True
    arguments: Mapping[str, Any] = field(default_factory=dict)
    """Arguments for the history of the file."""

    @property
    def scored(self) -> bool:
        """True if the units of a bundle are chosen by what they see and write."""
        return bool(self.sees or (self.writes and self.head))

    def check(self) -> None:
        """Reject invalid arguments before any input is read.

        Raises:
            UsageError: an argument is invalid, or --sees is given without --writes.
        """
        require_one_of("how", self.how, HOW)
        require_one_of("by", self.by, SCORES)
        require_one_of("precision", self.precision, ("fp32", "bf16", "fp16"))
        require_number("head", self.head, 1)
        for name in ("limit", "sample"):
            require_number(name, getattr(self.means, name), 1)
        for option, texts in (("--sees", self.sees), ("--writes", self.writes)):
            if not all(texts):
                raise UsageError(f"{option}: found an empty text; expected a thing or a class, as in {option} cat")
        if self.sees and not self.writes:
            raise UsageError("--sees (the cue) needs --writes (the class that the units shall no longer write)")
        if self.by is not None and not self.sees:
            raise UsageError("--by needs --sees: it scores units by what they see")
        check_template_options(self.templates)
