"""clip-shift: how much of a concept is in groups of images, and whether that has changed."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from cliptools.cli.app import (
    CLASS_TEMPLATES,
    batch_option,
    choose_format,
    command,
    device_option,
    output_options,
    parse_layers,
    reading_options,
    template_option,
)
from cliptools.cli.run.bundle_output import read_neurons, record_source
from cliptools.cli.run.shift import Images, Record, concept_records, group_records, measure, panels, read_shares
from cliptools.cli.run.shift_drift import (
    Alarm,
    add_drift,
    alarmed,
    check_baseline,
    earlier_warnings,
    in_words,
    shift_table,
    shift_warnings,
)
from cliptools.cli.run.shift_units import choice_of, watch
from cliptools.console import count_of, warn
from cliptools.errors import StreamError, UsageError
from cliptools.io.files import binary_output, text_output
from cliptools.io.jsonl import write_record

if TYPE_CHECKING:
    from cliptools.images.annotations import Labels
    from cliptools.images.groups import Groups
    from cliptools.io.bundle import Bundle
    from cliptools.io.shift_baseline import Baseline

TOOL = "clip-shift"
DRIFTED = 3  # exit status
NAMED = 5  # drifted groups that a warning names
BY_HELP = "norm: ||sum phi|| / ||M(I)||, the share. signed: <sum phi, text> / ||M(I)||. text: <M(I), text> / ||M(I)||, no units."
GROUPS_HELP = "A CSV file with a column of images and one to group by; without PATH, its images are taken."
LABELS_HELP = "What images show: a CSV file with a column of images and one called like each concept, of 1 and 0."
TRUTH_HELP = "What images show: lines with key and names, as in scenes.jsonl; or `scenes`, what clip-scenes wrote beside each."
ALARM_HELP = "Exit with 3 if a group's mean is this many standard errors from the baseline's; chance in a run is allowed for."
CHOOSE_HELP = (
    "overlap: the units of largest <r, text>, as paper 2 has it. seen: of these, by a first look at up to 1,000 images, the ones "
    "that also act on what the model finds like the text [default: the baseline's way, else seen]."
)
BLOCK_HELP = (
    "Images that belong together, as frames of a film: N that follow each other, or a column of --groups that names blocks."
)
EACH_HELP = "Hold each comparison to --alarm by itself, whatever their number."


@command(TOOL)
@click.argument("paths", nargs=-1, metavar="[PATH]...")
@click.option("--concept", "concepts", multiple=True, metavar="TEXT", help="What to look for; repeatable.")
@click.option(
    "--bundle", type=click.Path(path_type=Path, allow_dash=True), metavar="FILE", help="Of clip-effects [default: stdin]."
)
@click.option("--units-per-concept", default=5, show_default=True, type=click.IntRange(1), help="How many units a concept has.")
@click.option("--choose", type=click.Choice(["overlap", "seen"]), help=CHOOSE_HELP)
@click.option("--by", type=click.Choice(["norm", "signed", "text"]), default="norm", show_default=True, help=BY_HELP)
@click.option("--layers", help="Only units of these layers, as 8-10,11 [default: all of the bundle].")
@template_option("concept", CLASS_TEMPLATES)
@click.option("--groups", type=click.Path(path_type=Path), metavar="FILE", help=GROUPS_HELP)
@click.option("--image-column", default="image", show_default=True, metavar="NAME", help="Of --groups and --labels.")
@click.option("--group-column", default="group", show_default=True, metavar="NAME", help="Of --groups.")
@click.option("--block", metavar="N|NAME", help=BLOCK_HELP)
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
@reading_options
@batch_option
@click.option("--workers", type=click.IntRange(0), help="Threads that decode images [default: the number of cores, at most 8].")
@device_option
@output_options("jsonl", "table")
def main(paths: tuple[str, ...], output: Path | None, **options: Any) -> int:
    """Monitor concepts over groups of images.

    Reads a bundle (standard input or --bundle) and images: every folder or archive named is a group, or --groups tells them,
    or the folder of Stanford Cars, which is grouped by model year. A concept's units are a few whose directions lie close to
    its text and that act on images which the model finds like the text (a first look at up to 1,000 of the images at hand);
    --choose overlap asks the directions alone, as paper 2 does. With --baseline they are the baseline's. `follows` is the
    correlation of their share with the model's own similarity, less what they write themselves, and what units drawn at
    random reach; where they do no better, a warning names the concept. Written is, for each concept and group, the mean over
    images of the share of the output that these units make up, with its spread and standard error; with labels also
    point-biserial correlations, and a line a concept over all images and over groups (95 % intervals by Fisher's z over
    groups, by the jackknife over images; none where fewer than 3 images have the rarer label).

    \b
    Alarms: z is the difference of two means over its standard error. With --alarm 3 a run in which nothing has moved ends
    with 3 in at most 0.27 % of all runs, however many concepts and groups it compares; each comparison has to be further out
    for that (`limit`), and further still upwards, where few images with much of a rare concept take the mean by chance. With
    --each, every comparison is held to 3 standard errors by itself: of 10 concepts in 12 groups one is then beyond by chance
    in up to 28 % of all runs. Both hold where a group and the baseline have 5 images or more (`few` and a warning tell where
    not; 8 or more, if tails on both sides are very heavy), and for images drawn independently. Those that belong together, as
    frames of a film, alarm far more often: with --block means over blocks take the place of images, each block counts once, and
    standard errors, z, limits and correlations' intervals go by blocks, which need to be longer than what makes frames alike.
    Without it a warning tells of neighbours that are alike.

    \b
    Examples:
      clip-shift 2021/ 2022/ 2023/ --concept yellow --concept convertible < neurons.safetensors
      clip-shift photos/ --groups photos.csv --group-column month --concept snow --plot snow.png < neurons.safetensors
      clip-shift stanford_cars/ --concept convertible --bundle neurons.safetensors -f jsonl > cars.jsonl
      clip-shift photos/ --concept snow --block 50 -f jsonl < neurons.safetensors
      clip-shift new/ --concept snow --baseline old.jsonl --alarm 3 -f jsonl < neurons.safetensors || mail -s drift me
      clip-scenes | clip-shift - --concept cat --truth scenes --bundle neurons.safetensors
    """
    _check_usage(paths, options)
    chosen = "jsonl" if options["per_image"] else choose_format(options["output_format"], output, "jsonl")
    neurons = _read_bundle(options)
    groups = _groups(paths, options)
    labels = _labels(groups, options)
    baseline = _baseline(options)
    from cliptools.models.load import load_recorded_model

    model = load_recorded_model(neurons.header.model, options["device"])
    source = {"settings": _settings(neurons, model.name, options, baseline)} | record_source(neurons)
    if baseline is not None:
        check_baseline(baseline, options["concepts"], source)
    images = Images(groups, model, options)
    watched = watch(neurons, model, options, images.look, images.screen, baseline)
    read = read_shares(images, watched)
    with text_output(output) as stream:
        tell = (lambda record: write_record(stream, record | source)) if options["per_image"] else None
        measured = measure(read, groups, watched, labels, tell)
        records = [record | source for record in group_records(measured, groups, watched, labels)]
        if baseline is not None:
            add_drift(records, baseline, Alarm(options["alarm"], options["each"], options["match"]))
        over = [] if labels is None else [record | source for record in concept_records(measured, groups, watched, labels)]
        if chosen == "jsonl":
            for record in [*records, *over]:
                write_record(stream, record)
        else:
            stream.write(shift_table(records, over))
    if options["plot"]:
        _plot(records, groups, options)
    for line in [*shift_warnings(records, options), *(earlier_warnings(baseline, options) if baseline is not None else ())]:
        warn(line)
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
    if options["by"] == "text" and options["choose"]:
        raise UsageError("--by text asks no units: leave --choose out")
    _check_block(options)
    if options["templates"]:
        from cliptools.models.text_encoder import check_template_options

        check_template_options(options["templates"])
    if options["plot"]:
        from cliptools.render.shift_plot import check_plot

        check_plot(options["plot"])


def _check_block(options: dict[str, Any]) -> None:
    """
    Raises:
        UsageError: a block of one image, or a column of no table.
    """
    block = options["block"]
    if block is not None and block.isdecimal() and int(block) < 2:
        raise UsageError(f"--block {block}: expected 2 images or more that follow each other, or a column of --groups")
    if block is not None and not block.isdecimal() and not options["groups"]:
        raise UsageError(
            f"--block {block}: a column of --groups, which is not given; a number takes images that follow each other"
        )


def _read_bundle(options: dict[str, Any]) -> "Bundle":
    """The bundle, with the layers asked for.

    Raises:
        StreamError: effects that take more than a forward pass, or not enough units for a concept.
    """
    neurons = read_neurons(options["bundle"], option="--bundle FILE", device=options["device"])
    if (effect := neurons.header.settings.get("effect")) in (None, "indirect"):
        raise StreamError(f"a bundle of {effect} effects: {TOOL} needs effects that one forward pass gives, as second-order ones")
    if options["layers"]:
        from cliptools.analysis.selection import by_layers

        neurons = neurons.select(by_layers(neurons, parse_layers(options["layers"])))
    if neurons.units < options["units_per_concept"]:
        raise StreamError(f"--units-per-concept {options['units_per_concept']}: the bundle has {count_of(neurons.units, 'unit')}")
    return neurons


def _groups(paths: Sequence[str], options: dict[str, Any]) -> "Groups":
    """The images in their groups."""
    from cliptools.images.groups import by_column, by_path, in_neighbours, read_table

    block = options["block"]
    if not options["groups"]:
        groups = by_path(paths)
    else:
        table = read_table(options["groups"], options["image_column"])
        column = None if block is None or block.isdecimal() else block
        groups = by_column(paths, table, options["groups"].parent, options["group_column"], column)
    return in_neighbours(groups, int(block)) if block is not None and block.isdecimal() else groups


def _labels(groups: "Groups", options: dict[str, Any]) -> "Labels | None":
    """What the images show, as far as anybody says."""
    from cliptools.images import annotations
    from cliptools.images.groups import read_table

    concepts = options["concepts"]
    if options["labels"]:
        return annotations.by_columns(groups, read_table(options["labels"], options["image_column"]), concepts)
    if options["truth"]:
        scenes = options["truth"] == "scenes"
        if scenes:
            return annotations.by_scenes(groups, concepts)
        return annotations.by_annotations(groups, Path(options["truth"]), concepts)
    return annotations.by_class([car.name for car in groups.cars], concepts) if groups.cars else None


def _baseline(options: dict[str, Any]) -> "Baseline | None":
    from cliptools.io.shift_baseline import read_baseline

    return read_baseline(options["baseline"]) if options["baseline"] else None


def _settings(neurons: "Bundle", model: str, options: dict[str, Any], baseline: "Baseline | None") -> Record:
    """What a share and its spread depend on, beside model, bundle and units."""
    from cliptools.models.text_encoder import templates_name

    settings = {"by": options["by"], "templates": templates_name(model, options["templates"])}
    if (block := options["block"]) is not None:
        settings["block"] = int(block) if block.isdecimal() else block
    if options["by"] == "text":
        return settings
    settings |= {"units_per_concept": options["units_per_concept"], "effect": neurons.header.settings["effect"]}
    return settings | {"choose": choice_of(options, baseline)}


def _plot(records: Sequence[Record], groups: "Groups", options: dict[str, Any]) -> None:
    from cliptools.render.shift_plot import draw_shift

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
