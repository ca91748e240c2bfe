"""Everything that a run writes to stderr, and the escaping and grammar of messages.

A function of the Python front has an output of its own (`front_call`), which goes to the logger `cliptools` unless progress is
asked for.

`note`, `warn`, `fail`, `progress` and `finish` write notes, warnings, errors, progress and a summary, as text or as JSON lines.
`escape` and `harmless` treat text from outside (file names, words, messages of other libraries), so that no terminal takes it for
control sequences; `count_of` and `verb_form` agree nouns and verbs with a number.

Bars are drawn by rich, and the front's messages go to logging. By hand is what neither has: progress as JSON lines, and as rare
notes where no terminal can show a bar.
"""

import contextlib
import json
import platform
import re
import sys
import time
import unicodedata
from collections.abc import Callable, Iterable, Iterator
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from rich.progress import Progress

try:
    import resource
except ImportError:  # Windows
    resource = None  # type: ignore[assignment]


Item = TypeVar("Item")
OFTEN = 1.0  # seconds between two lines of progress in JSON
LINES = 30.0  # seconds between two notes of progress without a terminal
LONG = 10.0  # seconds of work from which an estimate is given at the start
EARLY = 5.0  # seconds until the first note, if at least LINES seconds of work remain
PEAK_UNITS = {"Linux": 1024, "Darwin": 1}  # bytes per unit of ru_maxrss
NOUNS = {"images": "image", "masks": "mask", "scenes": "scene", "pairs": "pair", "pictures": "picture", "classes": "class"}
"""Labels of the items that a run processes, with their singulars; its summary reports the time of the first pass over them."""
SHORT = 10  # seconds below which tenths are shown


@dataclass
class _Run:
    """The output settings of a run and what it has done so far."""

    quiet: bool = False
    as_json: bool = False
    logged: bool = False
    """True if messages go to Python's logging instead of stderr."""
    begin: float = field(default_factory=time.perf_counter)
    counted: tuple[str, int, float] | None = None
    """Label, count and seconds of the first pass over items with a label in NOUNS."""
    summary: str | None = None
    warned: set[str] = field(default_factory=set)
    """Subjects of the warnings that are given once per run."""

    @property
    def draws(self) -> bool:
        """True if progress bars can be drawn on a terminal."""
        return not (self.quiet or self.as_json or self.logged) and _writable() and sys.stderr.isatty()


_run = _Run()
IN_COMMAND: ContextVar[bool] = ContextVar("IN_COMMAND", default=False)
"""True in the context of a running command."""
OWN_PROCESS: ContextVar[bool] = ContextVar("OWN_PROCESS", default=False)
"""True in the context of a command that has the process to itself: its arguments are those of the process."""
_front: ContextVar[_Run | None] = ContextVar("_front", default=None)
"""Output of the function of the front that runs in this context."""


def _current() -> _Run:
    """Return the output of the running function of the front, else that of the process."""
    return _front.get() or _run


@contextlib.contextmanager
def front_call(progress: bool) -> Iterator[None]:
    """Give a function of the Python front an output of its own; in a command, it uses the command's.

    Args:
        progress: Write progress, messages and a summary to stderr, as commands do. Otherwise messages go to the logger
            `cliptools`, which shows none unless the program configures it.
    """
    if IN_COMMAND.get() or _front.get() is not None:
        yield
        return
    token = _front.set(_Run(logged=not progress))
    try:
        yield
        finish()
    finally:
        _front.reset(token)


def front_steps(progress: bool, items: Iterator[Item]) -> Iterator[Item]:
    """Yield the items of a function of the front that works while they are taken, with one output as in `front_call`.

    Between two items the output is the caller's.
    """
    if IN_COMMAND.get() or _front.get() is not None:
        yield from items
        return
    run = _Run(logged=not progress)
    while True:
        token = _front.set(run)
        try:
            item = next(items)
        except StopIteration:
            finish()
            return
        finally:
            _front.reset(token)
        yield item


@contextlib.contextmanager
def own_run() -> Iterator[None]:
    """Give the block an output state of its own, and restore the previous one afterwards.

    All threads share the state, because threads that decode or download write messages too.
    """
    global _run
    previous, _run = _run, _Run()
    try:
        yield
    finally:
        _run = previous


