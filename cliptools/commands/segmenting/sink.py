"""--sink: whether the corner token is repaired."""

from typing import TYPE_CHECKING, Any

from cliptools.ground.records import rounded

if TYPE_CHECKING:
    from cliptools.ground.models import LoadedModel

SCENES = (
    16  # rendered scenes over which the corner is measured: the same for all images, so that no image's map depends on others
)


def repair_sink(asked: str, model: "LoadedModel", side: int) -> tuple[bool, dict[str, Any]]:
    """Whether to repair it, and what records say of that: the choice, and with `auto` what was measured."""
    if asked != "auto":
        return asked == "on", {"repaired": asked == "on", "by": "option"}
    import numpy as np

    from cliptools.ground.cache import cached
    from cliptools.ground.provenance import canonical, digest
    from cliptools.methods.segmentation.sink import Corner

    key = digest("sink", model.sha256, model.computes.digest, canonical([model.precision, side, SCENES, model.preprocessing]))
    measured = cached("sinks", key, (4,), lambda: np.array(_measure(model, side), dtype=np.float32))
    corner = Corner(*measured.tolist())
    said = {name: rounded(value, 4) for name, value in corner._asdict().items()}
    return corner.is_sink, {"repaired": corner.is_sink, "by": "measure", "scenes": SCENES} | said


def _measure(model: "LoadedModel", side: int) -> tuple[float, ...]:
    import torch

    from cliptools.ground.fitted_images import fitted_tensor
    from cliptools.ground.position_grid import on_grid, token_stride
    from cliptools.ground.scene_images import SceneSource
    from cliptools.ground.unusable import Screen, unusable
    from cliptools.methods.segmentation.pool_tokens import PoolTokens, pool_tokens
    from cliptools.methods.segmentation.sink import corner_of

    visual: Any = model.clip.visual
    source = SceneSource(SCENES, seed=0, size=side)
    down, across = token_stride(visual)
    norms, attentions = [], []
    screen = Screen[int]("rendered scene {}".format, strict=False)
    with torch.inference_mode(), on_grid(visual, side // down, side // across):
        for index in range(SCENES):
            image = fitted_tensor(source.load(index), side, (1, 1), model.preprocessing)
            seen = pool_tokens(visual, image[None].to(model.device, visual.conv1.weight.dtype))
            if not screen.places([index], unusable(seen.embedding, seen.Z, seen.a)):
                continue
            norms.append(seen.Z.norm(dim=-1, keepdim=True))
            attentions.append(seen.a)
    screen.require(len(norms))
    norm = torch.cat(norms)  # all that is asked of Z
    return tuple(corner_of(PoolTokens(norm, norm, torch.cat(attentions), norm[:, 0], seen.grid)))
