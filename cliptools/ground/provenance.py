"""The header every bundle carries: what it is, of which model and images, and the chain of commands that made it."""

import hashlib
import json
from dataclasses import dataclass, field, replace
from typing import Any

import cliptools
from cliptools.ground.errors import StreamError

FORMAT = 1
KEY = "cliptools"  # the one key of a bundle's __metadata__: safetensors keeps no order among several


def canonical(value: Any) -> str:
    """JSON with one spelling per value: sorted keys, no spaces, so that equal runs give equal bytes."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def digest(*parts: str | bytes) -> str:
    """sha256 of the parts, each preceded by its length so that no two lists of parts look alike."""
    sha = hashlib.sha256()
    for part in parts:
        data = part.encode("utf-8") if isinstance(part, str) else part
        sha.update(len(data).to_bytes(8, "little"))
        sha.update(data)
    return sha.hexdigest()


@dataclass(frozen=True)
class Header:
    """A bundle's metadata."""

    kind: str
    """`effects` or `neurons` (effects with words)."""
    model: dict[str, Any]
    """name, pretrained, sha256 of the weights, precision, image preprocessing."""
    images: dict[str, Any]
    """count, digest of the list, skipped."""
    settings: dict[str, Any]
    """What the numbers depend on: effect, layers, scale, quantile, seed, text normalisation…"""
    history: list[dict[str, Any]] = field(default_factory=list)
    """One entry a command: command, version, arguments that change the result."""
    format: int = FORMAT

    def after(self, command: str, arguments: dict[str, Any]) -> "Header":
        """The same header with one more step in its history."""
        step = {"command": command, "version": cliptools.__version__, "arguments": arguments}
        return replace(self, history=[*self.history, step])

    def to_json(self) -> str:
        return canonical(self.__dict__)

    @classmethod
    def from_json(cls, text: str, name: str) -> "Header":
        """Parse a header.

        Raises:
            StreamError: not JSON, fields missing, or a later format.
        """
        try:
            fields = json.loads(text)
            header = cls(**fields)
        except (ValueError, TypeError) as error:
            raise StreamError(f"{name}: the bundle's header is damaged ({error})") from None
        if header.format != FORMAT:
            raise StreamError(f"{name}: bundle format {header.format!r}, this version reads format {FORMAT}")
        shapes = (isinstance(header.kind, str), *(isinstance(d, dict) for d in (header.model, header.images, header.settings)))
        if not all(shapes) or not isinstance(header.history, list):
            raise StreamError(f"{name}: the bundle's header has fields of the wrong type")
        return header
