"""Which segmentation methods a model has: its image tower decides.

Image towers on pictures of other sizes than they were trained on: their positional embeddings, resized.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from cliptools.effects.resnet_pooling import supported_resnet
from cliptools.effects.select import pools_by_attention
from cliptools.effects.vit_second_order import supported_tower
from cliptools.errors import UsageError
from cliptools.models.clip_parts import ModifiedResNet
from cliptools.segmentation import RESNET, VIT


def is_resnet(clip: nn.Module) -> bool:
    """Whether the methods are those of neuron-head pairs; else they are those of a ViT's neurons.

    Raises:
        ModelError: a tower that neither is for.
    """
    if pools_by_attention(clip):
        supported_resnet(clip)
        return True
    supported_tower(clip)
    return False


def method_of(asked: str | None, resnet: bool) -> str:
    """The method asked for, by default the first of the tower's own.

    Raises:
        UsageError: a method of the other kind of tower.
    """
    own, kind = (RESNET, "CLIP-ResNet") if resnet else (VIT, "CLIP-ViT")
    if asked is not None and asked not in own:
        raise UsageError(f"--method {asked}: the bundle's model is a {kind}, expected one of {', '.join(own)}")
    return asked or own[0]


RESNET_STRIDE = 32  # pixels to a token of the attention pooling, whatever the depth and width


def native_size(visual: Any) -> tuple[int, int]:
    """Height and width of the pictures that the tower was trained on."""
    size = visual.image_size
    return (size, size) if isinstance(size, int) else (int(size[0]), int(size[1]))


def token_stride(visual: Any) -> tuple[int, int]:
    """Pixels of a picture, down and across, that a token stands for."""
    if isinstance(visual, ModifiedResNet):
        return RESNET_STRIDE, RESNET_STRIDE
    down, across = visual.patch_size
    return int(down), int(across)


def resized_positions(
    positions: Float[Tensor, "token width"], grid: tuple[int, int], rows: int, columns: int
) -> Float[Tensor, "new_token width"]:
    """The first token (class or mean) as it is, the embeddings of the others brought from one grid to another (bicubic)."""
    wide = positions if positions.dtype == torch.float64 else positions.float()  # half precision has no bicubic
    patches = wide[1:].T.unflatten(1, grid)[None]  # (1, width, row, column)
    wanted = torch.nn.functional.interpolate(patches, size=(rows, columns), mode="bicubic", antialias=True)
    return torch.cat([positions[:1], wanted[0].flatten(1).T.to(positions.dtype)])


@contextmanager
def on_grid(visual: Any, rows: int, columns: int) -> Iterator[None]:
    """The tower (open_clip's VisionTransformer or ModifiedResNet) takes pictures of rows × columns tokens within the block."""
    holder = visual.attnpool if isinstance(visual, ModifiedResNet) else visual
    height, width = native_size(visual)
    down, across = token_stride(visual)
    grid = height // down, width // across
    if grid == (rows, columns):
        yield
        return
    kept = holder.positional_embedding
    resized = resized_positions(kept.detach(), grid, rows, columns)
    holder.positional_embedding = nn.Parameter(resized, requires_grad=False)
    try:
        yield
    finally:
        holder.positional_embedding = kept
