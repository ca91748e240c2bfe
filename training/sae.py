"""Training of a sparse autoencoder on the residual stream of an embedded model, from rendered scenes.

python -m training.sae emoji-vit2 --layer 5 -o sae.safetensors
clip-effects --units sae:sae.safetensors | clip-decompose > latents.safetensors

BatchTopK (Bussmann et al. 2024, arXiv 2412.06410): of the b n codes of a batch, the b k largest are kept, which trains without a
penalty of their size; latents that no batch has kept for a while learn what the others miss (Gao et al. 2024, arXiv 2406.04093).
At inference one threshold takes the place of the batch: that which keeps k codes a token of a large sample.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import click
import torch
from jaxtyping import Float, Int
from safetensors.torch import save_file
from torch import Tensor

from cliptools.emoji.render import scenes_for
from cliptools.front.images import Reading, number_images
from cliptools.models.load import LoadedModel, load_model
from cliptools.towers.hooks import hooked, keep_output
from cliptools.towers.kinds import supported_tower

FRESH = 500  # scenes on which the autoencoder is tested
FRESH_SEED = 900  # their seed, added to that of training
SAMPLE = 1 << 14  # tokens from which the threshold is taken
IDLE = 100  # steps without a code after which a latent counts as dead
AUXILIARY = 1 / 32  # weight of the loss of dead latents
DEAD_AT_ONCE = 64  # dead latents per token that learn


@dataclass
class Autoencoder:
    """Weights during training, for tokens with mean square 1 a number."""

    W_enc: Float[Tensor, "d n"]
    b_enc: Float[Tensor, " n"]
    W_dec: Float[Tensor, "n d"]
    b_dec: Float[Tensor, " d"]

    def before(self, x: Float[Tensor, "b d"]) -> Float[Tensor, "b n"]:
        """Codes before the choice of the largest."""
        return ((x - self.b_dec) @ self.W_enc + self.b_enc).relu()

    def parameters(self) -> list[Tensor]:
        """All weights."""
        return [self.W_enc, self.b_enc, self.W_dec, self.b_dec]


class Quality(NamedTuple):
    """How well an autoencoder describes fresh scenes."""

    explained: float
    """Share of the variance of the tokens."""
    codes: float
    """Mean number of codes a token."""
    dead: float
    """Share of the latents without a code."""


def residuals(model: LoadedModel, layer: int, scenes: int, seed: int) -> Float[Tensor, "i token d"]:
    """Residual stream after a layer at all tokens of rendered scenes, in half precision."""
    tower = supported_tower(model.clip)
    images = number_images(scenes_for(model.name, scenes, seed), None, None, seed, Reading())
    kept: dict[int, Tensor] = {}
    parts = []
    with torch.inference_mode(), hooked([(tower.blocks[layer].module, keep_output(kept, layer))]):
        for _, pictures in images.batches(model):
            tower.visual(pictures.to(model.device))
            parts.append(kept[layer].half().cpu())
    return torch.cat(parts)


def initial(x: Float[Tensor, "b d"], latents: int, seed: int) -> Autoencoder:
    """Random unit vectors of the decoder, the encoder its transpose, and the mean of tokens as b_dec."""
    W_dec = torch.randn(latents, x.shape[1], generator=torch.Generator().manual_seed(seed))
    W_dec = W_dec / W_dec.norm(dim=1, keepdim=True)
    weights = Autoencoder(W_dec.T.clone(), torch.zeros(latents), W_dec, x.mean(0))
    for weight in weights.parameters():
        weight.requires_grad_()
    return weights


def batches(count: int, size: int, steps: int, seed: int) -> Iterator[Int[Tensor, " b"]]:
    """Rows of each step's batch: all rows in random order, again and again."""
    generator = torch.Generator().manual_seed(seed)
    rows = torch.empty(0, dtype=torch.long)
    for _ in range(steps):
        if len(rows) < size:
            rows = torch.randperm(count, generator=generator)
        yield rows[:size]
        rows = rows[size:]


