"""What images show, as the records of clip-scenes tell it, and which of it a list of words names."""

import json
from collections.abc import Iterable, Sequence
from pathlib import Path, PurePosixPath

from cliptools.ground.class_names import parse_class
from cliptools.ground.errors import StreamError


class Truth:
    """Names by image."""

    def __init__(self, names: dict[str, tuple[str, ...]], source: str) -> None:
        """
        Args:
            names: By key: an image's name without folder in front and ending behind, as far as they are not part of the key.
            source: What to call it in messages: the option and its value.
        """
        self._names, self._source = names, source

    def of(self, image: str) -> tuple[str, ...]:
        """What an image shows. Its name may have folders or an archive in front of the key.

        Raises:
            StreamError: nothing is said of this image.
        """
        parts = PurePosixPath(image).with_suffix("").parts
        for start in range(len(parts)):
            if (key := "/".join(parts[start:])) in self._names:
                return self._names[key]
        raise StreamError(f"{self._source}: says nothing of {image} (expected a line whose `key` is its name without ending)")


def read_truth(path: Path, option: str = "--truth") -> Truth:
    """Lines with `key` and `names`, as the scenes.jsonl of clip-scenes.

    Args:
        option: What asked for it, for messages.

    Raises:
        StreamError: no such file, or a line that is no such record.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise StreamError(f"{option} {path}: cannot be read ({getattr(error, 'strerror', None) or error})") from None
    names = {}
    for number, line in enumerate(lines, 1):
        try:
            record = json.loads(line)
            key, shown = record["key"], record["names"]
            good = isinstance(key, str) and isinstance(shown, list) and bool(shown) and all(isinstance(n, str) for n in shown)
        except (ValueError, TypeError, KeyError):
            good = False
        if not good:
            raise StreamError(
                f"{option} {path}: line {number} has no `key` with a list of `names`, as scenes.jsonl of clip-scenes has"
            )
        names[key] = tuple(shown)
    return Truth(names, f"{option} {path}")


def found_names(names: Sequence[str], words: Iterable[str]) -> list[str]:
    """The names that are among the words, by themselves or by a synonym; case does not count."""
    said = {word.casefold() for word in words}
    return [name for name in names if said & {form.casefold() for form in parse_class(name).names}]
