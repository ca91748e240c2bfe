"""Training loss of a ViT image tower.

In addition to the softmax over the concepts' rows of the table and over each group of attributes, three terms give the
second-order lens something to find: every token that shows an emoji must name it, both by its whole state and by the output of
the late MLPs alone; the second-order path alone must classify; and few neurons may write at a token.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from cliptools.models.clip_parts import VisionTransformer
from cliptools.text.attributes import attribute_groups
from cliptools.text.emoji_concepts import concepts as all_concepts
from training.sparsity import Sparsity
from training.vision import (
    READERS,
    Reader,
    forward,
    path_output,
    path_values,
    reader_matrix,
    second_order_sum,
    token_readout,
)


class Batch(NamedTuple):
    """Pictures and their labels."""

    image: Float[Tensor, "b 3 y x"]
    named: Float[Tensor, "b concept"]
    """A distribution over the concepts that the caption names."""
    true: Float[Tensor, "b attribute"]
    """1 for every attribute that is true of the picture."""
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
    attributes: float = 0.3
    sparse: float = 1.5
    crowding: float = 5.0


def objective(
    visual: VisionTransformer, table: Float[Tensor, "row d"], scale: Tensor, batch: Batch, weights: Weights,
    sparsity: Sparsity | None = None,
) -> dict[str, Tensor]:  # fmt: skip
    """Return all terms, unweighted, and their weighted sum as `loss`.

    Args:
        table: Embeddings of all concepts, then of all attributes.
        sparsity: The measure of how many neurons write at a token; None leaves its terms out.
    """
    trace = forward(visual, batch.image, batch.kept)
    concepts, words = split_table(table)
    z = trace.embedding.float()
    length = z.norm(dim=-1, keepdim=True)
    terms = {"table": F.cross_entropy(scale * (z / length) @ concepts.T, batch.named)}
    terms["attributes"] = attribute_loss(z / length, words, scale, batch.true)
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
    if sparsity is not None:
        strengths = written_strengths(visual, concepts)
        terms["sparse"], terms["crowding"] = sparsity(trace.neurons, strengths)
    terms["loss"] = terms["table"] + sum(weight * terms[name] for name, weight in weights._asdict().items() if name in terms)
    return terms


def split_table(table: Float[Tensor, "row d"]) -> tuple[Float[Tensor, "concept d"], Float[Tensor, "attribute d"]]:
    """Return the unit embeddings of the concepts and of the attributes."""
    unit = F.normalize(table, dim=-1)
    return unit[: len(all_concepts())], unit[len(all_concepts()) :]


def attribute_loss(
    z: Float[Tensor, "b d"], words: Float[Tensor, "attribute d"], scale: Tensor, true: Float[Tensor, "b attribute"]
) -> Tensor:
    """Return the cross entropy over each group of attributes, whose true ones weigh the same; groups without one do not count."""
    logits, losses, start = scale * z @ words.T, [], 0
    for group in attribute_groups():
        stop = start + len(group.words)
        target = true[:, start:stop]
        count = target.sum(-1)
        known = count > 0
        cross = -(logits[:, start:stop].log_softmax(-1) * target).sum(-1) / count.clamp(min=1)
        losses.append((cross * known).sum() / known.sum().clamp(min=1))
        start = stop
    return torch.stack(losses).mean()


def written_strengths(visual: VisionTransformer, concepts: Float[Tensor, "concept d"]) -> list[Float[Tensor, " neuron"]]:
    """Return how far a neuron of each traced MLP moves the concepts' logits apart, through the later attention, per activation.

    It is the standard deviation over the concepts of <E_c, A w_n>, the root of the mean square over the readers of this MLP.
    """
    blocks = list(visual.transformer.resblocks)
    spread = (concepts - concepts.mean(0)).detach()  # (concept, d)
    strengths = []
    for i in range(READERS):
        layer = len(blocks) - READERS - 1 + i
        w = blocks[layer].mlp.c_proj.weight.float()  # (width, neuron)
        moved = [spread @ reader_matrix(visual, reader).float() @ w for reader in blocks[layer + 1 :]]  # each (concept, neuron)
        strengths.append(torch.stack(moved).square().mean((0, 1)).sqrt())
    return strengths


def _pairs(readers: list[Reader]) -> tuple[Reader, Reader, Reader]:
    """Return the reader of each (MLP, later block) path, in the order (L-3, L-2), (L-3, L-1), (L-2, L-1)."""
    return readers[0], readers[1], readers[1]


def naming(
    out: Float[Tensor, "b spot d"], concepts: Float[Tensor, "concept d"], scale: Tensor, label: Int[Tensor, "b spot"]
) -> Tensor:
    """Return the cross entropy of the spots' readouts; spots without an emoji do not count."""
    logits = scale * F.normalize(out.float(), dim=-1) @ concepts.T  # (b, spot, concept)
    return F.cross_entropy(logits.flatten(0, 1), label.flatten(), ignore_index=-100)
