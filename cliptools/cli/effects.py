"""clip-effects: images in, a bundle of the effects of neurons out."""

from pathlib import Path
from typing import Any

import click

from cliptools.cli.app import FORMATS, command, measuring_options, model_options, output_options, preprocess_option

MODEL_HELP = "Model: a name of open_clip, local-dir:DIR, hf-hub:ID, emoji-vit2, or emoji-rn2."
PRETRAINED_HELP = "Weights of the model: a tag of open_clip, a weights file, a folder with such a file, or 'random'."
TEXT_FROM_HELP = "Weights for the text tower, if --pretrained is a file with only an image tower."
EFFECTS = ("second", "first", "indirect", "pooled")
EFFECT_HELP = (
    "Effect to measure. second: through later heads; first: directly, where the output is read; indirect: the part of the "
    "output that is lost when the neuron is set to its mean; pooled: through attention pooling alone [default: pooled for a "
    "ResNet and for a ViT that pools by attention, else second]."
)
UNITS = ("pairs", "neurons", "heads", "sae:FILE")
UNITS_HELP = (
    "Kind of unit: pairs of a neuron and a head (pooled effects), neurons, or heads (ViT: their direct effect; where attention "
    "pools, the pooling's heads); or the latents of a sparse autoencoder in a file, with options as "
    "sae:FILE,layer=5,activation=topk,k=32 [default: pairs for pooled effects, else neurons]."
)
LAYERS_HELP = (
    "Layers to measure, counted from 0, as 8-10,11 [default: from two thirds of the depth to the last but one; for pooled "
    "effects of a ViT also the last; for heads, the last 4, or the pooling, which has the number of layers for its own]."
)
SAMPLE_NEURONS_HELP = "Measure only N neurons of each layer, drawn with --seed; for --effect indirect [default: all]."
TOP_HELP = "Number of images of largest effect to keep per unit [default: 2 % of the images read, at least 10, at most 100]."
QUANTILE_HELP = "Share of the images whose effect is below the threshold of a unit."
COMPONENTS_HELP = "Number of principal directions per unit."
KEEP_HELP = (
    "Keep this share of the units, those of largest top norms, and the mean of the sum of all other effects [default: all]."
)
SCALE_HELP = (
    "Scale of effects. unit: times 100/‖M(I)‖ of their image; raw: unscaled [default: raw for pooled effects, else unit]."
)
LIMIT_HELP = "Use only the first N images; without PATH, render N scenes [default: all images, or 2000 scenes]."
SAMPLE_HELP = "Use only N images, drawn at random from the whole list."
SEED_HELP = "Random seed for samples, scenes, and the order in which images are read."
THUMBNAILS_HELP = "Keep JPEGs of the top images in the bundle, with a longer side of this many pixels [default: none]."
PER_IMAGE_HELP = (
    "Also write the activity and the centred norm of every unit on every image to this safetensors file, in float16; the images "
    "are read twice."
)
SHARD_HELP = "Read only every N-th image of the list, from the I-th on (I from 1 to N), and write a partial for clip-merge."
CENTRE_HELP = "With --shard: partial from which the provisional mean is read [default: compute it from 256 images]."
RESUME_HELP = "With --shard: do nothing if the file of -o is the same shard already; any other existing file is an error."


