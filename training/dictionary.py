"""Replace the late MLPs of a ViT by sparse ones that write the same: transcoders, trained on the MLPs' own inputs and outputs.

    python -m training.dictionary run/image.pt run/sparse.pt

A dense MLP becomes sparse only slowly by a penalty. A transcoder of the same shape whose hidden layer keeps the k strongest
neurons of a token (top-k; Dunefsky et al. 2024, Gao et al. 2024) is learned in minutes, without any label; as a plain MLP,
without the top-k, it is where training with the penalty starts from. k falls from MOST_FIRST to `--most`.
"""

import copy
import json
import math
import sys
from pathlib import Path
from typing import NamedTuple

import click
import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from cliptools.models.clip_parts import CLIP, VisionTransformer
from training.batches import make_batch
from training.image import SEED, Trained, new_model, training_recipe
from training.measures import canvas_of
from training.objective import split_table
from training.recipes import ARCHITECTURES, token_side
from training.vision import READERS, reader_matrix

MOST_FIRST = 48
RATE = 8e-3
POOL = 4_000  # pictures whose tokens training draws from
TOKENS = 768  # tokens of a step
PLAIN_SHARE = 0.2  # weight of the error in the residual stream beside the error in the logits
QUIET = 0.02, 0.3
"""Weight of the writing of the other neurons, relative to the strongest ones', until k has fallen and after that: a plain MLP has
no top-k that silences them."""
FALLEN_AT = 0.5  # share of the steps after which k has fallen
IDLE = 40  # steps without writing after which a neuron is silent
REVIVAL, REVIVED = 0.5, 32  # weight of the silent neurons' reconstruction, and how many of them a token may use for it


class Examples(NamedTuple):
    """Inputs and outputs of an MLP at many tokens."""

    x: Float[Tensor, "token width"]
    y: Float[Tensor, "token width"]


def layers_of(visual: VisionTransformer) -> list[int]:
    """Return the numbers of the late MLPs, which the last blocks' attention reads."""
    layers = len(visual.transformer.resblocks)
    return list(range(layers - READERS - 1, layers - 1))


