"""Importing the package, calling its documented functions and running its commands leave the process unchanged."""

import io
import logging
import os
import subprocess
import sys
import threading
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers import ROOT
from helpers.surroundings import changes, state
from helpers.tiny_suite import Suite, run_case
from PIL import Image

from cliptools.errors import CliptoolsError, ImageError, ModelError
from cliptools.images.decode import decode, header
from cliptools.images.segmentation.mask_pixels import read_mask
from cliptools.library_patches import DUPLICATE_OPENMP, SharedChange
from cliptools.models.hub import NOT_ONLY, ONLY, no_foreign_code, quiet_hub
from cliptools.models.load import load_model
from cliptools.models.text_encoder import encode_texts

IMPORTS = """
import contextlib, importlib, pkgutil, sys, tempfile, warnings
import matplotlib.pyplot, torch
from cliptools.library_patches import ensure_torchvision
ensure_torchvision()
import open_clip, timm, transformers
for optional in ("diffusers", "h5py", "llama_cpp", "rich.table", "click"):  # rich draws random numbers when it is imported
    try:
        importlib.import_module(optional)
    except ModuleNotFoundError:
        pass
sys.path.insert(0, "tests")
from helpers.surroundings import changes, state
before = state()
import cliptools
names = [each.name for each in pkgutil.walk_packages(cliptools.__path__, "cliptools.") if not each.name.endswith("__main__")]
assert len(names) > 150
for name in names:
    importlib.import_module(name)
found = [f"import: {change}" for change in changes(before, state())]
sys.path.insert(0, "tests")
from helpers.page_examples import page_examples

before = state()
with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
    failures = page_examples()
found += [f"calls: {change}" for change in changes(before, state())]
print(*found, failures, sep="\\n")
sys.exit(bool(found or failures))
"""
FIRST = """
import sys
def own_finders():
    return [finder for finder in sys.meta_path if getattr(finder, "__module__", type(finder).__module__).startswith("cliptools")]
import cliptools.unit_effects.factored, training
assert not own_finders() and "torchvision" not in sys.modules
import cliptools.unit_effects.vit_second_order  # needs open_clip, and with it torchvision
assert not own_finders() and "torchvision" in sys.modules
"""


@pytest.fixture(autouse=True)
def fresh_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Unset the variable that threadpoolctl sets when it is imported, as other tests do."""
    monkeypatch.delenv(DUPLICATE_OPENMP, raising=False)


@pytest.mark.parametrize("script", [IMPORTS, FIRST])
def test_importing_every_module_and_calling_what_is_documented_changes_nothing(script: str) -> None:
    """The examples of the API pages run in a process without the tests' checks of types, which draw random numbers."""
    ran = subprocess.run([sys.executable, "-W", "default", "-c", script], capture_output=True, text=True, cwd=ROOT, check=False)
    assert ran.returncode == 0, ran.stdout + ran.stderr


def unchanged(call: Callable[[], Any]) -> Any:
    """Return the call's result after a check that the process is unchanged."""
    before = state()
    result = call()
    assert not (found := changes(before, state())), "\n".join(found)
    return result


def test_loading_a_model(tiny_clip_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The caller's settings are restored, also if loading fails, and random weights do not depend on the caller."""
    import transformers  # noqa: F401 - which loading imports, and which says more of itself the first time

    monkeypatch.setenv(NOT_ONLY, "1")
    monkeypatch.delenv(ONLY, raising=False)
    name = f"local-dir:{tiny_clip_dir}"
    loaded = unchanged(lambda: load_model(name, device="cpu"))
    unchanged(lambda: encode_texts(loaded, ["a cat", "a dog"]))
    torch.manual_seed(11)
    drawn = unchanged(lambda: load_model("ViT-S-32-alt", "random", device="cpu"))
    torch.manual_seed(12)
    torch.rand(3)
    assert unchanged(lambda: load_model("ViT-S-32-alt", "random", device="cpu")).sha256 == drawn.sha256
    with pytest.raises(ModelError):
        unchanged_failure(lambda: load_model("local-dir:/nowhere", device="cpu"))
    with pytest.raises(CliptoolsError):
        unchanged_failure(lambda: load_model("ViT-B-32", str(tiny_clip_dir / "open_clip_config.json"), device="cpu"))


def unchanged_failure(call: Callable[[], Any]) -> None:
    """Expect the call's error and check that the process is unchanged."""
    before = state()
    try:
        call()
    finally:
        assert not (found := changes(before, state())), "\n".join(found)


def test_while_a_model_is_loaded_no_code_of_its_own_runs() -> None:
    from transformers import dynamic_module_utils as remote

    own, before = remote.get_cached_module_file, os.environ.get(ONLY)
    with no_foreign_code():
        with no_foreign_code():
            assert os.environ[ONLY] == "1"
        assert os.environ[ONLY] == "1" and remote.TIME_OUT_REMOTE_CODE == 0
        with pytest.raises(ValueError, match="requires code of its own, which is never run"):
            remote.get_cached_module_file("somebody/model", "model.py")
    assert remote.get_cached_module_file is own and os.environ.get(ONLY) == before


def damaged_tiff() -> bytes:
    """Return a TIFF with truncated compressed data, about which libtiff writes to standard error."""
    buffer = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3)).astype(np.uint8)).save(
        buffer, "TIFF", compression="tiff_lzw"
    )
    return buffer.getvalue()[:4000] + b"\xff" * 3000 + buffer.getvalue()[7000:]


