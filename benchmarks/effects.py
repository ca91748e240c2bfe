"""Measure the cost of clip-effects relative to a plain forward pass, from JPEG files to a bundle, in one run.

    python benchmarks/effects.py                                        # ViT-B-32 and ViT-L-14, batches of 1, 8 and 32
    python benchmarks/effects.py --models ViT-B-32 --batch-sizes 32     # a seventh of the time
    python benchmarks/effects.py --precisions bf16 --accuracy --more    # adds bfloat16 and its differences to float32
    python benchmarks/effects.py --memory --rounds 0 --more             # adds peak memory at 500 and 2,000 images
    python benchmarks/effects.py --device cuda --precisions bf16 --counts 1000 5000 --out results-of-that-machine

The models have random weights. Every figure is from a separate process, and settings take turns. The cost per image is the
slope between a short and a long run; the fixed cost is the rest of the long run. Ratios are between a setting and the plain
loop of the same round, in elapsed time and in processor time, which other processes on the machine disturb less. `waiting %` is
the share of the time from the first image to the last that was spent waiting for decoded images. `GPU %` is the share in which
a kernel ran, from nvidia-smi.
"""

import argparse
import tempfile
from pathlib import Path
from typing import Any

from accelerator import sample_utilization
from photos import make_photos
from plain import LAST, Watch, clip_effects, load, plain, weights
from runs import Log, Row, arguments, compared, conclude, in_own_process, log_of, say, slopes, tool

MINUTES = 95
COUNTS = {"ViT-B-32": (128, 512), "ViT-L-14": (8, 40), "emoji-vit2": (8, 40)}  # images of the two runs
SETTINGS = ("plain", "default layers", "all layers", "all layers, --memory 6")
GOALS = {"default layers": 1.15, "all layers": 1.4}  # on two cores, for ViT-B-32; the second goal for batches of 8 and more
SAME = ("model", "precision", "batch", "images")
MANY = (500, 2000)  # images, between which the peak must not grow
COMPARED = 256  # images whose directions in two precisions are compared


def work(options: argparse.Namespace) -> None:
    """Run one measured process: encode images, or measure effects and write the bundle."""
    watch = Watch()
    model, precision = options.models[0], options.precisions[0]
    if options.work == "plain":
        plain(options.folder, options.count, options.batch_sizes[0], load(model, options.device, precision))
    else:
        more = ["--device", options.device, "--precision", precision]
        more += ["--layers", f"0-{LAST[model]}"] if options.work.startswith("all") else []
        more += ["--memory", "6"] if options.work.endswith("--memory 6") else []
        clip_effects(model, options.folder, options.count, options.batch_sizes[0], *more)
    say(**watch.said(), **device_peak(options.device))


def device_peak(device: str) -> Row:
    """Return the peak memory of a GPU in this process, in GB; nothing for a CPU."""
    if not device.startswith("cuda"):
        return {}
    import torch

    return {"device GB": round(torch.cuda.max_memory_allocated(device) / 1e9, 2)}


def measured(setting: str, folder: Path, count: int, case: Row, device: str) -> Row:
    """Measure one process."""
    with sample_utilization(device.startswith("cuda")) as busy:
        size = {"models": case["model"], "batch_sizes": case["batch"], "precisions": case["precision"], "device": device}
        process = in_own_process(__file__, work=setting, folder=folder, count=count, **size)
        share = busy(process["begin"], process["end"])
    return process | ({} if share is None else {"GPU": share})


def speed(folder: Path, options: argparse.Namespace, log: Log) -> None:
    """Measure a short and a long run of every setting, in turns."""
    cases = [
        {"model": m, "precision": p, "batch": b} for m in options.models for p in options.precisions for b in options.batch_sizes
    ]
    for number in range(options.rounds):
        for case in cases:
            few, many = options.counts or COUNTS[case["model"]]
            for setting in options.settings:
                short, long = (measured(setting, folder, count, case, options.device) for count in (few, many))
                line = {"round": number + 1} | case | {"setting": setting, "images": many} | slopes(short, long, few, many)
                line |= {"waiting %": round(100 * long["waiting"])} | ({"GPU %": long["GPU"]} if "GPU" in long else {})
                log.keep(line)


def memory(folder: Path, options: argparse.Namespace, log: Log) -> None:
    """Measure the peak memory for few and for many images."""
    case = {"model": options.models[0], "precision": options.precisions[0], "batch": options.batch_sizes[-1]}
    for setting in ("default layers", "all layers"):
        for count in MANY:
            peak = measured(setting, folder, count, case, options.device)["peak GB"]
            log.keep(case | {"setting": setting, "images": count, "peak GB": round(peak, 2)})


