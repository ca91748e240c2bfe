"""clip-merge: partials of clip-effects --shard in, the bundle of one run out."""

from collections.abc import Iterator, Sequence, Set
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import click

from cliptools.cli.app import (
    FORMATS,
    choose_format,
    command,
    device_option,
    history_arguments,
    measuring_options,
    output_options,
    parse_percentage,
)
from cliptools.cli.run.bundle_output import emit
from cliptools.cli.run.effects import (
    Listed,
    effects_bundle,
    keep_strongest,
    list_images,
    settings_of,
    threshold_said,
    thumbnailer,
    top_said,
    units_said,
    warn_of_few,
)
from cliptools.cli.run.shards import read_slab, write_slabs
from cliptools.console import count_of
from cliptools.errors import CliptoolsError, UsageError
from cliptools.io.files import stdout_is_terminal
from cliptools.io.jsonl import unit_name

if TYPE_CHECKING:
    from cliptools.effects.factored import UnitBlock
    from cliptools.effects.select import Choice
    from cliptools.io.bundle import Bundle
    from cliptools.io.header import Header
    from cliptools.io.shard_file import PartialFile
    from cliptools.streaming.measure import Settings
    from cliptools.streaming.shard_statistics import ShardStatistics
    from cliptools.streaming.shards import Concluded

TOOL = "clip-merge"
NAMED = 5  # units, of those that are not certain
UNRECORDED = ("parts", "partial", "images")  # they leave no trace in the bundle, but for units that images make certain
PARTIAL_HELP = "Write a partial again: of the shards that are there, or of all."
IMAGES_HELP = "The list's images (PATH as for clip-effects; repeatable), to look again at those in doubt."
KEEP_HELP = "Keep this share of the units, those of largest top norms, and what the others add up to on average [default: all]."
THUMBNAILS_HELP = "Keep small JPEGs of the top images in the bundle; needs --images."


class Whole(NamedTuple):
    """Partials of one run."""

    files: "Sequence[PartialFile]"
    header: "Header"
    """Of all of them together."""
    choice: "Choice"
    settings: "Settings"


@command(TOOL)
@click.argument(
    "parts", nargs=-1, required=True, type=click.Path(dir_okay=False, allow_dash=True, path_type=Path), metavar="PARTIAL..."
)
@click.option("--partial", is_flag=True, help=PARTIAL_HELP)
@click.option("--images", multiple=True, metavar="PATH", help=IMAGES_HELP)
@click.option("--keep", metavar="PERCENT", help=KEEP_HELP)
@click.option("--thumbnails", type=click.IntRange(16, 512), metavar="PIXELS", help=THUMBNAILS_HELP)
@measuring_options
@device_option
@output_options(*FORMATS)
@click.pass_context
def main(
    context: click.Context, /, parts: tuple[Path, ...], output_format: str | None, output: Path | None, **options: Any
) -> None:
    """Join partials of clip-effects --shard into the bundle that one run over all images gives.

    PARTIALs may come in any order (one as - on standard input), and may themselves be merged ones. The bundle has the
    means, directions and thresholds of one run, and its top images. Without all shards it is an error that names those
    missing; --partial writes what is there as a partial again, so that a merge can go on in several places.

    Each shard measures norms about the same provisional mean. About the true one, which is known here, a top image may
    be another than those at hand: a unit where that cannot be ruled out is named, and listed in the bundle (`uncertain`).
    With --images the few images in doubt are looked at again, and every list is exact. Rendered scenes need no --images.

    \b
    Examples:
      for i in 1 2 3; do clip-effects photos/ --shard $i/3 -o part-$i.safetensors; done
      clip-merge part-*.safetensors --images photos/ -o effects.safetensors
      clip-merge part-*.safetensors | clip-decompose --m 32 > neurons.safetensors
      clip-merge part-[1-4].safetensors --partial -o left.safetensors
      clip-merge left.safetensors right.safetensors --keep 20% -o pairs.safetensors
      make -j 4 part-1.safetensors part-2.safetensors   # with  part-%.safetensors: ; clip-effects ... --shard $*/2 -o $@
    """
    chosen = choose_format(output_format, output, "safetensors")
    if chosen == "safetensors" and output is None and stdout_is_terminal():
        raise UsageError("this is binary and would garble the terminal: redirect it (> FILE) or name a file (-o FILE)")
    _check(options, chosen)
    options["keep"] = parse_percentage(options["keep"], "--keep") if options["keep"] else None
    whole = _open(parts, options["memory"])
    _check_shards(whole, options["partial"])
    if options["partial"]:
        _write_partial(whole, output)
        return
    said = {key: value for key, value in history_arguments(context).items() if key not in UNRECORDED}
    emit(_merge(whole, options, said), chosen, output)


