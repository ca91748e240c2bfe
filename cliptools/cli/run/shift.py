"""clip-shift: shares of concepts in groups of images, as records of groups and concepts, and an exit code for drift.

shift_units.py chooses the units of the concepts and sums their shares; shift_drift.py compares groups with a baseline. Without a
concept, shift_words.py and shift_word_drift.py do both for all words of a vocabulary.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float32

from cliptools.analysis.correlations import Correlation, frequency, group_correlation, point_biserial
from cliptools.analysis.selection import by_layers
from cliptools.cli.app import choose_format, parse_layers
from cliptools.cli.run.bundle_output import read_neurons
from cliptools.cli.run.shift_drift import (
    NAMED,
    Alarm,
    add_drift,
    alarmed,
    baseline_warnings,
    check_baseline,
    drift_text,
    sample_record,
    shift_table,
    shift_warnings,
    strays,
)
from cliptools.cli.run.shift_units import (
    TOOL,
    Images,
    MeasurementPlan,
    Record,
    ShareSums,
    block_of,
    make_plan,
    measure,
    read_shares,
    way_to_choose,
)
from cliptools.cli.run.shift_word_drift import run_words
from cliptools.cli.run.shift_words import WordOptions
from cliptools.cli.surroundings import LONGEST_NUMBER, refuse_idle
from cliptools.console import count_of, warn
from cliptools.errors import StreamError, UsageError
from cliptools.front.unit_records import record_source
from cliptools.images import annotations
from cliptools.images.annotations import Labels
from cliptools.images.groups import Groups, by_column, by_path, read_table, with_neighbour_blocks
from cliptools.io.bundle import Bundle
from cliptools.io.files import binary_output, text_output
from cliptools.io.jsonl import rounded, write_record
from cliptools.io.shift_baseline import Baseline, read_baseline
from cliptools.models.load import load_recorded_model
from cliptools.models.templates import check_template_options, templates_name
from cliptools.render.figure_file import kind_of
from cliptools.render.shift_plot import Panel, draw_shift

DRIFTED = 3  # exit code
AXES = {"norm": "share ‖Σφ‖ / ‖M(I)‖", "signed": "⟨Σφ, text⟩ / ‖M(I)‖", "text": "⟨M(I), text⟩ / ‖M(I)‖"}
"""Labels of the plot's axis, by --by."""


@dataclass(frozen=True, kw_only=True)
class ShiftOptions(WordOptions):
    """All parameters of clip-shift."""

    paths: tuple[str, ...]
    bundle: Path | None
    layers: str | None
    groups: Path | None
    image_column: str
    group_column: str
    labels: Path | None
    truth: str | None
    each: bool
    per_image: bool
    plot: Path | None
    device: str


def run(options: ShiftOptions) -> int:
    """Measure the concepts, write records or a table and the plot, print warnings, and return the exit code.

    Raises:
        UsageError: options that contradict each other.
        StreamError: bundle, images, labels or baseline do not match.
    """
    _check_usage(options)
    output_format = "jsonl" if options.per_image else choose_format(options.output_format, options.output, "jsonl")
    neurons, named = _read_bundle(options)
    groups = _open_groups(options)
    if not options.concepts:
        return _exit_code(run_words(neurons, named, groups, options, output_format))
    labels = _read_labels(groups, options)
    baseline = read_baseline(options.baseline) if options.baseline else None
    model = load_recorded_model(neurons.header.model, options.device)
    source = {"settings": _settings(neurons, model.name, options, baseline)} | named
    if baseline is not None:
        check_baseline(baseline, options.concepts, source)
    images = Images(groups, model, options)
    plan = make_plan(neurons, model, options, images, baseline)
    batches = read_shares(images, plan)
    with text_output(options.output) as stream:
        write = (lambda record: write_record(stream, record | source)) if options.per_image else None
        sums = measure(batches, groups, plan, labels, write)
        records = [record | source for record in _group_records(sums, groups, plan, labels)]
        if baseline is not None:
            add_drift(records, baseline, Alarm(options.alarm, options.each, options.match))
        totals = [] if labels is None else [record | source for record in _concept_records(sums, groups, plan, labels)]
        if output_format == "jsonl":
            for record in [*records, *totals]:
                write_record(stream, record)
        else:
            stream.write(shift_table(records, totals))
    if options.plot:
        _plot(records, groups, options, options.plot)
    warnings = [] if baseline is None else list(baseline_warnings(baseline, options.concepts, options.alarm))
    for line in [*shift_warnings(records, options.block), *warnings]:
        warn(line)
    return _exit_code(alarmed(records))


