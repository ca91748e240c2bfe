"""Images with one class each: all supported layouts of such data sets, and errors."""

import functools
import io
import json
import re
import tarfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pytest
import webdataset  # type: ignore[import-untyped]
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from scipy.io import savemat

from cliptools.cli.scenes import main as draw_scenes
from cliptools.emoji.export import single_plans
from cliptools.emoji.render import SceneSource
from cliptools.errors import CliptoolsError, StreamError, TextError, UsageError
from cliptools.images.classification import ClassifiedImages, classified_scenes, open_classified
from cliptools.images.classification.class_rows import NO_ROW, ClassRows, load_rows
from cliptools.images.groups import Columns, ImageNames
from cliptools.images.loader import open_images
from cliptools.images.segmentation.sources import masked_images
from cliptools.text.classes import ClassName, distinct_classes, load_classes
from cliptools.text.emoji_concepts import concepts
from cliptools.text.vocabularies import lemmas, open_clip_names, wordnet_ids

TENCH, GOLDFISH, SEA_SNAKE = "n01440764", "n01443537", "n01751748"


def put(folder: Path, *names: str) -> Path:
    """Write tiny pictures with these names."""
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (2, 2)).save(folder / name)
    return folder


def write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path


def said(images: ClassifiedImages) -> dict[str, str]:
    """Return the class of each image by name."""
    return {name: images.classes[row].name for name, row in zip(images.source.names, images.label, strict=True)}


def png() -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (2, 2)).save(buffer, "PNG")
    return buffer.getvalue()


