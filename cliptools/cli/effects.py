"""clip-effects: images in, a bundle of neurons' effects out."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from cliptools.cli.app import (
    FORMATS,
    choose_format,
    command,
    history_arguments,
    measuring_options,
    model_options,
    output_options,
    parse_layers,
    parse_percentage,
    preprocess_option,
)
from cliptools.cli.run.bundle_output import emit
from cliptools.cli.run.effects import INDIRECT, TOOL, measure_bundle
from cliptools.cli.run.shards import check_shard, write_partial
from cliptools.errors import UsageError
from cliptools.io.files import stdout_is_terminal

if TYPE_CHECKING:
    from cliptools.images.loader import ImageSource

SCENES = 2000  # rendered when no images are named
TEXT_FROM_HELP = "Weights whose text tower is taken, for a file that holds an image tower alone."
EFFECTS = ("second", "first", INDIRECT, "pooled")
EFFECT_HELP = (
    "Through later heads; directly, at the class token; what the output loses with the neuron at its mean; or through "
    "attention pooling [default: pooled for a ResNet, else second]."
)
UNITS = ("pairs", "neurons", "heads")
UNITS_HELP = "Neuron-head pairs (of a ResNet), neurons, or heads (of a ViT: their direct effect) [default: pairs or neurons]."
LAYERS_HELP = (
    "Layers counted from 0, as 8-10,11 [default: from two thirds of the depth to the last but one; of heads, the last 4]."
)
KEEP_HELP = "Keep this share of the units, those of largest top norms, and what the others add up to on average [default: all]."
SCALE_HELP = "unit: effects times 100/‖M(I)‖ of their image; raw: as they are [default: raw for pooled effects, else unit]."
SHARD_HELP = "Only each N-th image of the list, from the I-th on (I from 1), into a partial for clip-merge."
RESUME_HELP = "With --shard: leave FILE of -o alone where it is this very shard; any other file there is an error."
CENTRE_HELP = "With --shard: the provisional mean of this partial, so that no sample is looked at [default: of 256 images]."
TOP_HELP = "Images of largest effect kept per neuron [default: 2 % of the images read, at least 10, at most 100]."
SAMPLE_HELP = "Only N neurons of each layer, drawn by --seed; for --effect indirect [default: all]."


@command(TOOL)
@click.argument("paths", nargs=-1, metavar="[PATH]...")
@click.option(
    "--model", default="emoji-vit", show_default=True, help="open_clip's name, local-dir:DIR, hf-hub:ID, emoji-vit or emoji-rn."
)
@click.option("--pretrained", help="open_clip's tag, a weights file or a folder with one, or 'random'.")
@click.option("--text-from", metavar="TAG|FILE", help=TEXT_FROM_HELP)
@preprocess_option
@click.option("--effect", type=click.Choice(EFFECTS), help=EFFECT_HELP)
@click.option("--units", type=click.Choice(UNITS), help=UNITS_HELP)
@click.option("--layers", help=LAYERS_HELP)
@click.option("--sample-neurons", type=click.IntRange(1), metavar="N", help=SAMPLE_HELP)
@click.option("--top-images", type=click.IntRange(1), metavar="T", help=TOP_HELP)
@click.option(
    "--quantile",
    default=0.98,
    show_default=True,
    type=click.FloatRange(0, 1, True, True),
    help="Share of images below the threshold.",
)
@click.option("--components", default=1, show_default=True, type=click.IntRange(1), help="Principal directions per unit.")
@click.option("--keep", metavar="PERCENT", help=KEEP_HELP)
@click.option("--scale", type=click.Choice(["unit", "raw"]), help=SCALE_HELP)
@click.option("--limit", type=click.IntRange(1), help=f"Only the first N images [scenes, where no PATH is given: {SCENES}].")
@click.option("--sample", type=click.IntRange(1), help="N images drawn over the whole list.")
@click.option(
    "--seed", default=0, show_default=True, type=click.IntRange(0), help="Of the samples, the scenes and the order of work."
)
@click.option(
    "--thumbnails", type=click.IntRange(16, 512), metavar="PIXELS", help="Keep small JPEGs of the top images in the bundle."
)
@click.option("--shard", metavar="I/N", help=SHARD_HELP)
@click.option("--centre", type=click.Path(dir_okay=False, path_type=Path), metavar="PARTIAL", help=CENTRE_HELP)
@click.option("--resume", is_flag=True, help=RESUME_HELP)
@measuring_options
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

    The model decides the method: of a ResNet, whose attention pooling reads the last block, the units are pairs of a neuron
    and a head. A pair acts along one direction, which the weights give, so its bundle holds a sign and no directions;
    later commands take these from the model. Heads come with second moments, which name them (clip-decompose --method
    textspan).

    --shard takes a part of the work. Each shard names the same images and options, writes a partial, and clip-merge joins
    these into the bundle that one run over all images gives.

    \b
    Examples:
      clip-effects photos/ --model ViT-B-32-quickgelu --pretrained openai > effects.safetensors
      clip-scenes --count 500 | clip-effects - | clip-decompose --m 8
      clip-effects shard-{000..009}.tar --layers 8-10 --sample 5000 -o effects.safetensors
      clip-effects --thumbnails 96 | clip-decompose | clip-sheet > neurons.png
      clip-effects --effect indirect --sample-neurons 50 --limit 500 -o indirect.safetensors
      clip-effects photos/ --model RN50 --pretrained openai --keep 20% -o pairs.safetensors
      clip-effects --units heads | clip-decompose --method textspan
      clip-effects photos/ --model ViT-L-14 --pretrained laion2b.bin --preprocess laion2b_s32b_b82k > effects.safetensors
      clip-effects photos/ --model ViT-L-14-quickgelu --pretrained tower.pt --text-from openai > effects.safetensors
      for i in 1 2 3 4; do clip-effects photos/ --shard $i/4 --resume -o part-$i.safetensors; done
      parallel clip-effects photos/ --shard {}/8 --resume -o part-{}.safetensors ::: {1..8}
    """
    chosen_format = choose_format(output_format, output, "safetensors")
    if chosen_format == "safetensors" and output is None and stdout_is_terminal():
        raise UsageError(
            "a bundle is binary and would garble the terminal: redirect it (> FILE), name a file (-o) or ask for -f table"
        )
    if options["sample_neurons"] and options["effect"] != INDIRECT:
        raise UsageError("--sample-neurons is for --effect indirect: the others take all units of a layer at once")
    check_shard(paths, options, chosen_format, output)
    options["keep"] = parse_percentage(options["keep"], "--keep") if options["keep"] else None
    asked = parse_layers(options["layers"]) if options["layers"] else None
    source = _images(paths, options)
    from cliptools.effects.select import choose_effects
    from cliptools.models.load import drop_text_tower, load_model

    names, arithmetic = (options["model"], options["pretrained"]), (options["device"], options["precision"])
    model = load_model(*names, *arithmetic, options["preprocess"], text_from=options["text_from"])
    choice = choose_effects(model.clip, options["effect"], options["units"], asked)
    if choice.units == "pairs" and options["components"] > 1:
        raise UsageError("--components: a pair acts along one direction; --units neurons or heads may have more")
    drop_text_tower(model)
    made = {"effect": choice.effect, "units": choice.units, "layers": list(choice.layers)}
    options["scale"] = options["scale"] or choice.scale
    arguments = history_arguments(context, **made, scale=options["scale"])
    if options["shard"]:
        write_partial(model, source, choice, options, arguments, output)
        return
    emit(measure_bundle(model, source, choice, options, arguments), chosen_format, output)


def _images(paths: Sequence[str], options: dict[str, Any]) -> "ImageSource":
    """The images named, or rendered scenes for an embedded model."""
    from cliptools.embedded_models import EMBEDDED

    if paths:
        from cliptools.images.loader import open_images

        return open_images(paths)
    if options["model"] not in EMBEDDED:
        raise UsageError(f"no images named: {options['model']} needs a PATH (scenes are rendered for {', '.join(EMBEDDED)} only)")
    if options["sample"] is not None:
        raise UsageError("--sample draws from images that are given; for another set of rendered scenes use --seed")
    from cliptools.emoji.render import scenes_for

    return scenes_for(options["model"], options["limit"] or SCENES, options["seed"])


if __name__ == "__main__":
    main()
