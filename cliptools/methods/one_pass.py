"""What several kinds of effects need, from one forward pass of their model."""

from collections.abc import Iterable, Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

from cliptools.ground.clip_parts import ModifiedResNet
from cliptools.methods.paths import Listens, Paths, Slab
from cliptools.methods.resnet_paths import Pooled, trace_pool
from cliptools.methods.vit_paths import hooked

Asked = tuple[Paths, Sequence[Slab]]


@torch.inference_mode()
def read_together(
    visual: nn.Module, image: Float[Tensor, "b 3 y x"], asked: Sequence[Asked]
) -> tuple[list[Iterable[Float[Tensor, "b _ _"]]], Float[Tensor, "b d"]]:
    """S of the slabs of each, and M(I).

    Args:
        visual: The image tower that all paths are of.
        asked: May be empty, and so may anybody's slabs. Paths that cannot share a pass (indirect effects) run their own besides.
    """
    weight: Tensor = visual.conv1.weight  # type: ignore[assignment, union-attr]
    image = image.to(weight.device, weight.dtype)
    if isinstance(visual, ModifiedResNet):
        traced = trace_pool(visual, image)
        return [
            paths.of(traced, slabs) if slabs and isinstance(paths, Pooled) else () for paths, slabs in asked
        ], traced.embedding
    listeners = [paths.listen(slabs) if slabs and isinstance(paths, Listens) else None for paths, slabs in asked]
    with hooked([hook for listener in listeners if listener is not None for hook in listener.hooks]):
        embedding = visual(image)
    S: list[Iterable[Tensor]] = []
    for (paths, slabs), listener in zip(asked, listeners, strict=True):
        if listener is not None:
            S.append(listener.scalars(embedding))
        else:
            S.append(paths.read(image, slabs)[0] if slabs else ())
    return S, embedding