def tar(path: Path, members: Mapping[str, bytes | str], mode: str = "w") -> Path:
    """Write an archive of these members in this order."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, mode) as archive:  # type: ignore[call-overload]
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            data = content if isinstance(content, bytes) else content.encode()
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return path


# A folder for each class


def test_a_folder_for_each_class(tmp_path: Path) -> None:
    put(tmp_path, "zebra/1.png", "great_white_shark/b/2.png", "great_white_shark/1.png", "Cat/1.png")
    images = open_classified([str(tmp_path)], None, None)
    assert said(images)["great_white_shark/b/2.png"] == "great white shark"
    assert [each.name for each in images.classes] == ["Cat", "great white shark", "zebra"]
    assert images.label.dtype == np.int64 and images.classes_source == "labels"


folder_names = st.from_regex(r"[a-cXY_-][a-cXY_ 0-9-]{0,3}[a-cXY]", fullmatch=True)


@given(
    st.lists(st.tuples(folder_names, st.sampled_from(["1.png", "2.png", "in/1.png", "in/deep/3.png"])), min_size=2, max_size=9)
)
@settings(max_examples=25, deadline=None)
def test_numbers_are_those_of_torchvision(tmp_path_factory: pytest.TempPathFactory, tree: list[tuple[str, str]]) -> None:
    from torchvision.datasets import ImageFolder

    if len({folder for folder, _ in tree}) < 2:
        return
    place = put(tmp_path_factory.mktemp("tree"), *(f"{folder}/{name}" for folder, name in tree))
    images, oracle = open_classified([str(place)], "folders", None), ImageFolder(str(place))
    assert [each.names[-1] for each in images.classes] == oracle.classes
    assert {str(place / name): row for name, row in zip(images.source.names, images.label, strict=True)} == dict(oracle.samples)


def test_folders_whose_names_differ_by_a_sign_are_two_classes(tmp_path: Path) -> None:
    """Both have the words XX in their names."""
    place = put(tmp_path, "XX/1.png", "_XX/2.png", "xx-/3.png")
    images = open_classified([str(place)], "folders", None)
    assert [each.names[-1] for each in images.classes] == ["XX", "_XX", "xx-"] and images.label.tolist() == [0, 1, 2]


def test_folders_named_themselves_and_archives(tmp_path: Path) -> None:
    put(tmp_path, "set/cat/1.png", "set/dog/1.png", "set/dog/2.png")
    by_glob = open_classified([str(tmp_path / "set" / "*")], None, None)
    assert list(said(by_glob).values()) == ["cat", "dog", "dog"]
    members = {f"set/{name}": png() for name in ("cat/1.png", "dog/1.png", "dog/2.png")}
    for mode, ending in (("w", ".tar"), ("w:gz", ".tar.gz")):
        packed = tar(tmp_path / f"set{ending}", members, mode)
        assert list(said(open_classified([str(packed)], None, None)).values()) == ["cat", "dog", "dog"]
    one_each = [str(tar(tmp_path / f"{name}.tar", {"1.png": png(), "2.png": png()})) for name in ("cat", "dog")]
    assert list(said(open_classified(one_each, None, None)).values()) == ["cat", "cat", "dog", "dog"]


def test_folders_are_matched_to_classes_by_any_name(tmp_path: Path) -> None:
    put(tmp_path, "photos/Kitty/1.png", "photos/great_white-shark/1.png")
    classes = write(tmp_path / "classes.txt", "great white shark\nzebra\ncat, kitty\n")
    images = open_classified([str(tmp_path / "photos")], None, str(classes))
    assert images.label.tolist() == [2, 0] and images.classes_source == str(classes)
    put(tmp_path, "photos/zebbra/1.png")
    with pytest.raises(StreamError, match=r"zebbra/1\.png: label 'zebbra' is not one of the 3 classes of .*similar names: zebra"):
        open_classified([str(tmp_path / "photos")], None, str(classes))


def test_images_beside_the_folders_and_a_class_alone_are_refused(tmp_path: Path) -> None:
    put(tmp_path, "cat/1.png", "dog/1.png", "stray.png")
    with pytest.raises(StreamError, match=r"stray\.png: it lies beside .*1 of 3 images without a label"):
        open_classified([str(tmp_path)], None, None)
    with pytest.raises(StreamError, match="one class only, 'cat'"):
        open_classified([str(tmp_path / "cat")], None, None)
    put(tmp_path, "v2/0/1.png", "v2/65/1.png")
    with pytest.raises(UsageError, match=r"labels are numbers, up to 65: .*--classes"):
        open_classified([str(tmp_path / "v2")], None, None)
    assert open_classified([str(tmp_path / "v2")], None, "imagenet").label.tolist() == [0, 65]


# ImageNet


def test_ids_and_names_are_in_one_order() -> None:
    """open_clip's name of a class is nearly always among WordNet's words for its id; otherwise it is a synonym."""
    ids, names = wordnet_ids(), open_clip_names()
    assert len(ids) == len(names) == 1000 and list(ids) == sorted(ids)
    shared = [set(re.findall(r"\w+", name.lower())) & set(re.findall(r"\w+", " ".join(lemmas()[each]).lower())) for each, name in
              zip(ids, names, strict=True)]  # fmt: skip
    assert sum(map(bool, shared)) >= 950
    known = {
        TENCH: "tench",
        "n02123045": "tabby cat",
        "n03297495": "espresso machine",
        "n15075141": "toilet paper",
        SEA_SNAKE: "sea snake",
    }
    assert {each: names[ids.index(each)] for each in known} == known
    assert ids.index(SEA_SNAKE) == 65  # as Caffe's val.txt says of ILSVRC2012_val_00000001.JPEG


def test_lists_of_imagenet() -> None:
    assert len(load_classes("imagenet")) == 1000 and len(distinct_classes(load_classes("imagenet"))) == 998
    assert [row for row, each in enumerate(load_classes("imagenet")) if each.name == "missile"] == [657, 744]
    assert len(load_classes("imagenet-r")) == 200
    assert load_classes("imagenet-r")[0].name == "goldfish"
    rows = load_rows("imagenet")
    assert rows.of(["Great_White-shark", "n02012849", TENCH, "cock", 999]) == [2, 134, 0, 7, 999]
    assert rows.of(["missile", "crane", 1000, -1, "n00000000"]) == [NO_ROW] * 5
    assert re.search(r"names several .*657, 744.*WordNet ids", str(rows.refusal("a.jpg", "missile")))
    assert "expected a number from 0 to 999" in str(rows.refusal("a.jpg", 1000))


def test_folders_of_wordnet_ids(tmp_path: Path) -> None:
    put(tmp_path, f"val/{TENCH}/1.png", f"val/{SEA_SNAKE}/1.png")
    images = open_classified([str(tmp_path / "val")], None, None)
    assert images.classes_source == "imagenet" and images.label.tolist() == [0, 65] and len(images.classes) == 1000
    own = write(tmp_path / "two.txt", "sea snake\nfish, tench\nbird\n")
    assert open_classified([str(tmp_path / "val")], None, str(own)).label.tolist() == [1, 0]
    renamed = write(tmp_path / "thousand.txt", "".join(f"class {n}\n" for n in range(1000)))
    assert open_classified([str(tmp_path / "val")], None, str(renamed)).label.tolist() == [0, 65]


def test_imagenets_names_in_another_order(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Before, ids were assigned by position even if the list was sorted by name."""
    put(tmp_path, f"val/{TENCH}/1.png", f"val/{SEA_SNAKE}/1.png")
    names = list(open_clip_names())
    words = [lemmas()[number][0] for number in wordnet_ids()]
    for order in (sorted(names), names[::-1], sorted(words, key=str.casefold)):
        listed = write(tmp_path / "sorted.txt", "".join(f"{name}\n" for name in order))
        images = open_classified([str(tmp_path / "val")], None, str(listed))
        assert [images.classes[row].name for row in images.label] == ["tench", "sea snake"]
        assert "names of ImageNet in another order than its own" in capsys.readouterr().err
    for order in (names, words, ["x", *names[1:]]):
        listed = write(tmp_path / "same.txt", "".join(f"{name}\n" for name in order))
        assert open_classified([str(tmp_path / "val")], None, str(listed)).label.tolist() == [0, 65]
        assert "another order" not in capsys.readouterr().err


