"""clip-explain: writes explained margins as records, tables or tensors, with figures and maps beside them.

front/explain.py explains them.
"""

from collections.abc import Iterator
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path

from cliptools.cli.app import Batching, Output, Sampling, choose_format, open_input, parse_layers, parse_percentage
from cliptools.cli.run.segment_images import Stems, write_file
from cliptools.cli.surroundings import refuse_idle
from cliptools.errors import UsageError
from cliptools.front.explain import ExplainRequest, explanations
from cliptools.front.explained import Explanation, explain_table
from cliptools.front.images import Reading
from cliptools.front.tables import rendered
from cliptools.images.loader import open_images
from cliptools.io.bundle import json_tensor, read_bundle
from cliptools.io.files import binary_output, text_output
from cliptools.io.header import canonical
from cliptools.io.jsonl import write_record
from cliptools.io.spools import TensorSpool
from cliptools.render.contact_sheet import png
from cliptools.render.figure_file import check_figure


@dataclass(frozen=True, kw_only=True)
class ExplainOptions(Sampling, Batching, Output):
    """All parameters of clip-explain."""

    paths: tuple[str, ...]
    bundle: Path | None
    texts: tuple[str, ...]
    classes: str | None
    pool: str | None
    templates: tuple[str, ...]
    layers: str | None
    head: int
    by: str
    delete: str
    draws: int
    figures: Path | None
    figure_format: str
    dark: bool
    maps: Path | None
    no_cache: bool
    device: str


def run(options: ExplainOptions) -> None:
    """Explain the margins, and write them as they come.

    Raises:
        UsageError: options that contradict each other.
        CliptoolsError: figures are asked for, and matplotlib is not installed.
    """
    output_format = choose_format(options.output_format, options.output, "jsonl")
    request = _request(options)
    request.check()
    if options.figures is not None:
        check_figure(options.figure_format)
        if options.maps is not None and options.maps.resolve() == options.figures.resolve():
            raise UsageError(f"--figures {options.figures}: also the folder of --maps, with files of the same names; name two")
    else:
        refuse_idle(("figure_format", "dark"), "without --figures")
    source = open_images(options.paths)
    stream, name = open_input(options.bundle, "a bundle of clip-effects or clip-decompose", "--bundle FILE")
    with stream:
        bundle = read_bundle(stream, name)
    _write(_with_files(explanations(bundle, source, request, name), options), output_format, options)


def _request(options: ExplainOptions) -> ExplainRequest:
    """Return the arguments of the front."""
    return ExplainRequest(
        texts=options.texts,
        classes=options.classes,
        pool=options.pool,
        templates=options.templates,
        layers=parse_layers(options.layers) if options.layers else None,
        head=options.head,
        by=options.by,
        delete=parse_percentage(options.delete, "--delete"),
        draws=options.draws,
        limit=options.limit,
        sample=options.sample,
        seed=options.seed,
        device=options.device,
        cache=not options.no_cache,
        reading=Reading(batch_size=options.batch_size, workers=options.workers, strict=options.strict),
    )


def _with_files(items: Iterator[Explanation], options: ExplainOptions) -> Iterator[Explanation]:
    """Write figure and maps of each image, and add the names of their files to its record."""
    figures, maps = Stems(), Stems()
    for item in items:
        if options.figures is not None:
            name = f"{figures.of(item.name)}.{options.figure_format}"
            write_file(options.figures / name, item.figure(options.figure_format, options.dark))
            item.record["figure"] = name
        if options.maps is not None:
            for unit, title, overlay in zip(item.record["units"], item.units, item.overlays(), strict=True):
                unit["map"] = f"{maps.of(item.name)}.{title.replace(':', '-')}.png"
                write_file(options.maps / unit["map"], png(overlay))
        yield item


def _write(items: Iterator[Explanation], output_format: str, options: ExplainOptions) -> None:
    """Write records or tables as they come, or at the end the tensors."""
    with ExitStack() as stack:
        if output_format == "safetensors":
            binary = stack.enter_context(binary_output(options.output))
            spool = stack.enter_context(closing(TensorSpool()))
            records = []
            for item in items:
                spool.put_whole(f"{item.name}/share", item.shares)
                spool.put_whole(f"{item.name}/maps", item.maps)
                records.append(item.record)
            lines = json_tensor(records)
            spool.put("records", len(lines), 0, lines)
            spool.write(binary, canonical({"kind": "explanations", "format": 1}))
            return
        stream = stack.enter_context(text_output(options.output))
        for item in items:
            if output_format == "jsonl":
                write_record(stream, item.record)
            else:
                stream.write(rendered(*explain_table([item.record])))
                stream.flush()
