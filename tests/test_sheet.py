"""clip-sheet: content of its pictures, and its output and errors as a process."""

import io
import os
import pty
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from helpers.sheet import COLOURS, WORDS, Colours, cell, first_row, near, synthetic
from PIL import Image, ImageChops

from cliptools.cli.run.sheet import heading
from cliptools.front.unit_records import order_units
from cliptools.images.tar import write_end, write_member
from cliptools.io.bundle import Bundle
from cliptools.render.contact_sheet import (
    CELL,
    GAP,
    MARGIN,
    TEXT_WIDTH,
    SheetRow,
    contact_sheet,
    most_rows,
    shorten_to_width,
    to_font_characters,
    words_in_row,
)

Run = Callable[..., subprocess.CompletedProcess[bytes]]


def read(data: bytes) -> Image.Image:
    return Image.open(io.BytesIO(data)).convert("RGB")


def test_a_row_a_unit_with_its_top_images_in_order(run: Run) -> None:
    done = run("sheet", "--sort", "index", "--images-per-unit", 4, stdin=synthetic().to_bytes())
    assert (done.returncode, done.stderr) == (0, b"")
    sheet = read(done.stdout)
    assert sheet.width == 2 * MARGIN + TEXT_WIDTH + 4 * (CELL + GAP)
    for row in range(5):
        for place in range(4):
            assert near(cell(sheet, row, place), COLOURS[(row + place) % len(COLOURS)]), (row, place)


def test_units_in_the_order_asked_for(run: Run, tmp_path: Path) -> None:
    bundle = synthetic()
    (tmp_path / "b.safetensors").write_bytes(bundle.to_bytes())
    done = run("sheet", "--units", "7:103,6:100", tmp_path / "b.safetensors", "-o", tmp_path / "x.png")
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")
    sheet = read((tmp_path / "x.png").read_bytes())
    assert near(cell(sheet, 0, 0), COLOURS[3]) and near(cell(sheet, 1, 0), COLOURS[0])
    clearest = read(run("sheet", "--head", 2, stdin=bundle.to_bytes()).stdout)
    for row, unit in enumerate(order_units(bundle, "clear")[:2]):
        assert near(cell(clearest, row, 0), COLOURS[unit])


def test_equal_runs_give_equal_bytes_and_name_their_origin(run: Run) -> None:
    bundle = synthetic(2)
    once, again = (run("sheet", stdin=bundle.to_bytes()).stdout for _ in range(2))
    assert once == again
    assert Image.open(io.BytesIO(once)).text["cliptools"] == bundle.header.to_json()


def test_images_from_files_and_archives(run: Run, tmp_path: Path) -> None:
    bundle = synthetic(thumbnails=False)
    with (tmp_path / "s.tar").open("wb") as stream:
        for i in range(len(COLOURS)):
            Colours().load(i).save(tmp_path / f"{i}.png")
            write_member(stream, f"{i}.png", (tmp_path / f"{i}.png").read_bytes())
        write_end(stream)
    (tmp_path / "7.png").write_bytes(b"broken")
    (tmp_path / "6.png").unlink()
    arguments = ("sheet", "--sort", "index", "--images-per-unit", 6, "--images-from")
    from_files = run(*arguments, tmp_path, stdin=bundle.to_bytes())
    assert from_files.returncode == 0
    assert near(cell(read(from_files.stdout), 1, 3), COLOURS[4])
    assert near(cell(read(from_files.stdout), 1, 5), (0xF1, 0xF1, 0xF1)) and near(
        cell(read(from_files.stdout), 2, 5), (0xF1, 0xF1, 0xF1)
    )
    said = from_files.stderr.decode()
    assert "1 of 8 top images not found, the first: 6.png" in said and "7.png: text, not an image" in said
    from_tar = run(
        *arguments, tmp_path / "s.tar", stdin=bundle.to_bytes()
    )  # members have no folder, the bundle's names no archive
    assert (from_tar.returncode, from_tar.stderr) == (0, b"")
    assert near(cell(read(from_tar.stdout), 2, 4), COLOURS[6])


