"""Options from variables of the environment: what these are called, and how several values stand in one.

Standard input can be read once: refuses a command line by which two options read it.

The options that help where memory has run out.

A package that is installed and does not import: which, and why, in one line.
"""

import copy
import functools
import os
import re
import sys
import traceback
from collections.abc import Iterable, Mapping
from typing import Any

import click
from click.types import StringParamType

from cliptools.errors import SingleItemError, UsageError, first_line
from cliptools.launch import NEEDED

OWN_VARIABLE = {"BY", "CENTER", "IMAGES", "LABELS", "METHOD", "NEURONS", "SIZE", "UNITS"}
"""Options that mean other things to other commands: their variables carry the command's name."""


def by_lines(kind: click.ParamType) -> click.ParamType:
    """A type of which a variable of the environment holds a value a line: texts and templates have blanks in them.

    Paths are also parted by the sign that parts them in PATH, and numbers by blanks.
    """
    if not isinstance(kind, StringParamType | click.Path):
        return kind
    lines = copy.copy(kind)
    lines.split_envvar_value = functools.partial(_lines_of, kind)  # type: ignore[method-assign]
    return lines


def _lines_of(kind: click.ParamType, value: str) -> list[str]:
    parts = [line.strip() for line in value.splitlines() if line.strip()]
    return [path for part in parts for path in kind.split_envvar_value(part)] if isinstance(kind, click.Path) else parts


def variable_of(option: click.Option, tool: str) -> str:
    """CLIPTOOLS_<OPTION>, by the name that is typed: CLIPTOOLS_FORMAT, also where the code calls it output_format.

    CLIPTOOLS_<COMMAND>_<OPTION> of an option that means other things to other commands (OWN_VARIABLE).
    """
    name = _plain_variable(option)
    own = name.removeprefix("CLIPTOOLS_") in OWN_VARIABLE
    return name.replace("CLIPTOOLS_", f"CLIPTOOLS_{tool.removeprefix('clip-').replace('-', '_').upper()}_") if own else name


def _plain_variable(option: click.Option) -> str:
    name = next(name for name in option.opts if name.startswith("--"))
    return f"CLIPTOOLS_{name[2:].replace('-', '_').upper()}"


def refuse_plain_variables(tool: str, options: Iterable[click.Parameter]) -> None:
    """
    Raises:
        UsageError: a variable is set that means other things to other commands, and is not read.
    """
    for option in options:
        if not isinstance(option, click.Option) or not option.expose_value or not isinstance(option.envvar, str):
            continue
        plain = _plain_variable(option)
        if plain != option.envvar and os.environ.get(plain):
            raise UsageError(
                f"{plain} is not read, since --{plain[10:].lower()} means another thing to other commands: set {option.envvar}"
            )


INPUTS = {
    "paths", "bundle", "bundles", "words", "parts", "pool", "classes", "judge_classes", "labels", "groups", "truth", "baseline",
    "fooled", "beside", "centre", "pairs_file", "block_list", "images", "images_from",
}  # fmt: skip
"""Parameters that may name standard input."""
ASKED_THERE = {"paths", "bundle", "bundles", "beside"}
"""Those of which commands themselves say that only one can be standard input."""


def refuse_shared_input(context: click.Context) -> None:
    """
    Raises:
        UsageError: standard input, which can be read once, is named twice, or once where the bundle comes by it as well.
    """
    named = [option for option in context.command.params if option.name in INPUTS and _by_dash(context.params[option.name])]
    if {option.name for option in named} <= ASKED_THERE:
        return
    words = [f"{_name(option)} -" for option in named]
    if len(named) > 1:
        raise UsageError(f"{' and '.join(words)} cannot both come from standard input: name a file for one of them")
    bundle = next((option for option in context.command.params if option.name in ("bundle", "bundles")), None)
    if bundle is not None and not context.params[str(bundle.name)]:
        other = "--bundle FILE" if isinstance(bundle, click.Option) else "BUNDLE"
        raise UsageError(f"{words[0]} and the bundle cannot both come from standard input: name {other}")


def _name(option: click.Parameter) -> str:
    if isinstance(option, click.Option):
        return option.opts[-1]
    return re.sub(r"[^A-Z]", "", option.metavar or str(option.name).upper())


def _by_dash(value: Any) -> bool:
    return any(str(part) == "-" for part in (value if isinstance(value, tuple | list) else [value]))


BATCHES = ("images", "windows", "pictures")  # that --batch-size counts


def memory_advice(error: BaseException, options: Mapping[str, Any]) -> str:
    """Return the message for a run that has used up its memory: with which batch, and which of the command's options help.

    The batch size does not where a single item was too much, nor where no batch of images was being read.

    Args:
        options: The command's parameters and their values.
    """
    from cliptools.devices import left_off

    batches = not left_off.isdisjoint(BATCHES)
    single = error.kind if isinstance(error, SingleItemError) else None
    ways = []
    if single is None and batches and (options.get("batch_size") or 1) > 1:
        ways.append(f"lower --batch-size (now {options['batch_size']})")
    if "memory" in options:
        ways.append(f"lower --memory (now {options['memory']:g} GB)")
    if options.get("precision") == "fp32":
        ways.append("--precision bf16")
    if options.get("device", "cpu") != "cpu" and _has_accelerator():
        ways.append("--device cpu")
    what = f"out of memory with a single {single}" if single else "out of memory"
    return f"{what}: " + (" or ".join(ways) if ways else "more is needed than this machine has free")


def forget_batches() -> None:
    """Batches that an earlier run of this process has left off are none of this one's."""
    if (halving := sys.modules.get("cliptools.devices")) is not None:
        halving.left_off.clear()


def _has_accelerator() -> bool:
    import torch

    return torch.cuda.is_available() or torch.backends.mps.is_available()


def import_failure(error: BaseException) -> str | None:
    """Return the message for an error that was raised while a package was imported; None for any other.

    Whatever a package raises comes through here: ImportError, OSError of a library that is not there, and others.
    """
    for frame, _ in traceback.walk_tb(error.__traceback__):
        name = str(frame.f_globals.get("__name__", "")).partition(".")[0]
        if frame.f_code.co_name == "<module>" and name not in ("cliptools", "importlib", "__main__", ""):
            return (
                f"the package {name} of this Python cannot be imported ({first_line(error)}): "
                f"{sys.executable} -m pip install --force-reinstall {NEEDED.get(name, name)}"
            )
    return None
