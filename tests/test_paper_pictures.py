"""Pictures for papers: heat maps and label maps, plots of shifts, sheets as vectors, outlines of units, and names of files."""

import itertools
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
import torch
from helpers.explain import token_effects
from helpers.resnet_paths import SHAPES as RESNETS
from helpers.resnet_paths import pictures as resnet_pictures
from helpers.resnet_paths import random_resnet
from helpers.second_order import SHAPES, pictures, random_tower
from helpers.sheet import WORDS, synthetic
from PIL import Image, ImageFilter

from cliptools.analysis.margin_passes import explained_tower
from cliptools.analysis.margin_tower import unit_maps
from cliptools.cli.run.segment_images import Folder, Stems
from cliptools.errors import CliptoolsError, UsageError
from cliptools.render import contact_sheet, segment_plot, shift_plot
from cliptools.render.figure_file import kind_of
from cliptools.render.segment_plot import DrawnHeat, DrawnLabels, draw_heat_maps, draw_label_map, legend
from cliptools.render.shift_plot import Panel, axis_range, draw_shift, runs_in_order
from cliptools.unit_effects.factored import UnitBlock
from cliptools.unit_effects.resnet_pooling import LAYER, Pairs
from cliptools.unit_effects.vit_second_order import SecondOrder

SVG = "{http://www.w3.org/2000/svg}"
PICTURE = Image.fromarray(np.random.default_rng(1).integers(0, 255, (31, 47, 3), dtype=np.uint8))


def texts(svg: bytes) -> list[str]:
    """Return the texts of an SVG that are text and not paths."""
    return ["".join(element.itertext()) for element in ElementTree.fromstring(svg).iter(f"{SVG}text")]


def pages(pdf: bytes) -> int:
    assert pdf.startswith(b"%PDF")
    return len(re.findall(rb"/Type /Page\b", pdf))


def heat_map(seed: int) -> np.ndarray:
    heat = np.asarray(Image.fromarray(np.random.default_rng(seed).random((4, 5), dtype=np.float32)).resize((47, 31)))
    return (heat - heat.min()) / (heat.max() - heat.min())


def drawn(text: str, seed: int, cut: float = 0.5) -> DrawnHeat:
    heat = heat_map(seed)
    return DrawnHeat(text, heat, heat >= cut, -0.125 * seed, 0.25 * seed, cut)


@pytest.mark.parametrize("dark", [False, True])
def test_heat_maps_have_names_bars_with_their_scores_and_a_legend(dark: bool) -> None:
    maps = [drawn("cat", 1), drawn("a car for $5, & <red>", 2)]
    labels = DrawnLabels(np.where(maps[0].mask, 1, np.where(maps[1].mask, 2, 0)), ["", *(heat.text for heat in maps)])
    svg = draw_heat_maps(PICTURE, maps, labels, "svg", dark)
    found = texts(svg)
    for expected in ("picture", "cat", "a car for $5, & <red>", "label map", "−0.125", "0.25", "−0.25", "0.5"):
        assert expected in found, (expected, found)
    assert sum(text.startswith("mask ") for text in found) == 2
    assert {text.rsplit("  ", 1)[0] for text in found if text.endswith(" %") and "  " in text} == {
        "cat", "a car for $5, & <red>", segment_plot.BACKGROUND,
    }  # fmt: skip
    assert len(list(ElementTree.fromstring(svg).iter(f"{SVG}image"))) == 1 + 2 + 2 + 1  # picture, maps, bars and labels
    assert svg == draw_heat_maps(PICTURE, maps, labels, "svg", dark)
    assert pages(draw_heat_maps(PICTURE, maps, labels, "pdf", dark)) == 1


def test_a_flat_map_says_so_and_one_text_has_no_label_map() -> None:
    flat = DrawnHeat("cat", np.zeros((31, 47)), np.zeros((31, 47), bool), 0.25, 0.25, 0.5)
    found = texts(draw_heat_maps(PICTURE, [flat], None, "svg"))
    assert "0.25 everywhere" in found and "label map" not in found and not any("mask " in text for text in found)


def test_legends_name_the_classes_that_occur_in_stable_colours() -> None:
    random = np.random.default_rng(2)
    names = ["sky is the background", *(f"class {i}" for i in range(1, 400))]
    for present in ([0, 3, 17, 200], [3, 5, 399]):
        labels = random.choice(present, (31, 47))
        entries = legend(DrawnLabels(labels, names))
        assert {entry.name for entry in entries} == {names[label] if label else segment_plot.BACKGROUND for label in present}
        assert [entry.share for entry in entries] == sorted((np.mean(labels == label) for label in present), reverse=True)
        pixels = np.asarray(contact_sheet.label_overlay(Image.new("L", (47, 31), 128), labels))
        for entry in entries:
            label = 0 if entry.name == segment_plot.BACKGROUND else names.index(entry.name)
            assert (pixels[labels == label] == entry.colour).all()
        if 3 in present:
            assert next(entry.colour for entry in entries if entry.name == "class 3") == STABLE
        found = texts(draw_label_map(PICTURE, DrawnLabels(labels, names), "svg"))
        assert {text.rsplit("  ", 1)[0] for text in found} - {"picture", "label map"} == {entry.name for entry in entries}


