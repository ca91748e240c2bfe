"""Files of sparse autoencoders and transcoders: their tensors, and settings that their configuration or options give.

Three layouts are read, all with W_enc [d, n], b_enc [n], W_dec [n, d] and b_dec [d]:

    ViT-Prisma, SAELens    a weights file with config.json or cfg.json beside it; or the configuration within a file of torch.save
    saev                   a line of JSON, then a file of torch.save
    plain                  safetensors, with settings in its metadata (`config`), in NAME.json or config.json, or in options

`open_dictionary` takes FILE or FILE,key=value,...: options replace settings of the file. towers/dictionary.py computes with them.
"""

import contextlib
import io
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import safetensors
import torch
from jaxtyping import Float
from torch import Tensor

from cliptools.console import escape
from cliptools.errors import ModelError, UsageError
from cliptools.io.header import canonical, digest
from cliptools.io.jsonl import parse_foreign
from cliptools.models.checkpoints.checkpoint import read_safetensors
from cliptools.models.checkpoints.file_kinds import MOST_HEADER, file_kind
from cliptools.models.checkpoints.pickles import load_restricted, unpack

FOLDER_NAMES = (
    "sae_weights.safetensors", "weights.safetensors", "model.safetensors", "sae.safetensors", "weights.pt", "sae.pt", "model.pt",
)  # fmt: skip
CONFIGS = ("config.json", "cfg.json")
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
CONFIG_CLASSES = ("vit_prisma.sae.config.VisionModelSAERunnerConfig",)
"""Classes of configurations in files of torch.save, of which only the attributes are read."""


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


@dataclass(frozen=True)
class DictionaryFile:
    """A dictionary as a file holds it."""

    spec: str
    """FILE with options, as it was given."""
    title: str
    """Name of the file, for messages."""
    settings: DictionarySettings
    W_enc: Float[Tensor, "j n"]
    b_enc: Float[Tensor, " n"]
    W_dec: Float[Tensor, "n d"]
    b_dec: Float[Tensor, " j"]
    thresholds: Float[Tensor, " n"] | None
    """Threshold of each latent, or None."""

    @property
    def digest(self) -> str:
        """Return the sha256 of the settings that codes depend on and of all tensors."""
        tensors = [self.W_enc, self.b_enc, self.W_dec, self.b_dec, *([] if self.thresholds is None else [self.thresholds])]
        fields = {key: value for key, value in vars(self.settings).items() if key not in ("model", "sha256")}
        return digest(canonical(fields), *(tensor.double().contiguous().numpy().tobytes() for tensor in tensors))


def open_dictionary(spec: str) -> DictionaryFile:
    """Read a dictionary. No code of the file is run.

    Args:
        spec: FILE or FOLDER, with options: `sae.safetensors,layer=5,activation=topk,k=32`.

    Raises:
        UsageError: an option is unknown, or has no such value.
        ModelError: the file is not a dictionary, or its settings are missing or of an unknown kind.
    """
    place, options = _options(spec)
    path = _weights_path(Path(place))
    title = escape(path.name)
    tensors, config = _content(path)
    settings = _with_options(_settings(config, tensors, title), options)
    return _checked(DictionaryFile(spec, title, settings, *_matrices(tensors, settings, title)))


def _options(spec: str) -> tuple[str, dict[str, str]]:
    """Split FILE,key=value,... into the file and its options; a comma within the file's name is part of it.

    Raises:
        UsageError: there is no file.
    """
    parts, options = spec.split(","), {}
    while len(parts) > 1 and parts[-1].partition("=")[0] in OPTIONS and "=" in parts[-1]:
        key, _, value = parts.pop().partition("=")
        options[key] = value
    if not (place := ",".join(parts)):
        raise UsageError(f"--units sae:{spec}: expected sae:FILE, with options such as sae:FILE,layer=5")
    return place, options


def _weights_path(path: Path) -> Path:
    """Return the weights file of a path, which may be its folder.

    Raises:
        ModelError: there is no file, or a folder has none or several.
    """
    if not path.is_dir():
        return path
    named = [path / name for name in FOLDER_NAMES if (path / name).is_file()]
    files = named[:1] or sorted(file for file in path.iterdir() if file.suffix in (".safetensors", ".pt"))
    if len(files) != 1:
        raise ModelError(
            f"{escape(str(path))}: {len(files)} files that may be a dictionary; expected one, or the name of the file"
        )
    return files[0]


