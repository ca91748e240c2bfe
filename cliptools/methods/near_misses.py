"""Images that just missed a list of top images: by norm and number alone, so that hundreds cost little.

A list kept about a provisional centre may be wrong about the mean. The images that could set it right are those dropped
with a norm near the list's end: these few are remembered, and need to be looked at again, all others need not.
"""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor


class NearMisses:
    """The R largest of what n units have dropped. Norms are upper bounds, about the present centre."""

    def __init__(self, n: int, places: int, like: Tensor) -> None:
        self.norm = like.new_full((n, places), -torch.inf)
        self.image = torch.full((n, places), -1, dtype=torch.int64, device=like.device)
        self.least = like.new_full((n,), -torch.inf)
        self.lost = like.new_full((n,), -torch.inf)
        """Bound on what is not even remembered."""

    def take(self, of: slice, norm: Float[Tensor, "n b"], image: Int[Tensor, "n b"]) -> None:
        """Remember what some units drop, or forget what is smaller."""
        largest = norm.amax(1)
        self.lost[of] = torch.where(largest > self.least[of], self.lost[of], torch.maximum(self.lost[of], largest))
        rows = (largest > self.least[of]).nonzero()[:, 0]
        units, places = rows + of.start, self.norm.shape[1]
        values, order = torch.cat([self.norm[units], norm[rows]], 1).topk(places + 1)  # (row, places + 1)
        self.norm[units], self.least[units] = values[:, :-1], values[:, -2]
        self.lost[units] = torch.maximum(self.lost[units], values[:, -1])
        self.image[units] = torch.cat([self.image[units], image[rows]], 1).gather(1, order[:, :-1])

    def move(self, distance: Float[Tensor, "n"]) -> None:
        """The centre moves by so much, and no norm grows by more."""
        self.norm += distance[:, None]
        self.least += distance
        self.lost += distance

    def above(self, of: slice, norm: Float[Tensor, "n"]) -> tuple[Int[Tensor, "n R"], Bool[Tensor, "n"]]:
        """Of some units the images, else -1, that may have more than this norm; and whether any may that is not remembered."""
        image = self.image[of]
        return image.where(self.norm[of] > norm[:, None], torch.full_like(image, -1)), self.lost[of] > norm
