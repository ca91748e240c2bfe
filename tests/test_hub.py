"""Messages if models come from a hub that does not answer."""

import importlib
import logging
import shutil
import urllib.error
from pathlib import Path

import pytest
from conftest import Run
from huggingface_hub.errors import LocalEntryNotFoundError
from huggingface_hub.utils import http_backoff
from PIL import Image

from cliptools.models.hub import CLIENT, OUT_OF_REACH, SILENT, quiet_hub, reason

NOBODY = "http://127.0.0.1:9/models"


def failed_behind(cause: Exception) -> RuntimeError:
    """Return an error of a library that was caused by another error."""
    try:
        try:
            raise cause
        except Exception:
            raise RuntimeError("cannot download\nbecause of many things") from None
    except RuntimeError as error:
        return error


def test_the_network_is_named_where_it_is_the_matter() -> None:
    for cause in (LocalEntryNotFoundError("x"), urllib.error.URLError("x"), ConnectionRefusedError(111, "x")):
        assert reason(failed_behind(cause)) == OUT_OF_REACH
        assert reason(failed_behind(cause), "do that") == f"{OUT_OF_REACH}; do that"
    missing = urllib.error.HTTPError(NOBODY, 404, "Not Found", None, None)  # type: ignore[arg-type]
    for cause in (missing, FileNotFoundError(2, "x")):
        assert reason(failed_behind(cause), "do that") == "cannot download"


def test_a_missing_package_is_named() -> None:
    with pytest.raises(ModuleNotFoundError) as caught:
        importlib.import_module("no_such_package")
    assert reason(caught.value) == "it needs no_such_package, which is not installed: pip install no_such_package"
    of_transformers = ImportError(
        "\nSiglipTokenizer requires the SentencePiece library but it was not found in your environment.\n"
    )
    assert reason(of_transformers) == "it needs sentencepiece, which is not installed: pip install sentencepiece"
    assert reason(ImportError("cannot import name 'x'")) == "cannot import name 'x'"


def test_the_hub_says_once_that_it_is_asked_again(capfd: pytest.CaptureFixture[str]) -> None:
    client, root = logging.getLogger(CLIENT), logging.getLogger()
    before = client.handlers, client.propagate, root.handlers
    with quiet_hub():
        with pytest.raises(Exception, match="Connection refused"):
            http_backoff("HEAD", NOBODY, max_retries=3, base_wait_time=0)
        logging.error("what open_clip logs")
    assert capfd.readouterr() == ("", f"{SILENT}\n")
    assert (client.handlers, client.propagate, root.handlers) == before


def test_whoever_keeps_a_log_keeps_it(caplog: pytest.LogCaptureFixture) -> None:
    with quiet_hub():
        logging.error("what open_clip logs")
    assert "what open_clip logs" in caplog.text


def test_a_model_of_the_cache_needs_no_network(run: Run, tiny_clip_dir: Path, tmp_path: Path) -> None:
    photo = tmp_path / "photo.png"
    Image.new("RGB", (30, 24), "red").save(photo)
    cached = tmp_path / "hub" / "models--somebody--tiny"
    (cached / "refs").mkdir(parents=True)
    (cached / "refs" / "main").write_text("0" * 40)
    shutil.copytree(tiny_clip_dir, cached / "snapshots" / ("0" * 40))
    for name, found in (("tiny", True), ("other", False)):
        words = (photo, "--layers", 1, "--model", f"hf-hub:somebody/{name}", "-q")
        ended = run("effects", *words, env={"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path)})
        assert (ended.returncode == 0 and ended.stdout and not ended.stderr) if found else ended.returncode == 1, ended.stderr
    assert ended.stderr.decode() == (
        f"clip-effects: cannot load model 'hf-hub:somebody/other' (its own weights): {OUT_OF_REACH}; "
        "load it once where there is a network, or name a folder: --model local-dir:FOLDER\n"
    )