@torch.no_grad()
def collect(model: CLIP, name: str, count: int, device: str) -> list[Examples]:
    """Return the examples of the late MLPs at the patch tokens of training pictures."""
    visual = model.visual
    layers = layers_of(visual)
    found: dict[int, list[Examples]] = {layer: [] for layer in layers}

    def hook(layer: int) -> torch.utils.hooks.RemovableHandle:
        def keep(_: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            found[layer].append(Examples(inputs[0][:, 1:].flatten(0, 1).half(), output[:, 1:].flatten(0, 1).half()))

        return visual.transformer.resblocks[layer].mlp.register_forward_hook(keep)

    handles = [hook(layer) for layer in layers]
    side = token_side(ARCHITECTURES[name])
    for first in range(0, count, 64):
        visual(make_batch(SEED + 1, first, 64, training_recipe(), canvas_of(model), side, None, device).image)
    for handle in handles:
        handle.remove()
    return [Examples(torch.cat([e.x for e in found[n]]), torch.cat([e.y for e in found[n]])) for n in layers]


def logit_map(visual: VisionTransformer, table: Float[Tensor, "row d"], layer: int) -> Float[Tensor, "width width"]:
    """Return L with |L m|^2 the mean square of what an MLP output m moves the concepts' logits apart, over the MLP's readers."""
    concepts = split_table(table)[0]
    spread = concepts - concepts.mean(0)  # (concept, d)
    blocks = list(visual.transformer.resblocks)[layer + 1 :]
    moved = torch.cat([spread @ reader_matrix(visual, block) for block in blocks]).detach()  # (concept of each reader, width)
    values, vectors = torch.linalg.eigh(moved.T @ moved / len(moved))
    return values.clamp(min=0).sqrt()[:, None] * vectors.T


class Transcoder(nn.Module):
    """An MLP of which the strongest neurons of a token write alone."""

    def __init__(self, width: int, neurons: int) -> None:
        super().__init__()
        self.c_fc, self.c_proj = nn.Linear(width, neurons), nn.Linear(neurons, width)
        nn.init.zeros_(self.c_fc.bias)
        with torch.no_grad():
            self.c_proj.weight.div_(self.c_proj.weight.norm(dim=0))
        self.idle = torch.zeros(neurons, dtype=torch.long)

    def activations(self, x: Float[Tensor, "token width"]) -> Float[Tensor, "token neuron"]:
        """Return p of every neuron."""
        return F.gelu(self.c_fc(x))

    def strongest(self, p: Float[Tensor, "token neuron"], most: int) -> Float[Tensor, "token neuron"]:
        """Return p with the `most` neurons of largest |p_n| |w_n| kept."""
        kept = (p.detach().abs() * self.c_proj.weight.detach().norm(dim=0)).topk(most, -1).indices
        return torch.zeros_like(p).scatter(-1, kept, p.gather(-1, kept))

    def loss(self, x: Tensor, y: Tensor, logits: Float[Tensor, "width width"], most: int, quiet: float) -> Tensor:
        """Return the relative error of the reconstruction, in the logits and in the stream, and the writing of the others.

        The silent neurons reconstruct the error of the others, by which they come back (Gao et al. 2024, AuxK).
        """
        before = self.c_fc(x)  # (token, neuron)
        p = F.gelu(before)
        kept = self.strongest(p, most)
        self.idle = torch.where((kept.detach() != 0).any(0), 0, self.idle + 1)
        error, centred = y - self.c_proj(kept), y - y.mean(0)
        variance = centred.square().sum()
        in_logits = (error @ logits.T).square().sum() / (centred @ logits.T).square().sum()
        size = self.c_proj.weight.detach().norm(dim=0)
        others = ((p - kept).abs() @ size).sum() / ((kept.detach().abs() @ size).sum() + 1e-6)
        total = in_logits + PLAIN_SHARE * error.square().sum() / variance + quiet * others
        silent = (self.idle > IDLE).nonzero()[:, 0]
        if len(silent):
            revived = F.softplus(before[:, silent])
            best = revived.topk(min(REVIVED, len(silent)), -1)
            revived = torch.zeros_like(revived).scatter(-1, best.indices, best.values)
            left = error.detach() - F.linear(revived, self.c_proj.weight[:, silent])
            total = total + REVIVAL * left.square().sum() / error.detach().square().sum()
        return total


def learn(
    examples: Examples, start: Transcoder, logits: Tensor, most: int, steps: int, seed: int = 0
) -> tuple[Transcoder, dict[str, float]]:
    """Return the transcoder of an MLP, learned from its examples, with the shares of variance that it leaves unexplained.

    Args:
        start: The MLP as a transcoder, from which learning starts; it is left as it is.
    """
    generator, coder = torch.Generator().manual_seed(seed), copy.deepcopy(start)
    first = min(MOST_FIRST, len(coder.idle))
    optimizer = torch.optim.AdamW(coder.parameters(), betas=(0.9, 0.98), weight_decay=0.0)
    for step in range(steps):
        progress = step / steps
        falling = 0.02 + 0.49 * (1 + math.cos(math.pi * progress))
        optimizer.param_groups[0]["lr"] = RATE * min(1.0, progress / 0.02 + 1e-3) * falling
        k = max(most, round(first * (most / first) ** min(1.0, progress / FALLEN_AT)))
        rows = torch.randint(len(examples.x), (TOKENS,), generator=generator)
        loss = coder.loss(examples.x[rows].float(), examples.y[rows].float(), logits, k, QUIET[progress >= FALLEN_AT])
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(coder.parameters(), 1.0)
        optimizer.step()
        if step % 200 == 0:
            silent = int((coder.idle > IDLE).sum())
            print(f"step {step}, k {k}: loss {float(loss.detach()):.4f}, {silent} silent", file=sys.stderr, flush=True)
    return coder, report(coder, examples, logits, most)


@torch.no_grad()
def report(coder: Transcoder, examples: Examples, logits: Tensor, most: int) -> dict[str, float]:
    """Return the share of the logits' variance that is left unexplained, by the strongest neurons alone and as a plain MLP."""
    rows = torch.arange(0, len(examples.x), max(1, len(examples.x) // 20_000))
    x, y = examples.x[rows].float(), examples.y[rows].float()
    p, total = coder.activations(x), ((y - y.mean(0)) @ logits.T).square().sum()
    left = {"strongest": coder.strongest(p, most), "plain": p}
    shares = {key: float(((y - coder.c_proj(q)) @ logits.T).square().sum() / total) for key, q in left.items()}
    used = (coder.strongest(p, most) != 0).float().mean(0)
    return {**shares, "used": float((used > 0).float().mean()), "most used": float(used.max())}


@click.command()
@click.argument("start", type=click.Path(exists=True, path_type=Path))
@click.argument("out", type=click.Path(path_type=Path))
@click.option("--name", default="emoji-vit2", show_default=True)
@click.option("--most", default=3, show_default=True, help="Number of neurons that write at a token in the end.")
@click.option("--steps", default=1800, show_default=True)
@click.option("--device", default="cpu", show_default=True)
def main(start: Path, out: Path, *, name: str, most: int, steps: int, device: str) -> None:
    """Replace the late MLPs of the checkpoint START, write OUT, and print the shares of variance left unexplained."""
    torch.manual_seed(SEED)
    trained: Trained = new_model(name, device)
    trained.load(torch.load(start, weights_only=True, map_location=device))
    visual = trained.model.visual
    for layer, examples in zip(layers_of(visual), collect(trained.model.eval(), name, POOL, device), strict=True):
        mlp = visual.transformer.resblocks[layer].mlp
        dense = Transcoder(*reversed(mlp.c_fc.weight.shape))
        dense.c_fc.load_state_dict(mlp.c_fc.state_dict())
        dense.c_proj.load_state_dict(mlp.c_proj.state_dict())
        coder, shares = learn(examples, dense, logit_map(visual, trained.table.detach(), layer), most, steps)
        mlp.c_fc.load_state_dict(coder.c_fc.state_dict())
        mlp.c_proj.load_state_dict(coder.c_proj.state_dict())
        print(json.dumps({"layer": layer, "unexplained": {key: round(value, 4) for key, value in shares.items()}}), flush=True)
    torch.save(trained.state(), out)


if __name__ == "__main__":
    main()