def _check(options: dict[str, Any], chosen_format: str) -> None:
    if options["partial"]:
        for name in ("images", "keep", "thumbnails"):
            if options[name]:
                raise UsageError(f"--{name} is for the bundle of all shards, not for --partial")
        if chosen_format != "safetensors":
            raise UsageError(f"--partial: a partial is no {chosen_format}; write it to a file (-o FILE.safetensors)")


def _open(parts: Sequence[Path], memory: float) -> Whole:
    """The partials, which are whole and of one run.

    Raises:
        StreamError: a file that is none, or damaged.
        CliptoolsError: two of different runs.
        UsageError: standard input twice.
    """
    from cliptools.effects.select import Choice
    from cliptools.io.shard_file import PartialFile, difference, joined_header

    if [str(path) for path in parts].count("-") > 1:
        raise UsageError("- (standard input) can be given once")
    files = [PartialFile(path) for path in parts]
    for file in files[1:]:
        if (found := difference(file.header, files[0].header)) is not None:
            raise CliptoolsError(f"{file.path}: not of the same run as {files[0].path} ({found})")
    header = joined_header([file.header for file in files])
    said = header.settings
    choice = Choice(said["effect"], said["units"], tuple(said["layers"]))
    asked = None if "top_share" in said else said["top_images"]
    settings = settings_of(choice, said | {"memory": memory, "top_images": asked})
    return Whole(files, header, choice, settings._replace(margin=said["kept"] - said["top_images"]))


def _check_shards(whole: Whole, incomplete: bool) -> None:
    """Whether every shard is there once.

    Raises:
        CliptoolsError: one is there twice, or missing where all are wanted.
    """
    from cliptools.console import note
    from cliptools.io.shard_file import shards_said

    where: dict[int, Path] = {}
    for file in whole.files:
        for i in file.have:
            if i in where:
                raise CliptoolsError(f"{file.path}: shard {i} is in {where[i]} already")
            where[i] = file.path
    of = whole.files[0].of
    missing = sorted(set(range(1, of + 1)) - set(where))
    if missing and not incomplete:
        raise CliptoolsError(f"{shards_said(missing, of)} missing: name their partials too, or join what is there with --partial")
    if missing:
        note(f"{TOOL}: {shards_said(missing, of)} missing")


def _joined(whole: Whole, slab: "UnitBlock") -> "ShardStatistics":
    """Some units, added up over the partials, of which one at a time is in memory.

    Raises:
        CliptoolsError: partials about different provisional means.
    """
    from cliptools.streaming.shard_statistics import add, apart

    total = read_slab(whole.files[0], slab)
    for file in whole.files[1:]:
        part = read_slab(file, slab)
        if apart(total, part).any():
            raise CliptoolsError(
                f"{file.path}: its provisional mean is not that of {whole.files[0].path}; make it with --centre of that one"
            )
        total = add(total, part, whole.header.settings["kept"])
    return total


def _names(whole: Whole, numbers: Set[int]) -> dict[int, str]:
    """Of the images with these numbers, which are in the list of one unit or another."""
    return {number: name for file in whole.files for number, name in file.names().items() if number in numbers}


def _write_partial(whole: Whole, output: Path | None) -> None:
    from cliptools.console import summarise
    from cliptools.io.shard_file import shards_said
    from cliptools.streaming.shards import blocks_to_merge

    first, header = whole.files[0], whole.header

    def slabs() -> "Iterator[tuple[UnitBlock, ShardStatistics]]":
        for slab in blocks_to_merge(first.size, whole.choice.layers, header.settings["kept"], whole.settings.memory):
            yield slab, _joined(whole, slab)

    count = write_slabs(
        slabs(), lambda layer: first.size(layer)[0], lambda _: header, lambda numbers: _names(whole, numbers), output
    )
    summarise(f"{TOOL}: {count_of(count, 'image')}, {shards_said(header.settings['have'], first.of)}")


