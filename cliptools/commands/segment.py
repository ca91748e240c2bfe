"""clip-segment: where in an image a text is."""

from pathlib import Path
from typing import Any

import click

from cliptools.commands.base import choose_format, command, device_option, output_options
from cliptools.commands.segmenting.segmenter import METHODS, parse_threshold
from cliptools.ground.errors import UsageError

METHOD_HELP = "How maps are made (above)."
THRESHOLD_HELP = "A mask is where the heat map reaches this, or 'mean': its own mean; repeatable with --evaluate."
SIZE_HELP = "Pixels of the shorter side as the model sees it, rounded to whole patches [default: the model's own]."
STRIDE_HELP = "Slide a window of the model's own size by so many pixels, and average [default: the whole image at once]."
CLASSES_HELP = "Find each image's own best class of these: a file, a class a line, or emoji, imagenet, cifar10."
EVALUATE_HELP = "Against masks: a folder with images/ and masks/, scenes of clip-scenes (folder or tar), or gtsegs_ijcv.mat."
TEMPLATE_HELP = "A sentence with {} for the text; several are averaged [default: the bare text]."


@command("clip-segment")
@click.argument("paths", nargs=-1, metavar="IMAGE...")
@click.option("--text", "texts", multiple=True, metavar="TEXT", help="What to find; repeatable.")
@click.option("--classes", metavar="NAME|FILE", help=CLASSES_HELP)
@click.option("--method", type=click.Choice(METHODS), default="neurons", show_default=True, help=METHOD_HELP)
@click.option("--neurons", type=click.IntRange(1), default=200, show_default=True, help="How many neurons of the bundle speak.")
@click.option(
    "--threshold", "thresholds", multiple=True, default=("0.5",), show_default=True, metavar="NUMBER|mean", help=THRESHOLD_HELP
)
@click.option("--size", type=click.IntRange(16, 8192), metavar="PIXELS", help=SIZE_HELP)
@click.option("--stride", type=click.IntRange(1), metavar="PIXELS", help=STRIDE_HELP)
@click.option("--template", "templates", multiple=True, metavar="TEXT", help=TEMPLATE_HELP)
@click.option("--bundle", type=click.Path(path_type=Path, allow_dash=True), help="The bundle [default: standard input].")
@click.option("--out-dir", type=click.Path(path_type=Path, file_okay=False), help="Write masks and overlays here, as PNG.")
@click.option("--resume", is_flag=True, help="Go on with what is in --out-dir.")
@click.option("--evaluate", is_flag=True, help=EVALUATE_HELP)
@click.option("--strict", is_flag=True, help="An unreadable image is an error, not a warning.")
@click.option("--batch-size", default=16, show_default=True, type=click.IntRange(1), help="Images of one shape at a time.")
@device_option
@output_options("jsonl", "safetensors", "table")
def main(*, paths: tuple[str, ...], output_format: str | None, output: Path | None, **options: Any) -> None:
    """Find where in images a text is: heat maps and masks, without training.

    Reads a bundle of clip-effects or clip-decompose on standard input and images as named: files, folders, globs, tar
    archives, or - for a tar on standard input (then name the bundle by --bundle). Writes a record for each image and
    text; with --out-dir also masks, overlays and, of several texts, a label map; with -f safetensors heat maps from 0
    to 1 at the images' own sizes, [text, y, x] by image. Images keep their aspect and are not cropped.

    \b
    Methods:
      neurons    mean activation of the neurons whose effects lie along the text (arXiv 2406.04341)
      signed     their activations weighted by how far they lie along it
      effects    their second-order effects along the text, patch by patch
      attention  the class token's attention in the last layer      rollout    Abnar and Zuidema 2020
      gradcam    Selvaraju et al. 2017, last block                  chefer     Chefer et al. 2021
      textspan   direct effects of the last 4 layers' heads (Gandelsman et al. 2024)

    A label map gives a pixel to the text whose map, standardised over the image, is highest there, and to the ground (0)
    where no text's mask is.

    \b
    Examples:
      clip-segment holiday.jpg --text dog --out-dir masks < neurons.safetensors
      clip-segment photos/ --classes imagenet --size 448 < neurons.safetensors | jq -c '[.image, .text, .box]'
      clip-scenes | clip-segment - --text cat --text dog --bundle neurons.safetensors -f safetensors > heat.safetensors
      clip-scenes --size 128 | clip-segment - --evaluate --size 128 --bundle neurons.safetensors | tail -n 1
      clip-segment gtsegs_ijcv.mat --evaluate --classes imagenet --method chefer < neurons.safetensors
    """
    chosen = _check(paths, options, output_format, output)
    from cliptools.commands.segmenting.segmenter import load_segmenter

    if options["evaluate"]:
        from cliptools.commands.segmenting.evaluate import evaluate

        evaluate(load_segmenter(options["bundle"], options), paths, options, chosen, output)
        return
    from cliptools.commands.segmenting.images import segment_images
    from cliptools.ground.images import open_images

    source = open_images(paths)
    segment_images(load_segmenter(options["bundle"], options), source, options, chosen, output)


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
        raise UsageError(f"--text: {len(options['texts'])} texts, a label map has room for 255")
    if options["texts"] and options["classes"]:
        raise UsageError("--text and --classes are two ways to say what to find: give one of them")
    if not (options["texts"] or options["classes"] or options["evaluate"]):
        raise UsageError("nothing to find: give --text, or --classes for the model's own best class")
    if options["resume"] and not options["out_dir"]:
        raise UsageError("--resume goes on with a folder: name it by --out-dir")
    _ = [parse_threshold(text) for text in options["thresholds"]]
    chosen = choose_format(output_format, output, "jsonl")
    (_check_evaluation if options["evaluate"] else _check_pictures)(options, chosen)
    return chosen


def _check_evaluation(options: dict[str, Any], chosen: str) -> None:
    if options["out_dir"] or chosen == "safetensors":
        raise UsageError("--evaluate writes figures, no pictures or heat maps: leave out --out-dir and -f safetensors")
    if len(options["texts"]) > 1:
        raise UsageError("--evaluate: one --text at most, for there is one mask an image")


def _check_pictures(options: dict[str, Any], chosen: str) -> None:
    if len(options["thresholds"]) > 1:
        raise UsageError("--threshold: several go with --evaluate only")
    if chosen == "safetensors" and options["resume"]:
        raise UsageError("--resume and -f safetensors: images done before are not looked at again and would be missing")


if __name__ == "__main__":
    main()
