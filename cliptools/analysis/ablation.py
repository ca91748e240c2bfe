"""Outputs of a model with the effects of some units replaced, in many settings at once, from one forward pass a batch of images.

Paper 1 (arXiv 2406.04341), Sec. 3.3, and paper 2 (arXiv 2509.19943), Sec. 4. Replacing effects phi_n of some units by psi_n
moves the output by the sum over n of psi_n - phi_n, with everything else frozen. With b_n the mean over images, tau_n the
threshold of the centred norm, r_nj the principal directions and r^_n the first m texts of r_n refitted:

    mean     psi = b
    large    psi = b where ||phi - b|| > tau, else phi
    small    psi = b where ||phi - b|| <= tau, else phi
    pc       psi = b + sum over j < c of <phi - b, r_j> r_j
    words    psi = b + <phi - b, r_0> r^             along the direction, at the length of r^
             psi = b + <phi - b, r^> r^              along the texts: the public code of paper 1
             psi = b + <phi - b, r^> r^ / ||r^||^2   along the texts at unit length: the public code of paper 2

A setting gives each unit one of these changes, or leaves the unit as it is. `Ablation` works on units of a layer together if all
settings treat them alike, and computes once what settings share: the sum of phi, the projections, the mask of large norms. No
effect is ever formed: sums over units carry S first, all other terms are projections (both in unit_effects/factored.py).

`ChangedOutputs` adds joint mean ablation, an intervention with nothing frozen: the activations of a group of neurons are set to
their means m_i at every token i, in a further forward pass. The sum of indirect effects (streaming/vit_indirect.py), which are
taken one neuron at a time, does not give this, since every later layer responds to all changes together. As far as its text
tells, this is the mean ablation by indirect effect in Table 1 of paper 1.

Settings may belong to several bundles. Two kinds of setting take further passes: changes of indirect effects, each of which is a
pass through the later layers, and joint mean ablation, one pass a group.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional

from cliptools.analysis.ablation_units import AblationTerms, PairTerms, VectorTerms
from cliptools.analysis.token_means import replace_neurons
from cliptools.devices import to_float64, to_float64_device
from cliptools.models.clip_parts import ModifiedResNet
from cliptools.towers.hooks import Hooks, hooked
from cliptools.towers.kinds import tower_of
from cliptools.towers.tower import Tower, weight_of
from cliptools.unit_effects.factored import (
    FactoredEffect,
    Listens,
    Projections,
    UnitBlock,
    acts,
    scale_of,
    total_of,
    unit_blocks_of,
    wide,
)
from cliptools.unit_effects.resnet_pooling import Pooled, trace_pool

Kind = Literal["mean", "large", "small", "pc", "words"]
WordsAlong = Literal["direction", "texts", "unit-texts"]


class Change(NamedTuple):
    """One of the module's replacements psi for an effect."""

    kind: Kind
    size: int = 1
    """Number of components c for pc, number of texts m for words."""
    along: WordsAlong = "direction"
    """For words, the vector on which phi - b is projected: r_0, or r^ at its own length or at unit length."""


Setting = Sequence[tuple[Change, Bool[Tensor, " u"]]]
"""Changes, each with a mask of its units. A unit has one change at most; a unit without a change stays as it is."""


@dataclass(frozen=True)
class Units:
    """Statistics of u units from a bundle, in the bundle's scale."""

    unit: Int[Tensor, "u 3"]
    mean: Float[Tensor, "u d_or_1"]
    """b; for pairs the mean of the scalar."""
    component: Float[Tensor, "u c d_or_1"]
    """r_j; for pairs the sign of r along w."""
    threshold: Float[Tensor, " u"]
    """tau."""
    fitted: Mapping[int, Float[Tensor, "u d"]] = field(default_factory=dict)
    """r^ for each number of texts m."""
    pairs: bool = False
    """True where mean and component are those of pairs."""