def _merge(whole: Whole, options: dict[str, Any], arguments: dict[str, Any]) -> "Bundle":
    """The bundle of all shards."""
    import numpy as np

    from cliptools.console import summarise
    from cliptools.effects.select import factored_effect
    from cliptools.images.loader import Skipped
    from cliptools.io.header import Header
    from cliptools.models.load import drop_text_tower, load_recorded_model
    from cliptools.streaming.shards import conclude

    header, choice = whole.header, whole.choice
    listed = _listed(whole, options)
    if listed is None and options["thumbnails"]:
        raise UsageError("--thumbnails needs the images: name them with --images")
    model = load_recorded_model(header.model, options["device"])
    drop_text_tower(model)
    paths = factored_effect(model.clip, choice.effect, choice.units)
    skipped = Skipped()
    batches = None if listed is None else listed.batches(model, options, skipped)
    screen = None if listed is None else listed.screen(skipped, options["strict"])
    found = conclude(
        paths, choice.layers, lambda slab: _joined(whole, slab), header.images["listed"], whole.settings, batches, screen
    )
    keep = keep_strongest(paths, found.effects, options["keep"])
    names = dict(enumerate(listed.names)) if listed else _names(whole, set(found.effects.top_image.unique().tolist()))
    images = {key: header.images[key] for key in ("count", "digest", "skipped")}
    said = {key: header.settings[key] for key in ("effect", "units", "layers", "scale", "quantile")}
    said |= top_said(whole.settings, images["count"])
    warn_of_few(images["count"], whole.settings.top, found.effects.top_norm.shape[1])
    made = Header("effects", header.model, images, said, header.history).after(TOOL, arguments)
    thumbnails = None if listed is None else thumbnailer(listed, options["thumbnails"])
    bundle = effects_bundle(made, found.effects, whole.settings, names, keep, thumbnails)
    skips = f", {images['skipped']} skipped" if images["skipped"] else ""
    again = f", {found.reread} looked at twice" if found.reread else ""
    units, bounded = units_said(found.effects, choice, keep), threshold_said(found.effects)
    summarise(
        f"{TOOL}: {count_of(images['count'], 'image')}{skips}{again}, {count_of(whole.files[0].of, 'shard')}, "
        f"{units} of {model.name}{bounded}"
    )
    if not len(found.uncertain):
        return bundle
    _say_uncertain(found, whole)
    return bundle.with_tensors(bundle.header, uncertain=found.uncertain.numpy().astype(np.int32))


def _listed(whole: Whole, options: dict[str, Any]) -> Listed | None:
    """The images of the list, where they are at hand.

    Raises:
        CliptoolsError: those named are others.
    """
    from cliptools.images.loader import list_digest

    said = whole.header.settings
    if options["images"]:
        from cliptools.images.loader import open_images

        listed = list_images(open_images(options["images"]), said)
    elif said["rendered"]:
        from cliptools.emoji.render import scenes_for

        listed = list_images(scenes_for(whole.header.model["name"], whole.header.images["listed"], said["seed"]), said)
    else:
        return None
    if list_digest(listed.names) != whole.header.images["digest"]:
        of = f"{count_of(len(listed.indices), 'image')}, of which the shards had {whole.header.images['listed']}"
        raise CliptoolsError(f"--images {' '.join(options['images'])}: not the list of the shards ({of}, or others)")
    return listed


def _say_uncertain(found: "Concluded", whole: Whole) -> None:
    """Which units are not certain, and what makes them so."""
    from cliptools.console import warn

    units = [unit_name(*unit) for unit in found.uncertain.tolist()]
    said = ", ".join(units[:NAMED]) + (f" and {len(units) - NAMED} more" if len(units) > NAMED else "")
    doubtful = "all images" if found.doubtful is None else f"{count_of(found.doubtful, 'image')}"
    files = " ".join(str(file.path) for file in whole.files[:2]) + (" ..." if len(whole.files) > 2 else "")
    warn(
        f"top images of {count_of(len(units), 'unit')} are not certain: {said}; "
        f"{TOOL} {files} --images PATH looks again at {doubtful} and makes them so"
    )


if __name__ == "__main__":
    main()