def test_names_of_folders_may_be_decomposed(tmp_path: Path) -> None:
    """macOS stores é as e and an accent."""
    listed = load_rows(str(write(tmp_path / "classes.txt", "café\ncat\n")))
    assert listed.of(["cafe\u0301", "CAFE\u0301", "caf\u00e9"]) == [0, 0, 0]


def test_imagenet_r_is_known_by_its_folders(tmp_path: Path) -> None:
    ids = wordnet_ids(restricted=True)
    packed = tar(
        tmp_path / "r.tar", {f"imagenet-r/{each}/art_0.png": b"never decoded" for each in ids} | {"imagenet-r/README.txt": ""}
    )
    images = open_classified([str(packed)], None, None)
    assert images.classes_source == "imagenet-r" and images.label.tolist() == list(range(200))
    assert open_classified([str(packed)], None, "imagenet").label.tolist() == [wordnet_ids().index(each) for each in ids]
    more = put(tmp_path, f"more/{ids[0]}/1.png", f"more/{TENCH}/1.png") / "more"
    assert open_classified([str(more)], None, None).classes_source == "imagenet"


IDS = {1: "n02119789", 2: TENCH, 3: SEA_SNAKE}  # of the development kit: an order of its own


def kit(folder: Path, numbers: list[int]) -> Path:
    """Write the files of the development kit."""
    fields = [("ILSVRC2012_ID", object), ("WNID", object), ("words", object)]
    savemat(folder / "meta.mat", {"synsets": np.array([[(number, word, "words")] for number, word in IDS.items()], dtype=fields)})
    return write(folder / "ILSVRC2012_validation_ground_truth.txt", "".join(f"{number}\n" for number in numbers))


def test_flat_imagenet_by_three_kinds_of_label_files(tmp_path: Path) -> None:
    names = [f"ILSVRC2012_val_{number:08d}" for number in range(1, 5)]
    flat = str(put(tmp_path / "val", *(f"{name}.JPEG" for name in names)))
    ids = [SEA_SNAKE, TENCH, IDS[1], TENCH]
    rows = [wordnet_ids().index(each) for each in ids]
    files = [
        write(tmp_path / "val.txt", "".join(f"{name}.JPEG {row}\n" for name, row in zip(names, rows, strict=True))),
        write(tmp_path / "LOC.csv", "ImageId,PredictionString\n" + "".join(
            f"{name},{each} 1 2 3 4 {each} 5 6 7 8 \n" for name, each in reversed(list(zip(names, ids, strict=True))))),
        kit(tmp_path, [3, 2, 1, 2]),
    ]  # fmt: skip
    packed = str(tar(tmp_path / "ILSVRC2012_img_val.tar", {f"{name}.JPEG": png() for name in names}))
    for file in files:
        for place in (flat, packed, f"{flat}/*3.JPEG"):
            images = open_classified([place], str(file), None)
            assert images.classes_source == "imagenet" and len(images.classes) == 1000
            assert images.label.tolist() == ([rows[2]] if "*" in place else rows)
    assert open_classified([flat], str(files[1]), "imagenet").label.tolist() == rows
    assert open_classified([], str(write(tmp_path / "val/val.txt", files[0].read_text())), None).label.tolist() == rows


