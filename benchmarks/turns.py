"""Measure the cost per image of clip-effects relative to a plain forward pass, batch by batch in turns, in one process.

    python benchmarks/turns.py                                          # two ViTs, two ResNets, batches of 1, 8 and 32
    python benchmarks/turns.py --models ViT-B-32 --batch-sizes 32 --settings "all layers"
    python benchmarks/turns.py --device cuda --precisions bf16 --counts 5000 --out results-of-that-machine

The weights are random, and the images are JPEG files. clip-effects runs as usual; before each of its batches, another copy of
the model decodes and encodes a batch of the same files. Therefore variations of the machine's speed affect both sides equally,
in contrast to the long runs of effects.py. A ratio is between sums over all batches except the first; quartiles are over single
pairs of batches. The cost before the first image and after the last one is not included: effects.py measures it.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from photos import make_photos
from plain import LAST, clip_effects, load
from runs import Log, Row, arguments, conclude, in_own_process, log_of, say

MINUTES = 35
COUNTS = {"ViT-B-32": 768, "ViT-L-14": 96, "RN50": 192, "RN50x16": 64, "emoji-vit": 64, "emoji-rn": 64}
COUNTS |= {"EVA02-B-16": 96, "ViT-L-14-CLIPA": 32, "ViTamin-S": 96}
SETTINGS = ("default", "all layers")
GOALS = {
    ("ViT-B-32", "default"): 1.15,
    ("ViT-L-14", "default"): 1.15,
    ("ViT-B-32", "all layers"): 1.4,
    ("RN50", "default"): 1.1,
    ("RN50x16", "default"): 1.1,
    ("EVA02-B-16", "default"): 1.15,
}
SAME = ("model", "precision", "batch", "setting", "images")


def work(options: argparse.Namespace) -> None:
    """Run one measured process: clip-effects, with a plain pass before each of its batches."""
    model, precision = options.models[0], options.precisions[0]
    turns = Turns(load(model, options.device, precision), options.device)
    more = ["--device", options.device, "--precision", precision]
    more += ["--layers", f"0-{LAST[model]}"] if options.settings[0] == "all layers" else []
    clip_effects(model, options.folder, options.counts, options.batch_sizes[0], *more)
    say(plain=turns.plain, ours=turns.ours)


class Turns:
    """Measures the seconds of every batch of this process's next loop over images, and of the plain pass before each batch."""

    def __init__(self, loaded: Any, device: str) -> None:
        from cliptools.images import loader

        self.plain, self.ours = list[float](), list[float]()
        self._loaded, self._device, self._real = loaded, device, loader.load_batches
        loader.load_batches = self._load

    def _load(self, *arguments: Any, **options: Any) -> Iterator[Any]:
        from cliptools.images import loader

        loader.load_batches = self._real  # a second pass is not part of the cost of a batch
        theirs, ours = (self._real(*arguments, **options) for _ in range(2))
        for _, pictures in self._timed(theirs):
            begin = self._now()
            yield next(ours)
            self.ours.append(self._now() - begin)
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
            self.plain.append(self._now() - begin)
            yield batch

    def _now(self) -> float:
        if self._device.startswith("cuda"):
            import torch

            torch.cuda.synchronize()
        return time.perf_counter()


def line_of(process: Row, case: Row) -> Row:
    """Return the figures of one process without its first pair of batches, in which lists and buffers are created."""
    plain, ours = process["plain"][1:], process["ours"][1:]
    images = case["batch"] * len(plain)
    pairs = [after / before for before, after in zip(plain, ours, strict=True)]
    low, middle, high = statistics.quantiles(pairs, n=4) if len(pairs) > 1 else pairs * 3
    return case | {
        "plain ms an image": round(1000 * sum(plain) / images, 2),
        "ms an image": round(1000 * sum(ours) / images, 2),
        "ratio": round(sum(ours) / sum(plain), 3),
        "quartiles": [round(low, 3), round(middle, 3), round(high, 3)],
        "pairs of batches": len(pairs),
        "peak GB": round(process["peak GB"], 2),
    }


def measure(folder: Path, options: argparse.Namespace, log: Log) -> None:
    """Measure every case in a separate process."""
    for model in options.models:
        settings = [setting for setting in options.settings if setting == "default" or model in LAST]
        for precision in options.precisions:
            for batch in options.batch_sizes:
                for setting in settings:
                    images = options.counts or COUNTS[model]
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
        rows.values(), key=lambda row: (list(COUNTS).index(row["model"]), row["batch"], SETTINGS.index(row["setting"]))
    )
    return {"in turns": [row | {"goal": goal(row)} for row in order]}


def goal(row: Row) -> float | None:
    """Return the goal of a row; all layers have a goal for batches of at least 8."""
    return None if row["setting"] == "all layers" and row["batch"] < 8 else GOALS.get((row["model"], row["setting"]))


def parse() -> argparse.Namespace:
    """Return the options."""
    parser = arguments(__doc__, log=True)
    parser.add_argument("--models", nargs="+", default=list(COUNTS)[:4], choices=list(COUNTS))
    parser.add_argument("--batch-sizes", nargs="+", type=int, default=[1, 8, 32])
    parser.add_argument("--precisions", nargs="+", default=["fp32"], choices=["fp32", "bf16", "fp16"])
    parser.add_argument("--settings", nargs="+", default=SETTINGS, choices=SETTINGS)
    parser.add_argument("--counts", type=int, metavar="N", help="number of images")
    parser.add_argument("--device", default="cpu")
    for name, kind in (("--work", int), ("--folder", Path)):
        parser.add_argument(name, type=kind, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.quick:
        options.models, options.batch_sizes, options.settings, options.counts = ["emoji-vit"], [8], ["default"], 24
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
            make_photos(folder, options.counts or max(COUNTS[model] for model in options.models))
            measure(folder, options, log)
    conclude(options, "turns", {"device": options.device}, tables(log))


if __name__ == "__main__":
    main()
