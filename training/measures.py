"""Accuracy of an embedded model on scenes outside the training set: shares with Wilson's 95 % interval."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from cliptools.analysis.zero_shot import Share
from cliptools.emoji.attributes import attributes_of
from cliptools.emoji.render import render
from cliptools.emoji.scenes import Recipe, Scene, draw_scene, single_scene, with_property
from cliptools.emoji.words import ZERO_SHOT_TEMPLATES, caption, with_article
from cliptools.emoji.writing import writable
from cliptools.models.clip_parts import CLIP
from cliptools.text.attributes import attribute_groups
from cliptools.text.emoji_concepts import concepts, held_out_style
from training.batches import normalise
from training.texts import Tokenizer, cut, encode_tokens

SEED = 4_000_000  # not used by any training stage
CHOOSING_SEED = 3_000_000  # for choices between training stages, so that published figures are measured on unused scenes
TWO_EMOJI = Recipe(counts=(0.0, 1.0, 0.0, 0.0))


def canvas_of(model: CLIP) -> int:
    """Return the image size of the tower, in pixels per side."""
    size = model.visual.image_size
    return int(size[0] if isinstance(size, tuple) else size)


@torch.no_grad()
def embed_scenes(model: CLIP, scenes: Sequence[Scene], batch: int = 64) -> Float[Tensor, "scene d"]:
    """Return unit embeddings of the scenes, rounded to 256 levels like pictures in files."""
    device, canvas = model.positional_embedding.device, canvas_of(model)
    rows = []
    for start in range(0, len(scenes), batch):
        image = render(scenes[start : start + batch], canvas, device).image
        rows.append(F.normalize(model.encode_image(normalise((image * 255).round() / 255)), dim=-1))
    return torch.cat(rows)


@torch.no_grad()
def embed_texts(model: CLIP, tokenizer: Tokenizer, texts: Sequence[str], batch: int = 512) -> Float[Tensor, "text d"]:
    """Return unit embeddings of the texts."""
    device = model.positional_embedding.device
    parts = [cut(tokenizer(texts[start : start + batch])).to(device) for start in range(0, len(texts), batch)]
    return F.normalize(torch.cat([encode_tokens(model, tokens) for tokens in parts]), dim=-1)


def embed_classes(model: CLIP, tokenizer: Tokenizer) -> Float[Tensor, "concept d"]:
    """Return the zero-shot classifier over all concepts: the mean of the names' unit embeddings over the templates."""
    names = [with_article(concept.name) for concept in concepts()]
    by_template = [embed_texts(model, tokenizer, [template.format(name) for name in names]) for template in ZERO_SHOT_TEMPLATES]
    return F.normalize(torch.stack(by_template).mean(0), dim=-1)


def embed_names(model: CLIP, tokenizer: Tokenizer) -> Float[Tensor, "concept d"]:
    """Return unit embeddings of the names alone, as in a vocabulary of words."""
    return embed_texts(model, tokenizer, [concept.name for concept in concepts()])


def recall_at(z: Float[Tensor, "scene d"], classes: Float[Tensor, "concept d"], scenes: Sequence[Scene], best: int) -> Share:
    """Return the share of the concepts in the scenes that are among the `best` highest scores."""
    top = (z @ classes.T).topk(best, 1).indices.tolist()
    hits = sum(len(set(row) & set(scene.named)) for row, scene in zip(top, scenes, strict=True))
    return Share(hits, sum(len(scene.named) for scene in scenes))


def single_scenes(rounds: int, seed: int = SEED) -> list[Scene]:
    """Return scenes of each concept alone, `rounds` times, in any style."""
    return [single_scene(seed, i, concept) for i in range(rounds) for concept in range(len(concepts()))]


def unseen_combinations(rounds: int, seed: int = SEED) -> list[Scene]:
    """Return scenes of each concept with a held-out style, alone and in that style."""
    styled = [(c, style) for c in range(len(concepts())) if (style := held_out_style(c)) is not None]
    return [single_scene(seed + 1, i, concept, style) for i in range(rounds) for concept, style in styled]


