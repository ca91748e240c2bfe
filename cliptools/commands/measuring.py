"""What clip-effects does with a model and images: the measurement, and the bundle that says what was measured."""

from collections.abc import Collection, Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

    from cliptools.ground.bundle import Bundle
    from cliptools.ground.images import ImageSource
    from cliptools.ground.loader import Skipped
    from cliptools.ground.models import LoadedModel
    from cliptools.methods.choice import Choice
    from cliptools.methods.engine import Batches, Effects, Report, Settings

TOOL = "clip-effects"
INDIRECT = "indirect"


class Measured(NamedTuple):
    """A measurement, and the images it is of."""

    report: "Report"
    source: "ImageSource"
    indices: Sequence[int]
    """Places in the source, by the number that effects know an image by."""
    skipped: "Skipped"
    kept: "Tensor | None" = None
    """Which units are to be kept, if not all."""
    rest: "Tensor | None" = None
    """Mean sum of the others' effects [d]."""
    token_mean: "Tensor | None" = None
    """Of indirect effects, the units' mean activations [units, token]."""


def measure_bundle(
    model: "LoadedModel", source: "ImageSource", choice: "Choice", options: dict[str, Any], arguments: dict[str, Any]
) -> "Bundle":
    """Measure and say what was measured."""
    from cliptools.ground.progress import note
    from cliptools.methods.engine import Settings

    settings = Settings(
        top=options["top_images"],
        quantile=options["quantile"],
        components=options["components"],
        scale=options["scale"] == "unit",
        memory=options["memory"] * 1e9,
        compact=choice.units == "pairs",
        moments=choice.units == "heads",
    )
    measured = _measure(model, source, choice, settings, options)
    report = measured.report
    passes = "" if report.passes == 1 else f", {report.passes} passes"
    passes += f", {report.reread} looked at twice" if report.reread else ""
    skips = f", {len(measured.skipped)} skipped" if len(measured.skipped) else ""
    units = f"{len(report.effects.unit)} {choice.units}" + ("" if measured.kept is None else f", {int(measured.kept.sum())} kept")
    note(f"{TOOL}: {report.images} images{skips}{passes}, {units} of {model.name}")
    return _bundle(measured, model, choice, settings, options, arguments)


def _measure(
    model: "LoadedModel", source: "ImageSource", choice: "Choice", settings: "Settings", options: dict[str, Any]
) -> Measured:
    """Images by their names, whatever order the list came in, into statistics."""
    import torch

    from cliptools.ground.images import choose
    from cliptools.ground.loader import Skipped, load_batches
    from cliptools.methods.choice import paths_of
    from cliptools.methods.engine import measure
    from cliptools.methods.keeping import rest_mean, strongest
    from cliptools.methods.ordering import canonical_order

    chosen = choose(source, options["limit"], options["sample"], options["seed"])
    ranked, order = canonical_order([source.names[i] for i in chosen], options["seed"])
    indices = [chosen[i] for i in ranked]  # by name: a number that means the same in whatever order the list came
    number = {index: rank for rank, index in enumerate(indices)}
    skipped = Skipped()

    def batches(only: Collection[int] | None) -> Iterator[tuple[list[int], "Tensor"]]:
        loaded = load_batches(
            source,
            [indices[rank] for rank in order if only is None or rank in only],
            model.transform,
            batch_size=options["batch_size"],
            workers=options["workers"],
            strict=options["strict"],
            skipped=skipped,
        )
        return (([number[index] for index in read], pictures) for read, pictures in loaded)

    if choice.effect == INDIRECT:
        paths, settings = _indirect(model, batches, choice.layers, len(indices), settings, options)
    else:
        paths = paths_of(model.clip, choice.effect, choice.units)
    report = measure(paths, batches, choice.layers, len(indices), settings)
    measured = Measured(report, source, indices, skipped)
    if choice.effect == INDIRECT:
        measured = measured._replace(token_mean=torch.cat([paths.means[layer].T for layer in choice.layers]))
    if options["keep"] is None:
        return measured
    kept = strongest(report.effects.top_norm, options["keep"])
    return measured._replace(kept=kept, rest=rest_mean(paths, report.effects, kept))