STABLE = legend(DrawnLabels(np.full((1, 1), 3), ["", "a", "b", "class 3"]))[0].colour


@pytest.mark.parametrize(
    ("groups", "runs"),
    [
        (("beach", "city", "2021"), []),
        (("2021", "2020"), []),
        (("2019", "2020", "2022", "2023"), [[0, 1], [2, 3]]),
        (("2021-11", "2021-12", "2022-01", "2022-03"), [[0, 1, 2], [3]]),
        (("2021-01-01", "2021-02-01", "2021-03-01"), [[0, 1, 2]]),
        (("2021-13", "2021-14"), []),
        (("2021", "2021-05"), []),
        (("-1", "0.5"), [[0, 1]]),
        (("1",), []),
    ],
)
def test_only_groups_in_order_are_joined(groups: tuple[str, ...], runs: list[list[int]], monkeypatch: pytest.MonkeyPatch) -> None:
    assert runs_in_order(groups) == runs
    figures: list[Any] = []
    monkeypatch.setattr(shift_plot, "figure_bytes", lambda figure, *_: figures.append(figure) or b"")
    values = [0.1 * place for place in range(len(groups))]
    draw_shift(groups, [Panel("cat", values, values, [None] * len(groups), [False] * len(groups))], "share", Path("x.svg"))
    joined = {tuple(map(int, line.get_xdata())) for line in figures[0].axes[0].lines if len(set(line.get_ydata())) > 1}
    assert joined == {pair for run in runs for pair in itertools.pairwise(run)}


def test_axes_have_zero_or_say_that_they_have_not() -> None:
    for low, high in ((0.1, 0.3), (-0.2, 0.1), (-0.3, -0.1), (0.4, 0.42), (-0.42, -0.4), (0.0, 0.0), (0.2, 0.2)):
        bottom, top = axis_range([low], [high])
        assert bottom <= low <= high <= top and bottom < top
        assert (bottom <= 0 <= top) == (high - low == 0 or high - low >= 0.25 * max(abs(low), abs(high)))
    for mean, said in ((0.5, True), (0.02, False)):
        found = texts(
            draw_shift(("a", "b"), [Panel("cat", (mean, None), (0.01, None), (0.5, 0.25), (True, False))], "", Path("x.svg"))
        )
        assert any(text.startswith("axis from") for text in found) == said
        assert {"a", "b", "cat"} <= set(found) and "± 2 standard errors" in " ".join(found) and "red: alarm" in " ".join(found)
        assert "hollow" not in " ".join(found)
    assert pages(draw_shift(("a",), [Panel("cat", (0.5,), (None,), (None,), (False,))], "", Path("x.pdf"))) == 1


def test_vector_sheets_hold_text_and_pictures() -> None:
    from cliptools.cli.run.sheet import heading, unit_row

    bundle = synthetic()
    rows = [unit_row(bundle, row, [PICTURE, None, PICTURE]) for row in range(3)]
    arguments = (*heading(bundle, 3), rows)
    svg = contact_sheet.vector_sheet(*arguments, "svg", "where it is from")
    found = texts(svg)
    for word in ("cat", "café", "dog", "layer 6 neuron 100", "+1.00", arguments[0], arguments[1]):
        assert word in found, word
    assert sum(text.startswith("an extraordinarily") and text.endswith("…") for text in found) == 3 and len(WORDS) == 9
    root = ElementTree.fromstring(svg)
    assert len(list(root.iter(f"{SVG}image"))) == 9 and b"where it is from" in svg
    pdf = contact_sheet.vector_sheet(*arguments, "pdf", "where it is from")
    assert pages(pdf) == 1 and pdf == contact_sheet.vector_sheet(*arguments, "pdf", "where it is from")
    plain = contact_sheet.contact_sheet(*arguments)
    assert root.attrib["viewBox"].split()[2:] == [f"{0.72 * side:g}" for side in plain.size]


def test_files_of_sheets_by_their_endings(run: Callable[..., Any], tmp_path: Path) -> None:
    for name, start in (("a.svg", b"<?xml"), ("a.PDF", b"%PDF"), ("a.png", b"\x89PNG"), ("a", b"\x89PNG")):
        ended = run("sheet", "-o", tmp_path / name, stdin=synthetic().to_bytes())
        assert ended.returncode == 0 and (tmp_path / name).read_bytes().startswith(start), ended.stderr
    with pytest.raises(UsageError, match=r"--plot x\.gif: expected a name ending in \.png, \.svg or \.pdf"):
        kind_of(Path("x.gif"), "--plot")


