"""Train an embedded model's image tower against a table of embeddings, one for each concept and each attribute.

    python -m training.image emoji-vit2 --scenes 150000 --sparse 0 --out run/
    python -m training.dictionary run/image.pt run/sparse.pt
    python -m training.image emoji-vit2 --scenes 300000 --start run/sparse.pt --out run-2/

A run starts from random weights, from the image tower of another model (--tower), or from a checkpoint (--start). Progress is
measured in scenes; a run that was ended goes on where it last saved OUT/state.pt.
"""

import json
import math
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from cliptools.emoji.render import render
from cliptools.emoji.scenes import Recipe, Scene
from cliptools.models.clip_parts import CLIP, ModifiedResNet, SimpleTokenizer
from cliptools.models.load import load_model
from cliptools.text.attributes import attributes
from cliptools.text.emoji_concepts import concepts, facts, plants
from training.batches import make_batch, normalise, with_mirror_images
from training.measures import canvas_of, embed_classes, single_scenes, unseen_combinations
from training.objective import Weights, objective, split_table
from training.recipes import ARCHITECTURES, token_side
from training.resnet_objective import WEIGHTS, resnet_objective
from training.sparsity import Sparsity

FULL_AT = 0.85  # share of the run after which no tokens are dropped
KEPT = 30  # patch tokens of a picture until then
MOST_FIRST, CHOSEN_AT = 64, 0.4
DECAY = 0.05
SEED = 20261121
LOOKS, WRITTEN = 0.5, 0.4  # shares of the training's emoji in other looks, and of its scenes with a word
JOINT_FIRST = 10_000_000  # first scene of the joint stage, far behind those of this stage
SAVED_EVERY = 150  # seconds


@dataclass(frozen=True, kw_only=True)
class Run:
    """The settings of a run."""

    name: str
    scenes: int
    batch_size: int
    rate: float
    """The highest learning rate."""
    sparse: float
    """Weight of the sparsity term; 0 also leaves out the term against crowding."""
    most: int
    """Number of neurons that may write at a token."""
    device: str

    def learning_rate(self, progress: float) -> float:
        """Return the learning rate: warm-up over the first fiftieth, then a cosine down to a hundredth."""
        return self.rate * min(1.0, progress / 0.02 + 1e-3) * (0.01 + 0.99 * (1 + math.cos(math.pi * progress)) / 2)

    def kept_channels(self, first: int) -> int | None:
        """Return how many channels of a token a ResNet's pooling reads: fewer and fewer up to CHOSEN_AT, all from FULL_AT on.

        A penalty alone makes channels sparse only slowly (dictionary.py does the like for the MLPs of a ViT).
        """
        progress = first / self.scenes
        if not self.sparse or progress > FULL_AT:
            return None
        return max(self.most, round(MOST_FIRST * (self.most / MOST_FIRST) ** min(1.0, progress / CHOSEN_AT)))


@dataclass(frozen=True, kw_only=True)
class Trained:
    """What a run trains."""

    model: CLIP
    table: nn.Parameter
    """Embeddings of all concepts, then of all attributes."""
    log_scale: nn.Parameter

    def state(self) -> dict[str, Any]:
        """Return the checkpoint of the model, the table and the scale of the softmax."""
        return {"model": self.model.state_dict(), "table": self.table.detach(), "log_scale": self.log_scale.detach()}

    def load(self, state: dict[str, Any]) -> None:
        """Take over a checkpoint."""
        self.model.load_state_dict(state["model"])
        self.table.data.copy_(state["table"])
        self.log_scale.data.copy_(state["log_scale"])


def training_recipe() -> Recipe:
    """Return the distribution of the training scenes."""
    return Recipe(plants=plants(), facts=facts(), hold_out=True, looks=LOOKS, written=WRITTEN)


def new_model(name: str, device: str, tower: str | None = None) -> Trained:
    """Return a model with random weights, or with the image tower of another model of the same shape.

    Args:
        tower: Name of the other model, whose output is projected to the space that the concepts span.
    """
    model = CLIP(**ARCHITECTURES[name])
    rows = torch.randn(len(concepts()) + len(attributes()), ARCHITECTURES[name]["embed_dim"])
    if tower:
        visual, classes = _projected(load_model(tower, device="cpu").clip, rows.shape[1])
        model.visual.load_state_dict(visual)
        rows = torch.cat([F.normalize(classes, dim=-1), 0.1 * rows[len(classes) :]])
    scale = nn.Parameter(torch.tensor(math.log(15.0), device=device))
    return Trained(model=model.to(device), table=nn.Parameter(rows.to(device)), log_scale=scale)


def _projected(old: nn.Module, d: int) -> tuple[dict[str, Tensor], Float[Tensor, "concept d"]]:
    """Return the image tower and the concepts' embeddings of a model in the first d principal directions of the concepts."""
    assert isinstance(old, CLIP)
    classes = embed_classes(old, SimpleTokenizer(context_length=old.context_length))  # (concept, old d)
    V = torch.linalg.svd(classes, full_matrices=False).Vh[:d]  # (d, old d)
    visual = {key.removeprefix("visual."): value for key, value in old.state_dict().items() if key.startswith("visual.")}
    if isinstance(old.visual, ModifiedResNet):
        for part in ("weight", "bias"):
            visual[f"attnpool.c_proj.{part}"] = V @ visual[f"attnpool.c_proj.{part}"]
    else:
        visual["proj"] = visual["proj"] @ V.T
    return visual, classes @ V.T


