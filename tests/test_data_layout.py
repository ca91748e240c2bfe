"""Layouts of data: the most common mistakes with their messages, and forms that are read."""

import gzip
import importlib
import io
import json
import subprocess
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.advgen_input import inside
from helpers.data_layout import bundle, pack, paint  # noqa: F401  # the fixture
from PIL import Image

from cliptools.errors import CliptoolsError, ImageError, StreamError, TextError
from cliptools.generate.records import read_word_lists
from cliptools.images import formats
from cliptools.images.annotations import read_annotations
from cliptools.images.classification import open_classified
from cliptools.images.classification.label_files import by_file
from cliptools.images.decode import decode, is_picture
from cliptools.images.formats import pixel_limit
from cliptools.images.groups import Columns, read_table
from cliptools.images.listing import SKIP_BAD_SHARDS, find
from cliptools.io.jsonl import objects, whole_number
from cliptools.io.text_file import file_beside
from cliptools.text.vocabularies import load_pool


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return folders with wrong layouts."""
    top = tmp_path_factory.mktemp("data")
    (top / "empty").mkdir()
    paint(*(top / "photos" / f"{name}.png" for name in "abc"))
    paint(*(top / name for name in ("mixed/cat/a.png", "mixed/dog/b.png", "mixed/c.png")))
    paint(*(top / "val" / f"ILSVRC2012_val_0000000{number}.JPEG" for number in (1, 2)))
    paint(top / "unmasked" / "images" / "a.png")
    (top / "unmasked" / "masks").mkdir()
    (top / "other.txt").write_text("other.png 0\nstranger.png 1\n")
    (top / "from-one.txt").write_text("a.png 1\nb.png 2\nc.png 10\n")
    (top / "groups.csv").write_text("a.png,old\nb.png,new\n")
    pack(top / "outer.tar", pack(top / "inner.tar", *sorted((top / "photos").iterdir())))
    for name in ("a.HEIC", "b.heic", "c.dng", "d.zip", "e.parquet"):
        (top / "phone").mkdir(exist_ok=True)
        (top / "phone" / name).write_bytes(b"bytes")
    return top


MISTAKES: list[tuple[str, list[str], int, list[str]]] = [
    ("effects", ["empty"], 1, ["no images in", "empty", "looked for names ending in .jpg"]),
    ("ablate", ["mixed"], 1, ["c.png", "beside the folders of the classes", "1 of 3 images"]),
    ("ablate", ["photos", "--labels", "other.txt", "--classes", "cifar10"], 1, ["a.png", "other.txt", "has no label for it"]),
    ("effects", ["outer.tar"], 1, ["no images in", "1 tar archive", "name each as PATH"]),
    ("effects", ["shard-*.tar"], 1, ["shard-*.tar", "no such file"]),
    ("effects", ["shard-{00..02}.tar"], 1, ["shard-00.tar", "no such file", "from", "{00..02}"]),
    ("segment_eval", ["--text", "dog", "unmasked"], 1, ["1 image without a mask in masks/", "a"]),
    ("segment_eval", ["--text", "dog", "photos"], 1, ["no images in images/", "expected images/ and masks/"]),
    (
        "effects",
        ["phone"],
        1,
        ["no images in", "2 HEIC pictures", "pillow-heif", "1 camera raw", "1 zip", "unpack", "1 data file"],
    ),
    ("shift", ["photos", "--concept", "cat", "--groups", "groups.csv"], 1, ["no column 'image'", "--image-column", "a.png, old"]),
    ("ablate", ["photos", "--labels", "from-one.txt", "--classes", "cifar10"], 1, ["label 10", "from 0 to 9", "counted from 1?"]),
    ("ablate", ["val"], 1, ["one class only", "val", "a folder for each", "--labels FILE"]),
    ("ablate", ["photos", "--labels", "photos"], 1, ["--labels", "photos", "Is a directory"]),
    ("segment_eval", ["--text", "dog", "groups.csv"], 1, ["groups.csv", "expected"]),
    ("effects", ["neurons.safetensors", "--strict"], 1, ["a safetensors file, not an image", "--bundle"]),
]


@pytest.mark.parametrize(("name", "arguments", "status", "words"), MISTAKES, ids=lambda value: str(value)[:40])
def test_each_mistake_has_its_message(
    name: str,
    arguments: list[str],
    status: int,
    words: list[str],
    data: Path,
    bundle: Path,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (data / "neurons.safetensors").write_bytes(bundle.read_bytes())
    monkeypatch.chdir(data)
    more = () if name == "effects" else ("--bundle", bundle)
    ended = inside(name, *arguments, *(("--ablate", "all") if name == "ablate" else ()), *more)
    (line,) = ended.stderr.decode().splitlines()
    assert ended.returncode == status and ended.stdout == b"" and line.startswith(f"clip-{name.replace('_', '-')}: ")
    assert all(word in line for word in words), line


Labels = list[Any]


@pytest.mark.parametrize(
    ("text", "labels"),
    [
        ("val_0.JPEG\tn03444034\t0\t32\t44\t62\nval_1.JPEG\tn04067472\t52\t55\t57\t59\n", ["n03444034", "n04067472"]),
        ("val_0.JPEG n03444034 0 32 44 62\nval_1.JPEG n04067472 52 55 57 59\n", ["n03444034", "n04067472"]),
        ("val_0.JPEG,cat,0.5\nval_1.JPEG,dog,0.25\n", ["cat", "dog"]),
        ("val_0.JPEG;3;x\nval_1.JPEG;4;y\n", [3, 4]),
        ("image\tlabel\tbox\nval_0.JPEG\tcat\t1\nval_1.JPEG\tdog\t2\n", ["cat", "dog"]),
        ("image;label\nval_0.JPEG;cat\nval_1.JPEG;dog\n", ["cat", "dog"]),
        ("val_0.JPEG 3.0\nval_1.JPEG 4.00\n", [3, 4]),
        ("val_0.JPEG 3\nval_1.JPEG 4\n", [3, 4]),
    ],
)
def test_tables_of_labels(text: str, labels: Labels, tmp_path: Path) -> None:
    paint(*(tmp_path / "images" / f"val_{number}.JPEG" for number in range(2)))
    file = tmp_path / "val_annotations.txt"
    file.write_text(text)
    for paths in ([str(tmp_path / "images")], []):  # without PATH: images beside the file, or in images/ there
        labelled = by_file(paths, file, Columns())
        assert [labelled.labels[number] for number in labelled.number] == labels
        assert [Path(str(found.place)).is_file() for found in labelled.images] == [True, True]


def test_columns_of_signs_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "attributes.txt"
    file.write_text("a.jpg 0 1 1\nb.jpg 1 0 0\n")
    with pytest.raises(StreamError, match="3 columns of 0 and 1 without a line that names them"):
        by_file([], file, Columns())
    file.write_text("a.jpg 0 17 1\nb.jpg 1 0\n")
    with pytest.raises(StreamError, match=r"line 2 is 'b\.jpg 1 0'"):
        by_file([], file, Columns())
    file.write_text("image\tgroup\nx\t1\n")
    assert read_table(file, "image").rows["x"]["group"] == "1"


@pytest.mark.parametrize("label", ["3.0", b"3.0", 3.0, "3", 3, True, 2.5, "x"])
def test_whole_numbers_with_a_point(label: Any, tmp_path: Path) -> None:
    """3.0 in a column, a .cls or a JSON member is a label; 2.5 and true are not."""
    whole = label not in (2.5, "x") and label is not True
    paint(tmp_path / "a.png", tmp_path / "b.png")
    if isinstance(label, bytes):
        (tmp_path / "a.cls").write_bytes(label)
        (tmp_path / "b.cls").write_bytes(b"0")
    else:
        (tmp_path / "a.json").write_text(json.dumps({"label": label}))
        (tmp_path / "b.json").write_text(json.dumps({"label": 0.0}))
    members = sorted(tmp_path.iterdir())
    archive = str(pack(tmp_path / "shard.tar", *members))
    if whole:
        assert open_classified([archive], None, "cifar10").label.tolist() == [3, 0]
    else:
        with pytest.raises(StreamError):
            open_classified([archive], None, "cifar10")
    table = tmp_path / "labels.csv"
    table.write_text("image,label\na.png,3.0\nb.png,0.0\n")
    photos = [str(tmp_path / name) for name in ("a.png", "b.png")]
    assert open_classified(photos, str(table), "cifar10").label.tolist() == [3, 0]
    with pytest.raises(CliptoolsError, match="labels are numbers, up to 3"):
        open_classified(photos, str(table), None)
    assert whole_number("1e3") is None and whole_number(1e300) is None


WORD = {"depict": "cat", "predict": "dog", "model": {"name": "m", "sha256": "0"}}


@pytest.mark.parametrize("form", ["lines", "array", "spread", "indented", "array of one line"])
def test_arrays_where_lines_are_expected(form: str, tmp_path: Path) -> None:
    records = [WORD | {"word": word, "rank": float(rank), "seed": 0.0} for rank, word in ((2, "key"), (1, "crown"))]
    text = {
        "lines": "".join(json.dumps(record) + "\n" for record in records),
        "array": json.dumps(records, indent=1),
        "spread": "[\n" + ",\n".join(map(json.dumps, records)) + "\n]\n",
        "indented": "".join(json.dumps(record, indent=2) + "\n" for record in records),
        "array of one line": json.dumps(records),
    }[form]
    (words,) = read_word_lists(io.BytesIO(text.encode()), "words")
    assert words.words == ("crown", "key") and words.task.seed == 0 and isinstance(words.task.seed, int)
    truth = [{"key": "a", "names": ["cat"]}, {"key": "b", "names": ["dog"]}]
    file = tmp_path / "truth.json"
    file.write_text(json.dumps(truth, indent=None if form == "array of one line" else 2))
    assert read_annotations(file).of("photos/b.png") == ("dog",)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('[{"a": 1} {"b": 2}]', "line 1: expected one JSON array, found '{\"b\": 2}]' after an object"),
        ('[{"a": 1},\n{"b": 2}', "line 2: expected one JSON array, found its end after an object"),
        ('[\n{"a": 1},\n3]', "line 3: expected a JSON object, found '3'"),
        ('[{"a": 1}]\n{"a": 2}', "expected one JSON array"),
        ('[{"a": 1, "a": 2}]', "duplicate key 'a'"),
        ('{\n"a": 1\n}\nword', "line 4: expected a JSON object, found 'word'"),
    ],
)
def test_arrays_that_are_none(text: str, message: str) -> None:
    with pytest.raises(StreamError) as error:
        list(objects(io.BytesIO(text.encode()), "x"))
    assert message in str(error.value)
    with pytest.raises(StreamError, match="expected JSON in UTF-8, found byte 0xff"):
        list(objects(io.BytesIO(b'[{"a": "\xff"}]'), "x"))


def test_pools_in_json(tmp_path: Path) -> None:
    for name, text in {
        "a.json": '["cat", "dog"]',
        "b.txt": '["cat",\n "dog"]\n',
        "c.jsonl": '[{"text": "cat"}, {"text": "dog"}]',
        "d.jsonl": '{"text": "cat"}\n{"text": "dog"}\n',
        "e.txt": "cat\ndog\n",
    }.items():
        (tmp_path / name).write_text(text)
        assert load_pool(str(tmp_path / name)).texts == ("cat", "dog"), name
    (tmp_path / "f.txt").write_text("[a]\ncat\n")
    assert load_pool(str(tmp_path / "f.txt")).texts == ("[a]", "cat")
    (tmp_path / "g.json").write_text('{"text": "cat"}')
    with pytest.raises(TextError, match="expected one JSON array of texts"):
        load_pool(str(tmp_path / "g.json"))


def bomb(kind: str, size: tuple[int, int]) -> io.BytesIO:
    """Return a large picture of one colour in a small file."""
    stream = io.BytesIO()
    Image.new("1" if kind != "JPEG" else "L", size).save(stream, kind)
    return stream


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "BMP", "JPEG"])
def test_large_pictures_say_their_size_and_what_reads_them(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pillow's own limit applies, whether it warns (to twice the limit) or raises (above), and is unchanged at the end."""
    before = Image.MAX_IMAGE_PIXELS
    small = bomb(kind, (400, 300))
    for limit in (100_000, 50_000):
        said = f"400 × 300 pixels, at most {limit} are .*--max-pixels 120000"
        with pixel_limit(limit), pytest.raises(ImageError, match=said):
            decode(small)
        with monkeypatch.context() as patch, pytest.raises(ImageError, match=said):
            patch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
            decode(small)
    with pixel_limit(120_000):
        assert decode(small).size == (400, 300)
    with monkeypatch.context() as patch, pixel_limit(120_000):
        patch.setattr(Image, "MAX_IMAGE_PIXELS", 120_000)
        assert decode(small).size == (400, 300)
    assert before == Image.MAX_IMAGE_PIXELS


