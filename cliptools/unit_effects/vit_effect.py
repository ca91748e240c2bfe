"""The common part of factored effects of an image tower with an adapter (towers/): S comes from hooks on one forward pass."""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from cliptools.towers.hooks import hooked
from cliptools.towers.tower import Tower
from cliptools.unit_effects.factored import Listener, UnitBlock


class TowerEffect(ABC):
    """A factored effect that listens to the forward pass of a tower."""

    def __init__(self, tower: Tower) -> None:
        self.tower, self.visual = tower, tower.visual

    @abstractmethod
    def listen(self, blocks: Sequence[UnitBlock]) -> Listener:
        """Hooks for a forward pass, and the function that gives S of every block after it."""

    @torch.inference_mode()
    def read(
        self, image: Float[Tensor, "b 3 y x"], blocks: Sequence[UnitBlock]
    ) -> tuple[Iterable[Float[Tensor, "b n k"]], Float[Tensor, "b d"]]:
        """S of every block, and M(I), from one forward pass."""
        listener = self.listen(blocks)
        with hooked(listener.hooks):
            embedding = self.visual(image.to(self.tower.weight.device, self.tower.weight.dtype))
        return listener.scalars(embedding), embedding
