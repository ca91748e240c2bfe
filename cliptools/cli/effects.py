"""clip-effects: images in, a bundle of the effects of neurons out."""

from pathlib import Path
from typing import Any

import click

from cliptools.cli.app import FORMATS, command, measuring_options, model_options, output_options, preprocess_option

MODEL_HELP = "open_clip's name, local-dir:DIR, hf-hub:ID, emoji-vit or emoji-rn."
PRETRAINED_HELP = "open_clip's tag, a weights file or a folder with one, or 'random'."
TEXT_FROM_HELP = "Weights that supply the text tower, for a file with an image tower alone."
EFFECTS = ("second", "first", "indirect", "pooled")
EFFECT_HELP = (
    "second: through later heads; first: directly, at the class token; indirect: the loss of output with the neuron at its "
    "mean; pooled: through attention pooling [default: pooled for a ResNet, else second]."
)
UNITS = ("pairs", "neurons", "heads")
UNITS_HELP = "Neuron-head pairs (ResNet), neurons, or heads (ViT: their direct effect) [default: pairs or neurons]."
LAYERS_HELP = (
    "Layers counted from 0, as 8-10,11 [default: from two thirds of the depth to the last but one; for heads, the last 4]."
)
SAMPLE_NEURONS_HELP = "Only N neurons of each layer, drawn with --seed; for --effect indirect [default: all]."
TOP_HELP = "Images of largest effect kept per neuron [default: 2 % of the images read, at least 10, at most 100]."
QUANTILE_HELP = "Share of images below the threshold."
COMPONENTS_HELP = "Principal directions per unit."
KEEP_HELP = "Keep this share of the units, those of largest top norms, and the mean sum of the others' effects [default: all]."
SCALE_HELP = "unit: effects times 100/‖M(I)‖ of their image; raw: unscaled [default: raw for pooled effects, else unit]."
LIMIT_HELP = "Only the first N images [scenes, where no PATH is given: 2000]."
SAMPLE_HELP = "N images drawn at random from the whole list."
SEED_HELP = "Random seed for samples, scenes and the order of work."
THUMBNAILS_HELP = "Keep small JPEGs of the top images in the bundle."
SHARD_HELP = "Read only each N-th image of the list, from the I-th on (I from 1), and write a partial for clip-merge."
CENTRE_HELP = "With --shard: take the provisional mean from this partial instead of a sample [default: mean of 256 images]."
RESUME_HELP = "With --shard: leave the file of -o alone where it holds this very shard; any other file is an error."


@command("clip-effects")
@click.argument("paths", nargs=-1, metavar="[PATH]...")
@click.option("--model", default="emoji-vit", show_default=True, help=MODEL_HELP)
@click.option("--pretrained", help=PRETRAINED_HELP)
@click.option("--text-from", metavar="TAG|FILE", help=TEXT_FROM_HELP)
@preprocess_option
@click.option("--effect", type=click.Choice(EFFECTS), help=EFFECT_HELP)
@click.option("--units", type=click.Choice(UNITS), help=UNITS_HELP)
@click.option("--layers", help=LAYERS_HELP)
@click.option("--sample-neurons", type=click.IntRange(1), metavar="N", help=SAMPLE_NEURONS_HELP)
@click.option("--top-images", type=click.IntRange(1), metavar="T", help=TOP_HELP)
@click.option("--quantile", default=0.98, show_default=True, type=click.FloatRange(0, 1, True, True), help=QUANTILE_HELP)
@click.option("--components", default=1, show_default=True, type=click.IntRange(1), help=COMPONENTS_HELP)
@click.option("--keep", metavar="PERCENT", help=KEEP_HELP)
@click.option("--scale", type=click.Choice(["unit", "raw"]), help=SCALE_HELP)
@click.option("--limit", type=click.IntRange(1), help=LIMIT_HELP)
@click.option("--sample", type=click.IntRange(1), help=SAMPLE_HELP)
@click.option("--seed", default=0, show_default=True, type=click.IntRange(0), help=SEED_HELP)
@click.option("--thumbnails", type=click.IntRange(16, 512), metavar="PIXELS", help=THUMBNAILS_HELP)
@click.option("--shard", metavar="I/N", help=SHARD_HELP)
@click.option("--centre", type=click.Path(dir_okay=False, path_type=Path), metavar="PARTIAL", help=CENTRE_HELP)
@click.option("--resume", is_flag=True, help=RESUME_HELP)
@measuring_options
@model_options
@output_options(*FORMATS)
def main(**options: Any) -> None:
    """Measure what neurons of CLIP's image tower do to its output.

    Measures the second-order effects of all neurons of the chosen layers, as they flow through the later attention heads:
    one forward pass per image, exact statistics, memory that does not grow with the number of images. PATHs are images,
    folders, globs or tar (WebDataset) archives; - is a tar on standard input. Without a PATH, the embedded model reads
    emoji scenes that are rendered on the spot.

    --effect first is what a neuron adds to the output at the class token itself. --effect indirect is what the output
    loses when the neuron's activation is replaced by its mean over the images at every token. Nothing is frozen, so it takes
    one pass for the means and then, for each image and neuron, one pass through the later layers; the cost is printed before
    it starts. Both exist for the last layer too, second-order effects do not.

    The model decides the method. A ResNet's attention pooling reads the last block, so its units are pairs of a neuron and
    a head. A pair acts along one direction, which the weights give, so its bundle holds a sign and no directions;
    later commands take these from the model. Heads are measured with their second moments, from which clip-decompose
    --method textspan names them.

    --shard does a part of the work. Each shard names the same images and options and writes a partial; clip-merge joins
    the partials into the bundle that one run over all images gives.

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
    from cliptools.cli.run.effects import EffectsOptions, run

    run(EffectsOptions(**options))


if __name__ == "__main__":
    main()