def optimizer_for(trained: Trained) -> torch.optim.AdamW:
    """Return AdamW with weight decay on the image tower's matrices only."""
    weights = list(trained.model.visual.parameters())
    groups = [
        {"params": [p for p in weights if p.ndim > 1], "weight_decay": DECAY},
        {"params": [*(p for p in weights if p.ndim <= 1), trained.table, trained.log_scale], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, betas=(0.9, 0.98))


@torch.no_grad()
def top1(trained: Trained, device: str, scenes: list[Scene]) -> float:
    """Return the accuracy on scenes of one emoji against the concepts' rows of the table."""
    model, canvas = trained.model, canvas_of(trained.model)
    model.eval()
    images = (normalise(render(scenes[i : i + 64], canvas, device).image) for i in range(0, len(scenes), 64))
    z = torch.cat([model.visual(image) for image in images])  # (scene, d)
    model.train()
    best = (z @ split_table(trained.table)[0].T).argmax(1).tolist()
    return sum(b in scene.named for b, scene in zip(best, scenes, strict=True)) / len(scenes)


def terms_at(model: CLIP, table: Tensor, scale: Tensor, run: Run, first: int, sparsity: Sparsity | None) -> dict[str, Tensor]:
    """Return the terms of the loss on scenes first … first + batch_size - 1, for the kind of the tower."""
    device, size, canvas, side = run.device, run.batch_size, canvas_of(model), token_side(ARCHITECTURES[run.name])
    half = torch.autocast(torch.device(device).type, torch.bfloat16)
    if isinstance(model.visual, ModifiedResNet):
        drawn = make_batch(SEED, first // 2, size // 2, training_recipe(), canvas, side, None, device)
        batch = with_mirror_images(drawn, canvas // side)
        with half:
            weights = WEIGHTS._replace(sparse=run.sparse)
            return resnet_objective(model.visual, table, scale, batch, weights, sparsity, run.kept_channels(first))
    keep = None if first % JOINT_FIRST > FULL_AT * run.scenes else KEPT
    batch = make_batch(SEED, first, size, training_recipe(), canvas, side, keep, device)
    with half:
        return objective(model.visual, table, scale, batch, Weights(sparse=run.sparse), sparsity)


def train(trained: Trained, run: Run, out: Path) -> None:
    """Train to the end of the run; log to OUT/log.jsonl and save OUT/state.pt on the way."""
    optimizer = optimizer_for(trained)
    sparsity = Sparsity(run.most) if run.sparse else None
    drawn, seconds = 0, 0.0
    if (saved := out / "state.pt").exists():
        state = torch.load(saved, weights_only=True, map_location=run.device)
        trained.load(state)
        optimizer.load_state_dict(state["optimizer"])
        drawn, seconds = state["drawn"], state["seconds"]
    began, logged, kept = time.time() - seconds, seconds, seconds
    while drawn < run.scenes:
        for group in optimizer.param_groups:
            group["lr"] = run.learning_rate(drawn / run.scenes)
        terms = terms_at(trained.model, trained.table, trained.log_scale.exp().clamp(max=40), run, drawn, sparsity)
        optimizer.zero_grad(set_to_none=True)
        terms["loss"].backward()
        nn.utils.clip_grad_norm_(trained.model.visual.parameters(), 1.0)
        optimizer.step()
        drawn += run.batch_size
        if (elapsed := time.time() - began) - logged > 20:
            logged = elapsed
            row: dict[str, Any] = {"step": drawn // run.batch_size, "seconds": round(elapsed), "scenes": drawn}
            row |= {key: round(float(value.detach()), 4) for key, value in terms.items()}
            if elapsed - kept > SAVED_EVERY:
                kept = elapsed
                row["top1"] = round(top1(trained, run.device, single_scenes(1, SEED)), 4)
                row["unseen"] = round(top1(trained, run.device, unseen_combinations(1, SEED)), 4)
                torch.save(trained.state() | {"optimizer": optimizer.state_dict(), "drawn": drawn, "seconds": elapsed}, saved)
            with (out / "log.jsonl").open("a") as log:
                log.write(json.dumps(row) + "\n")


@click.command()
@click.argument("name", type=click.Choice(list(ARCHITECTURES)))
@click.option("--scenes", default=300_000, show_default=True, help="Length of the run.")
@click.option("--batch-size", default=64, show_default=True)
@click.option("--rate", default=4e-4, show_default=True, help="The highest learning rate.")
@click.option("--sparse", default=Weights().sparse, show_default=True, help="Weight of the sparsity term.")
@click.option("--most", default=2, show_default=True, help="Number of neurons that may write at a token.")
@click.option("--device", default="cpu", show_default=True)
@click.option("--start", type=click.Path(exists=True, path_type=Path), help="Checkpoint to start from.")
@click.option("--tower", help="Model whose image tower to start from, such as local-dir:FOLDER.")
@click.option("--out", type=click.Path(path_type=Path), required=True)
def main(*, start: Path | None, tower: str | None, out: Path, **settings: Any) -> None:
    """Train, logging to OUT/log.jsonl and saving to OUT/image.pt."""
    torch.manual_seed(SEED)
    out.mkdir(parents=True, exist_ok=True)
    run = Run(**settings)
    trained = new_model(run.name, run.device, tower)
    if start:
        trained.load(torch.load(start, weights_only=True, map_location=run.device))
    train(trained, run, out)
    torch.save(trained.state(), out / "image.pt")
    print(f"{run.scenes} scenes, top-1 {top1(trained, run.device, single_scenes(1, SEED)):.3f} -> {out}", file=sys.stderr)


if __name__ == "__main__":
    main()
