"""How much of an image's embedding comes from the units of a concept (paper 2, arXiv 2509.19943, distribution shift).

    share_c(I) = ||sum over n in U_c of phi_n(I)|| / ||M(I)||

U_c are the few units whose directions r_n have the largest <r_n, t_c> with the concept's text t_c. With phi_n = sum_k S[n, k]
D[n, k, :] the sum over so few units is one product, S of them all [b, n k] times D [n k, d]. The share forgets on which
side of the origin the sum lies; <sum phi_n, t_c> / ||M(I)|| does not.
"""

from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from cliptools.methods.activity import slabs_of
from cliptools.methods.paths import Paths, wide


class Chosen(NamedTuple):
    """The units of each concept, the best first."""

    row: Int[Tensor, "c n"]
    overlap: Float[Tensor, "c n"]
    """<r_n, t_c>."""


class Shares(NamedTuple):
    """What concepts make up of b images."""

    norm: Float[Tensor, "b c"]
    """||sum phi_n(I)|| / ||M(I)||."""
    signed: Float[Tensor, "b c"]
    """<sum phi_n(I), t_c> / ||M(I)||."""
    text: Float[Tensor, "b c"]
    """<M(I), t_c> / ||M(I)||: CLIP's own answer, no unit asked."""
    embedding: Float[Tensor, "b d"]
    """M(I), not normalised."""


def choose_units(r: Float[Tensor, "u d"], t: Float[Tensor, "c d"], count: int) -> Chosen:
    """The `count` units of largest <r_n, t_c> for each concept; of equal ones the first."""
    overlap, row = (t.to(r) @ r.T).sort(dim=1, descending=True, stable=True)
    return Chosen(row[:, :count], overlap[:, :count])


class ConceptShare:
    """Shares of some concepts, for one batch of images after the other."""

    def __init__(self, paths: Paths, unit: Int[Tensor, "u 3"], row: Int[Tensor, "c n"], t: Float[Tensor, "c d"]) -> None:
        """
        Args:
            unit: Layer, neuron and head of a bundle's units.
            row: Which of them are each concept's.
            t: The concepts' unit embeddings.
        """
        self.paths, self.t = paths, t
        asked = row.unique()
        self.slabs, parts = slabs_of(paths, unit[asked])
        self.terms = []  # of each slab, for each concept: its units in the slab [m], and their D [m k, d]
        for slab, part in zip(self.slabs, parts, strict=True):
            D = paths.directions(slab)  # (n, k, d): only units of some concept
            here = [torch.isin(asked[part], mine).nonzero()[:, 0] for mine in row]
            self.terms.append([(m.to(D.device), D[m.to(D.device)].flatten(0, 1)) for m in here])

    def __call__(self, image: Float[Tensor, "i 3 y x"]) -> Shares:
        """The concepts' shares of these images."""
        S, embedding = self.paths.read(image, self.slabs)
        embedding = wide(embedding)
        total = embedding.new_zeros(len(embedding), *self.t.shape)  # (b, c, d): sum phi_n
        for s, terms in zip(S, self.terms, strict=True):
            for c, (units, D) in enumerate(terms):
                total[:, c] += s[:, units].flatten(1) @ D
        size, t = embedding.norm(dim=-1, keepdim=True), self.t.to(embedding)
        return Shares(total.norm(dim=-1) / size, (total * t).sum(-1) / size, embedding @ t.T / size, embedding)
