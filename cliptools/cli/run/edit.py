"""clip-edit: reads units from bundles or lines, and writes a checkpoint, a folder or a mask, and the record of the edit.

front/edit_model.py edits the model, front/mask.py makes masks.
"""

from codecs import BOM_UTF8
from collections.abc import Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

from cliptools.cli.app import Batching, Sampling, choose_format, history_arguments, open_input, parse_layers
from cliptools.cli.surroundings import refuse_idle
from cliptools.errors import UsageError
from cliptools.front.edit_choose import LOSS, ChoiceRequest, choose_units
from cliptools.front.edit_means import MeanImages
from cliptools.front.edit_model import edited_model
from cliptools.front.edit_request import EditRequest
from cliptools.front.edit_units import Line, distinct_texts
from cliptools.front.edited import check_name, edit_table, refuse_own_files
from cliptools.front.images import Reading
from cliptools.front.mask import masked_units
from cliptools.front.tables import rendered
from cliptools.io.bundle import Bundle, read_bundle
from cliptools.io.files import text_output
from cliptools.io.jsonl import objects, write_record
from cliptools.models.load import Precision

INPUT = "a bundle, or lines of clip-spurious, clip-explain or clip-judge,"
NOT_RECORDED = {"out_dir", "mask", "means", "max_pixels", "skip_bad_shards"}
"""Parameters that the history leaves out in addition to those of every command."""


@dataclass(frozen=True, kw_only=True)
class EditOptions(Sampling, Batching):
    """Options of clip-edit."""

    paths: tuple[str, ...]
    bundle: Path | None
    means: Path | None
    sees: tuple[str, ...]
    writes: tuple[str, ...]
    by: str | None
    head: int | None
    layers: str | None
    how: str | None
    pool: str | None
    templates: tuple[str, ...]
    output: Path | None
    out_dir: Path | None
    mask: Path | None
    precision: Precision
    approximate: bool
    choose: tuple[Path, ...]
    test: tuple[Path, ...]
    groups: str | None
    classes: str | None
    loss: float
    no_cache: bool
    device: str
    output_format: str | None


def run(options: EditOptions) -> None:
    """Edit the model and write it, then the record.

    Raises:
        UsageError: there is nothing to write, or options contradict each other.
    """
    output_format = choose_format(options.output_format, None, "jsonl")
    _check_outputs(options)
    request, choice = _request(options), _choice(options)
    request.check()
    bundle, lines = _read_units(options)
    if lines is None and not (options.sees or options.writes):
        refuse_idle(("pool", "templates"), "without --sees or --writes, as no text is embedded")
    record = _write(options, bundle, lines, request, choice)
    with text_output(None) as stream:
        if output_format == "table":
            stream.write(rendered(*edit_table([record])))
        else:
            write_record(stream, record)


def _check_outputs(options: EditOptions) -> None:
    """Reject outputs that are missing or contradict each other, before any input is read.

    Raises:
        UsageError: there is none, one is standard output, or a mask is to be written beside a checkpoint.
    """
    if options.output is None and options.out_dir is None and options.mask is None:
        raise UsageError("nothing to write: name a checkpoint (-o FILE), a folder (--out-dir FOLDER) or a mask (--mask FILE)")
    if str(options.output) == "-":
        raise UsageError("-o -: standard output is for the record of the edit; name a file for the checkpoint")
    if options.output is not None:
        check_name(options.output)
    if options.mask is not None and (options.output is not None or options.out_dir is not None):
        raise UsageError("--mask writes a mask in place of a checkpoint: leave -o and --out-dir out")
    if options.mask is not None and options.how == "null":
        raise UsageError("--mask puts units at their means; --how null is an edit of weights: -o FILE")


