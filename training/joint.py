"""Train the text tower of an embedded model: align it to the class table, then train both towers together.

    python -m training.joint emoji-vit --start run/image.pt --out run

The table that the image tower was trained against acts as a text tower for 526 words. The real text tower is narrower than the
joint space, so its outputs span fewer dimensions. First it learns to reproduce the table within these dimensions. Then both
towers are trained with the text tower's own class embeddings instead of the table, so that the image tower adapts to them.
"""

import json
import math
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import click
import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from cliptools.emoji.scenes import TEMPLATES, names_of, with_article
from cliptools.models.clip_parts import CLIP, SimpleTokenizer
from cliptools.text.emoji_concepts import concepts
from training.batches import make_batch
from training.image import recipe_at
from training.objective import Weights, objective
from training.recipes import ARCHITECTURES
from training.texts import Tokenizer, cut, draw_text, encode_tokens, text_batch

SEED = 20261123
SCALE = 40.0  # largest scale of the softmax in the image stage
ALIGN_RATE, TEXT_RATE, IMAGE_RATE = 2e-3, 5e-4, 1.5e-4
COSINE_WEIGHT = 8.0  # the cosine term falls below 0.1 while the cross entropy is still larger than a nat
KEPT = 0.41  # share of the patch tokens in a step, as in the image stage
FULL_AT = 0.7  # share of the joint stage after which no tokens are dropped


class CompactVocabulary:
    """The tokens of the concepts' texts with a small embedding of their own, so that a step does not update the other 49,000."""

    def __init__(self, model: CLIP, tokenizer: Tokenizer, texts: int = 40_000) -> None:
        rng = np.random.default_rng(SEED)
        self.tokenizer, self.full = tokenizer, model.token_embedding
        drawn = [draw_text(rng)[0] for _ in range(texts)]
        self.used = tokenizer(drawn + all_names()).unique()  # ascending: the end token stays last
        self.small = nn.Embedding.from_pretrained(self.full.weight.detach()[self.used].clone(), freeze=False)
        model.token_embedding = self.small

    def __call__(self, texts: Sequence[str], /) -> Int[Tensor, "b context"]:
        """Return the tokens of texts, numbered within the small vocabulary."""
        return torch.searchsorted(self.used, self.tokenizer(list(texts)))

    def restore(self, model: CLIP) -> None:
        """Copy the trained rows back into the full embedding."""
        with torch.no_grad():
            self.full.weight[self.used] = self.small.weight
        model.token_embedding = self.full


def all_names() -> list[str]:
    """Return every name and synonym, alone and in every template."""
    names = [name for concept in concepts() for name in names_of(concept)]
    return names + [template.format(with_article(name)) for name in names for template in TEMPLATES]


def class_texts(rng: np.random.Generator) -> list[str]:
    """Return one text per concept: a random name, alone or in a random template."""
    texts = []
    for concept in concepts():
        names = names_of(concept)
        name = names[0] if rng.random() < 0.6 else str(rng.choice(names))
        texts.append(name if rng.random() < 0.4 else str(rng.choice(TEMPLATES)).format(with_article(name)))
    return texts


def text_loss(text: Float[Tensor, "b d"], classes: Float[Tensor, "concept d"], named: Float[Tensor, "b concept"]) -> Tensor:
    """Return the loss of text embeddings: cosine to the sum of the named concepts' embeddings, and cross entropy over all."""
    t = F.normalize(text.float(), dim=-1)
    cosine = 1 - (t * F.normalize(named @ classes, dim=-1)).sum(-1).mean()
    return COSINE_WEIGHT * cosine + F.cross_entropy(SCALE * t @ classes.T, named)


def within(table: Float[Tensor, "concept d"], rank: int) -> Float[Tensor, "concept d"]:
    """Return the class embeddings, with unit norm, projected to their `rank` principal dimensions."""
    E = F.normalize(table, dim=-1)  # (concept, d)
    V = torch.linalg.svd(E, full_matrices=False).Vh[:rank]  # (rank, d)
    return F.normalize(E @ V.T @ V, dim=-1)


def text_parameters(model: CLIP) -> list[nn.Parameter]:
    """Return the weights of the text tower."""
    return [p for name, p in model.named_parameters() if not name.startswith("visual.") and name != "logit_scale"]


def rate(progress: float) -> float:
    """Return the share of the peak learning rate: warm-up over a twentieth, then a cosine."""
    return min(1.0, progress / 0.05 + 1e-3) * (0.01 + 0.99 * (1 + math.cos(math.pi * min(1.0, progress))) / 2)


