"""Train an embedded model's image tower against a table of class embeddings.

    python -m training.image emoji-vit --minutes 70 --out run/
    python -m training.image emoji-rn --classes-of emoji-vit --minutes 80 --out run-rn/

The second command takes over another model's frozen text tower, and its result is a complete model, OUT/model.pt. Progress is
measured in time, so that the same schedule suits a GPU and two cores.
"""

import json
import math
import sys
import time
from pathlib import Path
from typing import Any

import click
import torch
import torch.nn.functional as F
from torch import Tensor

from cliptools.embedded_models import EMBEDDED
from cliptools.emoji.render import render
from cliptools.emoji.scenes import Recipe, single_scene
from cliptools.models.clip_parts import CLIP, ModifiedResNet, SimpleTokenizer
from cliptools.models.load import load_model
from cliptools.text.emoji_concepts import concepts, plants
from training.batches import make_batch, normalise, with_mirror_images
from training.measures import canvas_of, embed_classes
from training.objective import Weights, objective
from training.recipes import ARCHITECTURES, token_side
from training.resnet_objective import WEIGHTS, resnet_objective

HARD_AT = 0.30  # share of the run over which difficulty rises from 0 to 1
SPARSE_AT = 0.25  # share of the run after which the sparsity term is at full weight
FULL_AT = 0.80  # share of the run after which no tokens are dropped
PEAK_RATE, DECAY = 1.2e-3, 0.05
SEED = 20261121


def learning_rate(progress: float) -> float:
    """Return the learning rate: warm-up over the first fiftieth, then a cosine down to a hundredth."""
    return PEAK_RATE * min(1.0, progress / 0.02) * (0.01 + 0.99 * (1 + math.cos(math.pi * progress)) / 2)


def recipe_at(progress: float) -> Recipe:
    """Return the distribution of scenes: easy ones first, full difficulty from HARD_AT on, plants from half of that."""
    hard = min(1.0, progress / HARD_AT)
    return Recipe(difficulty=hard, plants=plants() if hard > 0.5 else (), hold_out=True)


