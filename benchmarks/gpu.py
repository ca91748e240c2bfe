"""Check a machine with a GPU in at most eight minutes: CPU = CUDA on both embedded models, and times of effects and pursuit.

    python benchmarks/gpu.py                            # on a machine with a GPU; without one it prints a message and ends with 2
    python benchmarks/gpu.py --device cpu --small       # a very small version of every part, to test the script itself

The script checks cosines of directions, top images, thresholds, and label maps. It times clip-effects and a plain pass over the
same JPEG files for ViT-L-14 in bf16, in separate processes, with the cost per image as the slope between a short and a long
loop, and the pursuit of all neurons of a ViT-B-32 (m = 128) and of all pairs of RN50x16 (m = 64) on random texts. `GPU %` is
the share of time in which a kernel ran, from nvidia-smi; `peak GB` is memory of the device. Parts that do not fit into the
eight minutes are left out and listed.
"""

import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from decompose import PAIRS, PAIRS_M, PAIRS_WIDTH, WIDTH, related
from effects import measured
from machine import describe, save
from photos import make_photos
from runs import Row, arguments, out_of, slopes

from cliptools.io.bundle import Bundle, read_bundle

MINUTES = 8
LEAST_COSINE, LEAST_SAME = 0.999, 0.99  # of directions; share of equal top images and pixels
MOST_APART = 1e-3  # relative difference of thresholds
NEURONS, TEXTS, M = 3072, 30_000, 128


class Size(NamedTuple):
    """The sizes of all parts."""

    scenes: int
    pictures: int
    """Number of scenes with label maps."""
    model: str
    precision: str
    counts: tuple[int, int]
    """Images of the short and of the long run."""
    batch: int
    pursuits: tuple[tuple[int, int, int, int], ...]
    """Units, texts, width, m."""


FULL = Size(1000, 24, "ViT-L-14", "bf16", (400, 2000), 64, ((NEURONS, TEXTS, WIDTH, M), (PAIRS, TEXTS, PAIRS_WIDTH, PAIRS_M)))
SMALL = Size(40, 2, "emoji-vit2", "fp32", (8, 24), 8, ((40, 200, 32, 8), (60, 200, 24, 4)))


def command(name: str, *words: object) -> None:
    """Run clip-NAME within this process; a failure ends the script."""
    import importlib

    try:
        importlib.import_module(f"cliptools.cli.{name}").main([str(word) for word in words])
    except SystemExit as stop:
        if stop.code:
            raise


def peak(device: str) -> float | None:
    """Return the peak memory of torch on the device since the last call, in GB; None for a CPU."""
    if not device.startswith("cuda"):
        return None
    largest = torch.cuda.max_memory_allocated(device) / 1e9
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats(device)
    return round(largest, 2)


def compared(ours: Bundle, theirs: Bundle) -> Row:
    """Compare two bundles of the same images, one from each device."""
    if "direction" in ours:
        acting = np.linalg.norm(theirs["direction"], axis=1) > 0
        cosine = float((ours["direction"] * theirs["direction"]).sum(1)[acting].min())
    else:  # pairs, whose directions come from the weights up to their sign
        cosine = float((ours["sign"] * theirs["sign"])[theirs["sign"] != 0].min())
    names = [np.array(each.text_list("images"))[each["top_image"]] for each in (ours, theirs)]
    same = np.mean([len(set(mine) & set(other)) / len(mine) for mine, other in zip(*names, strict=True)])
    apart = np.abs(ours["threshold"] - theirs["threshold"]) / np.maximum(theirs["threshold"], 1e-6)
    row: Row = {"units": ours.units, "least cosine": round(cosine, 6), "same top images": round(float(same), 5)}
    row |= {"thresholds apart": float(f"{apart.max():.1e}")}
    good = cosine >= LEAST_COSINE and same >= LEAST_SAME and apart.max() <= MOST_APART
    return row | {"equal": "yes" if good else "NO"}


def same_labels(folder: Path, size: Size, device: str) -> Row:
    """Compare label maps of the emoji by the ResNet's pairs on both devices."""
    from PIL import Image

    scenes = folder / "scenes"
    command("scenes", "--count", size.pictures, "--size", 128, "--out-dir", scenes, "-q")
    for name, where in (("theirs", "cpu"), ("ours", device)):
        words = ("--classes", "emoji", "--template", "{}", "--sink", "off", "--bundle", folder / "emoji-rn2-theirs.safetensors")
        out = ("--out-dir", folder / name, "-o", folder / f"{name}.jsonl", "-f", "jsonl", "-q")
        command("segment", scenes / "images", *words, "--device", where, *out)
    shares = []
    for path in sorted((folder / "theirs").rglob("*.labels.png")):
        with Image.open(path) as one, Image.open(folder / "ours" / path.relative_to(folder / "theirs")) as other:
            shares.append(float((np.asarray(one) == np.asarray(other)).mean()))
    same = float(np.mean(shares))
    row: Row = {"model": "emoji-rn2", "label maps": len(shares), "same pixels": round(same, 5)}
    return row | {"equal": "yes" if same >= LEAST_SAME else "NO"}


