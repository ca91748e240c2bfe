"""Headers of bundles, and the identity of models in headers and records.

A `Header` holds the kind of a bundle, its model, images and settings, and the history of the commands that produced it.
`recorded_model` returns a model as records identify it, and `model_difference` compares two models.
"""

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import msgspec

import cliptools
from cliptools.embedded_models import embedded_names, embedded_preprocessing
from cliptools.errors import StreamError
from cliptools.io.bundle_schema import HEADER, TYPES, required_fields
from cliptools.io.jsonl import parse

FORMAT = 1
KEY = "cliptools"  # the only key in a bundle's __metadata__: safetensors does not keep the order of several


class HeaderFields(dict[str, Any]):
    """Fields of a header; reading a missing one raises StreamError."""

    def __init__(self, fields: Mapping[str, Any], name: str) -> None:
        super().__init__(fields)
        self._name = name

    def __missing__(self, key: str) -> Any:
        raise StreamError(f"{self._name}: the bundle's header has no `{key}`")


def canonical(value: Any) -> str:
    """Return a value as JSON in a unique spelling (sorted keys, no spaces), so that equal runs give equal bytes."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def digest(*parts: str | bytes) -> str:
    """Return the sha256 of the parts, each preceded by its length, so that different lists give different digests."""
    sha = hashlib.sha256()
    for part in parts:
        data = part.encode("utf-8") if isinstance(part, str) else part
        sha.update(len(data).to_bytes(8, "little"))
        sha.update(data)
    return sha.hexdigest()


@dataclass(frozen=True)
class Header:
    """The metadata of a bundle."""

    kind: str
    """`effects` or `neurons` (effects with words)."""
    model: dict[str, Any]
    """name, pretrained, sha256 of the weights, precision, image preprocessing; activation, grid, the sources of these three,
    and architecture, the sha256 of everything else that decides the outputs."""
    images: dict[str, Any]
    """count, digest of the list, skipped."""
    settings: dict[str, Any]
    """Settings that the numbers depend on: effect, layers, scale, quantile, seed, text normalisation…"""
    history: list[dict[str, Any]] = field(default_factory=list)
    """One entry per command: command, version, arguments that change the result."""
    format: int = FORMAT

    @property
    def scaled(self) -> bool:
        """True if effects are multiplied by 100 / ||M(I)|| of their image; also for headers without `scale`."""
        return bool(self.settings.get("scale", "unit") == "unit")

    def after(self, command: str, arguments: dict[str, Any]) -> "Header":
        """Return the header with one more step in its history."""
        step = {"command": command, "version": cliptools.__version__, "arguments": arguments}
        return replace(self, history=[*self.history, step])

    def to_json(self) -> str:
        """Return the header as JSON in its unique spelling."""
        return canonical(self.__dict__)

    @classmethod
    def from_json(cls, text: str, name: str) -> "Header":
        """Parse a header.

        Raises:
            StreamError: it is not JSON, fields are missing or invalid, or its format is unknown.
        """
        try:
            fields = parse(text)
        except ValueError as error:
            raise StreamError(f"{name}: the bundle's header is damaged ({error})") from None
        if not isinstance(fields, dict) or fields.keys() != cls.__dataclass_fields__.keys():
            raise StreamError(
                f"{name}: the bundle's header is damaged (expected an object of {', '.join(cls.__dataclass_fields__)})"
            )
        if type(fields.get("format")) is not int or fields["format"] != FORMAT:
            raise StreamError(f"{name}: bundle format {str(fields.get('format'))[:20]}, this version reads format {FORMAT}")
        try:
            header = msgspec.convert(fields, cls)
        except msgspec.ValidationError as error:
            raise StreamError(f"{name}: the bundle's header has fields of the wrong type ({error})") from None
        parts: dict[str, Any] = {key: HeaderFields(fields[key], name) for key in ("model", "images", "settings")}
        for key, part in parts.items():
            _check_fields(part, key, name)
        _check_fields(parts["settings"].get("words", {}), "words", name)
        for step in header.history:
            _check_fields(step, "history", name)
        for key in required_fields("model", "always"):
            if not header.model.get(key):
                raise StreamError(f"{name}: the bundle's header has no `{key}` of its model")
        return replace(header, **parts)


def _check_fields(fields: Mapping[str, Any], part: str, name: str) -> None:
    """Check the types and values of one part of a header.

    Raises:
        StreamError: a field has another type or value than allowed.
    """
    for known in HEADER[part]:
        if known.name not in fields or (known.null and fields[known.name] is None):
            continue
        value, place = fields[known.name], f"{name}: the bundle's header has {part} `{known.name}`"
        try:
            msgspec.convert(value, TYPES[known.type])
        except msgspec.ValidationError:
            raise StreamError(f"{place} {str(value)[:40]!r}, expected {known.type}") from None
        if known.allowed and value not in known.allowed:
            raise StreamError(f"{place} {value[:40]!r}, expected one of {', '.join(known.allowed)}")


SETTINGS = ("mean", "std", "interpolation", "resize_mode")
"""Settings of a preprocessing that can be changed; the size is the model's."""
NAMED = ("name", "pretrained", "sha256")
SETTLED = ("architecture", "preprocessing", "sources", "text_from", "parent")
"""Further fields that a record's model may have."""
FROM_OPTION = "--preprocess"
"""First word of the source of a preprocessing that the command line sets."""
DESCRIBED = ("activation", "grid", "preprocessing")
"""Fields of an architecture that headers have beside its digest; most records lack them."""
OTHER_WEIGHTS = "other weights"
UNCHECKED = (
    "has no `architecture` of its model (written by an earlier version?): only the weights are compared, not activation, "
    "grid and preprocessing"
)


