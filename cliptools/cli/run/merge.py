"""clip-merge: joins partials of clip-effects --shard into the bundle of one run, or into one partial.

streaming/shard_statistics.py adds partials; streaming/shards.py decides which top images the sums certify.
"""

from collections.abc import Iterator, Sequence, Set
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from cliptools.cli.app import Measuring, Output, history_arguments, parse_percentage
from cliptools.cli.run.bundle_output import emit
from cliptools.cli.run.shards import bundle_format, joined_embeddings, read_partial, write_partial
from cliptools.console import count_of, note, summarise, warn
from cliptools.emoji.render import scenes_for
from cliptools.errors import CliptoolsError, UsageError
from cliptools.front.effects_bundle import (
    directions_of,
    effects_bundle,
    recorded_settings,
    statistics_settings,
    strongest_units,
    units_summary,
    warn_of_few_images,
)
from cliptools.front.images import NumberedImages, Reading, number_images
from cliptools.images.loader import ImageSource, list_digest, open_images
from cliptools.io.bundle import Bundle
from cliptools.io.header import Header
from cliptools.io.jsonl import unit_name
from cliptools.io.shard_file import PartialFile, joined_header, run_difference, shards_text
from cliptools.models.load import drop_text_tower, load_recorded_model
from cliptools.streaming.embeddings import Embeddings
from cliptools.streaming.shard_statistics import ShardStatistics, add, centres_differ
from cliptools.streaming.shards import Conclusion, blocks_to_merge, conclude
from cliptools.streaming.summary import Settings
from cliptools.unit_effects.factored import UnitBlock
from cliptools.unit_effects.select import Choice, factored_effect, recorded_dictionary

TOOL = "clip-merge"
NAMED_UNITS = 5  # uncertain units that the warning names
NOT_RECORDED = ("parts", "partial", "images")  # not in the history; --images only settles uncertain units


@dataclass(frozen=True, kw_only=True)
class MergeOptions(Measuring, Output):
    """Options of clip-merge."""

    parts: tuple[Path, ...]
    partial: bool
    images: tuple[str, ...]
    keep: str | None
    thumbnails: int | None
    device: str


@dataclass(frozen=True, kw_only=True)
class PartialSet:
    """Partials of one run."""

    files: Sequence[PartialFile]
    header: Header
    """The joined header of all of them."""
    choice: Choice
    settings: Settings

    def joined(self, block: UnitBlock) -> ShardStatistics:
        """Return the statistics of a block of units, added over the partials; one partial at a time is in memory.

        Raises:
            CliptoolsError: two partials have different provisional means.
        """
        first, *later_files = self.files
        total = read_partial(first, block)
        for file in later_files:
            part = read_partial(file, block)
            if centres_differ(total, part).any():
                raise CliptoolsError(
                    f"{file.path}: its provisional mean differs from that of {first.path}; "
                    f"measure this shard again with --centre {first.path}"
                )
            total = add(total, part, self.header.settings["kept"])
        return total

    def embeddings(self) -> Embeddings:
        """Return the embeddings of all images."""
        return joined_embeddings(self.files, self.header.images["listed"])

    def names(self, numbers: Set[int]) -> dict[int, str]:
        """Return the names of the images with these numbers, which must be in top lists of the partials."""
        return {number: name for file in self.files for number, name in file.names().items() if number in numbers}


def run(options: MergeOptions) -> None:
    """Run clip-merge."""
    output_format = bundle_format(options)
    if options.partial:
        _check_partial(options, output_format)
    keep = parse_percentage(options.keep, "--keep") if options.keep else None
    partials = _open_partials(options.parts, options.memory)
    _check_shards(partials, options.partial)
    if options.partial:
        _write_joined(partials, options.output)
        return
    emit(_merge(partials, keep, options), output_format, options.output)


def _check_partial(options: MergeOptions, output_format: str) -> None:
    """Reject options that --partial excludes.

    Raises:
        UsageError: such an option is given.
    """
    for name in ("images", "keep", "thumbnails"):
        if getattr(options, name):
            raise UsageError(f"--{name} applies to the bundle of all shards and does not go with --partial")
    if output_format != "safetensors":
        raise UsageError(f"--partial writes a partial, which is not {output_format}; name a file (-o FILE.safetensors)")


def _open_partials(paths: Sequence[Path], memory: float) -> PartialSet:
    """Open the partials, and check that they are undamaged and of one run.

    Raises:
        StreamError: a file is damaged or not a partial.
        CliptoolsError: the partials are of different runs.
        UsageError: standard input is named twice.
    """
    if [str(path) for path in paths].count("-") > 1:
        raise UsageError("- (standard input) can be given only once")
    files = [PartialFile(path) for path in paths]
    for file in files[1:]:
        if (reason := run_difference(file.header, files[0].header)) is not None:
            raise CliptoolsError(f"{file.path}: not of the same run as {files[0].path} ({reason})")
    header = joined_header([file.header for file in files])
    settings_record = header.settings
    dictionary = recorded_dictionary(settings_record)
    choice = Choice(settings_record["effect"], settings_record["units"], tuple(settings_record["layers"]), dictionary)
    settings = statistics_settings(
        choice,
        top=None if "top_share" in settings_record else settings_record["top_images"],
        quantile=settings_record["quantile"],
        components=settings_record["components"],
        scale=settings_record["scale"],
        gigabytes=memory,
    )
    margin = settings_record["kept"] - settings_record["top_images"]
    return PartialSet(files=files, header=header, choice=choice, settings=settings._replace(margin=margin))


