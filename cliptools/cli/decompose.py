"""clip-decompose: what directions mean, as signed sums of texts."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from cliptools.cli.app import FORMATS, choose_format, command, device_option, history_arguments, output_options, template_option
from cliptools.cli.run.bundle_output import emit, read_neurons
from cliptools.console import count_of, note, summarise
from cliptools.errors import StreamError, UsageError

if TYPE_CHECKING:
    from torch import Tensor

    from cliptools.analysis.pursuit import Pursuit
    from cliptools.io.bundle import Bundle
    from cliptools.io.cache import KeptParts
    from cliptools.models.load import LoadedModel
    from cliptools.text.vocabularies import Pool


METHOD_HELP = (
    "pursuit: a direction as a sum of texts. textspan: the texts that explain most of a head's outputs, of bundles of heads."
)
TOOL = "clip-decompose"
LONG = 2e9  # units times texts times steps: minutes on a CPU
POOL_HELP = "emoji, imagenet, words10k, words30k or a file, one text a line [default: emoji for embedded models, else words30k]."
CENTER_HELP = "Subtract the pool's mean from its texts, or nothing."
RESUME_HELP = "Go on with what an interrupted run has left in FILE.part, where -o FILE keeps each unit's texts as they come."
NORMALIZE_HELP = "Unit norm for each text, or for each dimension (as the paper's code)."


@command(TOOL)
@click.argument("bundle", required=False, type=click.Path(path_type=Path, allow_dash=True))
@click.option("--method", type=click.Choice(["pursuit", "textspan"]), default="pursuit", show_default=True, help=METHOD_HELP)
@click.option("--m", "m", type=click.IntRange(min=1), default=32, show_default=True, help="Texts a unit, at most.")
@click.option("--pool", metavar="NAME|FILE", help=POOL_HELP)
@template_option("text", "none")
@click.option("--center", type=click.Choice(["pool", "none"]), default="pool", show_default=True, help=CENTER_HELP)
@click.option("--normalize", type=click.Choice(["texts", "dimensions"]), default="texts", show_default=True, help=NORMALIZE_HELP)
@click.option("--prefix", metavar="M,M,...", help="Also the residuals with fewer texts, from the same run [default: none].")
@click.option("--model", metavar="NAME", help="The bundle's own model; any other is refused [default: the bundle's].")
@click.option("--resume", is_flag=True, help=RESUME_HELP)
@click.option("--no-cache", is_flag=True, help="Neither read nor keep text embeddings [default: keep them].")
@device_option
@output_options(*FORMATS)
@click.pass_context
def main(
    context: click.Context, /, *, bundle: Path | None, output: Path | None, output_format: str | None, **options: Any
) -> None:
    """Write each unit's direction as a signed sum of few texts.

    Reads a BUNDLE of clip-effects (a file, or standard input) and adds to each unit the texts that orthogonal matching
    pursuit finds, with their coefficients, in the order chosen; words it had before are replaced.

    What an attention head writes has more than one direction. --method textspan (Gandelsman et al. 2024) gives each head of a
    bundle of clip-effects --units heads the text along which its outputs vary most over the images, then the one along which
    what is left varies most, and so on, with the share of the variance that each explains.

    \b
    Examples:
      clip-effects | clip-decompose          # the embedded model, in a table
      clip-decompose --m 128 < effects.safetensors > neurons.safetensors
      clip-decompose effects.safetensors --pool birds.txt --template 'a photo of a {}' -f jsonl
      clip-decompose effects.safetensors --prefix 4,8,16 -o neurons.safetensors
      clip-decompose pairs.safetensors --m 64 --resume -o named.safetensors
      clip-effects --units heads | clip-decompose --method textspan --m 8 -f jsonl
    """
    prefixes = parse_prefixes(options["prefix"], options["m"])
    chosen = choose_format(output_format, output, "safetensors")
    from cliptools.io.cache import is_kept, kept_parts

    if options["resume"] and not is_kept(output):
        raise UsageError("--resume goes on with what stands beside a file: name it by -o FILE")
    effects = read_neurons(bundle, device=options["device"])
    if options["method"] == "textspan" and "moment" not in effects:
        units = effects.header.settings.get("units", "neurons")
        raise StreamError(
            f"--method textspan needs second moments of heads (clip-effects --units heads); these units are {units}"
        )

    from cliptools.models.text_encoder import recorded

    with kept_parts(output, options["resume"]) as parts:
        pool, found = decompose(effects, options, parts)
        settings = {key: options[key] for key in ("method", "center", "normalize", "m")}
        settings |= {"pool": pool.name, "digest": pool.digest, "templates": recorded(options["templates"])}
        settings |= {"prefix": list(prefixes)} if prefixes else {}
        step = history_arguments(context, pool=pool.name)
        step.pop("model", None)  # the bundle's own
        told = f"{count_of(effects.units, 'unit')} in at most {count_of(options['m'], 'text')} of {pool.name} ({len(pool.texts)})"
        summarise(f"{TOOL}: {told}, a median of {_left(found)} of a direction left over")
        emit(with_words(effects, found, pool, settings, step), chosen, output)


def _left(found: "Pursuit") -> str:
    """The median residual; of heads that TextSpan describes, that too is a share."""
    return f"{float(found.residual.median()):.2f}" if len(found.residual) else "0"


def decompose(effects: "Bundle", options: dict[str, Any], parts: "KeptParts | None" = None) -> "tuple[Pool, Pursuit]":
    """The pool asked for, and what pursuit finds in it for the bundle's directions.

    Args:
        parts: Where to keep what is found as it comes, and what an earlier run has left.

    Raises:
        CliptoolsError: no such pool, another model than the bundle's, or one of another width.
    """
    import torch

    from cliptools.analysis.pursuit import pursue, text_space
    from cliptools.embedded_models import EMBEDDED
    from cliptools.models.load import load_recorded_model
    from cliptools.models.text_encoder import check_template_options, encode_named, recorded
    from cliptools.text.vocabularies import load_pool

    own, direction = effects.header.model, effects["direction"]
    pool = load_pool(options["pool"] or ("emoji" if own["name"] in EMBEDDED else "words30k"))
    check_template_options(options["templates"])
    loaded = load_recorded_model(own, options["device"], name=options["model"])
    texts = encode_named(loaded, pool, options["templates"], use_cache=not options["no_cache"])
    if texts.shape[1] != direction.shape[1]:
        raise StreamError(f"directions of width {direction.shape[1]}, the model's texts have {texts.shape[1]}")
    if len(direction) * len(pool.texts) * options["m"] >= LONG:
        note(
            f"{TOOL}: {count_of(len(direction), 'unit')}, {count_of(len(pool.texts), 'text')}, at most {options['m']} of "
            f"them a unit: this takes a while"
        )
    where = "cuda" if loaded.device.type == "cuda" else "cpu"  # others have no float64
    atoms = text_space(texts.to(where), options["center"], options["normalize"])
    if options["method"] == "textspan":
        return pool, _text_spans(effects, loaded, atoms, options["m"])
    targets = torch.from_numpy(direction).to(where)
    if parts is None:
        return pool, pursue(targets, atoms, options["m"])
    said = {key: options[key] for key in ("center", "normalize", "m")} | {"bundle": effects.digest, "pool": pool.digest}
    return pool, _kept_pursuit(targets, atoms, parts, said | {"templates": recorded(options["templates"])})


def _kept_pursuit(targets: "Tensor", atoms: "Tensor", parts: "KeptParts", said: dict[str, Any]) -> "Pursuit":
    """The pursuit, with what an earlier run has left of it."""
    import torch

    from cliptools.analysis.pursuit import Pursuit, join, pursuits

    found = [Pursuit(*(torch.from_numpy(part[name]) for name in Pursuit._fields)) for part in parts.earlier(said)]
    done = sum(len(part.word) for part in found)
    if done:
        note(f"{TOOL}: {done} of {count_of(len(targets), 'unit')} are there already")
    if done < len(targets) or not found:
        for part in pursuits(targets, atoms, said["m"], done=done):
            found.append(Pursuit(*(column.cpu() for column in part)))
            parts.add(**{name: column.numpy() for name, column in found[-1]._asdict().items()})
    return join(found)


def _text_spans(effects: "Bundle", loaded: "LoadedModel", atoms: "Tensor", m: int) -> "Pursuit":
    """TextSpan's choice, with shares of the variance where a pursuit has coefficients."""
    import torch

    from cliptools.analysis.textspan import head_directions, text_spans
    from cliptools.effects.select import factored_effect

    settings = effects.header.settings
    D = head_directions(factored_effect(loaded.clip, settings["effect"], settings["units"]), torch.from_numpy(effects["unit"]))
    return text_spans(torch.from_numpy(effects["moment"]).to(atoms.device), D.to(atoms.device), atoms, m)


