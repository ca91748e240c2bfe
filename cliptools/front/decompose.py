"""Texts for the directions of a bundle's units, by orthogonal matching pursuit, or for heads by TextSpan.

The pursuit is in analysis/pursuit.py, TextSpan in analysis/textspan.py. When the texts are in the cache, pursuit needs no model,
and none is loaded.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from cliptools.analysis.pursuit import Center, Normalize, Pursuit, join, pursue, pursuits, text_space
from cliptools.analysis.seen import Ranked, ReadDirections, first_positive, overlapping_texts, seen_texts
from cliptools.analysis.textspan import head_directions, text_spans
from cliptools.arguments import checked, chosen_templates, require_number, require_one_of
from cliptools.console import count_of, front_call, note, summarise
from cliptools.errors import StreamError, UsageError
from cliptools.front.bundles import UnitBundle, require_neurons, unit_bundle
from cliptools.front.images import Images, Reading
from cliptools.front.models import model_of
from cliptools.front.verify_judged import KeptJudgement, judged_file, judged_units, verified_by
from cliptools.front.vocabulary import Vocabulary, default_vocabulary, vocabulary
from cliptools.io.bundle import Bundle, json_tensor
from cliptools.io.cache import KeptParts
from cliptools.models.load import LoadedModel, RecordedModel
from cliptools.models.templates import check_template_options, recorded_templates
from cliptools.models.text_encoder import encode_named
from cliptools.text.vocabularies import Pool

TOOL = "clip-decompose"
SHOWN_TEXTS = 8  # of largest overlap, and seen
REPLACED = (
    "prefix_residual", "overlap", "overlap_cosine", "seen", "seen_correlation", "agreement", "verified",
    "verified_correlation",
)  # fmt: skip
"""Tensors of earlier words that this run may not have."""
LONG = 2e9  # units x texts x steps that take minutes on a CPU


class ClosestTexts(NamedTuple):
    """Texts of units besides those of the pursuit."""

    overlap: Ranked
    seen: Ranked | None
    """None without read directions."""
    agreement: Float[Tensor, " unit"] | None


@dataclass(frozen=True, kw_only=True)
class _Request:
    """Arguments of `decompose`, which describes them."""

    pool: Pool
    method: str
    m: int
    templates: tuple[str, ...]
    center: Center
    normalize: Normalize
    prefix: tuple[int, ...]
    cache: bool
    parts: KeptParts | None
    verify: Images | KeptJudgement | None
    same_names: bool
    reading: Reading


@checked
def decompose(
    bundle: Bundle,
    texts: Vocabulary = None,
    *,
    method: str = "pursuit",
    m: int = 32,
    templates: Sequence[str] = (),
    center: Center = "pool",
    normalize: Normalize = "texts",
    prefix: Sequence[int] = (),
    model: LoadedModel | str | None = None,
    device: str = "auto",
    cache: bool = True,
    parts: KeptParts | None = None,
    verify: Images | Bundle | None = None,
    same_names: bool = False,
    batch_size: int = 32,
    workers: int | None = None,
    progress: bool = False,
) -> UnitBundle:
    """Write each unit's direction as a signed sum of few texts, and return the bundle with these words, as clip-decompose does.

    Args:
        bundle: Effects of units; words that they have are replaced.
        texts: Vocabulary: emoji, scenes, imagenet, words10k, words30k, the path of a file with one text per line, or the texts
            themselves. None: scenes for the embedded models, else words30k.
        method: pursuit, or textspan for bundles of heads.
        m: Largest number of texts per unit.
        templates: Sentences with {} in place of the text, whose embeddings are averaged; imagenet or emoji for a set of them.
        center: Vector to subtract from the texts: pool (their mean) or none.
        normalize: Scale each text (texts) or each dimension (dimensions) to unit norm.
        prefix: Numbers of texts for which the residuals are stored as well.
        model: The bundle's model, if it is loaded already, or the name that it must have.
        device: auto, cpu, cuda, cuda:1 or mps.
        cache: Read text embeddings from the cache, and write them to it.
        parts: File that keeps the texts of finished units, also those of an interrupted run.
        verify: Images that the bundle was not made from, which rank the words anew; for the embedded models, `scenes` renders
            some. Or a judged bundle of the same effects, or its path, which has what the images of the judgement say.
        same_names: Images of `verify` with the names of the bundle's images are other pictures.
        batch_size: Images per forward pass.
        workers: Threads that decode images. None: the number of cores, at most 8.
        progress: Write progress and messages to standard error; else messages go to the logger `cliptools`.

    Raises:
        UsageError: an argument is invalid.
        StreamError: the bundle has no directions, or the method or the judged bundle does not suit it.
        TextError: the vocabulary is unknown, unreadable or empty, or a template has no {}.
        ModelError: the model is not available, or not the bundle's.
    """
    require_one_of("method", method, ("pursuit", "textspan"))
    require_number("m", m, 1)
    for length in prefix:
        require_number("prefix", length, 1, m)
    if same_names and verify is None:
        raise UsageError("--same-names is about the images of --verify, which is missing")
    with front_call(progress):
        verify = judged_file(verify) or verify
        needs_mean = verify is not None and not isinstance(verify, Bundle)
        effects = require_neurons(bundle, *(("mean",) if needs_mean else ()), device=device)
        if method == "textspan" and "moment" not in effects:
            units = effects.header.settings.get("units", "neurons")
            raise StreamError(
                f"--method textspan needs second moments of heads (clip-effects --units heads); these units are {units}"
            )
        pool = default_vocabulary(effects) if texts is None else vocabulary(texts)
        request = _Request(
            pool=pool, method=method, m=m, templates=chosen_templates(templates), center=center, normalize=normalize,
            prefix=tuple(prefix), cache=cache, parts=parts, verify=_ranking(effects, verify),
            same_names=same_names, reading=Reading(batch_size=batch_size, workers=workers),
        )  # fmt: skip
        check_template_options(request.templates)
        return _decomposed(effects, request, model_of(effects, model, device))


def _ranking(effects: Bundle, verify: Images | Bundle | None) -> Images | KeptJudgement | None:
    """Return the images that rank words, or what a judged bundle has kept of them."""
    return judged_units(effects, verify) if isinstance(verify, Bundle) else verify


def _decomposed(effects: Bundle, request: _Request, model: LoadedModel | RecordedModel) -> UnitBundle:
    """Return the bundle with its words."""
    pool, templates = request.pool, recorded_templates(request.templates)
    texts = encode_named(model, pool, request.templates, use_cache=request.cache)
    pursuit = _pursuit(effects, texts, request, model)
    settings: dict[str, Any] = {"method": request.method, "center": request.center, "normalize": request.normalize}
    settings |= {"m": request.m, "pool": pool.name, "digest": pool.digest, "templates": templates}
    settings |= {"prefix": list(request.prefix)} if request.prefix else {}
    residual = f"{float(pursuit.residual.median()):.2f}" if len(pursuit.residual) else "0"
    summarise(
        f"{TOOL}: {count_of(effects.units, 'unit')} in at most {count_of(request.m, 'text')} of {pool.name} "
        f"({len(pool.texts)}), median residual {residual}"
    )
    step = {key: settings[key] for key in ("method", "m", "pool", "center", "normalize")} | {"templates": list(request.templates)}
    step |= {"prefix": list(request.prefix)} if request.prefix else {}
    bundle = _with_words(effects, pursuit, _closest_texts(effects, texts, pursuit, request), pool, settings, step)
    if request.verify is None:
        return bundle
    return unit_bundle(_verified(bundle, request.verify, texts, request, model))


def _verified(
    bundle: Bundle, images: Images | KeptJudgement, texts: Float[Tensor, "text d"], request: _Request,
    model: LoadedModel | RecordedModel,
) -> Bundle:  # fmt: skip
    """Return the bundle with its words ranked by images, or by what a judged bundle has kept of them.

    Args:
        texts: Unit embeddings of the vocabulary by the units' own model.
    """
    if isinstance(images, KeptJudgement) and images.model is not None:
        judge = RecordedModel(images.model, str(model.device), source="the judged bundle")
        texts = encode_named(judge, request.pool, request.templates, use_cache=request.cache)
    number = {text: n for n, text in enumerate(request.pool.texts)}
    word_texts = texts.cpu().numpy()[[number[text] for text in bundle.text_list("words")["texts"]]]
    if isinstance(images, KeptJudgement):
        return verified_by(bundle, images, word_texts, SHOWN_TEXTS, TOOL)
    # Inside, because it imports open_clip, which a pursuit with cached texts does not need.
    from cliptools.front.verify import verified

    return verified(bundle, images, word_texts, model, SHOWN_TEXTS, request.reading, TOOL, request.same_names)


def _closest_texts(effects: Bundle, texts: Float[Tensor, "text d"], pursuit: Pursuit, request: _Request) -> ClosestTexts:
    """Return the texts that overlap most with what units write, and those that they see."""
    atoms = text_space(texts, request.center, "texts").cpu()
    overlap = overlapping_texts(torch.from_numpy(effects["direction"]), atoms, SHOWN_TEXTS)
    names = ("read", "deviation", "embedding_covariance")
    if any(name not in effects for name in names):
        hint = "give --keep, as 20% or 100%, to clip-effects" if "sign" in effects else "make the bundle again"
        note(f"{TOOL}: without read directions there are no words that units see: {hint}")
        return ClosestTexts(overlap, None, None)
    read = ReadDirections(*(torch.from_numpy(effects[name]).double() for name in names))
    first = first_positive(pursuit.word.cpu(), pursuit.coefficient.cpu())  # (unit)
    agreement = torch.where(first >= 0, read.with_own_text(atoms.double()[first.clamp(min=0)]), 0.0)
    return ClosestTexts(overlap, seen_texts(read, atoms.double(), SHOWN_TEXTS), agreement)


def _pursuit(effects: Bundle, texts: Float[Tensor, "text d"], request: _Request, model: LoadedModel | RecordedModel) -> Pursuit:
    """Return the texts that describe the bundle's directions.

    Raises:
        CliptoolsError: the model differs from the bundle's in width.
    """
    direction, pool = effects["direction"], request.pool
    if texts.shape[1] != direction.shape[1]:
        raise StreamError(f"the bundle's directions have width {direction.shape[1]}, the model's texts have {texts.shape[1]}")
    if len(direction) * len(pool.texts) * request.m >= LONG:
        note(
            f"{TOOL}: {count_of(len(direction), 'unit')}, {count_of(len(pool.texts), 'text')}, at most {request.m} of "
            f"them a unit: this takes a while"
        )
    device = "cuda" if model.device.type == "cuda" else "cpu"  # other devices lack float64
    atoms = text_space(texts.to(device), request.center, request.normalize)
    if request.method == "textspan":
        return _text_spans(effects, model, atoms, request.m)
    targets = torch.from_numpy(direction).to(device)
    if request.parts is None:
        return pursue(targets, atoms, request.m)
    settings: dict[str, Any] = {"center": request.center, "normalize": request.normalize, "m": request.m}
    settings |= {"bundle": effects.digest, "pool": pool.digest, "templates": recorded_templates(request.templates)}
    return _resumed_pursuit(targets, atoms, request.parts, settings)


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


def _text_spans(effects: Bundle, model: LoadedModel | RecordedModel, atoms: Float[Tensor, "text d"], m: int) -> Pursuit:
    """Return TextSpan's texts, with shares of the variance instead of a pursuit's coefficients."""
    # Inside, because it imports open_clip, which a pursuit with cached texts does not need.
    from cliptools.unit_effects.select import recorded_effect

    loaded = model.loaded if isinstance(model, RecordedModel) else model
    settings = effects.header.settings
    effect = recorded_effect(loaded.clip, settings)
    D = head_directions(effect, torch.from_numpy(effects["unit"]))
    return text_spans(torch.from_numpy(effects["moment"]).to(atoms.device), D.to(atoms.device), atoms, m)


def _with_words(
    effects: Bundle, pursuit: Pursuit, closest: ClosestTexts, pool: Pool, settings: dict[str, Any], step: dict[str, Any]
) -> UnitBundle:
    """Return the bundle with words, which replace those it had before.

    Args:
        settings: The header's `words` settings.
        step: Arguments for the header's history.
    """
    chosen = {"word": pursuit.word.cpu().numpy()}  # (unit, m): indices into the vocabulary, -1 after the last text
    chosen["overlap"] = closest.overlap.text.numpy()  # (unit, s)
    if closest.seen is not None:
        chosen["seen"] = closest.seen.text.numpy()  # (unit, s)
    used_words = np.unique(np.concatenate([texts[texts >= 0] for texts in chosen.values()]))
    word_tensors: dict[str, np.ndarray] = {
        name: np.where(texts >= 0, np.searchsorted(used_words, texts), -1).astype(np.int32) for name, texts in chosen.items()
    }
    word_tensors |= {
        "coefficient": pursuit.coefficient.cpu().numpy(),
        "overlap_cosine": closest.overlap.value.numpy().astype(np.float32),
        "residual": pursuit.residual.cpu().numpy(),
        "words": json_tensor({"texts": [pool.texts[j] for j in used_words], "pool": pool.name, "digest": pool.digest}),
    }
    if closest.seen is not None and closest.agreement is not None:
        word_tensors["seen_correlation"] = closest.seen.value.numpy().astype(np.float32)
        word_tensors["agreement"] = closest.agreement.numpy().astype(np.float32)
    if prefixes := settings.get("prefix"):
        word_tensors["prefix_residual"] = pursuit.path[:, [k - 1 for k in prefixes]].cpu().numpy()  # (unit, m) -> (unit, prefix)
    header = effects.header.after("cliptools.decompose", step)
    judged = {} if closest.seen is None else {"judged": "own"}
    earlier = ("judged", "judged_images", "verified")
    header_settings = {key: value for key, value in header.settings.items() if key not in earlier} | judged
    header = replace(header, kind="neurons", settings=header_settings | {"words": settings})
    other_tensors = {key: value for key, value in effects.tensors.items() if key not in REPLACED}
    return unit_bundle(replace(effects, tensors=other_tensors).with_tensors(header, **word_tensors))
