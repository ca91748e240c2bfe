"""What images show, as the records of clip-scenes tell it, and which of it a list of words names."""

from collections.abc import Iterable, Sequence
from pathlib import Path, PurePosixPath

from cliptools.ground.class_names import parse_class
from cliptools.ground.errors import StreamError
from cliptools.ground.image_table import without_ending
from cliptools.ground.records import file_objects


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
        parts = PurePosixPath(without_ending(image)).parts
        for start in range(len(parts)):
            if (key := "/".join(parts[start:])) in self._names:
                return self._names[key]
        raise StreamError(f"{self._source}: says nothing of {image} (expected a line whose `key` is its name without ending)")


def read_truth(path: Path, option: str = "--truth") -> Truth:
    """Lines with `key` and `names`, as the scenes.jsonl of clip-scenes.

    Args:
        option: What asked for it, for messages.

    Raises:
        StreamError: no such file, a line that is no such record, or two that contradict each other.
    """
    names: dict[str, tuple[str, ...]] = {}
    for number, record in file_objects(path, f"{option} {path}"):
        key, shown = record.get("key"), record.get("names")
        if not (isinstance(key, str) and isinstance(shown, list) and shown and all(isinstance(each, str) for each in shown)):
            raise StreamError(
                f"{option} {path}: line {number} has no `key` with a list of `names`, as scenes.jsonl of clip-scenes has"
            )
        distinct = tuple(dict.fromkeys(shown))  # of two dogs a scene has the name twice
        if names.setdefault(key, distinct) != distinct:
            raise StreamError(f"{option} {path}: line {number} says something else of {key!r} than a line before")
    return Truth(names, f"{option} {path}")


def found_names(names: Sequence[str], words: Iterable[str]) -> list[str]:
    """The names that are among the words, by themselves or by a synonym; case does not count."""
    said = {word.casefold() for word in words}
    return [name for name in names if said & {form.casefold() for form in parse_class(name).names}]
