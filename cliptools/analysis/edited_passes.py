"""Outputs of an image tower with each of several sets of changed weights, for many edits of late layers.

    x = f_<l(I)                       the same for all sets: l is the first layer with a changed weight
    M_s(I) = f_>=l(x; weights_s)      for each set s of changed weights

An edit of a ViT's last layers, or of a ResNet's attention pooling, so costs little more than the part of the tower that it
changes. Changed weights elsewhere cost a whole pass each.
"""

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.func import functional_call

from cliptools.models.clip_parts import ModifiedResNet
from cliptools.towers.hooks import hooked, keep_output
from cliptools.towers.kinds import tower_of
from cliptools.towers.tower import Tower

Weights = Mapping[str, Tensor]
"""Weights in place of the tower's, by name; none for the untouched model."""
POOLING = "attnpool."


class _Rest(nn.Module):
    """The layers of a tower after one of them, as a module whose weights have the tower's names behind `visual.`."""

    def __init__(self, tower: Tower, layer: int) -> None:
        super().__init__()
        self.visual, self.tower, self.layer = tower.visual, tower, layer

    def forward(self, x: Float[Tensor, "b token width"]) -> Float[Tensor, "b d"]:
        """Return M(I) from the residual stream after the layer."""
        return self.tower.rest(x, self.layer)


class _LatePart(NamedTuple):
    """The part of a tower that has all changed weights, and the module whose output it reads."""

    last_common: nn.Module
    rest: nn.Module
    name_of: Callable[[str], str]
    """The name that `rest` has for a weight of the tower."""


@torch.inference_mode()
def edited_outputs(visual: nn.Module, sets: Sequence[Weights], image: Float[Tensor, "b 3 y x"]) -> Float[Tensor, "s b d"]:
    """Return M(I) with each set of changed weights.

    Args:
        sets: Names as in the tower's `named_parameters`, on the device of the tower.
        image: Pictures, prepared for the tower and in its type.
    """
    late = _late_part(visual, {name for weights in sets for name in weights})
    if late is None:
        return torch.stack([functional_call(visual, dict(weights), (image,)) for weights in sets])
    kept: dict[int, Tensor] = {}
    with hooked([(late.last_common, keep_output(kept, 0))]):
        M = visual(image)  # (b, d)
    named = [{late.name_of(name): value for name, value in weights.items()} for weights in sets]
    return torch.stack([functional_call(late.rest, weights, (kept[0],)) if weights else M for weights in named])  # (s, b, d)


def _late_part(visual: nn.Module, changed: Collection[str]) -> _LatePart | None:
    """Return the part of the tower from the first layer with a changed weight; None if that is the whole tower."""
    if isinstance(visual, ModifiedResNet):
        late = all(name.startswith(POOLING) for name in changed)
        return _LatePart(visual.layer4, visual.attnpool, lambda name: name.removeprefix(POOLING)) if late else None
    tower = tower_of(visual)
    if (layer := _first_layer(tower, changed)) == 0:
        return None
    return _LatePart(tower.blocks[layer - 1].module, _Rest(tower, layer - 1), lambda name: f"visual.{name}")


def _first_layer(tower: Tower, changed: Iterable[str]) -> int:
    """Return the first layer with a changed weight; 0 if there is one outside the blocks."""
    names = {id(weight): name for name, weight in tower.visual.named_parameters()}
    layer_of = {names[id(weight)]: layer for layer, block in enumerate(tower.blocks) for weight in block.module.parameters()}
    return min((layer_of.get(name, 0) for name in changed), default=0)
