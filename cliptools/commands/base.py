"""What all commands share: their options, where their output goes, and how they end."""

import contextlib
import errno
import functools
import math
import sys
from collections.abc import Callable, Iterator, Sequence
from contextvars import copy_context
from io import BufferedIOBase, TextIOWrapper
from pathlib import Path
from typing import Any, NoReturn, TypeVar, cast

import click

import cliptools
from cliptools.commands.broken_package import import_failure
from cliptools.commands.completing import Completed, complete_by_name, words
from cliptools.commands.memory_advice import forget_batches, memory_advice
from cliptools.commands.shared_input import refuse_shared_input
from cliptools.commands.variables import by_lines, refuse_plain_variables, variable_of
from cliptools.ground.errors import CliptoolsError, UsageError, out_of_memory
from cliptools.ground.output import silence_stdout, stdout_is_terminal
from cliptools.ground.progress import IN_COMMAND, fail, finish, own_run, speak
from cliptools.ground.template_names import TEMPLATE_SETS

CLASS_TEMPLATES = "imagenet, or emoji for the embedded models"
Function = TypeVar("Function", bound=Callable[..., Any])
CONTEXT = {"help_option_names": ["-h", "--help"], "auto_envvar_prefix": "CLIPTOOLS", "max_content_width": 100}
MAX_PIXELS = 89_478_485  # Pillow's own limit, of a quarter of a GB of RGB
UNSAID = {
    "output", "output_format", "device", "workers", "batch_size", "quiet", "log_json", "paths", "bundle", "memory", "strict",
    "no_cache", "resume", "shard", "centre",
}  # fmt: skip
"""Parameters that do not change the result, so that history leaves them out."""


class Command(click.Command):
    """A command whose environment variables are CLIPTOOLS_<OPTION> (variable_of) and whose errors are one line."""

    def main(self, *args: Any, **extra: Any) -> NoReturn:
        """Run and exit: 0 done, 1 failed, 2 usage; quietly when the reader has gone.

        Whoever calls it in a process that goes on finds the state of that process as it was.
        """
        extra.setdefault("prog_name", self.name)
        with own_run(), _lenient_streams():
            context = copy_context()
            context.run(IN_COMMAND.set, True)
            status = context.run(self._status, *args, **extra)
        sys.exit(status)

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command; a reader that has gone away ends it quietly, before click makes a failure of it.

        Raises:
            CliptoolsError: there is no current folder any more: MKL would end the process by itself, and explain nothing; or
                memory has run out.
            UsageError: a variable of the environment that is not read.
        """
        try:
            Path.cwd()
        except OSError:
            raise CliptoolsError("the folder in which this was started is gone: go to another one (cd)") from None
        refuse_plain_variables(str(self.name), self.params)
        forget_batches()
        try:
            return super().invoke(ctx)
        except BrokenPipeError:
            silence_stdout()
            return 0
        except (RuntimeError, MemoryError) as error:
            if not out_of_memory(error):
                raise
            raise CliptoolsError(memory_advice(error, ctx.params)) from error

    def _status(self, *args: Any, **extra: Any) -> int:
        extra["standalone_mode"] = False
        try:
            status = super().main(*args, **extra)
            if sys.stdout is not None:  # None where it was closed before the start
                sys.stdout.flush()
            return status if isinstance(status, int) else 0
        except click.ClickException as error:
            error.show()
            return error.exit_code
        except click.exceptions.Exit as stop:
            return int(stop.exit_code)
        except (KeyboardInterrupt, click.Abort):
            return self._fail("interrupted", 130)
        except BrokenPipeError:
            silence_stdout()
            return 0
        except UsageError as error:
            return self._fail(str(error), 2)
        except CliptoolsError as error:
            return self._fail(str(error), 1)
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EIO, errno.EDQUOT) and error.filename is None:
                silence_stdout()
            broken = import_failure(error)
            return self._fail(broken or f"{error.filename or 'output'}: {error.strerror or error}", 1)
        except Exception as error:
            if (broken := import_failure(error)) is None:
                raise
            return self._fail(broken, 1)

    def _fail(self, message: str, status: int) -> int:
        fail(f"{self.name}: {message}", status)
        return status


@contextlib.contextmanager
def _lenient_streams() -> Iterator[None]:
    """A sign that the terminal's encoding does not have is no reason to fail: it is replaced."""
    streams = [stream for stream in (sys.stdout, sys.stderr) if isinstance(stream, TextIOWrapper) and stream.errors == "strict"]
    for stream in streams:
        stream.reconfigure(errors="replace")
    try:
        yield
    finally:
        for stream in streams:
            with contextlib.suppress(ValueError, OSError):  # closed, or its reader has gone
                stream.reconfigure(errors="strict")


