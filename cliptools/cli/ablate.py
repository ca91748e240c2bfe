"""clip-ablate: zero-shot accuracy under changed effects of neurons."""

from pathlib import Path
from typing import Any

import click

from cliptools.analysis import ABLATE, ABLATE_SEED, RECONSTRUCT, WORDS_ALONG
from cliptools.cli.app import CLASS_TEMPLATES, batching_options, command, device_option, output_options, template_option
from cliptools.cli.completion import Completed, listed, words

BUNDLE_HELP = "Bundle of clip-effects or clip-decompose; repeatable, for bundles of one model [default: standard input]."
LABELS_HELP = "Source of the images' classes: folders, scenes, or a file (see above) [default: detected from the images]."
IMAGE_COLUMN_HELP = "Column of image names, if --labels is a CSV file."
LABEL_COLUMN_HELP = "Column of classes, if --labels is a CSV file."
CLASSES_HELP = (
    "Classes to choose from: imagenet, imagenet-r, emoji, cifar10, or a file of lines, JSON or CSV [default: those of the "
    "labels]."
)
ABLATE_HELP = (
    f"Ablations to measure: any of {', '.join(ABLATE)}, separated by commas [default: all; with --reconstruct, --keep, --mask or "
    "--against no ablation]."
)
RECONSTRUCT_HELP = f"Reconstructions to measure: any of {', '.join(RECONSTRUCT)}, separated by commas [default: none]."
COMPONENTS_HELP = "Numbers of principal directions for --reconstruct pc, as 1,2,4."
ALONG_HELP = (
    "Vectors that --reconstruct words projects on (see above): direction, texts or unit-texts, separated by commas "
    "[default: direction]."
)
M_HELP = "Numbers of texts for --reconstruct words, as 4,8,16 [default: all texts of the bundle]."
KEEP_HELP = (
    "Shares of the units to keep, as 20%,50%: those of largest mean top norm. All others are replaced by their means "
    "[default: all]."
)
LAYERS_HELP = "Layers whose units are changed together, as 8-10,11; repeatable [default: all layers of the bundle]."
MASK_HELP = (
    "Mask of clip-edit: its units are at their means in all settings but that of the untouched model, and in one of its own "
    "[default: none]."
)
PART_HELP = (
    "Compute the output from one part of an attention pooling that has an MLP (SigLIP, Perception Encoder): what the attention "
    "writes, or the MLP behind it, with --ablate none [default: both]."
)
EFFECT_HELP = "Effect that the bundles must hold, as a check: any other is a usage error."
UNITS_HELP = "Kind of unit that the bundles must hold, as a check: any other is a usage error."
GROUPS_HELP = (
    "Groups for accuracy per group (see below): folders, scenes, a column of --labels FILE, or Waterbirds' or CelebA's metadata "
    "[default: no groups]."
)
SPLIT_HELP = "Images to use, by the table's column split or by the scenes' records [default: test for metadata, else all]."
EACH_TEMPLATE_HELP = "Also classify with each template alone; figures of --groups are then means over the templates."
TRAIN_SIZES_HELP = (
    "Sizes of the groups in training, for the weighted average: table (the rows of split train), numbers in the groups' order, "
    "or GROUP=N, separated by commas [default: no weighted average]."
)
AGAINST_HELP = "File or folder of other weights of the same model, as clip-edit writes them, to measure on the same images."
LIMIT_HELP = "Use only the first N images; without PATH, render N scenes [default: all images, or two scenes of every concept]."
SEED_HELP = "Random seed for --sample, or for the rendered scenes."


