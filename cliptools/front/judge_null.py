"""The control of a judgement: the same tower with random weights, measured, described and judged in the same way."""

from collections.abc import Sequence
from typing import Any

from PIL import Image

from cliptools.errors import UsageError
from cliptools.front.bundles import UnitBundle, unit_bundle
from cliptools.front.decompose import decompose
from cliptools.front.effects import effects
from cliptools.front.effects_bundle import with_directions
from cliptools.front.images import Reading
from cliptools.front.judge_images import JudgedImages
from cliptools.front.prepared import PreparedImages
from cliptools.images.loader import ImageSource
from cliptools.images.relocate import recorded_source
from cliptools.io.bundle import Bundle
from cliptools.models.load import LoadedModel
from cliptools.models.templates import template_options
from cliptools.text.vocabularies import Pool


class Part:
    """An ImageSource of some images of another one."""

    def __init__(self, source: ImageSource, indices: Sequence[int]) -> None:
        self._source, self._indices = source, indices
        self.names: Sequence[str] = [source.names[index] for index in indices]

    def __len__(self) -> int:
        return len(self._indices)

    def load(self, index: int) -> Image.Image:
        """Implements ImageSource.load."""
        return self._source.load(self._indices[index])


def null_bundle(
    bundle: Bundle, model: LoadedModel, images: JudgedImages, choosing: Sequence[int], pool: Pool, reading: Reading
) -> UnitBundle:
    """Measure and describe the units of a model with random weights as those of the bundle were.

    The images are as many as those of the bundle: its own scenes if they can be rendered, else images that choose words here, at
    most all of them.

    Args:
        model: The model with random weights.
        choosing: Positions in the source of the images that choose words.
        pool: The vocabulary.

    Raises:
        UsageError: the images are preprocessed, or the units are latents of a dictionary.
    """
    if "dictionary" in bundle.header.settings:
        raise UsageError("--null: a dictionary describes the model that it was trained on, not one with random weights")
    settings, count = bundle.header.settings, int(bundle.header.images.get("count") or 0)
    if isinstance(images.source, PreparedImages):
        raise UsageError("--null: not for batches of preprocessed images; give paths, pictures or arrays")
    try:
        source: ImageSource = recorded_source(bundle, ())
    except UsageError:  # the bundle was made from other images, which are not here
        source = Part(images.source, list(choosing)[: count or None])
    measured = effects(
        source, model=model, effect=settings["effect"], units=settings.get("units"), layers=settings.get("layers"),
        top_images=max(1, min(bundle["top_norm"].shape[1], len(source) - 1)), scale=settings.get("scale"),
        keep=settings.get("keep"), batch_size=reading.batch_size, workers=reading.workers,
    )  # fmt: skip
    if "sign" in measured:
        measured = unit_bundle(with_directions(measured, means=True, model=model))
    words: dict[str, Any] = settings.get("words", {})
    return decompose(
        measured, pool.texts, m=bundle["word"].shape[1], templates=template_options(words.get("templates", ())),
        center=words.get("center", "pool"), normalize=words.get("normalize", "texts"), model=model, cache=False,
    )  # fmt: skip
