"""Outputs with the effects of units changed, for many changes at once.

Paper 1 (arXiv 2406.04341), Sec. 3.3, and paper 2 (arXiv 2509.19943), Sec. 4. Replacing effects phi_n of some units by psi_n
moves the output by sum over n of psi_n - phi_n, all else frozen. With b_n the mean over images, tau_n the threshold of the
centred norm, r_nj the principal directions and r^_n the first m texts of r_n refitted:

    mean     psi = b
    large    psi = b where ||phi - b|| > tau, else phi
    small    psi = b where not, else phi
    pc       psi = b + sum over j < c of <phi - b, r_j> r_j
    words    psi = b + <phi - b, r_0> r^            along the direction, at the length that r^ has
                   b + <phi - b, r^> r^             along the texts: the public code of paper 1
                   b + <phi - b, r^> r^ / ||r^||^2  along the texts at unit length: the public code of paper 2

A setting gives each unit one of these changes, or leaves it. Units of a layer that no setting tells apart are worked on
together, and what settings have in common is computed once: the sum of phi, the projections, which norms are large. No effect
is ever formed: sums over units carry S first, the rest are projections (both in effects/factored.py).

What several kinds of effects need, from one forward pass of their model.

All of some neurons at their mean activation at once: an intervention, with nothing frozen.

Indirect effects (indirect.py) are taken one neuron at a time. Their sum is not what ablating all of them does, since every
later layer answers to all changes together. Here the activations of a group of neurons are set to their means m_i at every
token i, in one further forward pass. This is, as far as its text tells, the mean ablation by indirect effect in paper 1's
(arXiv 2406.04341) Table 1.

Outputs of a model as they are and in many settings of changed effects, a batch of images at a time, from one forward pass.

Settings may be of several bundles. Two kinds of setting take more than that pass: changes of indirect effects, whose every
effect is a pass through the later layers, and joint interventions (joint.py), one pass each.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional

from cliptools.analysis.ablation_units import Known, KnownPairs, KnownVectors
from cliptools.devices import to_float64, to_float64_device
from cliptools.effects.factored import (
    FactoredEffect,
    Hooks,
    Listens,
    Projections,
    UnitBlock,
    scale_of,
    total_of,
    unit_blocks_of,
    wide,
)
from cliptools.effects.resnet_pooling import Pooled, trace_pool
from cliptools.effects.vit_second_order import hooked
from cliptools.models.clip_parts import ModifiedResNet, VisionTransformer

Kind = Literal["mean", "large", "small", "pc", "words"]
WordsAlong = Literal["direction", "texts", "unit-texts"]


class Change(NamedTuple):
    """One kind of replacement psi for an effect."""

    kind: Kind
    size: int = 1
    """Number of components c for pc, number of texts m for words."""
    along: WordsAlong = "direction"
    """For words, the vector on which phi - b is projected: r, or r^ as it is or at unit length."""


Setting = Sequence[tuple[Change, Bool[Tensor, " u"]]]
"""Changes, each with the units it is for; no unit twice. Units in none are left as they are."""


@dataclass(frozen=True)
class Units:
    """Statistics of u units from a bundle, in its scale."""

    unit: Int[Tensor, "u 3"]
    mean: Float[Tensor, "u d_or_1"]
    """b; of pairs the mean of the scalar."""
    component: Float[Tensor, "u c d_or_1"]
    """r_j; of pairs the sign of r along w."""
    threshold: Float[Tensor, " u"]
    """tau."""
    fitted: Mapping[int, Float[Tensor, "u d"]] = field(default_factory=dict)
    """r^ by m."""
    pairs: bool = False
    """True where mean and component are those of pairs."""


class Rest(NamedTuple):
    """Units that a bundle has left out and knows only together."""

    slabs: list[UnitBlock]
    mean: Float[Tensor, " d"]
    """The sum of their mean effects."""


class _Fit(NamedTuple):
    """Sums of texts that stand for directions."""

    r: Float[Tensor, "n d"]
    """r^, at the length that it is written with."""
    onto: Projections | None
    """For <phi - b, r^>; None where phi - b is projected on the direction itself."""


class _Part(NamedTuple):
    """Units of a layer that no setting tells apart."""

    known: Known
    tau: Float[Tensor, " n"]
    fitted: dict[Change, _Fit]
    uses: dict[Change, list[int]]
    """Settings that make each change."""


class Ablation:
    """One bundle's effects changed in several settings, for one batch of images after the other."""

    def __init__(self, paths: FactoredEffect, units: Units, settings: Sequence[Setting], rest: Rest | None = None) -> None:
        """
        Args:
            rest: Units that are their means in every setting.
        """
        self.paths, self.settings, self.rest = paths, len(settings), rest
        changes = list(dict.fromkeys(change for setting in settings for change, _ in setting))
        code = torch.full((len(settings), len(units.unit)), -1)  # which change each setting makes of each unit
        for s, setting in enumerate(settings):
            for change, rows in setting:
                code[s, rows] = changes.index(change)
        self.slabs: list[UnitBlock] = []
        self.parts: list[_Part] = []
        for pattern in code.T.unique(dim=0):
            uses = {c: [s for s, i in enumerate(pattern.tolist()) if i == changes.index(c)] for c in changes}
            uses = {change: those for change, those in uses.items() if those}
            rows = code.T.eq(pattern).all(1).nonzero()[:, 0]
            if not uses:
                continue
            slabs, places = unit_blocks_of(paths, units.unit[rows])
            for slab, place in zip(slabs, places, strict=True):
                self.slabs.append(slab)
                self.parts.append(_part(paths, slab, units, rows[place], uses))
        self.slabs += [] if rest is None else rest.slabs

    def changes(
        self, S: Iterable[Float[Tensor, "b _ _"]], embedding: Float[Tensor, "b d"], scale: Float[Tensor, " b"]
    ) -> Float[Tensor, "s b d"]:
        """By how much each setting moves the output, float64; in the scale of the means.

        Args:
            S: Of every slab, in their order; each is asked for once.
        """
        moved = to_float64(wide(embedding)).new_zeros(self.settings, *embedding.shape)
        scalars = iter(S)
        for part in self.parts:
            for change, delta in _changed(part, next(scalars), scale):
                moved[part.uses[change]] += delta
        if self.rest is not None:
            moved += self.rest.mean.to(moved)
            for slab in self.rest.slabs:
                moved -= to_float64(total_of(self.paths, slab, next(scalars))) * to_float64_device(scale)[:, None]
        return moved


