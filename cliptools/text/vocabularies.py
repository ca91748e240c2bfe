"""Vocabularies of texts that describe directions, and the names of ImageNet's classes.

`load_pool` returns a vocabulary by name or from a file, `recorded_pool` the one that a bundle's words come from.

ImageNet's 1000 classes and ImageNet-R's 200 (Hendrycks et al. 2021) have WordNet ids from timm and names from open_clip, in the
order of their sorted ids, which defines the class numbers of torchvision, Caffe and WebDataset copies.
"""

import functools
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from cliptools.console import count_of, warn
from cliptools.errors import CliptoolsError, StreamError, TextError
from cliptools.io.bundle import Bundle
from cliptools.io.header import canonical, digest
from cliptools.io.jsonl import parse
from cliptools.io.text_file import read_text
from cliptools.library_patches import imagenet_lists, installed_file
from cliptools.text.attributes import attributes
from cliptools.text.emoji_concepts import concepts

WORDNET_ID = re.compile(r"n\d{8}")


@functools.cache
def wordnet_ids(restricted: bool = False) -> tuple[str, ...]:
    """Return the ids of ImageNet's classes, or of the classes that ImageNet-R has."""
    return tuple(_timm_lines("imagenet_r_synsets.txt" if restricted else "imagenet_synsets.txt"))


@functools.cache
def open_clip_names(restricted: bool = False) -> tuple[str, ...]:
    """Return open_clip's names of these classes; of the 1000, two are called missile and two sunglasses."""
    names = dict(zip(wordnet_ids(), imagenet_lists().IMAGENET_CLASSNAMES, strict=True))
    return tuple(names[wordnet_id] for wordnet_id in wordnet_ids(restricted))


def name_of_id(wordnet_id: str) -> str | None:
    """Return open_clip's name of the class with a WordNet id; None for an id that is not ImageNet's."""
    ids = wordnet_ids()
    return open_clip_names()[ids.index(wordnet_id)] if wordnet_id in ids else None


@functools.cache
def lemmas() -> dict[str, tuple[str, ...]]:
    """Return WordNet's words for every class, by id."""
    ids = set(wordnet_ids())
    lines = (line.split("\t") for line in _timm_lines("imagenet_synset_to_lemma.txt"))
    return {wordnet_id: tuple(words.split(", ")) for wordnet_id, words in lines if wordnet_id in ids}


def _timm_lines(name: str) -> list[str]:
    """Return the lines of one of timm's lists of classes; open_clip depends on timm.

    Raises:
        CliptoolsError: this version of timm lacks the list.
    """
    path = installed_file("timm", f"data/_info/{name}")
    if path is None:
        raise CliptoolsError(f"timm {version('timm')} has no list {name} of ImageNet's classes: pip install 'timm>=1.0.17'")
    return path.read_text(encoding="utf-8").splitlines()


PLAIN_WORD = re.compile(r"[a-z]{2,}")
LONGEST = 10_000  # characters per text; a text tower reads at most 77 tokens


@dataclass(frozen=True)
class Pool:
    """A vocabulary: texts that describe a direction."""

    name: str
    """One of POOLS, or the path of a file."""
    texts: tuple[str, ...]
    digest: str
    """sha256 of the texts in order."""


def load_pool(name: str) -> Pool:
    """Return a vocabulary by name (see POOLS), or from a UTF-8 file with one text per line; skip blank and repeated lines.

    Lines of a file NAME.jsonl are records with a field `text`. A JSON array of texts or of such records is read too.

    Raises:
        TextError: the vocabulary or file is unknown, not UTF-8 or empty, or a line of NAME.jsonl has no text.
    """
    path = Path(name)
    texts = POOLS[name]() if name in POOLS else _file_texts(path)
    distinct = tuple(dict.fromkeys(texts))
    if long := next((text for text in distinct if len(text) > LONGEST), None):
        raise TextError(
            f"pool {name}: expected texts, found one of {count_of(len(long), 'character')}, {long[:40]!r}… (at most {LONGEST})"
        )
    if not distinct:
        raise TextError(f"pool {name}: empty, expected at least one text, one per line")
    return Pool(name, distinct, digest(*distinct))