class Units(click.Choice[str]):
    """A kind of unit, or sae: and a file."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """Return the value as it is given."""
        return value if isinstance(value, str) and value.startswith("sae:") else super().convert(value, param, ctx)


@command("clip-effects")
@click.argument("paths", nargs=-1, metavar="[PATH]...")
@click.option("--model", default="emoji-vit2", show_default=True, help=MODEL_HELP)
@click.option("--pretrained", help=PRETRAINED_HELP)
@click.option("--text-from", metavar="TAG|FILE", help=TEXT_FROM_HELP)
@preprocess_option
@click.option("--effect", type=click.Choice(EFFECTS), help=EFFECT_HELP)
@click.option("--units", type=Units(UNITS), help=UNITS_HELP)
@click.option("--layers", help=LAYERS_HELP)
@click.option("--sample-neurons", type=click.IntRange(1), metavar="N", help=SAMPLE_NEURONS_HELP)
@click.option("--top-images", type=click.IntRange(1), metavar="T", help=TOP_HELP)
@click.option("--quantile", default=0.98, show_default=True, type=click.FloatRange(0, 1, True, True), help=QUANTILE_HELP)
@click.option("--components", default=1, show_default=True, type=click.IntRange(1, 100_000), help=COMPONENTS_HELP)
@click.option("--keep", metavar="PERCENT", help=KEEP_HELP)
@click.option("--scale", type=click.Choice(["unit", "raw"]), help=SCALE_HELP)
@click.option("--limit", type=click.IntRange(1), help=LIMIT_HELP)
@click.option("--sample", type=click.IntRange(1), help=SAMPLE_HELP)
@click.option("--seed", default=0, show_default=True, type=click.IntRange(0), help=SEED_HELP)
@click.option("--thumbnails", type=click.IntRange(16, 512), metavar="PIXELS", help=THUMBNAILS_HELP)
@click.option("--per-image", type=click.Path(dir_okay=False, path_type=Path), metavar="FILE", help=PER_IMAGE_HELP)
@click.option("--shard", metavar="I/N", help=SHARD_HELP)
@click.option("--centre", type=click.Path(dir_okay=False, path_type=Path), metavar="PARTIAL", help=CENTRE_HELP)
@click.option("--resume", is_flag=True, help=RESUME_HELP)
@measuring_options
@model_options
@output_options(*FORMATS)
def main(**options: Any) -> None:
    """Measure what neurons of CLIP's image tower do to its output.

    Measures the second-order effects of all neurons of the chosen layers, which flow through the later attention heads.
    It takes one forward pass per image, statistics are exact, and memory does not grow with the number of images. PATHs are
    images, folders, globs or tar (WebDataset) archives; - is a tar on standard input. Without a PATH, the embedded model
    reads emoji scenes that are rendered for it.

    --effect first is the part of the output that a neuron adds directly, at the tokens that the output is read from.
    --effect indirect is the part that the output loses when the neuron's activation is replaced by its mean over the images
    at every token. All later layers are computed again, so this takes one pass for the means and then, for each image and
    neuron, one pass through the later layers; the cost is printed first. Both exist for the last layer too; second-order
    effects do not.

    The method depends on the model. A ResNet's attention pooling reads the last block, so its units are pairs of a neuron
    and a head. A pair acts along one direction, which follows from the weights. Its bundle therefore holds a sign and no
    directions; later commands compute these from the model. Heads are measured with their second moments, from which
    clip-decompose --method textspan finds words for them.

    A ViT may pool by attention with learned queries (SigLIP, Perception Encoder, CoCa). Its pooling reads all tokens of the last
    layer, so pairs of a neuron of any layer and a head of the pooling act along one direction as well, and are the default. No
    later self-attention is crossed. --effect second crosses one later layer and then the pooling. --units heads measures the
    pooling's heads, which add up to the output but for its biases and an MLP behind them, or by --layers those of self-attention.

    --units sae:FILE measures the latents of a sparse autoencoder or transcoder that was trained on the residual stream after a
    layer, or on what the layer's MLP adds to it. Every latent writes its row of the decoder into the stream, as a neuron writes
    its column of the MLP, and has the same effects; its words, images and ablation follow as for neurons. FILE, or its folder,
    is ViT-Prisma's, saev's or SAELens's, or safetensors with W_enc, b_enc, W_dec and b_dec. Layer, activation (relu, topk,
    batchtopk, jumprelu) and the rest come from the configuration in it or beside it; options after commas replace them: layer=5,
    hook=blocks.5.hook_mlp_out, activation, k, threshold, subtract=no (b_dec is not taken from the input), tokens=class or
    patches. Codes are those of the real forward pass; what the autoencoder misses is in no unit.

    --shard does a part of the work. Every shard is run with the same images and options, and writes a partial; clip-merge
    joins the partials into the bundle that one run over all images gives.

    \b
    Examples:
      clip-effects photos/ --model ViT-B-32-quickgelu --pretrained openai > effects.safetensors
      clip-scenes --count 500 | clip-effects - | clip-decompose --m 8
      clip-effects shard-{000..009}.tar --layers 8-10 --sample 5000 -o effects.safetensors
      clip-effects photos/ --model ViT-B-32 --pretrained openai --per-image activity.safetensors -o effects.safetensors
      clip-effects --thumbnails 96 | clip-decompose | clip-sheet > neurons.png
      clip-effects --effect indirect --sample-neurons 50 --limit 500 -o indirect.safetensors
      clip-effects photos/ --model RN50 --pretrained openai --keep 20% -o pairs.safetensors
      clip-effects --units heads | clip-decompose --method textspan
      clip-effects photos/ --model ViT-B-32 --pretrained datacomp_xl_s13b_b90k --units sae:prisma-layer-9/ -o latents.safetensors
      clip-effects photos/ --model ViT-L-14 --pretrained laion2b.bin --preprocess laion2b_s32b_b82k > effects.safetensors
      clip-effects photos/ --model ViT-L-14-quickgelu --pretrained tower.pt --text-from openai > effects.safetensors
      for i in 1 2 3 4; do clip-effects photos/ --shard $i/4 --resume -o part-$i.safetensors; done
      parallel clip-effects photos/ --shard {}/8 --resume -o part-{}.safetensors ::: {1..8}
    """
    from cliptools.cli.run.effects import EffectsOptions, run

    run(EffectsOptions(**options))


if __name__ == "__main__":
    main()
