"""Measure the cost per image of clip-effects relative to a plain forward pass, batch by batch in turns, in one process.

    python benchmarks/turns.py                                          # two ViTs, two ResNets, batches of 1, 8 and 32
    python benchmarks/turns.py --models ViT-B-32 --batch-sizes 32 --settings "all layers"
    python benchmarks/turns.py --models ViT-B-16-SigLIP --counts 96 --batch-sizes 8 --settings default "second order" --more
    python benchmarks/turns.py --device cuda --precisions bf16 --counts 5000 --out results-of-that-machine

The weights are random, and the images are JPEG files. clip-effects runs as usual; before each of its batches, another copy of
the model decodes and encodes a batch of the same files. Therefore variations of the machine's speed affect both sides equally,
in contrast to the long runs of effects.py. A ratio is between sums over all batches except the first; quartiles are over single
pairs of batches. Images that wait in the batch buffer after the last batch are processed, and count. The cost before the first
image, and of the results after the last one, is not included: effects.py measures it. Nor is that of a second look, for which
`read again` images are read once more. The ratio of processor time of the process is given beside that of elapsed time; other
work on the machine disturbs it less. `GB above` is the peak memory less the memory in use before the first Gram matrix, with both
copies of the model. Any name of open_clip's is a model.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from photos import make_photos
from plain import LAST, Resident, clip_effects, load
from runs import Log, Row, arguments, conclude, in_own_process, log_of, say

MINUTES = 35
COUNTS = {"ViT-B-32": 768, "ViT-L-14": 96, "RN50": 192, "RN50x16": 64, "emoji-vit2": 64, "emoji-rn2": 64}
COUNTS |= {"EVA02-B-16": 96, "ViT-L-14-CLIPA": 32, "ViTamin-S": 96, "ViT-B-16-SigLIP": 96}
FEW = 48  # images of other models
SECOND = "second order"
SETTINGS = ("default", "all layers", SECOND)
GOALS = {
    ("ViT-B-32", "default"): 1.15,
    ("ViT-L-14", "default"): 1.15,
    ("ViT-B-32", "all layers"): 1.4,
    ("RN50", "default"): 1.1,
    ("RN50x16", "default"): 1.1,
    ("EVA02-B-16", "default"): 1.15,
    ("ViT-B-16-SigLIP", "default"): 1.1,
    ("ViT-B-16-SigLIP", SECOND): 1.3,
}
SAME = ("model", "precision", "batch", "setting", "images")


def work(options: argparse.Namespace) -> None:
    """Run one measured process: clip-effects, with a plain pass before each of its batches."""
    model, precision = options.models[0], options.precisions[0]
    turns, watch = Turns(load(model, options.device, precision), options.device), Resident()
    more = ["--device", options.device, "--precision", precision]
    more += {"all layers": ["--layers", f"0-{LAST.get(model)}"], SECOND: ["--effect", "second"]}.get(options.settings[0], [])
    clip_effects(model, options.folder, options.counts, options.batch_sizes[0], *more)
    figures = {"passes": watch.passes, "GB before": watch.before} if watch.before else {}
    say(plain=turns.plain, ours=turns.ours, waiting=turns.waiting, **{"read again": turns.read_again}, **figures)


Seconds = tuple[float, float]
"""Elapsed time, and processor time of this process."""


class Turns:
    """Measures the time of every batch of this process's next loop over images, and of the plain pass before each batch.

    Later loops, of a second pass or look, are not part of the cost of a batch: their images are counted.
    """

    def __init__(self, loaded: Any, device: str) -> None:
        from cliptools.images import loader
        from cliptools.streaming.statistics import UnitStatistics

        self.plain, self.ours = list[Seconds](), list[Seconds]()
        self.waiting: Seconds = 0.0, 0.0
        """Time for the images that were in the batch buffer after the last batch."""
        self.read_again = 0
        """Images of all loops but the first."""
        self._loaded, self._device, self._real = loaded, device, loader.load_batches
        settle = UnitStatistics.settle_all
        loader.load_batches = self._load

        def timed(statistics: UnitStatistics) -> None:
            begin = self._now()
            settle(statistics)
            seconds, cpu = self._since(begin)
            self.waiting = self.waiting[0] + seconds, self.waiting[1] + cpu

        UnitStatistics.settle_all = timed  # type: ignore[method-assign]

    def _load(self, *arguments: Any, **options: Any) -> Iterator[Any]:
        if self.plain:
            for batch in self._real(*arguments, **options):
                self.read_again += len(batch[0])
                yield batch
            return
        theirs, ours = (self._real(*arguments, **options) for _ in range(2))
        for _, pictures in self._timed(theirs):
            begin = self._now()
            yield next(ours)
            self.ours.append(self._since(begin))
            del pictures

    def _timed(self, batches: Iterator[Any]) -> Iterator[Any]:
        import torch

        from cliptools.models.load import DTYPE

        while True:
            begin = self._now()
            if (batch := next(batches, None)) is None:
                return
            with torch.inference_mode():
                self._loaded.clip.encode_image(batch[1].to(self._loaded.device, DTYPE[self._loaded.precision])).cpu()
            self.plain.append(self._since(begin))
            yield batch

    def _now(self) -> Seconds:
        if self._device.startswith("cuda"):
            import torch

            torch.cuda.synchronize()
        return time.perf_counter(), time.process_time()

    def _since(self, begin: Seconds) -> Seconds:
        now = self._now()
        return now[0] - begin[0], now[1] - begin[1]


def line_of(process: Row, case: Row) -> Row:
    """Return the figures of one process without its first pair of batches, in which lists and buffers are created.

    What has waited in the batch buffer at the end counts in full, that of the first batch too.
    """
    plain, ours = process["plain"][1:], process["ours"][1:]
    images = case["batch"] * len(plain)
    pairs = [after[0] / before[0] for before, after in zip(plain, ours, strict=True)]
    low, middle, high = statistics.quantiles(pairs, n=4) if len(pairs) > 1 else pairs * 3
    (plain_sum, plain_cpu), (our_sum, our_cpu) = (
        tuple(map(sum, zip(*times, strict=True))) for times in (plain, [*ours, process["waiting"]])
    )
    row = case | {
        "plain ms an image": round(1000 * plain_sum / images, 2),
        "ms an image": round(1000 * our_sum / images, 2),
        "ratio": round(our_sum / plain_sum, 3),
        "quartiles": [round(low, 3), round(middle, 3), round(high, 3)],
        "plain cpu ms an image": round(1000 * plain_cpu / images, 2),
        "cpu ratio": round(our_cpu / plain_cpu, 3),
        "pairs of batches": len(pairs),
        "read again": process["read again"],
        "peak GB": round(process["peak GB"], 2),
    }
    if "GB before" in process:
        row |= {"passes": process["passes"], "GB above": round(process["peak GB"] - process["GB before"], 2)}
    return row


def measure(folder: Path, options: argparse.Namespace, log: Log) -> None:
    """Measure every case in a separate process."""
    for model in options.models:
        pools = "SigLIP" in model or model.startswith(("PE-", "coca"))  # by default these have pooled effects
        possible = {"default": True, "all layers": model in LAST, SECOND: pools}
        settings = [setting for setting in options.settings if possible[setting]]
        for precision in options.precisions:
            for batch in options.batch_sizes:
                for setting in settings:
                    images = options.counts or COUNTS.get(model, FEW)
                    images -= images % batch  # only full batches
                    size = {
                        "models": model,
                        "precisions": precision,
                        "batch_sizes": batch,
                        "counts": images,
                        "device": options.device,
                    }
                    process = in_own_process(__file__, work=1, folder=folder, settings=setting, **size)
                    log.keep(line_of(process, dict(zip(SAME, (model, precision, batch, setting, images), strict=True))))


def tables(log: Log) -> dict[str, list[Row]]:
    """Return the last line of each case, with its goal on two cores."""
    rows = {tuple(line[key] for key in SAME): line for line in log.lines}
    order = sorted(
        rows.values(), key=lambda row: ([*COUNTS, row["model"]].index(row["model"]), row["batch"], SETTINGS.index(row["setting"]))
    )
    return {"in turns": [row | {"goal": goal(row)} for row in order]}


def goal(row: Row) -> float | None:
    """Return the goal of a row; all layers have a goal for batches of at least 8."""
    return None if row["setting"] == "all layers" and row["batch"] < 8 else GOALS.get((row["model"], row["setting"]))


def parse() -> argparse.Namespace:
    """Return the options."""
    parser = arguments(__doc__, log=True)
    parser.add_argument("--models", nargs="+", default=list(COUNTS)[:4], metavar="NAME", help="names of open_clip's")
    parser.add_argument("--batch-sizes", nargs="+", type=int, default=[1, 8, 32])
    parser.add_argument("--precisions", nargs="+", default=["fp32"], choices=["fp32", "bf16", "fp16"])
    parser.add_argument("--settings", nargs="+", default=SETTINGS, choices=SETTINGS)
    parser.add_argument("--counts", type=int, metavar="N", help="number of images")
    parser.add_argument("--device", default="cpu")
    for name, kind in (("--work", int), ("--folder", Path)):
        parser.add_argument(name, type=kind, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.quick:
        options.models, options.batch_sizes, options.settings, options.counts = ["emoji-vit2"], [8], ["default"], 24
    return options


def main() -> None:
    options = parse()
    if options.work:
        work(options)
        return
    log = log_of(options, "turns")
    if not options.report:
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name) / "photos"
            folder.mkdir()
            make_photos(folder, options.counts or max(COUNTS.get(model, FEW) for model in options.models))
            measure(folder, options, log)
    conclude(options, "turns", {"device": options.device}, tables(log))


if __name__ == "__main__":
    main()
