"""Scenes of one emoji each, as clip-scenes --single writes them: scenes.jsonl in a folder above says what each shows."""

from collections.abc import Sequence
from pathlib import Path

from cliptools.ground.classified.class_rows import load_rows
from cliptools.ground.classified.labelled import Labelled, gather
from cliptools.ground.errors import StreamError
from cliptools.ground.labels import SCENES, scene_names
from cliptools.ground.listing import Found
from cliptools.ground.truth import Truth

OPTION = "--labels scenes"


def are_scenes(found: Found) -> bool:
    """Whether clip-scenes wrote what is said of the image into a folder above it."""
    return isinstance(found.place, str) and any((folder / SCENES).is_file() for folder in Path(found.place).parents)


def by_scenes(found: Sequence[Found]) -> Labelled:
    """The one name that each scene shows.

    Raises:
        StreamError: an image of which nothing is said, or one that shows several things.
    """
    truths: dict[Path, Truth | None] = {}
    labels = (only_name(one.name, scene_names(one, truths, OPTION)) for one in found)
    return gather(found, labels, "nothing is said of it")._replace(classes=load_rows("emoji"))


def only_name(image: str, names: Sequence[str]) -> str:
    """The name, of one.

    Raises:
        StreamError: none, or more.
    """
    if len(names) != 1:
        shown = f"{len(names)} things ({', '.join(names)})" if names else "nothing"
        raise StreamError(f"{image}: it shows {shown}, expected one class an image, as clip-scenes --single draws")
    return names[0]
