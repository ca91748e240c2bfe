"""clip-segment: where in an image a text is, or which of many classes each of its pixels shows."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from cliptools.cli.app import CLASS_TEMPLATES, Function, command, device_option, output_options, reading_options, template_option
from cliptools.errors import UsageError
from cliptools.segmentation import ALL

METHOD_HELP = "How maps are made: see the methods of clip-segment [default: neurons for a ViT, pairs for a ResNet and for pairs]."
NEURONS_HELP = "Number of neurons per text (bundles of a ViT's neurons) [default: 200]."
PAIRS_HELP = (
    "Number of neuron-head pairs per text (bundles of pairs) [default: 13.6 % of the pairs, which is 20,000 for RN50x16]."
)
THRESHOLD_HELP = "A mask holds the pixels where the heat map reaches this value; 'mean': the map's own mean [default: 0.5]."
SIZE_HELP = "Pixels of the shorter side as the model sees it, rounded to whole patches [default: the model's own]."
CROP_HELP = "Side of the window for label maps, in the model's pixels [default: the model's own size]."
STRIDE_HELP = (
    "Slide a window by this many pixels, and average [default: half a window for label maps; heat maps see the whole image at "
    "once]."
)
CLASSES_HELP = (
    "A file with a class a line, synonyms after commas; or emoji, imagenet, cifar10. With a ResNet or pairs: label maps of all "
    "classes. With other units of a ViT: a heat map of each image's own best class."
)
BACKGROUND_HELP = (
    "Background of label maps: a class by name; or a probability, below which a pixel is background; or none [default: none]."
)
CENTER_HELP = "Label maps: subtract the mean over the class texts [default: classes]."
SINK_HELP = (
    "Repair the bottom-right token in maps of pairs, neurons and heads (ResNet only) [default: auto, where it is measured to "
    "stand out]."
)
MASK_HELP = "Mask of clip-edit, whose units (ViT) are put at their means on every image [default: none]."
FIGURES_HELP = "Folder for a figure of each image [default: no figures]."
BATCH_HELP = "Images of one shape, or windows, at a time; halved where memory runs out."


def map_options(function: Function) -> Function:
    """Options of clip-segment and clip-segment-eval that set how maps are made."""
    bundle = click.Path(path_type=Path, allow_dash=True)
    for add in (
        click.option("--bundle", type=bundle, help="The bundle [default: standard input]."),
        template_option("text", CLASS_TEMPLATES),
        click.option("--stride", type=click.IntRange(1), metavar="PIXELS", help=STRIDE_HELP),
        click.option("--crop", type=click.IntRange(32, 8192), metavar="PIXELS", help=CROP_HELP),
        click.option("--size", type=click.IntRange(16, 8192), metavar="PIXELS", help=SIZE_HELP),
        click.option("--center", type=click.Choice(["classes", "none"]), help=CENTER_HELP),
        click.option("--sink", type=click.Choice(["auto", "on", "off"]), help=SINK_HELP),
        click.option("--top-pairs", type=click.IntRange(1), help=PAIRS_HELP),
        click.option("--neurons", type=click.IntRange(1), help=NEURONS_HELP),
        click.option("--method", type=click.Choice(ALL), help=METHOD_HELP),
    ):
        function = add(function)
    return function


def running_options(*formats: str) -> Callable[[Function], Function]:
    """Options of both commands that set how a run reads, computes and writes."""

    def add(function: Function) -> Function:
        function = device_option(output_options(*formats)(function))
        batch = click.option("--batch-size", default=16, show_default=True, type=click.IntRange(1), help=BATCH_HELP)
        strict = click.option("--strict", is_flag=True, help="An unreadable or unusable image is an error, not a warning.")
        return strict(reading_options(batch(function)))

    return add


def figure_options(function: Function) -> Function:
    """Options of clip-segment and clip-explain that draw a figure of each image."""
    kinds = click.Choice(["png", "svg", "pdf"])
    dark = click.option("--dark", is_flag=True, help="Draw --figures on a dark ground.")
    kind = click.option("--figure-format", type=kinds, default="png", show_default=True, help="Format of --figures.")
    folder = click.Path(path_type=Path, file_okay=False)
    return click.option("--figures", type=folder, metavar="FOLDER", help=FIGURES_HELP)(kind(dark(function)))


def refuse_evaluate(function: Function) -> Function:
    """--evaluate, which clip-segment had before clip-segment-eval: hidden, and a usage error that names the new command."""

    def refuse(context: click.Context, _: click.Parameter, value: bool) -> None:
        if value and not context.resilient_parsing:
            raise UsageError("--evaluate is now a command of its own: use clip-segment-eval with the same images and options")

    settings: dict[str, Any] = {"is_flag": True, "is_eager": True, "hidden": True}
    settings |= {"expose_value": False, "allow_from_autoenv": False}  # CLIPTOOLS_EVALUATE is for other commands
    return click.option("--evaluate", callback=refuse, **settings)(function)


@command("clip-segment")
@click.argument("paths", nargs=-1, metavar="IMAGE...")
@click.option("--text", "texts", multiple=True, metavar="TEXT", help="What to find; repeatable.")
@click.option("--classes", metavar="NAME|FILE", help=CLASSES_HELP)
@click.option("--threshold", metavar="NUMBER|mean", help=THRESHOLD_HELP)
@click.option("--background", metavar="NAME|NUMBER|none", help=BACKGROUND_HELP)
@map_options
@click.option("--out-dir", type=click.Path(path_type=Path, file_okay=False), help="Write masks and overlays here, as PNG.")
@figure_options
@click.option("--resume", is_flag=True, help="Continue an interrupted run in --out-dir.")
@click.option("--mask", type=click.Path(path_type=Path), metavar="FILE", help=MASK_HELP)
@running_options("jsonl", "safetensors", "table")
@refuse_evaluate
def main(**options: Any) -> None:
    """Find where in images a text is, or label every pixel with one of many classes, without training.

    Reads a bundle of clip-effects or clip-decompose on standard input and the named images: files, folders, globs, tar
    archives, or - for a tar on standard input (then name the bundle by --bundle). The bundle's model decides the methods.

    With --text: a record for each image and text; with --out-dir also masks, overlays and, for several texts, a label map;
    with -f safetensors heat maps from 0 to 1 at the images' own sizes, [text, y, x] by image. Images keep their aspect and
    are not cropped. A label map gives a pixel to the text whose map, standardised over the image, is highest there, and to
    the background (0) where the pixel is in no text's mask.

    With --classes and a CLIP-ResNet, or pairs of a ViT: a record for each image; with --out-dir a label map and an overlay;
    with -f safetensors the logits at the size the model sees, [text, y, x] by image. The mean over the class texts is
    subtracted, a window slides over the image, logits are averaged, softmax and argmax follow. Labels: 0 for the background,
    1 for the first class, and so on.

    With --figures: for each image a figure for a paper, with the picture, the heat map of each text under its name with a colour
    bar of scores, and label maps with a legend of the classes that occur. A class has the same colour in all figures of a list.

    clip-segment-eval compares masks and label maps with the ground truth.

    \b
    Methods for ViTs (where attention pools with learned queries, and the units are neurons, the first three):
      neurons    mean activation of the neurons whose effects lie along the text (arXiv 2406.04341)
      signed     their activations weighted by how far they lie along it
      effects    their second-order effects along the text, patch by patch, or the pooled effects that the bundle has
      attention  in the last layer, of the class token or the mean over the patches
      rollout    Abnar and Zuidema 2020
      gradcam    Selvaraju et al. 2017, last block                  chefer     Chefer et al. 2021
      textspan   direct effects of the last 4 layers' heads (Gandelsman et al. 2024)
    Methods for ResNets, and the first three and effects for bundles of pairs of a ViT that pools by attention:
      pairs      neuron-head pairs whose directions lie along the text (arXiv 2509.19943)
      neurons, heads    the same by the neurons' or the heads' half of each pair alone
      maskclip   every token by the value path (Zhou et al. 2022)   qqkk       softmax(qq')+softmax(kk') (Wang et al. 2024)
      values     as maskclip, with positional embeddings

    \b
    Examples:
      clip-segment holiday.jpg --text dog --out-dir masks < neurons.safetensors
      clip-segment photos/ --classes imagenet --size 448 < neurons.safetensors | jq -c '[.image, .text, .box]'
      clip-scenes | clip-segment - --text cat --text dog --bundle neurons.safetensors -f safetensors > heat.safetensors
      clip-segment street.jpg --text car --text sign --figures pages --figure-format pdf < neurons.safetensors
      clip-segment street.jpg --classes city.txt --background 0.1 --out-dir labelled < pairs.safetensors
    """
    from cliptools.cli.run.segment_images import SegmentOptions, run

    run(SegmentOptions(**options))


if __name__ == "__main__":
    main()
