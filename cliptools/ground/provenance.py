"""The header every bundle carries: what it is, of which model and images, and the chain of commands that made it."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import cliptools
from cliptools.ground.errors import StreamError
from cliptools.ground.strict_json import parse

FORMAT = 1
KEY = "cliptools"  # the one key of a bundle's __metadata__: safetensors keeps no order among several
TEXT, COUNT, NUMBER, COUNTS = "a text", "a number from 0 on", "a number", "a list of numbers from 0 on"
TEXTS = "a text or a list of texts"
FIELDS: dict[str, dict[str, str]] = {
    "model": {
        "name": TEXT, "sha256": TEXT, "pretrained": TEXT, "precision": TEXT, "preprocessing": "an object",
        "text_from": TEXT, "activation": "an object", "grid": COUNTS, "architecture": TEXT, "sources": "an object",
    },
    "images": {"count": COUNT, "skipped": COUNT, "listed": COUNT, "digest": TEXT},
    "settings": {
        "effect": TEXT, "units": TEXT, "scale": TEXT, "layers": COUNTS, "quantile": NUMBER, "top_images": COUNT,
        "top_share": NUMBER, "keep": NUMBER,
        "measured": COUNT, "words": "an object", "kept": COUNT, "shards": COUNT, "have": COUNTS, "components": COUNT,
        "seed": COUNT, "tensors": TEXT,
    },
    "words": {"method": TEXT, "pool": TEXT, "digest": TEXT, "m": COUNT, "prefix": COUNTS, "templates": TEXTS},
    "history": {"command": TEXT, "version": TEXT, "arguments": "an object"},
}  # fmt: skip
"""What a field must be where it stands; `pretrained` may be null."""
KNOWN = {
    "precision": ("fp32", "bf16", "fp16"),
    "effect": ("second", "first", "indirect", "pooled"),
    "units": ("neurons", "pairs", "heads"),
    "scale": ("unit", "raw"),
}
"""All that a field may say."""


class Said(dict[str, Any]):
    """Fields of a header, of which one that is not there is the stream's fault."""

    def __init__(self, fields: Mapping[str, Any], name: str) -> None:
        super().__init__(fields)
        self._name = name

    def __missing__(self, key: str) -> Any:
        raise StreamError(f"{self._name}: the bundle's header does not say `{key}`")


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
    """name, pretrained, sha256 of the weights, precision, image preprocessing; activation, grid, the sources of these three,
    and architecture, the sha256 of all that computes beside weights."""
    images: dict[str, Any]
    """count, digest of the list, skipped."""
    settings: dict[str, Any]
    """What the numbers depend on: effect, layers, scale, quantile, seed, text normalisation…"""
    history: list[dict[str, Any]] = field(default_factory=list)
    """One entry a command: command, version, arguments that change the result."""
    format: int = FORMAT

    @property
    def scaled(self) -> bool:
        """Whether the effects were multiplied by 100 / ||M(I)|| of their image; those of a header without `scale` were."""
        return bool(self.settings.get("scale", "unit") == "unit")

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
            StreamError: not JSON, fields missing or not what they should be, or a later format.
        """
        try:
            fields = parse(text)
        except ValueError as error:
            raise StreamError(f"{name}: the bundle's header is damaged ({error})") from None
        if not isinstance(fields, dict) or not fields.keys() <= cls.__dataclass_fields__.keys():
            raise StreamError(
                f"{name}: the bundle's header is damaged (it is no object of {', '.join(cls.__dataclass_fields__)})"
            )
        if type(fields.get("format")) is not int or fields["format"] != FORMAT:
            raise StreamError(f"{name}: bundle format {str(fields.get('format'))[:20]}, this version reads format {FORMAT}")
        parts: dict[str, Any] = {key: fields.get(key) for key in ("model", "images", "settings")}
        history = fields.get("history")
        if (
            not isinstance(fields.get("kind"), str)
            or not isinstance(history, list)
            or not all(isinstance(part, dict) for part in (*parts.values(), *history))
        ):
            raise StreamError(f"{name}: the bundle's header has fields of the wrong type")
        for key, part in parts.items():
            _check_fields(part, key, name)
        _check_fields(parts["settings"].get("words", {}), "words", name)
        for step in history:
            _check_fields(step, "history", name)
        for key in ("name", "sha256"):
            if not parts["model"].get(key):
                raise StreamError(f"{name}: the bundle's header does not say its model's `{key}`")
        said = {key: Said(part, name) for key, part in parts.items()}
        return cls(fields["kind"], said["model"], said["images"], said["settings"], history)


def _check_fields(said: Mapping[str, Any], part: str, name: str) -> None:
    """
    Raises:
        StreamError: a field is not what it must be.
    """
    for key, expected in FIELDS[part].items():
        if key not in said or (key == "pretrained" and said[key] is None):
            continue
        value = said[key]
        if not _is(value, expected):
            raise StreamError(f"{name}: the bundle's header has {part} `{key}` {str(value)[:40]!r}, expected {expected}")
        if key in KNOWN and value not in KNOWN[key]:
            raise StreamError(f"{name}: the bundle's header has `{key}` {value[:40]!r}, expected one of {', '.join(KNOWN[key])}")


def _is(value: Any, expected: str) -> bool:
    if expected == TEXTS and isinstance(value, str):
        return True
    if expected in (COUNTS, TEXTS):
        inner = COUNT if expected == COUNTS else TEXT
        return isinstance(value, list) and all(_is(each, inner) for each in value)
    if expected == COUNT:
        return type(value) is int and 0 <= value < 1 << 63
    kind = {TEXT: str, NUMBER: int | float, "an object": dict}[expected]
    return isinstance(value, kind) and not isinstance(value, bool)
