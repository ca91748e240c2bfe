"""clip-scenes: pictures composed of emoji, with captions and exact masks, as a tar stream or a folder."""

from collections.abc import Iterator
from dataclasses import replace
from io import BufferedIOBase
from pathlib import Path
from typing import TYPE_CHECKING

import click

from cliptools.cli.app import command, output_options
from cliptools.console import count_of, note, progress
from cliptools.errors import CliptoolsError, UsageError
from cliptools.io.files import binary_output, put_whole, whole_file
from cliptools.io.header import canonical
from cliptools.io.jsonl import write_record

if TYPE_CHECKING:
    from cliptools.emoji.export import Plan, Sample

COUNT = 2000
STYLES = ("fluent", "noto", "twemoji")


@command("clip-scenes")
@click.option("--count", type=click.IntRange(1), help=f"How many scenes [default: {COUNT}; with --caption, 1 for each].")
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="Which sequence of scenes.")
@click.option("--size", type=click.IntRange(16, 2048), default=64, show_default=True, help="Pixels a side.")
@click.option("--style", type=click.Choice(STYLES), help="One style of artwork for all emoji [default: drawn for each].")
@click.option("--single", is_flag=True, help="One emoji a scene, in a folder per name, all names in turn [default: one to four].")
@click.option("--emoji", metavar="N|N-N", help="Only scenes of so many emoji, as 2-3 [default: one to four].")
@click.option("--caption", multiple=True, metavar="TEXT", help="Draw what this names; repeatable [default: any scene].")
@click.option("--plants", is_flag=True, help="Plant the spurious pairs, as training does [default: none].")
@click.option("--out-dir", type=click.Path(path_type=Path), help="Write a folder instead of a tar on standard output.")
@output_options()
def main(
    *,
    count: int | None,
    seed: int,
    size: int,
    style: str | None,
    single: bool,
    emoji: str | None,
    caption: tuple[str, ...],
    plants: bool,
    out_dir: Path | None,
    output: Path | None,
) -> None:
    """Draw scenes of emoji on coloured grounds, with captions and exact masks.

    Writes an uncompressed tar in WebDataset form, for each scene KEY.png, KEY.txt (the caption), KEY.json (names, styles
    and boxes from back to front, the names the caption speaks of, and those of them that are hidden) and KEY.masks.png
    (8 bits: 0 is the ground, 1 the emoji at the back, 2 the next, …). Commands that read images pass over *.masks.png.

    With --caption, two dogs are drawn as two. Where a text asks for what a scene has not (colours, places, other things), a
    warning names those words; the caption says what is drawn, and the text itself is in `asked`.

    With --out-dir, a folder with images/, masks/ and scenes.jsonl.

    Scene i depends on the seed and on i alone: a longer set begins with the shorter one, and equal runs give equal bytes.

    \b
    Examples:
      clip-scenes --count 2000 --seed 7 | clip-effects - > effects.safetensors
      clip-scenes --count 1000 --emoji 2-3 --out-dir scenes
      clip-scenes --count 1052 --single --out-dir singles
      clip-scenes --caption "two cats and a boat" --count 8 --size 256 -o cats.tar
      clip-scenes --count 100 | tar -xO --wildcards '*.json' | jq -c '[.key, .names]'
    """
    if out_dir is not None and output is not None:
        raise UsageError("--out-dir writes a folder and -o a tar: give one of them")
    if single + bool(caption) + plants > 1:
        raise UsageError("--single, --caption and --plants are three kinds of scenes: give one of them")
    if emoji is not None and (single or caption or plants):
        raise UsageError("--emoji says how many emoji a drawn scene has; --single, --caption and --plants say so themselves")
    numbers = _numbers(emoji) if emoji is not None else None
    total = (count or 1) * len(caption) if caption else count or COUNT

    def drawn() -> Iterator["Sample"]:
        from cliptools.emoji.export import in_style, samples

        plans = _plans(count, seed, single, caption, plants, numbers)
        return progress(samples(in_style(plans, style) if style else plans, size), "scenes", total)

    if out_dir is not None:
        _write_folder(out_dir, drawn())
        note(f"{count_of(total, 'scene')} in {out_dir}")
        return
    with binary_output(output) as stream:
        _write_tar(stream, drawn())


def _numbers(emoji: str) -> range:
    """`2-3` as range(2, 4).

    Raises:
        UsageError: not a number or a range of numbers that scenes can have.
    """
    from cliptools.emoji.scenes import MOST_EMOJI

    first, dash, last = emoji.partition("-")
    if not first.isdecimal() or (dash and not last.isdecimal()):
        raise UsageError(f"--emoji {emoji}: expected a number or a range like 2-3")
    numbers = range(int(first), int(last if dash else first) + 1)
    if not numbers or numbers[0] < 1 or numbers[-1] > MOST_EMOJI:
        raise UsageError(f"--emoji {emoji}: a scene has 1 to {MOST_EMOJI} emoji")
    return numbers


def _plans(
    count: int | None, seed: int, single: bool, captions: tuple[str, ...], plants: bool, numbers: range | None
) -> Iterator["Plan"]:
    """The scenes asked for."""
    from cliptools.emoji import export
    from cliptools.emoji.scenes import Recipe
    from cliptools.text.emoji_concepts import plants as planted

    if captions:
        return export.captioned_plans(captions, count or 1, seed)
    if single:
        return export.single_plans(count or COUNT, seed)
    recipe = Recipe(plants=planted() if plants else ())
    if numbers is not None:
        recipe = replace(recipe, counts=tuple(p * (n in numbers) for n, p in enumerate(recipe.counts, 1)))
    return export.drawn_plans(count or COUNT, seed, recipe)


def _write_tar(stream: BufferedIOBase, scenes: Iterator["Sample"]) -> None:
    from cliptools.images.tar import write_end, write_member

    for sample in scenes:
        write_member(stream, f"{sample.key}.png", sample.image)
        write_member(stream, f"{sample.key}.txt", sample.caption.encode())
        write_member(stream, f"{sample.key}.json", canonical(sample.record).encode())
        write_member(stream, f"{sample.key}.masks.png", sample.masks)
    write_end(stream)


def _write_folder(folder: Path, scenes: Iterator["Sample"]) -> None:
    """images/, masks/ and, last of all, scenes.jsonl: where that is, the rest is whole."""
    from cliptools.io.files import only_writer

    with only_writer(folder):
        folder.mkdir(parents=True, exist_ok=True)
        if any(folder.iterdir()):
            raise CliptoolsError(f"{folder}: not empty, and scenes would mix with what is there; name a new folder")
        _write_scenes(folder, scenes)


def _write_scenes(folder: Path, scenes: Iterator["Sample"]) -> None:
    with whole_file(folder / "scenes.jsonl") as stream:
        for sample in scenes:
            image, masks = f"images/{sample.key}.png", f"masks/{sample.key}.masks.png"
            put_whole(folder / image, sample.image)
            put_whole(folder / masks, sample.masks)
            write_record(stream, {**sample.record, "image": image, "masks": masks})


if __name__ == "__main__":
    main()
