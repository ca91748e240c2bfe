"""clip-effects: images in, a bundle of neurons' effects out."""

from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from cliptools.commands.base import (
    choose_format,
    command,
    history_arguments,
    model_options,
    output_options,
    parse_layers,
)
from cliptools.commands.present import FORMATS, emit
from cliptools.ground.errors import UsageError
from cliptools.ground.output import stdout_is_terminal

if TYPE_CHECKING:
    from torch import Tensor

    from cliptools.ground.bundle import Bundle
    from cliptools.ground.images import ImageSource
    from cliptools.ground.loader import Skipped
    from cliptools.ground.models import LoadedModel
    from cliptools.methods.engine import Batches, Paths, Report, Settings

SCENES = 2000  # rendered when no images are named
TOOL = "clip-effects"
EFFECTS = ("second", "first", "indirect")
EFFECT_HELP = "Through later heads; directly, at the class token; or what the output loses with the neuron at its mean."
SAMPLE_HELP = "Only N neurons of each layer, drawn by --seed; for --effect indirect [default: all]."


@command(TOOL)
@click.argument("paths", nargs=-1, metavar="[PATH]...")
@click.option("--model", default="emoji-vit", show_default=True, help="open_clip's name, local-dir:DIR, hf-hub:ID, or emoji-vit.")
@click.option("--pretrained", help="open_clip's tag, a weights file, or 'random'.")
@click.option("--effect", type=click.Choice(EFFECTS), default="second", show_default=True, help=EFFECT_HELP)
@click.option("--layers", help="Layers counted from 0, as 8-10,11 [default: from two thirds of the depth to the last but one].")
@click.option("--sample-neurons", type=click.IntRange(1), metavar="N", help=SAMPLE_HELP)
@click.option(
    "--top-images", default=100, show_default=True, type=click.IntRange(1), help="Images of largest effect kept per neuron."
)
@click.option(
    "--quantile",
    default=0.98,
    show_default=True,
    type=click.FloatRange(0, 1, True, True),
    help="Share of images below the threshold.",
)
@click.option("--components", default=1, show_default=True, type=click.IntRange(1), help="Principal directions per neuron.")
@click.option(
    "--scale", type=click.Choice(["unit", "raw"]), default="unit", show_default=True, help="unit: effects times 100/‖M(I)‖."
)
@click.option("--limit", type=click.IntRange(1), help=f"Only the first N images [scenes, where no PATH is given: {SCENES}].")
@click.option("--sample", type=click.IntRange(1), help="N images drawn over the whole list.")
@click.option(
    "--seed", default=0, show_default=True, type=click.IntRange(0), help="Of the samples, the scenes and the order of work."
)
@click.option(
    "--thumbnails", type=click.IntRange(16, 512), metavar="PIXELS", help="Keep small JPEGs of the top images in the bundle."
)
@click.option("--strict", is_flag=True, help="An unreadable image is an error, not a warning.")
@click.option("--memory", default=3.2, show_default=True, type=click.FloatRange(0.01), help="GB of statistics held at once.")
@click.option("--batch-size", default=32, show_default=True, type=click.IntRange(1), help="Images per forward pass.")
@click.option("--workers", type=click.IntRange(0), help="Threads that decode images [default: the number of cores, at most 8].")
@model_options
@output_options(*FORMATS)
@click.pass_context
def main(
    context: click.Context, /, paths: tuple[str, ...], output_format: str | None, output: Path | None, **options: Any
) -> None:
    """Measure what neurons of CLIP's image tower do to its output.

    Second-order effects of all neurons of the chosen layers, as they flow through the later attention heads: one
    forward pass per image, exact statistics, memory that does not grow with the number of images. PATHs are images,
    folders, globs or tar (WebDataset) archives; - is a tar on standard input. Without a PATH, the embedded model looks
    at emoji scenes rendered on the spot.

    --effect first is what a neuron adds to the output at the class token itself. --effect indirect is what the output
    loses when the neuron's activation is its mean over the images at every token: nothing is frozen, so it takes a pass
    for the means and then, for each image and neuron, one through the later layers. What that comes to is told before
    it starts. Both exist for the last layer too, second-order effects do not.

    \b
    Examples:
      clip-effects photos/ --model ViT-B-32-quickgelu --pretrained openai > effects.safetensors
      clip-scenes --count 500 | clip-effects - | clip-decompose --m 8
      clip-effects shard-{000..009}.tar --layers 8-10 --sample 5000 -o effects.safetensors
      clip-effects --thumbnails 96 | clip-decompose | clip-sheet > neurons.png
      clip-effects --effect indirect --sample-neurons 50 --limit 500 -o indirect.safetensors
    """
    chosen_format = choose_format(output_format, output, "safetensors")
    if chosen_format == "safetensors" and output is None and stdout_is_terminal():
        raise UsageError(
            "a bundle is binary and would garble the terminal: redirect it (> FILE), name a file (-o) or ask for -f table"
        )
    if options["sample_neurons"] and options["effect"] != "indirect":
        raise UsageError("--sample-neurons is for --effect indirect: the others take all neurons of a layer at once")
    source = _images(paths, options)
    from cliptools.ground.models import drop_text_tower, load_model
    from cliptools.methods.first_order import choose_any_layers
    from cliptools.methods.vit_paths import choose_layers, supported_tower

    model = load_model(options["model"], options["pretrained"], options["device"], options["precision"])
    visual = supported_tower(model.clip)
    drop_text_tower(model)
    asked = parse_layers(options["layers"]) if options["layers"] else None
    layers = (choose_layers if options["effect"] == "second" else choose_any_layers)(visual, asked)
    emit(measure_bundle(model, source, layers, options, history_arguments(context, layers=list(layers))), chosen_format, output)


