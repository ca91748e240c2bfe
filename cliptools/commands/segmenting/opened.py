"""What clip-segment works with: a bundle, its model, and the kind of method that the model's image tower allows."""

from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from cliptools.commands.consume import read_neurons
from cliptools.ground.errors import StreamError

if TYPE_CHECKING:
    from cliptools.ground.bundle import Bundle
    from cliptools.ground.models import LoadedModel
    from cliptools.methods.segmentation.resnet_methods import PairUnits


class Opened(NamedTuple):
    """A bundle and its model."""

    bundle: "Bundle"
    model: "LoadedModel"
    resnet: bool
    """Neuron-head pairs (arXiv 2509.19943); else a ViT's neurons (arXiv 2406.04341)."""
    method: str


def open_bundle(path: Path | None, options: dict[str, Any]) -> Opened:
    """The bundle at `path` or on standard input, and its model.

    Raises:
        CliptoolsError: no bundle, another model than is here, or a method that the model has not.
    """
    from cliptools.ground.models import load_recorded_model
    from cliptools.methods.segmentation.towers import is_resnet, method_of

    bundle = read_neurons(path, option="--bundle", device=options["device"])
    model = load_recorded_model(bundle.header.model, options["device"])
    resnet = is_resnet(model.clip)
    visual: Any = model.clip.visual
    if (width := bundle["direction"].shape[1]) != visual.output_dim:
        raise StreamError(f"directions of width {width}, the model's have {visual.output_dim}")
    return Opened(bundle, model, resnet, method_of(options["method"], resnet))


def pair_units(opened: Opened, top_pairs: int | None) -> "PairUnits | None":
    """The bundle's pairs, for the methods that need them.

    Raises:
        StreamError: the bundle has none.
        UsageError: more pairs are asked for than it has.
    """
    import torch

    from cliptools.ground.segmentation_names import BY_PAIRS
    from cliptools.methods.segmentation.pair_selection import check_top_pairs
    from cliptools.methods.segmentation.resnet_methods import PairUnits

    if opened.method not in BY_PAIRS:
        return None
    unit = opened.bundle["unit"]
    if not len(unit) or (unit[:, 1:] < 0).any():
        raise StreamError(f"--method {opened.method} needs neuron-head pairs, this bundle has none (clip-effects --units pairs)")
    k = check_top_pairs(top_pairs, len(unit))
    r = torch.from_numpy(opened.bundle["direction"]).to(opened.model.device)
    return PairUnits(r, torch.from_numpy(unit), k)