def test_the_limit_is_an_option(data: Path, tmp_path: Path) -> None:
    (tmp_path / "large.png").write_bytes(bomb("PNG", (9500, 9500)).getvalue())
    before = Image.MAX_IMAGE_PIXELS
    plain = inside("effects", tmp_path, data / "photos", "--layers", 6, "-q")
    assert b"large.png: skipped, 9500 \xc3\x97 9500 pixels, at most 89478485 are" in plain.stderr
    assert b"--max-pixels 90250000 reads it" in plain.stderr
    small = inside("effects", data / "photos", "--layers", 6, "-q", "--max-pixels", 700)
    assert small.returncode == 1 and b"32 \xc3\x97 24 pixels, at most 700 are decoded" in small.stderr
    assert b"32" not in inside("effects", data / "photos", "--layers", 6, "-q", "--max-pixels", 768).stderr
    assert before == Image.MAX_IMAGE_PIXELS


def test_other_files_beside_pictures_are_counted(data: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    found = find([str(data / "photos"), str(data / "phone")])
    assert [one.name for one in found] == ["a.png", "b.png", "c.png"]
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("warning: left out beside 3 images: ") and "2 HEIC pictures (pip install pillow-heif to read)" in line
    assert "1 camera raw" in line and "1 zip" in line and "1 data file" in line
    archive = pack(tmp_path / "shard.tar", data / "photos" / "a.png", data / "phone" / "a.HEIC")
    find([str(archive)])
    assert "left out beside 1 image: 1 HEIC picture (pip" in capsys.readouterr().err
    (tmp_path / "photos").mkdir()
    paint(tmp_path / "photos" / "a.jpg")
    for name in ("notes.txt", "labels.csv", ".hidden.zip", "a.json"):
        (tmp_path / "photos" / name).write_text("x")
    find([str(tmp_path / "photos")])
    assert capsys.readouterr().err == ""


HEIC, JXL = b"\0\0\0\x18ftypheic\0\0\0\0", b"\xff\x0a\0\0"


def test_pictures_that_a_package_reads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
    """Without the package there is a reason, for any file name; with it they are read, and the first of them imports it."""
    request.addfinalizer(formats.installed.cache_clear)
    for name, content in (("a.heic", HEIC), ("b.jpg", HEIC), ("c.jxl", JXL)):
        (tmp_path / name).write_bytes(content)
    formats.installed.cache_clear()
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert not is_picture("a.heic")
    with pytest.raises(ImageError, match="a HEIC picture; pip install pillow-heif to read it"):
        decode(str(tmp_path / "b.jpg"))
    with pytest.raises(ImageError, match="a JPEG XL picture; pip install pillow-jxl-plugin"):
        decode(str(tmp_path / "c.jxl"))

    formats.installed.cache_clear()
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object() if name == "pillow_heif" else None)
    assert is_picture("a.HEIC") and not is_picture("c.jxl") and "pillow_heif" not in sys.modules
    fake = types.ModuleType("pillow_heif")
    fake.HeifImageFile = lambda source: Image.new("RGB", (7, 5), "red")  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "pillow_heif", fake)
    assert [one.name for one in find([str(tmp_path)])] == ["a.heic", "b.jpg"]
    assert decode(str(tmp_path / "b.jpg")).size == (7, 5) and decode(io.BytesIO(HEIC)).getpixel((0, 0)) == (255, 0, 0)

    def damaged(source: Any) -> Image.Image:
        raise ValueError("no such item\nmore")

    fake.HeifImageFile = damaged  # type: ignore[attr-defined]
    with pytest.raises(ImageError, match=r"^pillow-heif cannot read it \(no such item\)$"):
        decode(str(tmp_path / "a.heic"))


