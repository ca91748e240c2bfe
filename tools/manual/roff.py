"""Conversion of text to man(7) macros that groff and mandoc show alike, with and without UTF-8."""

import re
import textwrap

SIGNS = {"‖": ("v1", "||"), "…": ("v2", "..."), "ᵀ": ("v3", "^T"), "ₙ": ("v4", "_n"), "ₖ": ("v5", "_k")}
"""Signs that groff omits on terminals without UTF-8: the name of a roff string for each, and its replacement."""
COMBINED = {"r̂": "r^", "S̄": "mean(S)"}
"""Letters whose accent groff loses unless a space follows, and their replacement on all terminals."""
SPELLED = frozenset("φτγΣ±·×–−√≈⟨⟩éü")
"""Characters that groff and mandoc spell out on terminals without UTF-8, for example as <phi> or a minus."""
WIDTH = 100  # width of the lines of a source
MARKUP = re.compile(
    r"`(?P<code>[^`]+)`"
    r"|(?P<page>\bclip(?:tools)?(?:-[a-z]+)*(?=\([1-9]\)))"
    r"|(?P<option>(?<![\w-])--[a-z][a-z-]*|(?<![\w-])-[a-z]\b)"
    r"|(?P<command>\bclip(?:-[a-z]+)+\b)"
)
_SIGN = re.compile("|".join(map(re.escape, SIGNS)))


def escape(text: str) -> str:
    """Return text without roff's control characters and without bytes beyond ASCII.

    Raises:
        ValueError: a character has no replacement without UTF-8 (see SIGNS and SPELLED).
    """
    for sign, instead in COMBINED.items():
        text = text.replace(sign, instead)
    pieces: list[str] = []
    start = 0
    for match in _SIGN.finditer(text):
        pieces += [_escape_plain(text[start : match.start()]), rf"\*({SIGNS[match[0]][0]}"]
        start = match.end()
    return "".join((*pieces, _escape_plain(text[start:])))


def _escape_plain(text: str) -> str:
    text = text.replace("\\", r"\e").replace("^", r"\(ha").replace("~", r"\(ti")
    unknown = {character for character in text if ord(character) > 126 and character not in SPELLED}
    if unknown:
        raise ValueError(f"{text!r}: {' '.join(sorted(unknown))} needs a replacement without UTF-8 in SIGNS")
    return "".join(character if character.isascii() else rf"\[u{ord(character):04X}]" for character in text)


def literal(text: str) -> str:
    """Return text that can be copied from the page and typed, with its quotes and hyphens unchanged."""
    return escape(text).replace("-", r"\-").replace("'", r"\(aq").replace("`", r"\(ga")


def bold(text: str) -> str:
    return rf"\fB{literal(text)}\fR"


def italic(text: str) -> str:
    return rf"\fI{literal(text)}\fR"


def inline(text: str) -> str:
    """Return prose with options, commands, names of pages and text in backquotes in bold."""
    pieces: list[str] = []
    start = 0
    for match in MARKUP.finditer(text):
        pieces += [escape(text[start : match.start()]), bold(match["code"] or match[0])]
        start = match.end()
    return "".join((*pieces, escape(text[start:])))


def fill(text: str) -> str:
    """Return marked text wrapped to lines of a source, none of which begins like a request."""
    lines = textwrap.wrap(text, WIDTH, break_long_words=False, break_on_hyphens=False)
    return "\n".join(map(guard, lines))


def guard(line: str) -> str:
    r"""Return the line, after \& if roff would take it for a request."""
    return rf"\&{line}" if line.startswith((".", "'")) else line


def quote(text: str) -> str:
    """Return text as an argument of a macro."""
    inner = escape(text).replace('"', r"\(dq")
    return f'"{inner}"' if " " in inner else inner


def definitions_of_signs(body: str) -> str:
    """Return the definitions of the strings for the signs in this body, which depend on the terminal."""
    lines = []
    for sign, (name, instead) in SIGNS.items():
        if rf"\*({name}" in body:
            lines += [rf".ie '\*(.T'utf8' .ds {name} \[u{ord(sign):04X}]", f".el .ds {name} {_escape_plain(instead)}"]
    return "".join(f"{line}\n" for line in lines)