def _images(paths: Sequence[str], options: dict[str, Any]) -> "ImageSource":
    """The images named, or rendered scenes for an embedded model."""
    from cliptools.ground.models import EMBEDDED

    if paths:
        from cliptools.ground.images import open_images

        return open_images(paths)
    if options["model"] not in EMBEDDED:
        raise UsageError(f"no images named: {options['model']} needs a PATH (scenes are rendered for {', '.join(EMBEDDED)} only)")
    if options["sample"] is not None:
        raise UsageError("--sample draws from images that are given; for another set of rendered scenes use --seed")
    from cliptools.ground.scene_images import SceneSource

    return SceneSource(options["limit"] or SCENES, options["seed"])


def _workers(source: "ImageSource") -> int:
    """Threads that decode: one a core, at most 8; none for scenes, whose drawing holds the interpreter."""
    from cliptools.ground.loader import default_workers
    from cliptools.ground.scene_images import SceneSource

    return 0 if isinstance(source, SceneSource) else default_workers()


def measure_bundle(
    model: "LoadedModel",
    source: "ImageSource",
    layers: Sequence[int],
    options: dict[str, Any],
    arguments: dict[str, Any],
) -> "Bundle":
    """Measure and say what was measured."""
    from cliptools.ground.images import choose
    from cliptools.ground.loader import Skipped, load_batches
    from cliptools.ground.progress import note
    from cliptools.methods.engine import Settings, measure
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
            workers=_workers(source) if options["workers"] is None else options["workers"],
            strict=options["strict"],
            skipped=skipped,
        )
        return (([number[index] for index in read], pictures) for read, pictures in loaded)

    settings = Settings(
        top=options["top_images"],
        quantile=options["quantile"],
        components=options["components"],
        scale=options["scale"] == "unit",
        memory=options["memory"] * 1e9,
    )
    if options["effect"] == "indirect":
        report = _measure_indirect(model, batches, layers, len(indices), settings, options)
    else:
        report = measure(_paths(model, options["effect"]), batches, layers, len(indices), settings)
    passes = "" if report.passes == 1 else f", {report.passes} passes"
    passes += f", {report.reread} looked at twice" if report.reread else ""
    skips = f", {len(skipped)} skipped" if len(skipped) else ""
    note(f"{TOOL}: {report.images} images{skips}{passes}, {len(report.effects.unit)} neurons of {model.name}")
    return _bundle(report, model, source, indices, skipped, settings, options, arguments)


def _paths(model: "LoadedModel", effect: str) -> "Paths":
    """The factored effect asked for, on this model."""
    from cliptools.methods.first_order import FirstOrder
    from cliptools.methods.second_order import SecondOrder

    return (FirstOrder if effect == "first" else SecondOrder)(model.clip.visual)


def _measure_indirect(
    model: "LoadedModel",
    batches: "Batches",
    layers: Sequence[int],
    expected: int,
    settings: "Settings",
    options: dict[str, Any],
) -> "Report":
    """Means of activations first, then the effects themselves; units by their neurons' own numbers."""
    from cliptools.ground.progress import note
    from cliptools.methods.engine import measure
    from cliptools.methods.indirect import Indirect, cost, draw_sample, keep_all, token_means

    visual = model.clip.visual
    sample = draw_sample(visual, layers, options["sample_neurons"], options["seed"])
    note(f"{TOOL}: {cost(visual, sample, expected)}")
    paths = Indirect(visual, sample, token_means(visual, batches(None), sample, expected), expected)
    return measure(paths, batches, layers, expected, settings._replace(margin=keep_all(paths, layers, expected, settings)))


def _bundle(
    report: "Report",
    model: "LoadedModel",
    source: "ImageSource",
    indices: Sequence[int],
    skipped: "Skipped",
    settings: "Settings",
    options: dict[str, Any],
    arguments: dict[str, Any],
) -> "Bundle":
    """Tensors and header, as DESIGN's table of names has them."""
    import numpy as np

    from cliptools.ground.bundle import Bundle, json_tensor
    from cliptools.ground.images import list_digest
    from cliptools.ground.provenance import Header
    from cliptools.ground.thumbnails import thumbnail_tensors

    effects = {name: column.cpu().numpy() for name, column in report.effects._asdict().items()}
    seen, top_image = np.unique(effects["top_image"], return_inverse=True)
    component, explained, moment = (effects.pop(name) for name in ("component", "component_explained", "moment"))
    tensors = {name: value.astype(np.float32) for name, value in effects.items()}
    tensors["unit"] = effects["unit"].astype(np.int32)
    tensors["top_image"] = top_image.reshape(effects["top_image"].shape).astype(np.int32)
    tensors["direction"], tensors["explained"] = component[:, 0].astype(np.float32), explained[:, 0].astype(np.float32)
    if settings.components > 1:
        tensors["component"], tensors["component_explained"] = component.astype(np.float32), explained.astype(np.float32)
    if settings.moments:
        tensors["moment"] = moment.astype(np.float32)
    tensors["images"] = json_tensor([source.names[indices[i]] for i in seen])
    if options["thumbnails"]:
        tensors |= thumbnail_tensors(source, (indices[i] for i in seen), options["thumbnails"])
    images = {"count": report.images, "digest": list_digest([source.names[i] for i in indices]), "skipped": len(skipped)}
    said = {"effect": options["effect"], "scale": options["scale"], "quantile": settings.quantile, "top_images": settings.top}
    header = Header("effects", model.identity, images, said | {"units": "neurons", "layers": arguments["layers"]})
    return Bundle(header.after(TOOL, arguments), tensors)


if __name__ == "__main__":
    main()
