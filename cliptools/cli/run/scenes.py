"""clip-scenes: plans scenes of emoji, has them drawn, and writes them as a tar or a folder."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from io import BufferedIOBase
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from cliptools.cli.app import Options
from cliptools.console import count_of, note, progress
from cliptools.emoji.scenes import MOST_EMOJI, Recipe
from cliptools.errors import CliptoolsError, UsageError
from cliptools.images.tar import write_end, write_member
from cliptools.io.files import binary_output, only_writer, put_whole, whole_file
from cliptools.io.header import canonical
from cliptools.io.jsonl import write_record
from cliptools.text.emoji_concepts import PAIR, facts, plants

if TYPE_CHECKING:
    from cliptools.emoji.export import Sample

COUNT = 2000  # scenes by default, without --caption
GROUP_COUNT = 200  # scenes of each group by default
LOOKS, WRITTEN = 0.5, 0.5  # shares of emoji in other looks and of scenes with a word
GROUPS = 4  # of each planted pair or fact


@dataclass(frozen=True, kw_only=True)
class ScenesOptions(Options):
    """Options of clip-scenes."""

    count: int | None
    seed: int
    size: int
    style: Literal["fluent", "noto", "twemoji"] | None
    single: bool
    emoji: str | None
    caption: tuple[str, ...]
    plants: bool
    looks: bool
    written: bool
    write: Literal["other", "own", "shuffled", "blank"] | None
    described: bool
    groups: bool
    kind: tuple[str, ...]
    split: str | None
    out_dir: Path | None
    output: Path | None


def run(options: ScenesOptions) -> None:
    """Run clip-scenes.

    Raises:
        UsageError: options that exclude each other.
    """
    if options.out_dir is not None and options.output is not None:
        raise UsageError("--out-dir (a folder) and -o (a tar) exclude each other")
    kinds = options.single + bool(options.caption) + options.plants + options.groups
    if kinds > 1:
        raise UsageError("--single, --caption, --plants and --groups exclude each other")
    if options.emoji is not None and kinds:
        raise UsageError("--emoji cannot be combined with --single, --caption, --plants or --groups, which set the number")
    if (options.looks or options.written) and (options.caption or options.groups):
        raise UsageError("--looks and --written vary random scenes; they cannot be combined with --caption or --groups")
    if options.described and (options.caption or options.groups or options.plants):
        raise UsageError("--described cannot be combined with --caption, --groups or --plants, which set the captions")
    if options.write is not None and (options.written or options.plants or options.groups):
        raise UsageError("--write puts a word onto every scene; it cannot be combined with --written, --plants or --groups")
    for name, given in (("--split", options.split), ("--kind", options.kind)):
        if given and not options.groups:
            raise UsageError(f"{name} needs --groups")
    sizes = _emoji_counts(options.emoji) if options.emoji is not None else None
    total = _total(options)
    if options.out_dir is not None:
        _write_folder(options.out_dir, progress(_samples(options, sizes), "scenes", total))
        note(f"{count_of(total, 'scene')} in {options.out_dir}")
        return
    with binary_output(options.output) as stream:
        _write_tar(stream, progress(_samples(options, sizes), "scenes", total))


def _total(options: ScenesOptions) -> int:
    """Return the number of scenes."""
    if options.groups:
        kinds = _kinds(options)
        planted = len(plants()) * (PAIR in kinds) + sum(fact.kind in kinds for fact in facts())
        return (options.count or GROUP_COUNT) * GROUPS * planted * (1 if options.split else 2)
    return (options.count or 1) * len(options.caption) if options.caption else options.count or COUNT


def _kinds(options: ScenesOptions) -> tuple[str, ...]:
    """Return the kinds of what is planted, each once."""
    return tuple(dict.fromkeys(options.kind)) or (PAIR,)


def _emoji_counts(text: str) -> range:
    """Parse --emoji: `2-3` gives range(2, 4), the allowed numbers of emoji per scene.

    Raises:
        UsageError: the text is not a number or a range of numbers that scenes can have.
    """
    first, dash, last = text.partition("-")
    if not first.isdecimal() or (dash and not last.isdecimal()):
        raise UsageError(f"--emoji {text}: expected a number or a range like 2-3")
    counts = range(int(first), int(last if dash else first) + 1)
    if not counts or counts[0] < 1 or counts[-1] > MOST_EMOJI:
        raise UsageError(f"--emoji {text}: a scene has 1 to {MOST_EMOJI} emoji")
    return counts


def _samples(options: ScenesOptions, emoji_counts: range | None) -> Iterator["Sample"]:
    """Draw the scenes of the options, in order.

    Raises:
        UsageError: a caption that no scene can show, before anything is drawn.
    """
    from cliptools.emoji import (  # inside, because it imports torch, which takes seconds; errors in options come before
        export,
        group_scenes,
    )

    if options.caption:
        plans = export.captioned_plans(options.caption, options.count or 1, options.seed)
    elif options.groups:
        splits = (options.split,) if options.split else group_scenes.SPLITS
        plans = group_scenes.group_plans(options.count or GROUP_COUNT, options.seed, splits, _kinds(options))
    elif options.single:
        plans = export.single_plans(options.count or COUNT, options.seed, _recipe(options, emoji_counts))
    else:
        plans = export.drawn_plans(options.count or COUNT, options.seed, _recipe(options, emoji_counts))
    plans = export.in_style(plans, options.style) if options.style else plans
    plans = export.with_words(plans, options.seed, options.write) if options.write else plans
    return export.samples(export.described(plans, options.seed) if options.described else plans, options.size)


def _recipe(options: ScenesOptions, emoji_counts: range | None) -> Recipe:
    """Return the recipe of random scenes: with planted pairs and facts, looks and words, or with some numbers of emoji only."""
    recipe = Recipe(looks=LOOKS * options.looks, written=WRITTEN * options.written)
    if options.plants:
        recipe = replace(recipe, plants=plants(), facts=facts())
    if emoji_counts is None:
        return recipe
    return replace(recipe, counts=tuple(p * (count in emoji_counts) for count, p in enumerate(recipe.counts, 1)))


def _write_tar(stream: BufferedIOBase, scenes: Iterator["Sample"]) -> None:
    """Write the scenes as a tar, four members each."""
    for sample in scenes:
        write_member(stream, f"{sample.key}.png", sample.image)
        write_member(stream, f"{sample.key}.txt", sample.caption.encode())
        write_member(stream, f"{sample.key}.json", canonical(sample.record).encode())
        write_member(stream, f"{sample.key}.masks.png", sample.masks)
    write_end(stream)


def _write_folder(folder: Path, scenes: Iterator["Sample"]) -> None:
    """Write images/, masks/, and at last scenes.jsonl, whose existence means that the folder is complete.

    Raises:
        CliptoolsError: the folder is not empty.
    """
    with only_writer(folder):
        folder.mkdir(parents=True, exist_ok=True)
        if any(folder.iterdir()):
            raise CliptoolsError(f"{folder}: the folder is not empty, and its files would mix with the scenes; name a new folder")
        with whole_file(folder / "scenes.jsonl") as stream:
            for sample in scenes:
                image, masks = f"images/{sample.key}.png", f"masks/{sample.key}.masks.png"
                put_whole(folder / image, sample.image)
                put_whole(folder / masks, sample.masks)
                write_record(stream, {**sample.record, "image": image, "masks": masks})
