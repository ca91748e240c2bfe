"""What carries the margin between a written word and the thing that is shown, for typographic.py: clip-explain's quantities.

With v = t_word - t_thing and the shares of analysis/explanation.py, over attacked scenes of one thing:

    excess_n = mean of share_n(word) - mean_n            clip-explain's; mean_n is that of the unit over the bundle's images
    change_n = mean of share_n(word) - share_n(plate)    the same scene with a plate without letters in place of the word

The plate covers as much of the thing as the word, so that the change is what the model reads. The changes of all parts add up to
that of the margin, f <M, v>. `units` has the sum over the units of the bundle, and as `count` the number of units, those of
largest change first, whose changes add up to half of what all positive changes do.
"""

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Float64
from torch import Tensor
from typographic_scenes import Drawn, pictures

from cliptools.analysis.explanation import Explainer, ImageShares
from cliptools.analysis.margin_passes import HeadName, explained_tower
from cliptools.front.ablate_settings import BundleSettings, effect_of, units_of
from cliptools.front.mismatch import read_directions
from cliptools.io.bundle import Bundle
from cliptools.models.load import LoadedModel
from cliptools.text.vocabularies import Pool

COLUMNS = ("model", "seed", "part", "rank", "layer", "neuron", "head", "count", "excess", "change", "sees", "writes", "scenes")
AT_ONCE = 20  # scenes
SHOWN = 20  # units in the table


class Carried(NamedTuple):
    """Means over scenes of what carries the margin; excess and change of every unit, head and part."""

    excess: Float64[Tensor, " u"]
    change: Float64[Tensor, " u"]
    head: list[HeadName]
    head_change: Float64[Tensor, " head"]
    """Changes of the heads' whole direct effects."""
    parts: dict[str, float]
    """Changes of the parts, and of the `margin`."""
    scenes: int


def carried(model: LoadedModel, bundle: Bundle, text: Float[Tensor, "concept d"], written: Drawn, blank: Drawn) -> Carried:
    """Return what carries the margins of scenes with a word on them.

    Args:
        text: Unit embeddings of all concepts.
        written: Scenes with the name of another thing.
        blank: The same scenes with a plate without letters.
    """
    settings = BundleSettings(bundle, [])
    units, effect = units_of(model, settings), effect_of(model, settings, [], 0)
    explainer = Explainer(explained_tower(effect, set(units.unit[:, 0].tolist())), units, bundle.header.scaled)
    excess = torch.zeros(bundle.units, dtype=torch.float64)
    change, heads = torch.zeros_like(excess), torch.zeros(len(explainer.tower.heads), dtype=torch.float64)
    parts: dict[str, float] = {}
    for start in range(0, len(written), AT_ONCE):
        rows = slice(start, start + AT_ONCE)
        v = text[written.word[rows]] - text[written.thing[rows]]  # (b, d)
        for sign, drawn in ((1, written), (-1, blank)):
            for shares in _shares(explainer, pictures(model, drawn.scenes[rows]), v):
                excess += shares.excess * (sign > 0)
                change += sign * shares.share
                heads += sign * shares.direct
                for name, value in {"margin": shares.margin, **shares.parts}.items():
                    parts[name] = parts.get(name, 0.0) + sign * value
    n = len(written)
    means = {name: value / n for name, value in parts.items()}
    return Carried(excess / n, change / n, explainer.tower.heads, heads / n, means, n)


def _shares(explainer: Explainer, image: Float[Tensor, "b 3 y x"], v: Float[Tensor, "b d"]) -> Iterator[ImageShares]:
    """Yield the shares of each picture in its margin along its v."""
    images = explainer.read(image)
    dtype = images.embedding.dtype
    for row, direction in enumerate(v.to(dtype)):
        yield explainer.shares(images, row, explainer.along(direction))


def half_count(change: Float64[Tensor, " u"]) -> int:
    """Return the number of units, largest first, that add up to half of all positive changes."""
    positive = change.clamp(min=0).sort(descending=True).values.cumsum(0)
    return int((positive < positive[-1] / 2).sum()) + 1


def rows(found: Carried, bundle: Bundle, pool: Pool, t: Float[Tensor, "text d"]) -> Iterator[dict[str, Any]]:
    """Yield rows of the table: parts, the heads of the last layer, and the units of largest change with what they see and write.

    Args:
        t: Embeddings of the pool's texts, less their mean.
    """
    for name, value in found.parts.items():
        yield {"part": name, "change": _shown(value)} | ({"count": half_count(found.change)} if name == "units" else {})
    last = max(head.layer for head in found.head)
    heads = [(value, head) for value, head in zip(found.head_change.tolist(), found.head, strict=True) if head.layer == last]
    for rank, (value, head) in enumerate(sorted(heads, reverse=True), 1):
        yield {"part": "head", "rank": rank, "layer": head.layer, "head": head.head, "change": _shown(value)}
    first = found.change.argsort(descending=True, stable=True)[:SHOWN]
    read, r = read_directions(bundle).in_float64(), torch.from_numpy(bundle["direction"])
    see = read.correlations(t.double())[first].argmax(1).tolist()
    write = (F.normalize(r[first].double(), dim=1) @ F.normalize(t.double(), dim=1).T).argmax(1).tolist()
    for rank, unit in enumerate(first.tolist(), 1):
        layer, neuron, head = (number if number >= 0 else "" for number in bundle["unit"][unit].tolist())
        row = {"part": "unit", "rank": rank, "layer": layer, "neuron": neuron, "head": head}
        row |= {"excess": _shown(found.excess[unit]), "change": _shown(found.change[unit])}
        yield row | {"sees": pool.texts[see[rank - 1]], "writes": pool.texts[write[rank - 1]]}


def _shown(value: float | Tensor | np.floating) -> str:
    return f"{float(value):.4f}"
