"""The frame of every command: shared options and their dataclasses, streams, errors in one line, exit codes.

A command is declared with `command(name)` in cli/X.py, which holds its options and help texts. Its `main` makes a frozen
dataclass of them (a subclass of `Options`) and passes it to `run` in cli/run/X.py, which imports what the work needs. This file
imports neither torch nor numpy nor rich, so that --help is quick.
"""

import contextlib
import errno
import functools
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from contextvars import copy_context
from dataclasses import dataclass, fields
from io import BufferedIOBase
from pathlib import Path
from typing import Any, NoReturn, TypeVar, cast

import click

import cliptools
from cliptools.cli.completion import Completed, complete_by_name, words
from cliptools.cli.surroundings import (
    by_lines,
    forget_batches,
    import_failure,
    lenient_streams,
    memory_advice,
    refuse_plain_variables,
    refuse_shared_and_replaced_input,
    variable_of,
    with_content,
)
from cliptools.console import IN_COMMAND, OWN_PROCESS, fail, finish, own_run, set_output
from cliptools.errors import CliptoolsError, UsageError, out_of_memory
from cliptools.io.files import silence_stdout, stdout_is_terminal
from cliptools.text import TEMPLATE_SETS

CLASS_TEMPLATES = "imagenet, or emoji for the embedded models"
Function = TypeVar("Function", bound=Callable[..., Any])
CONTEXT = {"help_option_names": ["-h", "--help"], "auto_envvar_prefix": "CLIPTOOLS", "max_content_width": 100}
MAX_PIXELS = 89_478_485  # Pillow's own limit: RGB of a quarter of a GB
NOT_IN_HISTORY = {
    "output", "output_format", "device", "workers", "batch_size", "quiet", "log_json", "paths", "bundle", "memory", "strict",
    "no_cache", "resume", "shard", "centre", "per_image",
}  # fmt: skip
"""Parameters that do not change the result: history leaves them out."""
FORMATS = ("safetensors", "jsonl", "table")
"""Formats of a bundle."""
ORDERS = ("index", "clear", "norm", "explained", "residual")
"""Orders of a bundle's units."""
CLEAR_HELP = "clear puts units first that act on images of their first written word: by agreement, or without it by explained"


@dataclass(frozen=True, kw_only=True)
class Options:
    """Parameters of a command under click's names. Every command has a subclass with all of its parameters."""


@dataclass(frozen=True, kw_only=True)
class Output(Options):
    """Options of output_options: -o and -f."""

    output: Path | None
    output_format: str | None


@dataclass(frozen=True, kw_only=True)
class Reading(Options):
    """Options of reading_options: --max-pixels and --skip-bad-shards, which `command` puts into effect."""

    max_pixels: int | None
    skip_bad_shards: bool | None


@dataclass(frozen=True, kw_only=True)
class Sampling(Options):
    """--limit, --sample and --seed: which images of a list are taken."""

    limit: int | None
    sample: int | None
    seed: int


@dataclass(frozen=True, kw_only=True)
class Batching(Reading):
    """--strict, --batch-size and --workers, for commands that run a model over images."""

    strict: bool
    batch_size: int
    workers: int | None


@dataclass(frozen=True, kw_only=True)
class Measuring(Batching):
    """Options of measuring_options, for commands that keep statistics of many images."""

    memory: float


