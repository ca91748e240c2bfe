"""clip-sheet: content of its pictures, outlines of where units act, and its output and errors as a process."""

import io
import os
import pty
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.advgen_input import inside
from helpers.explain import pair_token_effects, token_effects
from helpers.sheet import COLOURS, WORDS, Colours, cell, first_row, near, pictures_of_pdf, pictures_of_svg, synthetic
from helpers.tiny_suite import Suite, done
from PIL import Image, ImageChops, ImageFilter

from cliptools.analysis.margin_passes import explained_tower
from cliptools.analysis.margin_tower import unit_maps
from cliptools.cli.run.sheet import OUTLINE_NOTE, heading
from cliptools.front.unit_records import order_units
from cliptools.images.tar import write_end, write_member
from cliptools.io.bundle import Bundle
from cliptools.models.load import load_model
from cliptools.models.preprocessing import seen_picture
from cliptools.render.contact_sheet import (
    CELL,
    GAP,
    MARGIN,
    SHARPNESS,
    TEXT_WIDTH,
    Lettering,
    SheetRow,
    contact_sheet,
    lay_out,
    most_rows,
    to_font_characters,
    words_in_row,
)
from cliptools.unit_effects.select import recorded_effect

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


def test_columns_below_a_row_with_seen_words_say_what_they_are() -> None:
    """Pairs have no seen words: below their neuron, both columns are headed as written words."""
    image = Image.new("RGB", (8, 8))
    words = [(f"word{n}", 0.9 - n / 10) for n in range(6)]
    neuron = SheetRow("6:1", "", words, [image], seen=[("cat", 0.5)], seen_title="sees")
    pair = SheetRow("6:1.0", "", words, [image], inner=True)
    few = lay_out("a", "b", [neuron, SheetRow("6:1.1", "", words[:2], [image], inner=True)], Lettering())
    assert [text.text for text in few.texts if text.text in ("writes", "sees")] == ["writes", "sees", "writes"]
    for rows, heads in (([neuron, pair], ["writes", "sees", "writes", "writes"]), ([pair], [])):
        sheet = lay_out("a", "b", rows, Lettering())
        told = [text.text for text in sheet.texts]
        assert [text for text in told if text in ("writes", "sees")] == heads
        room = words_in_row(with_seen=True)  # of the neuron; the pair has two columns
        assert [told.count(word) for word, _ in words] == [len(rows)] * room + [1] * (6 - room)


def test_long_text_is_cut_to_its_width() -> None:
    from cliptools.render.contact_sheet import _font

    for width in (30, 80, 200):
        text = Lettering().shortened(WORDS[1], "text", width)
        assert text.endswith("…") and WORDS[1].startswith(text[:-1].rstrip())
        assert _font("text").getlength(text) <= width
    assert Lettering().shortened("short", "text", 200) == "short"
    assert Lettering().shortened("long", "text", 1) == "…"


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


UNITS, IMAGES = 3, 2  # rows and columns of the sheets with outlines
SHOWN = ("--sort", "index", "--head", UNITS, "--images-per-unit", IMAGES)


def measured(path: Path) -> Bundle:
    from helpers.bundle import read as read_bytes

    return read_bytes(path.read_bytes())


def seen(suite: Suite, bundle: Bundle, name: str, place: tuple[int, int]) -> torch.Tensor:
    """Return the pixels that the model reads of a unit's top image."""
    image = bundle.text_list("images")[bundle["top_image"][place]]
    model = load_model(name, device="cpu")
    return model.transform(Image.open(suite.images / image).convert("RGB"))


def check_outline(drawn: np.ndarray, picture: Image.Image, heat: np.ndarray) -> None:
    """Check that a picture is white just inside of where its map reaches half of its largest value, and unchanged elsewhere."""
    side = (SHARPNESS * CELL,) * 2
    plain = np.asarray(picture.resize(side, Image.Resampling.LANCZOS))
    fine = np.asarray(Image.fromarray(heat.astype(np.float32)).resize(side, Image.Resampling.BILINEAR))
    above = Image.fromarray((fine >= 0.5 * fine.max()).astype(np.uint8) * 255)
    inner, outer = (np.asarray(above.filter(kind(7))) > 0 for kind in (ImageFilter.MinFilter, ImageFilter.MaxFilter))
    edge = (np.asarray(above) > 0) & ~inner
    assert edge.any() == bool(~np.asarray(above).all()) and (drawn[edge] == 255).all(-1).sum() >= 0.99 * edge.sum()
    far = inner | ~outer
    assert (drawn[far] == plain[far]).all(-1).sum() >= 0.99 * far.sum()