class OmittedUnits(NamedTuple):
    """Units that a bundle leaves out: only the sum of their means is in it."""

    blocks: list[UnitBlock]
    mean: Float[Tensor, " d"]
    """The sum of the mean effects of all of them."""


class _Fit(NamedTuple):
    """Sums of texts r^ in place of directions."""

    r: Float[Tensor, "n d"]
    """r^, at the length with which psi has it."""
    projections: Projections | None
    """Coefficients of <phi - b, r^>; None where phi - b is projected on the direction itself."""


class _Part(NamedTuple):
    """Units of a layer that all settings treat alike."""

    terms: AblationTerms
    tau: Float[Tensor, " n"]
    fitted: dict[Change, _Fit]
    uses: dict[Change, list[int]]
    """Numbers of the settings that make each change."""


class Ablation:
    """Effects of a bundle's units changed in several settings, for one batch of images after the other."""

    def __init__(
        self, effect: FactoredEffect, units: Units, settings: Sequence[Setting], omitted: OmittedUnits | None = None
    ) -> None:
        """
        Args:
            omitted: Units whose effects are replaced by their means in every setting.
        """
        self.effect, self.settings, self.omitted = effect, len(settings), omitted
        changes = list(dict.fromkeys(change for setting in settings for change, _ in setting))
        code = torch.full((len(settings), len(units.unit)), -1)  # (s, u): number of the change of each unit in each setting
        for s, setting in enumerate(settings):
            for change, rows in setting:
                code[s, rows] = changes.index(change)
        self.blocks: list[UnitBlock] = []
        self.parts: list[_Part] = []
        for pattern in code.T.unique(dim=0):  # (s,)
            uses = {c: [s for s, i in enumerate(pattern.tolist()) if i == changes.index(c)] for c in changes}
            uses = {change: numbers for change, numbers in uses.items() if numbers}
            rows = code.T.eq(pattern).all(1).nonzero()[:, 0]  # (n,): units of this pattern
            if not uses:
                continue
            blocks, places = unit_blocks_of(effect, units.unit[rows])
            for block, place in zip(blocks, places, strict=True):
                self.blocks.append(block)
                self.parts.append(_part(effect, block, units, rows[place], uses))
        self.blocks += [] if omitted is None else omitted.blocks

    def changes(
        self, S: Iterable[Float[Tensor, "b _ _"]], embedding: Float[Tensor, "b d"], scale: Float[Tensor, " b"]
    ) -> Float[Tensor, "s b d"]:
        """The movement of the output by each setting, in float64 and in the scale of the means.

        Args:
            S: Scalars of every block, in the order of `blocks`; read once, one block at a time.
            embedding: M(I), not normalised.
            scale: Factors by which the images' effects are multiplied.
        """
        total = to_float64(wide(embedding)).new_zeros(self.settings, *embedding.shape)  # (s, b, d)
        scalars = iter(S)
        for part in self.parts:
            for change, delta in _output_changes(part, next(scalars), scale):
                total[part.uses[change]] += delta
        if self.omitted is not None:
            total += self.omitted.mean.to(total)
            for block in self.omitted.blocks:
                total -= to_float64(total_of(self.effect, block, next(scalars))) * to_float64_device(scale)[:, None]
        return total


def _part(
    effect: FactoredEffect, block: UnitBlock, units: Units, rows: Int[Tensor, " n"], uses: dict[Change, list[int]]
) -> _Part:
    """The part of these rows of the units, which are those of the block."""
    terms: PairTerms | VectorTerms
    if units.pairs:
        terms = PairTerms(effect, block, units.mean[rows, 0], units.component[rows, 0, 0])
    else:
        terms = VectorTerms(effect, block, units.mean[rows], units.component[rows])
    like = terms.projections.Dr if any(change.kind in ("pc", "words") for change in uses) else units.mean
    fitted = {change: _fit(terms, units.fitted[change.size][rows].to(like), change) for change in uses if change.kind == "words"}
    return _Part(terms, units.threshold[rows], fitted, uses)