class Command(click.Command):
    """A command with environment variables CLIPTOOLS_<OPTION> (see variable_of) and errors in one line."""

    def main(self, *args: Any, **extra: Any) -> NoReturn:
        """Run the command and exit with 0 (done), 1 (failed) or 2 (usage error); if the reader has gone, without a message.

        The state of the process is restored, for callers that catch the exit and continue.
        """
        extra.setdefault("prog_name", self.name)
        with own_run(), lenient_streams():
            context = copy_context()
            context.run(IN_COMMAND.set, True)
            context.run(OWN_PROCESS.set, not args and extra.get("args") is None)
            status = context.run(self._status, *args, **extra)
        sys.exit(status)

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command, and end without a message when the reader has gone, before click reports a failure.

        Raises:
            CliptoolsError: The current folder was removed (MKL would end the process without a reason), or memory has run out.
            UsageError: An environment variable is set that no command reads.
        """
        try:
            Path.cwd()
        except OSError:
            raise CliptoolsError("the current folder is gone: change to another one (cd)") from None
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
            return self._fail(import_failure(error) or f"{error.filename or 'output'}: {error.strerror or error}", 1)
        except Exception as error:
            if (message := import_failure(error)) is None:
                raise
            return self._fail(message, 1)

    def _fail(self, message: str, status: int) -> int:
        fail(f"{self.name}: {message}", status)
        return status


def command(name: str) -> Callable[[Callable[..., Any]], Command]:
    """Declare a command of the suite, with -h, --version, -q, --log-json, environment variables and errors in one line."""

    def declare(function: Callable[..., Any]) -> Command:
        @functools.wraps(function)
        def run_command(*args: Any, quiet: bool, log_json: bool, **options: Any) -> Any:
            set_output(quiet, log_json)
            refuse_shared_and_replaced_input(click.get_current_context())
            with _reading(options.get("max_pixels"), options.get("skip_bad_shards")):
                status = function(*args, **options)
            finish()
            return status

        declared = click.command(name, cls=Command, context_settings=CONTEXT)(run_command)
        declared = click.version_option(cliptools.__version__, prog_name=name, allow_from_autoenv=False)(declared)
        declared = click.option("--log-json", is_flag=True, help="Write messages and progress as JSON lines.")(declared)
        declared = click.option("-q", "--quiet", is_flag=True, help="Show no progress bars and no notes.")(declared)
        complete_by_name(declared)
        for option in declared.params:
            if isinstance(option, click.Option) and option.expose_value:
                option.type = by_lines(option.type) if option.multiple else with_content(option.type)
                option.envvar = option.envvar or variable_of(option, name)
                option.allow_from_autoenv = False  # the name click would give the variable may belong to another option
        return declared

    return declare


@contextlib.contextmanager
def _reading(max_pixels: int | None, skip_bad_shards: bool | None) -> Iterator[None]:
    """Put --max-pixels and --skip-bad-shards into effect for the time of the run."""
    if max_pixels is None and not skip_bad_shards:
        yield
        return
    # Inside, because they import Pillow and numpy, which --help must not wait for.
    from cliptools.images import formats, listing

    token = listing.SKIP_BAD_SHARDS.set(bool(skip_bad_shards))
    try:
        with formats.pixel_limit(max_pixels):
            yield
    finally:
        listing.SKIP_BAD_SHARDS.reset(token)


def reading_options(function: Function) -> Function:
    """Add --max-pixels and --skip-bad-shards."""
    text = "Skip damaged or empty archives if several are named [default: stop with an error]."
    return pixels_option(click.option("--skip-bad-shards", is_flag=True, default=None, help=text)(function))


def pixels_option(function: Function) -> Function:
    """Add --max-pixels."""
    text = f"Largest picture that is read, in pixels; reading a picture takes memory for all its pixels [default: {MAX_PIXELS}]."
    return click.option("--max-pixels", type=click.IntRange(1), metavar="N", help=text)(function)


def output_options(*formats: str) -> Callable[[Function], Function]:
    """Add -o, and -f with these formats, if any."""

    def add(function: Function) -> Function:
        kind = click.Path(dir_okay=False, path_type=Path, allow_dash=True)
        function = click.option("-o", "--output", type=kind, help="File to write instead of standard output.")(function)
        if formats:
            text = f"Format of the output [default: by the name of the -o file; table on a terminal; else {formats[0]}]."
            function = click.option("-f", "--format", "output_format", type=click.Choice(formats), help=text)(function)
        return function

    return add


def batching_options(function: Function) -> Function:
    """Add --strict, --max-pixels, --skip-bad-shards, --batch-size and --workers."""
    workers = "Number of threads that decode images [default: the number of cores, at most 8]."
    function = batch_option(click.option("--workers", type=click.IntRange(0), help=workers)(function))
    text = "An unreadable or unusable image is an error, not a warning."
    return click.option("--strict", is_flag=True, help=text)(reading_options(function))


def measuring_options(function: Function) -> Function:
    """Add the options of batching_options, and --memory."""
    memory = (
        "Memory for statistics, in GB. clip-effects puts larger statistics into temporary files ($TMPDIR or /var/tmp), or, on an "
        "accelerator or without room on the disk, takes further passes over the images."
    )
    added = click.option("--memory", default=4.0, show_default=True, type=click.FloatRange(0.01), help=memory)(function)
    return batching_options(added)


def batch_option(function: Function) -> Function:
    """Add --batch-size."""
    text = "Number of images per forward pass; halved if memory runs out."
    return click.option("--batch-size", default=32, show_default=True, type=click.IntRange(1), help=text)(function)


def same_names_option(function: Function) -> Function:
    """Add --same-names."""
    text = "Images with the names of the bundle's images are other pictures: use them."
    return click.option("--same-names", is_flag=True, help=text)(function)


def model_options(function: Function) -> Function:
    """Add --device and --precision."""
    precision = click.Choice(["fp32", "bf16", "fp16"])
    function = click.option(
        "--precision", type=precision, default="fp32", show_default=True, help="Floating-point type of the model."
    )(function)
    return device_option(function)


def template_option(text: str, default: str, *names: str) -> Callable[[Function], Function]:
    """Add --template.

    Args:
        text: Noun for what takes the place of `{}`.
        default: Description of the templates that are used without the option.
        names: Other names of the option.
    """
    text_help = f"Sentence with {{}} in place of the {text}; repeatable: embeddings are averaged. imagenet: CLIP's 80; emoji: "
    text_help += f"those of the embedded models; none: the text alone [default: {default}]."
    offered = Completed(words(*TEMPLATE_SETS))
    return click.option("--template", *names, "templates", type=offered, multiple=True, metavar="TEXT|NAME", help=text_help)


def preprocess_option(function: Function) -> Function:
    """Add --preprocess."""
    text = (
        "Image preprocessing: that of a tag (or of MODEL:TAG), or values of mean, std, interpolation and resize, separated by "
        "commas, as mean=0.5,std=0.5,resize=squash; mean and std also as 0.48/0.46/0.41, openai, imagenet or inception "
        "[default: that of the tag, or of a config beside the weights, else OpenAI's]."
    )
    return click.option("--preprocess", metavar="TAG|SETTINGS", help=text)(function)


def device_option(function: Function) -> Function:
    """Add --device."""
    return click.option(
        "--device", default="auto", show_default=True, help="Device to compute on: auto, cpu, cuda, cuda:1, mps."
    )(function)


def choose_format(option: str | None, output: Path | None, default: str) -> str:
    """Return the format of --format, else that of the output file's extension, else a table on a terminal, else the default."""
    if option:
        return option
    if output is not None and str(output) != "-":
        return {".jsonl": "jsonl", ".safetensors": "safetensors", ".txt": "table"}.get(output.suffix, default)
    return "table" if stdout_is_terminal() else default


