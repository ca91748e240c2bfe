"""Images and what is said of each, before anybody knows which classes there are."""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Int64

from cliptools.ground.classified.class_rows import ClassRows, Label
from cliptools.ground.counted import count_of
from cliptools.ground.errors import StreamError
from cliptools.ground.listing import Found


class Other(NamedTuple):
    """A further label of an image that already has one."""

    image: int
    """Its number among the images."""
    label: Label
    member: str
    """What says it."""
    first: str
    """What says the label that counts."""
    caption: bool
    """Whether it may as well be no label."""


class Labelled(NamedTuple):
    """Images, and which of some labels each has; a list of a million takes a number an image, no object."""

    found: Sequence[Found]
    number: Int64[np.ndarray, "image"]
    """Each image's label, an index into `labels`."""
    labels: tuple[Label, ...]
    """All different, in the order met."""
    classes: ClassRows | None = None
    """What the labels are of, where that comes with them."""
    others: tuple[Other, ...] = ()


def gather(found: Sequence[Found], labels: Iterable[Label | None], missing: str) -> Labelled:
    """Number the labels.

    Args:
        missing: What to say of an image without one, after its name.

    Raises:
        StreamError: an image has no label.
    """
    numbers: dict[Label | None, int] = {}
    number = np.fromiter((numbers.setdefault(label, len(numbers)) for label in labels), np.int64, len(found))
    if (none := numbers.get(None)) is not None:
        without = number == none
        raise StreamError(
            f"{found[int(without.argmax())].name}: {missing} ({without.sum()} of {count_of(len(found), 'image')} without a label)"
        )
    return Labelled(found, number, tuple(label for label in numbers if label is not None))
