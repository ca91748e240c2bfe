"""Verification of a bundle's words on other images: the equations are in analysis/verified_words.py."""

from dataclasses import replace

import numpy as np
from jaxtyping import Float, Int

from cliptools.analysis.verified_words import verify_words
from cliptools.console import count_of, summarise
from cliptools.errors import StreamError
from cliptools.front.images import Images, Reading
from cliptools.front.judge_images import made_from_scenes, measure, open_judged, own_presence
from cliptools.images.loader import Skipped
from cliptools.io.bundle import Bundle
from cliptools.models.load import LoadedModel, RecordedModel

SCENES = "scenes"  # in place of images: rendered ones
SEED = 4321  # of rendered scenes, and of the halves; the next one for the scenes if the bundle was made from those of this one
POSITIVE = 8  # words of the pursuit that are candidates
EFFECTS = ("second", "first", "pooled")


def verified(
    bundle: Bundle,
    images: Images,
    texts: Float[np.ndarray, "text d"],
    model: LoadedModel | RecordedModel,
    count: int,
    reading: Reading,
    tool: str,
) -> Bundle:
    """Return the bundle with its words ranked by other images, and the agreement of units on these.

    Args:
        bundle: Units with written, overlapping and seen words.
        images: Images that the bundle was not made from; `scenes` renders some for an embedded model.
        texts: Unit embeddings of the texts in `words`.
        count: Number of words a unit.

    Raises:
        StreamError: the effects have no factored form.
        UsageError: the images are those of the bundle.
        CliptoolsError: too few images can be read.
    """
    if bundle.header.settings.get("effect") not in EFFECTS:
        raise StreamError(f"--verify needs effects in factored form ({', '.join(EFFECTS)}); this bundle has others")
    seed = SEED + 1 if made_from_scenes(bundle, SEED) else SEED
    opened = open_judged(
        bundle, None if images == SCENES else images, None, None, (), limit=None, sample=None, seed=seed, same_names=False
    )
    loaded = model.loaded if isinstance(model, RecordedModel) else model
    measured = measure(bundle, loaded, opened, len(texts), reading, Skipped())
    order = np.random.default_rng(SEED).permutation(len(measured.numbers))
    half = len(order) // 2
    candidates = _candidates(bundle)
    result = verify_words(
        measured.activities, bundle["direction"].astype(np.float64), own_presence(bundle, measured, texts.astype(np.float64)),
        candidates, candidates[:, 0], np.sort(order[:half]), np.sort(order[half:]), count,
    )  # fmt: skip
    first = result.correlation[:, 0]
    summarise(
        f"{tool}: verified on {count_of(len(order), 'image')}: the first words correlate {np.mean(first):.3f} on the half that "
        f"did not choose them, the first written ones {np.nanmean(result.before):.3f}"
    )
    settings = bundle.header.settings | {"verified": len(order)}
    return bundle.with_tensors(
        replace(bundle.header, settings=settings),
        verified=result.word.astype(np.int32),
        verified_correlation=result.correlation.astype(np.float32),
        agreement=np.nan_to_num(result.agreement).astype(np.float32),
    )


def _candidates(bundle: Bundle) -> Int[np.ndarray, "unit c"]:
    """Return the candidates of each unit; the first column is its first written word, -1 for none."""
    weight = np.where(bundle["word"] >= 0, bundle["coefficient"], 0)  # (unit, m)
    order = np.argsort(-weight, axis=1, kind="stable")[:, :POSITIVE]
    positive = np.where(np.take_along_axis(weight, order, 1) > 0, np.take_along_axis(bundle["word"], order, 1), -1)
    return np.concatenate([positive, *(bundle[name] for name in ("overlap", "seen") if name in bundle)], axis=1).astype(np.int64)
