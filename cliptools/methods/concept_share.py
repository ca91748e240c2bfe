"""How much of an image's embedding comes from the units of a concept (paper 2, arXiv 2509.19943, distribution shift).

    share_c(I) = ||sum over n in U_c of phi_n(I)|| / ||M(I)||

U_c are a few units (concept_choice.py). With phi_n = sum_k S[n, k] D[n, k, :] the sum over so few units is one product, S of
them all [b, n k] times D [n k, d]. The share forgets on which side of the origin the sum lies, <sum phi_n, t_c> / ||M(I)|| does
not.

Sets of units drawn at random are measured beside, so that it can be said what chance gives on the same images.
"""

from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from cliptools.methods.activity import slabs_of
from cliptools.methods.paths import Paths, wide


class Shares(NamedTuple):
    """What concepts make up of b images."""

    norm: Float[Tensor, "b c"]
    """||sum phi_n(I)|| / ||M(I)||."""
    signed: Float[Tensor, "b c"]
    """<sum phi_n(I), t_c> / ||M(I)||."""
    text: Float[Tensor, "b c"]
    """<M(I), t_c> / ||M(I)||: CLIP's own answer, no unit asked."""
    random_norm: Float[Tensor, "b s"]
    """||sum phi_n(I)|| / ||M(I)|| of the sets drawn at random."""
    random_signed: Float[Tensor, "b s c"]
    """<sum phi_n(I), t_c> / ||M(I)|| of these."""
    embedding: Float[Tensor, "b d"]
    """M(I), not normalised."""


class ConceptShare:
    """Shares of some concepts, for one batch of images after the other."""

    def __init__(
        self,
        paths: Paths,
        unit: Int[Tensor, "u 3"],
        row: Int[Tensor, "c n"],
        t: Float[Tensor, "c d"],
        random: Int[Tensor, "s n"] | None = None,
    ) -> None:
        """
        Args:
            unit: Layer, neuron and head of a bundle's units.
            row: Which of them are each concept's.
            t: The concepts' unit embeddings.
            random: Which of them are in each set drawn at random.
        """
        self.paths, self.t = paths, t
        sets = row if random is None else torch.cat([row, random])
        asked = sets.unique()
        self.slabs, parts = slabs_of(paths, unit[asked])
        self.sets = len(sets)
        self.terms = []  # of each slab, for each set: its units in the slab [m], and their D [m k, d]
        for slab, part in zip(self.slabs, parts, strict=True):
            D = paths.directions(slab)  # (n, k, d): only units of some set
            here = [torch.isin(asked[part], mine).nonzero()[:, 0] for mine in sets]
            self.terms.append([(m.to(D.device), D[m.to(D.device)].flatten(0, 1)) for m in here])

    def __call__(self, image: Float[Tensor, "i 3 y x"]) -> Shares:
        """The concepts' shares of these images."""
        S, embedding = self.paths.read(image, self.slabs)
        embedding = wide(embedding)
        total = embedding.new_zeros(len(embedding), self.sets, self.t.shape[1])  # (b, set, d): sum phi_n
        for s, terms in zip(S, self.terms, strict=True):
            for of, (units, D) in enumerate(terms):
                total[:, of] += s[:, units].flatten(1) @ D
        size, t = embedding.norm(dim=-1, keepdim=True), self.t.to(embedding)
        norm, own, other = total.norm(dim=-1) / size, total[:, : len(t)], total[:, len(t) :]
        signed, text = (own * t).sum(-1) / size, embedding @ t.T / size
        return Shares(norm[:, : len(t)], signed, text, norm[:, len(t) :], other @ t.T / size[..., None], embedding)


def random_sets(units: int, size: int, sets: int) -> Int[Tensor, "s n"]:
    """Sets of so many of the units, drawn at random, always the same; none where there are too few units to draw from."""
    if units < 4 * size:
        return torch.zeros(0, size, dtype=torch.int64)
    generator = torch.Generator().manual_seed(0)
    return torch.stack([torch.randperm(units, generator=generator)[:size] for _ in range(sets)])