def test_label_files_that_do_not_do(tmp_path: Path) -> None:
    flat = [str(put(tmp_path / "val", "ILSVRC2012_val_00000001.JPEG"))]
    file = kit(tmp_path, [4])
    with pytest.raises(StreamError, match=r"line 1 is '4', which .*meta\.mat does not know"):
        open_classified(flat, str(file), None)
    savemat(tmp_path / "meta.mat", {"synsets": np.zeros((2, 2))})
    with pytest.raises(StreamError, match="without ILSVRC2012_ID and WNID"):
        open_classified(flat, str(file), None)
    (tmp_path / "meta.mat").unlink()
    with pytest.raises(StreamError, match=r"put the kit's meta\.mat.*beside it.*or use Caffe's val\.txt"):
        open_classified(flat, str(file), None)
    for text, message in (
        ("", "empty"),
        ("a.jpg\n", r"line 1 is 'a\.jpg'; expected an image and its number"),
        ("a.jpg 1\na.jpg 2\n", r"line 2 names a\.jpg a second time"),
        ("a.jpg 1\n", r"has no label for it, its first image is 'a\.jpg' \(1 of 1"),
        ("ILSVRC2012_val_00000001.JPEG 1000\n", "expected a number from 0 to 999"),
        ("ILSVRC2012_val_00000001.JPEG -1\n", "expected a number from 0 to 999"),
        ("ILSVRC2012_val_00000001.JPEG n00000001\n", "'n00000001' is not one of the 1000"),
        ("ImageId,PredictionString\nILSVRC2012_val_00000001,\n", "has no label for it"),
        ("image,kind\na.jpg,cat\n", r"no column 'label' \(--label-column\); it has image, kind"),
    ):
        with pytest.raises(StreamError, match=message):
            open_classified(flat, str(write(tmp_path / "labels.txt", text)), None)
    with pytest.raises(UsageError, match="gives no files, so give their folder"):
        open_classified([], str(write(tmp_path / "LOC.csv", f"ImageId,PredictionString\nx,{TENCH} 1\n")), None)
    with pytest.raises(TextError, match=r"none\.txt: no such file"):
        open_classified(flat, str(tmp_path / "none.txt"), None)


# Tables


def test_tables_of_images_and_labels(tmp_path: Path) -> None:
    put(tmp_path, "pics/a.png", "pics/b.png", "pics/c.png")
    table = write(tmp_path / "labels.csv", 'image,label\npics/b.png,dog\npics/a.png,"great_white shark"\npics/c.png,dog\n')
    with_paths, alone = open_classified([str(tmp_path / "pics")], str(table), None), open_classified([], str(table), None)
    assert said(with_paths) == {"a.png": "great white shark", "b.png": "dog", "c.png": "dog"}
    assert said(alone) == {f"pics/{name}": what for name, what in said(with_paths).items()} and alone.source.load(0).size == (
        2,
        2,
    )
    numbered = write(tmp_path / "numbers.csv", "file,class,more\na.png,2,x\nb.png,0,y\nc.png,1,z\n")
    of_columns = functools.partial(open_classified, columns=Columns("file", "class"))
    digits = write(tmp_path / "digits.txt", "1\n2\n3\n")
    for classes in ("cifar10", str(digits)):  # of names that are numbers, a column with a 0 must hold numbers
        assert of_columns([str(tmp_path / "pics")], str(numbered), classes).label.tolist() == [2, 0, 1]
    named = write(tmp_path / "named.csv", "image,label\na.png,1\nb.png,2\nc.png,3\n")
    assert open_classified([str(tmp_path / "pics")], str(named), str(digits)).label.tolist() == [0, 1, 2]
    ids = write(tmp_path / "ids.csv", f"image,label\na.png,{TENCH}\nb.png,{SEA_SNAKE}\nc.png,{TENCH}\n")
    assert open_classified([str(tmp_path / "pics")], str(ids), None).label.tolist() == [0, 65, 0]
    with pytest.raises(UsageError, match="up to 2"):
        of_columns([str(tmp_path / "pics")], str(numbered), None)
    with pytest.raises(StreamError, match=r"c\.png: .*has no label for it, its first image is 'a\.png' \(1 of 3"):
        open_classified(
            [str(tmp_path / "pics")], str(write(tmp_path / "few.csv", "image,label\na.png,x\nb.png,y\nc.png,\n")), None
        )


# Archives


def benchmark(folder: Path, names: str, labels: list[int]) -> Path:
    """Write a data set as CLIP_benchmark does: shards in test/, with the names of the classes in the folder above."""
    (folder / "test").mkdir(parents=True)
    for shard in range(2):
        with webdataset.TarWriter(str(folder / f"test/{shard}.tar")) as writer:
            for index, label in list(enumerate(labels))[shard::2]:
                writer.write({"__key__": f"s{index:07d}", "png": b"never decoded", "cls": label})
    write(folder / "classnames.txt", names)
    return folder / "test"


def test_sets_of_clip_benchmark(tmp_path: Path) -> None:
    shards = benchmark(tmp_path / "wds", "salmon, smoked\ncat\ncat\n", [2, 0, 1])
    paths = [str(shards / "{0..1}.tar")]
    images = open_classified(paths, None, None)
    assert images.label.tolist() == [2, 1, 0] and images.classes_source == str(tmp_path / "wds" / "classnames.txt")
    assert images.classes == (ClassName("salmon, smoked"), ClassName("cat"), ClassName("cat"))
    assert open_classified(paths, "scenes", "cifar10").label.tolist() == [2, 1, 0]
    other = benchmark(tmp_path / "other", "dog\ncat\nbird\n", [1])
    with pytest.raises(StreamError, match="name other classes"):
        open_classified([*paths, str(other / "0.tar")], None, None)