def set_output(quiet: bool, as_json: bool) -> None:
    """Set the output of this run and start its clock.

    Args:
        quiet: Leave out bars and notes; warnings and errors stay.
        as_json: Write JSON lines instead of text.
    """
    _run.quiet, _run.as_json, _run.begin = quiet, as_json, time.perf_counter()


def note(message: str) -> None:
    """Write a note; -q suppresses it."""
    if not _current().quiet:
        _write_line("note", message)


def warn(message: str) -> None:
    """Write a warning, even with -q."""
    plain = _current().as_json or _current().logged
    _write_line("warning", message if plain else f"warning: {message}")


def warn_once(subject: str, message: str) -> None:
    """Write a warning unless this run has warned about the same subject before."""
    warned = _current().warned
    if subject not in warned:
        warned.add(subject)
        warn(message)


def fail(message: str, status: int) -> None:
    """Write the error that ends the run, with its exit status."""
    _write_line("error", message, status=status)


def summarise(message: str) -> None:
    """Set the summary that `finish` writes at the end; -q suppresses it."""
    _current().summary = message


def finish() -> None:
    """Write the summary of a successful run with its time and peak memory."""
    run = _current()
    if run.summary is None or run.quiet:
        return
    figures: dict[str, Any] = {"seconds": round(time.perf_counter() - run.begin, 1)}
    total = figures["seconds"]
    text = f"{total:.0f} s" if total >= SHORT else f"{total:.1f} s"
    if run.counted is not None and run.counted[2] > 0:
        label, count, seconds = run.counted
        figures |= {"what": label, "count": count, "a_second": round(count / seconds, 2)}
        text += f", of which {_duration(seconds)} over {count_of(count, NOUNS[label])}"
    if peak := _peak():
        figures["peak_bytes"] = peak
        text += f", at most {peak / 1e9:.1f} GB"
    _write_line("summary", run.summary if run.as_json else f"{run.summary} ({text})", **figures)


def progress(
    items: Iterable[Item], label: str, total: int | None = None, step: int | Callable[[Item], int] = 1
) -> Iterator[Item]:
    """Yield the items and report progress: a bar on a terminal, else a line from time to time.

    Args:
        total: Number of steps in all, if known.
        step: Steps per item, as a number or as a function of the item; they count once the item is done.
    """
    run = _current()
    bar = _bar() if run.draws else None
    with bar or contextlib.nullcontext():
        task = None if bar is None else bar.add_task(label, total=total)
        begin = reported = time.perf_counter()
        done = 0
        for item in items:
            yield item
            steps = step(item) if callable(step) else step
            done += steps
            if bar is not None and task is not None:
                bar.advance(task, steps)
            now = time.perf_counter()
            if run.as_json and not run.quiet and now - reported >= OFTEN:
                reported = now
                _write_line("progress", label, done=done, total=total, seconds=round(now - begin, 1))
            elif bar is None and not run.quiet and not run.as_json and total and 0 < done < total:
                remaining = (now - begin) / done * (total - done)
                if now - reported >= (EARLY if reported == begin and remaining >= LINES else LINES):
                    reported = now
                    _write_line("note", f"{label}: {done} of {total} ({done / total:.0%}), about {rounded_time(remaining)} to go")
        _count(label, done, time.perf_counter() - begin)


@contextlib.contextmanager
def working(label: str) -> Iterator[None]:
    """Show a spinner on a terminal while the block runs, for work without countable steps."""
    if not _current().draws:
        yield
        return
    from rich import console

    with console.Console(stderr=True).status(label):
        yield


def _write_line(event: str, message: str, **fields: Any) -> None:
    """Write one line to stderr: the message, or a JSON object with it and further fields; or pass the message to logging."""
    run = _current()
    if run.logged:
        _log(event, escape(message))
        return
    line = json.dumps({"event": event, "message": message} | fields, ensure_ascii=False) if run.as_json else escape(message)
    if _writable():
        with contextlib.suppress(OSError):  # its reader has gone, or the disk is full: no reason to end the work
            print(line, file=sys.stderr, flush=True)