def equality(folder: Path, size: Size, device: str) -> list[Row]:
    """Compare both embedded models on the CPU and on the device."""
    rows = []
    for model in ("emoji-vit2", "emoji-rn2"):
        bundles = []
        for name, where in (("ours", device), ("theirs", "cpu")):
            path = folder / f"{model}-{name}.safetensors"
            command("effects", "--model", model, "--limit", size.scenes, "--device", where, "-q", "-o", path)
            with path.open("rb") as stream:
                bundles.append(read_bundle(stream, str(path)))
        ours, theirs = bundles
        rows.append({"model": model, "images": size.scenes} | compared(ours, theirs) | {"peak GB": peak(device)})
    rows.append(same_labels(folder, size, device) | {"peak GB": peak(device)})
    return rows


def beside_plain(folder: Path, size: Size, device: str) -> list[Row]:
    """Measure clip-effects and a plain pass, from files."""
    photos = folder / "photos"
    photos.mkdir()
    make_photos(photos, size.counts[1])
    case: Row = {"model": size.model, "precision": size.precision, "batch": size.batch}
    rows: list[Row] = []
    for setting in ("plain", "default layers"):
        short, long = (in_the_loop(measured(setting, photos, count, case, device)) for count in size.counts)
        row = case | {"setting": setting, "images": size.counts[1]} | slopes(short, long, *size.counts)
        rows.append(row | {"waiting %": round(100 * long["waiting"]), "GPU %": long.get("GPU"), "peak GB": long.get("device GB")})
    plain, effects = (row["ms"] for row in rows)
    rows[1]["ratio"] = round(effects / plain, 3) if plain > 0 else None
    return rows


def in_the_loop(process: Row) -> Row:
    """Return a process with the seconds from its first image to its last.

    Creating a ViT-L-14 takes ten seconds, plus or minus one, in which a fast GPU encodes a thousand images.
    """
    return process | {"seconds": process["end"] - process["begin"]}


def pursuits(folder: Path, size: Size, device: str) -> list[Row]:
    """Measure the pursuit of all units."""
    from cliptools.analysis.pursuit import pursue

    rows: list[Row] = []
    for units, texts, width, m in size.pursuits:
        targets, atoms = (each.to(device) for each in related(units, texts, width))
        pursue(targets[:16], atoms, min(m, 4))  # loads the kernels
        began = time.perf_counter()
        result = pursue(targets, atoms, m)
        residual = float(result.residual.mean())  # waits for the device
        seconds = round(time.perf_counter() - began, 2)
        row: Row = {"units": units, "texts": texts, "width": width, "m": m, "seconds": seconds, "residual": round(residual, 4)}
        rows.append(row | {"peak GB": peak(device)})
    return rows


PARTS: dict[str, Callable[[Path, Size, str], list[Row]]] = {
    "CPU = device": equality,
    "pursuit": pursuits,
    "clip-effects beside a plain pass": beside_plain,
}


def work(size: Size, device: str, minutes: float) -> dict[str, list[Row]]:
    """Return tables by title; a part that would begin too late is left out."""
    tables: dict[str, list[Row]] = {}
    began = time.perf_counter()
    for title, part in PARTS.items():
        spent = (time.perf_counter() - began) / 60
        if spent > minutes * 0.6:
            tables.setdefault("left out", []).append({"part": title, "minutes spent": round(spent, 1)})
            continue
        with tempfile.TemporaryDirectory() as folder:
            tables[title] = part(Path(folder), size, device)
    return tables


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--device", default="cuda", help="device that computes [default: cuda]")
    parser.add_argument("--small", action="store_true", help="a very small run")
    parser.add_argument(
        "--minutes", type=float, default=MINUTES, help="no part begins after six tenths of this time [default: 8]"
    )
    options: Any = parser.parse_args()
    if options.device.startswith("cuda") and not torch.cuda.is_available():
        print("torch finds no GPU: nothing was measured (--device cpu --small tests the script)", file=sys.stderr)
        sys.exit(2)
    options.quick = options.quick or options.small
    size = SMALL if options.quick else FULL
    began = time.perf_counter()
    tables = work(size, options.device, options.minutes)
    settings = {"device": options.device, "size": "small" if size is SMALL else "full"}
    save(out_of(options), "gpu", describe(), settings | {"minutes": round((time.perf_counter() - began) / 60, 1)}, tables)
    sys.exit(any(row.get("equal") == "NO" for row in tables.get("CPU = device", [])))


if __name__ == "__main__":
    main()
