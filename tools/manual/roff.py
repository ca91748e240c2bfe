"""Text as man(7) macros that groff and mandoc show alike, in UTF-8 and without it."""

import re
import textwrap

SIGNS = {"‖": ("v1", "||"), "…": ("v2", "..."), "ᵀ": ("v3", "^T"), "ₙ": ("v4", "_n"), "ₖ": ("v5", "_k")}
"""Signs that groff leaves out where the terminal has no UTF-8: the string that stands for each (its name none of a request), and
what to show instead."""
COMBINED = {"r̂": "r^", "S̄": "mean(S)"}
"""Letters whose mark groff loses where no space follows, and what is shown instead everywhere."""
SPELLED = frozenset("φτγΣ±·×–−√≈⟨⟩éü")
"""Characters that groff and mandoc themselves spell out where the terminal has no UTF-8, as <phi> or a minus."""
WIDTH = 100  # of source lines
MARKUP = re.compile(
    r"`(?P<code>[^`]+)`"
    r"|(?P<page>\bclip(?:tools)?(?:-[a-z]+)?(?=\([1-9]\)))"
    r"|(?P<option>(?<![\w-])--[a-z][a-z-]*|(?<![\w-])-[a-z]\b)"
    r"|(?P<command>\bclip-[a-z]+\b)"
)
_SIGN = re.compile("|".join(map(re.escape, SIGNS)))


def escaped(text: str) -> str:
    """Text in which roff sees no control character and no byte beyond ASCII.

    Raises:
        ValueError: a character of which nothing says how it looks without UTF-8 (see SIGNS and SPELLED).
    """
    for sign, instead in COMBINED.items():
        text = text.replace(sign, instead)
    pieces: list[str] = []
    start = 0
    for found in _SIGN.finditer(text):
        pieces += [_escaped_plain(text[start : found.start()]), rf"\*({SIGNS[found[0]][0]}"]
        start = found.end()
    return "".join((*pieces, _escaped_plain(text[start:])))


def _escaped_plain(text: str) -> str:
    text = text.replace("\\", r"\e").replace("^", r"\(ha").replace("~", r"\(ti")
    strange = {each for each in text if ord(each) > 126 and each not in SPELLED}
    if strange:
        raise ValueError(f"{text!r}: say in SIGNS how {' '.join(sorted(strange))} looks without UTF-8")
    return "".join(each if each.isascii() else rf"\[u{ord(each):04X}]" for each in text)


def literal(text: str) -> str:
    """What may be copied from the page and typed: quotes and hyphens stay what they are."""
    return escaped(text).replace("-", r"\-").replace("'", r"\(aq").replace("`", r"\(ga")


def bold(text: str) -> str:
    return rf"\fB{literal(text)}\fR"


def italic(text: str) -> str:
    return rf"\fI{literal(text)}\fR"


def inline(text: str) -> str:
    """Prose, in which options, commands, names of pages and what stands between backquotes are bold."""
    pieces: list[str] = []
    start = 0
    for found in MARKUP.finditer(text):
        pieces += [escaped(text[start : found.start()]), bold(found["code"] or found[0])]
        start = found.end()
    return "".join((*pieces, escaped(text[start:])))


def filled(text: str) -> str:
    """Marked text as lines of a source; none begins as a request does."""
    lines = textwrap.wrap(text, WIDTH, break_long_words=False, break_on_hyphens=False)
    return "\n".join(map(guarded, lines))


def guarded(line: str) -> str:
    r"""The line, behind \& where roff would take it for a request."""
    return rf"\&{line}" if line.startswith((".", "'")) else line


def quoted(text: str) -> str:
    """An argument of a macro."""
    inner = escaped(text).replace('"', r"\(dq")
    return f'"{inner}"' if " " in inner else inner


def definitions_of_signs(body: str) -> str:
    """The strings that stand for the signs in this body, by what the terminal can show."""
    lines = []
    for sign, (name, instead) in SIGNS.items():
        if rf"\*({name}" in body:
            lines += [rf".ie '\*(.T'utf8' .ds {name} \[u{ord(sign):04X}]", f".el .ds {name} {_escaped_plain(instead)}"]
    return "".join(f"{line}\n" for line in lines)