def recorded_model(model: Mapping[str, Any]) -> dict[str, Any]:
    """Return a model as records identify it: name, pretrained, sha256, and the fields that these three do not determine.

    `architecture` is left out for embedded models, whose name determines it. `preprocessing` is left out unless the command line
    set it, because loading the model gives the same preprocessing again.
    """
    record = {key: model.get(key) for key in NAMED}
    set_by_option = str((model.get("sources") or {}).get("preprocessing", "")).startswith(FROM_OPTION)
    record |= {key: model[key] for key in ("text_from", "parent") if model.get(key)}
    if "architecture" in model and (set_by_option or model.get("name") not in embedded_names()):
        record["architecture"] = model["architecture"]
    if set_by_option:
        record["preprocessing"] = model["preprocessing"]
        record["sources"] = {"preprocessing": model["sources"]["preprocessing"]}
    return record


def model_key(model: Mapping[str, Any]) -> tuple[Any, Any]:
    """Return weights and architecture, which are equal for one model under two names."""
    return model.get("sha256"), model.get("architecture")


def model_difference(model: Mapping[str, Any], other: Mapping[str, Any]) -> str | None:
    """Return the difference between two models in a few words; None if they are equal as far as both are described.

    `architecture` is compared if both have it; else the preprocessing is compared, if it is known. Bundles and records of earlier
    versions lack `architecture`, and records of embedded models lack it unless the command line set their preprocessing.
    """
    if model.get("sha256") != other.get("sha256"):
        return OTHER_WEIGHTS
    if None in (model.get("architecture"), other.get("architecture")):
        differences = ", ".join(_preprocessing_differences(model, other, SETTINGS))
        return f"the same weights, another preprocessing ({differences})" if differences else None
    if model["architecture"] == other["architecture"]:
        return None
    fully_described = all(part in side for side in (model, other) for part in DESCRIBED)
    parts = "norms, heads or pooling" if fully_described else "activation, grid, preprocessing, norms, heads or pooling"
    return f"the same weights, another architecture ({recorded_differences(model, other) or parts})"


def reason_of(difference: str) -> str:
    """Return a difference as the end of a message about another model; empty for other weights, which the message implies."""
    return "" if difference == OTHER_WEIGHTS else f": {difference}"


def recorded_differences(model: Mapping[str, Any], other: Mapping[str, Any]) -> str:
    """Return the recorded parts in which two architectures differ, as `grid 8 x 8 instead of 7 x 7`; empty if there are none."""
    parts = []
    for key in ("activation", "grid"):
        value, other_value = model.get(key), other.get(key)
        if None not in (value, other_value) and canonical(value) != canonical(other_value):
            parts.append(f"{key} {_value_text(value)} instead of {_value_text(other_value)}")
    parts += [f"preprocessing {difference}" for difference in _preprocessing_differences(model, other)]
    return ", ".join(parts)


def _preprocessing_differences(model: Mapping[str, Any], other: Mapping[str, Any], keys: Iterable[str] = ()) -> list[str]:
    """Return the differences of two preprocessings, as `mean 0.5 instead of 0.4`; empty if one of them is unknown.

    Args:
        keys: Settings to compare if both have them [default: all].
    """
    settings, other_settings = _preprocessing(model), _preprocessing(other)
    if not settings or not other_settings:
        return []
    keys = (
        [key for key in keys if key in settings and key in other_settings]
        if keys
        else sorted(settings.keys() | other_settings.keys())
    )
    differing = [key for key in keys if canonical(settings.get(key)) != canonical(other_settings.get(key))]
    return [f"{key} {_value_text(settings.get(key))} instead of {_value_text(other_settings.get(key))}" for key in differing]


def _preprocessing(model: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the recorded preprocessing, else that of the embedded model of this name; empty if it is unknown."""
    recorded = model.get("preprocessing")
    if isinstance(recorded, Mapping):
        return recorded
    name = model.get("name")
    return embedded_preprocessing(name) if isinstance(name, str) and name in embedded_names() else {}


def _value_text(value: Any) -> str:
    """Return a recorded value as messages show it: `7 x 7`, `GELU of the image tower`."""
    if isinstance(value, Mapping):
        return " and ".join(f"{part} of the {tower} tower" for tower, part in value.items())
    return " x ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
