"""What commands that read a decomposed bundle share."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from cliptools.commands.base import open_input
from cliptools.ground.errors import StreamError

if TYPE_CHECKING:
    from cliptools.ground.bundle import Bundle


def read_neurons(path: Path | None, *needed: str, option: str = "BUNDLE") -> "Bundle":
    """The bundle at `path` or on standard input.

    Args:
        needed: Tensors it must hold beside `direction`; `word` for a bundle that clip-decompose has seen.
        option: What names a file, for the message when standard input is a terminal.

    Raises:
        StreamError: no bundle, or one that lacks what is needed, with the command that adds it.
    """
    from cliptools.ground.bundle import read_bundle

    stream, name = open_input(path, "a bundle of clip-decompose" if "word" in needed else "a bundle of clip-effects", option)
    with stream:
        bundle = read_bundle(stream, name)
    for tensor in ("direction", *needed):
        if tensor not in bundle:
            adds = "clip-decompose" if tensor in ("word", "coefficient", "words") else "clip-effects"
            raise StreamError(f"{name}: a bundle without `{tensor}`; run {adds} first")
    return bundle


def record_source(bundle: "Bundle") -> dict[str, Any]:
    """What every record says of where it came from: the model, and the bundle's digest."""
    return {"model": {key: bundle.header.model.get(key) for key in ("name", "pretrained", "sha256")}, "bundle": bundle.digest}
