"""Run clip-effects in shards on Ray, then clip-merge: on this machine, or on a cluster.

    python ray_effects.py --shards 8 --cpus 2 -o effects.safetensors -- photos/ --layers 5-6
    python ray_effects.py --shards 256 --address auto --gpus-per-shard 1 --cpus-per-shard 8 -o effects.safetensors -- \\
        'laion/{00000..00413}.tar' --model ViT-L-14-quickgelu --pretrained openai --precision bf16

The arguments after -- are passed to clip-effects. All nodes see the same files under the same names (a shared file system with
images, weights, partials, bundle), and have cliptools and this version of Ray installed. A shard is the command itself, run
inside a Ray worker. If a worker is killed, only its shard is lost, and Ray starts this shard again. A shard that fails with an
error ends the run, because it would fail again. The same command continues an interrupted run and keeps existing partials.
"""

import contextlib
import importlib
import io
import logging
import os
import secrets
import shlex
import sys
import tempfile
import traceback
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import click

NAME = "ray_effects.py"
os.environ["RAY_USAGE_STATS_ENABLED"] = "0"


class Ended(NamedTuple):
    """The result of a command."""

    code: int
    said: str
    """Its standard error."""


class Resources(NamedTuple):
    """Resources of each shard."""

    cpus: float
    gpus: float
    retries: int


def run(command: str, arguments: Sequence[str], folder: str, workers: int) -> Ended:
    """Run clip-COMMAND in this process, which Ray ends afterwards, so that its memory and its GPU are released."""
    os.chdir(folder)
    os.environ.setdefault("CLIPTOOLS_WORKERS", str(workers))
    said = io.StringIO()
    with contextlib.redirect_stderr(said):
        try:
            importlib.import_module(f"cliptools.cli.{command.replace('-', '_')}").main(
                list(arguments), prog_name=f"clip-{command}"
            )
            code = 0
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else 0
        except Exception:
            traceback.print_exc()
            code = 1
    return Ended(code, said.getvalue())


@contextlib.contextmanager
def cluster(address: str | None, cpus: int | None, each: Resources) -> Iterator[None]:
    """Connect to the cluster at an address, or start a local one for the duration, without dashboard and with its own token."""
    if address is None:
        os.environ.setdefault("RAY_AUTH_MODE", "token")
        os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))  # otherwise Ray writes a token to the home folder
        os.environ.setdefault("RAY_worker_niceness", "0")  # the default is 15, for background work
    import ray

    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    with contextlib.ExitStack() as stack:
        if address is None:
            logs = stack.enter_context(tempfile.TemporaryDirectory(prefix="ray-", ignore_cleanup_errors=True))
            stack.callback(ray.shutdown)
            ray.init("local", num_cpus=cpus, include_dashboard=False, _temp_dir=logs, **quiet)
            for option, resource, asked in (("--cpus-per-shard", "CPU", each.cpus), ("--gpus-per-shard", "GPU", each.gpus)):
                if asked > (there := ray.cluster_resources().get(resource, 0)):
                    fail(f"{option} {asked:g}: here are {there:g}", 2)
        else:
            stack.callback(ray.shutdown)
            ray.init(address, **quiet)
        yield


def measure(arguments: Sequence[str], shards: int, parts: Path, output: Path, merge: Sequence[str], each: Resources) -> None:
    """Run all shards, as many at a time as the resources allow, and merge them."""
    import ray

    def start(name: str, command: str, given: Sequence[str]) -> Any:
        task = ray.remote(max_calls=1)(run).options(name=name, num_cpus=each.cpus, num_gpus=each.gpus, max_retries=each.retries)
        return task.remote(command, given, str(Path.cwd()), max(1, int(each.cpus)))

    def result(task: Any, what: str) -> Ended:
        try:
            ended: Ended = ray.get(task)
        except ray.exceptions.RayError as error:
            why = f"its process was lost, also after {each.retries} retries ({type(error).__name__})"
            fail(f"{what}: {why}; finished shards are kept, and the same command continues the run")
        if ended.code:
            fail(f"{what}: {ended.said.strip().splitlines()[-1] if ended.said.strip() else 'failed'}", ended.code)
        return ended

    files = [parts / f"part-{i}-of-{shards}.safetensors" for i in range(1, shards + 1)]
    tasks = {}
    for i, file in enumerate(files, 1):
        task = start(f"shard-{i}", "effects", [*arguments, "--shard", f"{i}/{shards}", "--resume", "-o", str(file)])
        tasks[task] = f"shard {i} of {shards}"
    waiting = list(tasks)
    while waiting:
        (task, *_), waiting = ray.wait(waiting, num_returns=1)
        ended = result(task, tasks[task])
        say(ended.said, f"[{shards - len(waiting)}/{shards}] ")
    say(result(start("merge", "merge", [*map(str, files), *merge, "-o", str(output)]), "merge").said)


def say(text: str, before: str = "") -> None:
    """Print a command's messages."""
    for line in text.splitlines():
        click.echo(before + line, err=True)


def fail(message: str, code: int = 1) -> None:
    """Print one line and exit."""
    click.echo(f"{NAME}: {message}", err=True)
    sys.exit(code)


@click.command(
    context_settings={"help_option_names": ["-h", "--help"], "show_default": True},
    epilog="The docstring of this script has more.",
)
@click.argument("arguments", nargs=-1, required=True, type=click.UNPROCESSED, metavar="-- PATH... [OPTIONS OF CLIP-EFFECTS]")
@click.option("--shards", required=True, type=click.IntRange(1), help="Number of shards: at least as many as run at once.")
@click.option("-o", "--output", required=True, type=click.Path(dir_okay=False, path_type=Path), help="The bundle.")
@click.option(
    "--parts", type=click.Path(file_okay=False, path_type=Path), help="Folder of the partials.  [default: beside the bundle]"
)
@click.option("--address", envvar="RAY_ADDRESS", help="Address of a cluster: auto or HOST:PORT.  [default: start one here]")
@click.option("--cpus", type=click.IntRange(1), help="Number of cores on this machine, without --address.  [default: all]")
@click.option(
    "--cpus-per-shard",
    default=1.0,
    type=click.FloatRange(0, min_open=True),
    help="Number of cores per shard, for decoding images.",
)
@click.option(
    "--gpus-per-shard", default=0.0, type=click.FloatRange(0), help="Number of GPUs per shard; 0.5 runs two shards on one GPU."
)
@click.option("--retries", default=3, type=click.IntRange(0), help="Number of restarts of a shard whose process was lost.")
@click.option("--merge", default="", metavar="TEXT", help="Options of clip-merge, for example '--images photos/ --keep 20%'.")
def main(
    arguments: tuple[str, ...],
    shards: int,
    output: Path,
    parts: Path | None,
    address: str | None,
    cpus: int | None,
    cpus_per_shard: float,
    gpus_per_shard: float,
    retries: int,
    merge: str,
) -> None:
    """Run clip-effects in shards on Ray, and clip-merge at the end."""
    each = Resources(cpus_per_shard, gpus_per_shard, retries)
    parts = (parts or output.with_suffix(".parts")).absolute()
    parts.mkdir(parents=True, exist_ok=True)
    with cluster(address, cpus, each):
        measure(arguments, shards, parts, output.absolute(), shlex.split(merge), each)


if __name__ == "__main__":
    main()
