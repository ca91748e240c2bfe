"""What is held against what, for both models.

Commands compute in float32, the transcription in float64. 1e-4 of the largest value is some ten times what that leaves
after a few layers and sums over hundreds of terms; a wrong factor, sign or share shows in the first digits. Directions and
coefficients come out of ill-conditioned problems (a second singular value near the first, texts much alike): 1e-3.
"""

import shlex
from collections.abc import Iterable
from typing import Any

import numpy as np

from . import character, study
from .reading import Bundle, Held, records

EXACT, CONDITIONED = 1e-4, 1e-3
WRITTEN = 1e-5  # of numbers of six digits in records, beside EXACT
CLEAR = 2e-6  # a lead in cosines that float32 leaves alone
TIE = 1e-5  # texts may change places where their scores are closer than this
TEMPLATES = [word for template in study.TEMPLATES for word in ("--template", template)]
CONCEPTS = [word for concept in study.CONCEPTS for word in ("--concept", concept)]


def effects_of(model: str) -> str:
    """What clip-effects is told in every run."""
    return f"--model local-dir:{model} --top-images {study.TOP} --quantile {study.QUANTILE}"


def layers_of(layers: range) -> str:
    return f"{layers[0]}-{layers[-1]}"


def quoted(words: Iterable[object]) -> str:
    """For a shell line."""
    return " ".join(shlex.quote(str(word)) for word in words)


def characters_agree(held: Held, name: str, found: Bundle, expected: study.Results, prefix: str) -> None:
    """Norms, means and thresholds by each unit's own largest norm; directions have norm 1."""
    own = {key.removeprefix(f"{prefix}."): value for key, value in expected.items() if key.startswith(f"{prefix}.")}
    largest = own["top_norm"][:, :1]
    size = np.maximum(largest, np.abs(own["b"]).max(1, keepdims=True))
    held(f"{name}: b", found["mean"], own["b"], EXACT, size)
    held(f"{name}: ‖φ − b‖", found["top_norm"], own["top_norm"], EXACT, size)
    held(f"{name}: τ", found["threshold"], own["tau"], EXACT, size[:, 0])
    held(f"{name}: r", found["direction"], own["r"][:, 0], CONDITIONED)
    held(f"{name}: explained", found["explained"], own["explained"][:, 0], EXACT)
    held(f"{name}: explained, all images", found["explained_all"], own["explained_all"], EXACT)
    gaps = np.abs(np.diff(own["top_norm"], axis=1)).min(1)
    clear = gaps > EXACT * size[:, 0]
    assert clear.mean() > 0.9 and np.array_equal(found.top_images()[clear], own["top_image"][clear])


def words_agree(held: Held, name: str, found: Bundle, expected: study.Results, prefix: str, coefficients: str) -> None:
    """The same texts in the same order, but where two were too close to tell apart."""
    pool = study.pool()
    clear = expected[f"{prefix}.margin"] > TIE
    chosen = [[pool[j] for j in row] for row in expected[f"{prefix}.chosen"][clear]]
    assert clear.mean() > 0.95
    assert [row for row, is_clear in zip(found.words(), clear, strict=True) if is_clear] == chosen
    held(f"{name}: coefficients", found["coefficient"][clear], expected[f"{prefix}.{coefficients}"][clear], CONDITIONED)


def shift_agrees(held: Held, name: str, data: bytes, expected: study.Results) -> None:
    found = records(data)
    shares = [[record["shares"][concept] for record in found if "shares" in record] for concept in study.CONCEPTS]
    held(f"{name}: shares", shares, expected["shift.share"], EXACT)
    groups = expected["shift.share"].reshape(len(study.CONCEPTS), len(study.GROUPS), -1).mean(2).ravel()
    held(f"{name}: groups' means", [record["mean"] for record in found if "mean" in record][: len(groups)], groups, EXACT)
    over_all = [record["correlation"]["value"] for record in found if "correlation" in record and "group" not in record]
    held(f"{name}: point-biserial correlation", over_all, expected["shift.correlation"], CONDITIONED)


def ablation_of(model: str, *settings: object) -> tuple[object, ...]:
    return ("shown", "--labels", f"{model}-labels.csv", "--classes", "classes.txt", *TEMPLATES, *settings, "-f", "jsonl")


def name_of(record: dict[str, Any], layers: int) -> str:
    """What the transcription calls a setting."""
    kind = record.get("ablate") or {"pc": f"pc {record.get('components')}", "words": f"words {record.get('m')}"}.get(
        record.get("reconstruct", ""), ""
    )
    if record.get("keep") == study.KEPT:
        return "keep pc" if "pc" in kind else "keep"
    return f"{kind} of {record['layers'][0]}" if 0 < len(record["layers"]) < layers else kind


def ablations_agree(
    held: Held, what: str, data: bytes, expected: study.Results, prefix: str, names: set[str], layers: int = 1
) -> None:
    found = {name_of(record, layers): record for record in records(data)}
    assert set(found) == names
    for name, record in found.items():
        top1, top5, agreement, cosine, margin = expected[f"{prefix}.{name}"]
        assert margin > CLEAR and record["n"] == study.SHOWN
        exact = [record["top1"]["value"], record["top5"]["value"], record["agreement"]]
        held(f"{what}: top-1, top-5, agreement", exact, [top1, top5, agreement], WRITTEN)
        held(f"{what}: cosine", record["cosine"], cosine, WRITTEN)
        interval = [[record[top][end] for end in ("low", "high")] for top in ("top1", "top5")]
        held(f"{what}: Wilson's intervals", interval, [character.wilson(share, study.SHOWN) for share in (top1, top5)], WRITTEN)