def _log(event: str, message: str) -> None:
    """Pass a message to the logger `cliptools`."""
    import logging  # inside, because --help must not wait for it

    logger = logging.getLogger("cliptools")
    if not logger.handlers:
        logger.addHandler(logging.NullHandler())  # else logging itself would write warnings to stderr
    logger.log(logging.WARNING if event == "warning" else logging.INFO, message)


def _writable() -> bool:
    """Return whether stderr is open; if it was closed before the start, print would write to stdout instead."""
    return sys.stderr is not None and not getattr(sys.stderr, "closed", False)


def _count(label: str, done: int, seconds: float) -> None:
    """Record the first pass over items with a label in NOUNS, for the summary."""
    run = _current()
    if label in NOUNS and run.counted is None:
        run.counted = label, done, seconds


def rounded_time(seconds: float) -> str:
    """Return a time as text: `40 s`, `12 min`, `3.5 h`."""
    return f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def _duration(seconds: float) -> str:
    """Return a duration as text: `0.12 s`, `3.4 s`, `22 s`."""
    return f"{seconds:.2g} s" if seconds < SHORT else f"{seconds:.0f} s"


def _peak() -> int | None:
    """Return the peak memory of this process in bytes; None where the system does not report it."""
    unit = PEAK_UNITS.get(platform.system())
    return None if resource is None or unit is None else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def _bar() -> "Progress":
    """Return a progress bar that vanishes when it is done."""
    from rich import console, progress, text

    class Rate(progress.ProgressColumn):
        """Steps per second."""

        def render(self, task: progress.Task) -> text.Text:
            return text.Text(f"{task.speed:.3g}/s" if task.speed else "", style="progress.data.speed")

    columns = (
        progress.TextColumn("{task.description}"),
        progress.BarColumn(),
        progress.MofNCompleteColumn(),
        Rate(),
        progress.TimeElapsedColumn(),
        progress.TimeRemainingColumn(),
    )
    return progress.Progress(*columns, console=console.Console(stderr=True), transient=True)


STEERING = re.compile("[\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069]")
"""Control characters that JSON leaves unescaped although terminals obey them."""
JOINERS = "\u200c\u200d"  # between the parts of a letter or an emoji


def escape(text: str) -> str:
    r"""Return the text as one line: bytes that are not UTF-8 and characters that cannot be printed are escaped.

    >>> print(escape("a\nb\x1b[31m.png"))
    a\nb\x1b[31m.png
    """
    if text.isascii() and text.isprintable():
        return text
    characters = text.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in characters)


def harmless(text: str) -> str:
    """Return the text, of one line or many, without characters that control a terminal or change the writing direction.

    >>> harmless("one\\x1b[2J\\ntwo")
    'one[2J\\ntwo'
    """
    if text.isascii() and text.replace("\n", "").isprintable():
        return text
    return "".join(c for c in text if c == "\n" or c in JOINERS or unicodedata.category(c) not in ("Cc", "Cf", "Cs"))


def harmless_json(text: str) -> str:
    """Return equivalent JSON in which the characters of STEERING are escaped."""
    return STEERING.sub(lambda match: f"\\u{ord(match[0]):04x}", text)


def count_of(count: int, noun: str) -> str:
    """Return a number with its noun, in the plural unless the number is 1.

    >>> count_of(1, "image"), count_of(0, "scene"), count_of(2, "class"), count_of(1200, "entry")
    ('1 image', '0 scenes', '2 classes', '1200 entries')
    """
    return f"{count} {plural(noun) if count != 1 else noun}"


def verb_form(count: int, singular: str, plural: str) -> str:
    """Return the verb form that agrees with a count: `1 of 3 tensors is missing`, `2 … are missing`."""
    return singular if count == 1 else plural


def plural(noun: str) -> str:
    """Return the plural of an English noun, for the nouns that messages use."""
    if noun.endswith(("s", "x", "ch", "sh")):
        return noun + "es"
    return noun[:-1] + "ies" if noun.endswith("y") and noun[-2] not in "aeiou" else noun + "s"
