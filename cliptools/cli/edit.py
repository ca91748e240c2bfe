"""clip-edit: a checkpoint in which units no longer write what they should not, or stand at their means."""

from pathlib import Path
from typing import Any

import click

from cliptools.cli.app import batching_options, command, device_option, template_option
from cliptools.cli.completion import Completed, words

BUNDLE_HELP = (
    "Bundle with the units, or lines of clip-spurious, clip-explain or clip-judge that name them [default: standard input]."
)
MEANS_HELP = "Bundle of the units that lines name, for the means of ResNet units [default: means over the images]."
SEES_HELP = "Cue: take the units of the bundle that see it and write a --writes text, the largest score first; repeatable."
WRITES_HELP = "Text that the units shall no longer write; repeatable [default: those in the lines]."
BY_HELP = (
    "Score with --sees. cue: how far a unit sees the cue, times how far it writes the text. cue-not-class: the same, times how "
    "much more it sees the cue than the text [default: cue-not-class; cue for pairs]."
)
HEAD_HELP = "Number of units, the first by score or in the lines [default: all; with --sees 80 neurons, 400 pairs, 8 heads]."
LAYERS_HELP = "Use only units of these layers, as 8-10,11 [default: all layers of the bundle]."
HOW_HELP = (
    "null: neurons of a ViT and pairs of a ResNet no longer write along the texts. zero: units are at their means [default: null "
    "for neurons of a ViT, and for pairs if texts are named; else zero]."
)
POOL_HELP = (
    "Vocabulary whose mean is subtracted from the texts: emoji, scenes, imagenet, words10k, words30k, or a file [default: that "
    "of the embedded model, else words30k]."
)
OUTPUT_HELP = "Checkpoint to write, as safetensors."
FOLDER_HELP = "New folder to write with the checkpoint and its configuration, loadable as local-dir:FOLDER."
MASK_HELP = "Mask to write, not a checkpoint: units of a ViT at their means at every token, for clip-ablate and clip-segment."
PRECISION_HELP = "Type in which weights are stored."
APPROXIMATE_HELP = "Accept an edit that is not exact: heads before the last layer at one mean for all tokens."
CHOOSE_HELP = (
    "Validation images: try 5, 10, 20, … units of --sees and --writes, and take the number of best worst group; repeatable."
)
TEST_HELP = "Test images, required with --choose: what is reported of the groups comes from them; repeatable."
GROUPS_HELP = "Groups of --choose and --test, as clip-ablate has them: folders, scenes, or a file of metadata."
CLASSES_HELP = "Classes of the groups, if their labels are numbers: imagenet, or a file with one class per line."
LOSS_HELP = "Largest loss of accuracy on --choose of any group that was not the worst."
LIMIT_HELP = "Take means over the first N images [default: all; of rendered scenes 1000]."
FORMAT_HELP = "Format of the record on standard output [default: table on a terminal; else jsonl]."


