"""Pools of texts, by name or from a file.

The pool of texts that a decomposed bundle's words were taken from.
"""

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cliptools.console import count_of, warn
from cliptools.errors import StreamError, TextError
from cliptools.io.bundle import Bundle
from cliptools.io.header import canonical, digest
from cliptools.io.header import digest as digest_of
from cliptools.io.jsonl import parse
from cliptools.io.text_file import read_text

PLAIN_WORD = re.compile(r"[a-z]{2,}")
LONGEST = 10_000  # characters; a text tower reads 77 tokens at most


@dataclass(frozen=True)
class Pool:
    """Texts to describe a direction with."""

    name: str
    """One of POOLS, or the file as named."""
    texts: tuple[str, ...]
    digest: str
    """sha256 of the texts in order."""


def load_pool(name: str) -> Pool:
    """A pool by name (see POOLS), or any UTF-8 file with one text a line; blank lines and repeated texts are left out.

    Lines of a file NAME.jsonl are records with a `text`. A JSON array of texts, or of such records, is read as well.

    Raises:
        TextError: no such pool or file, not UTF-8, no text in it, or a line of NAME.jsonl that is no record with a text.
    """
    path = Path(name)
    texts = POOLS[name]() if name in POOLS else _of_file(path)
    kept = tuple(dict.fromkeys(texts))
    if long := next((text for text in kept if len(text) > LONGEST), None):
        raise TextError(
            f"pool {name}: expected texts, found one of {count_of(len(long), 'character')}, {long[:40]!r}… (at most {LONGEST})"
        )
    if not kept:
        raise TextError(f"pool {name}: empty, expected at least one text, one a line")
    return Pool(name, kept, digest_of(*kept))


def common_words(count: int) -> list[str]:
    """The most common English words, by wordfreq: exactly `count`, each of two or more plain letters.

    Raises:
        TextError: wordfreq does not know that many.
    """
    import wordfreq

    words = [word for word in wordfreq.top_n_list("en", 2 * count) if PLAIN_WORD.fullmatch(word)][:count]
    if len(words) < count:
        raise TextError(f"expected {count} words of wordfreq, found {len(words)}")
    return words


def _imagenet_names() -> Iterable[str]:
    from cliptools.torchvision_compat import ensure_torchvision

    ensure_torchvision()
    import open_clip

    return open_clip.IMAGENET_CLASSNAMES


def _emoji_names() -> Iterable[str]:
    from cliptools.text.emoji_concepts import concepts

    return (text for concept in concepts() for text in (concept.name, *concept.synonyms))


POOLS: dict[str, Callable[[], Iterable[str]]] = {
    "emoji": _emoji_names,
    "imagenet": _imagenet_names,
    "words10k": lambda: common_words(10_000),
    "words30k": lambda: common_words(30_000),
}


def _of_file(path: Path) -> list[str]:
    """The texts of a file.

    Raises:
        TextError: the file cannot be read or is not UTF-8, or a record without a text.
    """
    text = read_text(path, "pool", ", ".join(POOLS))
    lines = [stripped for line in text.split("\n") if (stripped := line.strip())]
    if (listed := _array(text)) is not None:
        return _recorded(path, listed)
    if path.suffix == ".json":
        raise TextError(
            f"pool {path}: expected one JSON array of texts, or another ending with a text a line, found {text[:40]!r}"
        )
    return _recorded(path, map(_value, lines)) if path.suffix == ".jsonl" else lines


def _array(text: str) -> list[Any] | None:
    """The items of a JSON array, None of any other text."""
    value = _value(text) if text.lstrip().startswith("[") else None
    return value if isinstance(value, list) and all(isinstance(item, str | dict) for item in value) else None


def _value(text: str) -> Any:
    """What a JSON text says; of another text itself, in a tuple."""
    try:
        return parse(text)
    except ValueError:
        return (text,)


def _recorded(path: Path, items: Iterable[Any]) -> list[str]:
    """The texts of records, or of an array.

    Raises:
        TextError: a record without a text.
    """
    texts = []
    for number, item in enumerate(items, 1):
        text = item.get("text") if isinstance(item, dict) else item
        if not isinstance(text, str):
            shown = item[0] if isinstance(item, tuple) else canonical(item)
            raise TextError(f"pool {path}: expected records with a `text`, found {shown[:40]!r} (record {number})")
        texts.append(text.strip())
    return [text for text in texts if text]


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
