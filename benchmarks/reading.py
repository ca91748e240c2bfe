"""Measure the cost of a run apart from the model, for docs/scale.md: listing images, decoding them, merging partials.

    python benchmarks/reading.py
    python benchmarks/reading.py --listed 1000000 --work list decode    # a list nearly as long as ImageNet's; no merge

The tables have elapsed seconds and processor seconds, as medians of rounds in turns. The files were written just before, so that
the system has them in memory; the time of a disk or a network is not included. Listing reads the folder or the archives' headers
and determines the order of work, in a separate process; its memory is the growth of this process. Decoding goes from the file to
the model's input, on one thread. Merging uses partials of random weights, whose lists of top images are full from 200 images on.
`each further one` is the slope between a merge of all partials and a merge in which all but one were merged before.
"""

import argparse
import io
import os
import statistics
import tarfile
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from label_maps import memory_now
from machine import describe, save
from photos import make_photos
from plain import load, weights
from runs import Row, alternating, arguments, in_own_process, out_of, say, slopes, tool

MINUTES = 5
SIZES = {"JPEG, 500 × 375, quality 90": (375, 500), "JPEG, 256 × 256, quality 90": (256, 256)}
BESIDE = {"jpg": 20_000, "txt": 60, "json": 400}  # members of a sample, and their bytes
ARCHIVES = f"tar of {', '.join(BESIDE)}"
TOGETHER = 1000  # files in a folder, samples in an archive
WORKS = ("list", "decode", "merge")


def files_in_folders(folder: Path, count: int) -> None:
    """Write `count` files with names of pictures in several folders; listing does not read their content."""
    for start in range(0, count, TOGETHER):
        within = folder / f"{start // TOGETHER:05d}"
        within.mkdir(parents=True)
        first = within / f"{start:08d}.jpg"
        first.write_bytes(bytes(64))
        for i in range(start + 1, min(start + TOGETHER, count)):
            os.link(first, within / f"{i:08d}.jpg")


