"""The options that help where memory has run out."""

import sys
from collections.abc import Mapping
from typing import Any

from cliptools.ground.errors import SingleItemError

BATCHES = ("images", "windows", "pictures")  # that --batch-size counts


def memory_advice(error: BaseException, options: Mapping[str, Any]) -> str:
    """Return the message for a run that has used up its memory: with which batch, and which of the command's options help.

    The batch size does not where a single item was too much, nor where no batch of images was being read.

    Args:
        options: The command's parameters and their values.
    """
    from cliptools.ground.halving import left_off

    batches = not left_off.isdisjoint(BATCHES)
    single = error.kind if isinstance(error, SingleItemError) else None
    ways = []
    if single is None and batches and (options.get("batch_size") or 1) > 1:
        ways.append(f"lower --batch-size (now {options['batch_size']})")
    if "memory" in options:
        ways.append(f"lower --memory (now {options['memory']:g} GB)")
    if options.get("precision") == "fp32":
        ways.append("--precision bf16")
    if options.get("device", "cpu") != "cpu" and _has_accelerator():
        ways.append("--device cpu")
    what = f"out of memory with a single {single}" if single else "out of memory"
    return f"{what}: " + (" or ".join(ways) if ways else "more is needed than this machine has free")


def forget_batches() -> None:
    """Batches that an earlier run of this process has left off are none of this one's."""
    if (halving := sys.modules.get("cliptools.ground.halving")) is not None:
        halving.left_off.clear()


def _has_accelerator() -> bool:
    import torch

    return torch.cuda.is_available() or torch.backends.mps.is_available()
