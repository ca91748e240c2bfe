"""clip-ablate: writes the accuracies of a model in all settings as records or a table.

front/ablate.py measures them; analysis/ablation.py has the equations of the changed outputs.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cliptools.analysis import ABLATE, RECONSTRUCT, WORDS_ALONG
from cliptools.cli.app import Batching, Output, Sampling, choose_format, open_input, parse_layers, parse_percentage
from cliptools.cli.surroundings import refuse_idle
from cliptools.errors import UsageError
from cliptools.front.ablate_images import open_with_groups
from cliptools.front.ablate_pass import measure_settings
from cliptools.front.ablate_records import ablate_table
from cliptools.front.ablate_settings import AblateRequest, settings_of
from cliptools.front.images import Reading
from cliptools.front.tables import rendered
from cliptools.images.classification import is_label_file
from cliptools.images.groups import Columns
from cliptools.io.bundle import Bundle, read_bundle
from cliptools.io.files import text_output
from cliptools.io.jsonl import write_record
from cliptools.models.load import Precision
from cliptools.models.templates import check_template_options


@dataclass(frozen=True, kw_only=True)
class AblateOptions(Sampling, Batching, Output):
    """All parameters of clip-ablate."""

    paths: tuple[str, ...]
    bundles: tuple[Path, ...]
    labels: str | None
    image_column: str
    label_column: str
    classes: str | None
    templates: tuple[str, ...]
    layers: tuple[str, ...]
    each_layer: bool
    effect: str | None
    units: str | None
    ablate: str | None
    reconstruct: str | None
    components: str
    m: str | None
    words_along: str | None
    keep: str | None
    precision: Precision | None
    mask: Path | None
    part: str | None
    device: str
    groups: str | None
    split: str | None
    each_template: bool
    train_sizes: str | None
    against: str | None


def run(options: AblateOptions) -> None:
    """Measure all settings and write their records, or a table of them.

    Raises:
        UsageError: options that contradict each other.
    """
    output_format = choose_format(options.output_format, options.output, "jsonl")
    request = _request(options)
    request.check()
    check_template_options(options.templates)
    _check_effects(options)
    bundles = _read_bundles(options.bundles)
    settings = settings_of(bundles, request)
    columns = Columns(options.image_column, options.label_column)
    images, groups = open_with_groups(
        options.paths or None, options.labels, options.classes, columns, bundles[0][0].header.model["name"], request
    )
    with text_output(options.output) as stream:
        records = measure_settings(settings, images, request, groups)
        if output_format == "table":
            stream.write(rendered(*ablate_table(records)))
            return
        for record in records:
            write_record(stream, record)


def _check_effects(options: AblateOptions) -> None:
    """Reject options that have no effect without another one.

    Raises:
        UsageError: there is one.
    """
    if "pc" not in _parts(options.reconstruct):
        refuse_idle(("components",), "without --reconstruct pc")
    if not is_label_file(options.labels):
        refuse_idle(("image_column", "label_column"), "without --labels FILE")


def _request(options: AblateOptions) -> AblateRequest:
    """Return the arguments of the front.

    Raises:
        UsageError: an option is malformed.
    """
    same: dict[str, Any] = {
        name: getattr(options, name)
        for name in (
            "each_layer",
            "effect",
            "units",
            "templates",
            "limit",
            "sample",
            "seed",
            "precision",
            "mask",
            "part",
            "device",
            "groups",
            "split",
            "each_template",
            "train_sizes",
            "against",
        )
    }
    return AblateRequest(
        keep=tuple(parse_percentage(part, "--keep") for part in _parts(options.keep)),
        ablate=_kinds(options.ablate, "--ablate", ABLATE),
        reconstruct=_kinds(options.reconstruct, "--reconstruct", RECONSTRUCT),
        words_along=_kinds(options.words_along, "--words-along", WORDS_ALONG),
        components=_numbers(options.components, "--components"),
        m=_numbers(options.m, "--m"),
        layers=tuple(parse_layers(text) for text in options.layers),
        reading=Reading(batch_size=options.batch_size, workers=options.workers, strict=options.strict),
        **same,
    )


def _read_bundles(paths: Sequence[Path]) -> list[tuple[Bundle, str]]:
    """Return the bundles of --bundle, or the bundle on standard input, with their names for messages.

    Raises:
        StreamError: an input is not a bundle.
        UsageError: more than one bundle is to come from standard input.
    """
    files: Sequence[Path | None] = paths or [None]
    if sum(file is None or str(file) == "-" for file in files) > 1:
        raise UsageError("--bundle -: standard input holds only one bundle; name files for the others")
    bundles = []
    for file in files:
        stream, name = open_input(file, "a bundle of clip-effects", "--bundle FILE")
        with stream:
            bundles.append((read_bundle(stream, name), name))
    return bundles


def _parts(text: str | None) -> list[str]:
    return [part.strip() for part in text.split(",")] if text else []


def _kinds(text: str | None, option: str, choices: Sequence[str]) -> tuple[str, ...]:
    parts = _parts(text)
    if unknown := [part for part in parts if part not in choices]:
        raise UsageError(f"{option} {text}: expected some of {', '.join(choices)}, found {unknown[0]!r}")
    return tuple(parts)


def _numbers(text: str | None, option: str) -> tuple[int, ...]:
    parts = _parts(text)
    if invalid := [part for part in parts if not part.isdecimal() or int(part) < 1]:
        raise UsageError(f"{option} {text}: expected numbers of at least 1, as 1,2,4, found {invalid[0]!r}")
    return tuple(int(part) for part in parts)