def archives(folder: Path, count: int) -> None:
    """Write `count` samples of a WebDataset, in archives that are links to the first one."""
    folder.mkdir()
    first = folder / "00000.tar"
    with tarfile.open(first, "w", format=tarfile.USTAR_FORMAT) as archive:
        for i in range(min(TOGETHER, count)):
            for ending, size in BESIDE.items():
                member = tarfile.TarInfo(f"{i:09d}.{ending}")
                member.size = size
                archive.addfile(member, io.BytesIO(bytes(size)))
    for i in range(1, count // TOGETHER):
        os.link(first, folder / f"{i:05d}.tar")


def clocks() -> tuple[float, float]:
    """Return elapsed seconds and processor seconds."""
    return time.perf_counter(), time.process_time()


def list_here(folder: Path) -> None:
    """List the images of a folder and determine the order of work, in this process."""
    from cliptools.front.images import Reading, number_images
    from cliptools.images.loader import open_images
    from cliptools.streaming import ranking  # noqa: F401  # loads its libraries before the measurement

    paths = sorted(map(str, folder.glob("*.tar"))) or [str(folder)]
    before, start = memory_now(), clocks()
    source = open_images(paths)
    count, between = len(source), clocks()
    reading = Reading()
    work = number_images(source, limit=None, sample=None, seed=0, reading=reading)
    end = clocks()
    assert len(work.order) == count
    spent = {"clock": end[0] - start[0], "processor": end[1] - start[1], "ordering": end[1] - between[1]}
    say(listed=count, held=1e9 * (memory_now() - before), **spent)


def listing(options: argparse.Namespace, folder: Path) -> list[Row]:
    """Measure listing of files in folders, and of a WebDataset."""
    makers: dict[str, Callable[[Path, int], None]] = {
        "files in folders": files_in_folders,
        f"tar of {', '.join(BESIDE)}": archives,
    }
    works = {}
    for i, (what, make) in enumerate(makers.items()):
        make(folder / str(i), options.listed)
        works[what] = partial(in_own_process, __file__, here="list", folder=folder / str(i))
    rows = []
    for what, runs in alternating(options.rounds, works).items():
        listed = runs[0]["listed"]
        of = {key: statistics.median(each[key] for each in runs) / listed for key in runs[0]}
        row: Row = {"what": what, "images": listed, "µs an image": round(1e6 * of["clock"], 2)}
        row |= {"cpu µs an image": round(1e6 * of["processor"], 2), "of it, ordering": round(1e6 * of["ordering"], 2)}
        if what == ARCHIVES:
            row["cpu µs a member"] = round(1e6 * (of["processor"] - of["ordering"]) / len(BESIDE), 2)
        rows.append(row | {"bytes held an image": round(of["held"])})
        print(rows[-1], flush=True)
    return rows


def decode_here(folder: Path, model: str, rounds: int) -> None:
    """Convert pictures of each size to the model's input on one thread, in this process."""
    import torch

    from cliptools.images.loader import open_images

    torch.set_num_threads(1)
    transform = load(model).transform

    def decoded(source: Any) -> tuple[float, float]:
        start = clocks()
        for i in range(len(source)):
            transform(source.load(i))
        end = clocks()
        return (end[0] - start[0]) / len(source), (end[1] - start[1]) / len(source)

    sources = {what: open_images([str(folder / str(i))]) for i, what in enumerate(SIZES)}
    for source in sources.values():
        transform(source.load(0))
    times = alternating(rounds, {what: partial(decoded, source) for what, source in sources.items()})
    say(decoded=times, size=list(transform(source.load(0)).shape))


def decoding(options: argparse.Namespace, folder: Path) -> list[Row]:
    """Measure decoding of both sizes of pictures."""
    kb = {}
    for i, (what, (height, width)) in enumerate(SIZES.items()):
        (folder / str(i)).mkdir(parents=True)
        files = make_photos(folder / str(i), options.decoded, height=height, width=width)
        kb[what] = statistics.mean(file.stat().st_size for file in files) / 1000
    process = in_own_process(__file__, here="decode", folder=folder, model=options.model, rounds=options.rounds)
    rows: list[Row] = []
    for what, rounds in process["decoded"].items():
        seconds, cpu = (statistics.median(each) for each in zip(*rounds, strict=True))
        row: Row = {"what": what, "pictures": options.decoded, "kB a file": round(kb[what], 1)}
        row |= {"ms an image": round(1000 * seconds, 2), "cpu ms an image": round(1000 * cpu, 2)}
        rows.append(row | {"model's input": " × ".join(map(str, process["size"]))})
        print(rows[-1], flush=True)
    return rows


def merging(options: argparse.Namespace, folder: Path) -> list[Row]:
    """Measure a merge of all partials, and a merge in which all but one were merged before."""
    count, each = options.partials, options.each
    (folder / "photos").mkdir(parents=True)
    make_photos(folder / "photos", count * each, distinct=64)
    parts = [folder / f"{i}.safetensors" for i in range(1, count + 1)]
    for i, part in enumerate(parts, 1):
        words = [folder / "photos", "--model", options.model, *weights(options.model), "--shard", f"{i}/{count}"]
        tool("effects", *words, *(["--centre", parts[0]] if i > 1 else []), "-q", "-o", part)
    merged = folder / "merged.safetensors"
    tool("merge", *parts[:-1], "--partial", "-q", "-o", merged)

    def joined(files: list[Path]) -> Row:
        ran = tool("merge", *files, "-q", "-o", os.devnull)
        return {"seconds": ran.seconds, "cpu": ran.cpu, "peak": ran.peak}

    sets = {2: [merged, parts[-1]], count: parts}
    runs_by_number = alternating(options.rounds, {str(number): partial(joined, files) for number, files in sets.items()})
    median = {
        number: {key: statistics.median(one[key] for one in runs) for key in runs[0]} for number, runs in runs_by_number.items()
    }
    gb = {str(number): sum(file.stat().st_size for file in files) / 1e9 for number, files in sets.items()}
    rows: list[Row] = []
    for number in sets:
        of = median[str(number)]
        row: Row = {"what": f"{number} partials", "GB": round(gb[str(number)], 3), "seconds": round(of["seconds"], 2)}
        rows.append(row | {"cpu s": round(of["cpu"], 2), "peak GB": round(of["peak"], 2)})
    further = slopes(median["2"], median[str(count)], 2, count)
    size = (gb[str(count)] - gb["2"]) / (count - 2)
    row = {"what": "each further one", "GB": round(size, 3), "seconds": round(further["ms"] / 1000, 2)}
    row |= {"cpu s": round(further["cpu ms"] / 1000, 2), "cpu s a GB": round(further["cpu ms"] / 1000 / size, 2)}
    return [*rows, row]


def parse() -> argparse.Namespace:
    """Return the options."""
    parser = arguments(__doc__)
    parser.add_argument("--work", nargs="+", default=list(WORKS), choices=WORKS, help="tables [default: all]")
    parser.add_argument("--model", default="ViT-B-32", help="model of the preprocessing and the partials, with random weights")
    parser.add_argument("--listed", type=int, default=50_000, help=f"number of images to list, a multiple of {TOGETHER}")
    parser.add_argument("--decoded", type=int, default=256, help="different pictures of each size")
    parser.add_argument("--partials", type=int, default=4)
    parser.add_argument("--each", type=int, default=200, help="images of a partial")
    parser.add_argument("--rounds", type=int, default=3)
    for name, kind in (("--here", str), ("--folder", Path)):
        parser.add_argument(name, type=kind, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.quick:
        options.model, options.listed, options.decoded, options.rounds = "emoji-vit2", 2000, 8, 1
        options.partials, options.each = 3, 8
    if options.partials < 3 or options.listed % TOGETHER:
        parser.error(f"--partials must be at least 3, and --listed a multiple of {TOGETHER}")
    return options


def main() -> None:
    options = parse()
    if options.here == "list":
        list_here(options.folder)
        return
    if options.here == "decode":
        decode_here(options.folder, options.model, options.rounds)
        return
    tables = {"list": ("listing", listing), "decode": ("decoding", decoding), "merge": ("merging", merging)}
    results: dict[str, list[Row]] = {}
    with tempfile.TemporaryDirectory() as name:
        for work in options.work:
            title, measure = tables[work]
            results[title] = measure(options, Path(name) / work)
    about = {"model": options.model, "rounds": options.rounds, "images of a partial": options.each}
    save(out_of(options), "reading", describe(), about, results)


if __name__ == "__main__":
    main()
