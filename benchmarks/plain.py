"""The plain forward pass over images as a reference, and the time that a loop waits for its images."""

import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

EMBEDDED = "emoji-vit2", "emoji-rn2"
LAST = {
    "ViT-B-32": 10,
    "ViT-L-14": 22,
    "emoji-vit2": 6,
    "EVA02-B-16": 10,
    "ViT-L-14-CLIPA": 22,
    "ViTamin-S": 12,
}  # last layer with second-order effects


def weights(model: str) -> list[str]:
    """Return options for random weights, for models that have no weights of their own."""
    return [] if model in EMBEDDED or model.startswith("local-dir:") else ["--pretrained", "random"]


def load(model: str, device: str = "cpu", precision: Any = "fp32") -> Any:
    """Return the model, with random weights if it has none of its own."""
    from cliptools.models.load import load_model

    return load_model(model, "random" if weights(model) else None, device, precision)


def plain(folder: Path, count: int, batch: int, loaded: Any) -> None:
    """Decode the images, call encode_image and keep the embeddings."""
    import torch

    from cliptools.images import loader
    from cliptools.images.loader import choose, open_images
    from cliptools.models.load import DTYPE

    source = open_images([str(folder)])
    order = choose(source, count, None, 0)
    skipped = loader.Skipped()
    batches = loader.load_batches(source, order, loaded.transform, batch_size=batch, workers=None, strict=True, skipped=skipped)
    with torch.inference_mode():
        parts = [loaded.clip.encode_image(pictures.to(loaded.device, DTYPE[loaded.precision])) for _, pictures in batches]
        embeddings = torch.cat(parts).cpu()
    assert len(embeddings) == count


def clip_effects(model: str, folder: Path, count: int, batch: int, *more: str, output: str | Path = os.devnull) -> None:
    """Run clip-effects within this process; a failure ends the process.

    Args:
        more: Further options.
    """
    from cliptools.cli.effects import main

    words = [str(folder), "--model", model, *weights(model), "--limit", str(count), "--batch-size", str(batch), *more]
    try:
        main([*words, "-q", "-o", str(output)])
    except SystemExit as stop:
        if stop.code:
            raise


class Watch:
    """Measures begin, end and waiting time of every loop over images in this process from now on."""

    def __init__(self) -> None:
        from cliptools.images import loader

        self.begin = self.end = self.waiting = 0.0
        real = loader.load_batches

        def load_batches(*arguments: Any, **options: Any) -> Iterator[Any]:
            batches = real(*arguments, **options)
            self.begin = self.begin or time.time()
            while True:
                start = time.perf_counter()
                batch = next(batches, None)
                self.waiting += time.perf_counter() - start
                self.end = time.time()
                if batch is None:
                    return
                yield batch

        loader.load_batches = load_batches

    def said(self) -> dict[str, float]:
        """Return begin of the first loop and end of the last in seconds since the epoch, and the share of time spent waiting."""
        spent = max(self.end - self.begin, 1e-9)
        return {"begin": self.begin, "end": self.end, "waiting": self.waiting / spent}


class Resident:
    """Notes the memory in use when this process begins to measure effects, with a loaded model, and the passes."""

    def __init__(self) -> None:
        from cliptools.front import effects

        self.before, self.passes = 0.0, 0
        real = effects.measure

        def measure(*arguments: Any, **options: Any) -> Any:
            self.before = resident()
            report = real(*arguments, **options)
            self.passes = report.passes
            return report

        effects.measure = measure


def resident() -> float:
    """Return the memory of this process in GB, as Linux counts it; 0 elsewhere."""
    status = Path("/proc/self/status")
    lines = status.read_text().splitlines() if status.exists() else []
    return sum(int(line.split()[1]) * 1024 / 1e9 for line in lines if line.startswith("VmRSS:"))
