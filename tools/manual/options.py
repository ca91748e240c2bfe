"""A command's options and arguments as a page says them."""

import re

import click

from tools.manual.blocks import Block, Definition
from tools.manual.roff import bold, italic

PLAIN = {"INTEGER RANGE": "N", "INTEGER": "N", "FLOAT RANGE": "X", "FLOAT": "X"}
LONGEST = 36  # characters of choices beside an option's name
BOUND = re.compile(r"(?:(?P<low>[\d.]+)(?P<above><=?))?x(?:(?P<sign>[<>]=?)(?P<high>[\d.]+))?")
IN_BRACKETS = re.compile(r"\[([^\[\]]|\[[^\[\]]*\])*\]\.?$")


def synopsis(command: click.Command, context: click.Context) -> str:
    """`clip-view [OPTION]... [BUNDLE]` as roff."""
    arguments = [each.make_metavar(context) for each in command.params if isinstance(each, click.Argument)]
    marked = [re.sub(r"[A-Z]+", lambda found: italic(found[0]), each) for each in arguments]
    return " ".join((bold(str(command.name)), rf"[{italic('OPTION')}]...", *marked))


def option_blocks(command: click.Command, context: click.Context) -> list[Block]:
    """A definition for each option, in the order of --help."""
    options = [each for each in command.get_params(context) if isinstance(each, click.Option) and not each.hidden]
    return [Definition(_term(each, context), _meaning(each, context)) for each in options]


def _term(option: click.Option, context: click.Context) -> str:
    """`-f, --format safetensors|jsonl`, as roff."""
    names = ", ".join(bold(name) for name in sorted(option.opts, key=lambda name: name.startswith("--")))
    if option.is_flag or option.count:
        return names
    if isinstance(option.type, click.Choice):
        if _many(option):
            return f"{names} {italic(option.opts[-1].lstrip('-').upper())}"
        return f"{names} {'|'.join(bold(str(choice)) for choice in option.type.choices)}"
    value = option.make_metavar(context)
    return f"{names} {re.sub('[A-Za-z]+', lambda found: _value(found[0]), PLAIN.get(value, value))}"


def _value(word: str) -> str:
    """What stands for a value in italics, what is typed as it is in bold."""
    return italic(word) if word.isupper() else bold(word)


def _meaning(option: click.Option, context: click.Context) -> str:
    """The help text with its default and range, said as a sentence's end: [default: 32; at least 1]."""
    extra = option.get_help_extra(context)
    said = [f"default: {extra['default']}"] if "default" in extra else []
    said += [in_words(extra["range"])] if "range" in extra else []
    said += ["required"] if "required" in extra else []
    text = (option.help or "").rstrip()
    if isinstance(option.type, click.Choice) and _many(option):
        *most, last = option.type.choices
        text = f"{', '.join(f'`{each}`' for each in most)} or `{last}`. {text}"
    if not said:
        return text
    if already := IN_BRACKETS.search(text):
        return f"{text[: already.start()]}{already[0].rstrip('.').removesuffix(']')}; {'; '.join(said)}]."
    return f"{text.removesuffix('.')} [{'; '.join(said)}]."


def _many(option: click.Option) -> bool:
    """Whether the choices make too long a term, so that the text names them."""
    return isinstance(option.type, click.Choice) and len("|".join(map(str, option.type.choices))) > LONGEST


def in_words(bounds: str) -> str:
    """`x>=1` as `at least 1`, `16<=x<=8192` as `16 to 8192`."""
    found = BOUND.fullmatch(bounds)
    if found is None:
        return bounds
    if found["above"] == found["sign"] == "<=":
        return f"{found['low']} to {found['high']}"
    low = {"<": "above {}", "<=": "at least {}"}.get(found["above"] or "", "").format(found["low"])
    names = {"<": "below {}", "<=": "at most {}", ">": "above {}", ">=": "at least {}"}
    high = names.get(found["sign"] or "", "").format(found["high"])
    return ", ".join(part for part in (low, high) if part)
