"""Measure the peak memory of the commands over the number of images, units and texts, and compare growth with expectations.

    python benchmarks/memory.py
    python benchmarks/memory.py --cases "clip-effects FOLDER" "clip-concepts FOLDER" --counts 100 1000 10000 100000
    python benchmarks/memory.py --cases --above ViT-B-16-SigLIP --effect second --counts 24 48 --more

The model is emoji-vit2. The peak is the largest resident set of each process, as the system counts it. Files are hard links to
scenes of one emoji; a command without files draws scenes. `flat` means at most 10 % and 20 MB more for the largest count than for
the count before; the last column says whether the case is expected to be flat. clip-effects is not: it keeps the lists of all
images while they fit a quarter of --memory, 1 GB by default. --above measures clip-effects with other models
of open_clip's, with random weights and photographs, in batches of 8: the peak less the memory in use before the first Gram
matrix, when the model is loaded. --cases without a name leaves the other cases out.
"""

import argparse
import json
import os
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from machine import describe, save
from photos import link, make_photos, make_scenes
from plain import Resident, clip_effects
from runs import Row, arguments, in_own_process, out_of, run, say, tool

MINUTES = 45
COUNTS = (100, 1000, 10_000)
LIMITED: dict[str, list[Any]] = {
    "clip-effects": ["effects"],
    "clip-ablate": ["ablate", "--bundle", "BUNDLE"],
    "clip-scenes": ["scenes"],
}
"""Cases that draw their images, some 25 per second; the number of images is the last argument."""
NAMED: dict[str, list[Any]] = {
    "clip-effects FOLDER": ["effects", "FOLDER"],
    "clip-effects FOLDER --layers 0-6": ["effects", "FOLDER", "--layers", "0-6"],
    "clip-effects FOLDER --effect first": ["effects", "FOLDER", "--effect", "first"],
    "clip-effects FOLDER --units heads": ["effects", "FOLDER", "--units", "heads"],
    "clip-effects FOLDER --model emoji-rn2": ["effects", "FOLDER", "--model", "emoji-rn2"],
    "clip-concepts FOLDER": ["concepts", "FOLDER", "--bundle", "BUNDLE"],
    "clip-segment FOLDER": ["segment", "FOLDER", "--text", "cat", "--bundle", "BUNDLE"],
    "clip-shift FOLDER": ["shift", "FOLDER", "--concept", "cat", "--bundle", "BUNDLE"],
}
"""Cases that read files. The names of all files stay in memory, a hundred bytes per image, so memory is not exactly constant."""
SIZES = ("units, clip-decompose", "texts, clip-decompose", "units, clip-view", "units, clip-effects")
BATCH = 8  # of models of open_clip's
LIBRARIES = "from cliptools.library_patches import ensure_torchvision; ensure_torchvision(); import open_clip"
POOLS = {526: "emoji", 10_000: "words10k", 30_000: "words30k"}
LAYERS = {768: "6", 1536: "5-6", 5376: "0-6"}  # of emoji-vit2, by units


def peak(*words: Any) -> float:
    """Return the peak memory of a command in GB."""
    return tool(*words, "-q", "-o", os.devnull).peak


def judged(what: str, counts: Sequence[int], peaks: Sequence[float], flat: bool) -> Row:
    """Return a row with the peaks by count, and whether they are flat."""
    row: Row = {"what": what} | {f"GB, {count:,}": round(each, 3) for count, each in zip(counts, peaks, strict=True)}
    stays = peaks[-1] <= 1.1 * peaks[-2] + 0.02 if len(peaks) > 1 else None
    return row | {"flat": None if stays is None else "yes" if stays else "no", "should be": "yes" if flat else "no"}


def image_rows(cases: Sequence[str], counts: Sequence[int], folder: Path, bundle: Path) -> list[Row]:
    """Return rows of peaks by number of images."""
    files = make_scenes(folder / "drawn", min(526, max(counts)))
    rows = []
    for case in cases:
        words, peaks = (LIMITED | NAMED)[case], []
        for count in counts:
            where = folder / str(count)
            if "FOLDER" in words and not where.exists():
                link(files, count, where, nested=True)
            case_arguments = [{"FOLDER": where, "BUNDLE": bundle}.get(word, word) for word in words]
            number = ["--count" if case == "clip-scenes" else "--limit", count] if case in LIMITED else []
            peaks.append(peak(*case_arguments, *number))
        rows.append(judged(case, counts, peaks, not case.startswith("clip-effects")))
        print(rows[-1], flush=True)
    return rows


