"""Commands on a device with little memory: batches of images, windows, pictures and texts are halved, with equal results."""

import json
import math
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.bundle import read
from helpers.records import check_close
from helpers.tiny_suite import Suite, run_case
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten

from cliptools.analysis.pursuit import pursue, refit
from cliptools.devices import Limit, in_halves
from cliptools.errors import SingleItemError
from cliptools.segmentation.masks import MemoryLimits, WindowAverage, best_texts, logits_at_size
from cliptools.streaming.storage import Storage, files_fit

TOO_MUCH = 10**15  # bytes that no machine has
IMAGES = ("effects second", "effects indirect", "effects pooled", "effects heads", "top", "top raw", "top pairs")
CONSUMERS = ("concepts all", "concepts text", "shift norm", "ablate", "ablate joint")
SEGMENT = ("segment neurons", "segment gradcam", "segment windows", "segment classes", "segment evaluate")
OTHERS = {
    "segment labels pairs": "windows",
    "segment labels maskclip": "windows",
    "segment labels evaluate": "windows",
    "advgen": "pictures",
    "advgen images": "pictures",
    "decompose": "texts",
    "spurious classes": "texts",
}
MOST_HALVINGS = {"images": 3, "windows": 4, "pictures": 2, "texts": 5}
"""A batch of 16 or less comes down to 2 or 1 once, not once for each batch."""
KINDS = dict.fromkeys((*IMAGES, *CONSUMERS, *SEGMENT), "images") | OTHERS


@contextmanager
def scarce(most: int) -> Iterator[None]:
    """Simulate a machine with room for so many images or texts at a time; larger batches request a petabyte from torch."""
    with pytest.MonkeyPatch.context() as patch:
        for module in (torch.nn.Conv2d, torch.nn.Embedding):
            patch.setattr(module, "forward", _greedy(module.forward, most))
        yield


def _greedy(forward: Callable[..., torch.Tensor], most: int) -> Callable[..., torch.Tensor]:
    def greedy(self: torch.nn.Module, given: torch.Tensor) -> torch.Tensor:
        if len(given) > most:
            torch.empty(TOO_MUCH)
        return forward(self, given)

    return greedy


@pytest.mark.parametrize("name", KINDS)
def test_halving_reaches_every_place_that_runs_the_model(name: str, suite: Suite) -> None:
    case = suite.cases()[name]
    plain = run_case(case)
    with scarce(1 if name == "spurious classes" else 2):
        ended = run_case(case)
    said = ended.stderr.decode()
    assert ended.returncode == 0, said
    refused = re.findall(r"out of memory with (\d+) (\w+) at a time", said)
    count = [kind for _, kind in refused].count(KINDS[name])
    assert 0 < count <= MOST_HALVINGS[KINDS[name]], said
    if plain.stdout[:1] == b"{":
        check_close(*([json.loads(line) for line in each.stdout.splitlines()] for each in (ended, plain)))
        return
    ours, theirs = read(ended.stdout), read(plain.stdout)
    for key, value in theirs.tensors.items():
        if value.dtype.kind == "f":
            np.testing.assert_allclose(ours[key], value, rtol=2e-3, atol=2e-3 * np.abs(value).max(), err_msg=key)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("segment neurons", "out of memory with a single image: lower --size, or use --stride"),
        ("segment evaluate", "out of memory with a single image: lower --size, or use --stride"),
        ("segment labels pairs", "out of memory with a single window: lower --size or --crop"),
        ("segment labels evaluate", "out of memory with a single window: lower --size or --crop"),
    ],
)
def test_a_single_image_that_is_too_much(name: str, message: str, suite: Suite) -> None:
    with pytest.MonkeyPatch.context() as patch:  # of images only: texts are encoded before
        patch.setattr(torch.nn.Conv2d, "forward", _greedy(torch.nn.Conv2d.forward, 0))
        ended = run_case(suite.cases()[name])
    assert ended.returncode == 1
    command = "clip-segment-eval" if name.endswith("evaluate") else "clip-segment"
    assert ended.stderr.decode().splitlines()[-1] == f"{command}: {message}"


class Allocator(TorchDispatchMode):
    """Refuses every tensor with more than so many elements, except views and results that are joined on the CPU."""

    def __init__(self, most: float) -> None:
        super().__init__()
        self.most, self.largest = most, 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if func.overloadpacket is torch.ops.aten.cat:
            return result
        held = {each.untyped_storage().data_ptr() for each in tree_flatten((args, kwargs))[0] if isinstance(each, torch.Tensor)}
        for each in tree_flatten(result)[0]:
            if isinstance(each, torch.Tensor) and each.untyped_storage().data_ptr() not in held:
                self.largest = max(self.largest, each.numel())
                if each.numel() > self.most:
                    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate too much")
        return result


LOGITS = torch.randn(4, 37, 5, 6, generator=torch.Generator().manual_seed(0))


