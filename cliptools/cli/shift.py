"""clip-shift: shares of concepts, or of all words, in groups of images, and their drift since an earlier run."""

from pathlib import Path
from typing import Any

import click

from cliptools.cli.app import CLASS_TEMPLATES, batching_options, command, device_option, output_options, template_option

CONCEPT_HELP = "Concept to measure; repeatable [default: all words of --pool]."
BUNDLE_HELP = "Bundle of clip-effects [default: standard input]."
BY_HELP = (
    "Measure. norm: ||sum phi|| / ||M(I)||, the share. signed: <sum phi, text> / ||M(I)||. text: <M(I), text> / ||M(I)||, "
    "without units [default: norm; without --concept signed and text]."
)
POOL_HELP = (
    "Without --concept: vocabulary, emoji, scenes, imagenet, words10k, words30k, or a file with one text per line [default: that "
    "of the bundle's words; without words that of the embedded model, else words30k]."
)
GROUPS_HELP = "CSV file with a column of images and a column of groups; without PATH, the images of the table are read."
IMAGE_COLUMN_HELP = "Column of image names in --groups and --labels."
GROUP_COLUMN_HELP = "Column of groups in --groups."
LABELS_HELP = "Ground truth: a CSV file with a column of images and, for each concept, a column of this name with 1 and 0."
TRUTH_HELP = "Ground truth: JSON lines with key and names, as in scenes.jsonl; or scenes, for the files that clip-scenes wrote."
ALARM_HELP = (
    "Exit with 3 if a group's mean is this many standard errors away from the baseline's, adjusted for the number of comparisons "
    "[without --concept: if a word's q is at most the chance of so many standard errors, 0.0027 for 3]."
)
CHOOSE_HELP = (
    "Choice of units. overlap: the units of largest <r, text>, as in paper 2. seen: of these, the units that also act on images "
    "which the model finds similar to the text, in a sample of up to 1,000 images [default: that of the baseline, else seen]. "
    "Without --concept, seen uses the read directions of the bundle [default: seen if it has them]."
)
BLOCK_HELP = "Blocks of images that belong together, as frames of a film: N consecutive images, or a column of --groups."
MATCH_HELP = "Compare each group with the group of the same name in the baseline [default: with the whole baseline]."
SEED_HELP = "Random seed for --sample and for the sample of images by which units are chosen."
EACH_HELP = "Apply --alarm to each comparison separately, without an adjustment for their number."