def parse_prefixes(text: str | None, m: int) -> tuple[int, ...]:
    """`4,8,16` as (4, 8, 16).

    Raises:
        UsageError: not a list of numbers from 1 to m.
    """
    parts = text.split(",") if text else []
    for part in parts:
        if not part.strip().isdecimal() or not 1 <= int(part) <= m:
            raise UsageError(f"--prefix {text}: expected numbers from 1 to {m} (--m), found {part.strip()!r}")
    return tuple(int(part) for part in parts)


def with_words(effects: "Bundle", found: "Pursuit", pool: "Pool", settings: dict[str, Any], step: dict[str, Any]) -> "Bundle":
    """The bundle with its words, in place of any it had."""
    from dataclasses import replace

    import numpy as np

    from cliptools.io.bundle import json_tensor

    word = found.word.cpu().numpy()
    appearing = np.unique(word[word >= 0])
    added: dict[str, np.ndarray] = {
        "word": np.where(word >= 0, np.searchsorted(appearing, word), -1).astype(np.int32),
        "coefficient": found.coefficient.cpu().numpy(),
        "residual": found.residual.cpu().numpy(),
        "words": json_tensor({"texts": [pool.texts[j] for j in appearing], "pool": pool.name, "digest": pool.digest}),
    }
    if prefixes := settings.get("prefix"):
        added["prefix_residual"] = found.path[:, [k - 1 for k in prefixes]].cpu().numpy()
    header = effects.header.after(TOOL, step)
    header = replace(header, kind="neurons", settings=header.settings | {"words": settings})
    kept = {key: value for key, value in effects.tensors.items() if key != "prefix_residual"}
    return replace(effects, tensors=kept).with_tensors(header, **added)


if __name__ == "__main__":
    main()
