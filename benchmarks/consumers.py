"""Measure images per second of clip-concepts, segment, shift and ablate and of the plain forward pass, and stages of a pipeline.

    python benchmarks/consumers.py
    python benchmarks/consumers.py --models ViT-B-32 --counts 32 128 --rounds 2 --more

Every figure is from a separate process on the same files: scenes of one emoji for the embedded models, and pictures like
photographs for other models, which have random weights (clip-ablate rejects these, because their accuracy is at chance). The cost
per image is the slope between a short and a long run. The table of stages has the seconds of one run of
`clip-effects | clip-decompose` on the embedded model; each moment belongs to exactly one stage.
"""

import argparse
import contextlib
import importlib
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from photos import link, make_photos, make_scenes
from plain import EMBEDDED, load, plain, weights
from runs import Log, Row, arguments, compared, conclude, in_own_process, log_of, say, slopes, tool

MINUTES = 15
COUNTS = {"emoji-vit2": (200, 1200), "emoji-rn2": (200, 1200), "ViT-B-32": (32, 128), "RN50": (16, 64)}
COMMANDS: dict[str, list[str]] = {
    "concepts": [],
    "segment": ["--text", "cat"],
    "shift": ["--concept", "cat"],
    "ablate": [],
}
STAGES = {
    "effects": [
        ("cliptools.models.load", "load_model", "loading the model"),
        ("cliptools.images.loader", "load_batches", "drawing scenes"),
        ("cliptools.streaming.measure", "measure", "statistics before the first and after the last image"),
        ("cliptools.streaming.measure", "take_in", "forward passes and statistics"),
        ("cliptools.cli.run.effects", "emit", "writing"),
    ],
    "decompose": [
        ("cliptools.models.load", "load_model", "loading the model"),
        ("cliptools.models.text_encoder", "encode_pool", "text embeddings"),
        ("cliptools.analysis.pursuit", "pursuits", "pursuit"),
        ("cliptools.cli.run.decompose", "emit", "writing"),
    ],
}
"""Functions by module and name, and the names of their stages; time in a nested stage belongs to the nested stage only."""


class Stages:
    """Seconds by stage; time in nested stages belongs to the innermost stage."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self.within = ["the rest"]
        self.since = time.perf_counter()

    def _turn(self) -> None:
        now = time.perf_counter()
        self.seconds[self.within[-1]] = self.seconds.get(self.within[-1], 0.0) + now - self.since
        self.since = now

    @contextlib.contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Add the time of the block to a stage."""
        self._turn()
        self.within.append(name)
        try:
            yield
        finally:
            self._turn()
            self.within.pop()

    def watch(self, module: str, function: str, name: str) -> None:
        """Count the time of a function, or of a generator's steps, as a stage."""
        where = importlib.import_module(module)
        setattr(where, function, self._watched(getattr(where, function), name))

    def _watched(self, real: Callable[..., Any], name: str) -> Callable[..., Any]:
        def steps(generator: Iterator[Any]) -> Iterator[Any]:
            while True:
                with self.stage(name):
                    step = next(generator, self)
                if step is self:
                    return
                yield step

        def watched(*call_arguments: Any, **options: Any) -> Any:
            with self.stage(name):
                result = real(*call_arguments, **options)
            return steps(result) if isinstance(result, Iterator) else result

        return watched


def stages(command: str, folder: Path, count: int) -> None:
    """Run one command of the pipeline in this process, and print the seconds of its stages."""
    watch = Stages()
    with watch.stage("importing libraries"):
        importlib.import_module("cliptools.library_patches").ensure_torchvision()
        importlib.import_module("open_clip")
    for module, function, name in STAGES[command]:
        watch.watch(module, function, name)
    effects, neurons = str(folder / "effects.safetensors"), str(folder / "neurons.safetensors")
    words = {"effects": ["--limit", str(count), "-o", effects], "decompose": [effects, "--no-cache", "-o", neurons]}[command]
    try:
        importlib.import_module(f"cliptools.cli.{command}").main([*words, "-q"])
    except SystemExit as stop:
        if stop.code:
            raise
    with watch.stage("the end"):
        pass
    say(stages=watch.seconds)


