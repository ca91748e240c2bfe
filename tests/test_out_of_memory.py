"""Messages of a command whose device runs out of memory: they name only options that help."""

from collections.abc import Callable
from typing import Any

import click
import pytest
import torch

from cliptools.cli.app import batch_option, command, device_option, measuring_options, model_options
from cliptools.devices import in_halves

PETABYTE = 10**15
REFUSALS = [
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
    RuntimeError("CUDA error: out of memory\nCUDA kernel errors might be asynchronously reported"),
    RuntimeError("MPS backend out of memory (MPS allocated: 9.1 GB, max allowed: 9.07 GB)"),
    RuntimeError("[enforce fail at alloc_cpu.cpp:117] err == 0. DefaultCPUAllocator: can't allocate memory: error code 12"),
    MemoryError(),
]
Work = Callable[[], None]


def petabyte() -> None:
    torch.empty(PETABYTE)


def image_by_image() -> None:
    """Run a model for which a single image is too large."""
    list(in_halves([([1, 2], torch.zeros(2, 3, 1, 1))], lambda *_: petabyte()))


def afterwards() -> None:
    """Run a model whose batch fits into memory and whose statistics do not."""
    for _ in in_halves([([1, 2], torch.zeros(2, 3, 1, 1))], lambda *_: None):
        petabyte()


def texts() -> None:
    list(in_halves([(["cat"], None)], lambda *_: petabyte(), "texts"))


def greedy(work: Work, *options: Callable[[Any], Any]) -> click.Command:
    def main(**_: Any) -> None:
        """Ask for a petabyte."""
        work()

    for option in options:
        main = option(main)
    return command("clip-x")(main)


def said(made: click.Command, capsys: pytest.CaptureFixture[str], *words: str) -> str:
    with pytest.raises(SystemExit) as ended:
        made.main(list(words))
    assert ended.value.code == 1
    line = capsys.readouterr().err.splitlines()[-1]
    assert line.startswith("clip-x: out of memory")
    return line.removeprefix("clip-x: out of memory")


MACHINE = ": more is needed than this machine has free"


@pytest.mark.parametrize(
    ("work", "options", "words", "expected"),
    [
        (petabyte, [], [], MACHINE),
        (petabyte, [batch_option], [], MACHINE),  # before any image: of the bundle, say, or of the weights
        (afterwards, [batch_option], [], ": lower --batch-size (now 32)"),
        (afterwards, [batch_option], ["--batch-size", "1"], MACHINE),
        (image_by_image, [batch_option], [], " with a single image" + MACHINE),
        (image_by_image, [batch_option, model_options], [], " with a single image: --precision bf16"),
        (image_by_image, [batch_option, model_options], ["--precision", "fp16"], " with a single image" + MACHINE),
        (texts, [batch_option], [], " with a single text" + MACHINE),
        (petabyte, [measuring_options], [], ": lower --memory (now 4 GB)"),
        (afterwards, [measuring_options], ["--memory", "0.5"], ": lower --batch-size (now 32) or lower --memory (now 0.5 GB)"),
        (image_by_image, [measuring_options], [], " with a single image: lower --memory (now 4 GB)"),
    ],
)
def test_it_says_what_helps(
    work: Work, options: list[Any], words: list[str], expected: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert said(greedy(work, *options), capsys, *words) == expected


def test_an_accelerator_is_not_all_there_is(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    made = greedy(petabyte, device_option)
    assert said(made, capsys) == MACHINE
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert said(made, capsys) == said(made, capsys, "--device", "cuda:1") == ": --device cpu"
    assert said(made, capsys, "--device", "cpu") == MACHINE


@pytest.mark.parametrize("error", REFUSALS, ids=lambda error: f"{type(error).__name__} {str(error)[:12]}")
def test_the_refusals_of_every_device(error: Exception, capsys: pytest.CaptureFixture[str]) -> None:
    def refused() -> None:
        raise error

    assert said(greedy(refused), capsys) == MACHINE

    def single() -> None:
        list(in_halves([([1], None)], lambda *_: refused()))

    assert said(greedy(single), capsys) == " with a single image" + MACHINE


def test_other_failures_are_not_hidden() -> None:
    @command("clip-x")
    def main() -> None:
        """Multiply what does not fit."""
        torch.ones(2, 3) @ torch.ones(2, 3)

    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        main.main([])
