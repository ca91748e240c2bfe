"""What a bundle and its model say of units, in the form that changing effects needs."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from cliptools.commands.changes import Asked, Setting
from cliptools.ground.errors import StreamError
from cliptools.ground.progress import note

if TYPE_CHECKING:
    from torch import Tensor

    from cliptools.ground.bundle import Bundle
    from cliptools.ground.models import LoadedModel
    from cliptools.methods.ablation import Rest, Units
    from cliptools.methods.changed import Joint
    from cliptools.methods.paths import Paths


def paths_for(model: "LoadedModel", asked: Asked, settings: Sequence[Setting], expected: int) -> "Paths":
    """How the units act; of indirect effects, what that costs is told.

    Raises:
        StreamError: vectors of another width than the model's outputs have.
    """
    import numpy as np

    from cliptools.methods.choice import paths_of
    from cliptools.methods.indirect import Indirect, cost

    visual: Any = model.clip.visual
    for name in ("direction", "mean"):
        if name in asked.bundle and (width := asked.bundle[name].shape[1]) != visual.output_dim:
            raise StreamError(f"`{name}` of width {width}, the model's outputs have {visual.output_dim}")
    if asked.effect != "indirect":
        return paths_of(model.clip, asked.effect, asked.units)
    joint = joint_of(asked, sorted(set(asked.bundle["unit"][:, 0].tolist())))
    used = np.unique([layer for setting in settings if setting.change.kind != "none" for layer in setting.layers])
    sample = {layer: neurons for layer, neurons in joint.neurons.items() if layer in used}
    if sample:
        note(f"clip-ablate: {cost(visual, sample, expected, 1)}")
    means = {layer: mean.to(model.device) for layer, mean in joint.means.items()}
    return Indirect(visual, joint.neurons, means, expected)


def joint_of(asked: Asked, layers: Sequence[int]) -> "Joint":
    """The bundle's neurons of these layers, ascending, and their mean activations."""
    import torch

    from cliptools.methods.changed import Joint

    unit = torch.from_numpy(asked.bundle["unit"]).long()
    mean = torch.from_numpy(asked.bundle["token_mean"])  # (units, token)
    neurons, means = {}, {}
    for layer in layers:
        rows = (unit[:, 0] == layer).nonzero()[:, 0]
        rows = rows[unit[rows, 1].argsort()]
        neurons[layer], means[layer] = unit[rows, 1], mean[rows].T
    return Joint(neurons, means)


def units_of(model: "LoadedModel", asked: Asked) -> "Units":
    """Means, directions, thresholds and fits."""
    import torch

    from cliptools.methods.ablation import Units

    bundle = asked.bundle
    sizes = sorted({setting.change.size or 1 for setting in asked.settings if setting.change.kind == "words"})
    fits = _fits(model, asked, sizes) if sizes else {}
    unit, tau = torch.from_numpy(bundle["unit"]).long(), torch.from_numpy(bundle["threshold"])
    if "sign" in bundle:
        mean, sign = torch.from_numpy(bundle["mean_scalar"]), torch.from_numpy(bundle["sign"]).float()
        return Units(unit, mean[:, None], sign[:, None, None], tau, fits, pairs=True)
    component = bundle["component"] if "component" in bundle else bundle["direction"][:, None]
    return Units(unit, torch.from_numpy(bundle["mean"]), torch.from_numpy(component), tau, fits)


def _fits(model: "LoadedModel", asked: Asked, sizes: Sequence[int]) -> "dict[int, Tensor]":
    """Each unit's direction as the sum of its first m texts, by m.

    Raises:
        StreamError: the pool is not to be had, so the texts' coefficients are not either.
    """
    import numpy as np
    import torch

    from cliptools.ground.concept_texts import as_given, encode_named
    from cliptools.ground.recorded_pool import recorded_pool
    from cliptools.methods.pursuit import fitted
    from cliptools.methods.text_space import text_space

    bundle = asked.bundle
    pool, listed, said = recorded_pool(bundle), bundle.text_list("words"), bundle.header.settings.get("words", {})
    if pool.digest != listed["digest"]:
        raise StreamError(f"--reconstruct words needs pool {listed['pool']} as it was: its mean is part of each text's direction")
    t = encode_named(model, pool, as_given(said.get("templates", ())))
    atoms = text_space(t, said.get("center", "pool"), said.get("normalize", "texts"))
    place = {text: i for i, text in enumerate(pool.texts)}
    row = np.array([place[text] for text in listed["texts"]] + [-1])  # of the pool; the last for no text
    word = torch.from_numpy(row[bundle["word"]]).to(model.device)
    r = _directions(model, bundle).to(atoms)
    return {m: fitted(r, atoms, word[:, :m]) for m in sizes}


def _directions(model: "LoadedModel", bundle: "Bundle") -> "Tensor":
    import torch

    from cliptools.methods.resnet_paths import supported_resnet, unit_directions

    if "sign" not in bundle:
        return torch.from_numpy(bundle["direction"])
    unit, sign = torch.from_numpy(bundle["unit"]).long(), torch.from_numpy(bundle["sign"])
    return unit_directions(supported_resnet(model.clip), unit, sign)


def rest_of(asked: Asked, paths: "Paths") -> "Rest | None":
    """The units that clip-effects --keep has left out.

    Raises:
        StreamError: the bundle has lost units since.
    """
    import torch

    from cliptools.methods.ablation import Rest
    from cliptools.methods.activity import slabs_of

    bundle = asked.bundle
    if "rest_mean" not in bundle:
        return None
    settings = bundle.header.settings
    if asked.effect == "indirect":
        raise StreamError("indirect effects of the units that clip-effects --keep left out are not to be had; leave --keep out")
    if bundle.units != max(1, round(settings["keep"] * settings["measured"])):
        raise StreamError(
            f"`rest_mean` is of what clip-effects --keep {settings['keep']:.0%} left out, but the bundle has lost units since: "
            "take it before clip-view"
        )
    every = torch.cat([paths.units(layer) for layer in settings["layers"]])
    kept = set(map(tuple, bundle["unit"].tolist()))
    left = torch.tensor([tuple(unit) not in kept for unit in every.tolist()])
    return Rest(slabs_of(paths, every[left])[0] if left.any() else [], torch.from_numpy(bundle["rest_mean"]).double())
