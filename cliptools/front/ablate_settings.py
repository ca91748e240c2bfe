"""Settings of `ablate`: the changes that are asked for, and the tensors and effects that they need.

A setting is a change of the units of some layers. `ChangeRequest` lists the changes, and `settings_of` combines them with groups
of a bundle's layers. The other functions make the effect, the joint means, the units and
the omitted units that analysis/ablation.py computes with.
"""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from cliptools.analysis import ABLATE, ABLATE_SEED, RECONSTRUCT, WORDS_ALONG
from cliptools.analysis.ablation import Joint, OmittedUnits, Units
from cliptools.analysis.pursuit import fitted, text_space
from cliptools.analysis.selection import by_layers
from cliptools.arguments import require_number, require_one_of
from cliptools.console import count_of, note
from cliptools.errors import StreamError, UsageError
from cliptools.front.images import Reading
from cliptools.io.bundle import Bundle
from cliptools.io.header import model_difference, reason_of
from cliptools.models.load import LoadedModel, Precision
from cliptools.models.templates import template_options
from cliptools.models.text_encoder import encode_named
from cliptools.streaming.vit_indirect import Indirect, cost
from cliptools.text.vocabularies import recorded_pool
from cliptools.towers.kinds import output_width
from cliptools.unit_effects.factored import FactoredEffect, unit_blocks_of
from cliptools.unit_effects.pairs import unit_directions
from cliptools.unit_effects.select import pair_effect, recorded_effect

Record = dict[str, Any]
SPLITS = ("train", "validation", "test")
PARTS = ("attention", "mlp", "both")
REST = "rest"  # in records: the ablation of all units except those that --keep keeps


class Change(NamedTuple):
    """Change of the effects of a group of units."""

    kind: str
    """One of ABLATE and RECONSTRUCT, or REST."""
    size: int | None = None
    """For pc, the number of components; for words, the number of texts, None for all."""
    keep: float | None = None
    """Share of the units that are not replaced by their means; None for all."""
    along: str | None = None
    """For words, one of WORDS_ALONG."""

    def record(self) -> dict[str, Any]:
        """Return the keys of a record that describe this change."""
        verb = "reconstruct" if self.kind in RECONSTRUCT else "ablate"
        size = {} if self.size is None else {"components" if self.kind == "pc" else "m": self.size}
        along = {} if self.along is None else {"along": self.along}
        return {verb: self.kind} | size | along | ({} if self.keep is None else {"keep": self.keep})


@dataclass(frozen=True, kw_only=True)
class ChangeRequest:
    """Arguments of `ablate` that select the units of the bundles and the changes of their effects; `ablate` describes them."""

    layers: tuple[tuple[int, ...], ...] = ()
    """Groups of layers whose units are changed together; empty for all layers of the bundle."""
    each_layer: bool = False
    effect: str | None = None
    units: str | None = None
    ablate: tuple[str, ...] = ()
    reconstruct: tuple[str, ...] = ()
    components: tuple[int, ...] = (1,)
    m: tuple[int, ...] = ()
    words_along: tuple[str, ...] = ()
    keep: tuple[float, ...] = ()

    def check(self) -> None:
        """Reject values that the command's options would reject.

        Raises:
            UsageError: an argument is invalid, or has no effect without another one.
        """
        for name, allowed in (("ablate", ABLATE), ("reconstruct", RECONSTRUCT), ("words_along", WORDS_ALONG)):
            for kind in getattr(self, name):
                require_one_of(name, kind, allowed)
        require_one_of("effect", self.effect, ("second", "first", "indirect", "pooled"))
        require_one_of("units", self.units, ("pairs", "neurons", "heads", "latents"))
        for name in ("components", "m"):
            for number in getattr(self, name):
                require_number(name, number, 1)
        for share in self.keep:
            require_number("keep", share, 1e-9, 1)
        if self.m and "words" not in self.reconstruct:
            raise UsageError("--m needs --reconstruct words")
        if self.words_along and "words" not in self.reconstruct:
            raise UsageError("--words-along needs --reconstruct words")

    def changes(self) -> list[Change]:
        """Return the changes that apply to every group of layers, in order and without duplicates."""
        keeps: list[float | None] = [*self.keep]
        alongs: dict[str, list[str | None]] = {"pc": [None], "words": [*self.words_along] or [WORDS_ALONG[0]]}
        sizes: dict[str, list[int | None]] = {"pc": [*self.components], "words": [*self.m] or [None]}
        changes = [Change(kind) for kind in self.ablate]
        changes += [
            Change(kind, size, keep, along)
            for kind in self.reconstruct
            for along in alongs[kind]
            for size in sizes[kind]
            for keep in keeps or [None]
        ]
        changes += [Change(REST, None, keep) for keep in keeps] if not self.reconstruct else []
        return list(dict.fromkeys(changes)) or [Change("all")]


