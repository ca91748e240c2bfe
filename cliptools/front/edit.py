"""Edits of a model's weights as a function; the work is in front/edit_model.py."""

from collections.abc import Mapping, Sequence
from typing import Any

from cliptools.arguments import checked, chosen_layers, chosen_templates
from cliptools.console import front_call
from cliptools.front.edit_means import MeanImages
from cliptools.front.edit_model import edited_model
from cliptools.front.edit_request import EditRequest
from cliptools.front.edit_units import distinct_texts
from cliptools.front.edited import Edited
from cliptools.front.images import Images, Reading
from cliptools.front.vocabulary import Vocabulary
from cliptools.io.bundle import Bundle
from cliptools.models.load import LoadedModel, Precision


@checked
def edit(
    units: Bundle | Sequence[Mapping[str, Any]],
    images: Images | None = None,
    *,
    sees: str | Sequence[str] = (),
    writes: str | Sequence[str] = (),
    how: str | None = None,
    head: int | None = None,
    by: str | None = None,
    layers: Sequence[int] | None = None,
    bundle: Bundle | None = None,
    texts: Vocabulary = None,
    templates: Sequence[str] = (),
    precision: Precision = "fp32",
    approximate: bool = False,
    limit: int | None = None,
    sample: int | None = None,
    seed: int = 0,
    strict: bool = False,
    batch_size: int = 32,
    workers: int | None = None,
    model: LoadedModel | None = None,
    device: str = "auto",
    cache: bool = True,
    progress: bool = False,
) -> Edited:
    """Edit a model's weights so that units no longer write along texts, or stand at their means, as clip-edit does.

    Args:
        units: Bundle with the units, or records of `spurious`, `mismatch` or `judge` that name them.
        images: Images over which means are taken, of any kind that `effects` takes. None: those of the bundle where it has means
            in the raw scale, else scenes for the embedded models.
        sees: Cues. The units are then those of the bundle that see a cue and write one of `writes`, by score.
        writes: Texts that the units shall no longer write. Empty: those in the records.
        how: null or zero. None: null for a ViT's neurons, and for a ResNet's pairs if texts are named; else zero.
        head: Number of units, the first ones. None: all; with `sees` 80 neurons, 400 pairs or 8 heads.
        by: Score of units with `sees`: cue-not-class or cue. None: cue-not-class; for pairs cue.
        layers: Layers of the bundle's units. None: all.
        bundle: Bundle of the units of records, for their means.
        texts: Vocabulary whose mean is subtracted from texts; see `mismatch`.
        templates: Sentences with {} in place of a text, whose embeddings are averaged; imagenet or emoji for a set of them.
        precision: Type in which weights are stored: fp32, bf16 or fp16.
        approximate: Accept an edit that is not exact: heads before the last layer at one mean for all tokens.
        limit: Number of images, the first ones, or of rendered scenes.
        sample: Number of images, drawn at random.
        seed: Random seed for the sample, or for the rendered scenes.
        strict: Raise an error for an unreadable or unusable image instead of a warning.
        batch_size: Images per forward pass.
        workers: Threads that decode images. None: the number of cores, at most 8.
        model: The model of the units, if it is loaded already, in fp32.
        device: auto, cpu, cuda, cuda:1 or mps.
        cache: Read text embeddings from the cache, and write them to it.
        progress: Write progress and messages to standard error; else messages go to the logger `cliptools`.

    Returns:
        The edited model with its record; `save` writes a file, `save_folder` a folder.

    Raises:
        UsageError: an argument is invalid, the edit cannot be exact, or it would change nothing.
        StreamError: records name no units, or units of several models.
        ModelError: the model is not available, not that of the units, or has no exact edit.
    """
    sees, writes = (distinct_texts((given,) if isinstance(given, str) else given) for given in (sees, writes))
    means = MeanImages(
        images=images, limit=limit, sample=sample, seed=seed,
        reading=Reading(batch_size=batch_size, workers=workers, strict=strict),
    )  # fmt: skip
    request = EditRequest(
        sees=sees, writes=writes, how=how, head=head, by=by, layers=chosen_layers(layers), texts=texts,
        templates=chosen_templates(templates), precision=precision, approximate=approximate, means=means, model=model,
        device=device,
        cache=cache, arguments={"sees": list(sees), "writes": list(writes), "how": how, "head": head},
    )  # fmt: skip
    with front_call(progress):
        request.check()
        if isinstance(units, Bundle):
            return edited_model(units, None, request)
        return edited_model(bundle, [(f"record {n}", record) for n, record in enumerate(units, 1)], request)
