"""Directions and means of neuron-head pairs, which follow from the weights of their model."""

import torch

from cliptools.io.bundle import Bundle
from cliptools.models.load import LoadedModel, hand_over, load_recorded_model
from cliptools.unit_effects.pairs import pair_means, unit_directions
from cliptools.unit_effects.select import pair_effect


def with_directions(bundle: Bundle, means: bool = False, device: str = "auto", model: LoadedModel | None = None) -> Bundle:
    """Add `direction`, and with `means` also `mean`, to a bundle of pairs, from the weights of its model.

    In a command, the next call of load_recorded_model returns the model that is loaded here.

    Args:
        model: The bundle's model, if it is loaded already.

    Raises:
        StreamError: The bundle has units that the model lacks.
        ModelError: The model is not available, or has no pairs.
    """
    if model is None:
        model = load_recorded_model(bundle.header.model, device)
        hand_over(model)
    effect = pair_effect(model.clip)
    unit, sign = torch.from_numpy(bundle["unit"]).long(), torch.from_numpy(bundle["sign"])
    tensors = {"direction": unit_directions(effect, unit, sign).numpy()}  # (unit, d)
    if means:
        tensors["mean"] = pair_means(effect, unit, torch.from_numpy(bundle["mean_scalar"])).numpy()  # (unit, d)
    return bundle.with_derived(**tensors)
