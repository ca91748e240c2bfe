"""Verification of a bundle's words on other images: the equations are in analysis/verified_words.py."""

import numpy as np
from jaxtyping import Float

from cliptools.analysis.verified_words import verify_words
from cliptools.errors import StreamError
from cliptools.front.images import Images, Reading
from cliptools.front.judge_images import made_from_scenes, measure, open_judged, own_presence
from cliptools.front.verify_judged import candidates_of, with_verified
from cliptools.images.loader import Skipped
from cliptools.io.bundle import Bundle
from cliptools.models.load import LoadedModel, RecordedModel

SCENES = "scenes"  # in place of images: rendered ones
SEED = 4321  # of rendered scenes, and of the halves; the next one for the scenes if the bundle was made from those of this one
EFFECTS = ("second", "first", "pooled")


def verified(
    bundle: Bundle,
    images: Images,
    texts: Float[np.ndarray, "text d"],
    model: LoadedModel | RecordedModel,
    count: int,
    reading: Reading,
    tool: str,
    same_names: bool = False,
) -> Bundle:
    """Return the bundle with its words ranked by other images, and the agreement of units on these.

    Args:
        bundle: Units with written, overlapping and seen words.
        images: Images that the bundle was not made from; `scenes` renders some for an embedded model.
        texts: Unit embeddings of the texts in `words`.
        count: Number of words a unit.
        same_names: Images with the names of the bundle's are other pictures.

    Raises:
        StreamError: the effects have no factored form, or no unit has words.
        UsageError: the images are those of the bundle.
        CliptoolsError: too few images can be read.
    """
    if bundle.header.settings.get("effect") not in EFFECTS:
        raise StreamError(f"--verify needs effects in factored form ({', '.join(EFFECTS)}); this bundle has others")
    candidates = candidates_of(bundle)
    seed = SEED + 1 if made_from_scenes(bundle, SEED) else SEED
    opened = open_judged(
        bundle, None if images == SCENES else images, None, None, (), limit=None, sample=None, seed=seed, same_names=same_names
    )
    loaded = model.loaded if isinstance(model, RecordedModel) else model
    measured = measure(bundle, loaded, opened, len(texts), reading, Skipped())
    order = np.random.default_rng(SEED).permutation(len(measured.numbers))
    half = len(order) // 2
    result = verify_words(
        measured.activities, bundle["direction"].astype(np.float64), own_presence(bundle, measured, texts.astype(np.float64)),
        candidates, candidates[:, 0], np.sort(order[:half]), np.sort(order[half:]), count,
    )  # fmt: skip
    return with_verified(bundle, result, len(order), tool)
