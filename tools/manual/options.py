"""Conversion of a command's options and arguments to definitions of a page."""

import re

import click

from tools.manual.blocks import Block, Definition
from tools.manual.roff import bold, italic

PLAIN = {"INTEGER RANGE": "N", "INTEGER": "N", "FLOAT RANGE": "X", "FLOAT": "X"}
LONGEST = 36  # characters of choices that fit beside an option's name
BOUND = re.compile(r"(?:(?P<low>[\d.]+)(?P<above><=?))?x(?:(?P<sign>[<>]=?)(?P<high>[\d.]+))?")
IN_BRACKETS = re.compile(r"\[([^\[\]]|\[[^\[\]]*\])*\]\.?$")


def synopsis(command: click.Command, context: click.Context) -> str:
    """Return the synopsis, such as `clip-view [OPTION]... [BUNDLE]`, as roff."""
    arguments = [parameter.make_metavar(context) for parameter in command.params if isinstance(parameter, click.Argument)]
    marked = [re.sub(r"[A-Z]+", lambda match: italic(match[0]), argument) for argument in arguments]
    return " ".join((bold(str(command.name)), rf"[{italic('OPTION')}]...", *marked))


def option_blocks(command: click.Command, context: click.Context) -> list[Block]:
    """Return a definition for each option, in the order of --help."""
    options = [
        parameter for parameter in command.get_params(context) if isinstance(parameter, click.Option) and not parameter.hidden
    ]
    return [Definition(_term(option, context), _meaning(option, context)) for option in options]


def _term(option: click.Option, context: click.Context) -> str:
    """Return the term of an option, such as `-f, --format safetensors|jsonl`, as roff."""
    names = ", ".join(bold(name) for name in sorted(option.opts, key=lambda name: name.startswith("--")))
    if option.is_flag or option.count:
        return names
    if isinstance(option.type, click.Choice):
        if _many(option):
            return f"{names} {italic(option.opts[-1].lstrip('-').upper())}"
        return f"{names} {'|'.join(bold(str(choice)) for choice in option.type.choices)}"
    value = option.make_metavar(context)
    return f"{names} {re.sub('[A-Za-z]+', lambda match: _value(match[0]), PLAIN.get(value, value))}"


def _value(word: str) -> str:
    """Return a placeholder of a value in italics, literal text in bold."""
    return italic(word) if word.isupper() else bold(word)


def _meaning(option: click.Option, context: click.Context) -> str:
    """Return the help text, followed by its default and range in brackets: [default: 32; at least 1]."""
    extra = option.get_help_extra(context)
    notes = [f"default: {extra['default']}"] if "default" in extra else []
    notes += [range_text(extra["range"])] if "range" in extra else []
    notes += ["required"] if "required" in extra else []
    text = (option.help or "").rstrip()
    if isinstance(option.type, click.Choice) and _many(option):
        *most, last = option.type.choices
        text = f"{', '.join(f'`{choice}`' for choice in most)} or `{last}`. {text}"
    if not notes:
        return text
    if brackets := IN_BRACKETS.search(text):
        return f"{text[: brackets.start()]}{brackets[0].rstrip('.').removesuffix(']')}; {'; '.join(notes)}]."
    return f"{text.removesuffix('.')} [{'; '.join(notes)}]."


def _many(option: click.Option) -> bool:
    """Return True if the choices are too long for the term, so that the text lists them."""
    return isinstance(option.type, click.Choice) and len("|".join(map(str, option.type.choices))) > LONGEST


def range_text(bounds: str) -> str:
    """Return a range in words: `x>=1` as `at least 1`, `16<=x<=8192` as `16 to 8192`."""
    match = BOUND.fullmatch(bounds)
    if match is None:
        return bounds
    if match["above"] == match["sign"] == "<=":
        return f"{match['low']} to {match['high']}"
    low = {"<": "above {}", "<=": "at least {}"}.get(match["above"] or "", "").format(match["low"])
    names = {"<": "below {}", "<=": "at most {}", ">": "above {}", ">=": "at least {}"}
    high = names.get(match["sign"] or "", "").format(match["high"])
    return ", ".join(part for part in (low, high) if part)
