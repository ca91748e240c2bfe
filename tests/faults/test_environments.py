"""Homes that cannot be written, no home, no network, narrow terminals, odd locales and interpreters: always the same bytes."""

import io
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from helpers import ROOT
from helpers.bundle import small_bundle
from helpers.terminal import COLOURS, on_terminal
from rich.cells import cell_len

from cliptools.io.bundle import json_tensor, read_bundle
from cliptools.models.hub import OUT_OF_REACH, SILENT

Often = Callable[[int, int], int]
REFUSING = "http://127.0.0.1:9"
PROXIES = {name: REFUSING for each in ("http", "https", "all") for name in (f"{each}_proxy", f"{each}_proxy".upper())}
CACHES = ("CLIPTOOLS_CACHE", "XDG_CACHE_HOME", "HF_HOME", "TORCH_HOME", "MPLCONFIGDIR")
GONE_SAID = b"the current folder is gone: change to another one (cd)\n"
NO_CACHE = "results cannot be kept in the cache"


class Place(NamedTuple):
    """Where a command is run; None takes a variable away."""

    env: dict[str, str | None] = {}  # noqa: RUF012
    flags: tuple[str, ...] = ()
    shell: str = ""
    umask: int = -1
    said: str = ""
    """What may be said beside the usual, where texts are embedded."""
    silent: bool = False


ASCII: dict[str, str | None] = {
    "LC_ALL": "C",
    "LANG": None,
    "PYTHONUTF8": "0",
    "PYTHONCOERCECLOCALE": "0",
    "PYTHONIOENCODING": None,
}
GONE = "mkdir gone && cd gone && rmdir ../gone && "
PLACES = {
    "read-only home": Place({"HOME": "/proc", **dict.fromkeys(CACHES)}, said=NO_CACHE),
    "home is a file": Place({"HOME": "/dev/null", **dict.fromkeys(CACHES)}, said=NO_CACHE),
    "no home": Place({"HOME": None, "USER": None, "LOGNAME": None}),
    "no network": Place({**PROXIES, "NO_PROXY": None, "no_proxy": None}),
    "no colour": Place({"NO_COLOR": "1"}),
    "dumb terminal": Place({"TERM": "dumb"}),
    "no terminal's name": Place({"TERM": None, "COLUMNS": "0"}),
    "locale C": Place({"LC_ALL": "C", "LANG": None, "PYTHONIOENCODING": None}),
    "ASCII only": Place(ASCII),
    "unknown locale": Place({"LC_ALL": "xx_YY.ISO-8859-15"}),
    "other encoding": Place({"PYTHONIOENCODING": "latin-1"}),
    "umask 077": Place(umask=0o077),
    "umask 0": Place(umask=0),
    "deleted folder": Place(shell=GONE),
    "no assertions": Place(flags=("-O",)),
    "warnings are errors": Place(flags=("-W", "error")),
    "development mode": Place({"PYTHONWARNINGS": "error"}, flags=("-X", "dev")),
    "closed stderr": Place(shell="exec 2>&-; ", silent=True),
    "closed stdin": Place(shell="exec 0<&-; "),
    "all at once": Place(
        {"HOME": "/proc", **dict.fromkeys(CACHES), **PROXIES, "NO_COLOR": "1", "TERM": "dumb", **ASCII},
        ("-W", "error"), "", 0o077, NO_CACHE,
    ),
}  # fmt: skip


OFTEN = ("read-only home", "ASCII only", "other encoding", "deleted folder", "closed stderr", "closed stdin", "all at once")
"""Those that are tried by default."""


