"""Comparisons of figures by their intervals, and words for them, so that no sentence of the page ranks figures by hand."""

from collections.abc import Iterable, Sequence
from typing import Any

from scipy import stats

from examples.result_tables import Row, Share, TableError, Tables, difference

MORE, LESS, EVEN = "more", "less", "even"


def sign(d: Share) -> str:
    """Return MORE if the whole interval of a difference lies above 0, LESS if below, else EVEN."""
    return MORE if d.low > 0 else LESS if d.high < 0 else EVEN


def compare(a: Share, b: Share) -> str:
    """Return MORE if a is significantly larger than b, LESS if smaller, else EVEN."""
    return sign(difference(a, b))


def say(outcome: str, more: str, less: str, even: str) -> str:
    """Return the words for an outcome of `compare`."""
    return {MORE: more, LESS: less, EVEN: even}[outcome]


def better(a: Share, b: Share) -> str:
    """Return `better than`, `worse than` or `not significantly different from`."""
    return say(compare(a, b), "better than", "worse than", "not significantly different from")


def larger(a: float, b: float, even: float = 0.0) -> str:
    """Return the outcome of a comparison of figures without intervals; they are equal within `even`."""
    return MORE if a > b + even else LESS if a < b - even else EVEN


def paired(a: Sequence[float], b: Sequence[float]) -> Share:
    """Return the mean difference of pairs of figures, with Student's interval over the pairs."""
    differences = [x - y for x, y in zip(a, b, strict=True)]
    middle = sum(differences) / len(differences)
    if len(differences) < 2:
        return Share(middle, float("-inf"), float("inf"))
    half = float(stats.sem(differences) * stats.t.ppf(0.975, len(differences) - 1))
    return Share(middle, middle - half, middle + half)


def numbers(rows: Iterable[Row], column: str) -> list[float]:
    """Return a column of rows."""
    return [row.number(column) for row in rows]


def texts_of(rows: Iterable[Row], column: str) -> list[str]:
    """Return a column of rows as it stands in the table."""
    return [row.text(column) for row in rows]


def mean(values: Sequence[float]) -> float:
    """Return the mean of figures."""
    return sum(values) / len(values)


def over_runs(figures: Sequence[Share]) -> Share:
    """Return the mean of figures, from the lowest to the highest end of their intervals."""
    value, low, high = zip(*figures, strict=True)
    return Share(mean(value), min(low), max(high))


def shares(rows: Iterable[Row], column: str) -> list[Share]:
    """Return a column of rows, with the intervals beside it."""
    return [row.share(column) for row in rows]


def distinct(rows: Iterable[Row], column: str) -> list[str]:
    """Return the different cells of a column, in the order of the rows."""
    return list(dict.fromkeys(row.text(column) for row in rows))


def ascending(rows: Iterable[Row], column: str) -> list[Row]:
    """Return the rows from the smallest to the largest figure in a column."""
    return sorted(rows, key=lambda row: row.number(column))


def better_at(tables: Tables, name: str, column: str, first: dict[str, str], second: dict[str, str]) -> list[str]:
    """Return the values of a column at which the accuracy of the first rows is significantly larger than that of the second."""
    values = distinct(tables.rows(name, **first), column)
    pairs = {at: [tables.top1(name, **keys, **{column: at}) for keys in (first, second)] for at in values}
    return [at for at, (a, b) in pairs.items() if compare(a, b) == MORE]


def first_within(tables: Tables, name: str, column: str, loss: float, **values: str) -> str | None:
    """Return the first value of a column at which the accuracy is at most `loss` below that of the unchanged model, or None."""
    rows = ascending(tables.rows(name, **values), column)
    untouched = tables.top1(name, change="untouched").value
    return next((row.text(column) for row in rows if row.number("top1") >= untouched - loss), None)


def first_even(tables: Tables, name: str, column: str, **values: str) -> str | None:
    """Return the first value of a column at which the accuracy is not significantly below the unchanged model's, or None."""
    rows = ascending(tables.rows(name, **values), column)
    return next((at for row in rows if tables.gain(name, **values, **{column: (at := row.text(column))}).high >= 0), None)


def containing(values: Iterable[str], part: str, wanted: bool = True) -> list[str]:
    """Return the texts that contain a part, or with `wanted=False` those that do not."""
    return [value for value in values if (part in value) is wanted]


def listed(values: Iterable[Any], joint: str = "and") -> str:
    """Return `a`, `a and b`, or `a, b and c`; `none` without a value."""
    *most, last = [str(value) for value in values] or ["none"]
    return f"{', '.join(most)} {joint} {last}" if most else last


def span(layers: str) -> str:
    """Return layers in words: `5`, `5 and 6`, or `0 to 6` for three and more without a gap."""
    numbers_in = [int(layer) for layer in layers.split()]
    if len(numbers_in) > 2 and numbers_in == list(range(numbers_in[0], numbers_in[-1] + 1)):
        return f"{numbers_in[0]} to {numbers_in[-1]}"
    return listed(numbers_in)


def leader(rows: Sequence[Row], by: str, column: str) -> str:
    """Return the cell of `by` in the row of the largest figure."""
    if not rows:
        raise TableError(f"no row to compare by {column}")
    return max(rows, key=lambda row: row.number(column)).text(by)


def shown(rows: Sequence[Row], by: str, column: str, controls: Sequence[str] = ()) -> dict[str, str]:
    """Return a column in percent by the cell of `by`, the largest figure in bold, controls apart."""
    best = leader([row for row in rows if row.text(by) not in controls], by, column)
    figures = {row.text(by): f"{100 * row.number(column):.1f}" for row in rows}
    return figures | {best: f"**{figures[best]}**"}
