"""Choice of the effect by the type of the image tower, errors, percentages, and the sum of the units that are dropped."""

import pytest
import torch
from helpers.resnet_paths import SHAPES as RESNETS
from helpers.resnet_paths import pictures, random_resnet
from helpers.second_order import SHAPES as VITS
from helpers.second_order import random_tower
from helpers.statistics import batches_of

from cliptools.cli.app import parse_percentage
from cliptools.errors import UsageError
from cliptools.streaming.measure import list_capacity, measure
from cliptools.streaming.memory_plan import memory_plan
from cliptools.streaming.shards import keep_top_units, omitted_mean
from cliptools.streaming.statistics import UnitStatistics
from cliptools.streaming.summary import Settings
from cliptools.unit_effects.factored import UnitBlock
from cliptools.unit_effects.resnet_pooling import Pairs, PooledHeads, PooledNeurons
from cliptools.unit_effects.select import Choice, choose_effects, factored_effect
from cliptools.unit_effects.vit_second_order import SecondOrder


@pytest.fixture(scope="module")
def resnet() -> torch.nn.Module:
    clip = torch.nn.Module()
    clip.visual = random_resnet(RESNETS[0])
    return clip


@pytest.fixture(scope="module")
def vit() -> torch.nn.Module:
    clip = torch.nn.Module()
    clip.visual = random_tower(VITS[0])
    return clip


def test_the_tower_decides(resnet: torch.nn.Module, vit: torch.nn.Module) -> None:
    assert choose_effects(resnet, None, None, None) == Choice("pooled", "pairs", (4,))
    assert choose_effects(resnet, "pooled", "heads", [4]) == Choice("pooled", "heads", (4,))
    assert choose_effects(vit, None, None, None) == Choice("second", "neurons", (3,))
    assert choose_effects(vit, "first", "neurons", [4]) == Choice("first", "neurons", (4,))
    kinds = [type(factored_effect(resnet, "pooled", units)) for units in ("pairs", "neurons", "heads")]
    assert kinds == [Pairs, PooledNeurons, PooledHeads] and type(factored_effect(vit, "second", "neurons")) is SecondOrder


@pytest.mark.parametrize(
    ("effect", "units", "layers", "message"),
    [
        ("first", None, None, "act through its attention pooling only"),
        ("indirect", "neurons", None, "act through its attention pooling only"),
        (None, None, [3], "the neurons of layer 4 only"),
        (None, "pairs", [3, 4], "the neurons of layer 4 only"),
    ],
)
def test_a_resnet_has_no_such_effects(
    resnet: torch.nn.Module, effect: str | None, units: str | None, layers: list[int] | None, message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        choose_effects(resnet, effect, units, layers)


@pytest.mark.parametrize(("effect", "units"), [("pooled", None), (None, "pairs")])
def test_a_vit_has_no_pairs(vit: torch.nn.Module, effect: str | None, units: str | None) -> None:
    with pytest.raises(UsageError, match="this image tower is a ViT"):
        choose_effects(vit, effect, units, None)


def test_percentages() -> None:
    assert parse_percentage("20%", "--keep") == 0.2 and parse_percentage(" 0.5 %", "--keep") == 0.005
    for wrong in ("20", "0%", "101%", "-3%", "%", "a%", "20%%", "nan%"):
        with pytest.raises(UsageError, match="expected a percentage like 20%"):
            parse_percentage(wrong, "--keep")


def test_what_is_dropped_adds_up(resnet: torch.nn.Module) -> None:
    """Compact or not, the rest's mean and the kept units' means add up to the mean of all units."""
    n = 30
    images = pictures(resnet.visual, n)
    run = batches_of(images, torch.arange(n), 16)
    total = 0.0
    for paths, compact in ((Pairs(resnet.visual), True), (PooledNeurons(resnet.visual), False)):
        effects = measure(paths, run, [4], n, Settings(top=5, compact=compact)).effects
        kept = keep_top_units(effects.top_norm, 0.2)
        assert kept.sum() == round(0.2 * len(kept))
        strength = effects.top_norm.mean(1)
        assert strength[kept].min() >= strength[~kept].max()
        rest = omitted_mean(paths, effects, kept)
        own = effects.mean[kept]
        if compact:
            own = own * paths.directions(UnitBlock(4, kept.nonzero()[:, 0]))[:, 0]
            total = rest + own.sum(0)
        torch.testing.assert_close(rest + own.sum(0), total, rtol=1e-9, atol=1e-9)


def test_rn50x16_takes_one_pass() -> None:
    """147,456 pairs fit into the default memory."""

    class Sized(Pairs):
        def size(self, layer: int) -> tuple[int, int]:
            return 147_456, 1

    paths = Sized(random_resnet(RESNETS[0]))
    for images in (1000, 50_000):
        kept = list_capacity(Settings(top=100), images)
        assert kept >= 200 and len(memory_plan(paths, [4], kept, Settings().memory)) == 1
        assert 147_456 * UnitStatistics.bytes_per_unit(1, kept) < 1e9


def test_no_vector_of_a_pair_is_formed() -> None:
    """Statistics of pairs need no row of D."""

    class Blind(Pairs):
        def directions(self, slab):
            raise AssertionError("a direction was asked for")

    visual, n = random_resnet(RESNETS[0]), 24
    run = batches_of(pictures(visual, n), torch.arange(n), 8)
    settings = Settings(top=5, margin=3, compact=True)
    effects = measure(Blind(visual), run, [4], n, settings).effects
    assert effects.component.shape == effects.mean[..., None].shape == (192 * 3, 1, 1)
    with pytest.raises(AssertionError, match="a direction was asked for"):
        measure(Blind(visual), run, [4], n, settings._replace(compact=False))