def train(x: Float[Tensor, "i d"], latents: int, k: int, steps: int, size: int, rate: float, seed: int) -> Autoencoder:
    """Train on tokens x in half precision, whose numbers have mean square 1 about their mean."""
    weights = initial(x[: 1 << 15].float(), latents, seed)
    optimiser = torch.optim.Adam(weights.parameters(), rate)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda step: min(1.0, (step + 1) / 50, (steps - step) / (steps / 5)))
    idle = torch.zeros(latents)
    for rows in batches(len(x), size, steps, seed):
        y = x[rows].float()
        before = weights.before(y)
        least = before.flatten().topk(k * len(y)).values[-1]
        code = before * (before >= least)
        error = y - (code @ weights.W_dec + weights.b_dec)
        loss = error.square().mean()
        idle = torch.where((code > 0).any(0), 0, idle + 1)
        if (dead := (idle > IDLE).nonzero()[:, 0]).numel():
            h = ((y - weights.b_dec) @ weights.W_enc[:, dead] + weights.b_enc[dead]).topk(min(DEAD_AT_ONCE, len(dead)), 1)
            missed = torch.zeros(len(y), len(dead)).scatter(1, h.indices, h.values.relu()) @ weights.W_dec[dead]
            loss = loss + AUXILIARY * (missed - error.detach()).square().mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()
        with torch.no_grad():
            weights.W_dec /= weights.W_dec.norm(dim=1, keepdim=True)
    return weights


@torch.no_grad()
def threshold(weights: Autoencoder, x: Float[Tensor, "i d"], k: int, seed: int) -> float:
    """The number above which k codes a token are on average, over a sample."""
    rows = torch.randperm(len(x), generator=torch.Generator().manual_seed(seed))[:SAMPLE]
    codes = weights.before(x[rows].float()).flatten()
    return float(codes.kthvalue(len(codes) - k * len(rows)).values)


@torch.no_grad()
def quality(weights: Autoencoder, x: Float[Tensor, "i d"], least: float) -> Quality:
    """The autoencoder at inference on these tokens."""
    error, codes, used = 0.0, 0, torch.zeros(len(weights.b_enc), dtype=torch.bool)
    for part in x.split(4096):
        y = part.float()
        before = weights.before(y)
        code = before * (before > least)
        error += float((y - (code @ weights.W_dec + weights.b_dec)).square().sum(dtype=torch.float64))
        codes += int((code > 0).sum())
        used |= (code > 0).any(0)
    total = float((x.float() - x.float().mean(0)).square().sum(dtype=torch.float64))
    return Quality(1 - error / total, codes / len(x), 1 - float(used.float().mean()))


@click.command()
@click.argument("name")
@click.option("--layer", default=5, show_default=True)
@click.option("--latents", default=1536, show_default=True)
@click.option("--k", default=16, show_default=True, help="Mean number of codes a token.")
@click.option("--scenes", default=4000, show_default=True)
@click.option("--steps", default=1500, show_default=True)
@click.option("--batch-size", default=1024, show_default=True, help="Tokens of a step.")
@click.option("--rate", default=1e-3, show_default=True, help="Learning rate.")
@click.option("--seed", default=0, show_default=True)
@click.option("-o", "--output", type=click.Path(path_type=Path), required=True)
def main(
    name: str, layer: int, latents: int, k: int, scenes: int, steps: int, batch_size: int, rate: float, seed: int, output: Path
) -> None:
    """Train an autoencoder of a layer's residual stream, and write it as clip-effects --units sae:FILE reads it."""
    model = load_model(name)
    x = residuals(model, layer, scenes, FRESH_SEED + seed).flatten(0, 1)
    scale = float((x.float() - x.float().mean(0)).square().mean().sqrt())
    x = (x.float() / scale).half()
    weights = train(x, latents, k, steps, batch_size, rate, seed)
    least = threshold(weights, x, k, seed)
    fresh = (residuals(model, layer, FRESH, 2 * FRESH_SEED + seed).flatten(0, 1).float() / scale).half()
    figures = {key: round(value, 4) for key, value in quality(weights, fresh, least)._asdict().items()}
    tensors = {"W_enc": weights.W_enc, "b_enc": weights.b_enc * scale, "W_dec": weights.W_dec, "b_dec": weights.b_dec * scale}
    config = {
        "model": {"name": model.name, "sha256": model.sha256}, "hook_name": f"blocks.{layer}.hook_resid_post",
        "activation": "batchtopk", "k": k, "threshold": least * scale, "apply_b_dec_to_input": True,
        "training": {"scenes": scenes, "steps": steps, "batch_size": batch_size, "rate": rate, "seed": seed} | figures,
    }  # fmt: skip
    save_file({key: value.detach().contiguous() for key, value in tensors.items()}, output, {"config": json.dumps(config)})
    click.echo(json.dumps(figures))


if __name__ == "__main__":
    main()
