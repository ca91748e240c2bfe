"""What commands say on stderr: notes, what a run has taken, and all of it as JSON lines."""

import json
from typing import Any

import pytest
from conftest import Run

from cliptools.ground import progress


def events(stderr: bytes) -> list[dict[str, Any]]:
    return [json.loads(line) for line in stderr.splitlines()]


def test_a_run_ends_with_what_it_took(run: Run) -> None:
    said = run("effects", "--limit", "40", "--layers", "6").stderr.decode().splitlines()
    assert said[-1].startswith("clip-effects: 40 images, 768 neurons of emoji-vit (") and said[-1].endswith(" GB)")
    assert " s, " in said[-1] and " images a second, at most " in said[-1]
    assert not run("effects", "--limit", "40", "--layers", "6", "-q").stderr


def test_json_lines_for_machines(run: Run) -> None:
    *_, last = events(run("effects", "--limit", "40", "--layers", "6", "--log-json").stderr)
    assert last["event"] == "summary" and last["message"] == "clip-effects: 40 images, 768 neurons of emoji-vit"
    assert last["what"] == "images" and last["count"] == 40
    assert 0 < last["count"] / last["a_second"] <= last["seconds"] + 0.1  # the images' own time, and all of it
    assert 1e8 < last["peak_bytes"] < 1e10

    failed = run("view", "--log-json", stdin=b"")
    (error,) = events(failed.stderr)
    assert failed.returncode == error["status"] == 1
    assert error["event"] == "error" and error["message"].startswith("clip-view: standard input: empty input")


def test_json_lines_leave_the_result_alone(run: Run) -> None:
    plain, logged = (run("effects", "--limit", "12", "--layers", "6", *more).stdout for more in ([], ["--log-json"]))
    assert plain == logged


def test_progress_in_json_lines(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "OFTEN", 0.0)
    try:
        progress.speak(quiet=False, as_json=True)
        assert list(progress.progress([3, 4], "images", 7, lambda item: item)) == [3, 4]
        progress.warn("look")
        progress.speak(quiet=True, as_json=True)
        assert list(progress.progress([5], "images", 5)) == [5]
        progress.note("not said")
    finally:
        progress.speak(quiet=False, as_json=False)
    said = events(capsys.readouterr().err.encode())
    assert [(line["event"], line["message"], line.get("done"), line.get("total")) for line in said] == [
        ("progress", "images", 3, 7),
        ("progress", "images", 7, 7),
        ("warning", "look", None, None),
    ]


def test_one_run_says_nothing_of_another(capsys: pytest.CaptureFixture[str]) -> None:
    for images in (3, 2):
        progress.speak(quiet=False, as_json=False)
        list(progress.progress(range(images), "images"))
        progress.summarise(f"{images} images")
        progress.finish()
        assert capsys.readouterr().err.startswith(f"{images} images (0 s, ")
    progress.speak(quiet=False, as_json=False)
    progress.finish()
    assert not capsys.readouterr().err
