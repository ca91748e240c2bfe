"""What commands that read a decomposed bundle share."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from cliptools.commands.base import open_input
from cliptools.ground.errors import StreamError
from cliptools.ground.model_identity import recorded_model

if TYPE_CHECKING:
    from cliptools.ground.bundle import Bundle


def read_neurons(path: Path | None, *needed: str, option: str = "BUNDLE", device: str = "auto") -> "Bundle":
    """The bundle at `path` or on standard input; of pairs, with the directions that their model's weights give.

    Args:
        needed: Tensors it must hold beside `direction`; `word` for a bundle that clip-decompose has seen.
        option: What names a file, for the message when standard input is a terminal.
        device: Where the model will be wanted, if it is loaded here.

    Raises:
        StreamError: no bundle, or one that lacks what is needed, with the command that adds it; or coefficients are needed, and
            it has shares.
        ModelError: directions are wanted of a model that is not to be had.
    """
    from cliptools.ground.bundle import read_bundle

    stream, name = open_input(path, "a bundle of clip-decompose" if "word" in needed else "a bundle of clip-effects", option)
    with stream:
        bundle = read_bundle(stream, name)
    if "sign" in bundle:
        bundle = with_directions(bundle, "mean" in needed, device)
    for tensor in ("direction", *needed):
        if tensor not in bundle:
            adds = "clip-decompose" if tensor in ("word", "coefficient", "words") else "clip-effects"
            raise StreamError(f"{name}: a bundle without `{tensor}`; run {adds} first")
    if "coefficient" in needed and bundle.header.settings.get("words", {}).get("method") == "textspan":
        raise StreamError(
            f"{name}: its words are TextSpan's, shares of what heads write; a sum of texts is wanted (--method pursuit)"
        )
    return bundle


def with_directions(bundle: "Bundle", means: bool = False, device: str = "auto") -> "Bundle":
    """A bundle of pairs with `direction`, and with `mean` if asked for, from the weights of its model.

    The model is kept for the load_recorded_model to come.

    Raises:
        StreamError: the bundle has units that the model has not.
        ModelError: the model is not to be had, or has no pairs.
    """
    import torch

    from cliptools.ground.models import hand_over, load_recorded_model
    from cliptools.methods.resnet_paths import pair_means, supported_resnet, unit_directions

    model = load_recorded_model(bundle.header.model, device)
    hand_over(model)
    visual = supported_resnet(model.clip)
    unit, sign = torch.from_numpy(bundle["unit"]).long(), torch.from_numpy(bundle["sign"])
    made = {"direction": unit_directions(visual, unit, sign).numpy()}
    if means:
        made["mean"] = pair_means(visual, unit, torch.from_numpy(bundle["mean_scalar"])).numpy()
    return bundle.with_derived(**made)


def record_source(bundle: "Bundle") -> dict[str, Any]:
    """What every record says of where it came from: the model, and the bundle's digest."""
    return {"model": recorded_model(bundle.header.model), "bundle": bundle.digest}