@dataclass(frozen=True, kw_only=True)
class AblateRequest(ChangeRequest):
    """Arguments of `ablate`, which describes them."""

    templates: tuple[str, ...] = ()
    limit: int | None = None
    sample: int | None = None
    seed: int = ABLATE_SEED
    precision: Precision | None = None
    mask: str | os.PathLike[str] | None = None
    part: str | None = None
    model: LoadedModel | None = None
    device: str = "auto"
    reading: Reading = field(default_factory=Reading)
    groups: Any = None
    """Source of the groups, or a value for each image; None for no groups."""
    split: str | None = None
    each_template: bool = False
    train_sizes: str | Mapping[str, int] | None = None
    against: str | None = None

    @property
    def whole(self) -> bool:
        """True if the output is that of the whole attention pooling; of a part of it, accuracies may be at chance."""
        return self.part in (None, "both")

    def changes(self) -> list[Change]:
        """Implements ChangeRequest.changes; with a mask or another model, only those that are asked for."""
        asked_for = self.ablate or self.reconstruct or self.keep
        return super().changes() if asked_for or not (self.mask or self.against) else []

    def check(self) -> None:
        """Implements ChangeRequest.check, with the arguments about images and the model."""
        super().check()
        require_one_of("precision", self.precision, ("fp32", "bf16", "fp16"))
        require_one_of("part", self.part, PARTS)
        if self.part == "mlp" and (self.ablate != ("none",) or self.reconstruct or self.keep):
            raise UsageError("--part mlp: effects are parts of what the attention writes, so it needs --ablate none alone")
        for name in ("limit", "sample"):
            require_number(name, getattr(self, name), 1)
        require_number("seed", self.seed, 0)
        require_number("batch_size", self.reading.batch_size, 1)
        require_number("workers", self.reading.workers, 0)
        require_one_of("split", self.split, SPLITS)
        for option, value in (
            ("--split", self.split),
            ("--each-template", self.each_template),
            ("--train-sizes", self.train_sizes),
        ):
            if value and self.groups is None:
                raise UsageError(f"{option} needs --groups")
        if self.model is not None and self.precision not in (None, self.model.precision):
            raise UsageError(f"precision={self.precision!r}: the model that is given is loaded in {self.model.precision} already")


class Setting(NamedTuple):
    """A change of the units of some layers."""

    layers: tuple[int, ...]
    change: Change


class BundleSettings(NamedTuple):
    """A bundle and the settings to be measured with it."""

    bundle: Bundle
    settings: list[Setting]

    @property
    def effect(self) -> str:
        """Name of the bundle's effect, as its header records it."""
        return str(self.bundle.header.settings["effect"])

    @property
    def units(self) -> str:
        """Kind of the bundle's units, as its header records it."""
        return str(self.bundle.header.settings.get("units", "neurons"))

    def rows(self, layers: Sequence[int]) -> Bool[np.ndarray, " u"]:
        """Return the mask of the bundle's units in these layers."""
        return np.isin(self.bundle["unit"][:, 0], layers)


def settings_of(bundles: Sequence[tuple[Bundle, str]], request: ChangeRequest) -> list[BundleSettings]:
    """Return each bundle with its settings.

    Args:
        bundles: The bundles, with their names for messages.

    Raises:
        StreamError: bundles are of different models, or a bundle lacks a tensor that a change needs.
        UsageError: a bundle has other effects or units than `effect` and `units` name, or lacks a layer of `layers`.
    """
    changes = request.changes()
    all_settings: list[BundleSettings] = []
    for bundle, name in bundles:
        if all_settings:
            _check_same_model(bundle, name, bundles[0][0])
        _check_effect(bundle, name, request)
        groups = _layer_groups(bundle, request)
        indirect = bundle.header.settings["effect"] == "indirect"
        bundle_changes = [_with_size(change, bundle) for change in changes if indirect or change.kind != "joint"]
        settings = BundleSettings(bundle, [Setting(group, change) for group in groups for change in bundle_changes])
        for change in bundle_changes:
            _check_tensors(change, settings, name)
        all_settings.append(settings)
    if any(change.kind == "joint" for change in changes) and all(settings.effect != "indirect" for settings in all_settings):
        raise UsageError("--ablate joint needs a bundle of indirect effects (clip-effects --effect indirect), and none is given")
    return all_settings


