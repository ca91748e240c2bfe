"""clip-concepts: what an image shows, in the words of the neurons that act on it."""

from collections.abc import Iterable, Iterator, Sequence
from io import BufferedIOBase
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import click

from cliptools.cli.app import batch_option, choose_format, command, device_option, output_options, parse_layers, reading_options
from cliptools.cli.run.bundle_output import read_neurons, record_source, rendered
from cliptools.cli.run.concepts import by_neurons, by_text
from cliptools.console import count_of
from cliptools.errors import CliptoolsError, ImageError, StreamError, UsageError
from cliptools.io.cache import KeptLines, check_same, kept_lines
from cliptools.io.files import replaceable, text_output
from cliptools.io.jsonl import rounded, write_record

if TYPE_CHECKING:
    from torch import Tensor

    from cliptools.images.annotations import Annotations
    from cliptools.images.loader import ImageSource
    from cliptools.io.bundle import Bundle

    Asked = tuple[ImageSource, list[int]]

TOOL = "clip-concepts"
EFFECTS = ("second", "pooled")
WIDTHS = {"image": 24, "active": 6, "found": 6}  # columns of the table
BY_HELP = (
    "words: the neurons' own texts (App. A.5). directions: the same sum of their directions, compared with the whole pool. "
    "text: the cosine of the image with the whole pool, without neurons."
)
SCORE_HELP = "What a neuron's words are weighted by: ||phi - b||, or <phi - b, r>."
NEURONS_HELP = "Active: ||phi - b|| above the bundle's threshold. random: as many, drawn."
TRUTH_HELP = "What the images show: lines with key and names, as clip-scenes writes them. Records then say what was found."
RESUME_HELP = "Go on with what an earlier run has left of -o FILE, in FILE.part, or with FILE."


@command(TOOL)
@click.argument("paths", nargs=-1, metavar="PATH...")
@click.option(
    "--bundle", type=click.Path(path_type=Path, allow_dash=True), metavar="FILE", help="Of clip-decompose [default: stdin]."
)
@click.option("--words", default=10, show_default=True, type=click.IntRange(1), help="Words an image, at most.")
@click.option("--by", type=click.Choice(["words", "directions", "text"]), default="words", show_default=True, help=BY_HELP)
@click.option("--score", type=click.Choice(["norm", "signed"]), default="norm", show_default=True, help=SCORE_HELP)
@click.option("--neurons", type=click.Choice(["active", "all", "random"]), default="active", show_default=True, help=NEURONS_HELP)
@click.option("--layers", help="Only neurons of these layers, as 8-10,11 [default: all of the bundle].")
@click.option("--truth", type=click.Path(path_type=Path), metavar="FILE", help=TRUTH_HELP)
@click.option("--evaluate", is_flag=True, help="With --truth: one line for all images, the recall and its interval.")
@click.option("--limit", type=click.IntRange(1), help="Only the first N images.")
@click.option("--sample", type=click.IntRange(1), help="N images drawn over the whole list.")
@click.option("--seed", default=0, show_default=True, type=click.IntRange(0), help="Of --sample and of --neurons random.")
@click.option("--resume", is_flag=True, help=RESUME_HELP)
@click.option("--strict", is_flag=True, help="An unreadable or unusable image is an error, not a warning.")
@reading_options
@batch_option
@click.option("--workers", type=click.IntRange(0), help="Threads that decode images [default: the number of cores, at most 8].")
@click.option("--no-cache", is_flag=True, help="Neither read nor keep text embeddings [default: keep them].")
@device_option
@output_options("jsonl", "table")
def main(paths: tuple[str, ...], output: Path | None, output_format: str | None, **options: Any) -> None:
    """Say what images show, in the words of the neurons that act on them.

    Reads images (files, folders, globs, tar archives; - for a tar on standard input) and a bundle of clip-decompose, on
    standard input or by --bundle. Each image gets the words of the neurons that are active on it, weighted by how much they
    act, a line an image: its concepts with their scores, how many neurons are active, and those that say most.

    With -o FILE, lines stand in FILE.part until all are there; whatever ends a run before, --resume goes on with them.

    \b
    Examples:
      clip-concepts holiday.jpg < neurons.safetensors
      clip-scenes --count 20 | clip-concepts - --bundle neurons.safetensors -f jsonl | jq -c '[.image, .concepts[0].word]'
      clip-concepts photos/ --bundle neurons.safetensors --score signed --neurons all -o concepts.jsonl --resume
      clip-concepts scenes/images --truth scenes/scenes.jsonl --evaluate -f jsonl < neurons.safetensors | jq .recall
    """
    chosen = choose_format(output_format, output, "jsonl")
    plain = output is not None and str(output) != "-" and replaceable(output)
    lines = output if plain and chosen == "jsonl" and not options["evaluate"] else None
    _check_usage(paths, options, lines)
    needed = ("word", "coefficient", "words", "mean", "threshold")
    neurons = read_neurons(options["bundle"], *needed, option="--bundle FILE", device=options["device"])
    effect = neurons.header.settings.get("effect")
    if effect not in EFFECTS:
        raise StreamError(
            f"a bundle of {effect} effects; {TOOL} needs second-order effects of neurons, or a ResNet's pooled ones"
        )
    source = record_source(neurons)
    if options["layers"]:
        from cliptools.analysis.selection import by_layers

        neurons = neurons.select(by_layers(neurons, parse_layers(options["layers"])))
    if not neurons.units:
        raise StreamError("a bundle without units: nothing can be active")
    asked, truth = _images(paths, options)
    said = {"settings": _settings(neurons, options)} | source
    if lines is None:
        _write(_records(neurons, asked, truth, options, Done()), said, chosen, output, options["evaluate"])
        return
    with kept_lines(lines, options["resume"]) as kept:
        done = _done(kept, asked, truth, said, options)
        for record in _records(neurons, asked, truth, options, done):
            write_record(kept.stream, record | said)


