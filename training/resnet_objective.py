"""Training loss of a ModifiedResNet, which must name the picture and, at every token, the emoji of this token.

The output is the sum of the contributions of neuron-head pairs (paper 2, arXiv 2509.19943), so the loss has no term for a path.
As for the ViT (objective.py), a token that shows an emoji must name it through the pooling layer's value and output matrices,
and few neurons may contribute.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from cliptools.models.clip_parts import AttentionPool2d, ModifiedResNet
from training.objective import Batch, Weights, naming

WEIGHTS = Weights(dense=0.6, path=0.0, path_dense=0.0, sparse=0.02)


def feature_map(visual: ModifiedResNet, image: Float[Tensor, "b 3 y x"]) -> Float[Tensor, "b neuron v u"]:
    """Return the last block's channels after ReLU."""
    x = visual.stem(image)
    for stage in (visual.layer1, visual.layer2, visual.layer3, visual.layer4):
        x = stage(x)
    return x


def token_readout(pool: AttentionPool2d, x: Float[Tensor, "b token neuron"]) -> Float[Tensor, "b token d"]:
    """Return each token alone through W_V and W_O, as if every head attended only to it."""
    return pool.c_proj(pool.v_proj(x))


def spread(pool: AttentionPool2d, x: Float[Tensor, "b spot neuron"]) -> Tensor:
    """Return the spread of a token's output over neurons: sum of x_n ||w_n|| over ||sum of x_n w_n||, 1 for a single neuron."""
    w = (pool.c_proj.weight @ pool.v_proj.weight).float()  # (d, neuron)
    written = F.linear(x.float(), w).norm(dim=-1)  # (b, spot)
    return (x.float() @ w.norm(dim=0) / (written + 1e-3)).mean()


def resnet_objective(
    visual: ModifiedResNet, table: Float[Tensor, "concept d"], scale: Tensor, batch: Batch, weights: Weights = WEIGHTS
) -> dict[str, Tensor]:
    """Return all terms, unweighted, and their weighted sum as `loss`."""
    concepts = F.normalize(table, dim=-1)
    z = feature_map(visual, batch.image.contiguous(memory_format=torch.channels_last))  # (b, neuron, v, u)
    embedding = F.normalize(visual.attnpool(z).float(), dim=-1)
    terms = {"table": F.cross_entropy(scale * embedding @ concepts.T, batch.named)}
    rows = torch.arange(len(z), device=z.device)[:, None]
    pool = visual.attnpool
    x = z.flatten(2).transpose(1, 2)[rows, batch.spot]  # (b, spot, neuron)
    out = token_readout(pool, x + pool.positional_embedding[1:][batch.spot])  # (b, spot, d)
    terms["dense"] = naming(out, concepts, scale, batch.spot_label)
    terms["sparse"] = spread(pool, x)
    terms["loss"] = terms["table"] + weights.dense * terms["dense"] + weights.sparse * terms["sparse"]
    return terms
