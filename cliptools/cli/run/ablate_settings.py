"""What clip-ablate is asked to change: settings from options, and what each bundle needs for them.

What a bundle and its model say of units, in the form that changing effects needs.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from cliptools.analysis.ablation import Joint, Rest, Units
from cliptools.analysis.pursuit import fitted, text_space
from cliptools.analysis.selection import by_layers
from cliptools.cli.app import open_input, parse_layers, parse_percentage
from cliptools.console import count_of, note
from cliptools.effects.factored import FactoredEffect, unit_blocks_of
from cliptools.effects.resnet_pooling import supported_resnet, unit_directions
from cliptools.effects.select import factored_effect
from cliptools.errors import StreamError, UsageError
from cliptools.io.bundle import Bundle, read_bundle
from cliptools.io.header import model_difference, reason_of
from cliptools.models.load import LoadedModel
from cliptools.models.text_encoder import as_given, encode_named
from cliptools.streaming.vit_indirect import Indirect, cost
from cliptools.text.vocabularies import recorded_pool

ABLATE = ("all", "large", "small", "none", "joint")
RECONSTRUCT = ("pc", "words")
WORDS_ALONG = ("direction", "texts", "unit-texts")
REST = "rest"  # what records call the ablation of all units but those kept


class Change(NamedTuple):
    """What a setting makes of its units."""

    kind: str
    """One of ABLATE and RECONSTRUCT, or REST."""
    size: int | None = None
    """Of pc, components; of words, texts: None for all."""
    keep: float | None = None
    """Share of the units that is not just the mean."""
    along: str | None = None
    """Of words, one of WORDS_ALONG."""

    def said(self) -> dict[str, Any]:
        """As records say it."""
        verb = "reconstruct" if self.kind in RECONSTRUCT else "ablate"
        size = {} if self.size is None else {"components" if self.kind == "pc" else "m": self.size}
        along = {} if self.along is None else {"along": self.along}
        return {verb: self.kind} | size | along | ({} if self.keep is None else {"keep": self.keep})


class Setting(NamedTuple):
    """A change of the units of some layers."""

    layers: tuple[int, ...]
    change: Change


class Asked(NamedTuple):
    """A bundle, and its settings."""

    bundle: Bundle
    settings: list[Setting]

    @property
    def effect(self) -> str:
        """As bundles record it."""
        return str(self.bundle.header.settings["effect"])

    @property
    def units(self) -> str:
        """As bundles record it."""
        return str(self.bundle.header.settings.get("units", "neurons"))

    def rows(self, layers: Sequence[int]) -> "np.ndarray":
        """Which units [units] lie in these layers."""

        return np.isin(self.bundle["unit"][:, 0], layers)


def parse_changes(options: dict[str, Any]) -> list[Change]:
    """What is asked of every group of layers, in order.

    Raises:
        UsageError: not so written.
    """
    keeps: list[float | None] = [*(parse_percentage(part, "--keep") for part in _parts(options["keep"]))]
    ablate = _kinds(options["ablate"], "--ablate", ABLATE)
    reconstruct = _kinds(options["reconstruct"], "--reconstruct", RECONSTRUCT)
    if options["m"] and "words" not in reconstruct:
        raise UsageError("--m is for --reconstruct words")
    along: list[str | None] = [*_kinds(options["words_along"], "--words-along", WORDS_ALONG)]
    if along and "words" not in reconstruct:
        raise UsageError("--words-along is for --reconstruct words")
    alongs: dict[str, list[str | None]] = {"pc": [None], "words": along or [WORDS_ALONG[0]]}
    sizes: dict[str, list[int | None]] = {
        "pc": [*_numbers(options["components"], "--components")],
        "words": [*_numbers(options["m"], "--m")] or [None],
    }
    asked = [Change(kind) for kind in ablate]
    asked += [
        Change(kind, size, keep, along)
        for kind in reconstruct
        for along in alongs[kind]
        for size in sizes[kind]
        for keep in keeps or [None]
    ]
    asked += [Change(REST, None, keep) for keep in keeps] if not reconstruct else []
    return list(dict.fromkeys(asked)) or [Change("all")]


def _parts(text: str | None) -> list[str]:
    return [part.strip() for part in text.split(",")] if text else []


def _kinds(text: str | None, option: str, known: Sequence[str]) -> list[str]:
    parts = _parts(text)
    if strange := [part for part in parts if part not in known]:
        raise UsageError(f"{option} {text}: expected some of {', '.join(known)}, found {strange[0]!r}")
    return parts


def _numbers(text: str | None, option: str) -> list[int]:
    parts = _parts(text)
    if strange := [part for part in parts if not part.isdigit() or int(part) < 1]:
        raise UsageError(f"{option} {text}: expected numbers from 1 on, as 1,2,4, found {strange[0]!r}")
    return [int(part) for part in parts]


def open_bundles(changes: Sequence[Change], options: dict[str, Any]) -> list[Asked]:
    """The bundles named, or the one on standard input, each with its settings.

    Raises:
        StreamError: no bundle, not all of one model, or one that lacks what is asked.
        UsageError: a bundle of others than --effect or --units says, or layers that it has not.
    """

    paths: Sequence[Path | None] = options["bundles"] or [None]
    if sum(path is None or str(path) == "-" for path in paths) > 1:
        raise UsageError("--bundle -: standard input holds one bundle")
    found: list[Asked] = []
    for path in paths:
        stream, name = open_input(path, "a bundle of clip-effects", "--bundle FILE")
        with stream:
            bundle = read_bundle(stream, name)
        if found and (difference := model_difference(bundle.header.model, found[0].bundle.header.model)):
            names = found[0].bundle.header.model["name"], bundle.header.model["name"]
            than = f"of another model ({names[1]}) than the first bundle ({names[0]})"
            raise StreamError(f"{name}: {than}; compare one model's{reason_of(difference)}")
        _check_effect(bundle, name, options)
        groups = _groups(bundle, options)
        indirect = bundle.header.settings["effect"] == "indirect"
        own = [_sized(change, bundle) for change in changes if indirect or change.kind != "joint"]
        asked = Asked(bundle, [Setting(group, change) for group in groups for change in own])
        for change in own:
            _check_held(change, asked, name)
        found.append(asked)
    if any(change.kind == "joint" for change in changes) and all(asked.effect != "indirect" for asked in found):
        raise UsageError("--ablate joint sets activations themselves, and is for a bundle of indirect effects; none is given")
    return found


def _check_effect(bundle: Bundle, name: str, options: dict[str, Any]) -> None:
    settings = bundle.header.settings
    if "effect" not in settings or "threshold" not in bundle or not {"direction", "sign"} & set(bundle.tensors):
        raise StreamError(f"{name}: a bundle without effects; run clip-effects first")
    for key, default in (("effect", None), ("units", "neurons")):
        if options[key] and settings.get(key, default) != options[key]:
            raise UsageError(f"--{key} {options[key]}: {name} is of {settings.get(key, default)}")


def _groups(bundle: Bundle, options: dict[str, Any]) -> list[tuple[int, ...]]:
    """Layers whose units are changed together."""
    groups = [parse_layers(text) for text in options["layers"]]
    if groups:
        _ = [by_layers(bundle, group) for group in groups]
    held = sorted(set(bundle["unit"][:, 0].tolist()))
    if not held:
        raise StreamError("a bundle without units: nothing to change")
    groups = groups or [tuple(held)]
    return list(dict.fromkeys([*groups, *([(layer,) for layer in held] if options["each_layer"] else [])]))


def _sized(change: Change, bundle: Bundle) -> Change:
    """With all words a bundle has, where no number is asked."""
    if change.kind != "words" or change.size is not None or "word" not in bundle:
        return change
    return change._replace(size=bundle["word"].shape[1])


def _check_held(change: Change, asked: Asked, name: str) -> None:
    """What the bundle must hold for a change."""
    bundle = asked.bundle
    if asked.effect == "indirect" and "token_mean" not in bundle:
        raise StreamError(f"{name}: indirect effects without `token_mean`, of an earlier version; run clip-effects anew")
    if change.kind == "pc":
        held = bundle["component"].shape[1] if "component" in bundle else 1
        if (change.size or 1) > held:
            more = "a pair acts along one direction" if asked.units == "pairs" else f"clip-effects --components {change.size}"
            raise UsageError(f"--components {change.size}: {name} holds {held} a unit ({more})")
    if change.kind == "words":
        if "word" not in bundle:
            raise StreamError(f"{name}: a bundle without `word`; run clip-decompose first")
        if bundle.header.settings.get("words", {}).get("method") == "textspan":
            raise StreamError(f"{name}: its words are TextSpan's, shares of what heads write; a sum of texts is wanted")
        if (change.size or 1) > (held := bundle["word"].shape[1]):
            raise UsageError(
                f"--m {change.size}: {name} holds {count_of(held, 'word')} a unit (clip-decompose --m {change.size})"
            )


def paths_for(model: LoadedModel, asked: Asked, settings: Sequence[Setting], expected: int) -> FactoredEffect:
    """How the units act; of indirect effects, what that costs is told.

    Raises:
        StreamError: vectors of another width than the model's outputs have.
    """

    visual: Any = model.clip.visual
    for name in ("direction", "mean"):
        if name in asked.bundle and (width := asked.bundle[name].shape[1]) != visual.output_dim:
            raise StreamError(f"`{name}` of width {width}, the model's outputs have {visual.output_dim}")
    if asked.effect != "indirect":
        return factored_effect(model.clip, asked.effect, asked.units)
    joint = joint_of(asked, sorted(set(asked.bundle["unit"][:, 0].tolist())))
    used = np.unique([layer for setting in settings if setting.change.kind != "none" for layer in setting.layers])
    sample = {layer: neurons for layer, neurons in joint.neurons.items() if layer in used}
    if sample:
        note(f"clip-ablate: {cost(visual, sample, expected, 1)}")
    means = {layer: mean.to(model.device) for layer, mean in joint.means.items()}
    return Indirect(visual, joint.neurons, means, expected)


def joint_of(asked: Asked, layers: Sequence[int]) -> Joint:
    """The bundle's neurons of these layers, ascending, and their mean activations."""

    unit = torch.from_numpy(asked.bundle["unit"]).long()
    mean = torch.from_numpy(asked.bundle["token_mean"])  # (units, token)
    neurons, means = {}, {}
    for layer in layers:
        rows = (unit[:, 0] == layer).nonzero()[:, 0]
        rows = rows[unit[rows, 1].argsort()]
        neurons[layer], means[layer] = unit[rows, 1], mean[rows].T
    return Joint(neurons, means)