def _check_usage(paths: Sequence[str], options: dict[str, Any], lines: Path | None) -> None:
    """What the options say together.

    Raises:
        UsageError: they contradict each other.
    """
    bundle = options["bundle"]
    if "-" in paths and (bundle is None or str(bundle) == "-"):
        raise UsageError("- reads images from standard input, so the bundle needs a file: --bundle FILE")
    if options["evaluate"] and not options["truth"]:
        raise UsageError("--evaluate needs to know what the images show: --truth FILE")
    if options["by"] == "text" and (options["score"] != "norm" or options["neurons"] != "active" or options["layers"]):
        raise UsageError("--by text asks no neurons: leave --score, --neurons and --layers out")
    if options["resume"] and lines is None:
        raise UsageError("--resume goes on with a file of JSON lines: name it by -o FILE, without --evaluate or -f table")


def _images(paths: Sequence[str], options: dict[str, Any]) -> "tuple[Asked, Annotations | None]":
    """The images asked for, and what they show."""
    from cliptools.images.annotations import read_annotations
    from cliptools.images.loader import choose, open_images

    source = open_images(paths)
    indices = choose(source, options["limit"], options["sample"], options["seed"])
    truth = read_annotations(options["truth"]) if options["truth"] else None
    if truth is not None:
        for index in indices:
            truth.of(source.names[index])  # before any work: an image it does not know ends the command
    return (source, indices), truth


def _settings(neurons: "Bundle", options: dict[str, Any]) -> dict[str, Any]:
    """What the numbers of a record depend on, beside model and bundle."""
    words = neurons.header.settings.get("words", {})
    said = {"by": options["by"], "words": options["words"], "pool": words.get("pool")}
    if options["by"] == "text":
        return said
    said |= {key: options[key] for key in ("score", "neurons", "layers")} | {"m": neurons["word"].shape[1]}
    said |= {key: neurons.header.settings.get(key) for key in ("quantile", "scale")}
    return said | ({"seed": options["seed"]} if options["neurons"] == "random" else {})


class Done(NamedTuple):
    """What an earlier run has done: whole batches, so that the numbers do not depend on where it ended."""

    place: int = 0
    """In the list of images, from which on they are to be described."""
    images: int = 0
    """Of them, how many could be read."""


def _done(kept: KeptLines, asked: "Asked", truth: "Annotations | None", said: dict[str, Any], options: dict[str, Any]) -> Done:
    """What is kept of an earlier run's lines; the rest are dropped.

    Raises:
        CliptoolsError: they are of other images or options.
        ImageError: with --strict, one that the earlier run has skipped.
    """
    source, indices = asked
    names, done, following, lines = [source.names[index] for index in indices], Done(), 0, 0
    for record in kept.earlier():
        name = str(record.get("image"))
        if name not in names[following : following + 1]:
            skipped = following
            try:
                following = names.index(name, following)
            except ValueError:
                raise CliptoolsError(f"{kept.part}: has {name!r}, not one of the images to come; write elsewhere") from None
            if options["strict"]:
                raise ImageError(f"{names[skipped]}: skipped by the earlier run")
        wanted = said if truth is None else said | {"truth": list(truth.of(names[following]))}
        for key in wanted | {"truth": None}:
            check_same(kept.part, key, record.get(key), wanted.get(key))
        start = following - following % options["batch_size"]
        if start > done.place:
            done = Done(start, lines)
        following, lines = following + 1, lines + 1
    if following % options["batch_size"] == 0 or following == len(names):
        done = Done(following, lines)
    kept.keep(done.images)
    return done


