"""Behaviour of real processes: readers that close the pipe, terminals, full disks, and pipelines of several commands."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from helpers import ROOT
from helpers.bundle import small_bundle
from helpers.pipes import COMMANDS, on_terminal, shell


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("pipes") / "neurons.safetensors"
    path.write_bytes(small_bundle(units=3, words=True).to_bytes())
    return path


@pytest.mark.parametrize("name", COMMANDS)
def test_help_is_instant_and_speaks_of_itself(name: str) -> None:
    """Slow libraries may not be imported before options are parsed."""
    code = (
        f"import sys; sys.argv = ['clip-{name}', '--help']\n"
        f"from cliptools.cli.{name.replace('-', '_')} import main\n"
        "try: main()\n"
        "except SystemExit as stop: assert not stop.code\n"
        "heavy = {'torch', 'numpy', 'open_clip', 'PIL', 'rich', 'sklearn', 'safetensors'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, cwd=ROOT, check=False)
    assert ended.returncode == 0, ended.stderr.decode()
    text = ended.stdout.decode()
    assert text.startswith(f"Usage: clip-{name}") and "Examples:" in text and "--version" in text


@pytest.mark.parametrize("name", COMMANDS)
def test_launchers_and_entry_points(name: str) -> None:
    assert shell(f"clip-{name} --version").stdout.decode().startswith(f"clip-{name}, version 0.")
    assert f'clip-{name} = "cliptools.cli.{name.replace("-", "_")}:main"' in (ROOT / "pyproject.toml").read_text()


def test_a_reader_that_leaves_ends_it_quietly(file: Path) -> None:
    ended = shell(f"clip-view -f jsonl {file} | head -c 10")
    assert ended.returncode == 0 and ended.stderr == b"" and len(ended.stdout) == 10
    ended = shell(f"clip-view {file} | true")
    assert ended.stderr == b""


def test_standard_output_closed(file: Path) -> None:
    assert b"Traceback" not in shell("clip-view --version >&-").stderr
    ended = shell(f"clip-view {file} >&-")
    assert ended.returncode == 1 and b"standard output is closed" in ended.stderr


def test_full_disk(file: Path) -> None:
    ended = shell(f"clip-view {file} > /dev/full")
    assert ended.returncode == 1 and b"No space left" in ended.stderr and len(ended.stderr.splitlines()) == 1


def test_a_failed_run_leaves_nothing(file: Path, tmp_path: Path) -> None:
    target = tmp_path / "out.safetensors"
    target.write_bytes(b"what was there before")
    ended = shell(f"head -c 500 {file} | clip-view -o {target}")
    assert ended.returncode == 1 and "truncated" in ended.stderr.decode()
    assert target.read_bytes() == b"what was there before" and os.listdir(tmp_path) == ["out.safetensors"]
    ended = shell(f"clip-view {file} -o {tmp_path}/no/such/folder.safetensors")
    assert ended.returncode == 1 and "cannot write here" in ended.stderr.decode()


def test_terminal_gets_a_table_and_never_a_bundle(file: Path) -> None:
    code, shown = on_terminal("cliptools.cli.view", str(file))
    assert code == 0 and "strength" in shown and "+cat" in shown
    code, shown = on_terminal("cliptools.cli.view", "-f", "safetensors", str(file))
    assert code == 2 and "garble the terminal" in shown and "\x00" not in shown


def test_no_colour_when_asked(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_COLOR", "1")
    _, shown = on_terminal("cliptools.cli.view", str(file))
    assert "\x1b[3" not in shown


def test_input_expected_but_a_terminal() -> None:
    code, shown = on_terminal("cliptools.cli.view", stdin_too=True)
    assert code == 2 and "expected a bundle on standard input" in shown


def test_options_from_the_environment(file: Path) -> None:
    assert len(shell(f"clip-view -f jsonl {file}", CLIPTOOLS_HEAD="2").stdout.splitlines()) == 2


def test_interrupt_is_one_word() -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "cliptools.cli.view", "-"],
        stdin=subprocess.PIPE,
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        cwd=ROOT,
        # A shell's background jobs ignore the interrupt, and their children inherit that.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # noqa: PLW1509
    )
    with process:
        time.sleep(2.0)  # until it waits for its input
        process.send_signal(signal.SIGINT)
        try:
            assert process.wait(30) == 130
        finally:
            process.kill()
        assert process.stderr is not None and process.stderr.read().strip() == b"clip-view: interrupted"
