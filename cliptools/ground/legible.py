"""Text from outside (names of files, words, what other libraries say) in lines that no terminal takes for commands."""

import re
import unicodedata

STEERING = re.compile("[\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069]")
"""What JSON leaves as it is, though terminals obey it."""
JOINERS = "\u200c\u200d"  # between the parts of a letter or an emoji


def legible(name: str) -> str:
    r"""A name as text in one line: bytes that are no UTF-8 and characters that are not to be seen are escaped.

    >>> print(legible("a\nb\x1b[31m.png"))
    a\nb\x1b[31m.png
    """
    if name.isascii() and name.isprintable():
        return name
    text = name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def harmless(text: str) -> str:
    """Text of any number of lines without the characters that steer a terminal or turn the direction of writing.

    >>> harmless("one\\x1b[2J\\ntwo")
    'one[2J\\ntwo'
    """
    if text.isascii() and text.replace("\n", "").isprintable():
        return text
    return "".join(c for c in text if c == "\n" or c in JOINERS or unicodedata.category(c) not in ("Cc", "Cf", "Cs"))


def harmless_json(text: str) -> str:
    """JSON that says the same with all of STEERING escaped."""
    return STEERING.sub(lambda found: f"\\u{ord(found[0]):04x}", text)
