"""clip-scenes: pictures composed of emoji, with captions and exact masks, as a tar stream or a folder."""

from pathlib import Path
from typing import Any

import click

from cliptools.cli.app import command, output_options

STYLES = ("fluent", "noto", "twemoji")
WORDS = ("other", "own", "shuffled", "blank")
PLANTED_KINDS = ("pair", "ground", "word", "style")
COUNT_HELP = (
    "Number of scenes; with --caption, of scenes per caption; with --groups, of scenes of each group and split [default: "
    "2000; with --caption 1; with --groups 200]."
)
SINGLE_HELP = "Draw one emoji per scene, in a folder named after it, all emoji in turn [default: one to four]."
EMOJI_HELP = "Number of emoji per scene, as 3 or 2-3 [default: one to four]."
CAPTION_HELP = "Text whose emoji are drawn; repeatable [default: random scenes]."
GROUPS_HELP = "Draw the four groups of everything planted of the kinds of --kind (see below) [default: random scenes]."
KIND_HELP = (
    "Kind of what is planted, for --groups: a pair of things, or a fact about a ground, a written word or a way of drawing; "
    "repeatable [default: pair]."
)
SPLIT_HELP = "Draw one split of --groups: validation or test [default: both, in a folder each]."
PLANTS_HELP = "Plant the spurious pairs and facts into the scenes, as in training [default: none]."
LOOKS_HELP = "Draw half of the emoji in other looks: tinted, blended, as a silhouette or an outline [default: the artwork]."
WRITTEN_HELP = "Write a word onto half of the scenes [default: none]."
WRITE_HELP = (
    "Write a word onto every scene, which captions name only with --described: the name of another emoji (a typographic "
    "attack), of an emoji of the scene, the letters of the first in another order, or a plate of its size without letters "
    "[default: none]."
)
DESCRIBED_HELP = "Write captions that also name colours, sizes, places, grounds, styles and written words [default: the emoji]."


@command("clip-scenes")
@click.option("--count", type=click.IntRange(1), help=COUNT_HELP)
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="Random seed for the sequence of scenes.")
@click.option(
    "--size", type=click.IntRange(16, 2048), default=64, show_default=True, help="Width and height of a scene in pixels."
)
@click.option("--style", type=click.Choice(STYLES), help="Style of the artwork of all emoji [default: random for each emoji].")
@click.option("--single", is_flag=True, help=SINGLE_HELP)
@click.option("--emoji", metavar="N|N-N", help=EMOJI_HELP)
@click.option("--caption", multiple=True, metavar="TEXT", help=CAPTION_HELP)
@click.option("--plants", is_flag=True, help=PLANTS_HELP)
@click.option("--looks", is_flag=True, help=LOOKS_HELP)
@click.option("--written", is_flag=True, help=WRITTEN_HELP)
@click.option("--write", type=click.Choice(WORDS), help=WRITE_HELP)
@click.option("--described", is_flag=True, help=DESCRIBED_HELP)
@click.option("--groups", is_flag=True, help=GROUPS_HELP)
@click.option("--kind", multiple=True, type=click.Choice(PLANTED_KINDS), help=KIND_HELP)
@click.option("--split", type=click.Choice(["validation", "test"]), help=SPLIT_HELP)
@click.option("--out-dir", type=click.Path(path_type=Path), help="Folder to write instead of a tar on standard output.")
@output_options()
def main(**options: Any) -> None:
    """Draw scenes of emoji on coloured backgrounds, with captions and exact masks.

    Writes an uncompressed tar in WebDataset form. Each scene has KEY.png, KEY.txt (the caption), KEY.json (names, styles,
    looks and boxes from back to front, the names in the caption, those of them that are hidden, the attributes of the scene
    such as `red ground`, and what is written) and KEY.masks.png (8 bits: 0 is the background, 1 the emoji at the back, 2 the
    next one, …). Commands that read images ignore *.masks.png.

    With --caption, numbers in the text are observed: for two dogs, two are drawn. If the text names something that scenes
    cannot show (colours, places, other things), a warning lists those words. The caption then names only the emoji that are
    drawn, and `asked` holds the text itself.

    With --groups, scenes show a class with or without a cue that training has planted. Of each planted pair (A named, B cue)
    there are four groups: A or another class C, beside B or beside another thing. Of each planted fact (--kind ground, word,
    style) they show A or C alone, with the property B or with another one of the kind: another ground, word or way of drawing.
    Scenes of a fact with one NUMBER, with B and without, differ in nothing else. Keys are SPLIT/PAIR/CLASS/BESIDE/NUMBER, and
    records also have `split`, `pair` (names of A and B), `kind`, `classes` (A and C), `label` and `beside` (B or other). The
    scenes of the two splits are disjoint. `clip-ablate --groups scenes` reads the records, `--groups folders` the folders of
    one split.

    With --write, scenes are those of the same options without it, and the word of each scene has the same place and colours
    with each value, so that covering and reading can be told apart: all words are on a plate, and the plate without letters
    covers as much. The record has the word as `written`. Only names of at most three letters are written, without the
    words of planted facts. With `own`, scenes of things with other names have no word.

    With --out-dir, writes a folder with images/, masks/ and scenes.jsonl.

    Scene i depends only on the seed and on i: a longer sequence begins with the shorter one, and equal runs give equal bytes.

    \b
    Examples:
      clip-scenes --count 2000 --seed 7 | clip-effects - > effects.safetensors
      clip-scenes --count 1000 --emoji 2-3 --out-dir scenes
      clip-scenes --count 1052 --single --out-dir singles
      clip-scenes --count 500 --looks --written --described --out-dir varied
      clip-scenes --caption "two cats and a boat" --count 8 --size 256 -o cats.tar
      clip-scenes --single --count 1052 --write other --out-dir attacked
      clip-scenes --groups --kind word --kind style --out-dir facts
      clip-scenes --groups --seed 1 --split test | clip-ablate - --groups scenes --bundle effects.safetensors
      clip-scenes --count 100 | tar -xO --wildcards '*.json' | jq -c '[.key, .names]'
    """
    from cliptools.cli.run.scenes import ScenesOptions, run

    run(ScenesOptions(**options))


if __name__ == "__main__":
    main()
