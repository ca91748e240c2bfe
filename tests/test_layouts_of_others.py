"""Lists, folders and streams from other machines and tools, through the commands."""

import gzip
import io
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.advgen_input import inside
from helpers.data_layout import bundle, pack, paint  # noqa: F401  # the fixture

from cliptools.cli.surroundings import by_lines
from cliptools.console import count_of, verb_form
from cliptools.errors import CliptoolsError, ImageError, StreamError
from cliptools.images import formats
from cliptools.images.classification import open_classified
from cliptools.images.classification.label_files import by_file
from cliptools.images.decode import decode
from cliptools.images.groups import Columns, ImageNames, place_in, read_table, with_slashes
from cliptools.images.listing import find
from cliptools.io.text_file import is_text, kind_of

NAMES = ("a.png", "b.png", "c.png")


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Return three pictures in a folder."""
    paint(*(tmp_path / "photos" / name for name in NAMES))
    return tmp_path / "photos"


def lines(form: str, labels: tuple[Any, ...] = ("cat", "dog", "cat")) -> str:
    return "".join(form.format(name, label) + "\n" for name, label in zip(NAMES, labels, strict=True))


@pytest.mark.parametrize(
    ("text", "labels"),
    [
        (lines("C:\\Users\\me\\photos\\{},{}"), ("cat", "dog")),
        ("image,label\n" + lines("photos\\{},{}"), ("cat", "dog")),
        (lines("photos\\{} {}", (0, 1, 0)), (0, 1)),
        (lines("/home/other/data/photos/{},{}"), ("cat", "dog")),
        (lines("/gone/{} {}", (0, 1, 0)), (0, 1)),
        (lines("../somewhere/photos/{}\t{}"), ("cat", "dog")),
        (lines('"{}","{}, domestic"'), ("cat, domestic", "dog, domestic")),
        (lines('"{}", "{}"'), ("cat", "dog")),
        (lines("{} {}"), ("cat", "dog")),
        ("# labels of my photos\n" + lines("{} {}", (2, 0, 2)), (2, 0)),
        ("# labels of my photos\nimage,label\n" + lines("{},{}"), ("cat", "dog")),
        (lines('{{"image": "{}", "label": "{}"}}'), ("cat", "dog")),
        (lines('{{"image": "{}", "label": {}, "box": [1, 2]}}', (3.0, 4, 3)), ("3", "4")),
        ("[" + lines('{{"image": "{}", "label": "{}"}},').rstrip(",\n") + "]", ("cat", "dog")),
        (json.dumps([{"image": name, "label": label} for name, label in zip(NAMES, "xyx", strict=True)], indent=2), ("x", "y")),
    ],
)
def test_lists_of_other_machines(text: str, labels: tuple[Any, ...], photos: Path) -> None:
    file = photos.parent / "labels.any"
    file.write_text(text)
    labelled = by_file([str(photos)], file, Columns())
    assert tuple(labelled.labels) == labels and labelled.number.tolist() == [0, 1, 0]


def test_a_list_without_a_path_names_its_images(photos: Path) -> None:
    """Names with backslashes lead to the files too; a name that really contains one on this machine is used unchanged."""
    file = photos.parent / "labels.csv"
    file.write_text("image,label\n" + lines("photos\\{},{}"))
    assert all(Path(str(found.place)).is_file() for found in by_file([], file, Columns()).images)
    paint(photos.parent / "odd\\name.png")
    assert place_in(photos.parent, "odd\\name.png") == str(photos.parent / "odd\\name.png")
    assert with_slashes("d:/x/a.png") == "/x/a.png" and with_slashes("a:b.png") == "a:b.png"


def test_names_of_other_machines_stand_for_one_image_each() -> None:
    names = ImageNames(["/x/cat/0.jpg", "/x/cat/1.jpg"])
    assert names.find("photos/cat/0.jpg") == "/x/cat/0.jpg" and names.find("photos/dog/0.jpg") is None
    assert names.find("photos/cat/0.jpg") == "/x/cat/0.jpg"
    nested = ImageNames(["/x/train/cat/0.jpg", "/x/train/dog/0.jpg"])
    assert nested.find("my/dog/0.jpg") == "/x/train/dog/0.jpg" and nested.find("my/0.jpg") is None
    assert ImageNames(["a/0.jpg", "b/0.jpg"]).find("c/0.jpg") is None


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (gzip.compress(b"a.png 0\n", mtime=0), r"gzip data \(gunzip it\); expected a text file"),
        (b"PK\x03\x04" + bytes(60), "a zip archive, as .xlsx"),
        (b"PAR1" + bytes(60), "a Parquet table"),
        (b"\x93NUMPY\x01\0", "a numpy array"),
        (b"<!DOCTYPE html><html>", "a web page"),
        (b'{"images": [], "annotations": [], "categories": []}', "COCO's annotations"),
        (b'{"file_name": "a.png", "label": 0}\n', r"no column 'image' \(--image-column\); it has file_name, label"),
        (b"1 1\n2 1\n3 2\n", "its images are numbers like 1, from another list"),
        (b"1 photos/a.png\n2 photos/b.png\n", r"\(the image comes first\)"),
        (b"A.PNG 0\n", r"its first image is 'A\.PNG'"),
        (b"a.png vacuum cleaner\n", "line 1 is 'a.png vacuum cleaner'; expected"),
    ],
)
def test_lists_that_are_none_are_named(content: bytes, message: str, photos: Path) -> None:
    file = photos.parent / "list"
    file.write_bytes(content)
    with pytest.raises(CliptoolsError, match=message):
        by_file([str(photos)], file, Columns())
    if kind_of(content):
        with pytest.raises(StreamError, match="expected a CSV file or JSON lines"):
            read_table(file, "image")


def test_groups_in_json_lines(tmp_path: Path) -> None:
    file = tmp_path / "groups.jsonl"
    file.write_text(
        '{"image": "a", "group": 2.0, "wet": true, "note": null}\n{"image": "b", "group": "old", "wet": false, "x": 1}\n'
    )
    table = read_table(file, "image")
    assert table.rows["a"] == {"image": "a", "group": "2", "wet": "1", "note": ""} and "x" not in table.columns
    assert table.rows["b"]["wet"] == "0"
    file.write_text('{"image": "a"}\n{"image": "a"}\n')
    with pytest.raises(StreamError, match="line 2 names a a second time"):
        read_table(file, "image")


def test_parts_of_a_data_set_are_no_classes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for part, kind in (("train", "cat"), ("train", "dog"), ("Val", "cat"), ("Val", "dog")):
        paint(tmp_path / "set" / "data" / part / kind / "0.png")
    for path in (tmp_path / "set", tmp_path / "set" / "data"):
        with pytest.raises(StreamError, match="the folders Val and train are parts of a data set, no classes: name one of them"):
            open_classified([str(path)], None, None)
    archive = pack(tmp_path / "all.tar", tmp_path / "set")
    with pytest.raises(StreamError, match="parts of a data set"):
        open_classified([str(archive)], None, None)
    assert open_classified([str(tmp_path / "set/data/train")], None, None).label.tolist() == [0, 1]
    paint(tmp_path / "vehicles" / "train" / "0.png", tmp_path / "vehicles" / "bus" / "0.png")
    capsys.readouterr()
    assert len(open_classified([str(tmp_path / "vehicles")], None, None).classes) == 2
    assert capsys.readouterr().err == ""


def test_empty_folders_of_classes_are_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    paint(tmp_path / "cat" / "0.png", tmp_path / "dog" / "0.png")
    for name in ("bird", "fish", ".git", "__MACOSX"):
        (tmp_path / name).mkdir()
    assert len(open_classified([str(tmp_path)], None, None).classes) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line == f"warning: {tmp_path}/bird and 1 more folder: no images, so no class; 2 classes of folders beside it"
    open_classified([str(tmp_path / "cat"), str(tmp_path / "dog")], None, None)
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "empty"),
        (b"hello", "text, not an image"),
        ("é".encode() * 300, "text, not an image"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "a pointer of Git LFS, not the file it stands for"),
        (b"<!doctype HTML>\n<html>", "a web page"),
        (b'<?xml version="1.0"?>\n<!-- x -->\n<svg width="3">', "vector graphics"),
        (b"\0\x05\x16\x07\0\x02\0\0Mac OS X", "a file that macOS keeps beside another"),
        (gzip.compress(b"x", mtime=0), "gzip data"),
        (b"\x01\x02\x03\x04\xff", "not an image of a kind that can be read here"),
    ],
)
def test_what_stands_in_for_a_picture(content: bytes, reason: str, tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(content)
    for source in (str(tmp_path / "a.jpg"), io.BytesIO(content)):
        with pytest.raises(ImageError, match=reason):
            decode(source)
    if content and kind_of(content):
        (tmp_path / "a.tar").write_bytes(content)
        if not content.startswith(b"\x1f\x8b"):
            with pytest.raises(StreamError, match=f"a.tar: {reason}.*; expected a tar archive of images"):
                find([str(tmp_path / "a.tar")])
    assert not is_text(b"") and not is_text(b"\xff\xfe") and is_text("aé".encode()[:2])


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("t.tar", "1 tar archive (name each as PATH"), ("t.TAR.GZ", "1 tar archive ("), ("z.zip", "1 zip or like archive ("),
        ("v.1.mp4", "1 video ("), ("s.svg", "1 vector graphic ("), ("p.psd", "1 other picture ("), ("n.npy", "1 data file ("),
        ("x.tfrecord-00000-of-00010", "1 data file ("), ("train-images-idx3-ubyte.gz", "1 data file ("),
        ("b.nii.gz", "1 other picture ("), ("w.tar.zst", "1 tar archive of another compression ("),
        ("r.PEF", "1 camera raw picture ("), ("a.tar.jxl", "1 JPEG XL picture ("),
    ],
)  # fmt: skip
def test_nouns_of_what_is_left_out(
    name: str,
    said: str,
    photos: Path,
    capsys: pytest.CaptureFixture[str],
    request: pytest.FixtureRequest,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    request.addfinalizer(formats.installed.cache_clear)
    formats.installed.cache_clear()
    monkeypatch.setattr(formats.importlib.util, "find_spec", lambda name: None)
    (photos / name).write_bytes(b"x")
    find([str(photos)])
    assert f"left out beside 3 images: {said}" in capsys.readouterr().err
    (photos / f"2{name}").write_bytes(b"x")
    find([str(photos)])
    kind = said.partition(" ")[2].removesuffix("(").partition(" (")[0].strip()
    assert f" {count_of(2, kind) if 'compression' not in kind else '2 tar archive'}" in capsys.readouterr().err


@pytest.mark.parametrize(("module", "ending"), [("pillow_heif", "heic"), ("pillow_jxl", "jxl")])
def test_pictures_of_packages_that_are_installed(module: str, ending: str, tmp_path: Path) -> None:
    """The real package, if it is installed, has the names of module and class that other_kinds uses."""
    package = pytest.importorskip(module)
    path = tmp_path / f"a.{ending}"
    rows = np.zeros((24, 32, 3), np.uint8)
    rows[:, :16] = (200, 30, 60)
    picture = formats.Image.fromarray(rows)
    if module == "pillow_heif":
        package.from_pillow(picture).save(path, quality=95)
    else:
        picture.save(path, quality=95)
    decoded = decode(str(path))
    assert decoded.size == (32, 24) and abs(np.asarray(decoded).astype(int) - rows).mean() < 8
    path.write_bytes(path.read_bytes()[:40])
    with pytest.raises(ImageError, match="cannot read it"):
        decode(str(path))


def test_the_reader_of_jpeg_xl_is_where_the_package_has_it() -> None:
    assert formats.JXL.module == "pillow_jxl.JpegXLImagePlugin"  # of pillow-jxl-plugin 1.0 to 1.3


TABLE = b"image,label\nphotos/a.png,cat\nphotos/b.png,dog\n"


@pytest.mark.usefixtures("photos")
def test_a_table_on_standard_input(bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: F811
    """A table with names of columns, which is read twice, works too."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "table.csv").write_bytes(TABLE)
    common = ("--ablate", "all", "--bundle", bundle, "-f", "jsonl")
    there, here = inside("ablate", "--labels", "table.csv", *common), inside("ablate", "--labels", "-", *common, stdin=TABLE)
    assert there.returncode == here.returncode == 0 and there.stdout == here.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("ablate", "photos", "--labels", "-", "--classes", "-", "--bundle", "x"), "--labels - and --classes - cannot both"),
        (("ablate", "-", "--labels", "-", "--bundle", "x"), "PATH - and --labels - cannot both"),
        (("ablate", "photos", "--labels", "-"), "--labels - and the bundle cannot both come from standard input: name --bundle"),
        (("shift", "photos", "--concept", "a", "--groups", "-", "--labels", "-", "--bundle", "x"), "--groups - and --labels -"),
        (("shift", "photos", "--concept", "a", "--baseline", "-"), "--baseline - and the bundle cannot both"),
        (("concepts", "-", "--truth", "-", "--bundle", "x"), "PATH - and --truth - cannot both"),
        (("segment", "photos", "--classes", "-", "--bundle", "-"), "cannot both come from standard input"),
        (("decompose", "--pool", "-"), "--pool - and the bundle cannot both come from standard input: name BUNDLE"),
        (("spurious", "--classes", "-", "-"), "cannot both come from standard input"),
        (("gallery", "--fooled", "-"), "--fooled - and the bundle cannot both"),
    ],
)
def test_standard_input_is_read_once(arguments: tuple[str, ...], message: str) -> None:
    ended = inside(*arguments, stdin=TABLE)
    assert ended.returncode == 2 and message in ended.stderr.decode() and ended.stdout == b""


