"""Fixtures that several test files use: small models, bundles and processes."""

import os
import random
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from helpers import ROOT

if TYPE_CHECKING:
    from helpers.forked import Nursery, Study
    from helpers.tiny_suite import Suite

from cliptools.library_patches import ensure_torchvision

ensure_torchvision()


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add --thorough, with which `make faults` repeats every fault as often as docs/reliability.md states, and --shuffle."""
    parser.addoption("--thorough", action="store_true", help="tests of faults: as often as docs/reliability.md says")
    parser.addoption("--shuffle", type=int, metavar="SEED", help="files, and the tests of each, in an order drawn by this seed")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Shuffle the tests with --shuffle, because no test may depend on the state that another test leaves."""
    seed = config.getoption("--shuffle")
    if seed is None:
        return
    draw = random.Random(seed)
    files: dict[Path, list[pytest.Item]] = {}
    for item in items:
        files.setdefault(item.path, []).append(item)
    paths = draw.sample(sorted(files), len(files))
    items[:] = [item for path in paths for item in draw.sample(files[path], len(files[path]))]


def pytest_unconfigure() -> None:
    """Close the files with which llama_cpp silences itself and which it never closes, so that no warning follows the summary."""
    silence = sys.modules.get("llama_cpp._utils")
    for name in ("outnull_file", "errnull_file"):
        if hasattr(silence, name):
            getattr(silence, name).close()


@pytest.fixture(scope="session")
def often(request: pytest.FixtureRequest) -> Callable[[int, int], int]:
    """Return often(few, many), the number of repetitions of a fault: `few` by default, `many` with --thorough."""
    return lambda few, many: many if request.config.getoption("--thorough") else few


os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")  # the figures and bytes compared here are the CPU's


@pytest.fixture(autouse=True, scope="session")
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Set a separate cache for the tests, which neither read nor change the user's cache."""
    os.environ["CLIPTOOLS_CACHE"] = str(tmp_path_factory.mktemp("cache"))
    yield


@pytest.fixture(autouse=True, scope="session")
def same_environment() -> Iterator[None]:
    """Check that the tests leave installed packages and programs unchanged."""
    from helpers.environment import this_environment

    before = this_environment()
    yield
    changes = this_environment().changes_since(before)
    assert not changes, f"changed while the tests ran: {', '.join(changes)}"


@pytest.fixture(autouse=True)
def own_run() -> Iterator[None]:
    """Reset the state of notes, counts and warnings, so that no test depends on an earlier one."""
    from cliptools import console

    with console.own_run():
        yield


@pytest.fixture(autouse=True, scope="session")
def two_threads() -> Iterator[None]:
    """Use two threads, as on CI, also if several workers run in parallel."""
    import torch

    torch.set_num_threads(1 if "PYTEST_XDIST_WORKER" in os.environ else 2)
    yield


Run = Callable[..., subprocess.CompletedProcess[bytes]]


@pytest.fixture(scope="session")
def run(nursery: "Nursery") -> Run:
    """Run a command of the suite in a separate process: run("effects", "--layers", "5", stdin=b"…").

    The process is forked from one that has loaded the libraries, which saves seconds. If `env` is given, the interpreter starts
    it instead, because libraries may read the environment while they are loaded.
    """

    def launch(
        name: str, *arguments: Any, stdin: bytes = b"", env: dict[str, str] | None = None
    ) -> subprocess.CompletedProcess[bytes]:
        words = [sys.executable, "-m", f"cliptools.cli.{name}", *map(str, arguments)]
        if env is None:
            return subprocess.CompletedProcess(words, *nursery.run(name, *arguments, stdin=stdin))
        environment = os.environ | {"OMP_NUM_THREADS": "1"} | env
        return subprocess.run(words, capture_output=True, cwd=ROOT, env=environment, timeout=300, check=False, input=stdin)

    return launch


@pytest.fixture(scope="session")
def tiny_clip_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random CLIP in open_clip's local-dir form: 4 layers, 3 heads, odd widths."""
    import torch
    from open_clip.model import CLIP

    config = {
        "embed_dim": 20,
        "vision_cfg": {"image_size": 24, "patch_size": 8, "width": 36, "layers": 4, "head_width": 12, "mlp_ratio": 1.5},
        "text_cfg": {"context_length": 16, "vocab_size": 49408, "width": 24, "heads": 2, "layers": 2},
    }
    torch.manual_seed(3)
    model = CLIP(**config)
    for p in model.visual.parameters():
        p.data = torch.randn_like(p) * 0.3 if p.ndim > 1 else 1 + 0.1 * torch.randn_like(p)
    return _local_dir(tmp_path_factory.mktemp("tiny-clip"), config, model)


@pytest.fixture(scope="session")
def tiny_resnet_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random CLIP-ResNet in open_clip's local-dir form: 192 neurons, 6 heads, 2 × 2 tokens."""
    import torch
    from open_clip.model import CLIP

    config = {
        "embed_dim": 20,
        "vision_cfg": {"image_size": 64, "layers": [1, 1, 1, 1], "width": 6, "head_width": 32},
        "text_cfg": {"context_length": 16, "vocab_size": 49408, "width": 24, "heads": 2, "layers": 2},
    }
    torch.manual_seed(4)
    model = CLIP(**config)
    for module in model.visual.modules():
        if isinstance(module, torch.nn.BatchNorm2d):  # whose gains open_clip partly initialises to zero
            module.weight.data.uniform_(0.5, 1.5)
            module.bias.data.normal_(0, 0.3)
            module.momentum = None  # all pictures count alike
    pictures = torch.nn.functional.interpolate(torch.randn(16, 3, 3, 3), 64, mode="bilinear")
    with torch.no_grad():
        model.visual.train()(pictures)  # statistics of BatchNorm with which pictures make a difference
    return _local_dir(tmp_path_factory.mktemp("tiny-resnet"), config, model)


@pytest.fixture(scope="session")
def nursery() -> "Iterator[Nursery]":
    """Return a factory of processes of the suite that need not load their libraries."""
    from helpers.forked import Nursery

    with Nursery() as made:
        yield made


@pytest.fixture(scope="session")
def study(nursery: "Nursery", tmp_path_factory: pytest.TempPathFactory) -> "Study":
    """Return a few scenes and the effects of the embedded model's neurons on them."""
    from helpers.forked import make_study

    return make_study(nursery, tmp_path_factory.mktemp("study"))


@pytest.fixture(scope="session")
def suite(tiny_clip_dir: Path, tiny_resnet_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> "Suite":
    """Return command lines of every command on tiny models."""
    from helpers.tiny_suite import Suite

    return Suite(tmp_path_factory.mktemp("suite"), tiny_clip_dir, tiny_resnet_dir)


def _local_dir(folder: Path, config: dict[str, Any], model: Any) -> Path:
    import json

    from safetensors.torch import save_file

    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": config, "preprocess_cfg": {}}))
    save_file({key: value.contiguous() for key, value in model.state_dict().items()}, folder / "open_clip_model.safetensors")
    return folder
