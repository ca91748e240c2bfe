"""clip-judge: writes the scores of units' words as records or a table, a summary, and the judged bundle.

front/judge.py judges them.
"""

import json
from dataclasses import dataclass
from pathlib import Path

from rich.text import Text

from cliptools.cli.app import Batching, Output, Sampling, choose_format
from cliptools.cli.run.bundle_output import read_neurons
from cliptools.console import count_of
from cliptools.errors import UsageError
from cliptools.front.images import Reading
from cliptools.front.judge import NEEDED_TENSORS, TOOL, JudgeRequest, judged
from cliptools.front.tables import rendered
from cliptools.io.files import binary_output, text_output
from cliptools.io.jsonl import write_record

TABLE_ROWS = 20


@dataclass(frozen=True, kw_only=True)
class JudgeOptions(Sampling, Batching, Output):
    """Options of clip-judge."""

    paths: tuple[str, ...]
    bundle: Path | None
    pool: str | None
    judge: str | None
    judge_pretrained: str | None
    truth: str | None
    classes: str | None
    pictures: Path | None
    share: float
    false_discovery: float
    null: bool
    same_names: bool
    summary: Path | None
    bundle_out: Path | None
    no_cache: bool
    device: str


def run(options: JudgeOptions) -> None:
    """Judge the units and write the records, and the summary and the bundle where they are asked for.

    Raises:
        UsageError: options that contradict each other.
    """
    output_format = choose_format(options.output_format, options.output, "jsonl")
    request = _request(options)
    request.check()
    _check_outputs(options)
    bundle = read_neurons(options.bundle, *NEEDED_TENSORS, option="--bundle FILE", device=options.device)
    result = judged(bundle, list(options.paths) or None, request)
    if options.summary:
        with text_output(options.summary) as stream:
            stream.write((json.dumps(result.summary, ensure_ascii=False, indent=1) + "\n").encode())
    if options.bundle_out:
        with binary_output(options.bundle_out) as stream:
            stream.write(result.bundle.to_bytes())
    with text_output(options.output) as stream:
        if output_format == "jsonl":
            for record in result:
                write_record(stream, record)
            return
        rows = bundle.units if options.output is not None else min(bundle.units, TABLE_ROWS)
        units, *means = result.parts(rows)
        more = f"… {count_of(bundle.units - rows, 'more unit')} (-f jsonl for all)"
        remainder = [Text(more, style="dim")] if rows < bundle.units else []
        stream.write(rendered(units, *remainder, *means))


def _check_outputs(options: JudgeOptions) -> None:
    """Check that no two outputs have the same file, which the later one would replace.

    Raises:
        UsageError: two outputs have the same file, or are both standard output.
    """
    outputs = {"--summary": options.summary, "--bundle-out": options.bundle_out, "-o": options.output or Path("-")}
    names: dict[Path, str] = {}
    for option, path in outputs.items():
        if path is None:
            continue
        place = path if str(path) == "-" else path.resolve()
        if place in names:
            other = f"{option} {path}" if option != "-o" or options.output else "the records"
            raise UsageError(f"{names[place]} {path}: also the place of {other}; name two files")
        names[place] = option


def _request(options: JudgeOptions) -> JudgeRequest:
    """Return the arguments of the front."""
    return JudgeRequest(
        texts=options.pool,
        judge=options.judge,
        judge_pretrained=options.judge_pretrained,
        truth=options.truth,
        classes=options.classes,
        pictures=None if options.pictures is None else str(options.pictures),
        share=options.share,
        false_discovery=options.false_discovery,
        null=options.null,
        same_names=options.same_names,
        step=TOOL,
        limit=options.limit,
        sample=options.sample,
        seed=options.seed,
        device=options.device,
        cache=not options.no_cache,
        reading=Reading(batch_size=options.batch_size, workers=options.workers, strict=options.strict),
    )
