"""The process in which a command runs: environment variables, standard input, memory and installed packages.

Environment variables can set options; this module defines their names and separators. An option on the command line that asks for
something which the run does not give is an error; a variable is not. Standard input can be read only once, so a command line on
which two options read it is refused. When memory runs out, the message names the options that would need less.
When an installed package cannot be imported, one line names the package and the reason.
"""

import contextlib
import copy
import functools
import math
import os
import re
import sys
import traceback
from collections.abc import Iterable, Iterator, Mapping
from io import TextIOWrapper
from pathlib import Path
from typing import Any

import click
from click.types import FloatParamType, IntParamType, StringParamType

from cliptools.errors import SingleItemError, UsageError, first_line
from cliptools.launch import NEEDED

OWN_VARIABLE = {"BY", "CENTER", "GROUPS", "IMAGES", "LABELS", "MASK", "METHOD", "NEURONS", "SIZE", "SPLIT", "UNITS"}
"""Options with a different meaning in each command: the names of their variables include the command."""
LONGEST_NUMBER = 18  # digits of a number in a text: below 2^63, so that a bundle that records it can be read again


def by_lines(kind: click.ParamType) -> click.ParamType:
    """Return the type with one value a line in environment variables, because texts and templates contain blanks.

    Paths are also separated as in PATH (`:`, on Windows `;`). Types of numbers are returned unchanged: blanks separate them.
    """
    if not isinstance(kind, StringParamType | click.Path):
        return kind
    lines = copy.copy(kind)
    lines.split_envvar_value = functools.partial(_lines_of, kind)  # type: ignore[method-assign]
    return lines


def _lines_of(kind: click.ParamType, value: str) -> list[str]:
    parts = [line.strip() for line in value.splitlines() if line.strip()]
    return [path for part in parts for path in kind.split_envvar_value(part)] if isinstance(kind, click.Path) else parts


def with_content(kind: click.ParamType) -> click.ParamType:
    """Return the type without empty texts, as of an unset shell variable, without NaN, infinity, and numbers beyond 64 bits.

    A bundle that recorded such a number could not be read again.
    """
    if not isinstance(kind, StringParamType | FloatParamType | IntParamType):
        return kind
    checked = copy.copy(kind)
    checked.convert = functools.partial(_converted, kind)  # type: ignore[method-assign]
    return checked


def _converted(kind: click.ParamType, value: Any, option: click.Parameter | None, context: click.Context | None) -> Any:
    converted = kind.convert(value, option, context)
    if isinstance(converted, str) and not converted.strip():
        kind.fail("empty; give a value, or leave the option out", option, context)
    if isinstance(converted, float) and not math.isfinite(converted):
        kind.fail(f"{value} is not a finite number", option, context)
    if isinstance(converted, int) and converted > sys.maxsize:
        kind.fail(f"{value} is too large, expected at most {sys.maxsize}", option, context)
    return converted


def variable_of(option: click.Option, tool: str) -> str:
    """Return the name of an option's environment variable: CLIPTOOLS_<OPTION>, after the name on the command line.

    --format has CLIPTOOLS_FORMAT, although its parameter is `output_format`. Options in OWN_VARIABLE have
    CLIPTOOLS_<COMMAND>_<OPTION>.
    """
    name = _plain_variable(option)
    per_command = name.removeprefix("CLIPTOOLS_") in OWN_VARIABLE
    return (
        name.replace("CLIPTOOLS_", f"CLIPTOOLS_{tool.removeprefix('clip-').replace('-', '_').upper()}_") if per_command else name
    )


def _plain_variable(option: click.Option) -> str:
    name = next(name for name in option.opts if name.startswith("--"))
    return f"CLIPTOOLS_{name[2:].replace('-', '_').upper()}"


def refuse_plain_variables(tool: str, options: Iterable[click.Parameter]) -> None:
    """Reject CLIPTOOLS_<OPTION> for an option whose meaning depends on the command.

    Raises:
        UsageError: Such a variable is set.
    """
    for option in options:
        if not isinstance(option, click.Option) or not option.expose_value or not isinstance(option.envvar, str):
            continue
        plain = _plain_variable(option)
        if plain != option.envvar and os.environ.get(plain):
            raise UsageError(
                f"{plain} is not read, because --{plain[10:].lower()} has another meaning in other commands: set {option.envvar}"
            )


def refuse_idle(names: Iterable[str], reason: str) -> None:
    """Reject options of the command line that ask for something which this run does not give.

    Options that say how images are read and computed with (--seed, --device, --strict, --batch-size and the like) are not
    rejected, as scripts pass them to all commands; nor are environment variables.

    Args:
        names: Parameters, as the options' dataclass names them.
        reason: The rest of the sentence "--option has no effect ...".

    Raises:
        UsageError: the command line gives one of the options.
    """
    context = click.get_current_context(silent=True)
    if context is None:
        return
    for option in context.command.params:
        given = context.get_parameter_source(str(option.name)) is click.core.ParameterSource.COMMANDLINE
        if option.name in names and given:
            raise UsageError(f"{option.opts[-1]} has no effect {reason}: leave it out")


INPUTS = {
    "paths", "bundle", "bundles", "words", "parts", "pool", "classes", "judge_classes", "labels", "groups", "truth", "baseline",
    "fooled", "beside", "centre", "pairs_file", "block_list", "images", "images_from",
}  # fmt: skip
"""Parameters whose value `-` is standard input."""


def refuse_shared_and_replaced_input(context: click.Context) -> None:
    """Reject a command line on which standard input would be read twice, or an output would replace an input.

    Raises:
        UsageError: as refuse_shared_input and refuse_replaced_input.
    """
    refuse_shared_input(context)
    refuse_replaced_input(context)