@pytest.mark.parametrize(
    ("bundle", "arguments", "message"),
    [
        (synthetic(thumbnails=False), (), "clip-effects --thumbnails 96"),
        (synthetic(), ("--units", "6:999"), "no unit 6:999"),
        (synthetic(), ("--units", "six"), "expected layer:neuron"),
        (synthetic(), ("--images-from", "-"), "standard input"),
        (synthetic(), ("--images-from", "tests/test_sheet.py"), "contains no top image of the bundle"),
        (synthetic(words=False), ("--sort", "residual"), "no words yet"),
    ],
)
def test_refusals_are_one_line(run: Run, bundle: Bundle, arguments: tuple[str, ...], message: str) -> None:
    done = run("sheet", *arguments, stdin=bundle.to_bytes())
    assert (done.returncode, done.stdout) == (2, b"")
    assert message in done.stderr.decode() and done.stderr.count(b"\n") == 1


def test_damaged_input_and_no_input(run: Run) -> None:
    data = synthetic().to_bytes()
    for damaged, message in ((b"", "empty input"), (data[:-9], "truncated"), (b"x" * 99, "not a safetensors file")):
        done = run("sheet", stdin=damaged)
        assert (done.returncode, done.stdout) == (1, b"")
        assert message in done.stderr.decode() and done.stderr.count(b"\n") == 1


def test_a_terminal_gets_no_picture(tmp_path: Path) -> None:
    (tmp_path / "b.safetensors").write_bytes(synthetic(1).to_bytes())
    master, slave = pty.openpty()
    words = [sys.executable, "-m", "cliptools.cli.sheet", str(tmp_path / "b.safetensors")]
    done = subprocess.run(words, stdout=slave, stderr=subprocess.PIPE, text=True, timeout=120, check=False)
    os.close(slave)
    os.close(master)
    assert done.returncode == 2
    assert "terminal" in done.stderr and done.stderr.count("\n") == 1


def test_without_words_it_says_so() -> None:
    assert "no words yet" in heading(synthetic(words=False), 3)[1]
    assert heading(synthetic(), 3) == ("emoji-vit2", "3 of 5 neurons · top images of 8")


def test_long_text_is_cut_to_its_width() -> None:
    from cliptools.render.contact_sheet import _font

    for width in (30, 80, 200):
        text = shorten_to_width(WORDS[1], "text", width)
        assert text.endswith("…") and WORDS[1].startswith(text[:-1].rstrip())
        assert _font("text").getlength(text) <= width
    assert shorten_to_width("short", "text", 200) == "short"
    assert shorten_to_width("long", "text", 1) == "…"


def test_text_is_brought_to_the_letters_of_the_font() -> None:
    assert to_font_characters("café −3 naïve—“x” Ω 日本") == "cafe -3 naive?“x” ? ??"
    assert to_font_characters("tab\tand\nline") == "tab?and?line"


def test_nothing_overflows_its_place() -> None:
    words = [("w" * 300, -0.5)] * 20
    picture = Image.new("RGB", (400, 100), "black")
    full = contact_sheet("h" * 500, "n" * 500, [SheetRow("t" * 300, "f" * 300, words, [picture, None])])
    assert words_in_row() == 8
    bare = contact_sheet("", "", [SheetRow("", "", (), [picture, None])])
    assert full.size == bare.size
    box = ImageChops.difference(full, bare).getbbox()
    assert box[0] >= MARGIN and box[2] <= full.width - MARGIN
    row = first_row(full)
    below = ImageChops.difference(full.crop((0, row, full.width, full.height)), bare.crop((0, row, full.width, full.height)))
    assert below.getbbox()[2] <= MARGIN + TEXT_WIDTH and below.getbbox()[3] <= full.height - row - MARGIN


def test_the_title_of_seen_words_ends_before_the_pictures() -> None:
    row = SheetRow("unit", "", [("dog", 0.3)], [Image.new("RGB", (9, 9))], seen=[("cat", 0.2)])
    plain = np.asarray(contact_sheet("a", "b", [row]))
    long = np.asarray(contact_sheet("a", "b", [replace(row, seen_title="sees (uncertain, 240 images)")]))
    columns = np.flatnonzero((plain != long).any((0, 2)))
    assert len(columns) and columns.max() < MARGIN + TEXT_WIDTH


def test_a_sheet_too_large_to_open_is_not_drawn(run: Run) -> None:
    assert most_rows(8) > 500
    many = most_rows(100) + 1
    done = run("sheet", "--images-per-unit", 100, "--head", many, stdin=synthetic(many, words=False).to_bytes())
    assert done.returncode == 2 and b"too large a picture" in done.stderr


def test_an_empty_selection_is_still_a_picture() -> None:
    assert contact_sheet("nothing", "", []).width >= TEXT_WIDTH
