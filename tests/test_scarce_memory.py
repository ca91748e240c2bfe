"""Commands on a device with little memory: batches of images, windows, pictures and texts are halved, results stay the same."""

import json
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
import torch
from test_bundle import read
from tiny_suite import Suite, run_case

from cliptools.ground.halving import Limit, in_halves

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
    """A machine with room for so many images or texts at a time: with more, torch's allocator is asked for a petabyte."""
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


def check_close(ours: Any, theirs: Any) -> None:
    """The same records but for the last digits, which batches of other sizes change."""
    assert type(ours) is type(theirs)
    if isinstance(ours, dict):
        assert list(ours) == list(theirs)
        for key in set(ours) - {"active"}:  # units whose norm is the threshold to the last digit come and go
            check_close(ours[key], theirs[key])
    elif isinstance(ours, list):
        assert len(ours) == len(theirs)
        for mine, other in zip(ours, theirs, strict=True):
            check_close(mine, other)
    elif isinstance(ours, float):
        assert ours == pytest.approx(theirs, rel=1e-3, abs=1e-4)
    else:
        assert ours == theirs


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
    assert ended.stderr.decode().splitlines()[-1] == f"clip-segment: {message}"


def test_a_limit_lasts_for_batches_to_come(capsys: pytest.CaptureFixture[str]) -> None:
    limit, sizes = Limit(), []

    def work(items: Any, _: Any) -> None:
        if len(items) > 3:
            torch.empty(TOO_MUCH)
        sizes.append(len(items))

    for _ in range(3):
        list(in_halves([(range(8), None)], work, "windows", limit))
    assert limit.most == 2 and sizes == [2] * 12
    assert capsys.readouterr().err.splitlines() == [
        "warning: out of memory with 8 windows at a time; going on with 4",
        "warning: out of memory with 4 windows at a time; going on with 2",
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
