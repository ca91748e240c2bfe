"""ImageNet's 1000 classes and ImageNet-R's 200 (Hendrycks et al. 2021): WordNet ids from timm, names from open_clip.

Classes are in the order of their sorted ids, which defines the class numbers of torchvision, Caffe and WebDataset copies.
"""

import functools
import re
from importlib.metadata import version
from importlib.resources import files

from cliptools.errors import CliptoolsError
from cliptools.torchvision_compat import ensure_torchvision, import_open_clip

WORDNET_ID = re.compile(r"n\d{8}")


@functools.cache
def wordnet_ids(restricted: bool = False) -> tuple[str, ...]:
    """Return the ids of ImageNet's classes, or of the classes that ImageNet-R has."""
    return tuple(_timm_lines("imagenet_r_synsets.txt" if restricted else "imagenet_synsets.txt"))


@functools.cache
def open_clip_names(restricted: bool = False) -> tuple[str, ...]:
    """Return open_clip's names of these classes; of the 1000, two are called missile and two sunglasses."""
    names = dict(zip(wordnet_ids(), import_open_clip().IMAGENET_CLASSNAMES, strict=True))
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
    ensure_torchvision()
    try:
        return (files("timm") / "data" / "_info" / name).read_text(encoding="utf-8").splitlines()
    except OSError:
        raise CliptoolsError(
            f"timm {version('timm')} has no list {name} of ImageNet's classes: pip install 'timm>=1.0.17'"
        ) from None