def test_bad_shards_among_good_ones(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    photos = sorted((data / "photos").iterdir())
    good = [str(pack(tmp_path / f"good-{i}.tar", photo)) for i, photo in enumerate(photos)]
    whole = Path(good[0]).read_bytes()
    bad = {"empty.tar": b"", "cut.tar": whole[:600], "text.tar": b"hello\n" * 200, "cut.tar.gz": gzip.compress(whole)[:40]}
    for name, content in bad.items():
        path = tmp_path / name
        path.write_bytes(content)
        with pytest.raises(StreamError, match=f"{name}.*; --skip-bad-shards goes on without it$"):
            find([*good, str(path)])
        with pytest.raises(StreamError) as alone:
            find([str(path)])
        assert "--skip-bad-shards" not in str(alone.value)
    every = [good[0], *(str(tmp_path / name) for name in bad), *good[1:]]
    token = SKIP_BAD_SHARDS.set(True)
    try:
        assert len(find(every)) == 3
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith("warning: 4 shards of 7 left out (--skip-bad-shards): ") and all(name in line for name in bad)
        with pytest.raises(CliptoolsError, match="all 4 shards are bad, the first: "):
            find([str(tmp_path / name) for name in bad])
    finally:
        SKIP_BAD_SHARDS.reset(token)
    ended = inside("effects", *every, "--layers", 6, "-q", "--skip-bad-shards")
    assert ended.returncode == 0 and b"4 shards of 7 left out" in ended.stderr and not SKIP_BAD_SHARDS.get()
    same = inside("effects", *good, "--layers", 6, "-q")
    assert len(ended.stdout) > 1000 and np.isclose(len(same.stdout), len(ended.stdout), atol=400)
    refused: Callable[..., subprocess.CompletedProcess[bytes]] = inside
    assert refused("effects", *every, "--layers", 6).returncode == 1


def test_lines_name_pictures_relative_to_their_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In images.jsonl of an --out-dir, names are relative to the file first; in other lists, to the current folder first."""
    paint(tmp_path / "out" / "a.png", tmp_path / "a.png", tmp_path / "out" / "b.png")
    monkeypatch.chdir(tmp_path)
    assert file_beside("a.png", Path("out/images.jsonl")) == "out/a.png"
    assert file_beside("a.png", Path("out/lines.jsonl")) == "a.png"
    assert file_beside("b.png", Path("out/lines.jsonl")) == "out/b.png"
    assert file_beside("b.png", None, Path("out")) == file_beside("b.png", Path("-"), Path("out")) == "out/b.png"
    assert file_beside("out/b.png", Path("out/images.jsonl")) == "out/b.png"
    assert file_beside("gone.png", Path("out/images.jsonl")) == "gone.png"
