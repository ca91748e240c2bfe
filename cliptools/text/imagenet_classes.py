"""ImageNet's 1000 classes and ImageNet-R's 200 (Hendrycks et al. 2021): WordNet ids from timm, names from open_clip.

The order is that of the sorted ids, which is what class numbers mean in torchvision, Caffe's lists and WebDataset copies.
"""

import functools
import re
from importlib.metadata import version
from importlib.resources import files

from cliptools.errors import CliptoolsError
from cliptools.torchvision_compat import ensure_torchvision

WORDNET_ID = re.compile(r"n\d{8}")


@functools.cache
def wordnet_ids(restricted: bool = False) -> tuple[str, ...]:
    """The ids of ImageNet's classes, or of those that ImageNet-R is restricted to."""
    return tuple(_timm_lines("imagenet_r_synsets.txt" if restricted else "imagenet_synsets.txt"))


@functools.cache
def open_clip_names(restricted: bool = False) -> tuple[str, ...]:
    """open_clip's names of these classes; of the 1000, two are called missile and two sunglasses."""
    ensure_torchvision()
    import open_clip

    names = dict(zip(wordnet_ids(), open_clip.IMAGENET_CLASSNAMES, strict=True))
    return tuple(names[each] for each in wordnet_ids(restricted))


def name_of_id(number: str) -> str | None:
    """open_clip's name of the class of a WordNet id; None where ImageNet's 1000 have none of it."""
    ids = wordnet_ids()
    return open_clip_names()[ids.index(number)] if number in ids else None


@functools.cache
def lemmas() -> dict[str, tuple[str, ...]]:
    """WordNet's own words for each class, by its id."""
    wanted = set(wordnet_ids())
    lines = (line.split("\t") for line in _timm_lines("imagenet_synset_to_lemma.txt"))
    return {number: tuple(words.split(", ")) for number, words in lines if number in wanted}


def _timm_lines(name: str) -> list[str]:
    """Lines of one of the lists of classes that timm brings, which open_clip needs anyway.

    Raises:
        CliptoolsError: this timm has none.
    """
    ensure_torchvision()
    try:
        return (files("timm") / "data" / "_info" / name).read_text(encoding="utf-8").splitlines()
    except OSError:
        raise CliptoolsError(
            f"timm {version('timm')} has no list {name} of ImageNet's classes: pip install 'timm>=1.0.17'"
        ) from None
