"""One model in several threads, models loaded in several threads, and an unwritable standard error."""

import contextlib
import os
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.surroundings import changes, state
from helpers.text_tower import random_clip
from open_clip import SimpleTokenizer
from open_clip.model import CLIP, CustomTextCLIP

from cliptools.console import fail, finish, note, own_run, progress, summarise, warn
from cliptools.models.architecture import weights_sha256
from cliptools.models.load import load_model
from cliptools.models.text_encoder import encode_tokens
from cliptools.streaming.vit_indirect import Indirect
from cliptools.towers.hooks import hooked
from cliptools.unit_effects.factored import UnitBlock
from cliptools.unit_effects.select import factored_effect


def together(*works: Callable[[], Any]) -> None:
    """Run each function in a thread, all at the same time; the first error is raised here."""
    errors: list[BaseException] = []
    start = threading.Barrier(len(works))

    def run(work: Callable[[], Any]) -> None:
        try:
            start.wait(30)
            work()
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=run, args=(work,)) for work in works]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]


def parts(clip: torch.nn.Module) -> dict[str, Any]:
    """Return tensors and hooks of a model, by object identity."""
    tensors = {name: id(tensor) for name, tensor in (*clip.named_parameters(), *clip.named_buffers())}
    return tensors | {f"hooks of {name}": len(module._forward_hooks) for name, module in clip.named_modules()}


@pytest.mark.parametrize("kind", [CLIP, CustomTextCLIP])
def test_texts_of_any_length_at_once(kind: type[torch.nn.Module]) -> None:
    """The tables of a text tower are shortened to the longest text on a copy, not on the model."""
    model = random_clip(kind)
    texts = ["cat", "a dog on a red sofa", "two birds", "a very long sentence about a boat and a car and a house"]
    tokens = [SimpleTokenizer(context_length=32)([text]) for text in texts]
    expected = [encode_tokens(model, some) for some in tokens]
    before, sha256 = parts(model.clip), weights_sha256(model.clip)

    def encode(number: int) -> Callable[[], None]:
        def work() -> None:
            for _ in range(30):
                torch.testing.assert_close(encode_tokens(model, tokens[number]), expected[number])

        return work

    together(*map(encode, range(len(texts))))
    assert parts(model.clip) == before and weights_sha256(model.clip) == sha256


def test_models_loaded_at_once_are_those_loaded_alone() -> None:
    """Random weights are drawn from a generator that all threads share."""
    digests: list[str] = []

    def load() -> None:
        digests.append(load_model("ViT-S-32-alt", "random", device="cpu").sha256)

    load()
    before = state()
    together(load, load, load, lambda: load_model("emoji-vit2"))
    assert digests == digests[:1] * 4
    assert not (differences := changes(before, state())), "\n".join(differences)


def test_hooks_run_in_their_own_thread_alone() -> None:
    """Two threads with hooks on one module do not see each other's calls."""
    module = torch.nn.Identity()
    heard: dict[str, list[float]] = {"first": [], "second": []}
    both = threading.Barrier(2)

    def listen(name: str, value: float) -> Callable[[], None]:
        def work() -> None:
            with hooked([(module, lambda _, __, output: heard[name].append(float(output)))]):
                both.wait(30)
                for _ in range(20):
                    module(torch.tensor(value))
                both.wait(30)

        return work

    together(listen("first", 1.0), listen("second", 2.0))
    assert heard == {"first": [1.0] * 20, "second": [2.0] * 20} and not module._forward_hooks


@pytest.mark.parametrize("effect", ["second", "first", "indirect"])
def test_effects_read_at_once(effect: str, tiny_clip_dir: Path) -> None:
    clip: Any = load_model(f"local-dir:{tiny_clip_dir}", device="cpu").clip
    paths: Any = (
        Indirect(clip.visual, {1: torch.arange(3)}, {1: torch.zeros(10, 3)}, 4)
        if effect == "indirect"
        else factored_effect(clip, effect, "neurons")
    )
    slabs, before = [UnitBlock(1, torch.arange(3))], parts(clip)
    pictures = [torch.rand(4, 3, 30, 30, generator=torch.Generator().manual_seed(seed)) for seed in range(3)]

    def read(picture: torch.Tensor) -> list[torch.Tensor]:
        S, embedding = paths.read(picture, slabs)
        return [*S, embedding]

    expected = [read(picture) for picture in pictures]

    def again(number: int) -> Callable[[], None]:
        def work() -> None:
            for _ in range(10):
                for ours, theirs in zip(read(pictures[number]), expected[number], strict=True):
                    torch.testing.assert_close(ours, theirs)

        return work

    together(*map(again, range(3)))
    assert parts(clip) == before


@contextlib.contextmanager
def unwritable(kind: str) -> Iterator[None]:
    """Yield a standard error that is closed, on a full disk, or without a reader."""
    if kind == "gone":
        reading, writing = os.pipe()
        os.close(reading)
        stream = os.fdopen(writing, "w")
    else:
        stream = Path("/dev/full" if kind == "full" else os.devnull).open("w")  # noqa: SIM115 - closed below
    if kind == "closed":
        stream.close()
    with pytest.MonkeyPatch.context() as patch:  # within the test: pytest puts its own stream back before that begins
        patch.setattr(sys, "stderr", stream)
        yield
    with contextlib.suppress(OSError):
        stream.close()


@pytest.mark.parametrize("kind", ["closed", "full", "gone"])
def test_messages_that_nobody_can_read(kind: str) -> None:
    with unwritable(kind), own_run():
        note("a note")
        warn("a warning")
        assert list(progress([1, 2], "images", 2)) == [1, 2]
        summarise("2 images")
        finish()
        fail("an error", 1)
        assert load_model("emoji-vit2", device="cpu").name == "emoji-vit2"


@pytest.mark.parametrize(("expected", "told"), [(4, False), (10**9, True)])
def test_an_estimate_only_of_what_takes_long(
    expected: int, told: bool, tiny_clip_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    clip: Any = load_model(f"local-dir:{tiny_clip_dir}", device="cpu").clip
    paths = Indirect(clip.visual, {1: torch.arange(3)}, {1: torch.zeros(10, 3)}, expected)
    capsys.readouterr()
    paths.read(torch.rand(4, 3, 24, 24), [UnitBlock(1, torch.arange(3))])
    line = capsys.readouterr().err
    assert line.startswith("indirect effects: about ") == told and ("from the first 4 images" in line) == told
