"""Messages and progress bars: on stderr, bars only on a terminal."""

import sys
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

Item = TypeVar("Item")

_quiet = False


def be_quiet(quiet: bool) -> None:
    """Leave out bars and notes (not errors and warnings)."""
    global _quiet
    _quiet = quiet


def note(message: str) -> None:
    """Something worth knowing, unless -q."""
    if not _quiet:
        print(message, file=sys.stderr)


def warn(message: str) -> None:
    """Something the user should look at, even with -q."""
    print(f"warning: {message}", file=sys.stderr)


def progress(
    items: Iterable[Item], label: str, total: int | None = None, step: int | Callable[[Item], int] = 1
) -> Iterator[Item]:
    """The items, with a bar that advances `step` (or what `step` says of the item) for each when it is done."""
    if _quiet or not sys.stderr.isatty():
        yield from items
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(label, total=total)
        for item in items:
            yield item
            bar.advance(task, step(item) if callable(step) else step)