def _part(paths: FactoredEffect, slab: UnitBlock, units: Units, rows: Int[Tensor, " n"], uses: dict[Change, list[int]]) -> _Part:
    known: KnownPairs | KnownVectors
    if units.pairs:
        known = KnownPairs(paths, slab, units.mean[rows, 0], units.component[rows, 0, 0])
    else:
        known = KnownVectors(paths, slab, units.mean[rows], units.component[rows])
    like = known.along.Dr if any(change.kind in ("pc", "words") for change in uses) else units.mean
    fitted = {change: _fit(known, units.fitted[change.size][rows].to(like), change) for change in uses if change.kind == "words"}
    return _Part(known, units.threshold[rows], fitted, uses)


def _fit(known: KnownPairs | KnownVectors, r: Float[Tensor, "n d"], change: Change) -> _Fit:
    if change.along == "unit-texts":
        r = functional.normalize(r, dim=1, eps=torch.finfo(r.dtype).tiny)  # zeros, of a unit without texts, stay zeros
    return _Fit(r, None if change.along == "direction" else known.onto(r))


def _changed(part: _Part, S: Float[Tensor, "b n k"], scale: Float[Tensor, " b"]) -> list[tuple[Change, Float[Tensor, "b d"]]]:
    """Return the movement of the output by each change that some setting makes of these units."""
    of = _OnImages(part, S, scale)
    return [(change, of.changed(change)) for change in part.uses]


class _OnImages:
    """Quantities that the changes of a part share on a batch of images; each is computed when first asked for."""

    def __init__(self, part: _Part, S: Float[Tensor, "b n k"], scale: Float[Tensor, " b"]) -> None:
        self.part, self.S, self.scale = part, S, scale
        self.spread: list[Tensor] = []  # sum over n of <phi - b, r_j> r_j, over the first components j

    def changed(self, change: Change) -> Float[Tensor, "b d"]:
        """Sum over n of psi_n - phi_n."""
        if change.kind == "large":
            return self.large
        if change.kind == "small":
            return self.fall - self.large
        if change.kind == "pc":
            return self.fall + self.along(change.size)
        if change.kind == "words":
            return self.fall + self.written(self.part.fitted[change])
        return self.fall

    def written(self, fit: _Fit) -> Float[Tensor, "b d"]:
        """The sum over n of <phi - b, r or r^> r^."""
        x = (self.x if fit.onto is None else fit.onto(self.S, self.scale))[..., 0]
        return to_float64(x @ fit.r)

    def along(self, components: int) -> Float[Tensor, "b d"]:
        """The sum over the first components."""
        while (c := len(self.spread)) < components:
            added = self.part.known.spread(self.x[..., c], c)
            self.spread.append(self.spread[-1] + added if self.spread else added)
        return self.spread[components - 1]

    @cached_property
    def fall(self) -> Float[Tensor, "b d"]:
        """Sum over n of b_n - phi_n."""
        return self.part.known.fall(self.S, self.scale)

    @cached_property
    def large(self) -> Float[Tensor, "b d"]:
        """The same where ||phi - b|| > tau."""
        return self.part.known.fall(self.S, self.scale, self.part.known.norms(self.S, self.scale) > self.part.tau.to(self.S))

    @cached_property
    def x(self) -> Float[Tensor, "b n c"]:
        """<phi - b, r_j>."""
        return self.part.known.along(self.S, self.scale)