@pytest.mark.parametrize("ending", ["svg", "pdf"])
def test_outlines_lie_where_the_tokens_of_neurons_act(suite: Suite, tmp_path: Path, ending: str) -> None:
    """The maps are those of the slow oracle in float64; the bundle comes from standard input."""
    file, sheet = suite.bundle("second"), tmp_path / f"sheet.{ending}"
    ended = inside("sheet", *SHOWN, "--outlines", "--images-from", suite.images, "-o", sheet, stdin=file.read_bytes())
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, b"", b"")
    drawn = (pictures_of_svg if ending == "svg" else pictures_of_pdf)(sheet.read_bytes())
    assert len(drawn) == UNITS * IMAGES
    assert ending == "pdf" or OUTLINE_NOTE[:9].encode() in sheet.read_bytes()
    bundle, model = measured(file), load_model(suite.vit, device="cpu")
    visual: Any = model.clip.visual.double()
    for number, picture in enumerate(drawn):
        row, place = divmod(number, IMAGES)
        pixels = seen(suite, bundle, suite.vit, (row, place))
        layer, neuron, _ = bundle["unit"][row].tolist()
        with torch.no_grad():
            r = torch.from_numpy(bundle["direction"][row]).double()
            tokens = (token_effects(visual, pixels.double(), layer, neuron) @ r).sum(1)[1:]  # without the class token
        heat = (tokens if tokens.sum() > 0 else -tokens).unflatten(0, (int(len(tokens) ** 0.5),) * 2)
        check_outline(picture, seen_picture(pixels, model.preprocessing), heat.numpy())


def test_the_png_is_the_picture_of_clip_top(suite: Suite, tmp_path: Path) -> None:
    shown, sheets = ("--images-per-unit", IMAGES, "--sort", "index", "--head", UNITS), [tmp_path / "a.png", tmp_path / "b.png"]
    for name in ("second", "pooled", "raw"):
        file = suite.bundle(name)
        done("top", suite.images, *shown, "--sheet", sheets[0], "--outlines", "--bundle", file, "--workers", 0)
        done("sheet", *shown, "--images-from", suite.images, "--outlines", "-o", sheets[1], file)
        left = MARGIN + TEXT_WIDTH
        first, second = (Image.open(sheet).convert("RGB").crop((left, 70, 900, 999)) for sheet in sheets)
        assert ImageChops.difference(first, second).getbbox() is None
        plain = Image.open(io.BytesIO(done("sheet", *shown, "--images-from", suite.images, file))).convert("RGB")
        assert ImageChops.difference(first, plain.crop((left, 70, 900, 999))).getbbox() is not None


@pytest.mark.parametrize("name", ["pooled", "raw", "heads of the pooling"])
def test_outlines_of_a_resnet(suite: Suite, tmp_path: Path, name: str) -> None:
    """Pairs have the maps of the slow oracle; those of neurons and heads are those that clip-top draws."""
    file, sheet = suite.bundle(name), tmp_path / "sheet.svg"
    if name.startswith("heads"):
        file = tmp_path / "heads.safetensors"
        done("effects", suite.images, "--model", suite.resnet, "--units", "heads", "--top-images", 3, "-o", file)
    shown = ("--sort", "index", "--images-per-unit", IMAGES, "--head", 2)
    done("sheet", *shown, "--outlines", "--images-from", suite.images, "-o", sheet, file)
    bundle, model = measured(file), load_model(suite.resnet, device="cpu")
    tower, visual = explained_tower(recorded_effect(model.clip, bundle.header.settings)), model.clip.visual
    for number, picture in enumerate(pictures_of_svg(sheet.read_bytes())):
        row, place = divmod(number, IMAGES)
        pixels = seen(suite, bundle, suite.resnet, (row, place))
        if name == "pooled":
            _, neuron, head = bundle["unit"][row].tolist()
            with torch.no_grad():
                phi = pair_token_effects(visual, pixels, neuron, head)  # (token, d), all along one direction
            size = phi @ phi.sum(0)
            heat = size[1:] if float(size[1:].sum()) > 0 else -size[1:]
            heat = heat.unflatten(0, tower.grid)
        else:
            r = torch.from_numpy(bundle["direction"][row])
            heat = unit_maps(tower, tower.read(pixels[None]), torch.from_numpy(bundle["unit"][row]).long(), r)[0]
        check_outline(picture, seen_picture(pixels, model.preprocessing), heat.numpy())


