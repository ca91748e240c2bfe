"""Forms of figures in a template, and the layout of the text that it makes."""

import re
import textwrap
from collections.abc import Iterator

from examples.result_tables import Share

NUMBERS = ("none", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve")
STICKY = "\0"  # stands for a space at which no line ends
WIDTH = 140  # columns of a line of prose


def percent(value: float | Share, digits: int = 1) -> str:
    """Return a share in percent, without its interval."""
    return f"{100 * (value.value if isinstance(value, Share) else value):.{digits}f} %"


def fixed(value: float | Share, digits: int = 2) -> str:
    """Return a figure with its decimals, without its interval."""
    return f"{round(value.value if isinstance(value, Share) else value, digits) + 0.0:.{digits}f}"


def plain_points(d: Share) -> str:
    """Return a difference in points without a plus sign, with its interval."""
    value, low, high = (round(100 * x, 1) + 0.0 for x in d)
    return f"{value:.1f} points ({low:.1f} to {high:.1f})"


def signed(value: float, digits: int = 1) -> str:
    """Return a change with its sign."""
    return f"{round(value, digits) + 0.0:+.{digits}f}"


def plain(value: float) -> str:
    """Return a figure without zeros at its end."""
    return f"{value:g}"


def count(value: float | str) -> str:
    """Return a whole number with commas between thousands."""
    return f"{round(float(value)):,}"


def in_words(value: float) -> str:
    """Return a number from 0 to 12 in words, where 0 is `none`, and a larger one in digits."""
    return NUMBERS[round(value)] if 0 <= round(value) < len(NUMBERS) else count(value)


def three(value: float) -> str:
    """Return a figure with three digits at most, and all digits of a larger number."""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def laid_out(text: str) -> str:
    """Return a text with one empty line between its blocks, and the lines of its prose filled."""
    return "\n\n".join(_blocks(text))


def _blocks(text: str) -> Iterator[str]:
    code = False
    for block in re.split(r"\n\s*\n", text.strip()):
        lines = [line.rstrip() for line in block.splitlines()]
        inside = code
        code ^= sum(line.startswith("```") for line in lines) % 2 == 1
        if inside or code or lines[0].startswith(("|", "![", "#", "<!--", "```")):
            yield "\n".join(lines)
        elif lines[0].startswith("* "):
            items = re.split(r"(?m)^\* ", "\n".join(lines))[1:]
            yield "\n".join(_fill(item, "* ", "  ") for item in items)
        else:
            yield _fill(" ".join(lines))


def _fill(text: str, first: str = "", other: str = "") -> str:
    """Return a paragraph in lines, without a break before % and beside an equals sign."""
    words = re.sub(r" (?=%|= )|(?<= =) ", STICKY, " ".join(text.split()))
    filled = textwrap.fill(
        words, WIDTH, initial_indent=first, subsequent_indent=other, break_long_words=False, break_on_hyphens=False
    )
    return filled.replace(STICKY, " ")