Asked = tuple[FactoredEffect, Sequence[UnitBlock]]


@torch.inference_mode()
def read_together(
    visual: nn.Module, image: Float[Tensor, "b 3 y x"], asked: Sequence[Asked]
) -> tuple[list[Iterable[Float[Tensor, "b _ _"]]], Float[Tensor, "b d"]]:
    """S of the slabs of each, and M(I).

    Args:
        visual: The image tower that all paths are of.
        asked: May be empty, and so may anybody's slabs. Paths that cannot share a pass (indirect effects) run their own besides.
    """
    weight: Tensor = visual.conv1.weight  # type: ignore[assignment, union-attr]
    image = image.to(weight.device, weight.dtype)
    if isinstance(visual, ModifiedResNet):
        traced = trace_pool(visual, image)
        return [
            paths.scalars_of(traced, slabs) if slabs and isinstance(paths, Pooled) else () for paths, slabs in asked
        ], traced.embedding
    listeners = [paths.listen(slabs) if slabs and isinstance(paths, Listens) else None for paths, slabs in asked]
    with hooked([hook for listener in listeners if listener is not None for hook in listener.hooks]):
        embedding = visual(image)
    S: list[Iterable[Tensor]] = []
    for (paths, slabs), listener in zip(asked, listeners, strict=True):
        if listener is not None:
            S.append(listener.scalars(embedding))
        else:
            S.append(paths.read(image, slabs)[0] if slabs else ())
    return S, embedding


@torch.inference_mode()
def jointly_ablated(
    visual: VisionTransformer,
    image: Float[Tensor, "b 3 y x"],
    neurons: Mapping[int, Int[Tensor, "_"]],
    means: Mapping[int, Float[Tensor, "token _"]],
) -> Float[Tensor, "b d"]:
    """M of the images with these neurons' activations replaced.

    Args:
        neurons: By layer.
        means: By layer, of these neurons.
    """
    weight = visual.conv1.weight
    hooks: Hooks = [
        (visual.transformer.resblocks[layer].mlp.gelu, _replace(chosen.to(weight.device), means[layer].to(weight)))
        for layer, chosen in neurons.items()
    ]
    with hooked(hooks):
        return visual(image.to(weight.device, weight.dtype))


def _replace(neurons: Int[Tensor, "n"], mean: Float[Tensor, "token n"]) -> Callable[..., Tensor]:
    def hook(module: nn.Module, given: tuple[Tensor, ...], output: Float[Tensor, "b token neuron"]) -> Tensor:
        changed = output.clone()
        changed[..., neurons] = mean
        return changed

    return hook


class Joint(NamedTuple):
    """Neurons at their means together."""

    neurons: dict[int, Int[Tensor, " _"]]
    """Numbers of the neurons, by layer."""
    means: dict[int, Float[Tensor, "token _"]]
    """Mean activations of these neurons at every token, by layer."""


class ChangedOutputs:
    """Outputs of a model as it is, with the effects of ablations changed, and with joint mean ablation."""

    def __init__(self, visual: nn.Module, ablations: Sequence[tuple[Ablation, bool]], joints: Sequence[Joint]) -> None:
        """
        Args:
            ablations: Each with whether its effects are in units of ||M(I)|| / 100.
        """
        self.visual, self.ablations, self.joints = visual, ablations, joints

    @torch.inference_mode()
    def __call__(self, image: Float[Tensor, "b 3 y x"]) -> Float[Tensor, "s b d"]:
        """Untouched first, then the settings of every ablation in turn, then joint ones; float64."""
        read, embedding = read_together(self.visual, image, [(each.paths, each.slabs) for each, _ in self.ablations])
        outputs = [to_float64(wide(embedding))[None]]
        for (ablation, scaled), S in zip(self.ablations, read, strict=True):
            scale = scale_of(embedding, scaled)
            moved = ablation.changes(S, embedding, scale)
            outputs.append(outputs[0] + moved / to_float64(scale)[:, None])
        for joint in self.joints:
            outputs.append(to_float64(wide(jointly_ablated(self.visual, image, joint.neurons, joint.means)))[None])
        return torch.cat(outputs)