def _indirect(
    model: "LoadedModel",
    batches: "Batches",
    layers: Sequence[int],
    expected: int,
    settings: "Settings",
    options: dict[str, Any],
) -> "tuple[Any, Settings]":
    """Means of activations, which indirect effects need first; and how much to keep of the effects to come."""
    from cliptools.ground.progress import note
    from cliptools.methods.indirect import Indirect, cost, draw_sample, keep_all, token_means

    visual = model.clip.visual
    sample = draw_sample(visual, layers, options["sample_neurons"], options["seed"])
    note(f"{TOOL}: {cost(visual, sample, expected)}")
    paths = Indirect(visual, sample, token_means(visual, batches(None), sample, expected), expected)
    return paths, settings._replace(margin=keep_all(paths, layers, expected, settings))


def _bundle(
    measured: Measured,
    model: "LoadedModel",
    choice: "Choice",
    settings: "Settings",
    options: dict[str, Any],
    arguments: dict[str, Any],
) -> "Bundle":
    """Tensors and header, as DESIGN's table of names has them."""
    import numpy as np

    from cliptools.ground.bundle import Bundle, json_tensor, with_shares
    from cliptools.ground.images import list_digest
    from cliptools.ground.provenance import Header
    from cliptools.ground.thumbnails import thumbnail_tensors

    report, source, indices = measured.report, measured.source, measured.indices
    effects, token_mean = report.effects, measured.token_mean
    if measured.kept is not None:
        effects = type(effects)(*(column[measured.kept.to(column.device)] for column in effects))
        token_mean = None if token_mean is None else token_mean[measured.kept.to(token_mean.device)]
    tensors = _directions(effects, settings)
    seen, top_image = np.unique(effects.top_image.cpu().numpy(), return_inverse=True)
    tensors["unit"] = effects.unit.cpu().numpy().astype(np.int32)
    tensors["top_image"] = top_image.reshape(effects.top_image.shape).astype(np.int32)
    for name in ("top_norm", "threshold"):
        tensors[name] = getattr(effects, name).cpu().numpy().astype(np.float32)
    if measured.rest is not None:
        tensors["rest_mean"] = measured.rest.cpu().numpy().astype(np.float32)
    if token_mean is not None:
        tensors["token_mean"] = token_mean.cpu().numpy().astype(np.float32)
    tensors["images"] = json_tensor([source.names[indices[i]] for i in seen])
    if options["thumbnails"]:
        tensors |= thumbnail_tensors(source, (indices[i] for i in seen), options["thumbnails"])
    names = [source.names[i] for i in indices]
    images = {"count": report.images, "digest": list_digest(names), "skipped": len(measured.skipped)}
    said = {"effect": choice.effect, "units": choice.units, "layers": list(choice.layers), "scale": options["scale"]}
    said |= {"quantile": settings.quantile, "top_images": settings.top}
    said |= {"keep": options["keep"], "measured": len(report.effects.unit)} if options["keep"] is not None else {}
    return with_shares(Bundle(Header("effects", model.identity, images, said).after(TOOL, arguments), tensors))


def _directions(effects: "Effects", settings: "Settings") -> "dict[str, np.ndarray]":
    """Directions, means and shares; of pairs, whose directions are the weights', the sign and the mean of the scalar."""
    import numpy as np

    component, mean = effects.component.cpu().numpy(), effects.mean.cpu().numpy().astype(np.float32)
    if settings.compact:
        return {"sign": np.sign(component[:, 0, 0]).astype(np.int8), "mean_scalar": mean[:, 0]}
    explained = effects.component_explained.cpu().numpy().astype(np.float32)
    tensors = {"direction": component[:, 0].astype(np.float32), "mean": mean, "explained": explained[:, 0]}
    tensors["explained_all"] = effects.explained_all.cpu().numpy().astype(np.float32)
    if settings.components > 1:
        tensors["component"], tensors["component_explained"] = component.astype(np.float32), explained
    if settings.moments:
        tensors["moment"] = effects.moment.cpu().numpy().astype(np.float32)
    return tensors