def _check_usage(options: ShiftOptions) -> None:
    """Reject invalid combinations of options before any input is read.

    Raises:
        UsageError: options contradict each other, or an option needs another one.
        CliptoolsError: the plot cannot be drawn here.
    """
    concepts = options.concepts
    if any(not concept.strip() for concept in concepts):
        raise UsageError("no concept to look for: name a concept by --concept TEXT")
    if len({concept.strip() for concept in concepts}) < len(concepts):
        raise UsageError("--concept: the same concept twice")
    _check_words(options)
    if not options.paths and not options.groups:
        raise UsageError("no images named: give folders or archives, one per group, or a table of images by --groups")
    if options.labels and options.truth:
        raise UsageError("--labels and --truth both say what images show: give one of them")
    if not options.baseline and (options.alarm or options.match):
        raise UsageError("--alarm and --match need an earlier run to compare with: --baseline FILE")
    if options.each and not options.alarm:
        raise UsageError("--each needs --alarm Z")
    if options.per_image and options.output_format == "table":
        raise UsageError("--per-image needs JSON lines: leave out -f table")
    if options.by == "text" and options.layers:
        raise UsageError("--by text uses no units: leave out --layers")
    if options.by == "text" and options.choose:
        raise UsageError("--by text uses no units: leave out --choose")
    _check_effects(options)
    _check_block(options)
    if options.templates:
        check_template_options(options.templates)
    if options.plot:
        kind_of(options.plot, "--plot")


def _check_effects(options: ShiftOptions) -> None:
    """Reject options that have no effect without another one.

    Raises:
        UsageError: there is one.
    """
    if not (options.groups or options.labels):
        refuse_idle(("image_column",), "without --groups or --labels")
    if not options.groups:
        refuse_idle(("group_column",), "without --groups")
    if options.by == "text":
        refuse_idle(("units_per_concept",), "with --by text, which uses no units")


def _check_words(options: ShiftOptions) -> None:
    """Reject options of concepts without a concept, and options of words with one.

    Raises:
        UsageError: such an option is given.
    """
    if options.concepts and options.pool is not None:
        raise UsageError("--pool is the vocabulary of a run without a concept: leave out --pool, or --concept")
    if options.concepts:
        return
    for name in ("labels", "truth", "each", "per_image", "plot"):
        if getattr(options, name):
            raise UsageError(f"--{name.replace('_', '-')} needs a concept: name one by --concept TEXT, or leave it out")
    if options.by == "norm":
        raise UsageError("--by norm needs a concept: name one by --concept TEXT; words have --by signed and --by text")


def _check_block(options: ShiftOptions) -> None:
    """Reject blocks of one image, and a column without a table.

    Raises:
        UsageError: the value of --block does not define blocks.
    """
    block = options.block
    if block is None:
        return
    if block.isdecimal() and (len(block) > LONGEST_NUMBER or int(block) < 2):
        raise UsageError(f"--block {block}: expected a number of consecutive images, 2 or more, or a column of --groups")
    if not block.isdecimal() and not options.groups:
        raise UsageError(f"--block {block} is a column of --groups, which is not given; expected that, or a number of images")


def _read_bundle(options: ShiftOptions) -> tuple[Bundle, Record]:
    """Read the bundle and select the layers of --layers; return it with the fields of every record that name the whole bundle.

    Raises:
        StreamError: the effects take more than a forward pass, or there are too few units for a concept.
    """
    neurons = read_neurons(options.bundle, option="--bundle FILE", device=options.device)
    if (effect := neurons.header.settings.get("effect")) in (None, "indirect"):
        raise StreamError(f"a bundle of {effect} effects: {TOOL} needs effects from one forward pass, such as second-order ones")
    named = record_source(neurons)
    if options.layers:
        neurons = neurons.select(by_layers(neurons, parse_layers(options.layers)))
    if neurons.units < options.units_per_concept:
        raise StreamError(f"--units-per-concept {options.units_per_concept}: the bundle has {count_of(neurons.units, 'unit')}")
    return neurons, named


def _open_groups(options: ShiftOptions) -> Groups:
    """Return the images in their groups, and with --block in blocks."""
    size = int(options.block) if options.block is not None and options.block.isdecimal() else None
    if options.groups is None:
        groups = by_path(options.paths)
    else:
        table = read_table(options.groups, options.image_column)
        column = options.block if size is None else None
        groups = by_column(options.paths, table, options.groups.parent, options.group_column, column)
    return groups if size is None else with_neighbour_blocks(groups, size)


def _read_labels(groups: Groups, options: ShiftOptions) -> Labels | None:
    """Return the labels of the images, from --labels, --truth or the class names of Stanford Cars; None without any of these."""
    concepts = options.concepts
    if options.labels:
        return annotations.by_columns(groups, read_table(options.labels, options.image_column), concepts)
    if options.truth:
        scenes = options.truth == "scenes"
        labels = (
            annotations.by_scenes(groups, concepts)
            if scenes
            else annotations.by_annotations(groups, Path(options.truth), concepts)
        )
        for concept in [concept for concept, column in zip(concepts, labels.T, strict=True) if not np.nan_to_num(column).any()]:
            warn(f"--truth {options.truth} names {concept!r} for none of these images: it counts as absent from all of them")
        return labels
    return annotations.by_class([car.name for car in groups.cars], concepts) if groups.cars else None


