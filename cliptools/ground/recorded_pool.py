"""The pool of texts that a decomposed bundle's words were taken from."""

from cliptools.ground.bundle import Bundle
from cliptools.ground.errors import TextError
from cliptools.ground.progress import warn
from cliptools.ground.provenance import digest
from cliptools.ground.texts import Pool, load_pool


def recorded_pool(bundle: Bundle) -> Pool:
    """The whole pool where it is to be had here unchanged (by its digest), else the texts in the bundle, with a warning."""
    listed = bundle.text_list("words")
    try:
        pool = load_pool(listed["pool"])
    except TextError:
        pool = None
    if pool is not None and pool.digest == listed["digest"]:
        return pool
    texts = tuple(listed["texts"])
    why = "is not to be had here" if pool is None else "has changed since the bundle was made"
    warn(f"pool {listed['pool']} {why}: only the {len(texts)} texts that appear in the bundle are known")
    return Pool(listed["pool"], texts, digest(*texts))