@pytest.fixture(scope="module")
def words_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Units with words of many letters and scripts, and names of images without a space."""
    bundle = small_bundle(words=True)
    texts = ("Straßenbahnhaltestelle", "猫とボート", "🐈‍⬛", "x" * 150, "two words", "é")
    found = bundle.text_list("words")
    named = [f"{texts[i % len(texts)]} {i}" for i in range(len(found["texts"]))]
    images = [f"{name}-{'y' * 99}.png" for name in bundle.text_list("images")]
    path = tmp_path_factory.mktemp("bundle") / "words.safetensors"
    changed = {"words": json_tensor(found | {"texts": named}), "images": json_tensor(images)}
    path.write_bytes(bundle.with_tensors(bundle.header, **changed).to_bytes())
    return path


def run_at(place: Place, folder: Path, name: str, *arguments: Any, stdin: bytes = b"") -> subprocess.CompletedProcess[bytes]:
    """A command, as a process of its own, in a place."""
    changed: dict[str, str | None] = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), **place.env}
    env = {key: value for key, value in changed.items() if value is not None}
    words = [sys.executable, *place.flags, "-m", f"cliptools.cli.{name}", *map(str, arguments)]
    shell = ["sh", "-c", f'{place.shell}exec "$@"', "sh", *words] if place.shell else words
    folder.mkdir(exist_ok=True)
    return subprocess.run(
        shell, input=stdin, capture_output=True, cwd=folder, env=env, umask=place.umask, timeout=300, check=False
    )


def said_beside(ended: subprocess.CompletedProcess[bytes], place: Place) -> list[str]:
    """Lines of stderr that are neither the summary, nor of the few images, nor what the place explains."""
    lines = ended.stderr.decode("ascii" if place.env.get("PYTHONUTF8") == "0" else "utf-8").splitlines()
    usual = ("clip-", "12 images are few")
    return [line for line in lines if not line.startswith(usual) and not (place.said and place.said in line)]


@pytest.mark.parametrize("name", PLACES)
def test_commands_that_look_say_the_same_everywhere(words_bundle: Path, tmp_path: Path, often: Often, name: str) -> None:
    """Tables, lines and help; and an error in one line."""
    if name not in OFTEN and not often(0, 1):
        pytest.skip("runs with --thorough")
    place = PLACES[name]
    for kind in ("table", "jsonl")[: often(1, 2)]:
        words = ("view", "-f", kind, words_bundle)
        usual, ended = (run_at(each, tmp_path / "folder", *words) for each in (Place(), place))
        if name == "deleted folder":
            assert ended.returncode == 1 and not ended.stdout and ended.stderr == b"clip-view: " + GONE_SAID
            return
        assert ended.returncode == 0 and ended.stdout == usual.stdout and len(usual.stdout) > 300
        assert not ended.stderr, ended.stderr.decode()
    helped = run_at(place, tmp_path / "folder", "effects", "--help")
    assert helped.returncode == 0 and b"100/" in helped.stdout and not helped.stderr
    failed = run_at(place, tmp_path / "folder", "view", "götterdämmerung.safetensors")
    assert failed.returncode == 1 and not failed.stdout
    assert place.silent or (len(failed.stderr.splitlines()) == 1 and b"terd" in failed.stderr), failed.stderr.decode()


def test_effects_in_the_worst_place(tmp_path: Path) -> None:
    """No home, no network, ASCII only, warnings as errors: nothing is said of it; and one line where the folder is gone."""
    words = ("effects", "--limit", 12, "--layers", 6, "--top-images", 1)
    worst, gone = (run_at(PLACES[name], tmp_path / "folder", *words) for name in ("all at once", "deleted folder"))
    assert worst.returncode == 0 and not said_beside(worst, PLACES["all at once"]), worst.stderr.decode()
    assert read_bundle(io.BytesIO(worst.stdout), "it").units == 768
    assert gone.returncode == 1 and not gone.stdout and gone.stderr == b"clip-effects: " + GONE_SAID


def test_commands_that_compute_do_so_everywhere(request: pytest.FixtureRequest, tmp_path: Path, often: Often) -> None:
    """The same bytes from clip-effects to a gallery, in all places."""
    if not often(0, 1):
        pytest.skip("runs with --thorough")
    nursery, study = request.getfixturevalue("nursery"), request.getfixturevalue("study")
    steps: dict[str, tuple[Any, ...]] = {
        "scenes": ("scenes", "--count", 3), "effects": ("effects", study.photos, "--layers", 6, "--thumbnails", 32),
        "decompose": ("decompose", "--m", 4), "gallery": ("gallery", "--head", 3), "sheet": ("sheet", "--head", 2),
    }  # fmt: skip
    effects = nursery.run(*steps["effects"]).stdout
    neurons = nursery.run(*steps["decompose"], stdin=effects).stdout
    inputs = {"decompose": effects, "gallery": neurons, "sheet": neurons}
    for step, words in steps.items():
        stdin = inputs.get(step, b"")
        usual = run_at(Place(), tmp_path / "folder", *words, stdin=stdin)
        assert usual.returncode == 0 and usual.stdout, usual.stderr.decode()
        for name, place in PLACES.items():
            if name == "closed stdin" and stdin:
                continue
            ended = run_at(place, tmp_path / "folder", *words, stdin=stdin)
            if name == "deleted folder":
                assert ended.returncode == 1 and not ended.stdout and ended.stderr.endswith(GONE_SAID), step
                continue
            assert ended.returncode == 0, (name, step, ended.stderr.decode())
            assert ended.stdout == usual.stdout, (name, step)
            assert place.silent or not said_beside(ended, place), (name, step, ended.stderr.decode())
            if name.startswith("umask"):
                out = tmp_path / f"{name} {step}"
                run_at(place, tmp_path / "folder", *words, "-o", out, stdin=stdin)
                assert out.stat().st_mode & 0o777 == 0o666 & ~place.umask
    assert not list((tmp_path / "folder").iterdir())


def test_a_model_that_is_elsewhere_without_a_network(request: pytest.FixtureRequest, tmp_path: Path, often: Often) -> None:
    if not often(0, 1):
        pytest.skip("the hub's library tries for many seconds; runs with --thorough")
    study = request.getfixturevalue("study")
    place = Place({**PLACES["no network"].env, "HF_HOME": str(tmp_path / "hub"), "XDG_CACHE_HOME": str(tmp_path / "cache")})
    for words in (("ViT-B-32", "--pretrained", "openai"), ("hf-hub:nobody/nothing",)):
        ended = run_at(place, tmp_path / "folder", "effects", study.photos, "--model", *words)
        asking, failed = ended.stderr.decode().splitlines()
        assert ended.returncode == 1 and not ended.stdout and asking == SILENT
        assert failed.startswith("clip-effects: cannot load model") and OUT_OF_REACH in failed


@pytest.mark.parametrize("columns", [60, 33, 12])
def test_no_line_is_wider_than_the_terminal(
    words_bundle: Path, request: pytest.FixtureRequest, columns: int, often: Often
) -> None:
    """On a real terminal; words and names are longer than a line may be."""
    shown: list[tuple[Any, ...]] = [("view", words_bundle)]
    if often(0, 1):
        study = request.getfixturevalue("study")
        one = next(study.photos.glob("*.png"))
        shown += [("view", "--head", 25, study.neurons), ("view", "--head", 25, study.effects)]
        shown += [("segment", one, "--text", "cat", "--text", "x" * 70, "--bundle", study.neurons)]
        shown += [("concepts", one, "--bundle", study.neurons), ("effects", study.photos, "--layers", 6, "-f", "table")]
        shown += [("top", study.photos, "--head", 3, "-f", "table", "--bundle", study.neurons)]
    for words in shown:
        for env in ({}, {"NO_COLOR": "1"}, {"TERM": "dumb"}, ASCII)[: often(3, 4)]:
            status, text = on_terminal(*words, columns=columns, env=env)
            assert status == 0 and len(text.splitlines()) > 1, text
            assert "NO_COLOR" not in env or not any(f"\x1b[{colour}m" in text for colour in range(30, 38))
            table = [line for line in COLOURS.sub("", text).splitlines() if not line.startswith(("clip-", "\r", "\x1b"))]
            assert max(map(cell_len, table)) <= columns, max(table, key=cell_len)
