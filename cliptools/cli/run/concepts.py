"""clip-concepts: writes records that describe images by words, or the recall over all images.

front/concepts.py makes the records. The records of finished images are kept in a file beside the output, from which --resume
continues.
"""

from bisect import bisect_left
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from cliptools.analysis.concepts import Neurons, Score
from cliptools.cli.app import Batching, Output, Sampling, choose_format, parse_layers
from cliptools.cli.run.bundle_output import read_neurons
from cliptools.errors import CliptoolsError, ImageError, UsageError
from cliptools.front.concepts import NEEDED_TENSORS, ConceptsRequest, Task, describe_images, prepare, recall_record, row_table
from cliptools.front.images import Reading
from cliptools.front.tables import rendered
from cliptools.images.loader import open_images
from cliptools.io.cache import KeptLines, check_same, kept_lines
from cliptools.io.files import replaceable, text_output
from cliptools.io.jsonl import write_record

Record = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class ConceptsOptions(Sampling, Batching, Output):
    """All parameters of clip-concepts."""

    paths: tuple[str, ...]
    bundle: Path | None
    words: int
    by: str
    score: Score
    neurons: Neurons
    layers: str | None
    truth: Path | None
    evaluate: bool
    resume: bool
    no_cache: bool
    device: str


class EarlierRun(NamedTuple):
    """Work of an earlier run, in whole batches, so that the numbers do not depend on the image at which the run ended."""

    place: int = 0
    """Place in the list of the first image that is not described yet."""
    images: int = 0
    """Number of images before this place that could be read."""


def run(options: ConceptsOptions) -> None:
    """Describe the images and write a record of each, or the recall over all images.

    Raises:
        UsageError: options that contradict each other.
        StreamError: a bundle of other effects, or without units.
    """
    output_format = choose_format(options.output_format, options.output, "jsonl")
    plain = options.output is not None and str(options.output) != "-" and replaceable(options.output)
    resumable = options.output if plain and output_format == "jsonl" and not options.evaluate else None
    request = _request(options)
    _check_usage(options, resumable)
    request.check()
    bundle = read_neurons(options.bundle, *NEEDED_TENSORS, option="--bundle FILE", device=options.device)
    task = prepare(bundle, options.paths or open_images(()), request)
    if resumable is None:
        _write(describe_images(task), task, output_format, options)
        return
    with kept_lines(resumable, options.resume) as part_file:
        earlier, common = _read_earlier(part_file, task), task.common
        for record in describe_images(task, earlier.place, earlier.images):
            write_record(part_file.stream, record | common)


def _request(options: ConceptsOptions) -> ConceptsRequest:
    """Return the arguments of the front."""
    return ConceptsRequest(
        words=options.words,
        by=options.by,
        score=options.score,
        neurons=options.neurons,
        layers=parse_layers(options.layers) if options.layers else None,
        layers_text=options.layers,
        truth=options.truth,
        evaluate=options.evaluate,
        limit=options.limit,
        sample=options.sample,
        seed=options.seed,
        device=options.device,
        cache=not options.no_cache,
        reading=Reading(batch_size=options.batch_size, workers=options.workers, strict=options.strict),
    )


def _check_usage(options: ConceptsOptions, resumable: Path | None) -> None:
    """Reject invalid combinations of options before any input is read.

    Args:
        resumable: The output file, if an earlier run of it can be resumed.
    """
    if options.resume and resumable is None:
        raise UsageError("--resume needs -o FILE with JSON lines, without --evaluate or -f table")


def _read_earlier(part_file: KeptLines, task: Task) -> EarlierRun:
    """Return the work of an earlier run, and drop its records after the last whole batch.

    An image without a record was skipped, or is new. The work ends before the first one that can be read now; with --strict
    before the first one.

    Raises:
        CliptoolsError: the records are of other images or options.
    """
    names, reading, common = task.names, task.request.reading, task.common
    places: list[int] = []  # of the records in the list
    following = 0  # place after the last record
    for record in part_file.earlier():
        name = str(record.get("image"))
        try:
            place = following if name in names[following : following + 1] else names.index(name, following)
        except ValueError:
            raise CliptoolsError(
                f"{part_file.part}: has a record of {name!r}, which is not one of the images that follow; "
                "use the same images or another output file"
            ) from None
        if (unread := next((n for n in range(following, place) if reading.strict or _is_readable(task, n)), None)) is not None:
            following = unread
            break
        expected = common if task.truth is None else common | {"truth": list(task.truth.of(name))}
        for key in expected | {"truth": None}:
            check_same(part_file.part, key, record.get(key), expected.get(key))
        places.append(place)
        following = place + 1
    start = following if following == len(names) else following - following % reading.batch_size
    earlier = EarlierRun(start, bisect_left(places, start))
    part_file.keep(earlier.images)
    return earlier


def _is_readable(task: Task, place: int) -> bool:
    """Return whether the image at a place of the list can be read."""
    try:
        task.images.load(task.indices[place])
    except ImageError:
        return False
    return True


def _write(records: Iterator[Record], task: Task, output_format: str, options: ConceptsOptions) -> None:
    """Write records as they come, or with --evaluate the recall over all, as JSON lines or rows of a table."""
    common = task.common
    with text_output(options.output) as stream:
        if options.evaluate:
            records = iter([recall_record(records)])
        for number, record in enumerate(records):
            if output_format == "jsonl":
                write_record(stream, record | common)
            else:
                stream.write(rendered(row_table(record, titles=number == 0)))
                stream.flush()
