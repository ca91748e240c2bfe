"""clip-segment-eval: how well masks, heat maps and label maps agree with the ground truth."""

from pathlib import Path
from typing import Any

import click

from cliptools.cli.app import command
from cliptools.cli.segment import map_options, running_options

TEXT_HELP = "What the masks show [default: the names that scenes have; or see --classes]."
CLASSES_HELP = (
    "A file with a class a line, synonyms after commas; or emoji, imagenet, cifar10. With a ResNet or pairs: label maps of all "
    "classes [default: the names in the scenes]. With other units of a ViT: a heat map of each image's own best class."
)
THRESHOLD_HELP = (
    "A mask holds the pixels where the heat map reaches this value; 'mean': the map's own mean; repeatable [default: 0.5]."
)
BACKGROUND_HELP = (
    "Background of label maps: a class by name; or a probability, below which a pixel is background; or none. Probabilities and "
    "none are repeatable [default: none; the true background then does not count]."
)
LABELS_HELP = "Label maps: a folder of label PNGs, named as the images in the folder IMAGE."
FIRST_HELP = (
    "Label maps: number of the first class in label PNGs, not counting the background [default: 1; needed where --classes gives "
    "other numbers, or begins with a background]."
)
IGNORE_HELP = (
    "A number in masks or label PNGs of pixels that do not count, as 255 in those of Pascal VOC; repeatable [default: 255 in "
    "label PNGs if no class has it; none in masks]."
)
MASK_PIXELS_HELP = (
    "For pictures that EXIF turns: masks are of their pixels as 'stored' in the file, or 'upright' as shown [default: by the "
    "masks' own EXIF or size; where these cannot tell, stored]."
)


@command("clip-segment-eval")
@click.argument("paths", nargs=-1, metavar="IMAGE...")
@click.option("--text", metavar="TEXT", help=TEXT_HELP)
@click.option("--classes", metavar="NAME|FILE", help=CLASSES_HELP)
@click.option("--threshold", "thresholds", multiple=True, metavar="NUMBER|mean", help=THRESHOLD_HELP)
@click.option("--background", "backgrounds", multiple=True, metavar="NAME|NUMBER|none", help=BACKGROUND_HELP)
@map_options
@click.option("--labels", type=click.Path(path_type=Path), metavar="FOLDER", help=LABELS_HELP)
@click.option("--first-label", type=click.IntRange(0), metavar="NUMBER", help=FIRST_HELP)
@click.option("--ignore", "ignored", type=click.IntRange(0), multiple=True, metavar="NUMBER", help=IGNORE_HELP)
@click.option("--mask-pixels", type=click.Choice(["stored", "upright"]), help=MASK_PIXELS_HELP)
@running_options("jsonl", "table")
def main(**options: Any) -> None:
    """Compare the masks or label maps of clip-segment with the ground truth.

    Reads a bundle of clip-effects or clip-decompose on standard input, and images with their ground truth: a folder with
    images/ and masks/; scenes of clip-scenes, as a folder or a tar, or - for a tar on standard input (then name the bundle by
    --bundle); gtsegs_ijcv.mat of ImageNet-Segmentation; or, with --labels and a CLIP-ResNet or pairs, a folder of images. The
    maps are those of clip-segment with the same options; clip-segment(1) describes the methods.

    Heat maps: a record for each image, text and threshold, with accuracy, mean IoU, and average precision (map; object_map
    counts the object alone). Label maps, for a CLIP-ResNet or pairs without --text: a record for each image and background,
    with mean IoU and accuracy. The last records, one for each threshold or background, hold the figures over all images; a
    table shows these alone.

    The background of a mask is 0, or black in a mask of colours, or what is transparent. A mask without an EXIF orientation of
    its own, of a picture that has one, lies as its size says, else as the folder's other masks do, else on the stored pixels;
    a note says which. A class that neither the result nor the ground truth has is left out of a mean IoU.

    \b
    Examples:
      clip-scenes --size 128 | clip-segment-eval - --size 128 --bundle neurons.safetensors | tail -n 1
      clip-segment-eval gtsegs_ijcv.mat --classes imagenet --method chefer < neurons.safetensors
      clip-segment-eval pairs/ --text cat --ignore 255 < neurons.safetensors     # images/ and masks/, 255 at edges
      clip-scenes --size 256 | clip-segment-eval - --size 256 --bundle pairs.safetensors -f table
    Folders of label PNGs (Pascal VOC; PASCAL Context-59 and ADE20K, where 0 is unlabelled):
      clip-segment-eval JPEGImages --labels SegmentationClass --classes voc.txt --background background < pairs.safetensors
      clip-segment-eval JPEGImages --labels SegmentationClassContext --classes context59.txt < pairs.safetensors
      clip-segment-eval images/validation --labels annotations/validation --classes ade20k.txt < pairs.safetensors
    """
    from cliptools.cli.run.segment_eval import SegmentEvalOptions, run

    run(SegmentEvalOptions(**options))


if __name__ == "__main__":
    main()
