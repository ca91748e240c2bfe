"""Measure the cost of clip-effects on a ResNet's pairs relative to a plain pass, and project the time of clip-decompose.

    python benchmarks/resnet.py                         # RN50 and RN50x16, random weights, JPEG files, in turns
    python benchmarks/resnet.py --models RN50 --counts 64 448
    python benchmarks/resnet.py --memory                # adds peak memory and bytes written for 1,000 images
    python benchmarks/resnet.py --decompose             # adds the pursuit of a sample of pairs, projected to all pairs

Every figure is from a separate process. The cost per image is the slope between a short and a long run, in elapsed seconds and
in processor seconds, which other processes on the machine disturb less. Peak memory is measured with the model's own pooling and
all its pairs, after a small trunk of four blocks on 64 × 64 pixels, so that 1,000 images take minutes. The cost of the pairs
there beyond a plain pass includes the lists of top images, which are full after the first 311 images.
"""

import argparse
import json
import tempfile
import time
from pathlib import Path

from photos import make_photos
from plain import clip_effects, load, plain
from runs import Log, Row, arguments, compared, conclude, in_own_process, log_of, say, slopes

MINUTES = 25
GOAL = 1.1
COUNTS = {"RN50": (32, 160), "RN50x16": (4, 12), "emoji-rn2": (8, 40)}
SETTINGS = ("plain", "pairs")
MANY = 1000
PUBLISHED_GB = 450  # output of the paper's public code for 1,000 images of RN50x16


def work(options: argparse.Namespace) -> None:
    """Run one measured process: encode images, or measure effects and write the bundle."""
    bundle, model = options.folder / "bundle.safetensors", options.model
    if options.work == "plain":
        plain(options.folder, options.count, options.batch_size, load(model))
    else:
        clip_effects(model, options.folder, options.count, options.batch_size, "--device", "cpu", output=bundle)
    written = bundle.stat().st_size if bundle.exists() else None
    bundle.unlink(missing_ok=True)
    say(bytes=written)


def speed(folder: Path, options: argparse.Namespace, log: Log) -> None:
    """Measure a short and a long run of plain and pairs, in turns."""
    where = {"folder": folder, "batch_size": options.batch_size}
    for number in range(options.rounds):
        for model in options.models:
            few, many = options.counts or COUNTS[model]
            for setting in SETTINGS:
                short, long = (in_own_process(__file__, work=setting, model=model, count=n, **where) for n in (few, many))
                line = {"round": number + 1, "model": model, "images": many, "setting": setting} | slopes(short, long, few, many)
                log.keep(line | {"peak": round(long["peak GB"], 2), "bytes": long["bytes"]})