def _content(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return tensors and configuration of a file; the configuration is empty if there is none.

    Raises:
        ModelError: the file cannot be read.
    """
    try:
        content = path.read_bytes() if _starts_with_json(path) else b""
    except OSError as error:
        raise ModelError(f"{escape(str(path))}: {error.strerror or error}") from None
    if content:
        first, _, rest = content.partition(b"\n")
        return unpack(load_restricted(path, io.BytesIO(rest)), path).tensors, _json(first.decode("utf-8", "replace"), path)
    kind = file_kind(path)
    if kind == "safetensors":
        tensors = read_safetensors(path)
        with safetensors.safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
        return tensors, _json(metadata["config"], path) if "config" in metadata else _config_beside(path)
    value = load_restricted(path, None, CONFIG_CLASSES, kind == "torch")
    within = value.get("cfg") if isinstance(value, Mapping) else None
    return unpack(value, path).tensors, _config_beside(path) or dict(getattr(within, "attributes", {}))


def _starts_with_json(path: Path) -> bool:
    """Return whether a file starts with a JSON object, as saev's do; that of safetensors comes after its length."""
    with path.open("rb") as stream:
        head = stream.read(8)
    return head[:1] == b"{" and int.from_bytes(head, "little") > MOST_HEADER


def _config_beside(path: Path) -> dict[str, Any]:
    """Return the configuration in a file beside the weights: NAME.json, config.json or cfg.json; empty if there is none.

    Raises:
        ModelError: it cannot be read.
    """
    for name in (path.with_suffix(".json").name, *CONFIGS):
        file = path.with_name(name)
        if file.is_file():
            try:
                return _json(file.read_text(encoding="utf-8"), file)
            except (OSError, UnicodeDecodeError) as error:
                raise ModelError(f"{escape(str(file))}: cannot be read ({error})") from None
    return {}


def _json(text: str, path: Path) -> dict[str, Any]:
    """Parse a configuration.

    Raises:
        ModelError: it is not a JSON object.
    """
    try:
        value = parse_foreign(text)
    except ValueError:
        value = None
    if not isinstance(value, dict):
        raise ModelError(f"{escape(path.name)}: its configuration is no JSON object")
    return value


def _settings(config: Mapping[str, Any], tensors: Mapping[str, Tensor], title: str) -> DictionarySettings:
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


def _with_options(settings: DictionarySettings, options: Mapping[str, str]) -> DictionarySettings:
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


def _matrices(
    tensors: Mapping[str, Tensor], settings: DictionarySettings, title: str
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor | None]:
    """Return W_enc, b_enc, W_dec, b_dec and thresholds.

    Raises:
        ModelError: one is missing, or their shapes do not fit each other.
    """
    missing = [name for name in ("W_enc", "b_enc", "W_dec", "b_dec") if name not in tensors]
    if missing:
        held = ", ".join(escape(name) for name in list(tensors)[:6])
        raise ModelError(f"{title}: no dictionary: it holds {held}; expected {', '.join(missing)} as well")
    W_enc, b_enc, W_dec, b_dec = (tensors[name] for name in ("W_enc", "b_enc", "W_dec", "b_dec"))
    width, count = W_enc.shape if W_enc.ndim == 2 else (-1, -1)
    fits = b_enc.shape == (count,) and b_dec.shape == (width,) and W_dec.ndim == 2 and len(W_dec) == count > 0
    if not fits or (settings.reads == settings.writes and W_dec.shape[1] != width):
        shapes = ", ".join(f"{name} {list(tensors[name].shape)}" for name in ("W_enc", "b_enc", "W_dec", "b_dec"))
        raise ModelError(f"{title}: shapes {shapes}, expected W_enc [d, n], b_enc [n], W_dec [n, d], b_dec [d]")
    thresholds = next((tensors[name] for name in ("threshold", "activation.threshold") if name in tensors), None)
    if "log_threshold" in tensors:
        thresholds = tensors["log_threshold"].exp()
    if thresholds is not None:
        if thresholds.numel() not in (1, count):
            raise ModelError(f"{title}: {thresholds.numel()} thresholds for {count} latents")
        thresholds = thresholds.flatten().expand(count)
    matrices = [W_enc, b_enc, W_dec, b_dec, *([] if thresholds is None else [thresholds])]
    if not all(tensor.is_floating_point() and bool(torch.isfinite(tensor).all()) for tensor in matrices):
        raise ModelError(f"{title}: tensors with NaN, infinity or whole numbers; expected finite floating-point numbers")
    wide = [tensor.detach() if tensor.dtype == torch.float64 else tensor.detach().float() for tensor in matrices]
    return wide[0], wide[1], wide[2], wide[3], wide[4] if len(wide) > 4 else None


def _checked(file: DictionaryFile) -> DictionaryFile:
    """Return the file, after a check that its settings are complete; TopK without an activation's name is known by its k.

    Raises:
        ModelError: a setting is missing.
    """
    settings = file.settings
    if settings.layer is None:
        raise ModelError(f"{file.title}: no layer in its configuration; add it, as sae:FILE,layer=5")
    if settings.activation is None:
        raise ModelError(f"{file.title}: no activation in its configuration; add it, as sae:FILE,activation=relu")
    if settings.activation == "topk" and settings.k is None:
        raise ModelError(f"{file.title}: TopK without k in its configuration; add it, as sae:FILE,k=32")
    if settings.activation in ("batchtopk", "jumprelu") and settings.threshold is None and file.thresholds is None:
        raise ModelError(f"{file.title}: {settings.activation} without a threshold; add it, as sae:FILE,threshold=0.1")
    if settings.k is not None and settings.k > len(file.b_enc):
        raise ModelError(f"{file.title}: k {settings.k} is more than its {len(file.b_enc)} latents")
    return file
