"""Train the text tower of an embedded model: align it to the class table, then train both towers together.

    python -m training.joint emoji-vit2 --start run/image.pt --out run

The table that the image tower was trained against acts as a text tower for 526 concepts and the attributes. First the real
text tower learns to reproduce the table. Then both towers are trained with the text tower's own embeddings instead of the table,
so that the image tower adapts to them.
"""

import json
import math
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from cliptools.emoji.words import TEMPLATES, names_of, with_article
from cliptools.models.clip_parts import CLIP, SimpleTokenizer
from cliptools.text.attributes import attribute_phrase, attributes
from cliptools.text.emoji_concepts import concepts
from training.image import JOINT_FIRST, Run, terms_at
from training.objective import Weights
from training.recipes import ARCHITECTURES
from training.sparsity import Sparsity
from training.texts import Tokenizer, cut, draw_text, encode_tokens, in_template, text_batch

SEED = 20261123
SCALE = 40.0  # largest scale of the softmax in the image stage
ALIGN_RATE, TEXT_RATE, IMAGE_RATE = 2e-3, 5e-4, 1.5e-4
COSINE_WEIGHT = 8.0  # the cosine term falls below 0.1 while the cross entropy is still larger than a nat


class CompactVocabulary:
    """The tokens of the concepts' texts with a small embedding of their own, so that a step does not update the other 49,000."""

    def __init__(self, model: CLIP, tokenizer: Tokenizer, texts: int = 40_000) -> None:
        rng = np.random.default_rng(SEED)
        self.tokenizer, self.full = tokenizer, model.token_embedding
        drawn = [draw_text(rng).text for _ in range(texts)]
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
    """Return every name, synonym and attribute, alone and in every template."""
    names = [name for concept in concepts() for name in names_of(concept)] + list(attributes())
    return names + [template.format(with_article(name)) for name in names for template in TEMPLATES]


def class_texts(rng: np.random.Generator) -> list[str]:
    """Return one text per concept and attribute: a random name, alone or in a random template."""
    texts = []
    for concept in concepts():
        names = names_of(concept)
        name = names[0] if rng.random() < 0.6 else str(rng.choice(names))
        texts.append(name if rng.random() < 0.4 else str(rng.choice(TEMPLATES)).format(with_article(name)))
    return texts + [word if rng.random() < 0.5 else in_template(word, attribute_phrase(word), rng) for word in attributes()]


def text_loss(text: Float[Tensor, "b d"], classes: Float[Tensor, "concept d"], named: Float[Tensor, "b concept"]) -> Tensor:
    """Return the loss of text embeddings: cosine to the sum of the named concepts' embeddings, and cross entropy over all."""
    t = F.normalize(text.float(), dim=-1)
    cosine = 1 - (t * F.normalize(named @ classes, dim=-1)).sum(-1).mean()
    return COSINE_WEIGHT * cosine + F.cross_entropy(SCALE * t @ classes.T, named)


def text_parameters(model: CLIP) -> list[nn.Parameter]:
    """Return the weights of the text tower."""
    return [p for name, p in model.named_parameters() if not name.startswith("visual.") and name != "logit_scale"]


def rate(progress: float) -> float:
    """Return the share of the peak learning rate: warm-up over a twentieth, then a cosine."""
    return min(1.0, progress / 0.05 + 1e-3) * (0.01 + 0.99 * (1 + math.cos(math.pi * min(1.0, progress))) / 2)


def align(model: CLIP, target: Float[Tensor, "row d"], vocabulary: CompactVocabulary, steps: int) -> None:
    """Train the text tower alone towards fixed embeddings of the concepts and attributes."""
    rng = np.random.default_rng(SEED)
    optimizer = torch.optim.AdamW(text_parameters(model), betas=(0.9, 0.98), weight_decay=0.0)
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = ALIGN_RATE * rate(step / steps)
        batch = text_batch(rng, 192, vocabulary, target.device)
        loss = text_loss(encode_tokens(model, batch.tokens), target, batch.named)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(text_parameters(model), 1.0)
        optimizer.step()
        if step % 200 == 0:
            print(f"align {step} of {steps}: {float(loss.detach()):.4f}", file=sys.stderr, flush=True)


