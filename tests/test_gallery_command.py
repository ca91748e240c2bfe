"""clip-gallery as a process: content of its pages, errors, and attacks by texts."""

import base64
import hashlib
import io
import json
import re
import subprocess
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers import ROOT
from helpers.gallery_command import ATTACKS, hostile, records, units_bundle
from helpers.pipes import shell
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from cliptools.cli.app import ORDERS
from cliptools.front.unit_records import order_units, signed_words
from cliptools.io.bundle import Bundle
from cliptools.render.gallery_page import data_block

Run = Callable[..., subprocess.CompletedProcess[bytes]]


class Reader(HTMLParser):
    """Collects the elements of a page with their attributes, and the texts of its scripts."""

    def __init__(self, page: bytes) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.texts: dict[str, list[str]] = {"script": [], "style": [], "title": []}
        self.inside = ""
        self.feed(page.decode("utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))
        self.texts.get(tag, []).append("")
        self.inside = tag

    def handle_endtag(self, tag: str) -> None:
        self.inside = ""

    def handle_data(self, data: str) -> None:
        if self.inside in self.texts:
            self.texts[self.inside][-1] += data

    @property
    def data(self) -> Any:
        return json.loads(self.texts["script"][0])

    @property
    def policy(self) -> str:
        return next(
            str(a["content"]) for tag, a in self.found if tag == "meta" and a.get("http-equiv") == "Content-Security-Policy"
        )


def read(done: subprocess.CompletedProcess[bytes]) -> Any:
    """Return the data of a page that was written without a message."""
    assert (done.returncode, done.stderr) == (0, b"")
    return Reader(done.stdout).data


def test_a_page_holds_what_the_bundle_says(run: Run, tmp_path: Path) -> None:
    bundle = units_bundle()
    data = read(run("gallery", "--images-per-unit", 4, "--words", 3, stdin=bundle.to_bytes()))
    assert data["unit"] == bundle["unit"].tolist() and data["title"] == "emoji-vit2" and data["kind"] == "neurons"
    assert data["notes"] == "7 of 7 neurons · top images of 50"
    texts, listed = bundle.text_list("words")["texts"], bundle.text_list("images")
    for row in range(bundle.units):
        words = [data["texts"][j] for j in data["word"][row]]
        assert words == [texts[j] for j, _ in signed_words(bundle, row)[:3]]
        assert data["coefficient"][row] == pytest.approx([c for _, c in signed_words(bundle, row)[:3]], rel=1e-2)
        assert [data["images"][i] for i in data["image"][row]] == [listed[i] for i in bundle["top_image"][row][:4]]
        assert data["norm"][row] == pytest.approx(bundle["top_norm"][row][:4], rel=1e-2)
        assert data["curve"][row] == pytest.approx(bundle["top_norm"][row], rel=1e-2)
        for name in ("explained", "explained_all", "residual", "threshold"):
            assert data[name][row] == pytest.approx(bundle[name][row], rel=1e-2)
    assert data["ranks"] == [1, 2, 3, 4, 5, 6]
    assert list(data["orders"]) == ["clear", *(order for order in ORDERS if order != "clear")]
    assert all(order == order_units(bundle, name).tolist() for name, order in data["orders"].items())


def test_each_picture_is_there_once(run: Run) -> None:
    bundle = units_bundle(40)
    data = read(run("gallery", stdin=bundle.to_bytes()))
    assert len(data["pictures"]) == len(data["images"]) == len(set(data["images"])) == 11
    for name, number in zip(data["images"], data["picture"], strict=True):
        i = bundle.text_list("images").index(name)
        first, last = bundle["thumbnail_offsets"][i : i + 2]
        assert base64.b64decode(data["pictures"][number]) == bundle["thumbnails"][first:last].tobytes()


def test_the_first_of_an_order(run: Run) -> None:
    bundle = units_bundle()
    data = read(run("gallery", "--sort", "norm", "--head", 3, stdin=bundle.to_bytes()))
    first = order_units(bundle, "norm")[:3]
    assert data["unit"] == bundle["unit"][np.sort(first)].tolist()
    assert next(iter(data["orders"])) == "norm"
    assert [data["unit"][row] for row in data["orders"]["norm"]] == bundle["unit"][first].tolist()
    by_explained = [row for row in order_units(bundle, "explained") if row in first]
    assert [data["unit"][row] for row in data["orders"]["explained"]] == bundle["unit"][by_explained].tolist()


def test_equal_runs_give_equal_bytes_wherever_they_go(run: Run, tmp_path: Path) -> None:
    bundle, out = units_bundle(), tmp_path / "gallery.html"
    (tmp_path / "b.safetensors").write_bytes(bundle.to_bytes())
    more = records(bundle, tmp_path)
    printed = run("gallery", tmp_path / "b.safetensors", *more)
    done = run("gallery", "-o", out, *more, stdin=bundle.to_bytes())
    assert done.returncode == 0 and done.stdout == b"" and out.read_bytes() == printed.stdout


def test_units_without_words_or_pictures_or_with_heads(run: Run) -> None:
    whole = units_bundle(thumbnails=False, heads=True)
    done = run("gallery", stdin=whole.to_bytes())
    assert done.returncode == 0 and b"warning: 11 of 11 images without a picture; clip-effects --thumbnails" in done.stderr
    data = Reader(done.stdout).data
    assert data["kind"] == "pairs" and data["unit"][1] == [6, 101, 1] and set(data["picture"]) == {-1}
    kept = {k: v for k, v in whole.tensors.items() if k not in ("word", "coefficient", "words", "residual")}
    data = Reader(run("gallery", stdin=Bundle(whole.header, kept).to_bytes()).stdout).data
    assert "word" not in data and "no words yet" in data["notes"] and "residual" not in data["orders"]


def test_pictures_from_files(run: Run, tmp_path: Path) -> None:
    bundle = units_bundle(thumbnails=False)
    place = tmp_path / "photos"
    place.mkdir()
    for i, name in enumerate(bundle.text_list("images")):
        Image.new("RGB", (400, 200), (i, 0, 0)).save(tmp_path / name)
    (place / "00 a.png").write_bytes(b"broken")
    (place / "01 a.png").unlink()
    done = run("gallery", "--images-from", tmp_path, "--pixels", 64, stdin=bundle.to_bytes())
    assert done.returncode == 0 and b"photos/00 a.png: " in done.stderr and b"2 of 11 images without a picture" in done.stderr
    data = Reader(done.stdout).data
    missing = {name for name, i in zip(data["images"], data["picture"], strict=True) if i < 0}
    assert missing == {"photos/00 a.png", "photos/01 a.png"}
    assert Image.open(io.BytesIO(base64.b64decode(data["pictures"][0]))).size == (64, 32)
    for path in place.iterdir():
        path.rename(path.with_name(f"x{path.name}"))
    done = run("gallery", "--images-from", tmp_path, "-o", tmp_path / "x.html", stdin=bundle.to_bytes())
    assert done.returncode == 2 and b"none of the images is there" in done.stderr and not (tmp_path / "x.html").exists()


def test_records_of_other_commands(run: Run, tmp_path: Path) -> None:
    bundle = units_bundle()
    done = run("gallery", *records(bundle, tmp_path), stdin=bundle.to_bytes())
    assert done.returncode == 0 and done.stderr.startswith(b"warning: 1 of 12 images without a picture")
    data = Reader(done.stdout).data
    concept, other = data["concepts"]
    assert data["images"][concept["image"]] == bundle.text_list("images")[0] and data["images"][other["image"]] == "elsewhere.png"
    assert concept["concepts"] == [["dog", 2.5]] and concept["active"] == 4
    assert concept["neurons"] == [{"unit": [5, 100, -1], "norm": 3.5, "words": [["dog", 0.5]]}]
    (mask,) = data["masks"]
    assert (mask["text"], mask["share"], mask["image"]) == ("dog", 0.5, concept["image"])
    assert Image.open(io.BytesIO(base64.b64decode(data["pictures"][mask["picture"]]))).getpixel((3, 3))[0] > 200
    fools, other = data["fooled"]
    assert fools["fooled"] and not other["fooled"] and other["picture"] == -1 and fools["margin"] == 0.07
    assert Image.open(io.BytesIO(base64.b64decode(data["pictures"][fools["picture"]]))).size == (160, 107)
    assert fools["check"] == {"by": "scene", "depicted": True, "predicted": False}
    margin, alone = data["explained_margins"]
    assert (margin["a"], margin["b"], margin["margin"], alone["b"]) == ("cat", "dog", -2.5, None)
    assert margin["parts"] == [["units", -3.0], ["rest", 0.5]] and margin["image"] == concept["image"]
    (unit,) = margin["units"]
    assert (unit["unit"], unit["excess"], unit["sees"], unit["writes"]) == ([5, 100, -1], 1.25, ["boat"], ["dog", "sea"])
    assert Image.open(io.BytesIO(base64.b64decode(data["pictures"][unit["picture"]]))).size == (50, 20)


def test_margins_of_clip_explain_itself(run: Run, tmp_path: Path) -> None:
    """The page shows the numbers of clip-explain's own lines, each with its map."""
    for done in (
        run("effects", "--limit", 40, "--layers", 6, "-o", tmp_path / "e.safetensors"),
        run("decompose", "--m", 2, tmp_path / "e.safetensors", "-o", tmp_path / "w.safetensors"),
        run("scenes", "--count", 2, "--out-dir", tmp_path / "s"),
        run("explain", tmp_path / "s" / "images", "--text", "cat", "--text", "violin", "--head", 3, "--maps", tmp_path / "maps",
            "--bundle", tmp_path / "w.safetensors", "-o", tmp_path / "why.jsonl"),
    ):  # fmt: skip
        assert done.returncode == 0, done.stderr.decode()
    options = ["--explained", tmp_path / "why.jsonl", "--maps", tmp_path / "maps", "--images-from", tmp_path / "s" / "images"]
    data = Reader(run("gallery", "--head", 5, *options, tmp_path / "w.safetensors").stdout).data
    lines = [json.loads(line) for line in (tmp_path / "why.jsonl").read_text().splitlines()]
    for record, line in zip(data["explained_margins"], lines, strict=True):
        assert record["margin"] == pytest.approx(line["margin"], rel=0.01) and data["images"][record["image"]] == line["image"]
        assert sum(value for _, value in record["parts"]) == pytest.approx(record["margin"], abs=0.1)
        assert [unit["unit"][:2] for unit in record["units"]] == [[unit["layer"], unit["neuron"]] for unit in line["units"]]
        assert all(unit["picture"] >= 0 for unit in record["units"])


def test_label_maps(run: Run, tmp_path: Path) -> None:
    bundle = units_bundle()
    Image.new("P", (4, 4)).save(tmp_path / "overlay.png")
    found = [{"label": 1, "class": "cat", "share": 0.75, "box": [0, 0, 3, 3]}]
    (tmp_path / "segments.json").write_text(json.dumps([{"image": "z.png", "found": found, "overlay": "overlay.png"}]))
    data = Reader(run("gallery", "--masks", tmp_path, stdin=bundle.to_bytes()).stdout).data
    assert data["masks"][0]["found"] == [["cat", 0.75]] and "text" not in data["masks"][0]


def test_a_folder(run: Run, tmp_path: Path) -> None:
    bundle, place = units_bundle(), tmp_path / "new" / "gallery"
    done = run("gallery", "--folder", place, stdin=bundle.to_bytes())
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")
    page = Reader((place / "index.html").read_bytes())
    assert page.data["prefix"] == "pictures/" and "img-src 'self'" in page.policy
    there = sorted(str(path.relative_to(place / "pictures")) for path in place.rglob("*.jpg"))
    assert there == page.data["pictures"] and len(there) == 11
    assert all((place / "pictures" / name).read_bytes().startswith(b"\xff\xd8\xff") for name in there)
    again = run("gallery", "--folder", place, stdin=bundle.to_bytes())
    assert again.returncode == 1 and again.stderr.endswith(b"gallery: not empty; name a new folder\n")
    (tmp_path / "bad.jsonl").write_text("{}\n")
    failed = run("gallery", "--folder", tmp_path / "other", "--fooled", tmp_path / "bad.jsonl", stdin=bundle.to_bytes())
    assert failed.returncode == 1 and sorted(p.name for p in tmp_path.iterdir()) == ["bad.jsonl", "new"]
    assert [p.name for p in place.parent.iterdir()] == ["gallery"]


def test_a_reader_that_leaves_and_a_folder_that_is_not_there(tmp_path: Path) -> None:
    (tmp_path / "b.safetensors").write_bytes(units_bundle().to_bytes())
    ended = shell(f"clip-gallery {tmp_path}/b.safetensors | head -c 10")
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, b"<!doctype ", b"")
    ended = shell(f"clip-gallery {tmp_path}/b.safetensors -o {tmp_path}/none/x.html")
    assert ended.returncode == 1 and b"No such file" in ended.stderr and ended.stderr.count(b"\n") == 1


def test_a_page_names_nothing_of_the_network(run: Run, tmp_path: Path) -> None:
    bundle = units_bundle()
    page = run("gallery", *records(bundle, tmp_path), stdin=bundle.to_bytes()).stdout
    assert set(re.findall(rb"\w+://[^\s\"']*", page)) == {b"http://www.w3.org/2000/svg"}  # the name of a kind of element
    reader = Reader(page)
    assert not any(tag in ("img", "iframe", "object", "form", "base") for tag, _ in reader.found)
    assert not any(name.startswith("on") or name in ("src", "style") for _, attributes in reader.found for name in attributes)
    assert [a for tag, a in reader.found if tag == "link"] == [{"rel": "icon", "href": "data:,"}]


def test_the_policy_lets_only_its_own_script_run(run: Run) -> None:
    page = Reader(run("gallery", stdin=units_bundle().to_bytes()).stdout)
    allowed = dict(part.strip().split(" ", 1) for part in page.policy.split(";"))
    assert allowed["default-src"] == "'none'" and allowed["img-src"] == "data:" and allowed["base-uri"] == "'none'"
    for kind, text in (("script-src", page.texts["script"][1]), ("style-src", page.texts["style"][0])):
        assert allowed[kind] == f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"
    assert "unsafe" not in page.policy and len(page.texts["script"]) == 2
    assert not re.search(
        r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\b|new Function|fetch\(", page.texts["script"][1]
    )


def test_texts_and_names_cannot_become_markup(run: Run, tmp_path: Path) -> None:
    bundle, options = hostile(tmp_path)
    done = run("gallery", *options, stdin=bundle.to_bytes())
    assert done.returncode == 0, done.stderr.decode()
    plain, attacked = Reader(run("gallery", stdin=units_bundle().to_bytes()).stdout), Reader(done.stdout)
    assert attacked.found == plain.found and attacked.texts["script"][1] == plain.texts["script"][1]
    assert set(attacked.data["texts"]) <= set(ATTACKS) and attacked.data["title"] == f"{ATTACKS[0]} ({ATTACKS[3]})"
    assert attacked.texts["title"][0].startswith(ATTACKS[0])
    block = re.search(rb'<script id="data"[^>]*>(.*?)</script>', done.stdout, re.DOTALL)
    assert block and not re.search(rb"[<>&\x80-\xff]", block[1]) and b"\\u2028" in block[1]


@pytest.mark.parametrize("text", [*ATTACKS, "\ud800 half", "\U0001f600", "é\u2029\x7f"])
def test_a_data_block_is_harmless_and_says_the_same(text: str) -> None:
    block = data_block({text: [text]})
    assert json.loads(block) == {text: [text]} and block.isascii() and not set("<>&\n") & set(block)


@settings(max_examples=300, deadline=None)
@given(st.recursive(st.text() | st.integers() | st.none(), lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner)))
def test_any_data_comes_back_and_has_no_markup(data: Any) -> None:
    block = data_block(data)
    assert json.loads(block) == data and block.isascii() and not set("<>&\n\r") & set(block)


BAD = [
    ("--concepts", "", "empty, expected lines of clip-concepts"),
    ("--concepts", "no json\n", "line 1: expected a JSON object"),
    ("--concepts", '{"image": "a", "concepts": 3}\n', "line 1: not a record of clip-concepts"),
    ("--concepts", '{"image": "a", "concepts": [3]}\n', "`concepts` should be a list of objects"),
    ("--concepts", '{"image": "a", "concepts": [{"word": "w", "score": NaN}]}\n', "(NaN is not JSON)"),
    ("--concepts", '{"image": "a", "concepts": [{"word": "w", "score": 1' + "0" * 400 + "}]}\n", "is too large)"),
    ("--concepts", '{"image": "a", "concepts": [{"word": "w", "score": "1"}]}\n', "`score` should be a number"),
    ("--concepts", '{"image": 3, "concepts": []}\n', "`image` should be a text, found 3"),
    ("--concepts", '{"image": "a", "concepts": [], "model": {"name": "other", "sha256": "1"}}\n', "another model (other)"),
    ("--fooled", '{"depict": "a", "predict": "b"}\n', "`margin` should be a number, found nothing"),
    ("--fooled", '{"depict": "a", "predict": "b", "margin": 1, "fooled": "yes"}\n', "`fooled` should be true or false"),
    ("--fooled", '{"word": "a"}\n', "`depict` should be a text, found nothing"),
    ("--explained", "", "empty, expected lines of clip-explain"),
    ("--explained", '{"image": "a", "a": "b", "margin": 1}\n', "`parts` should be an object, found nothing"),
    ("--explained", '{"image": "a", "a": "b", "margin": 1, "parts": {"rest": "x"}}\n', "`rest` should be a number"),
    (
        "--explained",
        '{"image": "a", "a": "b", "margin": 1, "parts": {}, "units": [{"layer": 5}]}\n',
        "`share` should be a number",
    ),
]


@pytest.mark.parametrize(("option", "lines", "said"), BAD)
def test_bad_records_are_refused_in_one_line(run: Run, tmp_path: Path, option: str, lines: str, said: str) -> None:
    (tmp_path / "r.jsonl").write_text(lines)
    done = run("gallery", option, tmp_path / "r.jsonl", "-o", tmp_path / "x.html", stdin=units_bundle(2).to_bytes())
    assert done.returncode == 1 and said in done.stderr.decode() and done.stderr.count(b"\n") == 1
    assert not (tmp_path / "x.html").exists()


@pytest.mark.parametrize("name", ["../secret.png", "/etc/hostname", "link/secret.png", "x\0y"])
def test_masks_lie_in_their_folder(run: Run, tmp_path: Path, name: str) -> None:
    Image.new("RGB", (4, 4)).save(tmp_path / "secret.png")
    (tmp_path / "m").mkdir()
    (tmp_path / "m" / "link").symlink_to(tmp_path)
    (tmp_path / "m" / "segments.json").write_text(
        json.dumps([{"image": "a", "text": "b", "overlay": name, "score": 1, "share": 1}])
    )
    done = run("gallery", "--masks", tmp_path / "m", stdin=units_bundle(2).to_bytes())
    assert done.returncode == 1 and b"which is not in it" in done.stderr and done.stderr.count(b"\n") == 1


def test_other_things_are_refused(run: Run, tmp_path: Path) -> None:
    data = units_bundle(2).to_bytes()
    (tmp_path / "segments.json").write_text("[")
    for options, code, said in (
        (["--masks", tmp_path], 1, "damaged, expected records of clip-segment"),
        (["--masks", tmp_path / "none"], 1, "no such folder"),
        (["--concepts", tmp_path / "none"], 1, "No such file or directory"),
        (["--folder", tmp_path / "x", "-o", tmp_path / "y"], 2, "-o writes one file and --folder many"),
        (["--maps", tmp_path], 2, "--maps needs --explained"),
        (["--images-from", "-"], 2, "cannot both come from standard input"),
    ):
        done = run("gallery", *options, stdin=data)
        assert done.returncode == code and said in done.stderr.decode() and done.stderr.count(b"\n") == 1, done.stderr
    bundle = units_bundle(2)
    for name, value, said in (
        ("top_norm", bundle["top_norm"][:, 0], "tensor `top_norm` has shape [2], expected 2 dimensions"),
        ("coefficient", bundle["coefficient"][:, :2], "texts: `word` has 5, `coefficient` has 2"),
        ("thumbnails", np.zeros_like(bundle["thumbnails"]), "damaged"),
    ):
        done = run("gallery", stdin=Bundle(bundle.header, bundle.tensors | {name: np.ascontiguousarray(value)}).to_bytes())
        assert done.returncode == 1 and said in done.stderr.decode() and done.stderr.count(b"\n") == 1, done.stderr


def test_the_page_goes_into_the_wheel() -> None:
    import tomllib

    patterns = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["package-data"]["cliptools"]
    packed = {path for pattern in patterns for path in (ROOT / "cliptools").glob(pattern)}
    parts = {
        path for path in (ROOT / "cliptools" / "render" / "gallery_page").iterdir() if path.suffix in (".js", ".css", ".html")
    }
    assert len(parts) == 8 and parts <= packed
