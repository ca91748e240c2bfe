"""Settings of sparse autoencoders and transcoders, from configurations of all layouts and from options.

A configuration is that of ViT-Prisma or SAELens, of saev, or plain (dictionary_file.py reads it beside or within the weights).
Each names the place in the model, the activation and its number or threshold in its own words; here they become
`DictionarySettings`.
"""

import contextlib
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from cliptools.errors import ModelError, UsageError

OPTIONS = ("layer", "hook", "activation", "k", "threshold", "subtract", "tokens")
ACTIVATIONS = {
    "relu": "relu", "standard": "relu", "topk": "topk", "top_k": "topk", "batchtopk": "batchtopk", "batch_topk": "batchtopk",
    "batch_top_k": "batchtopk", "jumprelu": "jumprelu", "jump_relu": "jumprelu",
}  # fmt: skip
"""Names of activations in configurations, in small letters and with _, by which they are read here."""
SITES = {"hook_resid_post": "residual", "hook_mlp_out": "mlp", "ln2.hook_normalized": "mlp-input", "hook_resid_pre": "before"}
"""Names of TransformerLens for what a dictionary reads or writes; `before` is the residual stream after the layer before."""
SCALINGS = {"none": "none", "expected_average_only_in": "none", "layer_norm": "layer_norm", "constant_norm_rescale": "norm"}
"""Scalings of ViT-Prisma and SAELens; the mean over a data set is already in the weights of a file."""
TOKENS = ("all", "class", "patches")


@dataclass(frozen=True, kw_only=True)
class DictionarySettings:
    """The place in the model that a dictionary reads and writes, and its encoding."""

    layer: int | None = None
    reads: str = "residual"
    """residual: the residual stream after the layer; mlp: what the layer's MLP adds to it; mlp-input: what this MLP reads."""
    writes: str = "residual"
    """residual or mlp."""
    activation: str | None = None
    """relu, topk, batchtopk or jumprelu."""
    k: int | None = None
    threshold: float | None = None
    clipped: bool = True
    """True if the k largest numbers of topk are set to 0 where they are negative."""
    subtract: bool = True
    """True if b_dec is taken from what is read."""
    scaling: str = "none"
    """none; layer_norm: by the mean and deviation of each token; norm: each token to the length sqrt(d)."""
    tokens: str = "all"
    """Tokens that are read: all, the class token or the patches."""
    model: str | None = None
    """Name of the model that it was trained on."""
    sha256: str | None = None
    """Digest of that model's weights."""


def settings_of(config: Mapping[str, Any], tensors: Mapping[str, Tensor], title: str) -> DictionarySettings:
    """Return the settings of a configuration of any layout.

    Raises:
        ModelError: a setting has an unknown value.
    """
    if "commit" in config or "d_vit" in config or "schema" in config:
        return _saev_settings(config, title)
    flat = {**config, **(config["metadata"] if isinstance(config.get("metadata"), dict) else {})}
    if "b_gate" in tensors or "r_mag" in tensors or flat.get("architecture") == "gated":
        raise ModelError(f"{title}: a gated autoencoder; expected ReLU, TopK, BatchTopK or JumpReLU")
    if flat.get("hook_point_head_index", flat.get("hook_head_index")) is not None:
        raise ModelError(f"{title}: a dictionary of one head's outputs; expected one of the residual stream or of an MLP")
    layer, reads = _site(flat, "hook_name", ("hook_point_layer", "layer_subtype"), title)
    transcoder = flat.get("is_transcoder") or "hook_name_out" in flat
    writes = _site(flat, "hook_name_out", ("out_hook_point_layer", "layer_out_subtype"), title)[1] if transcoder else reads
    kwargs = flat["activation_fn_kwargs"] if isinstance(flat.get("activation_fn_kwargs"), dict) else {}
    architecture = flat.get("architecture", "standard")
    names = [flat.get(key) for key in ("activation", "activation_fn_str", "activation_fn")]
    name = architecture if architecture not in ("standard", "transcoder") else next((name for name in names if name), None)
    scaling = str(flat.get("normalize_activations") or "none")
    if scaling not in SCALINGS:
        raise ModelError(f"{title}: normalize_activations {scaling[:40]!r}, expected one of {', '.join(SCALINGS)}")
    tokens = "class" if flat.get("cls_token_only") else "patches" if flat.get("use_patches_only") else flat.get("tokens", "all")
    model = flat["model"] if isinstance(flat.get("model"), dict) else {"name": flat.get("model_name")}
    settings = DictionarySettings(
        layer=layer, reads=reads, writes=writes, subtract=bool(flat.get("apply_b_dec_to_input", True)), scaling=SCALINGS[scaling],
        model=model.get("name"), sha256=model.get("sha256"),
    )  # fmt: skip
    given = {"activation": name, "k": flat.get("k", kwargs.get("k")), "threshold": flat.get("threshold"), "tokens": tokens}
    return _with_values(settings, {key: value for key, value in given.items() if value is not None}, title, ModelError)


