"""Training loss of a ViT image tower.

In addition to the softmax over the class table, three terms give the second-order lens something to find: every token that shows
an emoji must name it, both by its whole state and by the output of the late MLPs alone; the second-order path alone must
classify; and few neurons may contribute at a token.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from cliptools.models.clip_parts import VisionTransformer
from training.vision import Reader, Trace, forward, path_output, path_values, second_order_sum, token_readout


class Batch(NamedTuple):
    """Pictures and their labels."""

    image: Float[Tensor, "b 3 y x"]
    named: Float[Tensor, "b concept"]
    """A distribution over the concepts that the caption names."""
    kept: Int[Tensor, "b kept"] | None
    """The patch tokens that the tower gets; None for all."""
    spot: Int[Tensor, "b spot"]
    """Positions, among the kept tokens, of a few tokens that show an emoji."""
    spot_label: Int[Tensor, "b spot"]
    """The concept at each of these positions; -100 for a token without an emoji."""


class Weights(NamedTuple):
    """Weights of the terms of the loss, relative to the softmax over the class table."""

    dense: float = 0.4
    path: float = 0.6
    path_dense: float = 0.3
    sparse: float = 0.02


def objective(
    visual: VisionTransformer, table: Float[Tensor, "concept d"], scale: Tensor, batch: Batch, weights: Weights
) -> dict[str, Tensor]:
    """Return all terms, unweighted, and their weighted sum as `loss`."""
    trace = forward(visual, batch.image, batch.kept)
    concepts = F.normalize(table, dim=-1)
    z = trace.embedding.float()
    length = z.norm(dim=-1, keepdim=True)
    terms = {"table": F.cross_entropy(scale * (z / length) @ concepts.T, batch.named)}
    # The divisor is the length of the whole output, not of the path, so that a path with a small share of it cannot name a
    # concept.
    path = second_order_sum(visual, trace)
    terms["path"] = F.cross_entropy(scale * (path / length.detach()) @ concepts.T, batch.named)
    rows = torch.arange(len(z), device=z.device)[:, None]
    spots = 1 + batch.spot  # token 0 is the class token
    dense, path_dense = [], []
    for reader in trace.readers:
        spot_reader = reader._replace(normed=reader.normed[rows, spots], sigma=reader.sigma[rows, spots])  # (b, spot, …)
        dense.append(naming(token_readout(visual, spot_reader), concepts, scale, batch.spot_label))
    for written, reader in zip((trace.mlps[0], trace.mlps[0], trace.mlps[1]), _pairs(trace.readers), strict=True):
        spot_reader = reader._replace(sigma=reader.sigma[rows, spots])
        value = path_values(spot_reader, written[rows, spots])  # (b, spot, width)
        path_dense.append(naming(path_output(visual, spot_reader, value), concepts, scale, batch.spot_label))
    terms["dense"] = torch.stack(dense).mean()
    terms["path_dense"] = torch.stack(path_dense).mean()
    terms["sparse"] = torch.stack([_spread(visual, trace, i, rows, spots) for i in range(len(trace.mlps))]).mean()
    terms["loss"] = terms["table"] + sum(weight * terms[name] for name, weight in weights._asdict().items())
    return terms


def _pairs(readers: list[Reader]) -> tuple[Reader, Reader, Reader]:
    """Return the reader of each (MLP, later block) path, in the order (L-3, L-2), (L-3, L-1), (L-2, L-1)."""
    return readers[0], readers[1], readers[1]


def naming(
    out: Float[Tensor, "b spot d"], concepts: Float[Tensor, "concept d"], scale: Tensor, label: Int[Tensor, "b spot"]
) -> Tensor:
    """Return the cross entropy of the spots' readouts; spots without an emoji do not count."""
    logits = scale * F.normalize(out.float(), dim=-1) @ concepts.T  # (b, spot, concept)
    return F.cross_entropy(logits.flatten(0, 1), label.flatten(), ignore_index=-100)


def _spread(visual: VisionTransformer, trace: Trace, i: int, rows: Tensor, spots: Tensor) -> Tensor:
    """Return the spread of the MLP's output over neurons: sum of |p_n| ||w_n|| over ||sum of p_n w_n||, 1 for a single neuron."""
    block = visual.transformer.resblocks[len(visual.transformer.resblocks) - 3 + i]
    strength = block.mlp.c_proj.weight.float().norm(dim=0)  # (neuron,)
    total = trace.neurons[i][rows, spots].float().abs() @ strength  # (b, spot)
    return (total / (trace.mlps[i][rows, spots].float().norm(dim=-1) + 1e-3)).mean()