@command("clip-shift")
@click.argument("paths", nargs=-1, metavar="[PATH]...")
@click.option("--concept", "concepts", multiple=True, metavar="TEXT", help=CONCEPT_HELP)
@click.option("--pool", metavar="NAME|FILE", help=POOL_HELP)
@click.option("--bundle", type=click.Path(path_type=Path, allow_dash=True), metavar="FILE", help=BUNDLE_HELP)
@click.option("--units-per-concept", default=5, show_default=True, type=click.IntRange(1), help="Number of units per concept.")
@click.option("--choose", type=click.Choice(["overlap", "seen"]), help=CHOOSE_HELP)
@click.option("--by", type=click.Choice(["norm", "signed", "text"]), help=BY_HELP)
@click.option("--layers", help="Use only units of these layers, as 8-10,11 [default: all layers of the bundle].")
@template_option("concept or word", f"{CLASS_TEMPLATES}; without --concept none")
@click.option("--groups", type=click.Path(path_type=Path), metavar="FILE", help=GROUPS_HELP)
@click.option("--image-column", default="image", show_default=True, metavar="NAME", help=IMAGE_COLUMN_HELP)
@click.option("--group-column", default="group", show_default=True, metavar="NAME", help=GROUP_COLUMN_HELP)
@click.option("--block", metavar="N|NAME", help=BLOCK_HELP)
@click.option("--labels", type=click.Path(path_type=Path), metavar="FILE", help=LABELS_HELP)
@click.option("--truth", metavar="FILE|scenes", help=TRUTH_HELP)
@click.option(
    "--baseline", type=click.Path(path_type=Path), metavar="FILE", help="JSON lines of an earlier run, to compare with."
)
@click.option("--alarm", type=click.FloatRange(0.01, 30), metavar="Z", help=ALARM_HELP)
@click.option("--each", is_flag=True, help=EACH_HELP)
@click.option("--match", is_flag=True, help=MATCH_HELP)
@click.option("--per-image", is_flag=True, help="Also write a record per image, before the records of the groups.")
@click.option(
    "--plot",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="File for a plot of the groups' means with their intervals, .png, .svg or .pdf [default: no plot].",
)
@click.option("--limit", type=click.IntRange(1), help="Use only the first N images.")
@click.option("--sample", type=click.IntRange(1), help="Use only N images, drawn at random from the whole list.")
@click.option("--seed", default=0, show_default=True, type=click.IntRange(0), help=SEED_HELP)
@batching_options
@device_option
@output_options("jsonl", "table")
def main(**options: Any) -> int:
    """Monitor concepts, or all words of a vocabulary, over groups of images.

    Reads a bundle (standard input or --bundle) and images in groups. Each named folder or archive is a group; or --groups
    assigns the images to groups; or the folder of Stanford Cars is grouped by model year. The units of a concept are a few
    whose directions are close to its text and that act on images which the model finds similar to the text (in a sample of up
    to 1,000 of the images); --choose overlap uses the directions alone, as paper 2 does. With --baseline, the units are those
    of the baseline. Writes, for each concept and group, the mean over images of the share of the output that these units
    make up, with its spread and standard error. `follows` is the correlation of that share with the model's own similarity
    (without the part that the units write themselves), and holds the correlation that random units reach (`chance`). A warning
    names concepts whose units do no better than that, if the interval is narrow enough to tell (0.4). With labels,
    point-biserial correlations are added, and a record per concept over all images and over groups (95 % intervals by Fisher's
    z over groups, by the jackknife over images; no interval if fewer than 3 images have the rarer label).

    \b
    Alarms: z is the difference of two means divided by its standard error. With --alarm 3, if nothing has changed, at most
    0.27 % of all runs exit with 3, however many concepts and groups are compared. For that, the limit of each comparison is
    above 3 (`limit`), and higher still for increases, because a few images with much of a rare concept can raise the mean by
    chance. With --each, the limit of every comparison is 3 standard errors: with 10 concepts in 12 groups, up to 28 % of all
    runs then have an alarm by chance. Both rates hold if a group and the baseline have 5 images or more (8 or more, if tails
    on both sides are very heavy; `few` and a warning mark smaller groups), and if images are drawn independently. Images that
    belong together, as frames of a film, cause far more alarms. With --block, means over blocks replace the images: each block
    counts once, and standard errors, z, limits and intervals of correlations are computed from blocks. Blocks have to be
    longer than the runs of similar frames. Without --block, a warning is given if neighbouring images are alike.

    \b
    Words: without --concept, every word of a vocabulary (--pool) is measured, by its units (the share of --by signed) and by
    the model's own similarity (--by text), and a line is written for each group, word and measure. With --baseline, the lines
    come in the order of p, each with z, p, q, the direction, the size of the effect (the difference of the means in standard
    deviations, with its 95 % interval) and the units that carry it: `moved` is the difference of each unit's part of the
    share. q accounts for all words, measures and groups of the run, however they depend on each other (Benjamini and
    Yekutieli 2001): of the words with q <= 0.05, at most 5 % are expected to be false. With --alarm 3, a word alarms if its q
    is at most 0.0027; if nothing has changed, at most 0.27 % of all runs then exit with 3, under the conditions above: 5
    images or blocks, and --block for images that belong together. Words that are alike move together.

    \b
    Examples:
      clip-shift 2021/ 2022/ 2023/ --concept yellow --concept convertible < neurons.safetensors
      clip-shift photos/ --groups photos.csv --group-column month --concept snow --plot snow.png < neurons.safetensors
      clip-shift stanford_cars/ --concept convertible --bundle neurons.safetensors -f jsonl > cars.jsonl
      clip-shift photos/ --concept snow --block 50 -f jsonl < neurons.safetensors
      clip-shift new/ --concept snow --baseline old.jsonl --alarm 3 -f jsonl < neurons.safetensors || mail -s drift me
      clip-shift june/ -f jsonl -o june.jsonl < effects.safetensors
      clip-shift july/ --baseline june.jsonl --alarm 3 -f jsonl < effects.safetensors | jq -c '.drift.q, .word' | head
      clip-scenes | clip-shift - --concept cat --truth scenes --bundle neurons.safetensors
    """
    from cliptools.cli.run.shift import ShiftOptions, run

    source = click.get_current_context().get_parameter_source("pool")
    if options["concepts"] and source is click.core.ParameterSource.ENVIRONMENT:
        options["pool"] = None  # the variable is for other commands, or for runs without a concept
    return run(ShiftOptions(**options))


if __name__ == "__main__":
    main()
