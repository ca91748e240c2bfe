"""Images to work on: found in files, folders, globs and tar archives, in a fixed order, each to be read again at any time."""

from collections import Counter
from collections.abc import Sequence
from io import BufferedIOBase
from pathlib import PurePosixPath
from typing import Protocol, runtime_checkable

import numpy as np
from PIL import Image

from cliptools.ground.decode import decode
from cliptools.ground.errors import ImageError, UsageError
from cliptools.ground.listing import Found, find
from cliptools.ground.provenance import digest

MOST_BYTES = 1 << 29  # of a picture in an archive, which is read whole


@runtime_checkable
class ImageSource(Protocol):
    """Images in a fixed order, each readable any number of times and from several threads."""

    @property
    def names(self) -> Sequence[str]:
        """Their names, all different."""

    def __len__(self) -> int: ...

    def load(self, index: int) -> Image.Image:
        """Image number `index`, decoded, RGB, upright.

        Raises:
            ImageError: why it cannot be read, in a few words that do not repeat its name.
        """


class ListedImages:
    """An ImageSource over files and members of archives."""

    def __init__(self, found: Sequence[Found]) -> None:
        self.names: Sequence[str] = unambiguous(found)
        self._places = [one.place for one in found]

    def __len__(self) -> int:
        return len(self._places)

    def load(self, index: int) -> Image.Image:
        """See ImageSource."""
        place = self._places[index]
        if isinstance(place, str):
            return decode(place)
        if place.size > MOST_BYTES:
            raise ImageError(f"{place.size} bytes in an archive, where at most {MOST_BYTES} are read")
        try:
            stream = place.read()
        except OSError as error:
            raise ImageError((error.strerror or str(error)).lower()) from None
        return decode(stream)


def open_images(paths: Sequence[str], stdin: BufferedIOBase | None = None) -> ListedImages:
    """The images that PATH arguments name: files, folders, globs, tar archives, `-` for a tar on standard input.

    Args:
        stdin: What `-` reads; standard input unless given.

    Raises:
        UsageError: no path at all, `-` twice, or `-` where standard input is a terminal.
        CliptoolsError: a path that does not exist, a damaged archive, or no image in any of them.
    """
    return ListedImages(find(paths, stdin))


def unambiguous(found: Sequence[Found]) -> list[str]:
    """Names that are all different: relative to the bases if that suffices, else with the bases as given, numbered if need be."""
    names = [one.name for one in found]
    if len(set(names)) < len(names):
        names = [str(PurePosixPath(one.base) / one.name) for one in found]
    times: Counter[str] = Counter()
    numbered = []
    for name in names:
        times[name] += 1
        numbered.append(name if times[name] == 1 else f"{name}#{times[name]}")
    return numbered


def list_digest(names: Sequence[str]) -> str:
    """What a bundle's header calls its list of images: a hash over the sorted names, so that order does not count."""
    return digest(*sorted(names))


def choose(source: ImageSource, limit: int | None, sample: int | None, seed: int) -> list[int]:
    """Which images to use, in list order: all, the first `limit`, or `sample` of them drawn over the whole list.

    Raises:
        UsageError: both given, or less than one asked for.
    """
    if limit is not None and sample is not None:
        raise UsageError("--limit takes the first images and --sample draws some: give one of them")
    for option, number in (("--limit", limit), ("--sample", sample)):
        if number is not None and number < 1:
            raise UsageError(f"{option} {number}: expected 1 or more")
    everything = len(source)
    if sample is not None and sample < everything:
        return sorted(np.random.default_rng(seed).choice(everything, sample, replace=False).tolist())
    return list(range(everything if limit is None else min(limit, everything)))
