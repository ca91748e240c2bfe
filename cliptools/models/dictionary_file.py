"""Files of sparse autoencoders and transcoders: their tensors and their configuration (dictionary_settings.py has the settings).

Three layouts are read, all with W_enc [d, n], b_enc [n], W_dec [n, d] and b_dec [d]:

    ViT-Prisma, SAELens    a weights file with config.json or cfg.json beside it; or the configuration within a file of torch.save
    saev                   a line of JSON, then a file of torch.save
    plain                  safetensors, with settings in its metadata (`config`), in NAME.json or config.json, or in options

`open_dictionary` takes FILE or FILE,key=value,...: options replace settings of the file. towers/dictionary.py computes with them.
"""

import io
from collections.abc import Mapping
from dataclasses import dataclass
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
from cliptools.models.dictionary_settings import OPTIONS, DictionarySettings, settings_of, with_options

FOLDER_NAMES = (
    "sae_weights.safetensors", "weights.safetensors", "model.safetensors", "sae.safetensors", "weights.pt", "sae.pt", "model.pt",
)  # fmt: skip
CONFIGS = ("config.json", "cfg.json")
CONFIG_CLASSES = ("vit_prisma.sae.config.VisionModelSAERunnerConfig",)
"""Classes of configurations in files of torch.save, of which only the attributes are read."""


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
    settings = with_options(settings_of(config, tensors, title), options)
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
    settings = dict(within) if isinstance(within, Mapping) else dict(getattr(within, "attributes", {}))
    return unpack(value, path).tensors, _config_beside(path) or settings


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
