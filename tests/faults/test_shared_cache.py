"""The cache: shared by runs, damaged, of another version, impossible; and clocks that have gone wrong."""

import os
import random
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from helpers.forked import Ended, Nursery, Study, small_disk
from safetensors.numpy import save_file

from cliptools.io.cache import cached

Often = Callable[[int, int], int]
Files = dict[str, bytes]
SHAPE = (7, 5)


@pytest.fixture(scope="module")
def words(study: Study) -> tuple[object, ...]:
    """A command that encodes a pool."""
    pool = study.effects.with_name("pool.txt")
    pool.write_text("".join(f"a {colour} {thing}\n" for colour in ("red", "green", "blue") for thing in ("cat", "hat", "house")))
    return ("decompose", study.neurons, "--pool", pool, "--m", 2)


@pytest.fixture(scope="module")
def whole(words: tuple[object, ...], nursery: Nursery, tmp_path_factory: pytest.TempPathFactory) -> tuple[bytes, Files]:
    """What comes out, and what is then in the cache."""
    cache = tmp_path_factory.mktemp("whole")
    ended = with_cache(nursery, words, cache)
    assert ended.status == 0
    return ended.stdout, files(cache)


def with_cache(nursery: Nursery, words: tuple[object, ...], cache: Path) -> Ended:
    return nursery.run(*words, env={"CLIPTOOLS_CACHE": str(cache)})


def files(folder: Path) -> Files:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_two_runs_with_one_cache(
    words: tuple[object, ...], whole: tuple[bytes, Files], nursery: Nursery, tmp_path: Path, often: Often
) -> None:
    """Begun together, so that both find nothing; every second time one of them is killed on the way."""
    draw = random.Random(1)
    for number in range(often(2, 50)):
        cache = tmp_path / f"cache-{number}"
        both = [nursery.start(*words, env={"CLIPTOOLS_CACHE": str(cache)}) for _ in range(2)]
        if number % 2:
            both[0].lasts(draw.uniform(0, 0.8))
            both[0].kill()
            both.pop(0).wait()
        for each in both:
            ended = each.wait()
            assert (ended.status, ended.stdout) == (0, whole[0])
            assert b"cache" not in ended.stderr, ended.stderr.decode()
        there = files(cache)
        left = [name for name in there if name not in whole[1]]
        assert len(left) <= number % 2 and all(name.endswith(".part") for name in left)
        assert {name: data for name, data in there.items() if name not in left} == whole[1]


