"""The loader: order, batches, skipped images, --strict, and the end of threads."""

import gc
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from PIL import Image

from cliptools.errors import ImageError
from cliptools.images.loader import AHEAD, Skipped, load_batches


class Numbered:
    """A source whose image i has the value i everywhere; some images cannot be read, and some take longer."""

    def __init__(self, count: int, bad: set[int] = frozenset(), slow: set[int] = frozenset()) -> None:
        self.names = [f"n{i}" for i in range(count)]
        self.bad, self.slow = bad, slow
        self.loads: list[int] = []

    def __len__(self) -> int:
        return len(self.names)

    def load(self, index: int) -> Image.Image:
        self.loads.append(index)
        if index in self.slow:
            time.sleep(0.03)
        if index in self.bad:
            raise ImageError("broken")
        return Image.new("RGB", (2, 2), (index, 0, 0))


def transform(image: Image.Image) -> torch.Tensor:
    return torch.full((3, 2, 2), float(image.getpixel((0, 0))[0]))


def image_threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name.startswith("images")]


def loaded(source: Numbered, order: list[int], workers: int, strict: bool = False, skipped: Skipped | None = None):
    skipped = Skipped() if skipped is None else skipped
    batches = load_batches(source, order, transform, batch_size=4, workers=workers, strict=strict, skipped=skipped)
    return [(indices, images[:, 0, 0, 0].tolist()) for indices, images in batches]


@pytest.mark.parametrize("workers", [0, 1, 3])
def test_order_and_batches(workers: int) -> None:
    source = Numbered(30, slow={0, 5, 8})
    order = [*range(20, 30), *range(9)]
    batches = loaded(source, order, workers)
    assert [i for indices, _ in batches for i in indices] == order
    assert [len(indices) for indices, _ in batches] == [4, 4, 4, 4, 3]
    assert all(indices == values for indices, values in batches)
    assert not image_threads()


@pytest.mark.parametrize("workers", [0, 2])
def test_unreadable_images_are_named_counted_and_left_out(workers: int, capsys: pytest.CaptureFixture[str]) -> None:
    skipped = Skipped()
    source = Numbered(12, bad={1, 4, 5, 6, 7, 11})
    for _ in range(2):  # a second pass over the same images counts and says nothing twice
        assert loaded(source, list(range(12)), workers, skipped=skipped) == [([0, 2, 3], [0, 2, 3]), ([8, 9, 10], [8, 9, 10])]
    assert list(skipped.reasons.items()) == [(f"n{i}", "broken") for i in (1, 4, 5, 6, 7, 11)]
    assert len(skipped) == 6
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 6 and "n1: skipped, broken" in said[0]


@pytest.mark.parametrize("workers", [0, 2])
def test_strict_ends_with_the_name(workers: int) -> None:
    with pytest.raises(ImageError, match="n2: broken"):
        loaded(Numbered(50, bad={2, 3}), list(range(50)), workers, strict=True)
    gc.collect()
    assert not image_threads()


def test_an_early_end_stops_the_threads_and_reads_little_ahead() -> None:
    source = Numbered(10_000)
    batches = load_batches(source, range(10_000), transform, batch_size=5, workers=2, strict=False, skipped=Skipped())
    assert isinstance(batches, Iterator)
    next(batches)
    batches.close()
    assert not image_threads()
    assert len(source.loads) <= 5 * (AHEAD + 1)


def test_what_a_slow_reader_finds_waiting_is_bounded() -> None:
    source = Numbered(1000)
    batches = load_batches(source, range(1000), transform, batch_size=4, workers=3, strict=False, skipped=Skipped())
    for taken in range(1, 6):
        next(batches)
        time.sleep(0.02)
        assert len(source.loads) <= 4 * (taken + AHEAD)
    batches.close()


def test_an_error_of_the_transform_is_no_unreadable_image() -> None:
    def wrong(image: Image.Image) -> torch.Tensor:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        list(load_batches(Numbered(3), range(3), wrong, batch_size=2, workers=2, strict=False, skipped=Skipped()))
    gc.collect()
    assert not image_threads()


def test_nothing_to_load() -> None:
    assert loaded(Numbered(3), [], 2) == []
    assert loaded(Numbered(2, bad={0, 1}), [0, 1], 2) == []


def test_the_real_preprocessing_of_real_files(tmp_path: Path) -> None:
    import open_clip

    from cliptools.images.loader import open_images

    for i in range(5):
        Image.new("RGB", (40 + i, 30), (40 * i, 0, 0)).save(tmp_path / f"{i}.png")
    preprocess = open_clip.transform.image_transform(16, is_train=False)
    source = open_images([str(tmp_path)])
    batches = list(load_batches(source, range(5), preprocess, batch_size=3, workers=2, strict=True, skipped=Skipped()))
    assert [images.shape for _, images in batches] == [(3, 3, 16, 16), (2, 3, 16, 16)]
    assert torch.equal(batches[0][1][1], preprocess(source.load(1)))


def test_threads_that_decode_take_no_others_threads() -> None:
    counts: dict[str, set[int]] = {"decoding": set(), "reading": set(), "later": set()}
    before = torch.get_num_threads()

    class Counting(Numbered):
        def load(self, index: int) -> Image.Image:
            counts["decoding"].add(torch.get_num_threads())
            return super().load(index)

    torch.set_num_threads(3)
    try:
        source = Counting(20)
        for _ in load_batches(source, range(20), transform, batch_size=4, workers=2, strict=True, skipped=Skipped()):
            counts["reading"].add(torch.get_num_threads())
        thread = threading.Thread(target=lambda: counts["later"].add(torch.get_num_threads()))
        thread.start()
        thread.join()
    finally:
        torch.set_num_threads(before)
    assert counts == {"decoding": {1}, "reading": {3}, "later": {3}}
