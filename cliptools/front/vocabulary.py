"""Vocabularies as the functions of the front take them: by name, as a file, or as a list of texts."""

import os
from collections.abc import Iterable

from cliptools.embedded_models import EMBEDDED
from cliptools.errors import TextError, UsageError
from cliptools.io.bundle import Bundle
from cliptools.io.header import digest
from cliptools.text.vocabularies import Pool, load_pool, recorded_pool

Vocabulary = str | os.PathLike[str] | Iterable[str] | None


def vocabulary(texts: str | os.PathLike[str] | Iterable[str]) -> Pool:
    """Return a vocabulary; texts that are listed twice count once.

    Args:
        texts: emoji, scenes, imagenet, words10k, words30k, the path of a file with one text per line, or the texts themselves.

    Raises:
        TextError: it is unknown, unreadable or empty, or a text is blank.
    """
    if isinstance(texts, str | os.PathLike):
        return load_pool(os.fspath(texts))
    distinct = tuple(dict.fromkeys(texts))
    if not distinct or not all(isinstance(text, str) and text.strip() for text in distinct):
        raise TextError("texts: expected the name of a vocabulary, a file, or a list of texts that are not blank")
    return Pool("texts", distinct, digest(*distinct))


def default_vocabulary(bundle: Bundle) -> Pool:
    """Return the vocabulary for a bundle without words: scenes for the embedded models, else words30k."""
    return default_vocabulary_of(bundle.header.model["name"])


def default_vocabulary_of(model: str) -> Pool:
    """Return the vocabulary for a model of this name: scenes for the embedded models, else words30k."""
    return load_pool("scenes" if model in EMBEDDED else "words30k")


def vocabulary_of(bundle: Bundle, texts: Vocabulary) -> Pool:
    """Return the vocabulary of a bundle's words.

    Args:
        texts: The vocabulary, which is the bundle's. None: the one that the bundle names, or if it does not exist here, the
            texts in the bundle, with a warning.

    Raises:
        UsageError: `texts` is another vocabulary.
        TextError: `texts` is unknown, unreadable or empty.
        StreamError: the bundle does not name its vocabulary.
    """
    if texts is None:
        return recorded_pool(bundle)
    pool, words = vocabulary(texts), bundle.text_list("words")
    if pool.digest != words.get("digest"):
        raise UsageError(
            f"texts: {pool.name} is not the vocabulary {words.get('pool')!r} of the bundle's words; "
            "give the texts that decompose was given"
        )
    return pool
