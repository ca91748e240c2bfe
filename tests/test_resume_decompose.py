"""clip-decompose --resume on pairs: what an interrupted run has left is gone on with, and the bytes are those of one run."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import Run
from PIL import Image

from cliptools.commands.consume import read_neurons
from cliptools.ground.errors import CliptoolsError
from cliptools.ground.kept_parts import KeptParts
from cliptools.ground.models import load_model
from cliptools.ground.text_tower import encode_pool
from cliptools.ground.texts import load_pool
from cliptools.methods.pursuit import join, pursue, pursuits
from cliptools.methods.text_space import text_space

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
    with pytest.raises(CliptoolsError, match="begun with m 4, asked for now 5"):
        list(KeptParts(tmp_path / "out", resume=True).earlier(said | {"m": 5}))
    with pytest.raises(CliptoolsError, match="go on with it"):
        list(KeptParts(tmp_path / "out", resume=False).earlier(said))
    parts.path.write_bytes(whole + b'{"part":"bm8="}\n')
    with pytest.raises(CliptoolsError, match="damaged"):
        list(KeptParts(tmp_path / "out", resume=True).earlier(said))


@pytest.fixture(scope="module")
def pairs(run: Run, tiny_resnet_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pairs")
    random = np.random.default_rng(4)
    for i in range(12):
        Image.fromarray(random.integers(0, 256, (3, 3, 3)).astype(np.uint8)).resize((40, 36)).save(folder / f"{i:02d}.png")
    (folder / "pool.txt").write_text("\n".join(WORDS) + "\n")
    model = f"local-dir:{tiny_resnet_dir}"
    ended = run("effects", folder, "--model", model, "--top-images", 3, "--keep", "10%", "-o", folder / "pairs.safetensors")
    assert ended.returncode == 0, ended.stderr.decode()
    return folder


def test_an_interrupted_run_goes_on(run: Run, pairs: Path, tiny_resnet_dir: Path, tmp_path: Path) -> None:
    asked = ["decompose", pairs / "pairs.safetensors", "--m", 3, "--pool", pairs / "pool.txt", "--no-cache"]
    whole = run(*asked, "-o", tmp_path / "whole.safetensors")
    assert whole.returncode == 0 and [each.name for each in tmp_path.iterdir()] == ["whole.safetensors"]
    bundle = read_neurons(pairs / "pairs.safetensors", device="cpu")
    model, pool = load_model(f"local-dir:{tiny_resnet_dir}", device="cpu"), load_pool(str(pairs / "pool.txt"))
    atoms = text_space(encode_pool(model, pool, use_cache=False), "pool", "texts")
    parts = KeptParts(tmp_path / "again.safetensors", resume=True)
    said = {"center": "pool", "normalize": "texts", "m": 3, "templates": [], "bundle": bundle.digest, "pool": pool.digest}
    assert not list(parts.earlier(said))
    part = next(pursuits(torch.from_numpy(bundle["direction"]), atoms, 3, units_chunk=40))
    parts.add(**{name: column.numpy() for name, column in part._asdict().items()})
    left = parts.path.read_bytes()
    refused = run(*asked, "-o", tmp_path / "again.safetensors")
    assert refused.returncode == 1 and b"left by an earlier run; go on with it (--resume)" in refused.stderr
    assert parts.path.read_bytes() == left and json.loads(left.splitlines()[0])["m"] == 3
    ended = run(*asked, "--resume", "-o", tmp_path / "again.safetensors")
    assert ended.returncode == 0 and b"40 of 115 units are there already" in ended.stderr
    assert (tmp_path / "again.safetensors").read_bytes() == (tmp_path / "whole.safetensors").read_bytes()
    assert not parts.path.exists()
    nowhere = run(*asked, "--resume")
    assert nowhere.returncode == 2 and b"name it by -o FILE" in nowhere.stderr