def _settings(neurons: Bundle, model: str, options: ShiftOptions, baseline: Baseline | None) -> Record:
    """Return the settings on which a share and its spread depend, in addition to model, bundle and units."""
    settings: Record = {"by": options.measure, "templates": templates_name(model, options.templates)}
    if (block := options.block) is not None:
        settings["block"] = int(block) if block.isdecimal() else block
    if options.measure == "text":
        return settings
    settings |= {"units_per_concept": options.units_per_concept, "effect": neurons.header.settings["effect"]}
    settings |= {"layers": list(parse_layers(options.layers))} if options.layers else {}
    return settings | {"choose": way_to_choose(options, baseline)}


def _group_records(sums: ShareSums, groups: Groups, plan: MeasurementPlan, labels: Labels | None) -> Iterator[Record]:
    """Yield a record per concept and group that has an image."""
    group_of, block = np.array(groups.of)[sums.numbers], block_of(groups)  # (n,), (image,)
    for c, concept in enumerate(plan.concepts):
        common = _concept_fields(sums, plan, c)
        for g, group in enumerate(groups.names):
            if not sums.images[g]:
                continue
            record: Record = {"group": group, "concept": concept, "images": int(sums.images[g])}
            record |= {} if block is None else {"blocks": int(sums.moments.count[g])}
            record |= sample_record(sums.moments.sample(g, c))
            if labels is not None:
                numbers = sums.numbers[group_of == g]
                label, value = labels[numbers, c], sums.values[group_of == g, c]
                correlation = point_biserial(value, label, None if block is None else block[numbers])
                record |= _label_fields(label) | _correlation_fields("correlation", correlation)
            yield record | common


def _concept_records(sums: ShareSums, groups: Groups, plan: MeasurementPlan, labels: Labels) -> Iterator[Record]:
    """Yield a record per labelled concept, with its correlations over all images and over groups."""
    group_of, block = np.array(groups.of)[sums.numbers], block_of(groups)  # (n,), (image,)
    for c, concept in enumerate(plan.concepts):
        label, value = labels[sums.numbers, c], sums.values[:, c]  # (n,), (n,)
        if not frequency(label)[0]:
            continue
        over_groups = group_correlation(value, label, group_of)
        correlation = point_biserial(value, label, None if block is None else block[sums.numbers])
        record: Record = {"concept": concept, "images": len(value)} | _label_fields(label)
        record |= _correlation_fields("correlation", correlation) | _correlation_fields("group_correlation", over_groups)
        yield record | _concept_fields(sums, plan, c)


def _concept_fields(sums: ShareSums, plan: MeasurementPlan, c: int) -> Record:
    """Return the fields that all records of a concept share: similarity of neighbours, units, and how well these follow it."""
    alike = sums.neighbours.correlation(sums.moments, c)
    record: Record = {} if alike is None else {"neighbours": {"correlation": rounded(alike), "pairs": sums.neighbours.pairs}}
    record["units"] = plan.units[c]
    if plan.looked_at is not None:
        record["looked_at"] = plan.looked_at
    if plan.units[c] and (correlation := sums.following.correlation(c)) is not None:
        figures = {"value": correlation.value, "low": correlation.low, "high": correlation.high}
        follows = {key: None if value is None else rounded(value) for key, value in figures.items()} | {"count": correlation.size}
        record["follows"] = follows | ({} if correlation.chance is None else {"chance": rounded(correlation.chance)})
    return record


def _label_fields(label: Float32[np.ndarray, " n"]) -> Record:
    """Return the number of labelled images, and the share of them that show the concept."""
    count, share = frequency(label)
    return {"labelled": count} | ({"frequency": rounded(share)} if count else {})


def _correlation_fields(name: str, correlation: Correlation | None) -> Record:
    if correlation is None:
        return {}
    value, low, high, size, reason = correlation
    if low is None or high is None:
        return {name: {"value": rounded(value), "count": size, "no_interval": reason}}
    return {name: {"value": rounded(value), "low": rounded(low), "high": rounded(high), "count": size}}


def panels(records: Sequence[Record], groups: Sequence[str], concepts: Sequence[str]) -> list[Panel]:
    """Return the panels of the plot, one per concept, from records of groups."""
    record_of = {(record["concept"], record["group"]): record for record in records}
    plot_panels = []
    for concept in concepts:
        row = [record_of.get((concept, group), {}) for group in groups]
        mean, error, share = ([record.get(key) for record in row] for key in ("mean", "standard_error", "frequency"))
        alarms = [bool(record.get("drift", {}).get("alarm")) for record in row]
        note = "its units do not follow the concept" if any(strays(record) for record in row if record) else ""
        plot_panels.append(Panel(concept, mean, error, share, alarms, note))
    return plot_panels


def _plot(records: Sequence[Record], groups: Groups, options: ShiftOptions, path: Path) -> None:
    picture = draw_shift(groups.names, panels(records, groups.names, options.concepts), AXES[options.measure], path)
    with binary_output(path) as stream:
        stream.write(picture)


def _exit_code(drifted: Sequence[Record]) -> int:
    """Return the exit code, and warn of groups, or words, that have drifted."""
    if not drifted:
        return 0
    more_text = f", and {len(drifted) - NAMED} more" if len(drifted) > NAMED else ""
    warn(f"drift: {'; '.join(map(drift_text, drifted[:NAMED]))}{more_text}")
    return DRIFTED