def test_labels_in_archives(tmp_path: Path) -> None:
    """Labels may precede or follow the picture, as numbers, names or JSON; one picture's key may have a second dot."""
    members: dict[str, bytes | str] = {
        "a/1.cls": "2", "a/1.png": png(), "a/2.jpg": b"never decoded", "a/2.cls": b"0\n",
        "b/1.seg.png": png(), "b/1.JSON": '{"label": 1}', "c.png": png(), "c.json": '{"class": 2, "label": null}',
        "d.txt": "passed over", "d.png": png(), "d.json": "{}", "d.cls": "1",
    }  # fmt: skip
    packed = tar(tmp_path / "numbers.tar", members)
    wanted = {"a/1.png": 2, "a/2.jpg": 0, "b/1.seg.png": 1, "c.png": 2, "d.png": 1}
    images = open_classified([str(packed)], None, "cifar10")
    assert dict(zip(images.source.names, images.label.tolist(), strict=True)) == {
        f"numbers.tar/{k}": v for k, v in wanted.items()
    }
    with packed.open("rb") as stream:
        piped = open_classified(["-"], None, "cifar10", stdin=stream)
    assert dict(zip(piped.source.names, piped.label.tolist(), strict=True)) == wanted and piped.source.load(0).size == (2, 2)
    with pytest.raises(UsageError, match="numbers, up to 2"):
        open_classified([str(packed)], None, None)
    words = tar(
        tmp_path / "w.tar.gz", {"1.png": png(), "1.cls": "polar_bear", "2.json": '{"label": "ant"}', "2.png": png()}, "w:gz"
    )
    assert list(said(open_classified([str(words)], None, None)).values()) == ["polar bear", "ant"]
    ids = tar(tmp_path / "ids.tar", {"1.png": png(), "1.cls": TENCH, "2.png": png(), "2.json": json.dumps({"label": SEA_SNAKE})})
    assert open_classified([str(ids)], None, None).label.tolist() == [0, 65]


def test_archives_whose_labels_do_not_do(tmp_path: Path) -> None:
    first: dict[str, bytes | str] = {"1.png": png(), "1.cls": "0"}
    more: tuple[tuple[dict[str, bytes | str], str], ...] = (
        ({"2.png": png()}, r"2\.png: no member of its key ends in \.cls.*1 of 2 images"),
        ({"2.png": png(), "2.cls": "10"}, r"2\.png: label 10, expected a number from 0 to 9"),
        ({"2.png": png(), "2.cls": b"\xff"}, r"2\.cls: expected a label in UTF-8"),
        ({"2.png": png(), "2.json": "{"}, r"2\.png: the \.json of its key is no JSON"),
        ({"2.png": png(), "2.json": '{"label": true}'}, "of its key has label True, expected a number"),
        ({"2.png": png(), "2.json": '{"label": null}'}, "no member of its key"),
        ({"2.png": png(), "2.json": '{"names": ["cat", "dog"]}'}, r"shows 2 things \(cat, dog\)"),
    )
    for second, message in more:
        with pytest.raises(StreamError, match=message):
            open_classified([str(tar(tmp_path / "set.tar", {**first, **second}))], None, "cifar10")
    captions = tar(tmp_path / "captions.tar", {"1.png": png(), "1.json": '{"caption": "a cat"}'})
    with pytest.raises(StreamError, match="one class only"):
        open_classified([str(captions)], None, None)
    with pytest.raises(StreamError, match="no member of its key"):
        open_classified([str(captions)], "scenes", None)
    with pytest.raises(CliptoolsError, match="no images in"):
        open_classified([str(tar(tmp_path / "empty.tar", {"1.cls": "0", "1.json": "{}"}))], None, None)


def tars(path: Path, members: Sequence[tuple[str, bytes | str]]) -> str:
    """Write an archive whose members may share a name."""
    with tarfile.open(path, "w") as archive:
        for name, content in members:
            info = tarfile.TarInfo(name)
            data = content if isinstance(content, bytes) else content.encode()
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return str(path)


OTHER: list[tuple[str, bytes | str]] = [("2.png", b"never decoded"), ("2.cls", "1")]