def _records(
    neurons: "Bundle", asked: "Asked", truth: "Annotations | None", options: dict[str, Any], done: Done
) -> Iterator[dict[str, Any]]:
    """A record an image, in the order of the list."""
    from cliptools.console import progress, summarise
    from cliptools.devices import in_halves
    from cliptools.images.annotations import found_names
    from cliptools.images.loader import Skipped, load_batches
    from cliptools.models.load import load_recorded_model
    from cliptools.models.unusable import Screen

    source, indices = asked[0], asked[1][done.place :]
    model = load_recorded_model(neurons.header.model, options["device"])
    describe = (by_text if options["by"] == "text" else by_neurons)(neurons, model, options)
    skipped, count = Skipped(), done.images
    screen = Screen[int](source.names.__getitem__, skipped.add, options["strict"], passed=count > 0)
    batches = load_batches(
        source, indices, model.transform,
        batch_size=options["batch_size"], workers=options["workers"], strict=options["strict"], skipped=skipped,
    )  # fmt: skip

    def described(some: Sequence[int], pictures: "Tensor") -> list[tuple[str, dict[str, Any] | str]]:
        names = [source.names[index] for index in some]
        return list(zip(names, describe(names, pictures), strict=True))

    for read, records in in_halves(progress(batches, "images", len(indices), lambda batch: len(batch[0])), described):
        stay = screen.places(read, {place: each for place, (_, each) in enumerate(records) if isinstance(each, str)})
        for name, record in (records[place] for place in stay):
            assert isinstance(record, dict)  # the others are reasons
            if truth is not None:
                words = [concept["word"] for concept in record["concepts"]]
                record |= {"truth": list(truth.of(name)), "found": found_names(truth.of(name), words)}
            yield {"image": name} | record
        count += len(stay)
    screen.require(count)
    earlier = f", {done.images} of them by an earlier run" if done.images else ""
    summarise(f"{TOOL}: {count_of(count, 'image')}{earlier}" + (f", {len(skipped)} skipped" if len(skipped) else ""))


def _write(records: Iterator[dict[str, Any]], said: dict[str, Any], chosen: str, output: Path | None, evaluate: bool) -> None:
    """Records as they come, or the recall of them all, as lines or rows."""
    with text_output(output) as stream:
        if evaluate:
            records = iter([_recall(records)])
        for number, record in enumerate(records):
            if chosen == "jsonl":
                write_record(stream, record | said)
            else:
                _write_row(stream, record, titles=number == 0)


def _recall(records: Iterable[dict[str, Any]]) -> dict[str, Any]:
    """What was found of all that the images show."""
    from cliptools.analysis.concepts import recall

    counts = [(len(record["found"]), len(record["truth"]), record.get("active")) for record in records]
    share = recall([found for found, _, _ in counts], [names for _, names, _ in counts])
    said: dict[str, Any] = {"images": len(counts), "names": share.names, "found": share.found}
    said |= {"recall": rounded(share.value), "low": rounded(share.low), "high": rounded(share.high)}
    active = [count for _, _, count in counts if count is not None]
    return said | ({"active": rounded(sum(active) / len(active))} if active else {})


def _write_row(stream: BufferedIOBase, record: dict[str, Any], titles: bool) -> None:
    """One image, or the recall over all, as a row of a table that never needs the rows to come."""
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, header_style="bold", show_header=titles)
    if "image" in record:
        words = "  ".join(f"{concept['word']} {concept['score']:.3g}" for concept in record["concepts"])
        cells = {"image": record["image"], "active": str(record.get("active", "–")), "concepts": words}
        cells |= {"found": f"{len(record['found'])} of {len(record['truth'])}"} if "truth" in record else {}
    else:
        cells = {key: str(value) for key, value in record.items()}
    for title in cells:
        table.add_column(title, width=WIDTHS.get(title), overflow="fold", ratio=1 if title == "concepts" else None)
    table.add_row(*map(Text, cells.values()))
    stream.write(rendered(table))
    stream.flush()


if __name__ == "__main__":
    main()
