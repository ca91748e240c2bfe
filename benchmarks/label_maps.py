"""Measure memory of label maps by pairs beyond the model: RN50x16, one crop of 384 pixels, 59 classes, 20,000 pairs per class.

    python benchmarks/label_maps.py

The weights are random. The memory is the peak of the process minus its memory after the model was created: the directions of
all 147,456 pairs, their selection, and the maps; then also the label map of a picture of 2,000 × 3,000 pixels from one window's
logits.
"""

import os
import resource
import time
from pathlib import Path

from machine import describe, save
from runs import Row, arguments, out_of

CLASSES, CROP, TOP = 59, 384, 20_000
MINUTES = 1
GOAL = 2.0  # GB
PICTURE = (2000, 3000)


def memory_now() -> float:
    """Return the current memory of this process in GB."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e9


def peak() -> float:
    """Return the peak memory of this process in GB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9


def main() -> None:
    options = arguments(__doc__).parse_args()
    top, picture = (200, (200, 300)) if options.quick else (TOP, PICTURE)
    import torch

    from cliptools.library_patches import ensure_torchvision

    ensure_torchvision()
    from open_clip.modified_resnet import ModifiedResNet

    from cliptools.segmentation.masks import WindowAverage, best_texts
    from cliptools.segmentation.resnet_methods import PairUnits, resnet_method
    from cliptools.unit_effects.resnet_pooling import Pairs, pair_directions

    torch.manual_seed(0)
    torch.set_grad_enabled(False)
    visual = ModifiedResNet([6, 8, 18, 8], 768, 48, image_size=CROP, width=96).eval()
    model, before, rows = memory_now(), peak(), []

    def note(what: str, seconds: float) -> None:
        row: Row = {"what": what, "seconds": round(seconds, 2), "peak GB beyond the model": round(peak() - model, 2)}
        rows.append(row | {"goal": GOAL})

    start = time.perf_counter()
    unit = Pairs(visual).units(4)
    r = torch.nn.functional.normalize(pair_directions(visual, unit[:, 1], unit[:, 2]), dim=1)
    t = torch.nn.functional.normalize(torch.randn(CLASSES, visual.output_dim), dim=1)
    look = resnet_method("pairs", visual, t, PairUnits(r, unit, top), sink=True)
    note("directions and selection", time.perf_counter() - start)
    for what in ("first crop", "second crop"):
        start = time.perf_counter()
        logits = look(torch.randn(1, 3, CROP, CROP)).logits
        note(what, time.perf_counter() - start)
    start = time.perf_counter()
    best_texts(WindowAverage(logits, ([0], [0]), (CROP, CROP), (CROP, CROP)), *picture)
    note(f"labels of {picture[0]} × {picture[1]} pixels", time.perf_counter() - start)
    settings = {
        "classes": CLASSES,
        "crop": CROP,
        "pairs a class": top,
        "model GB": round(model, 2),
        "peak before": round(before, 2),
    }
    save(out_of(options), "label_maps", describe(), settings, {"memory": rows})


if __name__ == "__main__":
    main()
