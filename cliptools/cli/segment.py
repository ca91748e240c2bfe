"""clip-segment: where in an image a text is, or which of many classes each of its pixels shows."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from cliptools.cli.app import (
    CLASS_TEMPLATES,
    choose_format,
    command,
    device_option,
    output_options,
    reading_options,
    template_option,
)
from cliptools.cli.run.segment_heat_maps import parse_threshold
from cliptools.console import count_of
from cliptools.errors import UsageError
from cliptools.segmentation import ALL

if TYPE_CHECKING:
    from cliptools.cli.run.segment_open import Opened
    from cliptools.images.loader import ImageSource

METHOD_HELP = "How maps are made (below) [default: neurons of a ViT, pairs of a ResNet]."
NEURONS_HELP = "Of a ViT's neurons, how many speak for a text [default: 200]."
PAIRS_HELP = "Of a ResNet's pairs, how many speak for a text [default: 13.6 % of them, which is 20,000 of RN50x16's]."
THRESHOLD_HELP = "A mask is where the heat map reaches this [default: 0.5], or 'mean': its own mean; repeatable with --evaluate."
SIZE_HELP = "Pixels of the shorter side as the model sees it, rounded to whole patches [default: the model's own]."
CROP_HELP = "Side of the window in which label maps are made, in the model's pixels [default: the model's own size]."
STRIDE_HELP = (
    "Slide a window by so many pixels, and average [default: half a window for label maps, else the whole image at once]."
)
CLASSES_HELP = (
    "A file, a class a line, synonyms after commas; or emoji, imagenet, cifar10. With a ResNet: label maps of all of them. "
    "With a ViT: a heat map of each image's own best class."
)
BACKGROUND_HELP = (
    "Ground in label maps: a class by name, or the probability below which no class is seen, or none; probabilities are "
    "repeatable with --evaluate [default: none; true ground is then left out of --evaluate]."
)
CENTER_HELP = "Subtract the mean over the class texts [default: classes]."
SINK_HELP = "Repair the bottom-right token in maps of pairs, neurons, heads [default: auto, where it is measured to stand out]."
EVALUATE_HELP = (
    "Against the truth: --labels; a folder with images/ and masks/; scenes of clip-scenes (folder or tar); gtsegs_ijcv.mat."
)
LABELS_HELP = "With --evaluate: a folder of label PNGs, named as the images in the folder IMAGE."
FIRST_HELP = (
    "The number of the first class in label PNGs, the background not counted [default: 1; needed where --classes gives numbers "
    "from elsewhere, or begins with a background]."
)
IGNORE_HELP = (
    "A number in masks or label PNGs of pixels that do not count, as 255 in those of Pascal VOC; repeatable [default: 255 in "
    "label PNGs if no class has it; none in masks]."
)
LIE_HELP = (
    "With --evaluate, of pictures that EXIF turns: masks are of their pixels as 'stored' in the file, or 'upright' as shown "
    "[default: by the masks' own EXIF or size; where these cannot tell, stored]."
)
BATCH_HELP = "Images of one shape, or windows, at a time; halved where memory runs out."
LABEL_OPTIONS = {"crop": "--crop", "center": "--center", "labels": "--labels", "first_label": "--first-label"}
LABEL_OPTIONS |= {"backgrounds": "--background"}


@command("clip-segment")
@click.argument("paths", nargs=-1, metavar="IMAGE...")
@click.option("--text", "texts", multiple=True, metavar="TEXT", help="What to find; repeatable.")
@click.option("--classes", metavar="NAME|FILE", help=CLASSES_HELP)
@click.option("--method", type=click.Choice(ALL), help=METHOD_HELP)
@click.option("--neurons", type=click.IntRange(1), help=NEURONS_HELP)
@click.option("--top-pairs", type=click.IntRange(1), help=PAIRS_HELP)
@click.option("--sink", type=click.Choice(["auto", "on", "off"]), help=SINK_HELP)
@click.option("--threshold", "thresholds", multiple=True, metavar="NUMBER|mean", help=THRESHOLD_HELP)
@click.option("--background", "backgrounds", multiple=True, metavar="NAME|NUMBER|none", help=BACKGROUND_HELP)
@click.option("--center", type=click.Choice(["classes", "none"]), help=CENTER_HELP)
@click.option("--size", type=click.IntRange(16, 8192), metavar="PIXELS", help=SIZE_HELP)
@click.option("--crop", type=click.IntRange(32, 8192), metavar="PIXELS", help=CROP_HELP)
@click.option("--stride", type=click.IntRange(1), metavar="PIXELS", help=STRIDE_HELP)
@template_option("text", CLASS_TEMPLATES)
@click.option("--bundle", type=click.Path(path_type=Path, allow_dash=True), help="The bundle [default: standard input].")
@click.option("--out-dir", type=click.Path(path_type=Path, file_okay=False), help="Write masks and overlays here, as PNG.")
@click.option("--resume", is_flag=True, help="Go on with what is in --out-dir.")
@click.option("--evaluate", is_flag=True, help=EVALUATE_HELP)
@click.option("--labels", type=click.Path(path_type=Path), metavar="FOLDER", help=LABELS_HELP)
@click.option("--first-label", type=click.IntRange(0), metavar="NUMBER", help=FIRST_HELP)
@click.option("--ignore", "ignored", type=click.IntRange(0), multiple=True, metavar="NUMBER", help=IGNORE_HELP)
@click.option("--mask-pixels", "lie", type=click.Choice(["stored", "upright"]), help=LIE_HELP)
@click.option("--strict", is_flag=True, help="An unreadable or unusable image is an error, not a warning.")
@reading_options
@click.option("--batch-size", default=16, show_default=True, type=click.IntRange(1), help=BATCH_HELP)
@device_option
@output_options("jsonl", "safetensors", "table")
def main(*, paths: tuple[str, ...], output_format: str | None, output: Path | None, **options: Any) -> None:
    """Find where in images a text is, or label every pixel with one of many classes, without training.

    Reads a bundle of clip-effects or clip-decompose on standard input and images as named: files, folders, globs, tar
    archives, or - for a tar on standard input (then name the bundle by --bundle). The bundle's model decides the methods.

    With --text: a record for each image and text; with --out-dir also masks, overlays and, of several texts, a label map;
    with -f safetensors heat maps from 0 to 1 at the images' own sizes, [text, y, x] by image. Images keep their aspect and
    are not cropped. A label map gives a pixel to the text whose map, standardised over the image, is highest there, and to
    the ground (0) where no text's mask is.

    With --classes and a CLIP-ResNet: a record for each image; with --out-dir a label map and an overlay; with -f safetensors
    the logits at the size the model sees, [text, y, x] by image. Class texts lose their mean, a window slides over the image,
    logits are averaged, softmax and argmax follow. Labels: 0 the ground, 1 the first class, and so on.

    With --evaluate, the ground of a mask is 0, or black in a mask of colours, or what is transparent. A mask that has no EXIF
    orientation of its own, of a picture that has one, lies as its size says, else as the folder's other masks do, else on the
    stored pixels; a note says which. A class that neither result nor truth has is left out of a mean IoU.

    \b
    Methods for ViTs:
      neurons    mean activation of the neurons whose effects lie along the text (arXiv 2406.04341)
      signed     their activations weighted by how far they lie along it
      effects    their second-order effects along the text, patch by patch
      attention  the class token's attention in the last layer      rollout    Abnar and Zuidema 2020
      gradcam    Selvaraju et al. 2017, last block                  chefer     Chefer et al. 2021
      textspan   direct effects of the last 4 layers' heads (Gandelsman et al. 2024)
    Methods for ResNets:
      pairs      neuron-head pairs whose directions lie along the text (arXiv 2509.19943)
      neurons, heads    the same by the neurons' or the heads' half of each pair alone
      maskclip   every token by the value path (Zhou et al. 2022)   qqkk       softmax(qq')+softmax(kk') (Wang et al. 2024)
      values     as maskclip, with positional embeddings

    \b
    Examples:
      clip-segment holiday.jpg --text dog --out-dir masks < neurons.safetensors
      clip-segment photos/ --classes imagenet --size 448 < neurons.safetensors | jq -c '[.image, .text, .box]'
      clip-scenes | clip-segment - --text cat --text dog --bundle neurons.safetensors -f safetensors > heat.safetensors
      clip-scenes --size 128 | clip-segment - --evaluate --size 128 --bundle neurons.safetensors | tail -n 1
      clip-segment gtsegs_ijcv.mat --evaluate --classes imagenet --method chefer < neurons.safetensors
      clip-segment pairs/ --evaluate --text cat --ignore 255 < neurons.safetensors     # images/ and masks/, 255 at edges
      clip-segment street.jpg --classes city.txt --background 0.1 --out-dir labelled < pairs.safetensors
      clip-scenes --size 256 | clip-segment - --evaluate --size 256 --bundle pairs.safetensors -f table
    Folders of label PNGs (Pascal VOC; PASCAL Context-59 and ADE20K, where 0 is unlabelled):
      clip-segment JPEGImages --evaluate --labels SegmentationClass --classes voc.txt --background background < pairs.safetensors
      clip-segment JPEGImages --evaluate --labels SegmentationClassContext --classes context59.txt < pairs.safetensors
      clip-segment images/validation --evaluate --labels annotations/validation --classes ade20k.txt < pairs.safetensors
    """
    chosen = _check(paths, options, output_format, output)
    from cliptools.cli.run.segment_open import open_bundle
    from cliptools.images.loader import open_images

    source = None if options["evaluate"] else open_images(paths)
    opened = open_bundle(options["bundle"], options)
    if opened.resnet and not options["texts"]:
        _check_label_maps(options)
        _label(opened, paths, source, options, chosen, output)
        return
    _check_heat_maps(options, opened)
    from cliptools.cli.run.segment_heat_maps import load_segmenter

    if source is None:
        from cliptools.cli.run.segment_evaluate import evaluate

        evaluate(load_segmenter(opened, options), paths, options, chosen, output)
        return
    from cliptools.cli.run.segment_images import segment_images

    segment_images(load_segmenter(opened, options), source, options, chosen, output)


def _label(
    opened: "Opened",
    paths: tuple[str, ...],
    source: "ImageSource | None",
    options: dict[str, Any],
    chosen: str,
    output: Path | None,
) -> None:
    """Label maps, or their evaluation."""
    if source is None:
        from cliptools.cli.run.segment_evaluate_labels import evaluate_labels

        evaluate_labels(opened, paths, options, chosen, output)
        return
    from cliptools.cli.run.segment_label_maps import label_images, load_labeller
    from cliptools.text.classes import load_classes

    label_images(load_labeller(opened, load_classes(options["classes"], known=False), options), source, options, chosen, output)


def _check(paths: tuple[str, ...], options: dict[str, Any], output_format: str | None, output: Path | None) -> str:
    """The format to write, once the options go together.

    Raises:
        UsageError: they do not.
    """
    if not paths:
        raise UsageError("no images named: give files, folders, tar archives, or - for a tar on standard input")
    if "-" in paths and (options["bundle"] is None or str(options["bundle"]) == "-"):
        raise UsageError("images (-) and the bundle cannot both come from standard input: name the bundle by --bundle FILE")
    if any(not text.strip() for text in options["texts"]):
        raise UsageError("--text: empty, expected what to find")
    if len(set(options["texts"])) < len(options["texts"]):
        raise UsageError("--text: the same text twice")
    if len(options["texts"]) > 255:
        raise UsageError(f"--text: {count_of(len(options['texts']), 'text')}, a label map has room for 255")
    if options["texts"] and options["classes"]:
        raise UsageError("--text and --classes are two ways to say what to find: give one of them")
    if not (options["texts"] or options["classes"] or options["evaluate"]):
        raise UsageError("nothing to find: give --text, or --classes for the model's own best class")
    if options["resume"] and not options["out_dir"]:
        raise UsageError("--resume goes on with a folder: name it by --out-dir")
    options["thresholds_given"] = bool(options["thresholds"])
    options["thresholds"] = options["thresholds"] or ("0.5",)
    _ = [parse_threshold(text) for text in options["thresholds"]]
    from cliptools.models.text_encoder import check_template_options

    check_template_options(options["templates"])
    chosen = choose_format(output_format, output, "jsonl")
    if options["evaluate"]:
        _check_evaluation(paths, options, chosen)
    else:
        _check_pictures(options, chosen)
    return chosen


def _check_evaluation(paths: tuple[str, ...], options: dict[str, Any], chosen: str) -> None:
    if options["out_dir"] or chosen == "safetensors":
        raise UsageError("--evaluate writes figures, no pictures or heat maps: leave out --out-dir and -f safetensors")
    if options["labels"] and len(paths) != 1:
        raise UsageError(f"--labels: expected one folder of images, found {len(paths)} paths")
    if len(options["texts"]) > 1:
        raise UsageError("--evaluate: one --text at most, for there is one mask an image")


def _check_pictures(options: dict[str, Any], chosen: str) -> None:
    if len(options["thresholds"]) > 1:
        raise UsageError("--threshold: several go with --evaluate only")
    if options["labels"] or options["ignored"] or options["first_label"] is not None or options["lie"]:
        raise UsageError("--labels, --first-label, --ignore and --mask-pixels go with --evaluate")
    if chosen == "safetensors" and options["resume"]:
        raise UsageError("--resume and -f safetensors: images done before are not looked at again and would be missing")


def _check_label_maps(options: dict[str, Any]) -> None:
    """Options that label maps have not."""
    if options["thresholds_given"]:
        raise UsageError("--threshold is for heat maps (--text); label maps have --background")
    if options["neurons"] is not None:
        raise UsageError("--neurons is for ViTs; a ResNet has --top-pairs")
    if len(options["backgrounds"]) > 1 and not options["evaluate"]:
        raise UsageError("--background: several go with --evaluate only")
    if options["labels"] and not options["classes"]:
        raise UsageError("--labels says numbers, not names: give --classes")


def _check_heat_maps(options: dict[str, Any], opened: "Opened") -> None:
    """Options that heat maps have not, or not those of a ViT."""
    given = [option for key, option in LABEL_OPTIONS.items() if options[key] not in (None, ())]
    if given:
        raise UsageError(f"{given[0]} is for label maps: --classes, and a bundle of a CLIP-ResNet")
    if opened.resnet and options["neurons"] is not None:
        raise UsageError("--neurons is for ViTs; a ResNet has --top-pairs")
    for key, option in (("top_pairs", "--top-pairs"), ("sink", "--sink")):
        if not opened.resnet and options[key] is not None:
            raise UsageError(f"{option} is for CLIP-ResNets; this bundle's model is a ViT")


if __name__ == "__main__":
    main()
