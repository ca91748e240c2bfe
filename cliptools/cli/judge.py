"""clip-judge: scores the words of units on images that did not make them."""

from pathlib import Path
from typing import Any

import click

from cliptools.cli.app import batching_options, command, device_option, output_options, same_names_option
from cliptools.cli.completion import FILE, Completed, words

BUNDLE_HELP = "Bundle of clip-decompose [default: standard input]."
POOL_HELP = (
    "Vocabulary of the seen words: emoji, scenes, imagenet, words10k, words30k, or a file [default: that of the bundle's words]."
)
JUDGE_HELP = "Another model, whose similarities say what images show [default: the bundle's own model]."
JUDGE_PRETRAINED_HELP = "Weights of the --judge model: a tag or a file."
TRUTH_HELP = (
    "What images show. scenes: the records of clip-scenes, or the rendered scenes themselves. classes: folders, or labels in "
    "archives. captions: .txt members of archives. A file: lines with key and names, a table with a column per text, or a class "
    "per image."
)
CLASSES_HELP = "List of the classes, if the labels of --truth are numbers: imagenet, or a file with one class per line."
PICTURES_HELP = "Folder with a folder of pictures for each word, for CoSy's measures AUC and MAD."
SHARE_HELP = "Share of the images that count as those on which a unit acts, for F1, IoU and AUPRC."
FALSE_HELP = "Rate of false discoveries up to which a unit counts as one with a word."
NULL_HELP = "Measure, describe and judge the same tower with random weights too, for --summary and the table."
SUMMARY_HELP = "File for the means over all units with their intervals, as JSON."
BUNDLE_OUT_HELP = "File for the bundle with seen, seen_correlation and agreement."
SEED_HELP = "Random seed of the halves, of the controls, of --sample and of rendered scenes."


@command("clip-judge")
@click.argument("paths", nargs=-1, metavar="[PATH]...")
@click.option("--bundle", type=click.Path(path_type=Path, allow_dash=True), metavar="FILE", help=BUNDLE_HELP)
@click.option("--pool", metavar="NAME|FILE", help=POOL_HELP)
@click.option("--judge", metavar="MODEL", help=JUDGE_HELP)
@click.option("--judge-pretrained", type=Completed(place=FILE), metavar="TAG|FILE", help=JUDGE_PRETRAINED_HELP)
@click.option(
    "--truth",
    type=Completed(words("scenes", "classes", "captions"), FILE),
    metavar="scenes|classes|captions|FILE",
    help=TRUTH_HELP,
)  # fmt: skip
@click.option("--classes", metavar="NAME|FILE", help=CLASSES_HELP)
@click.option("--pictures", type=click.Path(path_type=Path), metavar="FOLDER", help=PICTURES_HELP)
@click.option(
    "--share", default=0.02, show_default=True, type=click.FloatRange(0, 1, min_open=True, max_open=True), help=SHARE_HELP
)
@click.option(
    "--false-discovery", default=0.05, show_default=True, type=click.FloatRange(0, 1, min_open=True, max_open=True),
    help=FALSE_HELP,
)  # fmt: skip
@click.option("--null", is_flag=True, help=NULL_HELP)
@same_names_option
@click.option("--summary", type=click.Path(dir_okay=False, path_type=Path), metavar="FILE", help=SUMMARY_HELP)
@click.option("--bundle-out", type=click.Path(dir_okay=False, path_type=Path), metavar="FILE", help=BUNDLE_OUT_HELP)
@click.option("--limit", type=click.IntRange(1), help="Use only the first N images [default: all; of rendered scenes 2000].")
@click.option("--sample", type=click.IntRange(1), help="Use only N images, drawn at random from the whole list.")
@click.option("--seed", default=1, show_default=True, type=click.IntRange(0), help=SEED_HELP)
@batching_options
@click.option("--no-cache", is_flag=True, help="Compute text embeddings without the cache [default: read and write the cache].")
@device_option
@output_options("jsonl", "table")
def main(**options: Any) -> None:
    """Score the words of units on images that did not make them.

    Reads a bundle of clip-decompose, from standard input or --bundle, and images that it was not made from (files, folders,
    globs, tar archives, - for a tar on standard input); without a PATH, scenes of another seed for the embedded models. Half of
    the images choose for each unit the text that it sees: the one whose presence in images correlates most with the unit's
    activity. The other half score this word and the word that the unit writes, the one of its largest positive coefficient.

    The presence of a text in an image is its similarity with the bundle's own model, without the unit's own effect; with
    --judge MODEL that of another model; with --truth what labels say. Writes a line for each unit: words, scores, the agreement
    of the unit with what it writes, and the false discovery rate at which it sees a word at all.

    \b
    Examples:
      clip-effects | clip-decompose | clip-judge --truth scenes --summary summary.json -f table
      clip-judge other-photos/ --judge ViT-L-14 --judge-pretrained openai --bundle neurons.safetensors > judged.jsonl
      clip-judge imagenet-val/ --truth classes --bundle-out judged.safetensors < neurons.safetensors | jq .agreement
      clip-judge --truth scenes --null -f table --bundle neurons.safetensors
    """
    from cliptools.cli.run.judge import JudgeOptions, run

    run(JudgeOptions(**options))


if __name__ == "__main__":
    main()
