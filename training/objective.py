"""What the image tower is asked to do.

Beside the class table's softmax, three terms make the tower one in which the second-order lens has something to
see: every token that shows an emoji must name it, both as a whole and by what the late MLPs alone wrote there; the
second-order path alone must classify; and few neurons may do the writing.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from cliptools.models.clip_parts import VisionTransformer
from training.vision import Reader, Trace, forward, path_output, path_values, second_order_sum, token_readout


class Batch(NamedTuple):
    """Pictures and what they show."""

    image: Float[Tensor, "b 3 y x"]
    named: Float[Tensor, "b concept"]
    """A distribution over the concepts that the caption names."""
    kept: Int[Tensor, "b kept"] | None
    """The patch tokens the tower is given."""
    spot: Int[Tensor, "b spot"]
    """Positions, among the kept tokens, of some that show an emoji."""
    spot_label: Int[Tensor, "b spot"]
    """The concept shown there; -100 where there is none."""


class Weights(NamedTuple):
    """Weights of the terms beside the class table's softmax."""

    dense: float = 0.4
    path: float = 0.6
    path_dense: float = 0.3
    sparse: float = 0.02


def objective(
    visual: VisionTransformer, table: Float[Tensor, "concept d"], scale: Tensor, batch: Batch, weights: Weights
) -> dict[str, Tensor]:
    """All terms, unweighted, and their weighted sum under `loss`."""
    trace = forward(visual, batch.image, batch.kept)
    concepts = F.normalize(table, dim=-1)
    z = trace.embedding.float()
    length = z.norm(dim=-1, keepdim=True)
    terms = {"table": F.cross_entropy(scale * (z / length) @ concepts.T, batch.named)}
    # Not normalised by its own length: a path that carries little of the output cannot name anything.
    path = second_order_sum(visual, trace)
    terms["path"] = F.cross_entropy(scale * (path / length.detach()) @ concepts.T, batch.named)
    rows = torch.arange(len(z), device=z.device)[:, None]
    spots = 1 + batch.spot  # token 0 is the class token
    dense, path_dense = [], []
    for reader in trace.readers:
        at = reader._replace(normed=reader.normed[rows, spots], sigma=reader.sigma[rows, spots])
        dense.append(naming(token_readout(visual, at), concepts, scale, batch.spot_label))
    for written, reader in zip((trace.mlps[0], trace.mlps[0], trace.mlps[1]), _pairs(trace.readers), strict=True):
        at = reader._replace(sigma=reader.sigma[rows, spots])
        value = path_values(at, written[rows, spots])
        path_dense.append(naming(path_output(visual, at, value), concepts, scale, batch.spot_label))
    terms["dense"] = torch.stack(dense).mean()
    terms["path_dense"] = torch.stack(path_dense).mean()
    terms["sparse"] = torch.stack([_spread(visual, trace, i, rows, spots) for i in range(len(trace.mlps))]).mean()
    terms["loss"] = terms["table"] + sum(weight * terms[name] for name, weight in weights._asdict().items())
    return terms


def _pairs(readers: list[Reader]) -> tuple[Reader, Reader, Reader]:
    """The reader of each (MLP, later block) path, in the order (L-3, L-2), (L-3, L-1), (L-2, L-1)."""
    return readers[0], readers[1], readers[1]


def naming(
    out: Float[Tensor, "b spot d"], concepts: Float[Tensor, "concept d"], scale: Tensor, label: Int[Tensor, "b spot"]
) -> Tensor:
    """Cross entropy of what each spot's readout names; spots that show nothing do not count."""
    logits = scale * F.normalize(out.float(), dim=-1) @ concepts.T
    return F.cross_entropy(logits.flatten(0, 1), label.flatten(), ignore_index=-100)


def _spread(visual: VisionTransformer, trace: Trace, i: int, rows: Tensor, spots: Tensor) -> Tensor:
    """How many neurons share the writing: sum of |p_n| ||w_n|| over ||sum of p_n w_n||, 1 when one neuron does it all."""
    block = visual.transformer.resblocks[len(visual.transformer.resblocks) - 3 + i]
    strength = block.mlp.c_proj.weight.float().norm(dim=0)  # (neuron,)
    each = trace.neurons[i][rows, spots].float().abs() @ strength  # (b, spot)
    return (each / (trace.mlps[i][rows, spots].float().norm(dim=-1) + 1e-3)).mean()