def stage_rows(count: int) -> list[Row]:
    """Return the stages of both commands, which run one after the other."""
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as name:
        for command in STAGES:
            process = in_own_process(__file__, work=f"stages {command}", folder=name, count=count)
            spent = {stage: seconds for stage, seconds in process["stages"].items() if stage != "the end"}
            spent["starting and ending Python"] = process["seconds"] - sum(spent.values())
            rows += [{"command": f"clip-{command}", "stage": stage, "seconds": round(value, 2)} for stage, value in spent.items()]
            rows.append({"command": f"clip-{command}", "stage": "all", "seconds": round(process["seconds"], 2)})
    return rows


def files_for(model: str, counts: tuple[int, int], folder: Path) -> tuple[Path, Path]:
    """Return folders with few and with many images."""
    drawn = folder / "drawn"
    if model in EMBEDDED:
        files = make_scenes(drawn, min(526, counts[1]))
    else:
        drawn.mkdir()
        files = make_photos(drawn, counts[1])
    few, many = (link(files, count, folder / str(count) / "images", nested=model in EMBEDDED) for count in counts)
    return few, many


def speed(options: argparse.Namespace, log: Log) -> None:
    """Measure a short and a long run of every command, in turns."""
    for model in options.models:
        counts = tuple(options.counts or COUNTS[model])
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            folders = files_for(model, (counts[0], counts[1]), folder)
            effects, neurons = folder / "effects.safetensors", folder / "neurons.safetensors"
            tool("effects", folders[0], "--model", model, *weights(model), "--keep", "20%", "-q", "-o", effects)
            tool("decompose", effects, "--m", 8, "--pool", "emoji", "-q", "-o", neurons)
            names = [each for each in options.commands if each != "ablate" or model in EMBEDDED]
            for number in range(options.rounds):
                for setting in ("plain", *names):
                    short, long = (one(setting, model, where, neurons, options) for where in folders)
                    line = {"round": number + 1, "model": model, "batch": options.batch_size, "images": counts[1]}
                    log.keep(line | {"setting": setting} | slopes(short, long, *counts))


def one(setting: str, model: str, folder: Path, bundle: Path, options: argparse.Namespace) -> Row:
    """Measure a process that reads all images of a folder."""
    if setting == "plain":
        count = sum(1 for path in folder.rglob("*") if path.is_file())
        return in_own_process(__file__, work="plain", folder=folder, count=count, models=model, batch_size=options.batch_size)
    words = [folder, "--bundle", bundle, *COMMANDS[setting], "--batch-size", options.batch_size, "--device", "cpu", "-q"]
    ran = tool(setting, *words, "-f", "jsonl")
    return {"seconds": ran.seconds, "cpu": ran.cpu}


def parse() -> argparse.Namespace:
    """Return the options."""
    parser = arguments(__doc__, log=True)
    parser.add_argument("--models", nargs="+", default=["emoji-vit2", "ViT-B-32"], choices=list(COUNTS))
    parser.add_argument("--commands", nargs="*", default=list(COMMANDS), choices=list(COMMANDS))
    parser.add_argument("--counts", nargs=2, type=int, metavar=("FEW", "MANY"), help="images of the two runs")
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--scenes", type=int, default=2000, help="scenes of the pipeline with stages; 0 leaves it out")
    for name, kind in (("--work", str), ("--folder", Path), ("--count", int)):
        parser.add_argument(name, type=kind, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.quick:
        options.models, options.counts, options.rounds, options.scenes = ["emoji-vit2"], (24, 120), 1, 100
    return options


def main() -> None:
    options = parse()
    if options.work == "plain":
        plain(options.folder, options.count, options.batch_size, load(options.models[0]))
        say()
        return
    if options.work:
        stages(options.work.removeprefix("stages "), options.folder, options.count)
        return
    log = log_of(options, "consumers")
    tables: dict[str, list[Row]] = {}
    if not options.report:
        with tempfile.TemporaryDirectory() as cache:
            os.environ["CLIPTOOLS_CACHE"] = cache
            speed(options, log)
            if options.scenes:
                for row in stage_rows(options.scenes):
                    log.keep(row | {"scenes": options.scenes})
    tables["speed"] = compared(log.lines, ("model", "batch"))
    for row in tables["speed"]:
        row["images a second"] = round(1000 / row["ms an image"], 1) if row["ms an image"] > 0 else None
    tables["stages of clip-effects | clip-decompose, emoji-vit2"] = [line for line in log.lines if "stage" in line]
    conclude(options, "consumers", {"device": "cpu"}, tables)


if __name__ == "__main__":
    main()