def written_scenes(scenes: Sequence[Scene], seed: int = SEED) -> tuple[list[Scene], list[int]]:
    """Return the scenes, each with the name of another concept written onto it, and these concepts."""
    rng = np.random.default_rng((seed, 4))
    words = [int(rng.choice([c for c in writable() if c not in scene.named])) for scene in scenes]
    written = [with_property(scene, "word", concepts()[c].name, rng) for scene, c in zip(scenes, words, strict=True)]
    return written, words


def words_alone(rounds: int, seed: int = SEED) -> list[Scene]:
    """Return scenes that show one written word and no emoji, `rounds` times each word."""
    scenes = []
    for i in range(rounds):
        for concept in writable():
            bare = replace(single_scene(seed + 5, i, concept), sprites=())
            scenes.append(with_property(bare, "word", concepts()[concept].name, np.random.default_rng((seed, 5, i, concept))))
    return scenes


def two_emoji_scenes(count: int, seed: int = SEED) -> list[Scene]:
    """Return scenes of two concepts."""
    return [draw_scene(seed + 2, i, TWO_EMOJI) for i in range(count)]


def retrieval(model: CLIP, tokenizer: Tokenizer, scenes: Sequence[Scene], best: int) -> Share:
    """Return the share of captions whose picture, or one with exactly the same concepts, is among the `best` of all pictures."""
    rng = np.random.default_rng(SEED)
    captions = embed_texts(model, tokenizer, [caption(scene.named, rng) for scene in scenes])
    top = (captions @ embed_scenes(model, scenes).T).topk(best, 1).indices.tolist()
    sets = [frozenset(scene.named) for scene in scenes]
    return Share(sum(any(sets[i] == own for i in row) for row, own in zip(top, sets, strict=True)), len(scenes))


def attribute_shares(model: CLIP, tokenizer: Tokenizer, scenes: Sequence[Scene]) -> dict[str, Share]:
    """Return by group of attributes the share of scenes of which the highest score of the group is true."""
    z, shares = embed_scenes(model, scenes), {}
    true = [set(attributes_of(scene)) for scene in scenes]
    for group in attribute_groups():
        words = embed_texts(model, tokenizer, group.words)  # (attribute, d)
        best = [group.words[i] for i in (z @ words.T).argmax(1).tolist()]
        asked = [n for n, names in enumerate(true) if names & set(group.words)]
        shares[group.name] = Share(sum(best[n] in true[n] for n in asked), len(asked))
    return shares


def accuracy(
    model: CLIP, tokenizer: Tokenizer, rounds: int = 4, pairs: int = 1500, pool: int = 1000, *, seed: int = SEED
) -> dict[str, Share]:
    """Return all shares by the name of the measure."""
    classes, names = embed_classes(model, tokenizer), embed_names(model, tokenizer)
    single, unseen, two = single_scenes(rounds, seed), unseen_combinations(2 * rounds, seed), two_emoji_scenes(pairs, seed)
    z = embed_scenes(model, single)
    scenes = [draw_scene(seed + 3, i) for i in range(pool)]
    written, words = written_scenes(single_scenes(1, seed + 4), seed)
    answers = (embed_scenes(model, written) @ classes.T).argmax(1).tolist()
    read = words_alone(rounds, seed)
    return {
        "zero-shot top-1, one emoji": recall_at(z, classes, single, 1),
        "zero-shot top-5, one emoji": recall_at(z, classes, single, 5),
        "zero-shot top-1, one emoji, bare names": recall_at(z, names, single, 1),
        "zero-shot top-1, combinations of concept and style not trained on": recall_at(
            embed_scenes(model, unseen), classes, unseen, 1
        ),
        "zero-shot top-1, one emoji and the name of another concept": Share(
            sum(answer in scene.named for answer, scene in zip(answers, written, strict=True)), len(written)
        ),
        "the same: the answer is the name": Share(sum(a == w for a, w in zip(answers, words, strict=True)), len(words)),
        "zero-shot top-1, a written word and no emoji": recall_at(embed_scenes(model, read), classes, read, 1),
        "recall@2, two emoji": recall_at(embed_scenes(model, two), classes, two, 2),
        "text to image, recall@1": retrieval(model, tokenizer, scenes, 1),
        "text to image, recall@5": retrieval(model, tokenizer, scenes, 5),
    }
