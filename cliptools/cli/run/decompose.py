"""clip-decompose: runs orthogonal matching pursuit on a bundle's directions, or TextSpan on its heads, and adds the texts.

The pursuit is in analysis/pursuit.py, TextSpan in analysis/textspan.py. The texts of finished units are kept in a file beside the
output, from which --resume continues. When the texts are in the cache, pursuit needs no model, and none is loaded.
"""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from cliptools.analysis.pursuit import Center, Normalize, Pursuit, join, pursue, pursuits, text_space
from cliptools.analysis.textspan import head_directions, text_spans
from cliptools.cli.app import Output, choose_format, history_arguments
from cliptools.cli.run.bundle_output import emit, read_neurons
from cliptools.console import count_of, note, summarise
from cliptools.embedded_models import EMBEDDED
from cliptools.errors import StreamError, UsageError
from cliptools.io.bundle import Bundle, json_tensor
from cliptools.io.cache import KeptParts, is_kept, kept_parts
from cliptools.models.load import RecordedModel
from cliptools.models.text_encoder import check_template_options, encode_named, recorded_templates
from cliptools.text.vocabularies import Pool, load_pool

TOOL = "clip-decompose"
LONG = 2e9  # units x texts x steps that take minutes on a CPU


@dataclass(frozen=True, kw_only=True)
class DecomposeOptions(Output):
    """Parameters of clip-decompose."""

    bundle: Path | None
    method: str
    m: int
    pool: str | None
    templates: tuple[str, ...]
    center: Center
    normalize: Normalize
    prefix: str | None
    model: str | None
    resume: bool
    no_cache: bool
    device: str


def run(options: DecomposeOptions) -> None:
    """Write the bundle with its words.

    Raises:
        UsageError: The options do not go together.
        StreamError: The input is not a bundle that the method can decompose.
        CliptoolsError: The vocabulary or the model is not available, or --resume does not fit the earlier run.
    """
    prefixes = parse_prefixes(options.prefix, options.m)
    output_format = choose_format(options.output_format, options.output, "safetensors")
    if options.resume and not is_kept(options.output):
        raise UsageError("--resume needs -o FILE: the run continues from FILE.part")
    effects = read_neurons(options.bundle, device=options.device)
    if options.method == "textspan" and "moment" not in effects:
        units = effects.header.settings.get("units", "neurons")
        raise StreamError(
            f"--method textspan needs second moments of heads (clip-effects --units heads); these units are {units}"
        )
    with kept_parts(options.output, options.resume) as parts:
        pool, pursuit = decompose(effects, options, parts)
        settings: dict[str, Any] = {"method": options.method, "center": options.center, "normalize": options.normalize}
        settings |= {"m": options.m, "pool": pool.name, "digest": pool.digest, "templates": recorded_templates(options.templates)}
        settings |= {"prefix": list(prefixes)} if prefixes else {}
        step = history_arguments(options, pool=pool.name)
        step.pop("model", None)  # only a check
        residual = f"{float(pursuit.residual.median()):.2f}" if len(pursuit.residual) else "0"
        summarise(
            f"{TOOL}: {count_of(effects.units, 'unit')} in at most {count_of(options.m, 'text')} of {pool.name} "
            f"({len(pool.texts)}), median residual {residual}"
        )
        emit(with_words(effects, pursuit, pool, settings, step), output_format, options.output)


def decompose(effects: Bundle, options: DecomposeOptions, parts: KeptParts | None = None) -> tuple[Pool, Pursuit]:
    """Return the vocabulary of --pool, and the texts that describe the bundle's directions.

    Args:
        parts: The file that keeps the texts of finished units, also those of an earlier run.

    Raises:
        CliptoolsError: There is no such vocabulary, or the model differs from the bundle's in name or width.
    """
    recorded_model, direction = effects.header.model, effects["direction"]
    pool = load_pool(options.pool or ("emoji" if recorded_model["name"] in EMBEDDED else "words30k"))
    check_template_options(options.templates)
    model = RecordedModel(recorded_model, options.device, name=options.model)
    texts = encode_named(model, pool, options.templates, use_cache=not options.no_cache)
    if texts.shape[1] != direction.shape[1]:
        raise StreamError(f"the bundle's directions have width {direction.shape[1]}, the model's texts have {texts.shape[1]}")
    if len(direction) * len(pool.texts) * options.m >= LONG:
        note(
            f"{TOOL}: {count_of(len(direction), 'unit')}, {count_of(len(pool.texts), 'text')}, at most {options.m} of "
            f"them a unit: this takes a while"
        )
    device = "cuda" if model.device.type == "cuda" else "cpu"  # other devices lack float64
    atoms = text_space(texts.to(device), options.center, options.normalize)
    if options.method == "textspan":
        return pool, _text_spans(effects, model, atoms, options.m)
    targets = torch.from_numpy(direction).to(device)
    if parts is None:
        return pool, pursue(targets, atoms, options.m)
    settings: dict[str, Any] = {"center": options.center, "normalize": options.normalize, "m": options.m}
    settings |= {"bundle": effects.digest, "pool": pool.digest, "templates": recorded_templates(options.templates)}
    return pool, _resumed_pursuit(targets, atoms, parts, settings)