def accuracy(folder: Path, options: argparse.Namespace, log: Log) -> None:
    """Compare directions and top images of each precision with float32; emoji-vit2 has trained weights, others random ones."""
    for model in dict.fromkeys(("emoji-vit2", *options.models)):
        bundles = {}
        for precision in dict.fromkeys(("fp32", *options.precisions)):
            bundles[precision] = folder.parent / f"{model}-{precision}.safetensors"
            files = [] if model == "emoji-vit2" else [folder]
            images = ["--limit", options.compared, "--model", model, *weights(model), *files]
            tool("effects", *images, "--precision", precision, "--device", options.device, "-q", "-o", bundles[precision])
        for precision, bundle in bundles.items():
            if precision != "fp32":
                log.keep(
                    {"accuracy of": model, "precision": precision, "images": options.compared} | beside(bundles["fp32"], bundle)
                )


def beside(exact: Path, other: Path) -> Row:
    """Compare directions and top images of two bundles."""
    import numpy as np
    from safetensors.numpy import load_file

    a, b = load_file(exact), load_file(other)
    cosine = (a["direction"] * b["direction"]).sum(1)[a["top_norm"].max(1) > 0]
    names = [np.frombuffer(bundle["images"].tobytes(), np.uint8).tobytes() for bundle in (a, b)]
    row: Row = {
        "units": len(cosine),
        "mean |cosine|": float(np.abs(cosine).mean()),
        "least |cosine|": float(np.abs(cosine).min()),
    }
    row |= {"1st percentile": float(np.quantile(np.abs(cosine), 0.01)), "signs turned": int((cosine < 0).sum())}
    if names[0] == names[1]:  # both bundles have the same list of images, so indices are comparable
        shared = [len(set(x) & set(y)) / len(x) for x, y in zip(a["top_image"].tolist(), b["top_image"].tolist(), strict=True)]
        row["top images shared"] = float(np.mean(shared))
    return {key: round(value, 5) if isinstance(value, float) else value for key, value in row.items()}


def tables(log: Log) -> dict[str, list[Row]]:
    """Return the tables of the log."""
    result = {"speed": compared(log.lines, SAME)}
    for row in result["speed"]:
        row["goal"] = GOALS.get(row["setting"]) if row["model"] == "ViT-B-32" else None
    result["memory"] = [line for line in log.lines if "peak GB" in line]
    result["accuracy"] = [line for line in log.lines if "accuracy of" in line]
    return result


def parse() -> argparse.Namespace:
    """Return the options."""
    parser = arguments(__doc__, log=True)
    parser.add_argument("--models", nargs="+", default=["ViT-B-32", "ViT-L-14"], choices=list(COUNTS))
    parser.add_argument("--batch-sizes", nargs="+", type=int, default=[1, 8, 32])
    parser.add_argument("--precisions", nargs="+", default=["fp32"], choices=["fp32", "bf16", "fp16"])
    parser.add_argument("--settings", nargs="+", default=SETTINGS[:3], choices=SETTINGS)
    parser.add_argument("--counts", nargs=2, type=int, metavar=("FEW", "MANY"), help="images of the two runs")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--memory", action="store_true", help=f"also peak memory at {MANY[0]} and {MANY[1]} images")
    parser.add_argument("--accuracy", action="store_true", help="also compare directions in each precision with float32")
    parser.add_argument("--compared", type=int, default=COMPARED, help="images of this comparison")
    for name, kind in (("--work", str), ("--folder", Path), ("--count", int)):
        parser.add_argument(name, type=kind, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.quick:
        options.models, options.batch_sizes, options.rounds = ["emoji-vit2"], [8], 1
        options.precisions, options.accuracy, options.compared, options.settings = ["bf16"], True, 40, SETTINGS[:2]
    return options


def main() -> None:
    options = parse()
    if options.work:
        work(options)
        return
    log = log_of(options, "effects")
    if not options.report:
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name) / "photos"
            folder.mkdir()
            counts: list[Any] = [options.counts[1]] if options.counts else [COUNTS[model][1] for model in options.models]
            counts += [MANY[1]] * options.memory + [options.compared] * options.accuracy
            make_photos(folder, max(counts))
            speed(folder, options, log)
            if options.memory:
                memory(folder, options, log)
            if options.accuracy:
                accuracy(folder, options, log)
    conclude(options, "effects", {"device": options.device}, tables(log))


if __name__ == "__main__":
    main()
