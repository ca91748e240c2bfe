"""Messages of commands on stderr: notes, the summary, and all of them as JSON lines."""

import json
import re
from typing import Any

import click
import pytest
from conftest import Run

from cliptools import console
from cliptools.cli.app import command
from cliptools.errors import CliptoolsError
from cliptools.models import load


def events(stderr: bytes) -> list[dict[str, Any]]:
    return [json.loads(line) for line in stderr.splitlines()]


def test_a_run_ends_with_what_it_took(run: Run) -> None:
    said = run("effects", "--limit", "40", "--layers", "6").stderr.decode().splitlines()
    assert said[-1].startswith("clip-effects: 40 images, 768 neurons of emoji-vit2 (") and said[-1].endswith(" GB)")
    assert re.search(r"\([\d.]+ s, of which [\d.]+ s over 40 images, at most ", said[-1])
    assert not run("effects", "--limit", "40", "--layers", "6", "-q").stderr


def test_json_lines_for_machines(run: Run) -> None:
    *_, last = events(run("effects", "--limit", "40", "--layers", "6", "--log-json").stderr)
    assert last["event"] == "summary" and last["message"] == "clip-effects: 40 images, 768 neurons of emoji-vit2"
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
    monkeypatch.setattr(console, "OFTEN", 0.0)
    console.set_output(quiet=False, as_json=True)
    assert list(console.progress([3, 4], "images", 7, lambda item: item)) == [3, 4]
    console.warn("look")
    console.set_output(quiet=True, as_json=True)
    assert list(console.progress([5], "images", 5)) == [5]
    console.note("not said")
    said = events(capsys.readouterr().err.encode())
    assert [(line["event"], line["message"], line.get("done"), line.get("total")) for line in said] == [
        ("progress", "images", 3, 7),
        ("progress", "images", 7, 7),
        ("warning", "look", None, None),
    ]


class Clock:
    """A clock whose seconds pass only when a test advances it."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.mark.parametrize(
    ("seconds", "count", "expected"),
    [
        (1.0, 20, []),  # done before anybody wonders
        (4.0, 10, ["images: 2 of 10 (20%), about 32 s to go"]),  # early: half a minute and more is left; then every 30 s
        (0.5, 200, ["images: 10 of 200 (5%), about 95 s to go", "images: 70 of 200 (35%), about 65 s to go",
                    "images: 130 of 200 (65%), about 35 s to go", "images: 190 of 200 (95%), about 5 s to go"]),
        (31.0, 3, ["images: 1 of 3 (33%), about 62 s to go", "images: 2 of 3 (67%), about 31 s to go"]),
        (3600.0, 4, ["images: 1 of 4 (25%), about 3.0 h to go", "images: 2 of 4 (50%), about 2.0 h to go",
                     "images: 3 of 4 (75%), about 60 min to go"]),
    ],
)  # fmt: skip
def test_lines_of_progress_off_a_terminal(
    seconds: float, count: int, expected: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Long work prints a line after five seconds and then one every half minute; none at the end, and none with -q."""
    for quiet in (False, True):
        clock = Clock()
        monkeypatch.setattr(console.time, "perf_counter", clock)
        with console.own_run():
            console.set_output(quiet=quiet, as_json=False)
            for _ in console.progress(range(count), "images", count):
                clock.now += seconds
            assert console._run.counted == ("images", count, pytest.approx(count * seconds))
            console.summarise(f"clip-test: {count} images")
            console.finish()
        *lines, summary = capsys.readouterr().err.splitlines() or [""]
        assert lines == ([] if quiet else expected)
        whole = count * seconds
        told = (
            ""
            if quiet
            else rf"clip-test: {count} images \({whole:.0f} s, of which {whole:.0f} s over {count} images, at most .*\)"
        )
        assert re.fullmatch(told, summary), summary


def test_a_count_of_one_is_in_the_singular(capsys: pytest.CaptureFixture[str]) -> None:
    for label, singular in console.NOUNS.items():
        with console.own_run():
            list(console.progress([0], label, 1))
            console.summarise("done")
            console.finish()
        assert f" over 1 {singular}, at most " in capsys.readouterr().err


def test_one_run_says_nothing_of_another(capsys: pytest.CaptureFixture[str]) -> None:
    for images in (3, 2):
        with console.own_run():
            list(console.progress(range(images), "images"))
            console.summarise(f"{images} images")
            console.finish()
        assert capsys.readouterr().err.startswith(f"{images} images (0.0 s, of which ")
    console.finish()
    assert not capsys.readouterr().err


@command("clip-test")
@click.option("--then", type=click.Choice(["return", "fail", "raise"]))
def speaking(then: str | None) -> None:
    """A command that warns twice of the same subject and then ends as requested."""
    for _ in range(2):
        console.warn_once("disk", "the disk is full")
    console.note("a note")
    if then == "fail":
        raise CliptoolsError("as told")
    if then == "raise":
        raise ZeroDivisionError


@pytest.mark.parametrize("options", [("-q",), ("--log-json",), ("-q", "--log-json", "--then", "fail"), ("-q", "--then", "raise")])
def test_a_command_leaves_nothing_to_what_runs_after_it(capsys: pytest.CaptureFixture[str], options: tuple[str, ...]) -> None:
    with pytest.raises((SystemExit, ZeroDivisionError)):
        speaking.main(options)
    assert capsys.readouterr().err.count("the disk is full") == 1
    console.note("still here")
    console.warn_once("disk", "the disk is full")
    assert capsys.readouterr().err == "still here\nwarning: the disk is full\n"


def test_no_model_of_a_command_is_left_to_the_next() -> None:
    @command("clip-test")
    def handing() -> None:
        """A command that hands a model over to no other function."""
        load.hand_over(model)

    model = load.load_model("emoji-vit2")
    with pytest.raises(SystemExit):
        handing.main([])
    assert load.load_recorded_model(model.identity) is not model
