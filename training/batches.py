"""Training batches of new scenes: rendered, and labelled from their own masks."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from cliptools.emoji.attributes import attributes_of
from cliptools.emoji.render import render
from cliptools.emoji.scenes import Recipe, Scene, draw_scene
from cliptools.text.attributes import PLACES, attribute_index, attributes
from cliptools.text.emoji_concepts import concepts
from training.objective import Batch

COVERED = 0.35  # share of a patch that an emoji must cover to be the label of the patch
WORD_FIRST = 0.3  # how far tokens that show a word come before others, in units of an emoji's share of a patch
SPOTS = 6  # number of patch tokens per picture in the dense terms of the loss


def named_distribution(scenes: Sequence[Scene], device: torch.device | str) -> Float[Tensor, "b concept"]:
    """Return a distribution with equal weight on every concept that the caption names."""
    out = torch.zeros(len(scenes), len(concepts()), device=device)  # (b, concept)
    for b, scene in enumerate(scenes):
        out[b, list(scene.named)] = 1 / len(scene.named)
    return out


def true_attributes(scenes: Sequence[Scene], device: torch.device | str) -> Float[Tensor, "b attribute"]:
    """Return 1 for every attribute that is true of a scene; a scene with a planted caption has none, since that says no more."""
    out = torch.zeros(len(scenes), len(attributes()))  # (b, attribute)
    index = attribute_index()
    for b, scene in enumerate(scenes):
        if set(scene.named) >= {sprite.concept for sprite in scene.sprites}:
            out[b, [index[word] for word in attributes_of(scene)]] = 1
    return out.to(device)


def slot_labels(scenes: Sequence[Scene], slots: int) -> Int[Tensor, "b slot+1"]:
    """Return the label of each drawn emoji and, last, of the word.

    An emoji or word that the caption leaves out has the caption's name: this is the plant.
    """
    rows = []
    for scene in scenes:
        names = [s.concept if s.concept in scene.named else scene.named[0] for s in scene.sprites]
        word = -100
        if scene.writing:
            word = scene.writing.concept if scene.writing.concept in scene.named else scene.named[0]
        rows.append([*names, *[-100] * (slots - len(names)), word])
    return torch.tensor(rows)  # (b, slot + 1)


def make_batch(
    seed: int, first: int, size: int, recipe: Recipe, canvas: int, patch: int, keep: int | None, device: torch.device | str
) -> Batch:
    """Return scenes first … first + size - 1 of the sequence.

    Args:
        keep: Number of patch tokens of each picture, preferably those with a word or an emoji; None for all.
    """
    scenes = [draw_scene(seed, i, recipe) for i in range(first, first + size)]
    image, visible, word = render(scenes, canvas, device)
    cover = F.avg_pool2d(torch.cat([visible, word[:, None]], 1), patch).flatten(2)  # (b, slot + 1, patches)
    most, slot = cover.max(1)  # (b, patches)
    label = slot_labels(scenes, visible.shape[1]).to(device).gather(1, slot)
    label = torch.where(most > COVERED, label, -100)  # (b, patches)
    kept = None
    if keep is not None:
        priority = most.clamp(max=0.3) + WORD_FIRST * cover[:, -1]  # a word is read only if all of its letters are there
        kept = (priority + 0.25 * torch.rand_like(most)).topk(keep, 1).indices  # (b, kept)
        label, most = label.gather(1, kept), most.gather(1, kept)
    spot = ((label >= 0) + torch.rand_like(most)).topk(SPOTS, 1).indices  # (b, spot)
    noise = 0.04 * recipe.difficulty * torch.rand(size, 1, 1, 1, device=device)
    image = image + noise * torch.randn_like(image)
    named = named_distribution(scenes, device)
    return Batch(normalise(image), named, true_attributes(scenes, device), kept, spot, label.gather(1, spot))


def with_mirror_images(batch: Batch, side: int) -> Batch:
    """Return the batch followed by its mirror images, which saves drawing, as expensive as a training step of a small tower.

    Args:
        side: Number of tokens per row of the picture; all tokens are kept.
    """
    assert batch.kept is None
    spot = torch.cat([batch.spot, batch.spot + side - 1 - 2 * (batch.spot % side)])
    image = torch.cat([batch.image, batch.image.flip(-1)])
    left, right = (attribute_index()[word] for word in PLACES[:2])
    order = torch.arange(len(attributes()), device=image.device)
    order[left], order[right] = right, left
    true = torch.cat([batch.true, batch.true[:, order]])
    return Batch(image, batch.named.repeat(2, 1), true, None, spot, batch.spot_label.repeat(2, 1))


def normalise(image: Float[Tensor, "b 3 y x"]) -> Float[Tensor, "b 3 y x"]:
    """Normalise pixels by CLIP's mean and standard deviation (open_clip.OPENAI_DATASET_MEAN)."""
    from open_clip import OPENAI_DATASET_MEAN, OPENAI_DATASET_STD

    mean = torch.tensor(OPENAI_DATASET_MEAN, device=image.device)[:, None, None]
    return (image - mean) / torch.tensor(OPENAI_DATASET_STD, device=image.device)[:, None, None]