@pytest.mark.parametrize(
    ("members", "named"),
    [
        (
            [("1.cls", "3"), ("1.png", b""), ("1.cls", "5")],
            r"1\.png: two labels under its key '1', 3 in .*1\.cls and 5 in .*1\.cls",
        ),
        ([("1.png", b""), ("1.cls", "3"), ("1.json", '{"label": 5}')], r"3 in .*1\.cls and 5 in .*1\.json"),
        ([("1.png", b""), ("1.cls", "3"), ("1.json", '{"label": "dog"}')], r"3 in .*1\.cls and 'dog' in .*1\.json"),
        ([("1.png", b""), ("1.cls", "cat"), ("1.txt", "dog\n")], r"'cat' in .*1\.cls and 'dog' in .*1\.txt"),
        ([("1.png", b""), ("1.cls", "cat"), ("1.front.cls", "gnu")], r"'cat' in .*1\.cls and 'gnu' in .*1\.front\.cls"),
        ([("1.png", b""), ("1.json", '{"label": 3, "class": 4}')], r"3 in .*1\.json and 4 in .*1\.json"),
        ([("1.png", b""), ("1.json", '{"label": 3, "label": 4}')], r"duplicate key 'label', with 3 and 4"),
        ([("1.png", b""), ("1.cls", "3"), *OTHER, ("1.cls", "5")], r"3 in .*1\.cls and 5 in .*1\.cls"),
    ],
)
def test_labels_that_contradict_each_other_are_refused(
    tmp_path: Path, members: list[tuple[str, bytes | str]], named: str
) -> None:
    packed = tars(tmp_path / "set.tar", [*members, ("0.png", b""), ("0.cls", "0")])
    for labels in (None, "scenes"):
        with pytest.raises(StreamError, match=named):
            open_classified([packed], labels, "cifar10")


def test_a_contradiction_names_the_key_and_where_it_ends(tmp_path: Path) -> None:
    for first, second, key in (("img.001", "img.002", "img"), ("a/b.1", "a/b.2", "b"), ("x", "x.front", "x")):
        said_twice: list[tuple[str, bytes | str]] = [(f"{first}.cls", "3"), (f"{second}.cls", "5"), (f"{first}.png", b"")]
        packed = tars(tmp_path / "set.tar", [*said_twice, *OTHER])
        with pytest.raises(StreamError, match=rf"two labels under its key '{key}', .*a key ends at the first dot of a name"):
            open_classified([packed], None, "cifar10")


def test_labels_of_archives_are_not_missed_for_the_first_picture(tmp_path: Path) -> None:
    """Before, if the first picture had no label, the names of the archives became the classes."""
    for first, message in (
        ([], r"0\.png: no member of its key ends in \.cls.*images without a label"),
        ([("0.cls", "\n")], r"0\.png: no member of its key ends in \.cls.*images without a label"),
        ([("0.json", '{"label": [1]}')], r"the \.json of its key has label \[1\], expected a number .*--labels folders"),
        ([("0.json", '{"label": 1.5}')], r"has label 1\.5, expected a number from 0"),
        ([("0.json", '{"class": true}')], r"has class True, expected a number from 0"),
    ):
        members: list[tuple[str, bytes | str]] = [("0.png", b""), *first, ("1.png", b""), ("1.cls", "3"), *OTHER]
        packed = [tars(tmp_path / f"{name}.tar", members) for name in ("cats", "dogs")]
        for classes in ("cifar10", None):
            with pytest.raises(StreamError, match=message):
                open_classified(packed[:1] if classes else packed, None, classes)
    members = [("0.png", b""), ("0.cls", "7.0\n"), ("1.png", b""), ("1.json", '{"label": 3.0}'), ("2.png", b""), ("2.cls", "5.")]
    assert open_classified([tars(tmp_path / "real.tar", members)], None, "cifar10").label.tolist() == [7, 3, 5]


