"""clip-shift: how much of a concept is in groups of images, and whether that has changed."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from cliptools.commands.base import batch_option, choose_format, command, device_option, output_options, parse_layers
from cliptools.commands.consume import read_neurons, record_source
from cliptools.commands.shift_table import shift_table
from cliptools.commands.shifting import (
    Alarm,
    Record,
    Watched,
    add_drift,
    alarmed,
    check_baseline,
    concept_records,
    group_records,
    in_words,
    measure,
    panels,
    watch,
)
from cliptools.ground.errors import StreamError, UsageError
from cliptools.ground.output import binary_output, text_output
from cliptools.ground.progress import progress, summarise, warn
from cliptools.ground.records import write_record

if TYPE_CHECKING:
    from cliptools.commands.shifting import Read
    from cliptools.ground.baseline import Baseline
    from cliptools.ground.bundle import Bundle
    from cliptools.ground.groups import Groups
    from cliptools.ground.labels import Labels
    from cliptools.ground.models import LoadedModel

TOOL = "clip-shift"
DRIFTED = 3  # exit status
NAMED = 5  # drifted groups that a warning names
BY_HELP = "norm: ||sum phi|| / ||M(I)||, the share. signed: <sum phi, text> / ||M(I)||. text: <M(I), text> / ||M(I)||, no units."
GROUPS_HELP = "A CSV file with a column of images and one to group by; without PATH, its images are taken."
LABELS_HELP = "What images show: a CSV file with a column of images and one called like each concept, of 1 and 0."
TRUTH_HELP = "What images show: lines with key and names, as in scenes.jsonl; or `scenes`, what clip-scenes wrote beside each."
TEMPLATE_HELP = "A sentence with {} for the concept; several are averaged [default: CLIP's 80, or the embedded models' own]."
ALARM_HELP = "Exit with 3 if a group's mean is this many standard errors from the baseline's; chance in a run is allowed for."
EACH_HELP = "Hold each comparison to --alarm by itself, whatever their number."


@command(TOOL)
@click.argument("paths", nargs=-1, metavar="[PATH]...")
@click.option("--concept", "concepts", multiple=True, metavar="TEXT", help="What to look for; repeatable.")
@click.option(
    "--bundle", type=click.Path(path_type=Path, allow_dash=True), metavar="FILE", help="Of clip-effects [default: stdin]."
)
@click.option("--units-per-concept", default=5, show_default=True, type=click.IntRange(1), help="Units of largest <r, text>.")
@click.option("--by", type=click.Choice(["norm", "signed", "text"]), default="norm", show_default=True, help=BY_HELP)
@click.option("--layers", help="Only units of these layers, as 8-10,11 [default: all of the bundle].")
@click.option("--template", "templates", multiple=True, metavar="TEXT", help=TEMPLATE_HELP)
@click.option("--groups", type=click.Path(path_type=Path), metavar="FILE", help=GROUPS_HELP)
@click.option("--image-column", default="image", show_default=True, metavar="NAME", help="Of --groups and --labels.")
@click.option("--group-column", default="group", show_default=True, metavar="NAME", help="Of --groups.")
@click.option("--labels", type=click.Path(path_type=Path), metavar="FILE", help=LABELS_HELP)
@click.option("--truth", metavar="FILE|scenes", help=TRUTH_HELP)
@click.option("--baseline", type=click.Path(path_type=Path), metavar="FILE", help="Lines of an earlier run to compare with.")
@click.option("--alarm", type=click.FloatRange(0, min_open=True), metavar="Z", help=ALARM_HELP)
@click.option("--each", is_flag=True, help=EACH_HELP)
@click.option("--match", is_flag=True, help="Compare each group with the baseline's of its name [default: with all of it].")
@click.option("--per-image", is_flag=True, help="A line for each image, before those of groups.")
@click.option("--plot", type=click.Path(path_type=Path), metavar="FILE", help="Also draw the groups' means: .png or .svg.")
@click.option("--limit", type=click.IntRange(1), help="Only the first N images.")
@click.option("--sample", type=click.IntRange(1), help="N images drawn over the whole list.")
@click.option("--seed", default=0, show_default=True, type=click.IntRange(0), help="Of --sample.")
@click.option("--strict", is_flag=True, help="An unreadable or unusable image is an error, not a warning.")
@batch_option
@click.option("--workers", type=click.IntRange(0), help="Threads that decode images [default: the number of cores, at most 8].")
@device_option
@output_options("jsonl", "table")
def main(paths: tuple[str, ...], output: Path | None, **options: Any) -> int:
    """Monitor concepts over groups of images.

    Reads a bundle (standard input or --bundle) and images: every folder or archive named is a group, or --groups tells
    them, or the folder of Stanford Cars, which is grouped by model year. A concept's units are the few whose directions
    lie closest to its text. Written is, for each concept and group, the mean over images of the share of the output that
    these units make up, with its spread and standard error; with labels also point-biserial correlations, and a line a
    concept over all images and over groups (95 % intervals by Fisher's z; for images with the sample's own standard error).

    \b
    Alarms: z is the difference of two means over its standard error. With --alarm 3 a run in which nothing has moved ends
    with 3 in at most 0.27 % of all runs, however many concepts and groups it compares; each comparison has to be further
    out for that (`limit`), and further still upwards, where few images with much of a rare concept take the mean by
    chance. With --each, every comparison is held to 3 standard errors by itself: of 10 concepts in 12 groups one is then
    beyond by chance in up to 28 % of all runs. Both hold for images drawn independently: those that belong together, as
    frames of a film, alarm more often.

    \b
    Examples:
      clip-shift 2021/ 2022/ 2023/ --concept yellow --concept convertible < neurons.safetensors
      clip-shift photos/ --groups photos.csv --group-column month --concept snow --plot snow.png < neurons.safetensors
      clip-shift stanford_cars/ --concept convertible --bundle neurons.safetensors -f jsonl > cars.jsonl
      clip-shift new/ --concept snow --baseline old.jsonl --alarm 3 -f jsonl < neurons.safetensors || mail -s drift me
      clip-scenes | clip-shift - --concept cat --truth scenes --bundle neurons.safetensors
    """
    _check_usage(paths, options)
    chosen = "jsonl" if options["per_image"] else choose_format(options["output_format"], output, "jsonl")
    neurons = _read_bundle(options)
    groups = _groups(paths, options)
    labels = _labels(groups, options)
    baseline = _baseline(options)
    from cliptools.ground.models import load_recorded_model

    model = load_recorded_model(neurons.header.model, options["device"])
    watched = watch(neurons, model, options)
    said = {"settings": _settings(neurons, model.name, options)} | record_source(neurons)
    if baseline is not None:
        check_baseline(baseline, watched, said)
    read = _read(groups, model, watched, options)
    with text_output(output) as stream:
        tell = (lambda record: write_record(stream, record | said)) if options["per_image"] else None
        measured = measure(read, groups, watched, labels, tell)
        records = [record | said for record in group_records(measured, groups, watched, labels)]
        if baseline is not None:
            add_drift(records, baseline, Alarm(options["alarm"], options["each"], options["match"]))
        over = [] if labels is None else [record | said for record in concept_records(measured, groups, watched, labels)]
        if chosen == "jsonl":
            for record in [*records, *over]:
                write_record(stream, record)
        else:
            stream.write(shift_table(records, over))
    if options["plot"]:
        _plot(records, groups, options)
    return _end(alarmed(records))


def _check_usage(paths: Sequence[str], options: dict[str, Any]) -> None:
    """What the options say together.

    Raises:
        UsageError: they contradict each other.
        CliptoolsError: a plot that cannot be drawn here.
    """
    bundle, concepts = options["bundle"], options["concepts"]
    if not concepts or any(not concept.strip() for concept in concepts):
        raise UsageError("nothing to look for: name a concept by --concept TEXT")
    if len(set(concepts)) < len(concepts):
        raise UsageError("--concept: the same concept twice")
    if "-" in paths and (bundle is None or str(bundle) == "-"):
        raise UsageError("- reads images from standard input, so the bundle needs a file: --bundle FILE")
    if not paths and not options["groups"]:
        raise UsageError("no images named: give folders or archives, a group each, or a table of images by --groups")
    if options["labels"] and options["truth"]:
        raise UsageError("--labels and --truth are two ways to say what images show: give one of them")
    if not options["baseline"] and (options["alarm"] or options["match"]):
        raise UsageError("--alarm and --match need an earlier run to compare with: --baseline FILE")
    if options["each"] and not options["alarm"]:
        raise UsageError("--each says what --alarm Z is held against: give both")
    if options["per_image"] and options["output_format"] == "table":
        raise UsageError("--per-image is for JSON lines: leave -f table out")
    if options["by"] == "text" and options["layers"]:
        raise UsageError("--by text asks no units: leave --layers out")
    if options["templates"]:
        from cliptools.ground.text_tower import check_templates

        check_templates(options["templates"])
    if options["plot"]:
        from cliptools.ground.shift_plot import check_plot

        check_plot(options["plot"])


def _read_bundle(options: dict[str, Any]) -> "Bundle":
    """The bundle, with the layers asked for.

    Raises:
        StreamError: effects that take more than a forward pass, or not enough units for a concept.
    """
    neurons = read_neurons(options["bundle"], option="--bundle FILE", device=options["device"])
    if (effect := neurons.header.settings.get("effect")) in (None, "indirect"):
        raise StreamError(f"a bundle of {effect} effects: {TOOL} needs effects that one forward pass gives, as second-order ones")
    if options["layers"]:
        from cliptools.methods.selection import by_layers

        neurons = neurons.select(by_layers(neurons, parse_layers(options["layers"])))
    if neurons.units < options["units_per_concept"]:
        raise StreamError(f"--units-per-concept {options['units_per_concept']}: the bundle has {neurons.units} units")
    return neurons


def _groups(paths: Sequence[str], options: dict[str, Any]) -> "Groups":
    """The images in their groups."""
    from cliptools.ground.groups import by_column, by_path
    from cliptools.ground.image_table import read_table

    if not options["groups"]:
        return by_path(paths)
    table = read_table(options["groups"], options["image_column"])
    return by_column(paths, table, options["groups"].parent, options["group_column"])


def _labels(groups: "Groups", options: dict[str, Any]) -> "Labels | None":
    """What the images show, as far as anybody says."""
    from cliptools.ground import labels
    from cliptools.ground.image_table import read_table

    concepts = options["concepts"]
    if options["labels"]:
        return labels.by_columns(groups, read_table(options["labels"], options["image_column"]), concepts)
    if options["truth"]:
        scenes = options["truth"] == "scenes"
        return labels.by_scenes(groups, concepts) if scenes else labels.by_truth(groups, Path(options["truth"]), concepts)
    return labels.by_class([car.name for car in groups.cars], concepts) if groups.cars else None


def _baseline(options: dict[str, Any]) -> "Baseline | None":
    from cliptools.ground.baseline import read_baseline

    return read_baseline(options["baseline"]) if options["baseline"] else None


def _settings(neurons: "Bundle", model: str, options: dict[str, Any]) -> Record:
    """What a share depends on, beside model, bundle and units."""
    from cliptools.ground.concept_texts import templates_name

    said = {"by": options["by"], "templates": templates_name(model, options["templates"])}
    if options["by"] == "text":
        return said
    settings = neurons.header.settings
    return said | {"units_per_concept": options["units_per_concept"], "effect": settings["effect"]}


def _read(groups: "Groups", model: "LoadedModel", watched: Watched, options: dict[str, Any]) -> "Iterator[Read]":
    """Shares of the images, a batch at a time.

    Raises:
        CliptoolsError: not one image can be read, or none is usable.
    """
    from cliptools.ground.halving import in_halves
    from cliptools.ground.images import choose
    from cliptools.ground.loader import Skipped, load_batches
    from cliptools.ground.unusable import Screen

    indices = choose(groups.source, options["limit"], options["sample"], options["seed"])
    skipped, count = Skipped(), 0
    screen = Screen[int](groups.source.names.__getitem__, skipped.add, options["strict"])
    batches = load_batches(
        groups.source, indices, model.transform,
        batch_size=options["batch_size"], workers=options["workers"], strict=options["strict"], skipped=skipped,
    )  # fmt: skip
    read = progress(batches, "images", len(indices), lambda batch: len(batch[0]))
    for images, (shares, reasons) in in_halves(read, lambda _, pictures: watched.share(pictures)):
        stay = list(screen.places(images, reasons))
        if stay:
            yield [images[place] for place in stay], shares[stay]
        count += len(stay)
    screen.require(count)
    skips = f", {len(skipped)} skipped" if len(skipped) else ""
    summarise(f"{TOOL}: {count} images{skips} in {len(groups.names)} groups, {len(watched.concepts)} concepts")


def _plot(records: Sequence[Record], groups: "Groups", options: dict[str, Any]) -> None:
    from cliptools.ground.shift_plot import draw_shift

    axes = {"norm": "share ‖Σφ‖ / ‖M(I)‖", "signed": "⟨Σφ, text⟩ / ‖M(I)‖", "text": "⟨M(I), text⟩ / ‖M(I)‖"}
    drawn = draw_shift(groups.names, panels(records, groups.names, options["concepts"]), axes[options["by"]], options["plot"])
    with binary_output(options["plot"]) as stream:
        stream.write(drawn)


def _end(drifted: Sequence[Record]) -> int:
    """The exit status, and a warning of what has drifted."""
    if not drifted:
        return 0
    more = f", and {len(drifted) - NAMED} more" if len(drifted) > NAMED else ""
    warn(f"drift: {'; '.join(map(in_words, drifted[:NAMED]))}{more}")
    return DRIFTED


if __name__ == "__main__":
    main()
