"""Measure the cost of clip-judge relative to a plain forward pass, whole runs in turns in one process, and its peak memory.

    python benchmarks/judge.py                                       # emoji-vit2 and ViT-B-32
    python benchmarks/judge.py --models ViT-B-32 --counts 256 --rounds 2 --more

Both sides have the loaded model and read the same files; clip-judge then chooses and scores words of all units of the default
layers among the names of emoji. Its text embeddings are in the cache. Seconds are processor time of all threads, which other
processes disturb less than elapsed time. ViT-B-32 has random weights and reads JPEG files, emoji-vit2 scenes of one emoji. The
peak is the largest resident set of a process of its own, with emoji-vit2; `images` are files, `units` those of more layers.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from photos import link, make_photos, make_scenes
from plain import EMBEDDED, load, plain, weights
from runs import Log, Row, alternating, arguments, conclude, in_own_process, log_of, say, tool

MINUTES = 8
COUNTS = {"emoji-vit2": 2000, "ViT-B-32": 192}
GOAL = 1.15
MEASURED = 64  # images of a bundle
LAYERS = {768: "6", 1536: "5-6", 5376: "0-6"}  # of emoji-vit2, by units
MEMORY_IMAGES = (500, 2000, 5000)


def work(options: argparse.Namespace) -> None:
    """Run one measured process: plain passes and judgements in turns, over the same files with the same loaded model."""
    import cliptools as ct

    model, count, batch = load(options.models[0]), options.counts, options.batch_size
    bundle = ct.read(options.bundle)

    def judge(limit: int) -> None:
        ct.judge(bundle, str(options.folder), same_names=True, limit=limit, model=model, batch_size=batch)

    judge(8)  # imports, and text embeddings into the cache
    measures = {"plain": lambda: plain(options.folder, count, batch, model), "ours": lambda: judge(count)}
    say(**alternating(options.rounds, {name: cpu_of(measure) for name, measure in measures.items()}), units=bundle.units)


def cpu_of(function: Callable[[], None]) -> Callable[[], float]:
    """Return a function that calls another one and returns its processor seconds."""

    def measure() -> float:
        start = time.process_time()
        function()
        return time.process_time() - start

    return measure


def make_bundle(model: str, folder: Path, output: Path, *more: object) -> Path:
    """Write a bundle of the first files of a folder, with words."""
    effects = output.with_name(f"effects-{output.name}")
    tool("effects", folder, "--model", model, *weights(model), "--limit", MEASURED, *more, "-q", "-o", effects)
    tool("decompose", effects, "--pool", "emoji", "--m", 8, "-q", "-o", output)
    return output


def line_of(process: Row, model: str, images: int, batch: int) -> Row:
    """Return the figures of a process: processor time per image of both sides, and the ratio of their sums."""
    ours, before = process["ours"], process["plain"]
    return {
        "model": model, "images": images, "batch": batch, "units": process["units"], "goal": GOAL,
        "plain cpu ms an image": round(1000 * statistics.mean(before) / images, 2),
        "cpu ms an image": round(1000 * statistics.mean(ours) / images, 2),
        "ratio": round(sum(ours) / sum(before), 3),
        "ratios": [round(after / first, 3) for first, after in zip(before, ours, strict=True)],
        "peak GB": round(process["peak GB"], 2),
    }  # fmt: skip


def files_of(model: str, count: int, folder: Path) -> Path:
    """Write the files that a model reads, and return their folder."""
    if model in EMBEDDED:
        return link(make_scenes(folder / "drawn", min(526, count)), count, folder / "scenes")
    photos = folder / "photos"
    photos.mkdir(parents=True)
    make_photos(photos, count)
    return photos


def measure_cost(folder: Path, options: argparse.Namespace, log: Log) -> None:
    """Measure every model in a process of its own."""
    for model in options.models:
        count = options.counts or COUNTS[model]
        files = files_of(model, count, folder / model)
        bundle = make_bundle(model, files, folder / model / "words.safetensors")
        size = {"counts": count, "batch_size": options.batch_size, "rounds": options.rounds}
        process = in_own_process(__file__, work=1, folder=files, bundle=bundle, models=model, **size)
        log.keep(line_of(process, model, count, options.batch_size))


def measure_memory(folder: Path, options: argparse.Namespace, log: Log) -> None:
    """Measure peaks by number of images and of units."""
    counts, layers = (MEMORY_IMAGES[:1], {768: "6"}) if options.quick else (MEMORY_IMAGES, LAYERS)
    files = files_of("emoji-vit2", max(counts), folder / "memory")
    for units, chosen in layers.items():
        bundle = make_bundle("emoji-vit2", files, folder / f"{units}.safetensors", "--layers", chosen)
        for count in counts if units == 768 else counts[:1]:
            ran = tool("judge", files, "--same-names", "--limit", count, "--bundle", bundle, "-q", "-o", folder / "judged.jsonl")
            log.keep({"memory of": "emoji-vit2", "images": count, "units": units, "peak GB": round(ran.peak, 3)})


def tables(log: Log) -> dict[str, list[Row]]:
    """Return the last line of each case."""
    cost = {(line["model"], line["images"]): line for line in log.lines if "ratio" in line}
    memory = {(line["images"], line["units"]): line for line in log.lines if "memory of" in line}
    return {"in turns": list(cost.values()), "peak memory": list(memory.values())}


def parse() -> argparse.Namespace:
    """Return the options."""
    parser = arguments(__doc__, log=True)
    parser.add_argument("--models", nargs="*", default=list(COUNTS), choices=list(COUNTS))
    parser.add_argument("--counts", type=int, metavar="N", help="number of images")
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--no-memory", action="store_true", help="leave out the peaks")
    for name, kind in (("--work", int), ("--folder", Path), ("--bundle", Path)):
        parser.add_argument(name, type=kind, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.quick:
        options.models, options.counts, options.rounds = ["emoji-vit2"], 96, 1
    return options


def main() -> None:
    options = parse()
    if options.work:
        work(options)
        return
    log = log_of(options, "judge")
    if not options.report:
        with tempfile.TemporaryDirectory() as name:
            measure_cost(Path(name), options, log)
            if not options.no_memory:
                measure_memory(Path(name), options, log)
    conclude(options, "judge", {"texts": "emoji", "rounds": options.rounds}, tables(log))


if __name__ == "__main__":
    main()