def align(model: CLIP, target: Float[Tensor, "concept d"], vocabulary: CompactVocabulary, minutes: float) -> int:
    """Train the text tower alone towards fixed class embeddings, and return the number of steps."""
    rng = np.random.default_rng(SEED)
    optimizer = torch.optim.AdamW(text_parameters(model), betas=(0.9, 0.98), weight_decay=0.0)
    began, steps = time.time(), 0
    while (progress := (time.time() - began) / (60 * minutes)) < 1 or not steps:
        optimizer.param_groups[0]["lr"] = ALIGN_RATE * rate(progress)
        batch = text_batch(rng, 192, vocabulary, target.device)
        loss = text_loss(encode_tokens(model, batch.tokens), target, batch.named)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(text_parameters(model), 1.0)
        optimizer.step()
        steps += 1
        if steps % 400 == 0:
            print(f"align {progress:.2f} {float(loss):.4f}", file=sys.stderr, flush=True)
    return steps


def train_both(model: CLIP, vocabulary: CompactVocabulary, config: dict, minutes: float, batch_size: int, device: str) -> int:
    """Train both towers by the image tower's loss on the text tower's class embeddings, and return the number of steps."""
    rng, recipe = np.random.default_rng(SEED + 1), recipe_at(1.0)
    canvas, patch = config["vision_cfg"]["image_size"], config["vision_cfg"]["patch_size"]
    groups = [{"params": list(model.visual.parameters())}, {"params": text_parameters(model)}]
    optimizer = torch.optim.AdamW(groups, lr=0.0, betas=(0.9, 0.98), weight_decay=0.0)
    scale = torch.tensor(SCALE, device=device)
    began, steps = time.time(), 0
    while (progress := (time.time() - began) / (60 * minutes)) < 1 or not steps:
        for group, peak in zip(optimizer.param_groups, (IMAGE_RATE, TEXT_RATE), strict=True):
            group["lr"] = peak * rate(progress)
        keep = round(KEPT * (canvas // patch) ** 2) if progress < FULL_AT else None
        batch = make_batch(SEED, steps * batch_size, batch_size, recipe, canvas, patch, keep, device)
        classes = F.normalize(encode_tokens(model, cut(vocabulary(class_texts(rng))).to(device)), dim=-1)
        captions = text_batch(rng, 64, vocabulary, device)
        with torch.autocast(torch.device(device).type, torch.bfloat16):
            terms = objective(model.visual, classes, scale, batch, Weights())
        loss = terms["loss"] + text_loss(encode_tokens(model, captions.tokens), classes.detach(), captions.named)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        steps += 1
        if steps % 50 == 0:
            values = " ".join(f"{key} {float(value.detach()):.3f}" for key, value in terms.items())
            print(f"joint {progress:.2f} {values}", file=sys.stderr, flush=True)
    return steps


@click.command()
@click.argument("name", type=click.Choice(list(ARCHITECTURES)))
@click.option("--start", type=click.Path(exists=True, path_type=Path), required=True, help="The checkpoint of training.image.")
@click.option("--minutes", default=4.0, show_default=True, help="For the text tower alone.")
@click.option("--joint-minutes", default=8.0, show_default=True, help="For both towers.")
@click.option("--batch-size", default=64, show_default=True)
@click.option("--device", default="cpu", show_default=True)
@click.option("--out", type=click.Path(path_type=Path), required=True)
def main(*, name: str, start: Path, minutes: float, joint_minutes: float, batch_size: int, device: str, out: Path) -> None:
    """Align the text tower, train both towers, and write OUT/model.pt and OUT/text.json."""
    torch.manual_seed(SEED)
    out.mkdir(parents=True, exist_ok=True)
    config = ARCHITECTURES[name]
    state = torch.load(start, weights_only=True, map_location=device)
    model = CLIP(**config).to(device)
    visual = {key.removeprefix("visual."): value for key, value in state["model"].items() if key.startswith("visual.")}
    model.visual.load_state_dict(visual)
    model.logit_scale.data.fill_(math.log(SCALE))
    vocabulary = CompactVocabulary(model, SimpleTokenizer(context_length=config["text_cfg"]["context_length"]))
    target = within(state["table"], config["text_cfg"]["width"])
    report = {"align": {"minutes": minutes, "steps": (steps := align(model, target, vocabulary, minutes)), "texts": 192 * steps}}
    if joint_minutes:
        steps = train_both(model, vocabulary, config, joint_minutes, batch_size, device)
        report["joint"] = {"minutes": joint_minutes, "steps": steps, "scenes": steps * batch_size}
    vocabulary.restore(model)
    torch.save(model.state_dict(), out / "model.pt")
    (out / "text.json").write_text(json.dumps(report, indent=1) + "\n")
    print(json.dumps(report), file=sys.stderr)


if __name__ == "__main__":
    main()