def _fit(terms: PairTerms | VectorTerms, r: Float[Tensor, "n d"], change: Change) -> _Fit:
    """The sums of texts r^ as the change takes them."""
    if change.along == "unit-texts":
        r = functional.normalize(r, dim=1, eps=torch.finfo(r.dtype).tiny)  # r^ = 0 of a unit without texts stays 0
    return _Fit(r, None if change.along == "direction" else terms.projections_on(r))


def _output_changes(
    part: _Part, S: Float[Tensor, "b n k"], scale: Float[Tensor, " b"]
) -> list[tuple[Change, Float[Tensor, "b d"]]]:
    """The movement of the output by each change of these units that some setting makes."""
    batch = _PartOnBatch(part, S, scale)
    return [(change, batch.output_change(change)) for change in part.uses]


class _PartOnBatch:
    """The changes of a part on a batch of images; quantities that they share are computed once, when first used."""

    def __init__(self, part: _Part, S: Float[Tensor, "b n k"], scale: Float[Tensor, " b"]) -> None:
        self.part, self.S, self.scale = part, S, scale
        self.sums: list[Tensor] = []  # (b, d) for each c: sum over n and j <= c of <phi - b, r_j> r_j

    def output_change(self, change: Change) -> Float[Tensor, "b d"]:
        """Sum over n of psi_n - phi_n."""
        if change.kind == "large":
            return self.large_change
        if change.kind == "small":
            return self.mean_change - self.large_change
        if change.kind == "pc":
            return self.mean_change + self.reconstruction(change.size)
        if change.kind == "words":
            return self.mean_change + self.word_reconstruction(self.part.fitted[change])
        return self.mean_change

    def word_reconstruction(self, fit: _Fit) -> Float[Tensor, "b d"]:
        """Sum over n of <phi - b, r_0> r^ or <phi - b, r^> r^."""
        x = (self.x if fit.projections is None else fit.projections(self.S, self.scale))[..., 0]  # (b, n)
        return to_float64(x @ fit.r)  # (b, n) @ (n, d)

    def reconstruction(self, components: int) -> Float[Tensor, "b d"]:
        """Sum over n and the first components j of <phi - b, r_j> r_j."""
        while (c := len(self.sums)) < components:
            term = self.part.terms.reconstruction(self.x[..., c], c)
            self.sums.append(self.sums[-1] + term if self.sums else term)
        return self.sums[components - 1]

    @cached_property
    def mean_change(self) -> Float[Tensor, "b d"]:
        """Sum over n of b_n - phi_n."""
        return self.part.terms.mean_change(self.S, self.scale)

    @cached_property
    def large_change(self) -> Float[Tensor, "b d"]:
        """Sum of b_n - phi_n over the units with ||phi_n - b_n|| > tau_n."""
        large = acts(self.part.terms.norms(self.S, self.scale), self.part.tau)  # (b, n)
        return self.part.terms.mean_change(self.S, self.scale, large)

    @cached_property
    def x(self) -> Float[Tensor, "b n c"]:
        """<phi - b, r_j>."""
        return self.part.terms.projections(self.S, self.scale)


EffectBlocks = tuple[FactoredEffect, Sequence[UnitBlock]]
"""An effect, and the blocks of its units to read."""


@torch.inference_mode()
def read_effects(
    visual: nn.Module, image: Float[Tensor, "b 3 y x"], effects: Sequence[EffectBlocks]
) -> tuple[list[Iterable[Float[Tensor, "b _ _"]]], Float[Tensor, "b d"]]:
    """S of the blocks of several effects, and M(I), from one forward pass.

    Args:
        visual: The image tower of all effects.
        effects: There may be no effects, or effects without blocks. Effects that cannot share a pass (indirect effects) take
            passes of their own.
    """
    weight = weight_of(visual)
    image = image.to(weight.device, weight.dtype)
    if isinstance(visual, ModifiedResNet):
        trace = trace_pool(visual, image)
        return [
            effect.scalars_of(trace, blocks) if blocks and isinstance(effect, Pooled) else () for effect, blocks in effects
        ], trace.embedding
    listeners = [effect.listen(blocks) if blocks and isinstance(effect, Listens) else None for effect, blocks in effects]
    with hooked([hook for listener in listeners if listener is not None for hook in listener.hooks]):
        embedding = visual(image)
    S: list[Iterable[Tensor]] = []
    for (effect, blocks), listener in zip(effects, listeners, strict=True):
        if listener is not None:
            S.append(listener.scalars(embedding))
        else:
            S.append(effect.read(image, blocks)[0] if blocks else ())
    return S, embedding