def size_rows(cases: Sequence[str], images: int, folder: Path, small: bool) -> list[Row]:
    """Return rows of peaks by units and texts."""
    rows: list[Row] = []
    layers = dict(list(LAYERS.items())[: 1 if small else None])
    pools = dict(list(POOLS.items())[: 1 if small else None])
    bundles = {units: folder / f"{units}.safetensors" for units in layers}
    peaks: list[float] = []
    for units, of in layers.items():
        peaks.append(tool("effects", "--layers", of, "--limit", images, "-q", "-o", bundles[units]).peak)
    if "units, clip-effects" in cases:
        rows.append(judged(f"units, clip-effects, {images} images", list(layers), peaks, False))
    if "units, clip-decompose" in cases:
        peaks = [peak("decompose", bundle, "--m", 32) for bundle in bundles.values()]
        rows.append(judged("units, clip-decompose --m 32", list(layers), peaks, False))
    if "texts, clip-decompose" in cases:
        peaks = [peak("decompose", bundles[768], "--m", 32, "--no-cache", "--pool", pool) for pool in pools.values()]
        rows.append(judged("texts, clip-decompose of 768 units", list(pools), peaks, False))
    if "units, clip-view" in cases:
        peaks = [peak("view", bundle, "-f", "jsonl") for bundle in bundles.values()]
        rows.append(judged("units, clip-view -f jsonl", list(layers), peaks, False))
    for row in rows:
        print(row, flush=True)
    return rows


def above_rows(models: Sequence[str], effect: str | None, counts: Sequence[int], folder: Path) -> list[Row]:
    """Return rows of peaks above the model by number of images, for models of open_clip's."""
    photos = folder / "photos"
    photos.mkdir()
    make_photos(photos, max(counts))
    rows = []
    for model in models:
        chosen = {} if effect is None else {"effect": effect}
        peaks = []
        for count in counts:
            process = in_own_process(__file__, work=1, above=model, counts=count, folder=photos, **chosen)
            peaks.append(process["peak GB"] - process["GB before"])
        rows.append(
            judged(
                " ".join(["clip-effects FOLDER --model", model, *(f"--effect {name}" for name in chosen.values())]),
                counts,
                peaks,
                True,
            )
        )
        print(rows[-1], flush=True)
    return rows


def work(options: argparse.Namespace) -> None:
    """Run one measured process: clip-effects of a model of open_clip's."""
    watch = Resident()
    more = [] if options.effect is None else ["--effect", options.effect]
    clip_effects(options.above[0], options.folder, options.counts[0], BATCH, *more)
    say(**{"GB before": watch.before, "passes": watch.passes})


def joined(tables: dict[str, list[Row]], out: Path | None) -> dict[str, list[Row]]:
    """Return the rows of the last run and of this run; the newer row replaces an older row of the same case."""
    path = out / "memory.json" if out else None
    before = json.loads(path.read_text(encoding="utf-8")) if path and path.exists() else {}
    return {
        title: list({row["what"]: row for row in (*before.get(title, []), *tables.get(title, []))}.values())
        for title in dict.fromkeys((*(title for title in before if title not in ("machine", "settings")), *tables))
    }


def main() -> None:
    parser = arguments(__doc__)
    every = [*LIMITED, *NAMED, *SIZES]
    parser.add_argument("--more", action="store_true", help="add to the results of the last run")
    parser.add_argument("--cases", nargs="*", default=every, choices=every, metavar="CASE", help=", ".join(every))
    parser.add_argument("--counts", nargs="+", type=int, default=COUNTS, help="numbers of images")
    parser.add_argument("--above", nargs="+", default=[], metavar="NAME", help="models of open_clip's, with random weights")
    parser.add_argument("--effect", help="effect of these models")
    for name, kind in (("--work", int), ("--folder", Path)):
        parser.add_argument(name, type=kind, help=argparse.SUPPRESS)
    options: argparse.Namespace = parser.parse_args()
    if options.quick:
        options.counts = [40, 120]
        options.cases = ["clip-scenes", "clip-concepts FOLDER", "units, clip-view"] if options.cases == every else options.cases
    if options.work:
        work(options)
        return
    images = [case for case in options.cases if case not in SIZES]
    found: dict[str, list[Row]] = {}
    floors = [("python", [sys.executable, "-c", "pass"]), ("import torch, open_clip", [sys.executable, "-c", LIBRARIES])]
    found["before any work"] = [{"what": name, "GB": round(run(command).peak, 3)} for name, command in floors]
    with tempfile.TemporaryDirectory() as name:
        folder, bundle = Path(name), Path(name) / "neurons.safetensors"
        os.environ["CLIPTOOLS_CACHE"] = str(folder / "cache")
        if any("BUNDLE" in (LIMITED | NAMED)[case] for case in images):
            effects = folder / "effects.safetensors"
            tool("effects", "--limit", 200, "-q", "-o", effects)
            tool("decompose", effects, "--m", 8, "-q", "-o", bundle)
        if images:
            found["peak by number of images"] = image_rows(images, options.counts, folder, bundle)
        if len(images) < len(options.cases):
            found["peak by units and texts"] = size_rows(options.cases, min(options.counts[-1], 1000), folder, options.quick)
        if options.above:
            found["peak above the model"] = above_rows(options.above, options.effect, options.counts, folder)
    save(out_of(options), "memory", describe(), {}, joined(found, out_of(options)) if options.more else found)


if __name__ == "__main__":
    main()