def train_both(model: CLIP, vocabulary: CompactVocabulary, run: Run) -> None:
    """Train both towers by the image tower's loss on the text tower's own embeddings."""
    rng, steps = np.random.default_rng(SEED + 1), run.scenes // run.batch_size
    groups = [{"params": list(model.visual.parameters())}, {"params": text_parameters(model)}]
    optimizer = torch.optim.AdamW(groups, lr=0.0, betas=(0.9, 0.98), weight_decay=0.0)
    sparsity = Sparsity(run.most) if run.sparse else None
    for step in range(steps):
        for group, peak in zip(optimizer.param_groups, (IMAGE_RATE, TEXT_RATE), strict=True):
            group["lr"] = peak * rate(step / steps)
        rows = F.normalize(encode_tokens(model, cut(vocabulary(class_texts(rng))).to(run.device)), dim=-1)  # (row, d)
        terms = terms_at(model, rows, torch.tensor(SCALE, device=run.device), run, JOINT_FIRST + step * run.batch_size, sparsity)
        captions = text_batch(rng, 64, vocabulary, run.device)
        loss = terms["loss"] + text_loss(encode_tokens(model, captions.tokens), rows.detach(), captions.named)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        if step % 50 == 0:
            values = " ".join(f"{key} {float(value.detach()):.3f}" for key, value in terms.items())
            print(f"joint {step} of {steps}: {values}", file=sys.stderr, flush=True)


@click.command()
@click.argument("name", type=click.Choice(list(ARCHITECTURES)))
@click.option("--start", type=click.Path(exists=True, path_type=Path), required=True, help="The checkpoint of training.image.")
@click.option("--steps", default=2500, show_default=True, help="For the text tower alone.")
@click.option("--scenes", default=60_000, show_default=True, help="For both towers.")
@click.option("--batch-size", default=64, show_default=True)
@click.option("--sparse", default=Weights().sparse, show_default=True, help="Weight of the sparsity term.")
@click.option("--most", default=2, show_default=True, help="Number of neurons that may write at a token.")
@click.option("--device", default="cpu", show_default=True)
@click.option("--out", type=click.Path(path_type=Path), required=True)
def main(*, start: Path, steps: int, out: Path, **settings: Any) -> None:
    """Align the text tower, train both towers, and write OUT/model.pt and OUT/text.json."""
    torch.manual_seed(SEED)
    out.mkdir(parents=True, exist_ok=True)
    run = Run(**settings, rate=IMAGE_RATE)
    config = ARCHITECTURES[run.name]
    state = torch.load(start, weights_only=True, map_location=run.device)
    model = CLIP(**config).to(run.device)
    model.visual.load_state_dict(
        {key.removeprefix("visual."): value for key, value in state["model"].items() if key.startswith("visual.")}
    )
    model.logit_scale.data.fill_(math.log(SCALE))
    vocabulary = CompactVocabulary(model, SimpleTokenizer(context_length=config["text_cfg"]["context_length"]))
    began = time.time()
    align(model, F.normalize(state["table"], dim=-1), vocabulary, steps)
    report = {"align": {"minutes": round((time.time() - began) / 60, 1), "steps": steps, "texts": 192 * steps}}
    began = time.time()
    train_both(model, vocabulary, run)
    minutes = round((time.time() - began) / 60, 1)
    report["joint"] = {"minutes": minutes, "steps": run.scenes // run.batch_size, "scenes": run.scenes}
    vocabulary.restore(model)
    torch.save(model.state_dict(), out / "model.pt")
    (out / "text.json").write_text(json.dumps(report, indent=1) + "\n")
    print(json.dumps(report), file=sys.stderr)


if __name__ == "__main__":
    main()