@torch.inference_mode()
def joint_mean_ablation(
    visual: nn.Module | Tower,
    image: Float[Tensor, "b 3 y x"],
    neurons: Mapping[int, Int[Tensor, "_"]],
    means: Mapping[int, Float[Tensor, "token _"]],
) -> Float[Tensor, "b d"]:
    """M(I) with the activations of these neurons set to their means at every token.

    Args:
        neurons: Numbers of the neurons, by layer.
        means: Mean activations of these neurons, by layer.
    """
    tower = tower_of(visual)
    weight = tower.weight
    hooks: Hooks = [
        (tower.blocks[layer].hidden, replace_neurons(numbers.to(weight.device), means[layer].to(weight), tower.prefix))
        for layer, numbers in neurons.items()
    ]
    with hooked(hooks):
        embedding: Tensor = tower.visual(image.to(weight.device, weight.dtype))
        return embedding


class Joint(NamedTuple):
    """A group of neurons for joint mean ablation."""

    neurons: dict[int, Int[Tensor, " _"]]
    """Numbers of the neurons, by layer."""
    means: dict[int, Float[Tensor, "token _"]]
    """Mean activations of these neurons at every token, by layer."""


class ChangedOutputs:
    """Outputs of a model: unchanged, with the effects of ablations changed, and with joint mean ablation."""

    def __init__(self, visual: nn.Module, ablations: Sequence[tuple[Ablation, bool]], joints: Sequence[Joint]) -> None:
        """
        Args:
            ablations: Ablations; with each, true if its effects are multiplied by 100 / ||M(I)||.
            joints: Groups of neurons for joint mean ablation.
        """
        self.visual, self.ablations, self.joints = visual, ablations, joints
        self.hooks: Hooks = []
        """Hooks of a mask, under which all outputs but the unchanged one are computed."""
        self.part: Hooks = []
        """Hooks of a part of an attention pooling, under which all outputs are computed."""

    @torch.inference_mode()
    def __call__(self, image: Float[Tensor, "b 3 y x"]) -> Float[Tensor, "s b d"]:
        """The unchanged output first, then the settings of every ablation in turn, then the joint mean ablations; in float64.

        With a mask, the output under the mask alone stands between the unchanged output and the settings, which are under it.
        """
        with hooked(self.part):
            if not self.hooks:
                return self._outputs(image)
            weight = weight_of(self.visual)
            unchanged = to_float64(wide(self.visual(image.to(weight.device, weight.dtype))))  # (b, d)
            with hooked(self.hooks):
                return torch.cat([unchanged[None], self._outputs(image)])

    def _outputs(self, image: Float[Tensor, "b 3 y x"]) -> Float[Tensor, "s b d"]:
        """The output without a change, then those of all settings."""
        scalars, embedding = read_effects(
            self.visual, image, [(ablation.effect, ablation.blocks) for ablation, _ in self.ablations]
        )
        outputs = [to_float64(wide(embedding))[None]]  # (1, b, d)
        for (ablation, scaled), S in zip(self.ablations, scalars, strict=True):
            scale = scale_of(embedding, scaled)
            change = ablation.changes(S, embedding, scale)  # (s, b, d)
            outputs.append(outputs[0] + change / to_float64(scale)[:, None])
        for joint in self.joints:
            outputs.append(to_float64(wide(joint_mean_ablation(self.visual, image, joint.neurons, joint.means)))[None])
        return torch.cat(outputs)