def test_a_damaged_cache_costs_time_only(
    words: tuple[object, ...], whole: tuple[bytes, Files], nursery: Nursery, tmp_path: Path, often: Often
) -> None:
    (name, good), *more = whole[1].items()
    assert not more
    draw = random.Random(2)
    path = tmp_path / name
    path.parent.mkdir(parents=True)
    bits = [draw.randrange(8 * len(good)) for _ in range(often(1, 20))]
    flipped = [good[: bit // 8] + bytes([good[bit // 8] ^ 1 << bit % 8]) + good[bit // 8 + 1 :] for bit in bits]
    cut = [good[: draw.randrange(len(good))] for _ in range(often(1, 20))]
    for bad in (*flipped, *cut, b"", good + b"more"):
        path.write_bytes(bad)
        ended = with_cache(nursery, words, tmp_path)
        assert (ended.status, ended.stdout) == (0, whole[0]) and files(tmp_path) == whole[1]
    path.unlink()
    path.mkdir()
    ended = with_cache(nursery, words, tmp_path)
    assert (ended.status, ended.stdout) == (0, whole[0]) and path.is_dir()
    assert ended.lines[0].startswith("warning: results cannot be kept in the cache"), ended.stderr.decode()


@pytest.mark.filterwarnings("ignore")
def test_every_damage_is_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, often: Often) -> None:
    """Bits flipped, ends cut off, other versions' files: always computed anew, and then whole again."""
    monkeypatch.setenv("CLIPTOOLS_CACHE", str(tmp_path))
    value, calls = np.random.default_rng(3).normal(size=SHAPE).astype(np.float32), 0

    def compute() -> np.ndarray:
        nonlocal calls
        calls += 1
        return value

    def asked() -> np.ndarray:
        return cached("texts", "key", SHAPE, compute)

    asked()
    path = next(tmp_path.rglob("*.safetensors"))
    good, draw = path.read_bytes(), random.Random(4)
    bad: list[bytes] = []
    for _ in range(often(300, 20_000)):
        bit = draw.randrange(8 * len(good))
        bad.append(good[: bit // 8] + bytes([good[bit // 8] ^ 1 << bit % 8]) + good[bit // 8 + 1 :])
    bad += [good[:length] for length in range(len(good))]
    for version in ({"value": value}, {"values": value}, {"value": value.astype(np.float64)}, {"value": value[:3]}):
        for metadata in (None, {"cliptools": "{}"}, {"cliptools": "nonsense"}, {"other": "{}"}):
            save_file(version, path, metadata=metadata)
            bad.append(path.read_bytes())
    calls = 0
    for number, data in enumerate(bad, 1):
        path.write_bytes(data)
        assert np.array_equal(asked(), value) and calls == number, data
        assert path.read_bytes() == good
    assert np.array_equal(asked(), value) and calls == len(bad)
    print(f"cache: {len(bad)} damaged files seen")


def test_caches_that_cannot_be(words: tuple[object, ...], whole: tuple[bytes, Files], nursery: Nursery, tmp_path: Path) -> None:
    """Under a file; on a read-only or a full file system; a home that is read-only."""
    (tmp_path / "file").write_text("in the way")
    places = [{"CLIPTOOLS_CACHE": str(tmp_path / "file" / "cache")}]
    if os.geteuid() == 0:
        with small_disk(tmp_path / "disk", "1m") as disk:
            (disk / "filler").write_bytes(bytes(os.statvfs(disk).f_bavail * os.statvfs(disk).f_frsize))
            costs_the_cache_only(nursery, words, whole[0], {"CLIPTOOLS_CACHE": str(disk)})
            subprocess.run(["mount", "-o", "remount,ro", disk], check=True)
            costs_the_cache_only(nursery, words, whole[0], {"CLIPTOOLS_CACHE": str(disk)})
            costs_the_cache_only(nursery, words, whole[0], {"CLIPTOOLS_CACHE": "", "HOME": str(disk), "XDG_CACHE_HOME": ""})
            assert [path.name for path in disk.iterdir() if path.is_file()] == ["filler"]
    for place in places:
        costs_the_cache_only(nursery, words, whole[0], place)


def costs_the_cache_only(nursery: Nursery, words: tuple[object, ...], expected: bytes, env: dict[str, str]) -> None:
    ended = nursery.run(*words, env=env)
    assert (ended.status, ended.stdout) == (0, expected), ended.stderr.decode()
    warnings = [line for line in ended.lines if not line.startswith("clip-decompose: ")]  # its summary
    assert len(warnings) == 1 and warnings[0].startswith("warning: results cannot be kept in the cache"), ended.stderr.decode()


CLOCKS = {"the epoch": 0, "before the epoch": -86_400, "2106": (1 << 32) + 5, "2300": 10_413_792_000}


@pytest.mark.parametrize("when", CLOCKS)
def test_times_of_files_say_nothing(when: str, study: Study, nursery: Nursery, tmp_path: Path, often: Often) -> None:
    """Images, a bundle, the cache, a shard that is done and half a file, all of another time: the same bytes, no work twice."""
    if often(0, 1) == 0 and when != "2106":
        pytest.skip("only with --thorough")
    photos = tmp_path / "photos"
    shutil.copytree(study.photos, photos)
    cache = {"CLIPTOOLS_CACHE": str(tmp_path / "cache")}
    shard = ("effects", photos, "--layers", "6", "--top-images", 5, "--shard", "1/4", "-o", tmp_path / "shard", "--resume")
    words = ("decompose", study.neurons, "--m", 2, "--resume", "-o", tmp_path / "neurons")
    concepts = ("concepts", photos, "--bundle", tmp_path / "neurons", "-o", tmp_path / "lines", "--resume")
    for step in (shard, words, concepts):
        assert nursery.run(*step, env=cache).status == 0
    expected = files(tmp_path)
    half = expected["lines"][: expected["lines"].index(b"\n") + 9]
    (tmp_path / "lines.part").write_bytes(half)
    (tmp_path / "lines").unlink()
    for path in (*tmp_path.rglob("*"), tmp_path):
        os.utime(path, (CLOCKS[when],) * 2)
    untouched = [path for path in tmp_path.rglob("*") if path.is_file() and path.parent.name in ("texts", tmp_path.name)]
    for step in (shard, words, concepts):
        ended = nursery.run(*step, env=cache)
        assert ended.status == 0, ended.stderr.decode()
    assert files(tmp_path) == expected
    kept = [path.name for path in untouched if path.exists() and path.stat().st_mtime == CLOCKS[when]]
    assert "shard" in kept and any(name.endswith(".safetensors") for name in kept), "nothing that was there is made again"