def command(name: str) -> Callable[[Callable[..., Any]], Command]:
    """Declare a command of the suite: -h, --version, -q, environment variables, errors in one line."""

    def declare(function: Callable[..., Any]) -> Command:
        @functools.wraps(function)
        def spoken(*args: Any, quiet: bool, log_json: bool, **options: Any) -> Any:
            speak(quiet, log_json)
            refuse_shared_input(click.get_current_context())
            with _reading(options.pop("max_pixels", None), options.pop("skip_bad_shards", None)):
                status = function(*args, **options)
            finish()
            return status

        made = click.command(name, cls=Command, context_settings=CONTEXT)(spoken)
        made = click.version_option(cliptools.__version__, prog_name=name, allow_from_autoenv=False)(made)
        made = click.option("--log-json", is_flag=True, help="Notes, progress, warnings and errors as JSON lines.")(made)
        made = click.option("-q", "--quiet", is_flag=True, help="No progress bars and no notes.")(made)
        complete_by_name(made)
        for option in made.params:
            if isinstance(option, click.Option) and option.expose_value:
                option.type = by_lines(option.type) if option.multiple else option.type
                option.envvar = option.envvar or variable_of(option, name)
                option.allow_from_autoenv = False  # click's own name for it may mean another option
        return made

    return declare


@contextlib.contextmanager
def _reading(max_pixels: int | None, skip_bad_shards: bool | None) -> Iterator[None]:
    """For the time of the run: the most pixels of a picture, and what becomes of damaged archives."""
    if max_pixels is None and not skip_bad_shards:
        yield
        return
    from cliptools.ground.listing import SKIP_BAD_SHARDS
    from cliptools.ground.pixel_limit import pixel_limit

    token = SKIP_BAD_SHARDS.set(bool(skip_bad_shards))
    try:
        with pixel_limit(max_pixels):
            yield
    finally:
        SKIP_BAD_SHARDS.reset(token)


def reading_options(function: Function) -> Function:
    """--max-pixels and --skip-bad-shards."""
    text = "Leave out archives that are damaged or empty, where several are named [default: an error]."
    return pixels_option(click.option("--skip-bad-shards", is_flag=True, default=None, help=text)(function))


def pixels_option(function: Function) -> Function:
    """--max-pixels."""
    text = f"Pixels of the largest picture that is read; memory is taken for them [default: {MAX_PIXELS}]."
    return click.option("--max-pixels", type=click.IntRange(1), metavar="N", help=text)(function)


def output_options(*formats: str) -> Callable[[Function], Function]:
    """-o and -f."""

    def add(function: Function) -> Function:
        kind = click.Path(dir_okay=False, path_type=Path, allow_dash=True)
        function = click.option("-o", "--output", type=kind, help="Write here instead of standard output.")(function)
        if formats:
            text = f"What to write [default: table on a terminal, else {formats[0]}]."
            function = click.option("-f", "--format", "output_format", type=click.Choice(formats), help=text)(function)
        return function

    return add


def measuring_options(function: Function) -> Function:
    """--strict, --max-pixels, --skip-bad-shards, --memory, --batch-size and --workers."""
    workers = "Threads that decode images [default: the number of cores, at most 8]."
    for add in (
        click.option("--workers", type=click.IntRange(0), help=workers),
        batch_option,
        click.option(
            "--memory", default=4.0, show_default=True, type=click.FloatRange(0.01), help="GB of statistics held at once."
        ),
        reading_options,
        click.option("--strict", is_flag=True, help="An unreadable or unusable image is an error, not a warning."),
    ):
        function = add(function)
    return function


