"""Batches are halved when memory runs out."""

import subprocess
import sys
from collections.abc import Sequence

import pytest
import torch
from helpers import ROOT
from helpers.second_order import SHAPES, pictures, random_tower
from helpers.statistics import batches_of
from hypothesis import given
from hypothesis import strategies as st

from cliptools.devices import in_halves
from cliptools.streaming.measure import measure
from cliptools.streaming.summary import Settings
from cliptools.unit_effects.vit_second_order import SecondOrder

TOO_MUCH = 10**15  # bytes that no machine has


def exhausting(most: int):
    """Return a function that requests a petabyte from the allocator if its batch has more than so many elements."""

    def work(items: Sequence[int], images: torch.Tensor) -> list[float]:
        if len(items) > most:
            torch.empty(TOO_MUCH)
        return images[:, 0, 0, 0].tolist()

    return work


@given(st.lists(st.integers(1, 40), min_size=1, max_size=5), st.integers(1, 12))
def test_every_picture_once_in_order(sizes: list[int], most: int) -> None:
    images = torch.arange(float(sum(sizes)))[:, None, None, None].expand(-1, 3, 2, 2)
    starts = [sum(sizes[:i]) for i in range(len(sizes))]
    batches = [(list(range(at, at + size)), images[at : at + size]) for at, size in zip(starts, sizes, strict=True)]
    found = list(in_halves(batches, exhausting(most)))
    assert [item for items, _ in found for item in items] == list(range(sum(sizes)))
    assert [value for _, values in found for value in values] == images[:, 0, 0, 0].tolist()
    assert all(len(items) <= most for items, _ in found)


def test_tensors_of_several_models_are_halved_together() -> None:
    """A batch may have pictures of other sizes for another model; rows of both stay together."""

    def work(items: Sequence[int], pictures: tuple[torch.Tensor, ...]) -> list[list[float]]:
        return [exhausting(3)(items, tensor) for tensor in pictures]

    numbers = torch.arange(10.0)[:, None, None, None]
    batches = [(list(range(10)), (numbers.expand(-1, 3, 2, 2), 100 + numbers.expand(-1, 3, 5, 4)))]
    results = [result for _, result in in_halves(batches, work)]
    assert [value for own, _ in results for value in own] == list(range(10))
    assert [value for _, other in results for value in other] == list(range(100, 110))


def test_it_is_said_once_for_each_halving(capsys: pytest.CaptureFixture[str]) -> None:
    batches = [(list(range(8)), torch.zeros(8, 3, 1, 1))] * 4
    assert [len(items) for items, _ in in_halves(batches, exhausting(2))] == [2] * 16
    assert capsys.readouterr().err.splitlines() == [
        "warning: out of memory with 8 images at a time; continuing with 4",
        "warning: out of memory with 4 images at a time; continuing with 2",
    ]


def test_what_halving_does_not_mend_is_raised() -> None:
    with pytest.raises(RuntimeError, match="allocate memory"):
        list(in_halves([([1, 2], torch.zeros(2, 3, 1, 1))], exhausting(0)))
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        list(in_halves([([1, 2], torch.zeros(2, 3))], lambda _, images: images @ images))


def test_statistics_are_the_same() -> None:
    """The device has memory for only three images, in each of the blocks' first products."""
    visual, n = random_tower(SHAPES[0]), 40
    images = pictures(visual, n)
    paths = SecondOrder(visual)
    plain = measure(paths, batches_of(images, torch.arange(n), 16), [0, 1], n, Settings(top=7))
    read = paths.read

    def scarce(image: torch.Tensor, slabs) -> tuple:
        if len(image) > 3:
            torch.empty(TOO_MUCH)
        return read(image, slabs)

    paths.read = scarce
    halved = measure(paths, batches_of(images, torch.arange(n), 16), [0, 1], n, Settings(top=7))
    assert torch.equal(halved.effects.top_image, plain.effects.top_image)
    for ours, theirs in zip(halved.effects, plain.effects, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9)


LITTLE = """
import resource, torch
from cliptools.devices import in_halves
(size,) = (int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmSize"))
resource.setrlimit(resource.RLIMIT_AS, (1024 * size + 300_000_000, -1))
def work(_, images):
    return len(torch.empty(len(images), 100_000_000, dtype=torch.uint8))
print([made for _, made in in_halves([(list(range(8)), torch.ones(8, 3, 1, 1))], work)])
"""


@pytest.mark.skipif(sys.platform != "linux", reason="memory is limited by Linux's means")
def test_a_process_with_little_memory_goes_on() -> None:
    """A picture takes 100 MB and 300 MB are available, so the allocator itself fails."""
    ran = subprocess.run([sys.executable, "-c", LITTLE], capture_output=True, text=True, cwd=ROOT, timeout=100, check=False)
    assert ran.stdout == "[2, 2, 2, 2]\n", ran.stderr
    assert [line.rpartition(" ")[2] for line in ran.stderr.splitlines()] == ["4", "2"]