@command("clip-ablate")
@click.argument("paths", nargs=-1, metavar="[PATH]...")
@click.option(
    "--bundle", "bundles", multiple=True, type=click.Path(path_type=Path, allow_dash=True), metavar="FILE", help=BUNDLE_HELP
)
@click.option("--labels", metavar="folders|scenes|FILE", help=LABELS_HELP)
@click.option("--image-column", default="image", show_default=True, metavar="NAME", help=IMAGE_COLUMN_HELP)
@click.option("--label-column", default="label", show_default=True, metavar="NAME", help=LABEL_COLUMN_HELP)
@click.option("--classes", metavar="NAME|FILE", help=CLASSES_HELP)
@template_option("class", CLASS_TEMPLATES, "--templates")
@click.option("--groups", type=Completed(words("folders", "scenes")), metavar="folders|scenes|COLUMN|FILE", help=GROUPS_HELP)
@click.option("--split", type=click.Choice(["train", "validation", "test"]), help=SPLIT_HELP)
@click.option("--each-template", is_flag=True, help=EACH_TEMPLATE_HELP)
@click.option("--train-sizes", metavar="table|NUMBERS", help=TRAIN_SIZES_HELP)
@click.option("--against", metavar="FILE", help=AGAINST_HELP)
@click.option("--ablate", type=Completed(listed(*ABLATE)), metavar="KINDS", help=ABLATE_HELP)
@click.option("--reconstruct", type=Completed(listed(*RECONSTRUCT)), metavar="KINDS", help=RECONSTRUCT_HELP)
@click.option("--components", default="1", show_default=True, metavar="NUMBERS", help=COMPONENTS_HELP)
@click.option("--m", metavar="NUMBERS", help=M_HELP)
@click.option("--words-along", type=Completed(listed(*WORDS_ALONG)), metavar="KINDS", help=ALONG_HELP)
@click.option("--keep", metavar="PERCENTS", help=KEEP_HELP)
@click.option("--layers", multiple=True, help=LAYERS_HELP)
@click.option("--each-layer", is_flag=True, help="Also change the units of each layer of the bundle separately.")
@click.option("--effect", type=click.Choice(["second", "first", "indirect", "pooled"]), help=EFFECT_HELP)
@click.option("--units", type=click.Choice(["pairs", "neurons", "heads", "latents"]), help=UNITS_HELP)
@click.option("--mask", type=click.Path(path_type=Path), metavar="FILE", help=MASK_HELP)
@click.option("--part", type=click.Choice(["attention", "mlp", "both"]), help=PART_HELP)
@click.option("--limit", type=click.IntRange(1), help=LIMIT_HELP)
@click.option("--sample", type=click.IntRange(1), help="Use only N images, drawn at random from the whole list.")
@click.option("--seed", default=ABLATE_SEED, show_default=True, type=click.IntRange(0), help=SEED_HELP)
@batching_options
@click.option(
    "--precision", type=click.Choice(["fp32", "bf16", "fp16"]), help="Floating-point type of the model [default: the bundle's]."
)
@device_option
@output_options("jsonl", "table")
def main(**options: Any) -> None:
    """Measure zero-shot accuracy while the effects of neurons are changed.

    Reads a bundle (standard input or --bundle) and labelled images, and writes one line per setting: the share of images
    whose class is the best (top1) or among the best five (top5), with Wilson's 95 % interval; the untouched model comes
    first. All settings are measured in one pass over the images. All effects of a setting are changed together, and the
    rest of the model stays the same. Without a PATH, an embedded model is measured on rendered scenes of one emoji each.

    \b
    --ablate: effects are replaced by their means over the bundle's images (arXiv 2406.04341, section 3.3)
      all      on every image            none   nowhere
      large    where they are further from the mean than the bundle's threshold      small  where they are not
      joint    (indirect effects) the neurons' activations themselves are replaced by their means at every token, all at once
    --reconstruct: effects are replaced by an approximation
      pc       mean + projection on the first --components principal directions
      words    mean + projection on the first direction r, along the sum r^ of its first --m texts; by --words-along:
               direction (phi-b)·r r^    texts (phi-b)·r^ r^, as paper 1's public code    unit-texts, the same with r^ at
               unit length, as paper 2's
    --keep alone leaves the strongest units as they are; with --reconstruct, they are reconstructed. All other units are
    replaced by their means, and in every setting so are the units that clip-effects --keep left out.

    \b
    Without --labels, the class of an image comes from its archive (WebDataset's KEY.cls, or KEY.json with label, class or
    names; CLIP_benchmark's classnames.txt gives the classes), from the file that clip-scenes --single wrote beside it, or
    from the name of its folder: a class name in any spelling, a WordNet id of ImageNet, or a number from 0. --labels FILE:
      CSV      columns image and label; without PATH, the images of the table are taken, relative to the file
      ImageNet for its flat folder: Caffe's val.txt, Kaggle's LOC_val_solution.csv, or the kit's
               ILSVRC2012_validation_ground_truth.txt with meta.mat beside it
    If the untouched model is at chance, labels and classes do not match: the command fails with exit code 1. With --groups, where
    this can be a result, it warns.

    With --groups, every group has one class and one value of another attribute, and each line also has the accuracy of every
    group with Wilson's interval, the least of them (worst), the average over the images, the average weighted by --train-sizes,
    the gap from the worst group to the average, and the differences of all of these from the untouched model on the same
    images; their intervals are of a bootstrap over images within groups.

    \b
    --groups
      folders  CLASS/VALUE/IMAGE; or TASK/CLASS/VALUE/IMAGE, tasks of which each has classes of its own: figures are means over
               the tasks
      scenes   the records of clip-scenes --groups; each planted pair is a task
      COLUMN   of the file --labels: the attribute; a column split, if it has one, is for --split
      FILE     metadata.csv of Waterbirds; list_attr_celeba.csv or .txt of CelebA, with list_eval_partition beside it

    \b
    Examples:
      clip-effects | clip-ablate --ablate all,large,small --reconstruct pc
      clip-ablate imagenet/val/ --each-layer --sample 5000 < effects.safetensors
      clip-ablate ILSVRC2012_img_val.tar --labels LOC_val_solution.csv < effects.safetensors
      clip-ablate --reconstruct words --m 4,8,16 < neurons.safetensors
      clip-ablate --reconstruct words --words-along direction,texts,unit-texts < neurons.safetensors
      clip-ablate imagenet-r/ --bundle pairs.safetensors --bundle neurons.safetensors --reconstruct pc --keep 20%,100%
      clip-ablate --groups waterbirds/metadata.csv --train-sizes table --against repaired.safetensors < effects.safetensors
      clip-scenes --groups --split test | clip-ablate - --groups scenes --each-template --bundle effects.safetensors
      clip-ablate --ablate all,joint --bundle second.safetensors --bundle indirect.safetensors -f jsonl > table1.jsonl
    """
    from cliptools.cli.run.ablate import AblateOptions, run

    run(AblateOptions(**options))


if __name__ == "__main__":
    main()
