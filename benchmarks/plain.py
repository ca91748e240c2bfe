"""The loop that everybody has, and how long a loop waits for its images."""

import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

EMBEDDED = "emoji-vit", "emoji-rn"
LAST = {"ViT-B-32": 10, "ViT-L-14": 22, "emoji-vit": 6}  # layer that second-order effects have


def weights(model: str) -> list[str]:
    """Options for random weights, where the model brings none."""
    return [] if model in EMBEDDED or model.startswith("local-dir:") else ["--pretrained", "random"]


def load(model: str, device: str = "cpu", precision: Any = "fp32") -> Any:
    """The model, with random weights where it brings none."""
    from cliptools.models.load import load_model

    return load_model(model, "random" if weights(model) else None, device, precision)


def plain(folder: Path, count: int, batch: int, loaded: Any) -> None:
    """Decode, encode_image, keep the embeddings."""
    import torch

    from cliptools.images import loader
    from cliptools.images.loader import choose, open_images
    from cliptools.models.load import DTYPE

    source = open_images([str(folder)])
    order = choose(source, count, None, 0)
    skipped = loader.Skipped()
    batches = loader.load_batches(source, order, loaded.transform, batch_size=batch, workers=None, strict=True, skipped=skipped)
    with torch.inference_mode():
        kept = [loaded.clip.encode_image(pictures.to(loaded.device, DTYPE[loaded.precision])) for _, pictures in batches]
        embeddings = torch.cat(kept).cpu()
    assert len(embeddings) == count


def clip_effects(model: str, folder: Path, count: int, batch: int, *more: str, output: str | Path = os.devnull) -> None:
    """clip-effects within this process; a failure ends it.

    Args:
        more: Further options.
    """
    from cliptools.cli.effects import main

    asked = [str(folder), "--model", model, *weights(model), "--limit", str(count), "--batch-size", str(batch), *more]
    try:
        main([*asked, "-q", "-o", str(output)])
    except SystemExit as stop:
        if stop.code:
            raise


class Watch:
    """From now on, what every loop over images of this process waits for them, and when it began and ended."""

    def __init__(self) -> None:
        from cliptools.images import loader

        self.begin = self.end = self.waiting = 0.0
        real = loader.load_batches

        def load_batches(*arguments: Any, **options: Any) -> Iterator[Any]:
            batches = real(*arguments, **options)
            self.begin = self.begin or time.time()
            while True:
                asked = time.perf_counter()
                batch = next(batches, None)
                self.waiting += time.perf_counter() - asked
                self.end = time.time()
                if batch is None:
                    return
                yield batch

        loader.load_batches = load_batches

    def said(self) -> dict[str, float]:
        """Seconds since the epoch at which the first loop began and the last ended, and the share of the time spent waiting."""
        spent = max(self.end - self.begin, 1e-9)
        return {"begin": self.begin, "end": self.end, "waiting": self.waiting / spent}
