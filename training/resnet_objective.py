"""Training loss of a ModifiedResNet, which must name the picture and, at every token, the emoji of this token.

The output is the sum of the contributions of neuron-head pairs (paper 2, arXiv 2509.19943), so the loss has no term for a path.
As for the ViT (objective.py), a token that shows an emoji must name it through the pooling layer's value and output matrices,
and few channels may write.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from cliptools.models.clip_parts import AttentionPool2d, ModifiedResNet
from training.objective import Batch, Weights, attribute_loss, naming, split_table
from training.sparsity import Sparsity

WEIGHTS = Weights(dense=0.6, path=0.0, path_dense=0.0)


def feature_map(visual: ModifiedResNet, image: Float[Tensor, "b 3 y x"]) -> Float[Tensor, "b neuron v u"]:
    """Return the last block's channels after ReLU."""
    x = visual.stem(image)
    for stage in (visual.layer1, visual.layer2, visual.layer3, visual.layer4):
        x = stage(x)
    return x


def token_readout(pool: AttentionPool2d, x: Float[Tensor, "b token neuron"]) -> Float[Tensor, "b token d"]:
    """Return each token alone through W_V and W_O, as if every head attended only to it."""
    return pool.c_proj(pool.v_proj(x))


def written_strength(pool: AttentionPool2d, concepts: Float[Tensor, "concept d"]) -> Float[Tensor, " neuron"]:
    """Return the standard deviation over the concepts of <E_c, W_O W_V e_n>: how far a channel moves the logits apart."""
    w = (pool.c_proj.weight @ pool.v_proj.weight).float()  # (d, neuron)
    return ((concepts - concepts.mean(0)).detach() @ w).square().mean(0).sqrt()


def strongest(z: Float[Tensor, "b neuron v u"], strength: Float[Tensor, " neuron"], kept: int) -> Float[Tensor, "b neuron v u"]:
    """Return the feature map with the `kept` strongest channels of each token, the others at zero."""
    c = z.detach() * strength.detach().to(z.dtype)[:, None, None]
    least = c.topk(kept, 1).values[:, -1:]  # (b, 1, v, u)
    return torch.where(c >= least, z, 0)


def resnet_objective(
    visual: ModifiedResNet, table: Float[Tensor, "row d"], scale: Tensor, batch: Batch, weights: Weights = WEIGHTS,
    sparsity: Sparsity | None = None, kept: int | None = None,
) -> dict[str, Tensor]:  # fmt: skip
    """Return all terms, unweighted, and their weighted sum as `loss`; see objective.objective.

    Args:
        kept: Number of channels of a token that the pooling reads, the strongest ones; None for all.
    """
    concepts, words = split_table(table)
    z = feature_map(visual, batch.image.contiguous(memory_format=torch.channels_last))  # (b, neuron, v, u)
    tokens = z.flatten(2).transpose(1, 2)  # (b, token, neuron), with all channels
    if kept is not None:
        z = strongest(z, written_strength(visual.attnpool, concepts), kept)
    embedding = F.normalize(visual.attnpool(z).float(), dim=-1)
    terms = {"table": F.cross_entropy(scale * embedding @ concepts.T, batch.named)}
    terms["attributes"] = attribute_loss(embedding, words, scale, batch.true)
    rows = torch.arange(len(z), device=z.device)[:, None]
    pool = visual.attnpool
    x = z.flatten(2).transpose(1, 2)[rows, batch.spot]  # (b, spot, neuron)
    out = token_readout(pool, x + pool.positional_embedding[1:][batch.spot])  # (b, spot, d)
    terms["dense"] = naming(out, concepts, scale, batch.spot_label)
    if sparsity is not None:
        terms["sparse"], terms["crowding"] = sparsity([tokens], [written_strength(pool, concepts)])
    terms["loss"] = terms["table"] + sum(weight * terms[name] for name, weight in weights._asdict().items() if name in terms)
    return terms
