"""Options from variables of the environment: what these are called, and how several values stand in one."""

import copy
import functools
import os
from collections.abc import Iterable

import click
from click.types import StringParamType

from cliptools.ground.errors import UsageError

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
    return name.replace("CLIPTOOLS_", f"CLIPTOOLS_{tool.removeprefix('clip-').upper()}_") if own else name


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