def _saev_settings(config: Mapping[str, Any], title: str) -> DictionarySettings:
    """Return the settings of saev, which records neither layer nor model; files before its `schema` subtract b_dec.

    Raises:
        ModelError: a setting has an unknown value.
    """
    inner = config["cfg"] if isinstance(config.get("cfg"), dict) else {}
    activation = inner.get("activation", {"cls": config.get("cls", "Relu"), "params": inner})
    params = activation.get("params", {}) if isinstance(activation, dict) else {}
    given = {"activation": activation.get("cls"), "k": params.get("top_k")} if isinstance(activation, dict) else {}
    settings = DictionarySettings(subtract="schema" not in config, clipped=False)
    return _with_values(settings, {key: value for key, value in given.items() if value is not None}, title, ModelError)


def _site(config: Mapping[str, Any], key: str, pair: tuple[str, str], title: str) -> tuple[int | None, str]:
    """Return layer and site of what is read or written.

    Args:
        key: Key of a name such as blocks.5.hook_resid_post.
        pair: Keys of the layer's number and the rest of the name.

    Raises:
        ModelError: the name is unknown.
    """
    if (name := config.get(key)) is None and config.get(pair[0]) is not None:
        layer = config[pair[0]]
        layer = layer[0] if isinstance(layer, list) and len(layer) == 1 else layer
        name = f"blocks.{layer}.{config.get(pair[1], 'hook_resid_post')}"
    if name is None:
        return config.get("layer") if isinstance(config.get("layer"), int) else None, "residual"
    return _hook(str(name), title, ModelError)


def _hook(name: str, title: str, error: type[ModelError] | type[UsageError]) -> tuple[int, str]:
    """Return layer and site of a name such as blocks.5.hook_resid_post.

    Raises:
        ModelError, UsageError: the name is unknown.
    """
    head, _, rest = name.partition(".")
    number, _, site = rest.partition(".")
    if head != "blocks" or not number.isdecimal() or site not in SITES:
        raise error(f"{title}: hook {name[:60]!r}, expected blocks.LAYER. with {', '.join(SITES)}")
    layer = int(number) - (site == "hook_resid_pre")
    if layer < 0:
        raise error(f"{title}: hook {name[:60]!r} is before the first layer; expected the residual stream after a layer")
    return layer, "residual" if site == "hook_resid_pre" else SITES[site]


def with_options(settings: DictionarySettings, options: Mapping[str, str]) -> DictionarySettings:
    """Return the settings with those that options replace.

    Raises:
        UsageError: an option has no such value.
    """
    values: dict[str, Any] = dict(options)
    if "hook" in values:
        layer, reads = _hook(values.pop("hook"), "--units sae:", UsageError)
        settings = replace(settings, layer=layer, reads=reads, writes="mlp" if reads == "mlp-input" else reads)
    for key in ("layer", "k"):
        if key in values and values[key].isdecimal():
            values[key] = int(values[key])
    if "threshold" in values:
        with contextlib.suppress(ValueError):  # _with_values shows the text
            values["threshold"] = float(values["threshold"])
    if "subtract" in values:
        values["subtract"] = {"yes": True, "no": False}.get(values["subtract"], values["subtract"])
    return _with_values(settings, values, "--units sae:", UsageError)


def _with_values(
    settings: DictionarySettings, values: Mapping[str, Any], title: str, error: type[ModelError] | type[UsageError]
) -> DictionarySettings:
    """Return the settings with these values.

    Raises:
        ModelError, UsageError: a value is not allowed.
    """
    for key, value in values.items():
        allowed, expected = ALLOWED[key]
        if not allowed(value):
            raise error(f"{title}: {key} {str(value)[:40]!r}, expected {expected}")
        change: dict[str, Any] = {key: ACTIVATIONS[_small(value)] if key == "activation" else value}
        settings = replace(settings, **change)
    return settings


def _small(name: Any) -> str:
    """Return a name of an activation in small letters, with _ between its words."""
    return str(name).lower().replace("-", "_")


ALLOWED: dict[str, tuple[Callable[[Any], bool], str]] = {
    "layer": (lambda value: type(value) is int and value >= 0, "a whole number from 0"),
    "k": (lambda value: type(value) is int and value >= 1, "a whole number from 1"),
    "threshold": (lambda value: type(value) in (int, float) and math.isfinite(value), "a number"),
    "subtract": (lambda value: type(value) is bool, "yes or no"),
    "tokens": (lambda value: value in TOKENS, "one of all, class, patches"),
    "activation": (lambda value: _small(value) in ACTIVATIONS, "one of relu, topk, batchtopk, jumprelu"),
}
"""For each setting, the test of a value, and what is expected."""