def _resumed_pursuit(
    targets: Float[Tensor, "unit d"], atoms: Float[Tensor, "text d"], parts: KeptParts, settings: dict[str, Any]
) -> Pursuit:
    """Return the pursuit, continued after the units that an earlier run has kept.

    Args:
        settings: All settings on which the result depends; those of the earlier run must be equal.
    """
    finished_parts = [Pursuit(*(torch.from_numpy(part[name]) for name in Pursuit._fields)) for part in parts.earlier(settings)]
    done = sum(len(part.word) for part in finished_parts)
    if done:
        note(f"{TOOL}: {done} of {count_of(len(targets), 'unit')} are kept from an earlier run")
    if done < len(targets) or not finished_parts:
        for part in pursuits(targets, atoms, settings["m"], done=done):
            finished_parts.append(Pursuit(*(column.cpu() for column in part)))
            parts.add(**{name: column.numpy() for name, column in finished_parts[-1]._asdict().items()})
    return join(finished_parts)


def _text_spans(effects: Bundle, model: RecordedModel, atoms: Float[Tensor, "text d"], m: int) -> Pursuit:
    """Return TextSpan's texts, with shares of the variance instead of a pursuit's coefficients."""
    # Inside, because it imports open_clip, which a pursuit with cached texts does not need.
    from cliptools.effects.select import factored_effect

    settings = effects.header.settings
    effect = factored_effect(model.loaded.clip, settings["effect"], settings["units"])
    D = head_directions(effect, torch.from_numpy(effects["unit"]))
    return text_spans(torch.from_numpy(effects["moment"]).to(atoms.device), D.to(atoms.device), atoms, m)


def parse_prefixes(text: str | None, m: int) -> tuple[int, ...]:
    """Parse --prefix: `4,8,16` gives (4, 8, 16).

    Raises:
        UsageError: The text is not a list of numbers from 1 to m.
    """
    parts = text.split(",") if text else []
    for part in parts:
        if not part.strip().isdecimal() or not 1 <= int(part) <= m:
            raise UsageError(f"--prefix {text}: expected numbers from 1 to {m} (--m), found {part.strip()!r}")
    return tuple(int(part) for part in parts)


def with_words(effects: Bundle, pursuit: Pursuit, pool: Pool, settings: dict[str, Any], step: dict[str, Any]) -> Bundle:
    """Return the bundle with words, which replace those it had before.

    Args:
        settings: The header's `words` settings.
        step: Arguments for the header's history.
    """
    word = pursuit.word.cpu().numpy()  # (unit, m): indices into the vocabulary, -1 after the last text
    used_words = np.unique(word[word >= 0])
    word_tensors: dict[str, np.ndarray] = {
        "word": np.where(word >= 0, np.searchsorted(used_words, word), -1).astype(np.int32),
        "coefficient": pursuit.coefficient.cpu().numpy(),
        "residual": pursuit.residual.cpu().numpy(),
        "words": json_tensor({"texts": [pool.texts[j] for j in used_words], "pool": pool.name, "digest": pool.digest}),
    }
    if prefixes := settings.get("prefix"):
        word_tensors["prefix_residual"] = pursuit.path[:, [k - 1 for k in prefixes]].cpu().numpy()  # (unit, m) -> (unit, prefix)
    header = effects.header.after(TOOL, step)
    header = replace(header, kind="neurons", settings=header.settings | {"words": settings})
    other_tensors = {key: value for key, value in effects.tensors.items() if key != "prefix_residual"}
    return replace(effects, tensors=other_tensors).with_tensors(header, **word_tensors)