def test_partials_on_standard_input(photos: Path, tmp_path: Path) -> None:
    """`cat p1 | clip-merge - p2` equals `clip-merge p1 p2`."""
    parts = [tmp_path / f"p{i}" for i in (1, 2)]
    for i, part in enumerate(parts, 1):
        assert inside("effects", photos, "--layers", 6, "--shard", f"{i}/2", "-o", part).returncode == 0
    whole = inside("merge", *parts)
    assert whole.returncode == 0 and len(whole.stdout) > 1000
    for arguments, stdin in ((("-", parts[1]), parts[0]), ((parts[0], "-"), parts[1])):
        assert inside("merge", *arguments, stdin=stdin.read_bytes()).stdout == whole.stdout


def test_a_value_a_line_in_variables(bundle: Path, photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: F811
    """Texts may contain blanks; numbers are separated by blanks, paths by colons, and both also by lines."""
    common = ("shift", photos, "--bundle", bundle, "-f", "jsonl")
    typed = inside(
        *common, "--concept", "vacuum cleaner", "--concept", "cat", "--template", "a photo of a {}.", "--template", "my {}"
    )
    monkeypatch.setenv("CLIPTOOLS_CONCEPT", "vacuum cleaner\n\n  cat\n")
    monkeypatch.setenv("CLIPTOOLS_TEMPLATE", "a photo of a {}.\r\nmy {}")
    read = inside(*common)
    assert typed.returncode == read.returncode == 0 and typed.stdout == read.stdout
    assert b'"concept": "vacuum cleaner"' in read.stdout
    kinds = other_kinds_of_types()
    assert [by_lines(kind).split_envvar_value(text) for kind, text in kinds] == [["a b", "c"], ["x y", "z", "w"], ["0", "255"]]


def other_kinds_of_types() -> list[tuple[Any, str]]:
    import click

    return [(click.STRING, "a b\nc"), (click.Path(), f"x y{os.pathsep}z\nw"), (click.IntRange(0), "0 255")]


def test_verbs_agree() -> None:
    assert verb_form(1, "is", "are") == "is" and verb_form(0, "is", "are") == verb_form(2, "is", "are") == "are"
