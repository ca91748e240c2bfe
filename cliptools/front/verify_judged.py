"""Verification of a bundle's words by what a judged bundle has kept of its images: the equations are in analysis/held_out.py.

It imports no open_clip: with cached text embeddings, it needs no model.
"""

import os
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int

from cliptools.analysis.held_out import HeldOut
from cliptools.analysis.verified_words import Verified, verify_by_reading
from cliptools.console import count_of, summarise
from cliptools.errors import StreamError, UsageError
from cliptools.front.bundles import read
from cliptools.io.bundle import Bundle
from cliptools.io.header import model_difference
from cliptools.io.jsonl import unit_name

POSITIVE = 8  # words of the pursuit that are candidates
ENDING = ".safetensors"
KEPT = ("judged_read", "judged_deviation", "judged_share", "judged_covariance")


class KeptJudgement(NamedTuple):
    """Measurements of clip-judge on the units of another bundle, in the order of that bundle."""

    held: HeldOut
    images: int
    """Number of images of both halves."""
    model: dict[str, Any] | None
    """The judge whose embeddings the read directions are of, as headers record models; None for the units' own model."""


def judged_file(images: Any) -> Bundle | None:
    """Return the judged bundle that stands in place of images; None if they are images.

    Raises:
        UsageError: a bundle stands beside other paths.
        CliptoolsError, StreamError: the file cannot be opened, or is not a bundle.
    """
    if isinstance(images, Bundle):
        return images
    paths = images if isinstance(images, list | tuple) else [images]
    files = [path for path in paths if isinstance(path, str | os.PathLike) and os.fspath(path).endswith(ENDING)]
    if not files:
        return None
    if len(paths) > 1:
        raise UsageError(f"--verify {os.fspath(files[0])}: a judged bundle beside other paths; give the bundle or images")
    return read(os.fspath(files[0]))


def judged_units(bundle: Bundle, judged: Bundle) -> KeptJudgement:
    """Return what a judged bundle says of the units of a bundle.

    Raises:
        StreamError: it was not judged, is of another model or of other effects, or lacks a unit.
    """
    if lacking := next((name for name in KEPT if name not in judged), None):
        raise StreamError(f"--verify: a bundle without `{lacking}`; clip-judge --bundle-out FILE writes one that has it")
    if difference := model_difference(judged.header.model, bundle.header.model):
        raise StreamError(f"--verify: the judged bundle is of {judged.header.model['name']}: {difference}")
    row_of = {unit: row for row, unit in enumerate(map(tuple, judged["unit"].tolist()))}
    units: list[tuple[int, int, int]] = [*map(tuple, bundle["unit"].tolist())]
    if missing := next((unit for unit in units if unit not in row_of), None):
        raise StreamError(f"--verify: the judged bundle has no unit {unit_name(*missing)}; judge a bundle of the same units")
    rows = np.array([row_of[unit] for unit in units], dtype=np.int64)
    if not np.array_equal(judged["top_norm"][rows], bundle["top_norm"]):
        raise StreamError("--verify: the judged bundle has other effects of these units; judge a bundle of the same clip-effects")
    read, deviation, share, covariance = (judged[name] for name in KEPT)
    settings: dict[str, Any] = judged.header.settings.get("judged_read", {})
    images = sum(settings.get("images", {}).values())
    return KeptJudgement(HeldOut(read[rows], deviation[rows], share[rows], covariance), images, settings.get("model"))


def verified_by(bundle: Bundle, judged: KeptJudgement, texts: Float[np.ndarray, "text j"], count: int, tool: str) -> Bundle:
    """Return the bundle with its words ranked by the images of a judgement, and the agreement of units on these.

    Args:
        bundle: Units with written, overlapping and seen words.
        texts: Unit embeddings by the judge of the texts in `words`.
        count: Number of words a unit.

    Raises:
        StreamError: the embeddings have another width than the judge's.
    """
    width = judged.held.read.shape[2]
    if texts.shape[1] != width:
        raise StreamError(f"--verify: the read directions of the judged bundle have width {width}, texts {texts.shape[1]}")
    candidates = candidates_of(bundle)
    r = bundle["direction"].astype(np.float64)
    result = verify_by_reading(judged.held, r, texts.astype(np.float64), candidates, candidates[:, 0], count)
    return with_verified(bundle, result, judged.images, tool)


def candidates_of(bundle: Bundle) -> Int[np.ndarray, "unit c"]:
    """Return the candidates of each unit; the first column is its first written word, -1 for none.

    Raises:
        StreamError: No unit has a word, as if none acted on the images of the bundle.
    """
    if not bundle.text_list("words")["texts"]:
        raise StreamError("--verify: no unit has words to rank: none acts on the images of the bundle")
    weight = np.where(bundle["word"] >= 0, bundle["coefficient"], 0)  # (unit, m)
    order = np.argsort(-weight, axis=1, kind="stable")[:, :POSITIVE]
    positive = np.where(np.take_along_axis(weight, order, 1) > 0, np.take_along_axis(bundle["word"], order, 1), -1)
    return np.concatenate([positive, *(bundle[name] for name in ("overlap", "seen") if name in bundle)], axis=1).astype(np.int64)


def with_verified(bundle: Bundle, result: Verified, images: int, tool: str) -> Bundle:
    """Return the bundle with ranked words, and report what was gained.

    Args:
        images: Number of images of both halves.
    """
    before = result.before[np.isfinite(result.before)]
    written = f", the first written ones {before.mean():.3f}" if len(before) else ""
    summarise(
        f"{tool}: verified on {count_of(images, 'image')}: the first words correlate {np.mean(result.correlation[:, 0]):.3f} on "
        f"the half that did not choose them{written}"
    )
    return bundle.with_tensors(
        replace(bundle.header, settings=bundle.header.settings | {"verified": images}),
        verified=result.word.astype(np.int32),
        verified_correlation=result.correlation.clip(-1, 1).astype(np.float32),
        agreement=np.nan_to_num(result.agreement).clip(-1, 1).astype(np.float32),
    )
