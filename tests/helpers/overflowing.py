"""Models with finite weights and outputs that are not finite: for white pictures, for all pictures, or for one word."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors.torch import save_file

from cliptools.models.load import LoadedModel, load_model

HUGE = 3e38  # finite in float32, ten times of it are not
HALF = 6e4  # finite in float16, ten times of it are not


def save_pictures(folder: Path, count: int, side: int = 30, white: str | None = "white.png") -> Path:
    """Save noise of several brightnesses, and one white picture."""
    folder.mkdir(parents=True, exist_ok=True)
    random = np.random.default_rng(4)
    for number in range(count):
        pixels = random.integers(0, 256, (side, side, 3)) // (1 + number % 3)
        Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{number:02d}.png")
    if white:
        Image.new("RGB", (side, side), "white").save(folder / white)
    return folder


def overflowing_vit(source: Path, target: Path, weight: float, always: bool = False) -> Path:
    """A copy whose last layer has a neuron that acts on white pictures alone and writes `weight` for each unit of its activation.

    Args:
        always: It acts on all pictures.
    """
    model = load_model(f"local-dir:{source}", device="cpu")
    mlp = model.clip.visual.transformer.resblocks[-1]
    seen = _class_tokens(model, mlp.ln_2, [Image.new("RGB", (30, 30), "white"), *_noise()])  # (picture, width)
    direction = seen[0] - seen[1:].mean(0)
    along = seen @ direction
    assert along[0] > along[1:].max(), "white pictures stand apart"
    gain = 80 / (along[0] - along[1:].max())  # 40 for white ones, -40 for the others: their activation is 0
    mlp.mlp.c_fc.weight.data[0] = 0 if always else gain * direction
    mlp.mlp.c_fc.bias.data[0] = 40 if always else -gain * (along[0] + along[1:].max()) / 2
    mlp.mlp.c_proj.weight.data[:, 0] = weight
    return _saved(model, source, target)


def overflowing_resnet(source: Path, target: Path) -> Path:
    """Save a copy whose first channel acts only on white pictures and is too large for the next convolution."""
    model = load_model(f"local-dir:{source}", device="cpu")
    visual = model.clip.visual
    visual.conv1.weight.data[0] = 1.0  # white, normalised, adds up to 55; noise to at most 30
    norm = visual.bn1
    norm.running_mean[0], norm.running_var[0], norm.weight.data[0], norm.bias.data[0] = 0, 1, 7e36, -7e36 * 45
    visual.conv2.weight.data[:, 0] = 1.0
    return _saved(model, source, target)


def speechless(source: Path, target: Path) -> Path:
    """Save a copy whose image tower writes nothing: its output is zero for every image."""
    model = load_model(f"local-dir:{source}", device="cpu")
    model.clip.visual.proj.data.zero_()
    return _saved(model, source, target)


def overflowing_text(source: Path, target: Path, word: str) -> Path:
    """Save a copy in which the token of a word is too large to be averaged."""
    from cliptools.models.text_encoder import tokenizer_of

    model = load_model(f"local-dir:{source}", device="cpu")
    token = int(tokenizer_of(model)([word])[0, 1])
    model.clip.token_embedding.weight.data[token] = torch.tensor([HUGE, -HUGE]).repeat(12)
    return _saved(model, source, target)


def _noise() -> list[Image.Image]:
    random = np.random.default_rng(5)
    pictures = [random.integers(0, 256, (30, 30, 3)) // (1 + number % 3) for number in range(60)]
    return [Image.fromarray(pixels.astype(np.uint8)) for pixels in pictures]


def _class_tokens(model: LoadedModel, norm: torch.nn.Module, pictures: list[Image.Image]) -> torch.Tensor:
    """Return a LayerNorm's output for the class token of each picture."""
    kept: list[torch.Tensor] = []
    handle = norm.register_forward_hook(lambda _, __, output: kept.append(output[:, 0]))
    with torch.no_grad():
        model.clip.visual(torch.stack([model.transform(picture) for picture in pictures]))
    handle.remove()
    return kept[0]


def _saved(model: Any, source: Path, target: Path) -> Path:
    target.mkdir(parents=True)
    shutil.copy(source / "open_clip_config.json", target)
    tensors = {key: value.contiguous() for key, value in model.clip.state_dict().items()}
    assert all(value.isfinite().all() for value in tensors.values() if value.is_floating_point())
    save_file(tensors, target / "open_clip_model.safetensors")
    return target
