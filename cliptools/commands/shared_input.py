"""Standard input can be read once: refuses a command line by which two options read it."""

import re
from typing import Any

import click

from cliptools.ground.errors import UsageError

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