def open_input(path: Path | None, content: str, option: str = "a file") -> tuple[BufferedIOBase, str]:
    """Open the named file or standard input, and return it with its name for messages.

    Args:
        content: Kind of the expected data, for the message.
        option: Option or argument that names a file, for the message.

    Raises:
        CliptoolsError: The file cannot be opened.
        UsageError: Standard input is closed or a terminal, so that no data would arrive.
    """
    if path is not None and str(path) != "-":
        try:
            return path.open("rb"), str(path)
        except OSError as error:
            raise CliptoolsError(f"{path}: {error.strerror}") from None
    if sys.stdin is None or sys.stdin.closed or sys.stdin.isatty():
        raise UsageError(f"expected {content} on standard input: pipe it in or name {option}")
    return cast(BufferedIOBase, sys.stdin.buffer), "standard input"


def history_arguments(options: Options, **replaced: Any) -> dict[str, Any]:
    """Return the arguments that change a command's result, as a bundle's header records them.

    Args:
        options: The command's dataclass.
        replaced: Values to record instead of those of the options.
    """
    values = {field.name: getattr(options, field.name) for field in fields(options)}
    recorded = {key: value for key, value in values.items() if key not in NOT_IN_HISTORY and value is not None}
    return {key: _plain(value) for key, value in (recorded | replaced).items()}


def _plain(value: Any) -> Any:
    if isinstance(value, Path):
        return str(value)
    return [_plain(v) for v in value] if isinstance(value, Sequence) and not isinstance(value, str) else value


def parse_percentage(text: str, option: str) -> float:
    """Parse a percentage: `20%` gives 0.2.

    Args:
        option: Name of the option, for the message.

    Raises:
        UsageError: The text is not a percentage above 0 and at most 100.
    """
    number, percent, surplus = text.strip().partition("%")
    try:
        share = float(number) / 100
    except ValueError:
        share = 0.0
    if not percent or surplus or not 0 < share <= 1:
        raise UsageError(f"{option} {text}: expected a percentage like 20%")
    return share


def parse_layers(text: str, option: str = "--layers") -> tuple[int, ...]:
    """Parse a list of layers: `8-10,11` gives (8, 9, 10, 11).

    Args:
        option: Name of the option, for the message.

    Raises:
        UsageError: The text is not a list of numbers and ascending ranges.
    """
    layers: set[int] = set()
    for part in text.split(","):
        ends = re.fullmatch(r"(\d{1,4})(?:-(\d{1,4}))?", part.strip())
        span = range(int(ends[1]), int(ends[2] or ends[1]) + 1) if ends else range(0)
        if not span:
            raise UsageError(f"{option} {text}: expected layers like 8-10 or 5,6, found {part!r}")
        layers.update(span)
    return tuple(sorted(layers))
