"""What clip-effects costs beside a plain forward pass, from JPEG files to a bundle, in one run.

    python benchmarks/effects.py                # ViT-B-32, random weights, 512 JPEGs, batch 32
    python benchmarks/effects.py --memory       # and peak memory at 500 and 2,000 images

Every figure is of a process of its own. Cost per image is the slope between a short and a long run, fixed cost what is
left of the long one; settings take turns, and medians over the rounds are shown.
"""

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from machine import describe, save

SETTINGS = {"plain": None, "layers 8-10": "8-10", "all layers": "0-10"}
GOALS = {"layers 8-10": 1.3, "all layers": 1.6}
SHORT = 128


def make_photos(folder: Path, count: int, distinct: int = 512) -> list[Path]:
    """JPEG files of 500 × 375 pixels, hard links beyond the first `distinct`."""
    import numpy as np
    from PIL import Image

    from cliptools.ground.emoji.render import render, to_uint8
    from cliptools.ground.emoji.scenes import draw_scene

    rng = np.random.default_rng(0)
    files = []
    for i in range(count):
        path = folder / f"{i:05d}.jpg"
        if i < distinct:
            pixels = to_uint8(render([draw_scene(1, i)], 125).image[0]).astype(int) + rng.integers(-12, 13, (125, 125, 3))
            picture = Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8)).resize((500, 375), Image.Resampling.BICUBIC)
            picture.save(path, quality=90)
        else:
            os.link(folder / f"{i % distinct:05d}.jpg", path)
        files.append(path)
    return files


def work(setting: str, folder: Path, count: int, batch: int, model: str) -> None:
    """One measured process: encode, or measure effects and write the bundle."""
    start = time.perf_counter()
    if SETTINGS[setting] is None:
        plain(folder, count, batch, model)
    else:
        from cliptools.commands.effects import main

        options = ["--model", model, "--pretrained", "random", "--layers", SETTINGS[setting], "--limit", str(count)]
        with Path(os.devnull).open("wb") as sink:
            sys.stdout = os.fdopen(os.dup(sink.fileno()), "w")
            try:
                main([str(folder), *options, "--batch-size", str(batch), "-q"])
            except SystemExit as stop:
                if stop.code:
                    raise
    seconds = time.perf_counter() - start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    print(json.dumps({"seconds": seconds, "peak GB": peak}), file=sys.stderr)


def plain(folder: Path, count: int, batch: int, model: str) -> None:
    """The loop that everybody has: decode, encode_image, keep the embeddings."""
    import torch

    from cliptools.ground.images import choose, open_images
    from cliptools.ground.loader import Skipped, load_batches
    from cliptools.ground.models import load_model

    loaded = load_model(model, "random", "cpu")
    source = open_images([str(folder)])
    order = choose(source, count, None, 0)
    batches = load_batches(source, order, loaded.transform, batch_size=batch, workers=2, strict=True, skipped=Skipped())
    with torch.inference_mode():
        kept = [loaded.clip.encode_image(pictures) for _, pictures in batches]
    assert sum(map(len, kept)) == count


def measured(setting: str, folder: Path, count: int, options: argparse.Namespace) -> dict[str, float]:
    command = [sys.executable, __file__, "--work", setting, "--folder", str(folder), "--count", str(count)]
    command += ["--batch-size", str(options.batch_size), "--model", options.model]
    done = subprocess.run(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True, check=False)
    if done.returncode:
        sys.exit(done.stderr)
    result: dict[str, float] = json.loads(done.stderr.splitlines()[-1])
    return result


def speed(folder: Path, options: argparse.Namespace) -> list[dict[str, Any]]:
    times: dict[str, list[tuple[float, float]]] = {setting: [] for setting in SETTINGS}
    for number in range(options.rounds):
        for setting in SETTINGS:
            short, long = (measured(setting, folder, count, options)["seconds"] for count in (SHORT, options.count))
            slope = (long - short) / (options.count - SHORT)
            times[setting].append((slope, long - slope * options.count))
            print(
                f"round {number + 1}: {setting}: {1000 * slope:.1f} ms an image, fixed {times[setting][-1][1]:.1f} s", flush=True
            )
    rows = []
    for setting, pairs in times.items():
        ratios = [pair[0] / base[0] for pair, base in zip(pairs, times["plain"], strict=True)]
        rows.append(
            {
                "setting": setting,
                "ms an image": round(1000 * statistics.median(slope for slope, _ in pairs), 1),
                "ratio": round(statistics.median(ratios), 2),
                "ratios": [round(ratio, 2) for ratio in ratios],
                "goal": GOALS.get(setting),
                "fixed s": round(statistics.median(fixed for _, fixed in pairs), 1),
            }
        )
    return rows


def memory(folder: Path, options: argparse.Namespace) -> list[dict[str, Any]]:
    rows = []
    for setting in SETTINGS:
        peaks = {count: round(measured(setting, folder, count, options)["peak GB"], 2) for count in (500, 2000)}
        rows.append({"setting": setting} | {f"peak GB, {count} images": peak for count, peak in peaks.items()})
        print(rows[-1], flush=True)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="ViT-B-32")
    parser.add_argument("--count", type=int, default=512)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--memory", action="store_true", help="also peak memory at 500 and 2,000 images")
    parser.add_argument("--work", help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.work:
        work(options.work, options.folder, options.count, options.batch_size, options.model)
        return
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make_photos(folder, 2000 if options.memory else options.count)
        tables = {"speed": speed(folder, options)}
        if options.memory:
            tables["memory"] = memory(folder, options)
    save("effects", describe(), {"model": options.model, "images": options.count, "batch": options.batch_size}, tables)


if __name__ == "__main__":
    main()
