"""clip-decompose: writes a bundle with texts for its units, found by orthogonal matching pursuit or TextSpan.

front/decompose.py finds them. The texts of finished units are kept in a file beside the output, from which --resume continues.
"""

from dataclasses import dataclass
from pathlib import Path

from cliptools.analysis.pursuit import Center, Normalize
from cliptools.cli.app import Output, choose_format, history_arguments
from cliptools.cli.run.bundle_output import emit, read_neurons
from cliptools.cli.surroundings import refuse_idle
from cliptools.errors import UsageError
from cliptools.front.bundles import with_step
from cliptools.front.decompose import decompose
from cliptools.io.cache import is_kept, kept_parts

TOOL = "clip-decompose"


@dataclass(frozen=True, kw_only=True)
class DecomposeOptions(Output):
    """Parameters of clip-decompose."""

    bundle: Path | None
    method: str
    m: int
    pool: str | None
    templates: tuple[str, ...]
    center: Center
    normalize: Normalize
    prefix: str | None
    model: str | None
    resume: bool
    no_cache: bool
    verify: tuple[str, ...]
    same_names: bool
    batch_size: int
    device: str


def run(options: DecomposeOptions) -> None:
    """Write the bundle with its words.

    Raises:
        UsageError: The options do not go together.
        StreamError: The input is not a bundle that the method can decompose.
        CliptoolsError: The vocabulary or the model is not available, or --resume does not fit the earlier run.
    """
    prefixes = parse_prefixes(options.prefix, options.m)
    output_format = choose_format(options.output_format, options.output, "safetensors")
    if options.resume and not is_kept(options.output):
        raise UsageError("--resume needs -o FILE: the run continues from FILE.part")
    if options.method == "textspan":
        refuse_idle(("resume",), "with --method textspan, whose texts are not kept while it runs")
    effects = read_neurons(options.bundle, device=options.device)
    with kept_parts(options.output, options.resume) as parts:
        bundle = decompose(
            effects,
            options.pool,
            method=options.method,
            m=options.m,
            templates=options.templates,
            center=options.center,
            normalize=options.normalize,
            prefix=prefixes,
            model=options.model,
            device=options.device,
            cache=not options.no_cache,
            parts=parts,
            verify=options.verify[0] if len(options.verify) == 1 else list(options.verify) or None,
            same_names=options.same_names,
            batch_size=options.batch_size,
            progress=True,
        )
        step = history_arguments(options, pool=bundle.header.settings["words"]["pool"])
        step.pop("model", None)  # only a check
        for name in ("verify", "same_names"):
            if not step.get(name):
                step.pop(name, None)
        emit(with_step(bundle, effects.header, TOOL, step), output_format, options.output)


def parse_prefixes(text: str | None, m: int) -> tuple[int, ...]:
    """Parse --prefix: `4,8,16` gives (4, 8, 16).

    Raises:
        UsageError: The text is not a list of numbers from 1 to m.
    """
    parts = text.split(",") if text else []
    for part in parts:
        if not part.strip().isdecimal() or not 1 <= int(part) <= m:
            raise UsageError(f"--prefix {text}: expected numbers from 1 to {m} (--m), found {part.strip()!r}")
    return tuple(int(part) for part in parts)
