"""clip-decompose --resume on pairs: an interrupted run is continued, and the bytes are those of one run."""

from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.advgen_input import inside
from PIL import Image

from cliptools.analysis import pursuit
from cliptools.analysis.pursuit import join, pursue, pursuits
from cliptools.errors import CliptoolsError
from cliptools.io.cache import KeptParts

WORDS = ["dog", "cat", "boat", "violin", "house", "tree", "apple", "moon", "river", "stone"]


def test_parts_of_a_pursuit_are_the_pursuit() -> None:
    random = torch.Generator().manual_seed(1)
    r, t = torch.randn(50, 12, generator=random), torch.randn(90, 12, generator=random)
    whole = pursue(r, t, 5)
    first = next(pursuits(r, t, 5, units_chunk=20))
    rest = list(pursuits(r, t, 5, done=20, units_chunk=20))
    assert len(first.word) == 20 and [len(part.word) for part in rest] == [20, 10]
    assert torch.equal(join([first, *rest]).word, whole.word)
    for ours, theirs in zip(join([first, *rest]), whole, strict=True):
        torch.testing.assert_close(ours, theirs)


def test_half_a_part_is_dropped_and_others_work_is_refused(tmp_path: Path) -> None:
    said, parts = {"m": 4, "pool": "p"}, KeptParts(tmp_path / "out", resume=True)
    assert list(parts.earlier(said)) == []
    for i in range(3):
        parts.add(word=np.full((2, 4), i, np.int64))
    whole = parts.path.read_bytes()
    parts.path.write_bytes(whole[:-5])
    again = list(KeptParts(tmp_path / "out", resume=True).earlier(said))
    assert [part["word"].tolist() for part in again] == [[[i] * 4] * 2 for i in range(2)]
    with pytest.raises(CliptoolsError, match="started with m 4, now asked for 5"):
        list(KeptParts(tmp_path / "out", resume=True).earlier(said | {"m": 5}))
    with pytest.raises(CliptoolsError, match="continue it with"):
        KeptParts(tmp_path / "out", resume=False)
    parts.path.write_bytes(whole + b'{"part":"bm8="}\n')
    with pytest.raises(CliptoolsError, match="damaged"):
        list(KeptParts(tmp_path / "out", resume=True).earlier(said))


@pytest.fixture(scope="module")
def pairs(tiny_resnet_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pairs")
    random = np.random.default_rng(4)
    for i in range(12):
        Image.fromarray(random.integers(0, 256, (3, 3, 3)).astype(np.uint8)).resize((40, 36)).save(folder / f"{i:02d}.png")
    (folder / "pool.txt").write_text("\n".join(WORDS) + "\n")
    model = f"local-dir:{tiny_resnet_dir}"
    ended = inside("effects", folder, "--model", model, "--top-images", 3, "--keep", "10%", "-o", folder / "pairs.safetensors")
    assert ended.returncode == 0, ended.stderr.decode()
    return folder


def test_an_interrupted_run_goes_on(pairs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The run is interrupted after three chunks of 16 units."""
    monkeypatch.setattr(pursuit, "CHUNK_BYTES", {"cpu": 1})
    asked = ["decompose", pairs / "pairs.safetensors", "--m", 3, "--pool", pairs / "pool.txt"]
    target = tmp_path / "named.safetensors"
    assert inside(*asked, "-o", target).returncode == 0 and [each.name for each in tmp_path.iterdir()] == [target.name]
    whole = target.read_bytes()
    target.unlink()

    add = KeptParts.add

    def interrupted(parts: KeptParts, **arrays: np.ndarray) -> None:
        add(parts, **arrays)
        if parts.path.read_bytes().count(b"\n") == 4:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(KeptParts, "add", interrupted)
        assert inside(*asked, "-o", target).returncode == 130
    left = tmp_path / "named.safetensors.part"
    assert [each.name for each in tmp_path.iterdir()] == [left.name]
    left.write_bytes(left.read_bytes() + b'{"part":"half a li')
    refused = inside(*asked, "-o", target)
    assert refused.returncode == 1 and b"left by an earlier run; continue it with --resume" in refused.stderr
    other = inside(*asked[:2], "--m", 4, *asked[4:], "--resume", "-o", target)
    assert other.returncode == 1 and b"started with m 3, now asked for 4" in other.stderr
    ended = inside(*asked, "--resume", "-o", target)
    assert ended.returncode == 0 and b"48 of 115 units are kept from an earlier run" in ended.stderr
    assert target.read_bytes() == whole and not left.exists()


def test_where_nothing_can_be_kept(pairs: Path) -> None:
    asked = ["decompose", pairs / "pairs.safetensors", "--m", 1, "--pool", pairs / "pool.txt"]
    assert inside(*asked, "-o", "/dev/null").returncode == 0 and not Path("/dev/null.part").exists()
    nowhere = inside(*asked, "--resume")
    assert nowhere.returncode == 2 and b"--resume needs -o FILE" in nowhere.stderr