def _check_same_model(bundle: Bundle, name: str, first: Bundle) -> None:
    if difference := model_difference(bundle.header.model, first.header.model):
        models = bundle.header.model["name"], first.header.model["name"]
        raise StreamError(
            f"{name}: bundle of model {models[0]}, but the first bundle is of model {models[1]}; "
            f"all bundles must be of one model{reason_of(difference)}"
        )


def _check_effect(bundle: Bundle, name: str, request: ChangeRequest) -> None:
    settings = bundle.header.settings
    if "effect" not in settings or "threshold" not in bundle or not {"direction", "sign"} & set(bundle.tensors):
        raise StreamError(f"{name}: a bundle without effects; run clip-effects first")
    for key, expected, default in (("effect", request.effect, None), ("units", request.units, "neurons")):
        if expected and (recorded := settings.get(key, default)) != expected:
            raise UsageError(f"--{key} {expected}: {name} is a bundle with {key} {recorded}")


def _layer_groups(bundle: Bundle, request: ChangeRequest) -> list[tuple[int, ...]]:
    """Return the groups of layers whose units are changed together."""
    groups = [*request.layers]
    for group in groups:
        by_layers(bundle, group)  # an error for layers that the bundle does not hold
    layers = sorted(set(bundle["unit"][:, 0].tolist()))
    if not layers:
        raise StreamError("a bundle without units: nothing to change")
    groups = groups or [tuple(layers)]
    return list(dict.fromkeys([*groups, *([(layer,) for layer in layers] if request.each_layer else [])]))


def _with_size(change: Change, bundle: Bundle) -> Change:
    """Return the change; without --m, with the number of words in the bundle as its size."""
    if change.kind != "words" or change.size is not None or "word" not in bundle:
        return change
    return change._replace(size=bundle["word"].shape[1])


def _check_tensors(change: Change, settings: BundleSettings, name: str) -> None:
    """Check that the bundle holds the tensors that the change needs, in the size that it needs."""
    bundle = settings.bundle
    if settings.effect == "indirect" and "token_mean" not in bundle:
        raise StreamError(f"{name}: indirect effects without `token_mean`, of an earlier version; run clip-effects again")
    if change.kind == "pc":
        count = bundle["component"].shape[1] if "component" in bundle else 1
        if (change.size or 1) > count:
            reason = "a pair has one direction" if settings.units == "pairs" else f"clip-effects --components {change.size}"
            raise UsageError(f"--components {change.size}: {name} has {count} per unit ({reason})")
    if change.kind == "words":
        if "word" not in bundle:
            raise StreamError(f"{name}: a bundle without `word`; run clip-decompose first")
        if bundle.header.settings.get("words", {}).get("method") == "textspan":
            raise StreamError(
                f"{name}: its words are TextSpan's, with shares of a variance instead of coefficients; "
                "use clip-decompose --method pursuit"
            )
        if (change.size or 1) > (count := bundle["word"].shape[1]):
            raise UsageError(
                f"--m {change.size}: {name} has {count_of(count, 'word')} per unit (clip-decompose --m {change.size})"
            )


def effect_of(model: LoadedModel, bundle_settings: BundleSettings, settings: Sequence[Setting], expected: int) -> FactoredEffect:
    """Return the effect that the bundle was measured with; print the cost of indirect effects.

    Args:
        settings: The settings that are computed from it.
        expected: Number of images.

    Raises:
        StreamError: the bundle's vectors are not as wide as the model's outputs.
    """
    visual: Any = model.clip.visual
    bundle = bundle_settings.bundle
    for name in ("direction", "mean"):
        if name in bundle and (width := bundle[name].shape[1]) != output_width(visual):
            raise StreamError(f"`{name}` has width {width}, the model's outputs have width {output_width(visual)}")
    if bundle_settings.effect != "indirect":
        return recorded_effect(model.clip, bundle.header.settings)
    joint = joint_of(bundle_settings, sorted(set(bundle["unit"][:, 0].tolist())))
    changed_layers = np.unique([layer for setting in settings if setting.change.kind != "none" for layer in setting.layers])
    sample = {layer: neurons for layer, neurons in joint.neurons.items() if layer in changed_layers}
    if sample:
        note(f"clip-ablate: {cost(visual, sample, expected, 1)}")
    means = {layer: mean.to(model.device) for layer, mean in joint.means.items()}
    return Indirect(visual, joint.neurons, means, expected)