def test_labels_that_say_the_same_twice(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Also if one label is a number and the other a name, or if a .txt is a caption."""
    packed = tars(
        tmp_path / "set.tar",
        [("1.png", b""), ("1.cls", "3"), ("1.cls", "3\n"), ("1.json", '{"label": "Cat", "class": 3}'), ("1.txt", "a dog"),
         ("2.png", b""), ("2.json", '{"label": "dog", "label": "dog", "names": ["dog"]}'), ("2.txt", "DOG"), ("2.cls", "\ufeff5"),
         ("3.png", b""), ("3.cls", "7"), ("3.txt", b"\xff")],
    )  # fmt: skip
    assert open_classified([packed], None, "cifar10").label.tolist() == [3, 5, 7] and capsys.readouterr().err == ""
    noted = tars(
        tmp_path / "noted.tar", [("1.png", b""), ("1.cls", "3"), ("1.json", '{"label": "good"}'), ("2.png", b""), ("2.cls", "5")]
    )
    assert open_classified([noted], None, "cifar10").label.tolist() == [3, 5]
    assert "1.json has 'good', which is not one of the classes of cifar10; noted.tar/1.cls counts" in capsys.readouterr().err


def test_members_of_a_key_that_stand_apart(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for members, labels in (
        ([("1.png", b""), ("2.png", b""), ("1.cls", "3"), ("2.cls", "5")], [3, 5]),
        ([("1.cls", "3"), ("2.json", '{"label": 5}'), ("2.png", b""), ("1.png", b"")], [5, 3]),
        ([("1.png", b""), ("1.cls", "3"), ("2.png", b""), ("2.cls", "5"), ("1.png", b""), ("1.cls", "7")], [3, 5, 7]),
        ([("1.png", b""), ("1.txt", "a cat"), ("2.png", b""), ("2.cls", "5"), ("1.cls", "3")], [3, 5]),
    ):
        packed = tars(tmp_path / "set.tar", members)
        assert open_classified([packed], None, "cifar10").label.tolist() == labels
        said = capsys.readouterr().err
        assert said.startswith("warning: set.tar/1.") and said.count("\n") == 1 and "do not stand next to each other" in said


def test_json_of_others_may_hold_nan(tmp_path: Path) -> None:
    records = ('{"score": NaN, "label": 3}', '{"a": [Infinity, {"b": -Infinity}], "class": "dog"}', '{"label": 7, "big": 1e999}')
    members = [each for n, record in enumerate(records) for each in ((f"{n}.png", b""), (f"{n}.json", record))]
    assert open_classified([tars(tmp_path / "set.tar", members)], None, "cifar10").label.tolist() == [3, 5, 7]
    for record in ('{"label": NaN}', '{"class": -Infinity}', '{"label": 1e999}', '{"label": NaN, "class": 3}'):
        packed = tars(tmp_path / "set.tar", [*members, ("9.png", b""), ("9.json", record)])
        with pytest.raises(StreamError, match=r"9\.png: the \.json of its key has (label|class) (nan|-?inf), expected a number"):
            open_classified([packed], None, "cifar10")


# Masks beside pictures


MAPS = (
    "seg.png",
    "mask.png",
    "masks.png",
    "depth.png",
    "label.png",
    "labels.tif",
    "SEG.PNG",
    "mask_2.png",
    "panoptic.png",
    "mask.jpg",
)


def test_maps_beside_pictures_are_no_photographs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    members: dict[str, bytes | str] = {
        "a/1.jpg": b"",
        "a/1.cls": "3",
        "a/2.v2.jpg": b"",
        "a/2.v2.mask.png": b"",
        "a/2.json": '{"label": 5}',
    }
    packed = tar(
        tmp_path / "set.tar", members | {f"a/1.{ending}": b"" for ending in MAPS} | {"a/3.mask.png": b"", "a/3.cls": "7"}
    )
    pictures = ["a/1.jpg", "a/2.v2.jpg", "a/3.mask.png"]
    labelled = open_classified([str(packed)], None, "cifar10")
    assert list(labelled.source.names) == [f"set.tar/{name}" for name in pictures] and labelled.label.tolist() == [3, 5, 7]
    assert "10 pictures left out, masks or other maps of pictures beside them: " in capsys.readouterr().err
    with packed.open("rb") as stream:
        assert list(open_images(["-"], stream).names) == pictures
    folder = put(
        tmp_path / "photos", "x/cat.jpg", "x/cat.mask.png", "x/dog.2.png", "x/dog.seg.png", "y/cat.mask.png", "y/v.label.png"
    )
    capsys.readouterr()
    assert list(open_images([str(folder)]).names) == [
        "x/cat.jpg",
        "x/dog.2.png",
        "x/dog.seg.png",
        "y/cat.mask.png",
        "y/v.label.png",
    ]
    said = capsys.readouterr().err
    assert said.startswith("1 picture left out, a mask") and said.rstrip().endswith("cat.mask.png, of " + f"{folder}/x/cat.jpg")
    assert list(open_images([f"{folder}/x/*"]).names) == ["cat.jpg", "dog.2.png", "dog.seg.png"]
    assert list(open_images([f"{folder}/x/cat.mask.png"]).names) == ["cat.mask.png"]


def test_scenes_that_are_torn_apart_are_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    draw("--count", 3, "-o", tmp_path / "scenes.tar")
    with tarfile.open(tmp_path / "scenes.tar") as archive:
        members = [(each.name, archive.extractfile(each).read()) for each in archive.getmembers()]  # type: ignore[union-attr]
    whole = tars(
        tmp_path / "whole.tar", [(n, d.replace(b"{", b'{"more": NaN, ', 1) if n.endswith("json") else d) for n, d in members]
    )
    assert len(list(masked_images(Path(whole)))) == 3 and "left out" not in capsys.readouterr().err
    torn = tars(tmp_path / "torn.tar", [*members[1:], members[0]])
    assert len(list(masked_images(Path(torn)))) == 2 and "2 keys left out, the first scene-000000" in capsys.readouterr().err


# Scenes


def draw(*arguments: object) -> None:
    """Draw scenes as clip-scenes does."""
    with pytest.raises(SystemExit) as end:
        draw_scenes.main([*map(str, arguments), "--size", "16", "-q"])
    assert end.value.code == 0


def test_scenes_as_folder_archive_and_stream(tmp_path: Path) -> None:
    for where in ("--out-dir", tmp_path / "singles"), ("-o", tmp_path / "singles.tar"):
        draw("--single", "--count", 12, *where)
    piped = (tmp_path / "singles.tar").read_bytes()
    for place in ("singles", "singles/images", "singles.tar", "-"):
        path = place if place == "-" else str(tmp_path / place)
        for labels in (None, "scenes"):
            images = open_classified([path], labels, None, stdin=io.BytesIO(piped))
            assert images.classes_source == "emoji" and len(images.classes) == len(concepts())
            numbers = [int(re.findall(r"scene-(\d+)", name)[0]) for name in images.source.names]
            assert images.label.tolist() == numbers  # every concept in turn
    by_folder = open_classified([str(tmp_path / "singles")], "folders", "emoji")
    assert sorted(by_folder.label.tolist()) == list(range(12))


def test_scenes_of_several_emoji_are_refused(tmp_path: Path) -> None:
    draw("--emoji", 2, "--count", 2, "-o", tmp_path / "scenes.tar")
    with pytest.raises(StreamError, match=r"it shows 2 things .*as clip-scenes --single draws"):
        open_classified([str(tmp_path / "scenes.tar")], None, None)
    write(tmp_path / "pics/scenes.jsonl", '{"key": "1", "names": ["cat"]}\n{"key": "2", "names": []}\n')
    put(tmp_path, "pics/1.png", "pics/2.png")
    with pytest.raises(StreamError, match=r"2\.png: it shows nothing|line 2 has no `key` with a list of `names`"):
        open_classified([str(tmp_path / "pics")], None, None)
    with pytest.raises(StreamError, match=r"--labels scenes: .*has no scenes\.jsonl in a folder above"):
        open_classified([str(put(tmp_path, "bare/1.png") / "bare")], "scenes", None)


def test_rendered_scenes_show_each_concept_in_turn() -> None:
    count = len(concepts())
    images = classified_scenes("emoji-rn2", 2 * count + 5, seed=3)
    turns = [images.label[:count], images.label[count : 2 * count]]
    assert all(sorted(turn) == list(range(count)) for turn in turns) and (turns[0] != turns[1]).any()
    assert images.source.load(0).size == (128, 128) and classified_scenes("emoji-vit2", 1, 0).source.load(0).size == (64, 64)
    assert [each.name for each in images.classes] == [concept.name for concept in concepts()]
    same = classified_scenes("emoji-rn2", 5, seed=3)
    assert (same.label == images.label[:5]).all() and same.source.load(4) == images.source.load(4)
    assert isinstance(images.source, SceneSource)
    scenes = {plan.scene.named[0]: plan.scene for plan in single_plans(count, 3)}
    assert all(images.source.scene(index) == scenes[int(images.label[index])] for index in range(0, count, 50))


# Rows


words = st.lists(st.sampled_from(["red", "Fox", "sea", "ANT", "Élan", "7"]), min_size=1, max_size=3)


@given(st.lists(words, min_size=1, max_size=8, unique_by=" ".join), st.sampled_from(["_", "-", " ", " - "]))
def test_names_are_found_however_they_are_spelled(names: list[list[str]], between: str) -> None:
    rows = ClassRows(tuple(ClassName("_".join(each), ("other " + " ".join(each),)) for each in names), "names")
    assert rows.of(["_".join(each) for each in names]) == list(range(len(names)))
    assert rows.of([between.join(each).swapcase() for each in [*names, ["nothing"]]]) == [*range(len(names)), NO_ROW]
    assert rows.of([between.join(["OTHER", *each]) for each in names]) == list(range(len(names)))


def test_names_come_before_synonyms() -> None:
    rows = ClassRows((ClassName("Dog", ("cat", "pet")), ClassName("cat"), ClassName("hamster", ("pet",))), "names")
    assert rows.of(["cat", "CAT", "dog", "pet"]) == [1, 1, 0, NO_ROW]


def test_a_table_may_name_what_is_no_file() -> None:
    names = ImageNames((".", "/", "a.JPEG"))
    assert names.find("photos/a.png") == "a.JPEG" and names.find("b.png") is None
