"""The images of a judgement: opened with what they show, checked against those of the bundle, and measured."""

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float64, Int64

from cliptools.analysis.presence import Labelled, Presence, Similarity
from cliptools.console import count_of, warn
from cliptools.console import progress as shown
from cliptools.embedded_models import require_scenes
from cliptools.emoji.render import SceneSource, scenes_for
from cliptools.errors import CliptoolsError, UsageError
from cliptools.front.images import Images, Reading, open_any, read_for_models
from cliptools.images.loader import ImageSource, Skipped, choose, list_digest, open_images
from cliptools.images.relocate import member_name, recorded_source
from cliptools.images.shown_texts import (
    SCENES,
    ShownTexts,
    TextIndex,
    TruthOptions,
    listed_names,
    open_shown,
    rendered_shown,
)
from cliptools.io.bundle import Bundle
from cliptools.models.load import LoadedModel
from cliptools.models.unusable import Screen
from cliptools.streaming.activities import Activities, OtherEmbeddings, Stores, Units, UnitScalars, collect
from cliptools.streaming.embeddings import Embeddings
from cliptools.unit_effects.select import recorded_effect

SCENES_RENDERED = 2000  # without images
LEAST = 6  # images of a judgement
FEW = 300  # choosing images below which seen words are uncertain
Truth = str | Mapping[str, Sequence[str]] | None


@dataclass(frozen=True, kw_only=True)
class JudgedImages:
    """Images to judge by."""

    source: ImageSource
    indices: list[int]
    """Positions in the source of the images to read."""
    truth: ShownTexts | None
    recurring: int
    """Number of images that were left out because the bundle has images of their names."""


@dataclass(frozen=True, kw_only=True)
class Measured:
    """Activities and embeddings of the images that could be measured."""

    numbers: list[int]
    """Positions in the source; row n of the rest belongs to image n of this list."""
    activities: Activities
    embeddings: Embeddings
    judge: Embeddings | None
    """The embeddings of another model, by row, without the images that are unusable for it."""


def open_judged(
    bundle: Bundle, images: Images | None, truth: Truth, classes: str | None, texts: Sequence[str],
    *, limit: int | None, sample: int | None, seed: int, same_names: bool,
) -> JudgedImages:  # fmt: skip
    """Open the images and what they show, without those that the bundle was made from.

    Args:
        texts: The vocabulary.
        same_names: Images with the names of the bundle's are other pictures.

    Raises:
        UsageError: the images are those of the bundle, or there are none.
        StreamError: the ground truth lacks an image.
    """
    if images is None:
        source, shown_texts = _rendered(bundle, truth, limit, seed, texts)
        return JudgedImages(source=source, indices=list(range(len(source))), truth=shown_texts, recurring=0)
    source, shown_texts = _opened(images, truth, classes, texts)
    indices = choose(source, limit, sample, seed)
    names = [source.names[index] for index in indices]
    if same_names:
        return JudgedImages(source=source, indices=indices, truth=shown_texts, recurring=0)
    earlier = {member_name(name) for name in bundle.text_list("images")}
    if bundle.header.images.get("digest") in set(_digests(bundle, source.names)) | set(_digests(bundle, names)):
        raise UsageError(
            "the bundle was made from a list of images with these names: words are judged on images that did not make them; name "
            "others, or give --same-names if these are other pictures"
        )
    fresh = [index for index, name in zip(indices, names, strict=True) if member_name(name) not in earlier]
    if recurring := len(indices) - len(fresh):
        reason = "the bundle has top images of the same names (if these are other pictures: --same-names)"
        warn(f"{count_of(recurring, 'image')} of {len(indices)} left out: {reason}")
    return JudgedImages(source=source, indices=fresh, truth=shown_texts, recurring=recurring)


def _digests(bundle: Bundle, names: Sequence[str]) -> Iterator[str]:
    """Yield digests of names as they are, and in every archive that the bundle names or on standard input, which has no name."""
    members = [member_name(name) for name in names]
    yield list_digest(names)
    for archive in {name.removesuffix(member_name(name)) for name in bundle.text_list("images")} | {""}:
        yield list_digest([f"{archive}{member}" for member in members])


def _rendered(
    bundle: Bundle, truth: Truth, limit: int | None, seed: int, texts: Sequence[str]
) -> tuple[ImageSource, ShownTexts | None]:
    """Render scenes for an embedded model.

    Raises:
        UsageError: the model is not embedded, the bundle was made from these scenes, or the truth is not that of scenes.
    """
    name = bundle.header.model["name"]
    require_scenes(name)
    if truth not in (None, SCENES):
        raise UsageError(f"--truth {truth} needs a PATH; rendered scenes have --truth {SCENES}")
    if made_from_scenes(bundle, seed):
        raise UsageError(f"--seed {seed}: the bundle was made from the scenes of this seed; give another one")
    source = scenes_for(name, limit or SCENES_RENDERED, seed)
    return source, None if truth is None else rendered_shown(source, texts)


def made_from_scenes(bundle: Bundle, seed: int) -> bool:
    """Return True if the bundle was made from rendered scenes of this seed."""
    try:
        source = recorded_source(bundle, ())
    except UsageError:  # the bundle was made from other images
        return False
    return isinstance(source, SceneSource) and source.seed == seed


