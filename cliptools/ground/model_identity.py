"""A model in headers and records: what later commands need of it, and whether two of them are one."""

from collections.abc import Mapping
from typing import Any

from cliptools.ground.model_names import embedded_names
from cliptools.ground.provenance import canonical

NAMED = ("name", "pretrained", "sha256")
SETTLED = ("architecture", "preprocessing", "sources", "text_from")
"""What a record's model may hold beside these."""
FROM_OPTION = "--preprocess"
"""Start of a preprocessing's source where the command line sets it."""
OTHER_WEIGHTS = "other weights"
UNCHECKED = (
    "records no `architecture` of its model (made by an earlier version?): only the weights are compared, not activation, "
    "grid and preprocessing"
)


def recorded_model(model: Mapping[str, Any]) -> dict[str, Any]:
    """A model as a record carries it: name, pretrained, sha256, and what these three do not settle.

    `architecture` is left out for the embedded models, whose name settles it; `preprocessing` wherever the command line did
    not set it, since loading the model gives it again.
    """
    record = {key: model.get(key) for key in NAMED}
    set_by_option = str((model.get("sources") or {}).get("preprocessing", "")).startswith(FROM_OPTION)
    if model.get("text_from"):
        record["text_from"] = model["text_from"]
    if "architecture" in model and (set_by_option or model.get("name") not in embedded_names()):
        record["architecture"] = model["architecture"]
    if set_by_option:
        record["preprocessing"] = model["preprocessing"]
        record["sources"] = {"preprocessing": model["sources"]["preprocessing"]}
    return record


def model_key(model: Mapping[str, Any]) -> tuple[Any, Any]:
    """Weights and architecture: equal for one model under two names."""
    return model.get("sha256"), model.get("architecture")


def model_difference(here: Mapping[str, Any], there: Mapping[str, Any]) -> str | None:
    """What makes two models differ, in a few words; None where they are one as far as both say.

    `architecture` is compared where both have it: bundles and records of earlier versions have none.
    """
    if here.get("sha256") != there.get("sha256"):
        return OTHER_WEIGHTS
    if None in (here.get("architecture"), there.get("architecture")) or here["architecture"] == there["architecture"]:
        return None
    return f"the same weights, another architecture ({recorded_differences(here, there) or 'norms, heads or pooling'})"


def reason_of(difference: str) -> str:
    """A difference at the end of a message about another model; empty for other weights, which the message means anyway."""
    return "" if difference == OTHER_WEIGHTS else f": {difference}"


def recorded_differences(here: Mapping[str, Any], there: Mapping[str, Any]) -> str:
    """The recorded parts in which two architectures differ, as `grid 8 x 8 instead of 7 x 7`; empty if there are none."""
    parts = []
    for key in ("activation", "grid"):
        one, other = here.get(key), there.get(key)
        if None not in (one, other) and canonical(one) != canonical(other):
            parts.append(f"{key} {_shown(one)} instead of {_shown(other)}")
    one, other = (model.get("preprocessing") or {} for model in (here, there))
    if one and other:
        keys = [key for key in sorted(one.keys() | other.keys()) if canonical(one.get(key)) != canonical(other.get(key))]
        parts += [f"preprocessing {key} {_shown(one.get(key))} instead of {_shown(other.get(key))}" for key in keys]
    return ", ".join(parts)


def _shown(value: Any) -> str:
    if isinstance(value, Mapping):
        return " and ".join(f"{part} of the {tower} tower" for tower, part in value.items())
    return " x ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