def refuse_shared_input(context: click.Context) -> None:
    """Reject a command line on which standard input would be read twice.

    Raises:
        UsageError: Two parameters are `-`, or one is while the bundle comes from standard input as well.
    """
    named = [option for option in context.command.params if option.name in INPUTS and _is_dash(context.params[option.name])]
    if not named:
        return
    labels = [f"{_name(option)} -" for option in named]
    if len(named) > 1:
        raise UsageError(f"{' and '.join(labels)} cannot both come from standard input: name a file for one of them")
    bundle = next((option for option in context.command.params if option.name in ("bundle", "bundles")), None)
    if bundle is not None and not context.params[str(bundle.name)]:
        other = "--bundle FILE" if isinstance(bundle, click.Option) else "BUNDLE"
        raise UsageError(f"{labels[0]} and the bundle cannot both come from standard input: name {other}")


FILES_READ = INPUTS | {"concepts", "explained", "means"}
OUTPUTS = ("output", "plot", "summary", "bundle_out", "per_image")
OWN_OUTPUTS = {"clip-edit": ("mask",)}
"""Parameters that are an output of one command and an input of others."""
SAME_KIND = {"clip-decompose", "clip-effects", "clip-merge", "clip-view"}
"""Commands that may replace the bundle that they read, by one made from it (or by the same one: --resume)."""


def refuse_replaced_input(context: click.Context) -> None:
    """Reject a command line whose output would replace a file that the run reads.

    Raises:
        UsageError: An output is one of the inputs, by whatever name.
    """
    options = {str(option.name): option for option in context.command.params}
    outputs = (*OUTPUTS, *OWN_OUTPUTS.get(str(context.command.name), ()))
    named = {name: path for name in outputs if isinstance(path := context.params.get(name), Path) and path.is_file()}
    if context.command.name in SAME_KIND:
        named.pop("output", None)
    for name in FILES_READ & options.keys():
        value = context.params[name]
        for part in value if isinstance(value, tuple | list) else [value]:
            for output, path in named.items():
                if isinstance(part, str | Path) and _is_file(part) and path.samefile(part):
                    raise UsageError(f"{_name(options[output])} {path}: an input of this run; name another file")


def _is_file(path: str | Path) -> bool:
    try:
        return Path(path).is_file()
    except (OSError, ValueError):  # a text that cannot be the name of a file
        return False


def _name(option: click.Parameter) -> str:
    if isinstance(option, click.Option):
        return option.opts[-1]
    return re.sub(r"[^A-Z]", "", option.metavar or str(option.name).upper())


def _is_dash(value: Any) -> bool:
    return any(str(part) == "-" for part in (value if isinstance(value, tuple | list) else [value]))


BATCHES = {"images", "windows", "pictures"}
"""Kinds of batches whose size is --batch-size."""


def memory_advice(error: BaseException, options: Mapping[str, Any]) -> str:
    """Return the message for a run that is out of memory, with the options of the command that would need less.

    --batch-size is among them if a batch of images was being computed that had more than one.

    Args:
        options: The command's parameters and their values.
    """
    batches = bool(_batches_left_off() & BATCHES)
    single = error.kind if isinstance(error, SingleItemError) else None
    remedies = []
    if single is None and batches and (options.get("batch_size") or 1) > 1:
        remedies.append(f"lower --batch-size (now {options['batch_size']})")
    if "memory" in options:
        remedies.append(f"lower --memory (now {options['memory']:g} GB)")
    if options.get("precision") == "fp32":
        remedies.append("--precision bf16")
    if options.get("device", "cpu") != "cpu" and _has_accelerator():
        remedies.append("--device cpu")
    failure = f"out of memory with a single {single}" if single else "out of memory"
    return f"{failure}: " + (" or ".join(remedies) if remedies else "more is needed than this machine has free")


def forget_batches() -> None:
    """Forget the batches that an earlier run in this process did not complete."""
    _batches_left_off().clear()


def _batches_left_off() -> set[str]:
    """Return the kinds of batches that were not completed; a process that has not imported `devices` has none."""
    devices = sys.modules.get("cliptools.devices")
    return devices.interrupted_kinds if devices else set()


def _has_accelerator() -> bool:
    """Return whether there is a device other than the CPU; a process that has not imported torch uses none."""
    torch = sys.modules.get("torch")
    return torch is not None and (torch.cuda.is_available() or torch.backends.mps.is_available())


def import_failure(error: BaseException) -> str | None:
    """Return the message for an error that was raised by the import of an installed package; None for any other error.

    Such an error can be of any class: ImportError, OSError for a missing library, and others.
    """
    for frame, _ in traceback.walk_tb(error.__traceback__):
        name = str(frame.f_globals.get("__name__", "")).partition(".")[0]
        if frame.f_code.co_name == "<module>" and name not in ("cliptools", "importlib", "__main__", ""):
            return (
                f"the package {name} of this Python cannot be imported ({first_line(error)}): "
                f"{sys.executable} -m pip install --force-reinstall {NEEDED.get(name, name)}"
            )
    return None


@contextlib.contextmanager
def lenient_streams() -> Iterator[None]:
    """Replace characters that the terminal's encoding lacks, instead of failing on them."""
    streams = [stream for stream in (sys.stdout, sys.stderr) if isinstance(stream, TextIOWrapper) and stream.errors == "strict"]
    for stream in streams:
        stream.reconfigure(errors="replace")
    try:
        yield
    finally:
        for stream in streams:
            with contextlib.suppress(ValueError, OSError):  # closed, or its reader has gone
                stream.reconfigure(errors="strict")