def units_of(model: LoadedModel, asked: Asked) -> Units:
    """Means, directions, thresholds and fits."""

    bundle = asked.bundle
    sizes = sorted({setting.change.size or 1 for setting in asked.settings if setting.change.kind == "words"})
    fits = _fits(model, asked, sizes) if sizes else {}
    unit, tau = torch.from_numpy(bundle["unit"]).long(), torch.from_numpy(bundle["threshold"])
    if "sign" in bundle:
        mean, sign = torch.from_numpy(bundle["mean_scalar"]), torch.from_numpy(bundle["sign"]).float()
        return Units(unit, mean[:, None], sign[:, None, None], tau, fits, pairs=True)
    component = bundle["component"] if "component" in bundle else bundle["direction"][:, None]
    return Units(unit, torch.from_numpy(bundle["mean"]), torch.from_numpy(component), tau, fits)


def _fits(model: LoadedModel, asked: Asked, sizes: Sequence[int]) -> dict[int, Tensor]:
    """Each unit's direction as the sum of its first m texts, by m.

    Raises:
        StreamError: the pool is not to be had, so the texts' coefficients are not either.
    """

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


def _directions(model: LoadedModel, bundle: Bundle) -> Tensor:

    if "sign" not in bundle:
        return torch.from_numpy(bundle["direction"])
    unit, sign = torch.from_numpy(bundle["unit"]).long(), torch.from_numpy(bundle["sign"])
    return unit_directions(supported_resnet(model.clip), unit, sign)


def rest_of(asked: Asked, paths: FactoredEffect) -> Rest | None:
    """The units that clip-effects --keep has left out.

    Raises:
        StreamError: the bundle has lost units since.
    """

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
    return Rest(unit_blocks_of(paths, every[left])[0] if left.any() else [], torch.from_numpy(bundle["rest_mean"]).double())