def memory(folder: Path, options: argparse.Namespace, log: Log) -> None:
    """Measure peak, bytes and cost for 1,000 images, of all pairs of the model's pooling after a small trunk."""
    where = {"folder": folder, "batch_size": options.batch_size}
    for model in options.models:
        with tempfile.TemporaryDirectory() as name:
            thin(model, Path(name))
            cpu = {}
            for setting in SETTINGS:
                work = where | {"work": setting, "model": f"local-dir:{name}"}
                short, long = (in_own_process(__file__, count=n, **work) for n in (MANY // 2, MANY))
                cpu[setting] = slopes(short, long, MANY // 2, MANY)["cpu ms"]
            line: Row = {"model": model, "images": MANY, "thin peak": round(long["peak GB"], 2)}
            line |= {"half as many": round(short["peak GB"], 2), "bytes": long["bytes"]}
            log.keep(line | {"cpu ms an image beyond a plain pass": round(cpu["pairs"] - cpu["plain"], 1)})


def thin(model: str, folder: Path) -> None:
    """Write a model of the same width, heads and outputs with one block per stage, for small pictures and with random weights."""
    import torch

    from cliptools.library_patches import ensure_torchvision

    ensure_torchvision()
    import open_clip
    from safetensors.torch import save_file

    config = open_clip.get_model_config(model)
    vision = config["vision_cfg"] | {"layers": [1, 1, 1, 1], "image_size": 64}
    small = {"context_length": 8, "vocab_size": 49408, "width": 8, "heads": 1, "layers": 1}
    config = {"embed_dim": config["embed_dim"], "vision_cfg": vision, "text_cfg": small}
    torch.manual_seed(0)
    weights = open_clip.model.CLIP(**config).state_dict()
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": config, "preprocess_cfg": {}}))
    save_file({key: value.contiguous() for key, value in weights.items()}, folder / "open_clip_model.safetensors")


def decompose(options: argparse.Namespace, log: Log) -> None:
    """Measure the pursuit of a sample of a model's pairs with random texts of its width: 30,000 texts, 64 per pair."""
    import torch

    from cliptools.analysis.pursuit import pursue
    from cliptools.models.load import load_model
    from cliptools.unit_effects.resnet_pooling import Pairs, pair_directions, supported_resnet

    for model in options.models:
        visual = supported_resnet(load_model(model, "random", "cpu").clip)
        pairs = Pairs(visual).size(4)[0]
        random = torch.Generator().manual_seed(0)
        number = torch.randperm(pairs, generator=random)[: options.sample]
        w = pair_directions(visual, number // visual.attnpool.num_heads, number % visual.attnpool.num_heads)
        r = torch.nn.functional.normalize(w, dim=1)
        t = torch.nn.functional.normalize(torch.randn(options.words, w.shape[1], generator=random), dim=1)
        pursue(r[:16], t, 2)  # runs the trials of arithmetic, which are made once
        start, used = time.perf_counter(), time.process_time()
        pursue(r, t, options.m)
        each, cpu = (time.perf_counter() - start) / len(r), (time.process_time() - used) / len(r)
        line = {"model": model, "sample": len(r), "texts": options.words, "m": options.m, "ms a pair": round(1000 * each, 1)}
        line |= {"cpu ms a pair": round(1000 * cpu, 1), "pairs": pairs, "hours for all": round(each * pairs / 3600, 2)}
        log.keep(line | {"cpu hours for all": round(cpu * pairs / 3600, 2)})


def tables(log: Log) -> dict[str, list[Row]]:
    """Return the tables of the log."""
    result = {"speed": compared(log.lines, ("model", "images"))}
    for row in result["speed"]:
        row["goal"] = GOAL if row["setting"] == "pairs" else None
    result["memory"] = [line for line in log.lines if "thin peak" in line]
    result["decompose"] = [line for line in log.lines if "ms a pair" in line]
    return result


def parse() -> argparse.Namespace:
    """Return the options."""
    parser = arguments(__doc__, log=True)
    parser.add_argument("--models", nargs="+", default=["RN50", "RN50x16"], choices=list(COUNTS))
    parser.add_argument("--counts", nargs=2, type=int, metavar=("FEW", "MANY"), help="images of the two runs")
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--memory", action="store_true", help="also peak memory and bytes for 500 and 1,000 images")
    parser.add_argument("--decompose", action="store_true", help="also the pursuit on a sample of pairs")
    parser.add_argument("--sample", type=int, default=512, help="number of pairs in this sample")
    parser.add_argument("--words", type=int, default=30000)
    parser.add_argument("--m", type=int, default=64)
    for name, kind in (("--work", str), ("--model", str), ("--folder", Path), ("--count", int)):
        parser.add_argument(name, type=kind, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.quick:
        options.models, options.rounds = ["emoji-rn2"], 1
    return options


def main() -> None:
    options = parse()
    if options.work:
        work(options)
        return
    log = log_of(options, "resnet")
    if not options.report:
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            make_photos(folder, MANY if options.memory else max(options.counts or [n for m in options.models for n in COUNTS[m]]))
            speed(folder, options, log)
            if options.memory:
                memory(folder, options, log)
        if options.decompose:
            decompose(options, log)
    about = {"models": options.models, "batch": options.batch_size}
    about |= {"public code, GB written for 1,000 images of RN50x16": PUBLISHED_GB}
    conclude(options, "resnet", about, tables(log))


if __name__ == "__main__":
    main()