def _request(options: EditOptions) -> EditRequest:
    """Return the arguments of the front."""
    reading = Reading(batch_size=options.batch_size, workers=options.workers, strict=options.strict)
    means = MeanImages(
        images=list(options.paths) or None, limit=options.limit, sample=options.sample, seed=options.seed, reading=reading
    )
    left_out = NOT_RECORDED if options.choose or options.test else NOT_RECORDED | {"choose", "test", "groups", "classes", "loss"}
    arguments = {key: value for key, value in history_arguments(options).items() if key not in left_out}
    return EditRequest(
        sees=distinct_texts(options.sees),
        writes=distinct_texts(options.writes),
        how="zero" if options.mask is not None else options.how,
        head=options.head,
        by=options.by,
        layers=parse_layers(options.layers) if options.layers else None,
        texts=options.pool,
        templates=options.templates,
        precision=options.precision,
        approximate=options.approximate,
        mask=options.mask is not None,
        means=means,
        device=options.device,
        cache=not options.no_cache,
        arguments=arguments,
    )


def _choice(options: EditOptions) -> ChoiceRequest | None:
    """Return the images of --choose and --test; None without them.

    Raises:
        UsageError: one of --choose, --test and --groups is missing, or another option is given that needs them.
    """
    if not (options.choose or options.test or options.groups):
        for option, given in (("--classes", options.classes is not None), ("--loss", options.loss != LOSS)):
            if given:
                raise UsageError(f"{option} needs --choose, --test and --groups")
        return None
    choice = ChoiceRequest(
        validation=tuple(map(str, options.choose)), test=tuple(map(str, options.test)), groups=options.groups or "",
        classes=options.classes, loss=options.loss,
        reading=Reading(batch_size=options.batch_size, workers=options.workers, strict=options.strict),
    )  # fmt: skip
    choice.check()
    return choice


def _read_units(options: EditOptions) -> tuple[Bundle | None, Sequence[Line] | None]:
    """Return the bundle with the units; or the lines that name them, and the bundle of --means.

    Raises:
        UsageError: --means is given with a bundle or for a ViT.
        StreamError: an input is damaged.
    """
    stream, name = open_input(options.bundle, INPUT, "--bundle FILE")
    with stream:
        data = stream.read()
    if _is_bundle(data):
        if options.means is not None:
            raise UsageError("--means is for units that lines name; the means of a bundle are its own")
        return read_bundle(BytesIO(data), name), None
    lines = [(f"{name}, line {number}", record) for number, record in objects(BytesIO(data), name)]
    if options.means is None:
        return None, lines
    means, means_name = open_input(options.means, "a bundle", "--means FILE")
    with means:
        of_means = read_bundle(means, means_name)
    if of_means.header.settings.get("effect") != "pooled":
        raise UsageError(f"--means is for units of a ResNet; those of {of_means.header.model['name']} take none: leave it out")
    return of_means, lines


def _is_bundle(data: bytes) -> bool:
    """Return whether the input starts as safetensors: with the length of a header, which as text would be a huge number."""
    if data[8:9] == b"{" and int.from_bytes(data[:8], "little") < 1 << 40:
        return True
    text = data.removeprefix(BOM_UTF8).strip()
    return bool(text) and not text.startswith((b"{", b"["))


def _write(
    options: EditOptions, bundle: Bundle | None, lines: Sequence[Line] | None, request: EditRequest, choice: ChoiceRequest | None
) -> dict[str, Any]:
    """Write the outputs and return the record.

    Raises:
        UsageError: a number of units is to be chosen for a mask, or for units that lines name.
    """
    if choice is not None and (options.mask is not None or bundle is None or lines is not None):
        raise UsageError("--choose scores the units of a bundle for a checkpoint: give a bundle, and leave --mask out")
    if options.mask is not None:
        return masked_units(bundle, lines, request).save(options.mask)
    if choice is not None and bundle is not None:
        edited = choose_units(bundle, request, choice)
    else:
        edited = edited_model(bundle, lines, request)
    record: dict[str, Any] = edited.record
    if options.output is not None:
        refuse_own_files(options.output, edited.header.model["parent"])
    if options.out_dir is not None:
        record = edited.save_folder(options.out_dir)
    if options.output is not None:
        record = edited.save(options.output) | ({"folder": str(options.out_dir)} if options.out_dir is not None else {})
    return record