@command("clip-edit")
@click.argument("paths", nargs=-1, metavar="[PATH]...")
@click.option("--bundle", type=click.Path(path_type=Path, allow_dash=True), metavar="FILE", help=BUNDLE_HELP)
@click.option("--means", type=click.Path(path_type=Path), metavar="FILE", help=MEANS_HELP)
@click.option("--sees", multiple=True, metavar="TEXT", help=SEES_HELP)
@click.option("--writes", multiple=True, metavar="TEXT", help=WRITES_HELP)
@click.option("--by", type=click.Choice(["cue-not-class", "cue"]), help=BY_HELP)
@click.option("--head", type=click.IntRange(1), help=HEAD_HELP)
@click.option("--layers", help=LAYERS_HELP)
@click.option("--how", type=click.Choice(["null", "zero"]), help=HOW_HELP)
@click.option("--pool", metavar="NAME|FILE", help=POOL_HELP)
@template_option("text", "none")
@click.option("-o", "--output", type=click.Path(dir_okay=False, path_type=Path, allow_dash=True), help=OUTPUT_HELP)
@click.option("--out-dir", type=click.Path(path_type=Path, file_okay=False), metavar="FOLDER", help=FOLDER_HELP)
@click.option("--mask", type=click.Path(path_type=Path, dir_okay=False), metavar="FILE", help=MASK_HELP)
@click.option("--precision", type=click.Choice(["fp32", "bf16", "fp16"]), default="fp32", show_default=True, help=PRECISION_HELP)
@click.option("--approximate", is_flag=True, help=APPROXIMATE_HELP)
@click.option("--choose", multiple=True, type=click.Path(path_type=Path), metavar="PATH", help=CHOOSE_HELP)
@click.option("--test", multiple=True, type=click.Path(path_type=Path), metavar="PATH", help=TEST_HELP)
@click.option("--groups", type=Completed(words("folders", "scenes")), metavar="folders|scenes|FILE", help=GROUPS_HELP)
@click.option("--classes", metavar="NAME|FILE", help=CLASSES_HELP)
@click.option("--loss", default=0.02, show_default=True, type=click.FloatRange(0, 1), metavar="SHARE", help=LOSS_HELP)
@click.option("--limit", type=click.IntRange(1), help=LIMIT_HELP)
@click.option("--sample", type=click.IntRange(1), help="Take means over N images, drawn at random from the whole list.")
@click.option("--seed", default=0, show_default=True, type=click.IntRange(0), help="Random seed of --sample and rendered scenes.")
@batching_options
@click.option("--no-cache", is_flag=True, help="Compute text embeddings without the cache [default: read and write the cache].")
@device_option
@click.option("-f", "--format", "output_format", type=click.Choice(["jsonl", "table"]), help=FORMAT_HELP)
def main(**options: Any) -> None:
    """Write a checkpoint in which units no longer write what they should not, or stand at their means.

    Reads units, from standard input or --bundle: all units of a bundle, those of it that see a cue (--sees) and write a class
    (--writes), or those that lines of clip-spurious, clip-explain or clip-judge name. Writes an ordinary checkpoint of
    open_clip, without hooks, to -o or --out-dir, and a record of the edit to standard output: the units, what was changed, the
    digests of the weights before and after, and how exact it is. The files of the model itself are never changed.

    \b
    --how null   what units write along the texts is taken out by the smallest change of weights; all else that they write stays:
      neurons of a ViT       nothing, through one later head or directly, on any image; paths through later MLPs remain
      pairs of a ResNet      only their mean, on any image; there are no other paths
    A LayerNorm takes the mean of its input away, and clip-effects leaves that out, as the papers do: in a bundle of the edited
    model, a neuron can keep a small share along the text, which never reaches the output.
    --how zero   units at their means over images:
      pairs, neurons and heads of a ResNet's pooling    exact
      heads of a ViT's last layer                       exact
      neurons of a ViT                                  exact, at one mean for all tokens
      heads of earlier layers                           only with --approximate, at one mean for all tokens

    Means of a ResNet's units come from the bundle (or --means). All others are taken over images: the PATHs (files, folders,
    globs, tar archives), or without a PATH rendered scenes for the embedded models. --mask writes a mask in place of a
    checkpoint, with the mean of each token, which no weights can hold.

    --choose finds the number of units on validation images: 5, 10, 20, … units by score are tried, and of those with which no
    other group loses more than --loss, the one whose worst group is best is taken. The record then has accuracies per group on
    the --test images, of the model before and after the edit and of the same edit of as many random units. An image that
    stands in both is an error.

    An edited checkpoint replaces the weights of its model: --model NAME --pretrained FILE of other commands, also for the
    embedded models. Bundles made with it name it by its digest and that of its parent.

    \b
    Examples:
      clip-edit --sees mountain --writes violin --bundle effects.safetensors -o repaired.safetensors
      clip-spurious --cue mountain --head 1 --neurons 80 < effects.safetensors | clip-edit -o repaired.safetensors
      clip-spurious --mismatch --head 60 --neurons 10 < effects.safetensors | clip-edit -o repaired.safetensors
      clip-edit --sees rocket --writes cat --head 400 --out-dir repaired --bundle pairs.safetensors | jq .after
      clip-edit --sees mountain --writes violin --choose validation/violin-mountain --test test/violin-mountain --groups folders
        --bundle effects.safetensors -o repaired.safetensors
      clip-effects --model emoji-vit2 --pretrained repaired.safetensors > after.safetensors
      clip-view --units 5:21,5:328 < effects.safetensors | clip-edit --how zero --mask mask.safetensors
    """
    from cliptools.cli.run.edit import EditOptions, run

    run(EditOptions(**options))


if __name__ == "__main__":
    main()
