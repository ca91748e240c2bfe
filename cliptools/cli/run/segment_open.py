"""The parts of clip-segment: a model that segments, images it segments, and how well it does.

What clip-segment works with: a bundle, its model, and the kind of method that the model's image tower allows.

--sink: whether the corner token is repaired.
"""

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from cliptools.cli.run.bundle_output import read_neurons
from cliptools.emoji.render import SceneSource
from cliptools.errors import StreamError
from cliptools.images.loader import fitted_tensor
from cliptools.io.bundle import Bundle
from cliptools.io.cache import cached
from cliptools.io.header import canonical, digest
from cliptools.io.jsonl import rounded
from cliptools.models.load import LoadedModel, load_recorded_model
from cliptools.models.unusable import Screen, unusable
from cliptools.segmentation import BY_PAIRS
from cliptools.segmentation.resnet_methods import PairUnits, check_top_pairs
from cliptools.segmentation.resnet_tokens import Corner, PoolTokens, corner_of, pool_tokens
from cliptools.segmentation.towers import is_resnet, method_of, on_grid, token_stride


class Opened(NamedTuple):
    """A bundle and its model."""

    bundle: Bundle
    model: LoadedModel
    resnet: bool
    """Neuron-head pairs (arXiv 2509.19943); else a ViT's neurons (arXiv 2406.04341)."""
    method: str


def open_bundle(path: Path | None, options: dict[str, Any]) -> Opened:
    """The bundle at `path` or on standard input, and its model.

    Raises:
        CliptoolsError: no bundle, another model than is here, or a method that the model has not.
    """

    bundle = read_neurons(path, option="--bundle", device=options["device"])
    model = load_recorded_model(bundle.header.model, options["device"])
    resnet = is_resnet(model.clip)
    visual: Any = model.clip.visual
    if (width := bundle["direction"].shape[1]) != visual.output_dim:
        raise StreamError(f"directions of width {width}, the model's have {visual.output_dim}")
    return Opened(bundle, model, resnet, method_of(options["method"], resnet))


def pair_units(opened: Opened, top_pairs: int | None) -> PairUnits | None:
    """The bundle's pairs, for the methods that need them.

    Raises:
        StreamError: the bundle has none.
        UsageError: more pairs are asked for than it has.
    """

    if opened.method not in BY_PAIRS:
        return None
    unit = opened.bundle["unit"]
    if not len(unit) or (unit[:, 1:] < 0).any():
        raise StreamError(f"--method {opened.method} needs neuron-head pairs, this bundle has none (clip-effects --units pairs)")
    k = check_top_pairs(top_pairs, len(unit))
    r = torch.from_numpy(opened.bundle["direction"]).to(opened.model.device)
    return PairUnits(r, torch.from_numpy(unit), k)


SCENES = (
    16  # rendered scenes over which the corner is measured: the same for all images, so that no image's map depends on others
)


def repair_sink(asked: str, model: LoadedModel, side: int) -> tuple[bool, dict[str, Any]]:
    """Whether to repair it, and what records say of that: the choice, and with `auto` what was measured."""
    if asked != "auto":
        return asked == "on", {"repaired": asked == "on", "by": "option"}

    key = digest("sink", model.sha256, model.computes.digest, canonical([model.precision, side, SCENES, model.preprocessing]))
    measured = cached("sinks", key, (4,), lambda: np.array(_measure(model, side), dtype=np.float32))
    corner = Corner(*measured.tolist())
    said = {name: rounded(value, 4) for name, value in corner._asdict().items()}
    return corner.is_sink, {"repaired": corner.is_sink, "by": "measure", "scenes": SCENES} | said


def _measure(model: LoadedModel, side: int) -> tuple[float, ...]:

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
