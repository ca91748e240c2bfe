"""Outputs of a model as they are and in many settings of changed effects, a batch of images at a time, from one forward pass.

Settings may be of several bundles. Two kinds of setting take more than that pass: changes of indirect effects, whose every
effect is a pass through the later layers, and joint interventions (joint.py), one pass each.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from cliptools.ground.double_precision import exact
from cliptools.methods.ablation import Ablation
from cliptools.methods.joint import jointly_ablated
from cliptools.methods.one_pass import read_together
from cliptools.methods.paths import scale_of, wide


class Joint(NamedTuple):
    """Neurons at their means together."""

    neurons: dict[int, Int[Tensor, " _"]]
    """By layer,"""
    means: dict[int, Float[Tensor, "token _"]]
    """and their mean activations at every token."""


class ChangedOutputs:
    """See above."""

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
        outputs = [exact(wide(embedding))[None]]
        for (ablation, scaled), S in zip(self.ablations, read, strict=True):
            scale = scale_of(embedding, scaled)
            moved = ablation.changes(S, embedding, scale)
            outputs.append(outputs[0] + moved / exact(scale)[:, None])
        for joint in self.joints:
            outputs.append(exact(wide(jointly_ablated(self.visual, image, joint.neurons, joint.means)))[None])
        return torch.cat(outputs)