def test_unreadable_images_leave_a_grey_cell_or_end_the_run(suite: Suite, tmp_path: Path) -> None:
    file, bundle = suite.bundle("second"), measured(suite.bundle("second"))
    photos = Path(shutil.copytree(suite.images, tmp_path / "photos"))
    broken = bundle.text_list("images")[bundle["top_image"][0, 1]]
    (photos / broken).write_bytes(b"broken")
    words = ("sheet", "--units", "1:0", "--images-per-unit", IMAGES, "--images-from", photos)
    sheet = inside(*words, "--outlines", file)
    assert sheet.returncode == 0 and sheet.stderr.decode() == f"warning: {broken}: skipped, text, not an image\n"
    drawn = read(sheet.stdout)
    assert near(cell(drawn, 0, 1), (0xF1,) * 3) and not near(cell(drawn, 0, 0), (0xF1,) * 3)
    for more in (("--outlines", "--strict"), ("--strict",)):
        strict = inside(*words, *more, file)
        assert (strict.returncode, strict.stdout) == (1, b"")
        assert strict.stderr.decode() == f"clip-sheet: {broken}: text, not an image\n"


def test_outlines_of_rendered_scenes_need_no_path(tmp_path: Path) -> None:
    file = tmp_path / "scenes.safetensors"
    done("effects", "--limit", 5, "--layers", 6, "--top-images", 2, "--batch-size", 5, "-o", file)
    sheet = read(done("sheet", "--head", 1, "--outlines", file))
    assert sheet.width == 2 * MARGIN + TEXT_WIDTH + 2 * (CELL + GAP)
    pixels = np.asarray(sheet)[:, MARGIN + TEXT_WIDTH + GAP :]
    assert (pixels.max(-1) < 40).any()  # the dark line around an outline, made smaller


@pytest.mark.parametrize(
    ("name", "words", "code", "message"),
    [
        ("first", (), 2, "--outlines: a bundle of first effects; only second-order and pooled effects have maps of tokens"),
        ("heads", (), 2, "--outlines: a bundle of first effects"),
        ("indirect", (), 2, "--outlines: a bundle of indirect effects"),
        ("second", (), 2, "Name their folder or tar as --images-from"),
        ("second", ("--images-from", "tests/test_sheet.py"), 2, "--images-from: contains no top image of the bundle"),
        ("second", ("--images-from", "nowhere/"), 1, "nowhere/: no such file or folder"),
        ("second", ("--images-from", "IMAGES", "--device", "gpu"), 2, "gpu"),
    ],
)
def test_refusals_of_outlines_are_one_line(suite: Suite, name: str, words: tuple[str, ...], code: int, message: str) -> None:
    given = [suite.images if word == "IMAGES" else word for word in words]
    ended = inside("sheet", "--outlines", *given, stdin=suite.bundle(name).read_bytes())
    assert (ended.returncode, ended.stdout) == (code, b"") and message in ended.stderr.decode()
    assert ended.stderr.count(b"\n") == 1


def test_a_model_or_unit_that_is_not_there_is_one_line(suite: Suite) -> None:
    bundle = measured(suite.bundle("second"))
    unit = bundle["unit"].copy()
    unit[0, 1] = 99_999
    header = replace(bundle.header, model=bundle.header.model | {"name": "local-dir:nowhere"})
    for other, message in (
        (replace(bundle, tensors=bundle.tensors | {"unit": unit}), "99999"),
        (replace(bundle, header=header), "nowhere"),
    ):
        words = ("sheet", "--sort", "index", "--outlines", "--images-from", suite.images)
        ended = inside(*words, stdin=other.to_bytes())
        assert (ended.returncode, ended.stdout) == (1, b"") and message in ended.stderr.decode()
        assert ended.stderr.count(b"\n") == 1