def common_words(count: int) -> list[str]:
    """Return the `count` most common English words of wordfreq that consist of two or more letters a to z.

    Raises:
        TextError: wordfreq has fewer words.
    """
    import wordfreq

    words = [word for word in wordfreq.top_n_list("en", 2 * count) if PLAIN_WORD.fullmatch(word)][:count]
    if len(words) < count:
        raise TextError(f"expected {count} words of wordfreq, found {len(words)}")
    return words


def _imagenet_names() -> Iterable[str]:
    return imagenet_lists().IMAGENET_CLASSNAMES


def _emoji_names() -> Iterable[str]:
    return (text for concept in concepts() for text in (concept.name, *concept.synonyms))


def _scene_words() -> Iterable[str]:
    return (*_emoji_names(), *attributes())


POOLS: dict[str, Callable[[], Iterable[str]]] = {
    "emoji": _emoji_names,
    "scenes": _scene_words,
    "imagenet": _imagenet_names,
    "words10k": lambda: common_words(10_000),
    "words30k": lambda: common_words(30_000),
}


def _file_texts(path: Path) -> list[str]:
    """Return the texts of a file.

    Raises:
        TextError: the file cannot be read or is not UTF-8, or a record has no text.
    """
    text = read_text(path, "pool", ", ".join(POOLS))
    lines = [stripped for line in text.split("\n") if (stripped := line.strip())]
    if (items := _json_array(text)) is not None:
        return _texts_of(path, items)
    if path.suffix == ".json":
        raise TextError(
            f"pool {path}: expected one JSON array of texts, or another ending and one text per line, found {text[:40]!r}"
        )
    return _texts_of(path, map(_json_value, lines)) if path.suffix == ".jsonl" else lines


def _json_array(text: str) -> list[Any] | None:
    """Return the items of a JSON array; None for any other text."""
    value = _json_value(text) if text.lstrip().startswith("[") else None
    return value if isinstance(value, list) and all(isinstance(item, str | dict) for item in value) else None


def _json_value(text: str) -> Any:
    """Return the value of a JSON text; any other text is returned in a tuple."""
    try:
        return parse(text)
    except ValueError:
        return (text,)


def _texts_of(path: Path, items: Iterable[Any]) -> list[str]:
    """Return the texts of records, or of an array.

    Raises:
        TextError: a record has no text.
    """
    texts = []
    for number, item in enumerate(items, 1):
        text = item.get("text") if isinstance(item, dict) else item
        if not isinstance(text, str):
            start = item[0] if isinstance(item, tuple) else canonical(item)
            raise TextError(f"pool {path}: expected records with a `text`, found {start[:40]!r} (record {number})")
        texts.append(text.strip())
    return [text for text in texts if text]


def recorded_pool(bundle: Bundle) -> Pool:
    """Return the vocabulary of a bundle's words if it exists here unchanged, else the texts in the bundle, with a warning.

    Raises:
        StreamError: the bundle does not name its vocabulary.
    """
    words = bundle.text_list("words")
    if not words.get("pool") or "digest" not in words:
        raise StreamError("the bundle's `words` do not name their pool of texts; run clip-decompose again")
    try:  # a bundle must not cause a device or a pipe to be read
        pool = load_pool(words["pool"]) if words["pool"] in POOLS or Path(words["pool"]).is_file() else None
    except (TextError, ValueError):
        pool = None
    if pool is not None and pool.digest == words["digest"]:
        return pool
    texts = tuple(words["texts"])
    fault = "not found" if pool is None else "has changed since the bundle was written"
    warn(f"vocabulary {words['pool']!r} {fault}: only the {count_of(len(texts), 'text')} in the bundle can be used")
    return Pool(words["pool"], texts, digest(*texts))
