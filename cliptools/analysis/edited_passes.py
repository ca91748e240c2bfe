"""Outputs of an image tower with each of several sets of changed weights, for many edits of late layers.

    x = f_<l(I)                       the same for all sets: l is the first layer with a changed weight
    M_s(I) = f_>=l(x; weights_s)      for each set s of changed weights

An edit of a ViT's last layers, or of a ResNet's attention pooling, so costs little more than the part of the tower that it
changes. Changed weights elsewhere cost a whole pass each.
"""

from collections.abc import Iterable, Mapping, Sequence

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


@torch.inference_mode()
def edited_outputs(visual: nn.Module, sets: Sequence[Weights], image: Float[Tensor, "b 3 y x"]) -> Float[Tensor, "s b d"]:
    """Return M(I) with each set of changed weights.

    Args:
        sets: Names as in the tower's `named_parameters`, on the device of the tower.
        image: Pictures, prepared for the tower and in its type.
    """
    changed = {name for weights in sets for name in weights}
    if isinstance(visual, ModifiedResNet) and all(name.startswith(POOLING) for name in changed):
        return _from_pooling(visual, sets, image)
    layer = 0 if isinstance(visual, ModifiedResNet) else _first_layer(tower_of(visual), changed)
    if layer == 0:
        return torch.stack([functional_call(visual, dict(weights), (image,)) for weights in sets])
    tower, kept = tower_of(visual), dict[int, Tensor]()
    with hooked([(tower.blocks[layer - 1].module, keep_output(kept, layer - 1))]):
        M = visual(image)  # (b, d)
    rest = _Rest(tower, layer - 1)
    outputs = [functional_call(rest, _renamed(weights), (kept[layer - 1],)) if weights else M for weights in sets]
    return torch.stack(outputs)  # (s, b, d)


def _renamed(weights: Weights) -> dict[str, Tensor]:
    return {f"visual.{name}": value for name, value in weights.items()}


def _from_pooling(visual: ModifiedResNet, sets: Sequence[Weights], image: Float[Tensor, "b 3 y x"]) -> Float[Tensor, "s b d"]:
    """Return the outputs with changed weights of the attention pooling."""
    kept: dict[int, Tensor] = {}
    with hooked([(visual.layer4, keep_output(kept, 0))]):
        M = visual(image)  # (b, d)
    own = [{name.removeprefix(POOLING): value for name, value in weights.items()} for weights in sets]
    return torch.stack([functional_call(visual.attnpool, weights, (kept[0],)) if weights else M for weights in own])


def _first_layer(tower: Tower, changed: Iterable[str]) -> int:
    """Return the first layer with a changed weight; 0 if there is one outside the blocks."""
    names = {id(weight): name for name, weight in tower.visual.named_parameters()}
    layer_of = {names[id(weight)]: layer for layer, block in enumerate(tower.blocks) for weight in block.module.parameters()}
    return min((layer_of.get(name, 0) for name in changed), default=0)
