"""Partials of parts of the images, added up in any order, against one run over all of them."""

import itertools
from collections.abc import Sequence

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from oracles import centred_statistics
from test_second_order import SHAPES, pictures, random_tower
from test_statistics import batches_of, stack

from cliptools.methods.engine import Settings, measure
from cliptools.methods.partials import Partial, add, basis_of, partial_of, restored
from cliptools.methods.paths import Slab
from cliptools.methods.second_order import SecondOrder
from cliptools.methods.sharding import SAMPLE, conclude, kept_in, measure_shard
from cliptools.methods.statistics import UnitStatistics


def shards(
    visual: torch.nn.Module, images: torch.Tensor, of: int, layers: Sequence[int], asked: Settings
) -> list[dict[int, Partial]]:
    """One partial a layer from each of so many shards."""
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(1))
    made = []
    for i in range(of):
        own = order[i::of]
        parts = measure_shard(
            SecondOrder(visual),
            batches_of(images, order[:SAMPLE], 32),
            batches_of(images, own, 19),
            layers,
            len(images),
            len(own),
            asked,
        )
        made.append({slab.layer: part for slab, part in parts})
    return made


def joined(parts: Sequence[dict[int, Partial]], slab: Slab, asked: Settings) -> Partial:
    whole = parts[0][slab.layer]
    for part in parts[1:]:
        whole = add(whole, part[slab.layer], kept_in(asked))
    return Partial(whole.count, *(column[slab.neurons] for column in whole[1:]))


@pytest.mark.parametrize("of", [1, 2, 3, 7])
def test_shards_are_one_run(of: int) -> None:
    visual, n, layers = random_tower(SHAPES[1]), 400, [0, 1]
    images = pictures(visual, n)
    asked = Settings(top=24, quantile=0.95)
    one = measure(SecondOrder(visual), batches_of(images, torch.arange(n), 32), layers, n, asked).effects
    parts = shards(visual, images, of, layers, asked)
    found = conclude(
        SecondOrder(visual), layers, lambda slab: joined(parts, slab, asked), n, asked, batches_of(images, torch.arange(n), 32)
    )
    assert torch.equal(found.effects.top_image, one.top_image) and torch.equal(found.effects.unit, one.unit)
    for name in ("mean", "top_norm", "threshold", "explained_all", "component_explained", "component"):
        torch.testing.assert_close(getattr(found.effects, name), getattr(one, name), rtol=1e-9, atol=1e-9, msg=name)
    assert not len(found.uncertain)