def averaged() -> WindowAverage:
    """Return 37 texts in two by two windows."""
    return WindowAverage(LOGITS, ([0, 8], [0, 12]), (16, 24), (24, 36))


@pytest.mark.parametrize("share", [1.0, 0.6, 0.3, 0.05, 0.02])
@pytest.mark.parametrize("probabilities", [True, False])
def test_label_maps_at_full_size(share: float, probabilities: bool, capsys: pytest.CaptureFixture[str]) -> None:
    """Fewer texts at a time, then fewer rows; the labels are the same as with enough memory."""
    rows, columns, limits = 50, 70, MemoryLimits()
    windows = averaged()
    with Allocator(math.inf) as plenty:
        expected = best_texts(windows, rows, columns, probabilities)
    for _ in range(2):  # of a second picture the limits are known
        with Allocator(share * plenty.largest):
            found = best_texts(windows, rows, columns, probabilities, limits=limits)
        assert torch.equal(found.text, expected.text)
        torch.testing.assert_close(found.logit, expected.logit)
        if probabilities:
            torch.testing.assert_close(found.total, expected.total)
        told = capsys.readouterr().err.splitlines()
        assert all(re.search(r"out of memory with \d+ (texts|rows) at a time", line) for line in told)
    assert (limits.texts.largest is not None) == (share < 1) and (limits.rows.largest is not None) == (share == 0.02)
    assert not told


def test_label_maps_where_a_row_is_too_much() -> None:
    windows = averaged()
    with Allocator(60), pytest.raises(SingleItemError) as caught:
        best_texts(windows, 50, 70)
    assert caught.value.kind == "row"


@pytest.mark.parametrize("share", [1.0, 0.5, 0.1])
def test_logits_at_full_size(share: float) -> None:
    windows = averaged()
    expected = windows.at(*windows.size)
    with Allocator(share * expected.numel()):
        found = logits_at_size(windows)
    torch.testing.assert_close(torch.from_numpy(found), expected)


@pytest.mark.parametrize("share", [1.0, 0.5, 0.2, 0.05])
def test_the_pursuit(share: float, capsys: pytest.CaptureFixture[str]) -> None:
    """Fewer units at a time give the same texts."""
    draw = torch.Generator().manual_seed(1)
    targets, atoms = torch.randn(40, 12, generator=draw), torch.randn(64, 12, generator=draw)
    with Allocator(math.inf) as plenty:
        expected = pursue(targets, atoms, 5, screening=torch.float32)
        coefficients = refit(targets, atoms, expected.word)
    with Allocator(max(share * plenty.largest, atoms.numel())):
        found = pursue(targets, atoms, 5, screening=torch.float32)
        again = refit(targets, atoms, found.word)
    assert torch.equal(found.word, expected.word)
    torch.testing.assert_close(found.coefficient, expected.coefficient)
    torch.testing.assert_close(again, coefficients)
    assert ("units at a time" in capsys.readouterr().err) == (share < 1)


def test_a_limit_lasts_for_batches_to_come(capsys: pytest.CaptureFixture[str]) -> None:
    limit, sizes = Limit(), []

    def work(items: Any, _: Any) -> None:
        if len(items) > 3:
            torch.empty(TOO_MUCH)
        sizes.append(len(items))

    for _ in range(3):
        list(in_halves([(range(8), None)], work, "windows", limit))
    assert limit.largest == 2 and sizes == [2] * 12
    assert capsys.readouterr().err.splitlines() == [
        "warning: out of memory with 8 windows at a time; continuing with 4",
        "warning: out of memory with 4 windows at a time; continuing with 2",
    ]


@pytest.mark.parametrize(
    "text",
    [
        "[enforce fail at alloc_cpu.cpp:117] . DefaultCPUAllocator: not enough memory: you tried to allocate 8 bytes.",
        "DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes. Error code 12",
        "CUDA out of memory. Tried to allocate 20.00 MiB",
        "MPS backend out of memory (MPS allocated: 9 GB)",
        "Invalid buffer size: 74.51 GiB",
        "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`",
    ],
)
def test_refusals_of_every_device(text: str) -> None:
    def work(items: Any, _: Any) -> int:
        if len(items) > 1:
            raise RuntimeError(text)
        return len(items)

    assert [result for _, result in in_halves([(range(4), None)], work)] == [1] * 4


def test_a_temporary_folder_that_is_none(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Tensors in files take the next folder of the list, as other temporary files do."""
    monkeypatch.setenv("TMPDIR", str(tmp_path / "none"))
    if not files_fit(1.0, torch.device("cpu")):
        pytest.skip("no tensors in files here")
    kept = Storage(in_files=True).zeros(torch.zeros(1), 3, 2)
    assert torch.equal(kept, torch.zeros(3, 2)) and not list(tmp_path.iterdir())
