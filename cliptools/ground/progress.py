"""What goes to stderr: messages, bars on a terminal, and at the end what a run has taken; or all of it as JSON lines."""

import contextlib
import json
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar

from cliptools.ground.counted import count_of
from cliptools.ground.legible import legible

if TYPE_CHECKING:
    from rich.progress import Progress

Item = TypeVar("Item")
OFTEN = 1.0  # seconds between two lines of progress in JSON
LINES = 30.0  # seconds between two lines of progress where there is no terminal
LONG = 10.0  # seconds of work from which on an estimate is given at its beginning
EARLY = 5.0  # seconds until the first of them, where so much is to be done still
UNITS = {"Linux": 1024, "Darwin": 1}  # bytes that ru_maxrss counts in
NOUNS = {"images": "image", "masks": "mask", "scenes": "scene", "pairs": "pair", "pictures": "picture", "classes": "class"}
"""Labels of what a run is there for, of which its summary says how long the pass over them took."""
SHORT = 10  # seconds below which tenths are told


@dataclass
class _Run:
    """How a run speaks, and what it has done so far."""

    quiet: bool = False
    as_json: bool = False
    begin: float = field(default_factory=time.perf_counter)
    counted: tuple[str, int, float] | None = None
    """Label, how many, and seconds of the first pass over what the run is there for."""
    summary: str | None = None
    warned: set[str] = field(default_factory=set)
    """Subjects of the warnings that are given once a run."""

    @property
    def draws(self) -> bool:
        """Whether there is a terminal to draw bars on."""
        return not (self.quiet or self.as_json) and _writable() and sys.stderr.isatty()


_run = _Run()
IN_COMMAND: ContextVar[bool] = ContextVar("IN_COMMAND", default=False)
"""Whether a command runs here, in a context of its own."""


@contextlib.contextmanager
def own_run() -> Iterator[None]:
    """A run of its own: it speaks and counts as if nothing had run before it, and leaves nothing to what runs after it.

    The state is one for all threads, because those that decode and download speak too.
    """
    global _run
    outer, _run = _run, _Run()
    try:
        yield
    finally:
        _run = outer


def speak(quiet: bool, as_json: bool) -> None:
    """Set how this run speaks: without bars and notes (not errors and warnings), in JSON lines. It begins now."""
    _run.quiet, _run.as_json, _run.begin = quiet, as_json, time.perf_counter()


def note(message: str) -> None:
    """Something worth knowing, unless -q."""
    if not _run.quiet:
        _say("note", message)


def warn(message: str) -> None:
    """Something the user should look at, even with -q."""
    _say("warning", message if _run.as_json else f"warning: {message}")


def warn_once(subject: str, message: str) -> None:
    """Warn, unless this run has warned of the same subject before."""
    if subject not in _run.warned:
        _run.warned.add(subject)
        warn(message)


def fail(message: str, status: int) -> None:
    """Why the run ends here, and its exit status."""
    _say("error", message, status=status)


def summarise(message: str) -> None:
    """What the run has done, to be said at its end unless -q."""
    _run.summary = message


def finish() -> None:
    """The end of a run that went well: what it has done, and what that took."""
    if _run.summary is None or _run.quiet:
        return
    taken: dict[str, Any] = {"seconds": round(time.perf_counter() - _run.begin, 1)}
    whole = taken["seconds"]
    said = f"{whole:.0f} s" if whole >= SHORT else f"{whole:.1f} s"
    if _run.counted is not None and _run.counted[2] > 0:
        label, count, seconds = _run.counted
        taken |= {"what": label, "count": count, "a_second": round(count / seconds, 2)}
        said += f", of which {_duration(seconds)} over {count_of(count, NOUNS[label])}"
    if peak := _peak():
        taken["peak_bytes"] = peak
        said += f", at most {peak / 1e9:.1f} GB"
    _say("summary", _run.summary if _run.as_json else f"{_run.summary} ({said})", **taken)


def progress(
    items: Iterable[Item], label: str, total: int | None = None, step: int | Callable[[Item], int] = 1
) -> Iterator[Item]:
    """The items, with a bar that advances `step` (or what `step` says of the item) for each when it is done."""
    bar = _bar() if _run.draws else None
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
            if _run.as_json and not _run.quiet and now - said >= OFTEN:
                said = now
                _say("progress", label, done=done, total=total, seconds=round(now - begin, 1))
            elif bar is None and not _run.quiet and not _run.as_json and total and 0 < done < total:
                left = (now - begin) / done * (total - done)
                if now - said >= (EARLY if said == begin and left >= LINES else LINES):
                    said = now
                    _say("note", f"{label}: {done} of {total} ({done / total:.0%}), about {rounded_time(left)} to go")
        _count(label, done, time.perf_counter() - begin)


@contextlib.contextmanager
def working(label: str) -> Iterator[None]:
    """While something takes its time of which no parts can be counted: on a terminal, that it does."""
    if not _run.draws:
        yield
        return
    from rich.console import Console

    with Console(stderr=True).status(label):
        yield


def _say(event: str, message: str, **more: Any) -> None:
    line = json.dumps({"event": event, "message": message} | more, ensure_ascii=False) if _run.as_json else legible(message)
    if _writable():
        with contextlib.suppress(OSError):  # its reader has gone, or the disk is full: no reason to end the work
            print(line, file=sys.stderr, flush=True)


def _writable() -> bool:
    """Whether there is a standard error; where it was closed before the start, print would take standard output instead."""
    return sys.stderr is not None and not getattr(sys.stderr, "closed", False)


def _count(label: str, done: int, seconds: float) -> None:
    """The first pass over what the run is there for; a further one is not what it is asked for."""
    if label in NOUNS and _run.counted is None:
        _run.counted = label, done, seconds


def rounded_time(seconds: float) -> str:
    """`40 s`, `12 min`, `3.5 h`."""
    return f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def _duration(seconds: float) -> str:
    """`0.12 s`, `3.4 s`, `22 s`."""
    return f"{seconds:.2g} s" if seconds < SHORT else f"{seconds:.0f} s"


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
