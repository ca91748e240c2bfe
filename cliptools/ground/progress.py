"""What goes to stderr: messages, bars on a terminal, and at the end what a run has taken; or all of it as JSON lines."""

import contextlib
import json
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from rich.progress import Progress

Item = TypeVar("Item")
OFTEN = 1.0  # seconds between two lines of progress
UNITS = {"Linux": 1024, "Darwin": 1}  # bytes that ru_maxrss counts in
COUNTED = ("images", "masks", "scenes", "pairs", "pictures", "classes")
"""Labels of what a run is there for, of which its summary says how many a second."""

_quiet = False
_json = False
_begin = time.perf_counter()
_counted: tuple[str, int, float] | None = None
_concluded: str | None = None


def speak(quiet: bool, as_json: bool) -> None:
    """A run begins, and how it speaks: without bars and notes (not errors and warnings), in JSON lines."""
    global _quiet, _json, _begin, _counted, _concluded
    _quiet, _json = quiet, as_json
    _begin, _counted, _concluded = time.perf_counter(), None, None


def note(message: str) -> None:
    """Something worth knowing, unless -q."""
    if not _quiet:
        _say("note", message)


def warn(message: str) -> None:
    """Something the user should look at, even with -q."""
    _say("warning", message if _json else f"warning: {message}")


def fail(message: str, status: int) -> None:
    """Why the run ends here, and its exit status."""
    _say("error", message, status=status)


def summarise(message: str) -> None:
    """What the run has done, to be said at its end unless -q."""
    global _concluded
    _concluded = message


def finish() -> None:
    """The end of a run that went well: what it has done, and what that took."""
    if _concluded is None or _quiet:
        return
    taken: dict[str, Any] = {"seconds": round(time.perf_counter() - _begin, 1)}
    said = f"{taken['seconds']:.0f} s"
    if _counted is not None and _counted[2] > 0:
        label, count, seconds = _counted
        taken |= {"what": label, "count": count, "a_second": round(count / seconds, 2)}
        said += f", {count / seconds:.3g} {label} a second"
    if peak := _peak():
        taken["peak_bytes"] = peak
        said += f", at most {peak / 1e9:.1f} GB"
    _say("summary", _concluded if _json else f"{_concluded} ({said})", **taken)


def progress(
    items: Iterable[Item], label: str, total: int | None = None, step: int | Callable[[Item], int] = 1
) -> Iterator[Item]:
    """The items, with a bar that advances `step` (or what `step` says of the item) for each when it is done."""
    bar = None if _quiet or _json or not sys.stderr.isatty() else _bar()
    with bar or contextlib.nullcontext():
        task = None if bar is None else bar.add_task(label, total=total)
        begin = said = time.perf_counter()
        done = 0
        for item in items:
            yield item
            one = step(item) if callable(step) else step
            done += one
            if bar is not None and task is not None:
                bar.advance(task, one)
            now = time.perf_counter()
            if _json and not _quiet and now - said >= OFTEN:
                said = now
                _say("progress", label, done=done, total=total, seconds=round(now - begin, 1))
        _count(label, done, time.perf_counter() - begin)


@contextlib.contextmanager
def working(label: str) -> Iterator[None]:
    """While something takes its time of which no parts can be counted: on a terminal, that it does."""
    if _quiet or _json or not sys.stderr.isatty():
        yield
        return
    from rich.console import Console

    with Console(stderr=True).status(label):
        yield


def _say(event: str, message: str, **more: Any) -> None:
    line = json.dumps({"event": event, "message": message} | more, ensure_ascii=False) if _json else message
    print(line, file=sys.stderr, flush=True)


def _count(label: str, done: int, seconds: float) -> None:
    """The first pass over what the run is there for; a further one is not what it is asked for."""
    global _counted
    if label in COUNTED and _counted is None:
        _counted = label, done, seconds


def _peak() -> int | None:
    """Bytes of memory that this process has held at most, where the system says."""
    try:
        import platform
        import resource
    except ImportError:  # Windows
        return None
    unit = UNITS.get(platform.system())
    return None if unit is None else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def _bar() -> "Progress":
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TextColumn
    from rich.progress import TimeElapsedColumn as Elapsed
    from rich.progress import TimeRemainingColumn as Remaining
    from rich.text import Text

    class Rate(ProgressColumn):
        """Steps a second."""

        def render(self, task: Task) -> Text:
            return Text(f"{task.speed:.3g}/s" if task.speed else "", style="progress.data.speed")

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), Rate(), Elapsed(), Remaining())
    return Progress(*columns, console=Console(stderr=True), transient=True)