def _opened(images: Images, truth: Truth, classes: str | None, texts: Sequence[str]) -> tuple[ImageSource, ShownTexts | None]:
    """Open images with what they show, if that is asked for.

    Raises:
        UsageError: labels are asked for images that are not paths.
    """
    if truth is None:
        return open_any(images), None
    if isinstance(truth, Mapping):
        source = open_any(images)
        return source, listed_names(source, {key: tuple(names) for key, names in truth.items()}, texts)
    paths = [images] if isinstance(images, str | os.PathLike) else images
    if not isinstance(paths, list | tuple) or not all(isinstance(path, str | os.PathLike) for path in paths):
        raise UsageError(f"truth={truth!r}: needs images as paths; give names by image as a dictionary for others")
    opened = open_shown([os.fspath(path) for path in paths], TruthOptions(truth, classes), texts)
    return opened.source, opened


def measure(
    bundle: Bundle, model: LoadedModel, images: JudgedImages, texts: int, reading: Reading, skipped: Skipped,
    judge: LoadedModel | None = None,
) -> Measured:  # fmt: skip
    """Measure the activities of all units and the embeddings of the images, in one pass.

    Args:
        texts: Number of texts of the vocabulary.
        judge: Another model, whose embeddings are kept too.

    Raises:
        CliptoolsError: fewer than LEAST images can be measured.
        UsageError: there is another model, and the images are preprocessed.
    """
    models, listed = [model] if judge is None else [model, judge], len(images.indices)
    batches = read_for_models(images.source, images.indices, models, reading, skipped)
    screens = [Screen[int](images.source.names.__getitem__, skipped.add, reading.strict) for _ in models]
    activities, embeddings = Activities(listed, bundle["top_norm"][:, 0], texts), Embeddings(listed)
    other = None if judge is None else OtherEmbeddings(_encoder(judge), listed, screens[1])
    counted = shown(batches, "images", listed, lambda batch: len(batch[0]))
    scalars = UnitScalars(*_effect_and_units(bundle, model))
    numbers = collect(scalars, counted, Stores(activities, embeddings, other), screens[0])
    if len(numbers) < LEAST:
        raise CliptoolsError(f"{count_of(len(numbers), 'image')} to judge by, expected {LEAST} or more (half choose words)")
    if (choosing := len(numbers) // 2) < FEW:
        warn(f"{count_of(choosing, 'image')} to choose words by (half of them): with fewer than {FEW} words are uncertain")
    return Measured(
        numbers=numbers, activities=activities, embeddings=embeddings, judge=None if other is None else other.embeddings
    )


def _encoder(model: LoadedModel) -> Callable[[torch.Tensor], torch.Tensor]:
    """Return the function from pictures, as the model reads them, to its embeddings."""
    clip: Any = model.clip
    dtype = next(model.clip.parameters()).dtype

    @torch.inference_mode()
    def encode(pictures: torch.Tensor) -> torch.Tensor:
        embedding: torch.Tensor = clip.visual(pictures.to(model.device, dtype))
        return embedding

    return encode


def _effect_and_units(bundle: Bundle, model: LoadedModel) -> tuple[Any, Units]:
    """Return the effect that the bundle was measured with, and its units."""
    settings = bundle.header.settings
    unit, r, b = (torch.from_numpy(bundle[name]) for name in ("unit", "direction", "mean"))
    effect = recorded_effect(model.clip, settings)
    return effect, Units(unit, r, b, bundle.header.scaled)


class MeasuredPictures(NamedTuple):
    """Activities on pictures of words."""

    activities: Activities
    rows: dict[int, Int64[np.ndarray, " _"]]
    """Rows of the pictures of each text."""


def measure_pictures(
    bundle: Bundle, model: LoadedModel, folder: str, measured: Measured, texts: Sequence[str], reading: Reading
) -> MeasuredPictures:
    """Measure the activities of all units on pictures of words, a folder for each word.

    Args:
        measured: The control images, to whose groups of units those of the result are equal.
        texts: The vocabulary.

    Raises:
        CliptoolsError: the folder does not exist or has no images.
        UsageError: no folder has the name of a text.
    """
    source, skipped = open_images([folder]), Skipped()
    index = TextIndex(texts)
    shown_by = [index.of_folder(name.partition("/")[0]) for name in source.names]
    order = [number for number, shown_texts in enumerate(shown_by) if shown_texts]
    if not order:
        raise UsageError(f"--pictures {folder}: no folder in it has the name of a text of the vocabulary, such as {texts[0]}")
    activities = Activities(len(order), bundle["top_norm"][:, 0], len(texts), measured.activities.groups)
    scalars = UnitScalars(*_effect_and_units(bundle, model))
    read = read_for_models(source, order, [model], reading, skipped)
    batches = shown(read, "pictures", len(order), lambda batch: len(batch[0]))
    screen = Screen[int](source.names.__getitem__, skipped.add, reading.strict)
    rows: dict[int, list[int]] = {}
    for row, number in enumerate(collect(scalars, batches, Stores(activities), screen)):
        for text in shown_by[number]:
            rows.setdefault(text, []).append(row)
    return MeasuredPictures(activities, {text: np.array(pictures) for text, pictures in rows.items()})


def own_presence(bundle: Bundle, measured: Measured, t: Float64[np.ndarray, "text d"]) -> Similarity:
    """Return the similarities with the units' own model."""
    return Similarity(measured.embeddings, t, "unit" if bundle.header.scaled else "raw")


def true_presence(truth: ShownTexts, numbers: Sequence[int], texts: int) -> Presence:
    """Return labels.

    Args:
        numbers: The images.
        texts: Number of texts of the vocabulary.
    """
    rows = [truth.of(number) for number in numbers]
    known = truth.known
    if known is None:
        known = np.zeros(texts, dtype=bool)
        known[sorted({text for row in rows for text in row})] = True
    return Labelled(rows, known)
