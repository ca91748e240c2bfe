"""A model in headers and records: what later commands need of it, and whether two of them are one."""

from collections.abc import Iterable, Mapping
from typing import Any

from cliptools.ground.model_names import embedded_names, embedded_preprocessing
from cliptools.ground.provenance import canonical

SETTINGS = ("mean", "std", "interpolation", "resize_mode")
"""What may be set of a preprocessing; the size is the model's."""
NAMED = ("name", "pretrained", "sha256")
SETTLED = ("architecture", "preprocessing", "sources", "text_from")
"""What a record's model may hold beside these."""
FROM_OPTION = "--preprocess"
"""Start of a preprocessing's source where the command line sets it."""
DESCRIBED = ("activation", "grid", "preprocessing")
"""What a header says of an architecture beside its digest, and most records do not."""
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

    `architecture` is compared where both have it. Bundles and records of earlier versions have none, and records of embedded
    models have none unless the command line set their preprocessing: then the preprocessing is compared where it is known.
    """
    if here.get("sha256") != there.get("sha256"):
        return OTHER_WEIGHTS
    if None in (here.get("architecture"), there.get("architecture")):
        differences = ", ".join(_preprocessing_differences(here, there, SETTINGS))
        return f"the same weights, another preprocessing ({differences})" if differences else None
    if here["architecture"] == there["architecture"]:
        return None
    whole = all(part in model for model in (here, there) for part in DESCRIBED)
    other = "norms, heads or pooling" if whole else "activation, grid, preprocessing, norms, heads or pooling"
    return f"the same weights, another architecture ({recorded_differences(here, there) or other})"


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
    parts += [f"preprocessing {difference}" for difference in _preprocessing_differences(here, there)]
    return ", ".join(parts)


def _preprocessing_differences(here: Mapping[str, Any], there: Mapping[str, Any], keys: Iterable[str] = ()) -> list[str]:
    """The settings of the preprocessing in which two models differ, as `mean 0.5 instead of 0.4`; none where one is not known.

    Args:
        keys: Settings to compare where both have them [default: all that one has].
    """
    one, other = _preprocessing(here), _preprocessing(there)
    if not one or not other:
        return []
    keys = [key for key in keys if key in one and key in other] if keys else sorted(one.keys() | other.keys())
    differing = [key for key in keys if canonical(one.get(key)) != canonical(other.get(key))]
    return [f"{key} {_shown(one.get(key))} instead of {_shown(other.get(key))}" for key in differing]


def _preprocessing(model: Mapping[str, Any]) -> Mapping[str, Any]:
    """The recorded preprocessing, else the one an embedded model's name settles; empty where it is not known."""
    recorded = model.get("preprocessing")
    if isinstance(recorded, Mapping):
        return recorded
    name = model.get("name")
    return embedded_preprocessing(name) if isinstance(name, str) and name in embedded_names() else {}


def _shown(value: Any) -> str:
    if isinstance(value, Mapping):
        return " and ".join(f"{part} of the {tower} tower" for tower, part in value.items())
    return " x ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