@pytest.mark.parametrize("share", [0.5, 0.8])
def test_outlines_lie_where_the_map_is_above_its_threshold(share: float) -> None:
    heat = np.random.default_rng(4).normal(size=(5, 7)).astype(np.float32)
    grey = Image.new("RGB", (28, 20), "#808080")
    picture = contact_sheet.outlined(grey, heat, share)
    assert max(picture.size) == contact_sheet.OUTLINE_SIDE
    fine = np.asarray(Image.fromarray(heat).resize(picture.size, Image.Resampling.BILINEAR))
    above, pixels = fine >= share * fine.max(), np.asarray(picture)
    white, black = (pixels == 255).all(-1), (pixels == 0).all(-1)
    assert white.any() and above[white].all() and not above[black].any()
    inner = np.asarray(Image.fromarray(above).convert("L").filter(ImageFilter.MinFilter(3))) > 0
    assert white[above & ~inner].all()  # each pixel at the edge of the part above the threshold
    assert (pixels[~white & ~black] == 0x80).all()
    none = np.asarray(contact_sheet.outlined(grey, np.minimum(heat, 0), share))
    assert (none == 0x80).all()


def close(found: torch.Tensor, expected: torch.Tensor) -> None:
    torch.testing.assert_close(found.double(), expected.double(), rtol=1e-9, atol=1e-9 * float(expected.abs().max()))


def test_maps_of_a_neuron_are_its_tokens_effects_along_its_direction() -> None:
    visual, layer = random_tower(SHAPES[1]), 1
    images = pictures(visual, 3)
    r = torch.randn(visual.proj.shape[1], dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    tower = explained_tower(SecondOrder(visual))
    for neuron in (0, 5):
        maps = unit_maps(tower, tower.read(images), torch.tensor([layer, neuron, -1]), r)
        assert maps.shape[1:] == tower.grid
        for image, heat in zip(images, maps, strict=True):
            expected = (token_effects(visual, image, layer, neuron) @ r).sum(1)[tower.prefix :]  # (token)
            close(heat.flatten(), expected if expected.sum() > 0 else -expected)


def test_maps_of_a_pair_without_a_direction() -> None:
    visual = random_resnet(RESNETS[0])
    images, effect = resnet_pictures(visual, 2), Pairs(visual)
    tower = explained_tower(effect)
    unit = effect.units(LAYER)[3]
    S = tower.read(images)
    for number, heat in enumerate(unit_maps(tower, S, unit, None)):
        tokens = S.token_scalars(number, UnitBlock(LAYER, torch.tensor([3])))[tower.prefix :, 0, 0]
        close(heat.flatten(), tokens if tokens.sum() > 0 else -tokens)
        assert heat.sum() >= 0


def test_stems_differ_and_stay() -> None:
    stems = Stems()
    names = ("a/photo.jpg", "a/photo.png", "a/photo.png.jpg", "photo.jpg", "../photo.jpg", "photo")
    found = [stems.of(name) for name in names]
    assert found[:2] == ["a/photo", "a/photo.png"] and len(set(found)) == len(names)
    assert [stems.of(name) for name in reversed(names)] == found[::-1]
    assert not any(part in (".", "..") for stem in found for part in stem.split("/"))


def records(image: str) -> bytes:
    return f'[{{"image": "{image}", "threshold": 0.5, "text": "cat"}}]'.encode()


@pytest.mark.parametrize("order", [("photo.jpg", "photo.png"), ("photo.png", "photo.jpg")])
def test_resume_finds_the_records_of_each_image(tmp_path: Path, order: Sequence[str]) -> None:
    (tmp_path / "photo.segments.json").write_bytes(records("photo.png"))
    folder = Folder(tmp_path, True)
    found = {name: folder.finished(name, {"threshold": 0.5}, ["cat"]) for name in order}
    assert not found["photo.jpg"] and found["photo.png"][0]["image"] == "photo.png"
    assert {name: folder.stems.of(name) for name in order} == {"photo.jpg": "photo.jpg", "photo.png": "photo"}


def test_resume_reads_the_folders_of_earlier_versions(tmp_path: Path) -> None:
    (tmp_path / "photo.jpg").mkdir()
    (tmp_path / "photo.jpg" / "segments.json").write_bytes(records("photo.jpg"))
    folder = Folder(tmp_path, True)
    assert folder.finished("photo.jpg", {"threshold": 0.5}, ["cat"])[0]["text"] == "cat"
    with pytest.raises(CliptoolsError, match="threshold"):
        folder.finished("photo.jpg", {"threshold": 0.25}, ["cat"])
