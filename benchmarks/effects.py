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
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from machine import RESULTS, describe, save
from runs import in_own_process, keep

SETTINGS: dict[str, list[str] | None] = {
    "plain": None,
    "layers 8-10": ["--layers", "8-10"],
    "all layers": ["--layers", "0-10"],
    "all layers, --memory 5": ["--layers", "0-10", "--memory", "5"],
}
GOALS = {"layers 8-10": 1.3, "all layers": 1.6}
SHORT = 128
LOG = RESULTS / "effects.jsonl"
MANY = (500, 2000)  # images, between which the peak must not grow


def make_photos(folder: Path, count: int, distinct: int = 512) -> list[Path]:
    """JPEG files of 500 × 375 pixels with the spectrum of photographs, hard links beyond the first `distinct`."""
    import numpy as np
    from PIL import Image

    rng = np.random.default_rng(0)
    files = []
    for i in range(count):
        path = folder / f"{i:05d}.jpg"
        if i < distinct:
            pixels = (np.clip(_natural(rng, 375, 500), 0, 1) * 255).astype(np.uint8)
            Image.fromarray(pixels).save(path, quality=90)
        else:
            os.link(folder / f"{i % distinct:05d}.jpg", path)
        files.append(path)
    return files


def _natural(rng: Any, height: int, width: int) -> Any:
    """A random field whose amplitude falls as 1 / frequency, mostly in brightness: what photographs have in common."""
    import numpy as np

    y, x = np.fft.fftfreq(height)[:, None] * height, np.fft.rfftfreq(width)[None] * width
    frequency = np.hypot(x, y)
    frequency[0, 0] = np.inf
    noise = rng.normal(size=(3, *frequency.shape, 2)).view(np.complex128)[..., 0]
    field = np.fft.irfft2(noise * frequency ** -rng.uniform(0.9, 1.4), (height, width))
    field /= field.std((1, 2), keepdims=True)
    opponent = np.array([[0.87, 0.82, 0.75], [0.3, 0, -0.37], [0.09, -0.18, 0.09]])  # brightness, blue-yellow, green-red
    contrast, brightness, cast = rng.uniform(0.1, 0.3), rng.normal(0.45, 0.15), rng.normal(0, 0.05, 3)
    return np.einsum("chw,ck->hwk", field, opponent) * contrast + brightness + cast


def work(setting: str, folder: Path, count: int, batch: int, model: str) -> None:
    """One measured process: encode, or measure effects and write the bundle."""
    start = time.perf_counter()
    chosen = SETTINGS[setting]
    if chosen is None:
        plain(folder, count, batch, model)
    else:
        from cliptools.commands.effects import main

        options = ["--model", model, "--pretrained", "random", *chosen, "--limit", str(count)]
        with Path(os.devnull).open("wb") as sink:
            sys.stdout = os.fdopen(os.dup(sink.fileno()), "w")
            try:
                main([str(folder), *options, "--batch-size", str(batch), "-q"])
            except SystemExit as stop:
                if stop.code:
                    raise
    seconds = time.perf_counter() - start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9  # it counts KiB
    print(json.dumps({"seconds": seconds, "peak GB": peak}), file=sys.stderr)


def plain(folder: Path, count: int, batch: int, model: str) -> None:
    """The loop that everybody has: decode, encode_image, keep the embeddings."""
    import torch

    from cliptools.ground.images import choose, open_images
    from cliptools.ground.loader import Skipped, load_batches
    from cliptools.ground.models import load_model

    loaded = load_model(model, None if model.startswith("local-dir:") else "random", "cpu")
    source = open_images([str(folder)])
    order = choose(source, count, None, 0)
    batches = load_batches(source, order, loaded.transform, batch_size=batch, workers=2, strict=True, skipped=Skipped())
    with torch.inference_mode():
        kept = [loaded.clip.encode_image(pictures) for _, pictures in batches]
    assert sum(map(len, kept)) == count


def measured(setting: str, folder: Path, count: int, options: argparse.Namespace) -> dict[str, Any]:
    """One process."""
    size = {"batch_size": options.batch_size, "model": options.model}
    return {"setting": setting, "images": count} | in_own_process(__file__, work=setting, folder=folder, count=count, **size)


def speed(folder: Path, options: argparse.Namespace) -> None:
    """A short and a long run of every setting, in turns."""
    for number in range(options.rounds):
        for setting in SETTINGS:
            short, long = (measured(setting, folder, count, options) for count in (SHORT, options.count))
            slope = (long["seconds"] - short["seconds"]) / (options.count - SHORT)
            fixed = long["seconds"] - slope * options.count
            keep(LOG, {"round": number + 1, "setting": setting, "ms": round(1000 * slope, 1), "fixed": round(fixed, 1)})


def memory(folder: Path, options: argparse.Namespace) -> None:
    """Peaks for few and many images."""
    for setting in GOALS:
        for count in MANY:
            peak = round(measured(setting, folder, count, options)["peak GB"], 2)
            keep(LOG, {"setting": setting, "images": count, "peak": peak})


def tables() -> dict[str, list[dict[str, Any]]]:
    """What the log says."""
    lines = [json.loads(line) for line in LOG.read_text(encoding="utf-8").splitlines()]
    rounds = [line for line in lines if "round" in line]
    plain = {line["round"]: line["ms"] for line in rounds if line["setting"] == "plain"}
    found: dict[str, list[dict[str, Any]]] = {"speed": [], "memory": []}
    for setting in SETTINGS:
        here = [line for line in rounds if line["setting"] == setting]
        if here:
            ratios = [round(line["ms"] / plain[line["round"]], 2) for line in here]
            row: dict[str, Any] = {"setting": setting, "ms an image": statistics.median(line["ms"] for line in here)}
            row |= {"ratio": round(statistics.median(ratios), 2), "ratios": ratios, "goal": GOALS.get(setting)}
            found["speed"].append(row | {"fixed s": statistics.median(line["fixed"] for line in here)})
        peaks = {
            f"peak GB, {line['images']} images": line["peak"] for line in lines if line["setting"] == setting and "peak" in line
        }
        if peaks:
            found["memory"].append({"setting": setting} | peaks)
    return {name: rows for name, rows in found.items() if rows}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="ViT-B-32")
    parser.add_argument("--count", type=int, default=512)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--memory", action="store_true", help="also peak memory at 500 and 2,000 images")
    parser.add_argument("--report", action="store_true", help="only the tables, of what was measured last")
    parser.add_argument("--work", help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.report:
        report(options)
        return
    if options.work:
        work(options.work, options.folder, options.count, options.batch_size, options.model)
        return
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make_photos(folder, max(MANY) if options.memory else options.count)
        LOG.unlink(missing_ok=True)
        speed(folder, options)
        if options.memory:
            memory(folder, options)
    report(options)


def report(options: argparse.Namespace) -> None:
    """Tables from the log."""
    save("effects", describe(), {"model": options.model, "images": options.count, "batch": options.batch_size}, tables())


if __name__ == "__main__":
    main()