def optimizer_for(model: CLIP, table: Tensor) -> torch.optim.AdamW:
    """Return AdamW with weight decay on matrices only."""
    weights = list(model.visual.parameters())
    groups = [
        {"params": [p for p in weights if p.ndim > 1], "weight_decay": DECAY},
        {"params": [p for p in weights if p.ndim <= 1] + [table], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, betas=(0.9, 0.98))


@torch.no_grad()
def top1(model: CLIP, table: Tensor, canvas: int, device: str, count: int = 512) -> float:
    """Return the accuracy on single-emoji scenes outside the training set, against the class table."""
    label = torch.arange(count) % len(concepts())
    scenes = [single_scene(SEED + 1, i, int(c)) for i, c in enumerate(label)]
    model.eval()
    images = (normalise(render(scenes[i : i + 64], canvas, device).image) for i in range(0, count, 64))  # each (b, 3, y, x)
    z = torch.cat([model.visual(image) for image in images])  # (count, d)
    model.train()
    return float((z @ F.normalize(table, dim=-1).T).argmax(1).cpu().eq(label).float().mean())


def terms_at(
    model: CLIP, table: Tensor, log_scale: Tensor, progress: float, first: int, size: int, sparse: float, side: int
) -> dict[str, Tensor]:
    """Return the terms of the loss on scenes first … first + size - 1, for the kind of the tower."""
    recipe, device, scale = recipe_at(progress), table.device, log_scale.exp().clamp(max=40)
    sparse *= min(1.0, progress / SPARSE_AT)
    canvas = canvas_of(model)
    half = torch.autocast(device.type, torch.bfloat16)
    if isinstance(model.visual, ModifiedResNet):
        drawn = make_batch(SEED, first // 2, size // 2, recipe, canvas, side, None, device)
        batch = with_mirror_images(drawn, canvas // side)
        with half:
            return resnet_objective(model.visual, table, scale, batch, WEIGHTS._replace(sparse=sparse))
    keep = None if progress > FULL_AT else 18 if progress < 0.06 else 26
    batch = make_batch(SEED, first, size, recipe, canvas, side, keep, device)
    with half:
        return objective(model.visual, table, scale, batch, Weights(sparse=sparse))


def take_over_texts(model: CLIP, name: str) -> Tensor:
    """Copy an embedded model's text tower into the model, and return that tower's class embeddings."""
    other = load_model(name, device="cpu").clip
    texts = {key: value for key, value in other.state_dict().items() if not key.startswith("visual.")}
    model.load_state_dict(texts | {key: value for key, value in model.state_dict().items() if key.startswith("visual.")})
    return embed_classes(other, SimpleTokenizer(context_length=other.context_length)).to(model.positional_embedding.device)


@click.command()
@click.argument("name", type=click.Choice(list(ARCHITECTURES)))
@click.option("--minutes", default=70.0, show_default=True)
@click.option("--batch-size", default=128, show_default=True)
@click.option("--device", default="cpu", show_default=True)
@click.option("--classes-of", type=click.Choice(EMBEDDED), help="Train against this model's text tower instead of a table.")
@click.option("--start", type=click.Path(exists=True, path_type=Path), help="Checkpoint to start from.")
@click.option("--from-progress", default=0.0, show_default=True, help="Start of the schedule, from 0 to 1.")
@click.option("--sparse", default=Weights().sparse, show_default=True, help="Weight of the sparsity term.")
@click.option("--out", type=click.Path(path_type=Path), required=True)
def main(
    *,
    name: str,
    minutes: float,
    batch_size: int,
    device: str,
    classes_of: str | None,
    start: Path | None,
    from_progress: float,
    sparse: float,
    out: Path,
) -> None:
    """Train, logging to OUT/log.jsonl and saving to OUT/image.pt."""
    torch.manual_seed(SEED)
    out.mkdir(parents=True, exist_ok=True)
    config = ARCHITECTURES[name]
    model = CLIP(**config).to(device)
    canvas, side = canvas_of(model), token_side(config)
    table = torch.nn.Parameter(torch.randn(len(concepts()), config["embed_dim"], device=device))
    if classes_of:
        table = torch.nn.Parameter(take_over_texts(model, classes_of), requires_grad=False)
    log_scale = torch.nn.Parameter(torch.tensor(math.log(15.0), device=device))
    if start:
        state = torch.load(start, weights_only=True)
        model.load_state_dict(state["model"])
        table.data.copy_(state["table"])
        log_scale.data.copy_(state["log_scale"])
    optimizer = optimizer_for(model, table)
    optimizer.add_param_group({"params": [log_scale], "weight_decay": 0.0})
    began, step, scenes_drawn, logged, saved = time.time(), 0, 0, 0.0, 0.0
    while (progress := from_progress + (1 - from_progress) * (time.time() - began) / (60 * minutes)) < 1:
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(progress)
        terms = terms_at(model, table, log_scale, progress, scenes_drawn, batch_size, sparse, side)
        optimizer.zero_grad(set_to_none=True)
        terms["loss"].backward()
        torch.nn.utils.clip_grad_norm_(model.visual.parameters(), 1.0)
        optimizer.step()
        step, scenes_drawn = step + 1, scenes_drawn + batch_size
        if (elapsed := time.time() - began) - logged > 20:
            logged = elapsed
            row: dict[str, Any] = {
                "step": step,
                "seconds": round(elapsed),
                "progress": round(progress, 4),
                "rate": round(scenes_drawn / elapsed, 1),
            }
            row |= {key: round(float(value.detach()), 4) for key, value in terms.items()} | {
                "scale": round(float(log_scale.detach().exp()), 2)
            }
            if elapsed - saved > 150:
                saved, row["top1"] = elapsed, round(top1(model, table, canvas, device), 4)
                torch.save(
                    {"model": model.state_dict(), "table": table.detach(), "log_scale": log_scale.detach()}, out / "image.pt"
                )
            with (out / "log.jsonl").open("a") as log:
                log.write(json.dumps(row) + "\n")
    torch.save({"model": model.state_dict(), "table": table.detach(), "log_scale": log_scale.detach()}, out / "image.pt")
    if classes_of:
        torch.save(model.state_dict(), out / "model.pt")
    print(f"{step} steps, {scenes_drawn} scenes, top-1 {top1(model, table, canvas, device):.3f} -> {out}", file=sys.stderr)


if __name__ == "__main__":
    main()
