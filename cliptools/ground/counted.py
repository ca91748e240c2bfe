"""Counts with their nouns, as messages have them."""


def count_of(count: int, noun: str) -> str:
    """A number and its noun, in the plural but of 1.

    >>> count_of(1, "image"), count_of(0, "scene"), count_of(2, "class"), count_of(1200, "entry")
    ('1 image', '0 scenes', '2 classes', '1200 entries')
    """
    return f"{count} {plural(noun) if count != 1 else noun}"


def agreeing(count: int, singular: str, plural: str) -> str:
    """The verb that goes with a number of things: `1 of 3 tensors is missing`, `2 … are missing`."""
    return singular if count == 1 else plural


def plural(noun: str) -> str:
    """The plural of an English noun as messages use them."""
    if noun.endswith(("s", "x", "ch", "sh")):
        return noun + "es"
    return noun[:-1] + "ies" if noun.endswith("y") and noun[-2] not in "aeiou" else noun + "s"
