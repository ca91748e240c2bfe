"""The pool of texts that a decomposed bundle's words were taken from."""

from pathlib import Path

from cliptools.ground.bundle import Bundle
from cliptools.ground.counted import count_of
from cliptools.ground.errors import StreamError, TextError
from cliptools.ground.progress import warn
from cliptools.ground.provenance import digest
from cliptools.ground.texts import POOLS, Pool, load_pool


def recorded_pool(bundle: Bundle) -> Pool:
    """The whole pool where it is to be had here unchanged (by its digest), else the texts in the bundle, with a warning.

    Raises:
        StreamError: the bundle does not say which pool it was.
    """
    listed = bundle.text_list("words")
    if not listed.get("pool") or "digest" not in listed:
        raise StreamError("the bundle's `words` do not say which pool of texts they are from; run clip-decompose anew")
    try:  # a bundle must not make anybody read a device or a pipe
        pool = load_pool(listed["pool"]) if listed["pool"] in POOLS or Path(listed["pool"]).is_file() else None
    except (TextError, ValueError):
        pool = None
    if pool is not None and pool.digest == listed["digest"]:
        return pool
    texts = tuple(listed["texts"])
    why = "is not to be had here" if pool is None else "has changed since the bundle was made"
    warn(f"pool {listed['pool']} {why}: only what appears in the bundle is known, {count_of(len(texts), 'text')}")
    return Pool(listed["pool"], texts, digest(*texts))