def _check_shards(partials: PartialSet, incomplete: bool) -> None:
    """Check that no shard is duplicate or missing.

    Args:
        incomplete: Allow missing shards, and only print a note.

    Raises:
        CliptoolsError: a shard is duplicate, or missing without `incomplete`.
    """
    paths: dict[int, Path] = {}
    for file in partials.files:
        for i in file.shards:
            if i in paths:
                raise CliptoolsError(f"{file.path}: shard {i} is also in {paths[i]}; name each shard once")
            paths[i] = file.path
    total = partials.files[0].shard_count
    missing_shards = sorted(set(range(1, total + 1)) - set(paths))
    if missing_shards and not incomplete:
        raise CliptoolsError(
            f"{shards_text(missing_shards, total)} missing: name their partials too, or join the others with --partial"
        )
    if missing_shards:
        note(f"{TOOL}: {shards_text(missing_shards, total)} missing")


def _write_joined(partials: PartialSet, output: Path | None) -> None:
    """Write the sum of the partials as one partial."""
    first, header = partials.files[0], partials.header

    def parts() -> Iterator[tuple[UnitBlock, ShardStatistics]]:
        capacity, memory = header.settings["kept"], partials.settings.memory
        for block in blocks_to_merge(first.size, partials.choice.layers, capacity, memory):
            yield block, partials.joined(block)

    count = write_partial(
        parts(), lambda layer: first.size(layer)[0], lambda _: header, partials.names, partials.embeddings(), output
    )
    summarise(f"{TOOL}: {count_of(count, 'image')}, {shards_text(header.settings['have'], first.shard_count)}")


def _merge(partials: PartialSet, keep_share: float | None, options: MergeOptions) -> Bundle:
    """Return the bundle of all shards; if the images are available, read top images in doubt again."""
    header, choice, settings = partials.header, partials.choice, partials.settings
    images = _listed_images(partials, options)
    if images is None and options.thumbnails:
        raise UsageError("--thumbnails needs the images: name them with --images")
    model = load_recorded_model(header.model, options.device)
    drop_text_tower(model)
    effect = factored_effect(model.clip, choice.effect, choice.units, choice.dictionary)
    result = conclude(
        effect,
        choice.layers,
        partials.joined,
        header.images["listed"],
        settings,
        None if images is None else partial(images.batches, model),
        None if images is None else images.screen(),
    )
    keep = strongest_units(effect, result.effects, keep_share)
    image_record = {key: header.images[key] for key in ("count", "digest", "skipped")}
    count = image_record["count"]
    warn_of_few_images(count, settings, result.effects.top_norm.shape[1])

    settings_record = recorded_settings(choice, settings, count)
    merged = Header("effects", header.model, image_record, settings_record, header.history).after(TOOL, _arguments(options))
    names = dict(enumerate(images.names)) if images else partials.names(set(result.effects.top_image.unique().tolist()))
    thumbnails = partial(images.thumbnails, side=options.thumbnails) if images and options.thumbnails else None
    bundle = effects_bundle(
        merged, result.effects, settings, names, keep, partials.embeddings(), partial(directions_of, effect), thumbnails
    )

    skip_text = f", {image_record['skipped']} skipped" if image_record["skipped"] else ""
    reread_text = f", {result.reread} read twice" if result.reread else ""
    shard_text = count_of(partials.files[0].shard_count, "shard")
    unit_text = units_summary(result.effects, choice, keep, model.name)
    summarise(f"{TOOL}: {count_of(count, 'image')}{skip_text}{reread_text}, {shard_text}, {unit_text}")
    if not len(result.uncertain):
        return bundle
    _warn_of_uncertain_units(result, partials.files)
    return bundle.with_tensors(bundle.header, uncertain=result.uncertain.numpy().astype(np.int32))


def _arguments(options: MergeOptions) -> dict[str, Any]:
    """Return the arguments that the history records."""
    return {name: value for name, value in history_arguments(options).items() if name not in NOT_RECORDED}


def _listed_images(partials: PartialSet, options: MergeOptions) -> NumberedImages | None:
    """Return the images of the shards: those of --images, or scenes rendered again; None if there are neither.

    Raises:
        CliptoolsError: the images differ from those of the shards.
    """
    settings_record, expected = partials.header.settings, partials.header.images
    if options.images:
        source: ImageSource = open_images(options.images)
    elif settings_record["rendered"]:
        source = scenes_for(partials.header.model["name"], expected["listed"], settings_record["seed"])
    else:
        return None
    reading = Reading(batch_size=options.batch_size, workers=options.workers, strict=options.strict)
    images = number_images(source, settings_record["limit"], settings_record["sample"], settings_record["seed"], reading)
    if list_digest(images.names) != expected["digest"]:
        count = count_of(len(images.indices), "image")
        option = f"--images {' '.join(options.images)}" if options.images else "rendered scenes"
        raise CliptoolsError(f"{option}: not the images of the shards, which list {expected['listed']} (here: {count})")
    return images


def _warn_of_uncertain_units(result: Conclusion, files: Sequence[PartialFile]) -> None:
    """Warn of the units whose top images are not certain, and name the command line that makes them certain."""
    units = [unit_name(*unit) for unit in result.uncertain.tolist()]
    more_text = f" and {len(units) - NAMED_UNITS} more" if len(units) > NAMED_UNITS else ""
    images = "all images" if result.doubtful is None else count_of(result.doubtful, "image")
    paths = " ".join(str(file.path) for file in files[:2]) + (" ..." if len(files) > 2 else "")
    warn(
        f"top images of {count_of(len(units), 'unit')} are not certain: {', '.join(units[:NAMED_UNITS])}{more_text}; "
        f"{TOOL} {paths} --images PATH reads {images} again and makes them certain"
    )