def test_reading_pictures(tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Valid, damaged and too large pictures write nothing to standard error."""
    sound, damaged, mask = tmp_path / "sound.png", tmp_path / "damaged.tif", tmp_path / "mask.png"
    Image.new("RGB", (9, 7), "red").save(sound)
    Image.new("L", (9, 7), 255).save(mask)
    damaged.write_bytes(damaged_tiff())
    unchanged(lambda: (decode(str(sound)), header(str(sound)), read_mask(mask)))
    with pytest.raises(ImageError):
        unchanged_failure(lambda: decode(str(damaged)))
    with pytest.raises(ImageError):
        unchanged_failure(lambda: read_mask(damaged))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 40)
    with pytest.raises(ImageError, match="at most 40 are decoded"):
        unchanged_failure(lambda: decode(str(sound)))
    assert capfd.readouterr() == ("", "")


def test_threads_that_read_pictures(tmp_path: Path) -> None:
    """Meanwhile, other threads change the filters of warnings for themselves."""
    damaged = damaged_tiff()

    def read(number: int) -> None:
        with pytest.raises(ImageError):
            decode(io.BytesIO(damaged))

    before = state()
    with ThreadPoolExecutor(4) as pool:
        results = pool.map(read, range(200))
        for _ in range(50):
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
        list(results)
    assert not (found := changes(before, state())), "\n".join(found)


def test_a_filter_of_the_caller_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    """A filter equal to ours stays, and so does a filter that is added meanwhile."""
    picture = io.BytesIO()
    Image.new("RGB", (4, 4)).save(picture, "PNG")
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=UserWarning, module=r"PIL\.")
        unchanged(lambda: decode(picture))
        entered = Image.open

        def opening(*arguments: Any, **options: Any) -> Any:
            warnings.simplefilter("ignore", ImportWarning)
            return entered(*arguments, **options)

        monkeypatch.setattr(Image, "open", opening)
        picture.seek(0)
        decode(picture)
        assert ("ignore", None, ImportWarning, None, 0) in warnings.filters
        assert [each[:3] for each in warnings.filters].count(("ignore", None, UserWarning)) == 1


def test_the_hub_and_the_log() -> None:
    """A log without handlers has none afterwards, even if other code logs meanwhile."""
    root = logging.getLogger()
    kept, root.handlers = root.handlers, []
    try:
        before = state()
        with quiet_hub():
            logging.warning("what open_clip logs")
        assert not changes(before, state()) and root.handlers == []
    finally:
        root.handlers = kept


def test_a_change_lasts_as_long_as_anybody_needs_it() -> None:
    log: list[str] = []

    class Change:
        def __enter__(self) -> None:
            log.append("made")

        def __exit__(self, *_: Any) -> None:
            log.append("taken back")

    shared = SharedChange(Change)
    both, leave = threading.Barrier(2), threading.Event()

    def first() -> None:
        with shared():
            both.wait(10)
        leave.set()

    thread = threading.Thread(target=first)
    thread.start()
    with shared():
        both.wait(10)
        assert leave.wait(10) and log == ["made"]
    thread.join()
    assert log == ["made", "taken back"]
    with pytest.raises(KeyError), shared():
        raise KeyError
    assert log == ["made", "taken back"] * 2


SAMPLE = (
    "effects second", "effects indirect", "effects pooled", "merge", "decompose", "spurious", "advgen", "advgen images", "scenes",
    "view", "sheet", "gallery", "top raw", "concepts words", "shift norm", "ablate", "segment neurons", "segment gradcam",
    "segment evaluate", "segment labels pairs", "segment labels evaluate",
)  # fmt: skip


@pytest.mark.parametrize("name", SAMPLE)
def test_a_command_run_within_a_process(name: str, suite: Suite) -> None:
    """This includes decoding in separate threads."""
    case = suite.cases()[name]
    threads = ("--workers", 2) if "--workers" in case.words else ()
    ended = unchanged(lambda: run_case(case, *threads))
    assert ended.returncode == 0, ended.stderr.decode()