def joint_of(bundle_settings: BundleSettings, layers: Sequence[int]) -> Joint:
    """Return the bundle's neurons in these layers, in ascending order, and their mean activations at every token."""
    unit = torch.from_numpy(bundle_settings.bundle["unit"]).long()
    mean = torch.from_numpy(bundle_settings.bundle["token_mean"])  # (u, token)
    neurons, means = {}, {}
    for layer in layers:
        rows = (unit[:, 0] == layer).nonzero()[:, 0]
        rows = rows[unit[rows, 1].argsort()]
        neurons[layer], means[layer] = unit[rows, 1], mean[rows].T  # (n,), (token, n)
    return Joint(neurons, means)


def units_of(model: LoadedModel, bundle_settings: BundleSettings) -> Units:
    """Return the means, directions, thresholds and sums of words of the bundle's units."""
    bundle = bundle_settings.bundle
    sizes = sorted({setting.change.size or 1 for setting in bundle_settings.settings if setting.change.kind == "words"})
    sums = _sums_of_words(model, bundle, sizes) if sizes else {}
    unit, tau = torch.from_numpy(bundle["unit"]).long(), torch.from_numpy(bundle["threshold"])
    if "sign" in bundle:
        mean, sign = torch.from_numpy(bundle["mean_scalar"]), torch.from_numpy(bundle["sign"]).float()
        return Units(unit, mean[:, None], sign[:, None, None], tau, sums, pairs=True)  # (u, 1), (u, 1, 1)
    component = bundle["component"] if "component" in bundle else bundle["direction"][:, None]  # (u, c, d)
    return Units(unit, torch.from_numpy(bundle["mean"]), torch.from_numpy(component), tau, sums)


def _sums_of_words(model: LoadedModel, bundle: Bundle, sizes: Sequence[int]) -> dict[int, Float[Tensor, "u d"]]:
    """Return, for every m of `sizes`, the directions of the units as sums of their first m texts.

    Raises:
        StreamError: the vocabulary has changed or is not available, so that its mean and the coefficients are unknown.
    """
    pool, word_list, words = recorded_pool(bundle), bundle.text_list("words"), bundle.header.settings.get("words", {})
    if pool.digest != word_list["digest"]:
        raise StreamError(
            f"--reconstruct words needs vocabulary {word_list['pool']}, unchanged: its mean is part of each text's direction"
        )
    t = encode_named(model, pool, template_options(words.get("templates", ())))
    atoms = text_space(t, words.get("center", "pool"), words.get("normalize", "texts"))  # (text, d)
    index_of = {text: i for i, text in enumerate(pool.texts)}
    row = np.array([index_of[text] for text in word_list["texts"]] + [-1])  # row of `atoms` by word; -1, the last, for no word
    word = torch.from_numpy(row[bundle["word"]]).to(model.device)  # (u, m)
    r = _directions(model, bundle).to(atoms)  # (u, d)
    return {m: fitted(r, atoms, word[:, :m]) for m in sizes}


def _directions(model: LoadedModel, bundle: Bundle) -> Float[Tensor, "u d"]:
    if "sign" not in bundle:
        return torch.from_numpy(bundle["direction"])
    unit, sign = torch.from_numpy(bundle["unit"]).long(), torch.from_numpy(bundle["sign"])
    return unit_directions(pair_effect(model.clip), unit, sign)


def rest_of(bundle_settings: BundleSettings, effect: FactoredEffect) -> OmittedUnits | None:
    """Return the units that clip-effects --keep left out of the bundle; None if there are none.

    Raises:
        StreamError: units were removed from the bundle later, or its effects are indirect.
    """
    bundle = bundle_settings.bundle
    if "rest_mean" not in bundle:
        return None
    settings = bundle.header.settings
    if bundle_settings.effect == "indirect":
        raise StreamError(
            "the bundle has no indirect effects of the units that clip-effects --keep left out; run clip-effects without --keep"
        )
    if bundle.units != max(1, round(settings["keep"] * settings["measured"])):
        raise StreamError(
            f"`rest_mean` is the sum over the units that clip-effects --keep {settings['keep']:.0%} left out, but the bundle "
            "has lost units since then: use the bundle as it was before clip-view"
        )
    units = torch.cat([effect.units(layer) for layer in settings["layers"]])  # (all units, 3)
    bundle_units = set(map(tuple, bundle["unit"].tolist()))
    left_out = torch.tensor([tuple(unit) not in bundle_units for unit in units.tolist()])
    blocks = unit_blocks_of(effect, units[left_out])[0] if left_out.any() else []
    return OmittedUnits(blocks, torch.from_numpy(bundle["rest_mean"]).double())
