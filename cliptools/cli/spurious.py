"""clip-spurious: words that push an image of one class towards another, and things that a model takes for other things."""

from pathlib import Path
from typing import Any

import click

from cliptools.cli.app import command, device_option, output_options, template_option

WAYS = ("effect", "single", "overlap", "random", "random-overlap", "similar")
DEPICT_HELP = "Class that the pictures show: a name, or a name and its synonyms, as 'sofa, couch'."
PREDICT_HELP = "Class that the model should predict instead, in the same form."
PAIRS_HELP = "Pairs of classes: a file with depicted,predicted on each line, or cifar10 (the paper's five pairs)."
CLASSES_HELP = (
    "Classes whose ordered pairs are all ranked by the total score of their words: cifar10, emoji, imagenet, or a file with "
    "one class per line."
)
BY_HELP = (
    "Score of a word. effect: Eq. 6. single: the largest summand of Eq. 6, as in the paper's public code. overlap: Eq. 6 with "
    "<text, r> as the coefficient. random, random-overlap: effect and overlap with random neurons. similar: cosine of the "
    "text with v."
)
MISMATCH_HELP = (
    "No classes: find pairs of things such that units that see the first write the second, among all ordered pairs of texts of "
    "the vocabulary."
)
CUE_HELP = "No classes: find the texts that units write that see this thing; repeatable."
POOL_HELP = (
    "With --mismatch or --cue: vocabulary, emoji, scenes, imagenet, words10k, words30k, or a file with one text per line "
    "[default: that of the bundle's words; without words that of the embedded model, else words30k]."
)
ALIKE_HELP = "With --mismatch or --cue: list pairs of things that look alike too, with the mark `alike`."
HEAD_HELP = "Number of pairs of --classes [default: 10] or of --mismatch, or of texts for each --cue [default: 20], to write."
WORDS_HELP = "Largest number of words per pair [default: 25; 20 with --by single]."
NEURONS_HELP = (
    "Number of neurons to use, those of largest |<v, r>| [default: 100; 50 with --by single]; with --mismatch or --cue number of "
    "units that a line names, those of the largest shares [default: 5]."
)
SEED_HELP = "Random seed for --by random and random-overlap."
EXCLUDE_HELP = (
    "Name to exclude, for every pair: texts that name it or its plural, and texts near it (--near), are left out; repeatable."
)
NEAR_HELP = (
    "Cosine from which on a text counts as near a name of the predicted class or an --exclude, and is excluded, and two texts "
    "of --mismatch or --cue are alike; the mean of the vocabulary is subtracted first."
)
BLOCK_HELP = "File with texts to exclude, one per line: texts equal to one of these, in upper or lower case, are excluded."


@command("clip-spurious")
@click.argument("bundle", required=False, type=click.Path(path_type=Path, allow_dash=True), metavar="[BUNDLE]")
@click.option("--depict", metavar="CLASS", help=DEPICT_HELP)
@click.option("--predict", metavar="CLASS", help=PREDICT_HELP)
@click.option("--pairs-file", "--pairs", "pairs_file", metavar="FILE|NAME", help=PAIRS_HELP)
@click.option("--classes", metavar="FILE|NAME", help=CLASSES_HELP)
@click.option("--mismatch", is_flag=True, help=MISMATCH_HELP)
@click.option("--cue", "cues", multiple=True, metavar="TEXT", help=CUE_HELP)
@click.option("--pool", metavar="NAME|FILE", help=POOL_HELP)
@click.option("--alike", is_flag=True, help=ALIKE_HELP)
@click.option("--head", type=click.IntRange(1), help=HEAD_HELP)
@click.option("--words", type=click.IntRange(1), help=WORDS_HELP)
@click.option("--neurons", type=click.IntRange(1), help=NEURONS_HELP)
@click.option("--layers", help="Use only neurons of these layers, as 8-10,11 [default: all layers of the bundle].")
@click.option("--by", type=click.Choice(WAYS), default="effect", show_default=True, help=BY_HELP)
@click.option("--seed", default=0, show_default=True, type=click.IntRange(0), help=SEED_HELP)
@click.option("--exclude", multiple=True, metavar="TEXT", help=EXCLUDE_HELP)
@click.option("--near", default=0.7, show_default=True, type=click.FloatRange(0, 1, min_open=True), help=NEAR_HELP)
@click.option("--block-list", type=click.Path(path_type=Path), metavar="FILE", help=BLOCK_HELP)
@template_option("text (of the vocabulary and of class names alike)", "none")
@click.option("--no-cache", is_flag=True, help="Compute text embeddings without the cache [default: read and write the cache].")
@device_option
@output_options("jsonl", "table")
def main(**options: Any) -> None:
    """Find words that push an image of one class towards another, and things that a model takes for other things.

    Reads a BUNDLE of clip-decompose (a file, or standard input). Let v = M(predicted) - M(depicted) be the difference of
    the two classes' text embeddings. The score of a word is w_j = the sum of coefficient times <v, r> over the neurons of
    largest |<v, r>| (Eq. 6 of the paper). The words of the largest positive scores are written, with the neurons behind
    each word and their shares of w_j. Over all neurons the shares sum to 1; a neuron that pushes the other way has a
    negative share.

    In a neuron's sparse sum, a text can take the coefficient of a similar text, so the name of the predicted class can
    take that of its own cue. With --by overlap, every text of the vocabulary is scored by itself instead. The paper's
    public code ranks single summands of 50 neurons, takes the words of the largest 20, each word once, and does not
    exclude the depicted class: --by single.

    Excluded are texts that name the predicted class or its synonyms (those of emoji or of a file of classes), texts near
    them, and names of the depicted class, which the pictures show anyway. The default of --near lies between the cosines
    of synonyms (at least 0.92) and of any two other names (at most 0.64) in the embedded model.

    --classes ranks pairs by the total score of their words.

    --mismatch and --cue need no class and no words, only a BUNDLE of clip-effects. A unit sees a thing s if it acts on images
    that the model finds similar to s, and writes a thing t if its direction r lies along t. G is the sum over the units of
    both parts: how much of t the units write that see s. Pairs are ranked by `score`, the distance of G from its mean over
    all t in standard deviations. Things that look alike are left out: the same units see both (`together`, the cosine of
    the units' seeing of s and of t, is 0.8 or more), or their texts are near each other (--near). `own`, `own_score` and
    `own_rank` are a control without units: the covariance of the model's similarities to s and to t, its score in the same
    way, and the rank that the pair has by it.

    \b
    Examples:
      clip-spurious --depict cat --predict violin neurons.safetensors
      clip-effects | clip-decompose | clip-spurious --depict cat --predict dog -f jsonl | jq -r .word
      clip-spurious --pairs-file cifar10 --by random --seed 1 -f jsonl < neurons.safetensors > random.jsonl
      clip-spurious --depict cat --predict violin --by single neurons.safetensors
      clip-spurious --classes emoji --head 20 --words 5 neurons.safetensors
      clip-effects | clip-spurious --mismatch -f table
      clip-spurious --mismatch --neurons 10 < effects.safetensors | clip-edit -o repaired.safetensors
      clip-spurious --cue mountain --cue rocket --head 3 -f jsonl effects.safetensors | jq -c '[.sees, .writes]'
    """
    from cliptools.cli.run.spurious import SpuriousOptions, run

    run(SpuriousOptions(**options))


if __name__ == "__main__":
    main()