def batch_option(function: Function) -> Function:
    """--batch-size."""
    text = "Images per forward pass; halved where memory runs out."
    return click.option("--batch-size", default=32, show_default=True, type=click.IntRange(1), help=text)(function)


def model_options(function: Function) -> Function:
    """--device and --precision."""
    precision = click.Choice(["fp32", "bf16", "fp16"])
    function = click.option("--precision", type=precision, default="fp32", show_default=True, help="The model's arithmetic.")(
        function
    )
    return device_option(function)


def template_option(text: str, default: str, *names: str) -> Callable[[Function], Function]:
    """--template, for this text, and what it is by default."""
    what = f"A sentence with {{}} for the {text}; several are averaged. imagenet: CLIP's 80; emoji: the embedded models' own; "
    what += f"none: the bare text [default: {default}]."
    offered = Completed(words(*TEMPLATE_SETS))
    return click.option("--template", *names, "templates", type=offered, multiple=True, metavar="TEXT|NAME", help=what)


def preprocess_option(function: Function) -> Function:
    """--preprocess."""
    text = (
        "Image preprocessing: that of a tag (or of MODEL:TAG), or any of mean, std, interpolation and resize by commas, as "
        "mean=0.5,std=0.5,resize=squash; mean, std also as 0.48/0.46/0.41, openai, imagenet or inception "
        "[default: the tag's, or that of a config beside the weights, else OpenAI's]."
    )
    return click.option("--preprocess", metavar="TAG|SETTINGS", help=text)(function)


def device_option(function: Function) -> Function:
    """--device."""
    return click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda, cuda:1, mps.")(function)


def choose_format(asked: str | None, output: Path | None, default: str) -> str:
    """The format asked for; else what the file's ending says; else a table on a terminal; else the default."""
    if asked:
        return asked
    if output is not None and str(output) != "-":
        return {".jsonl": "jsonl", ".safetensors": "safetensors", ".txt": "table"}.get(output.suffix, default)
    return "table" if stdout_is_terminal() else default


def open_input(path: Path | None, what: str, option: str = "a file") -> tuple[BufferedIOBase, str]:
    """The file named or standard input, and what to call it in messages.

    Raises:
        UsageError: standard input is a terminal, so nothing would ever come.
    """
    if path is not None and str(path) != "-":
        try:
            return path.open("rb"), str(path)
        except OSError as error:
            raise CliptoolsError(f"{path}: {error.strerror}") from None
    if sys.stdin is None or sys.stdin.closed or sys.stdin.isatty():
        raise UsageError(f"expected {what} on standard input: pipe it in or name {option}")
    return cast(BufferedIOBase, sys.stdin.buffer), "standard input"


def history_arguments(context: click.Context, **changed: Any) -> dict[str, Any]:
    """The arguments that change a command's result, as history keeps them."""
    kept = {key: value for key, value in context.params.items() if key not in UNSAID and value is not None}
    return {key: _plain(value) for key, value in (kept | changed).items()}


def _plain(value: Any) -> Any:
    if isinstance(value, Path):
        return str(value)
    return [_plain(v) for v in value] if isinstance(value, Sequence) and not isinstance(value, str) else value


def parse_percentage(text: str, what: str) -> float:
    """`20%` as 0.2.

    Raises:
        UsageError: not a percentage, or not above 0 and at most 100.
    """
    number, percent, rest = text.strip().partition("%")
    try:
        share = float(number) / 100
    except ValueError:
        share = math.nan
    if not percent or rest or not 0 < share <= 1:
        raise UsageError(f"{what} {text}: expected a percentage like 20%")
    return share


def parse_layers(text: str, what: str = "--layers") -> tuple[int, ...]:
    """`8-10,11` as (8, 9, 10, 11).

    Raises:
        UsageError: not a list of numbers and ranges.
    """
    chosen: set[int] = set()
    for part in text.split(","):
        first, dash, last = part.strip().partition("-")
        if not first.isdigit() or (dash and not last.isdigit()):
            raise UsageError(f"{what} {text}: expected layers like 8-10 or 5,6, found {part!r}")
        chosen.update(range(int(first), int(last if dash else first) + 1))
    return tuple(sorted(chosen))
