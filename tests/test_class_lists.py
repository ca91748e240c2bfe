"""Lists of classes in all supported forms: how they are understood, and that prompts contain only names."""

import functools
import io
import json
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml  # type: ignore[import-untyped]
from click.testing import CliRunner

from cliptools.cli.ablate import main as ablate
from cliptools.cli.effects import main as effects
from cliptools.cli.scenes import main as scenes
from cliptools.errors import TextError
from cliptools.images.classification import open_classified
from cliptools.images.classification.class_rows import NO_ROW, load_rows, rows_named
from cliptools.text.class_lists import entries
from cliptools.text.classes import ClassName, class_list, distinct_classes, distinct_names, load_classes
from cliptools.text.vocabularies import load_pool

IDS = ("n01440764", "n01443537", "n01484850", "n02119789")
NAMES = ("tench, Tinca tinca", "goldfish, Carassius auratus", "great white shark, white shark", "kit fox, Vulpes macrotis")
SHORT = [name.split(",")[0] for name in NAMES]


def numbered(between: str) -> str:
    return "".join(f"{number}{between}{name}\n" for number, name in enumerate(SHORT))


def table(head: str, rows: str) -> str:
    return head + "\n" + "".join(rows.format(i=i, id=IDS[i], name=NAMES[i], short=SHORT[i]) + "\n" for i in range(len(IDS)))


FORMS: dict[str, str] = {
    "plain.txt": "".join(f"{name}\n" for name in NAMES),
    "quoted.txt": "".join(f'"{name}",\n' for name in NAMES),
    "single.txt": "".join(f"'{name}',\n" for name in NAMES),
    "dashes.txt": "".join(f"- {name}\n" for name in NAMES),
    "array.json": json.dumps(NAMES, indent=1),
    "rows.json": json.dumps(list(zip(IDS, NAMES, strict=True))),
    "synonyms.json": json.dumps([name.split(", ") for name in NAMES]),
    "numbers.json": json.dumps(dict(enumerate(NAMES))),
    "shuffled.json": json.dumps({number: NAMES[number] for number in (2, 0, 3, 1)}),
    "by-name.json": json.dumps({name: number for number, name in enumerate(NAMES)}),
    "class_index.json": json.dumps({i: [IDS[i], SHORT[i].replace(" ", "_")] for i in range(4)}),
    "by-id.json": json.dumps(dict(zip(IDS, NAMES, strict=True))),
    "config.json": json.dumps({"model_type": "vit", "id2label": dict(enumerate(NAMES)), "label2id": {"x": 0}}),
    "annotations.json": json.dumps(
        {"images": [{"id": 7}], "categories": [{"id": 4 - i, "supercategory": "x", "name": SHORT[3 - i]} for i in range(4)]}
    ),
    "lines.jsonl": "".join(json.dumps({"name": name, "id": i}) + "\n" for i, name in enumerate(NAMES)),
    "texts.jsonl": "".join(json.dumps({"text": name}) + "\n" for name in NAMES),
    "printed.txt": str(dict(enumerate(NAMES))).replace(", 1:", ",\n 1:"),
    "printed-list.txt": str(list(NAMES)),
    "gist.txt": str({i: {"id": f"{IDS[i][1:]}-n", "label": NAMES[i], "uri": f"http://x/{i}"} for i in range(4)}),
    "ordered.txt": f"OrderedDict({list(enumerate(NAMES))})",
    "module.py": f'"""Names."""\nimagenet_classes = {list(NAMES)}\n\ntemplates = ["a {{}}", "the {{}}"]\n',
    "LOC_synset_mapping.txt": "".join(f"{number} {name}\n" for number, name in zip(IDS, NAMES, strict=True)),
    "tabs.txt": "".join(f"{number}\t{name}\n" for number, name in zip(IDS, NAMES, strict=True)),
    "map_clsloc.txt": "".join(f"{IDS[i]} {i + 1} {SHORT[i].replace(' ', '_')}\n" for i in range(4)),
    "behind.txt": "".join(f"{name}, {number}\n" for number, name in zip(IDS, SHORT, strict=True)),
    "number-id.txt": "".join(f"{i}: {IDS[i]} {NAMES[i]}\n" for i in range(4)),
    "folders.txt": "".join(f"{number}-{name.replace(' ', '_')}/\n" for number, name in zip(IDS, SHORT, strict=True)),
    "wnids.txt": "\n".join(IDS),
    "blank.txt": numbered(" "),
    "colon.txt": numbered(": "),
    "comma.txt": numbered(","),
    "dot.txt": numbered(". "),
    "bracket.txt": numbered(") "),
    "semicolon.txt": numbered(";"),
    "number-behind.txt": "".join(f"{name},{i}\n" for i, name in enumerate(SHORT)),
    "csv-quoted.txt": "".join(f'{i},"{name}"\n' for i, name in enumerate(NAMES)),
    "cub.txt": "".join(f"{i + 1} {i + 1:03d}.{name.replace(' ', '_')}\n" for i, name in enumerate(SHORT)),
    "table.csv": table("id,wnid,name", '{i},{id},"{name}"'),
    "pandas.csv": table(",class_name", '{i},"{name}"'),
    "table.tsv": table("index\tlabel", "{i}\t{name}"),
    "other-heads.csv": table("ClassId,Sign,", "{i},{short},").replace(",\n", "\n"),
    "column.csv": table("class_name", '"{name}"'),
    "coco.yaml": "path: ../coco  # root\nnames:\n" + "".join(f"  {i}: {name}\n" for i, name in enumerate(SHORT)),
    "roboflow.yaml": f"nc: 4\nnames: {SHORT}\n",
    "list.yaml": yaml.safe_dump({"names": list(NAMES)}),
    "folder-index.json": json.dumps({f"{i + 1:03d}.{name.replace(' ', '_')}": i for i, name in enumerate(SHORT)}),
    "id-folders.json": json.dumps({f"{IDS[i]}-{name.replace(' ', '_')}": i for i, name in enumerate(SHORT)}),
    "counts.csv": table("label,count", "{i:03d}.{short},13{i}"),
    "fractions.csv": table("id,name", '{i}.0,"{name}"'),
    "fractions-bare.txt": "".join(f"{i}.0,{name}\n" for i, name in enumerate(SHORT)),
    "fractions.json": json.dumps({name: float(i) for i, name in enumerate(SHORT)}),
    "dataset_info.json": json.dumps(
        {"features": {"image": {"_type": "Image"}, "label": {"names": NAMES, "_type": "ClassLabel"}}}
    ),
    "dataset_infos.json": json.dumps({"default": {"description": "fish", "features": {"label": {"names": NAMES}}, "size": 3}}),
    "card.yaml": yaml.safe_dump(
        {"dataset_info": {"features": [{"name": "label", "dtype": {"class_label": {"names": dict(enumerate(NAMES))}}}]}}
    ),
    "synsets.txt": "".join(f"{name.replace(' ', '_')}.n.0{i + 1}\n" for i, name in enumerate(SHORT)),
    "find.txt": "".join(f"/data/train/{name.replace(' ', '_')}\n" for name in SHORT),
    "ls.txt": "".join(f"train/{name.replace(' ', '_')}/\n" for name in SHORT),
    "marks.txt": "\ufeff" + "".join(f"\u200b{name}\n\ufeff" for name in NAMES),
}


def write(path: Path, text: str) -> str:
    path.write_text(text, encoding="utf-8")
    return str(path)


@pytest.mark.parametrize("name", FORMS)
def test_every_form_gives_the_same_classes_in_order(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = write(tmp_path / name, FORMS[name])
    listed = class_list(file, known=False)
    assert [each.name for each in listed.classes] == SHORT
    assert listed.ids in ((), IDS)
    assert not listed.ids or load_rows(file).of(IDS) == [0, 1, 2, 3]
    said = capsys.readouterr().err.splitlines()[0]
    assert said.startswith(f"classes {file}: ") and said.endswith("4 classes, in prompts: tench, goldfish, great white shark, …")


def test_what_else_a_list_says(tmp_path: Path) -> None:
    cub = load_rows(write(tmp_path / "classes.txt", FORMS["cub.txt"]))
    assert cub.of(["003.great_white_shark", "great-white shark", 3]) == [2, 2, 2]
    assert cub.of(["1", "4"]) == [0, 3] and cub.of([0, 5]) == [NO_ROW] * 2
    assert "expected a number from 1 to 4, as the list has them" in str(cub.refusal("a.png", 0))
    index = load_rows(write(tmp_path / "index.json", FORMS["folder-index.json"]))
    assert index.of(["003.great_white_shark", "tench", 3, "004.kit_fox"]) == [2, 0, 3, 3]
    gaps = load_rows(write(tmp_path / "gaps.json", '{"7": "dog", "3": "cat"}'))
    assert [each.name for each in gaps.classes] == ["cat", "dog"] and gaps.of([7, 3, 0]) == [1, 0, NO_ROW]
    own = load_rows(write(tmp_path / "own.txt", "n01440764 dog\nn02119789 cat\n"))
    assert own.of(["n02119789", "n01440764-any", "n01443537"]) == [1, 0, NO_ROW]
    places = load_rows(write(tmp_path / "places.txt", "/a/airfield 0\n/a/apartment_building/outdoor 1\n"))
    assert [each.name for each in places.classes] == ["airfield", "apartment building outdoor"]
    images = load_rows(write(tmp_path / "open-images.csv", "/m/011k07,Tortoise\n/m/011q46kg,Container\n"))
    assert images.of(["/m/011q46kg", "tortoise"]) == [1, 0]
    ade = class_list(write(tmp_path / "ade.csv", "Idx,Ratio,Train,Name\n1,0.15,11664,wall\n2,0.1,6046,building;edifice\n"))
    assert ade.classes[1].names == ("building", "edifice") and ade.numbers == (1, 2)


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("C# logo\n#1 fan\nF#\n", ["C# logo", "#1 fan", "F#"]),
        ("# pets\n#\n## more\ncat  # of mine\ndog\t# another\n", ["cat", "dog"]),
        ("level 1\nlevel 2\n", ["level 1", "level 2"]),
        ("Boeing 707\nAirbus 320\n", ["Boeing 707", "Airbus 320"]),
        ("707-320\n727-200\nA380\n", ["707-320", "727-200", "A380"]),
        ("2 door car\n2 seat sofa\n", ["2 door car", "2 seat sofa"]),
        ("0\n1\n2\n", ["0", "1", "2"]),
        ('["3 musketeers", "7 dwarfs"]', ["3 musketeers", "7 dwarfs"]),
        ('["[big] dog", "a | b"]', ["[big] dog", "a | b"]),
        ("(tennis) ball\nmaillot (tank suit)\n", ["(tennis) ball", "maillot (tank suit)"]),
        ("sofa, category\nlabel\ncarpenter's kit\n", ["sofa", "label", "carpenter's kit"]),
        ("id,name\n0,0\n1,1\n", ["0", "1"]),
        ("names:\n- no\n- yes\n- 1.0\n", ["no", "yes", "1.0"]),
        ("1 dollar\n2 dollars\n", ["1 dollar", "2 dollars"]),
        ("1 Series\n2 Series\n3 Series\n", ["1 Series", "2 Series", "3 Series"]),
        ('["1-euro coin", "2-euro coin"]', ["1-euro coin", "2-euro coin"]),
        ("0.5 litres\n1.5 litres\n", ["0.5 litres", "1.5 litres"]),
        ("001.7-Eleven\n002.Cat\n", ["7-Eleven", "Cat"]),
        ('{"0": "1-way sign", "1": "2-way sign"}', ["1-way sign", "2-way sign"]),
        ('{"0": "3 musketeers", "1": "7 dwarfs"}', ["3 musketeers", "7 dwarfs"]),
        ('{"747": 1, "707": 0, "A380": 2}', ["707", "747", "A380"]),
        ('{"0": {"name": "cat", "classes": ["a", "b", "c"]}, "1": {"name": "dog"}}', ["cat", "dog"]),
        ('{"model": {"classes": ["cat", "dog"], "width": 3}}', ["cat", "dog"]),
        ('{"label2id": {"747": "1", "707": "0"}}', ["707", "747"]),
        ("id,name\n3.0,cat\n1.0,dog\n", ["dog", "cat"]),
        ("7-Eleven\n2 CV\n747\n401k\n", ["7-Eleven", "2 CV", "747", "401k"]),
    ],
)
def test_names_stay_what_they_are(tmp_path: Path, text: str, names: list[str]) -> None:
    assert [each.name for each in load_classes(write(tmp_path / "classes", text), known=False)] == names


def test_only_a_list_is_taken_for_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """tests/faults/messages.txt has the messages for ambiguous lists; this test has other inputs of the same kinds."""
    for text, message in (
        ("0 tench\n1 goldfish\n2 cat\ndog\n", "3 of 4 lines begin with its running number, line 4"),
        ("id name\n0 cat\n1 dog\n", "line 1 does not .'id name'"),
        ("tench: 3\ngoldfish: 9\n", "numbers after all names, which do not run from 0 or 1"),
        ("cat,1300\ndog,1300\n", "numbers after all names"),
        ("| 0 | tench |\n| 1 | cat |\n", r"line 1 is .* with '\|'"),
        ("n01440764\ttench\ta fish\nn01443537\tgoldfish\ta fish\n", "line 1 is 'tench.*with"),
        ('{"0": "cat", "0": "dog"}', "number 0 stands for both 'cat'"),
        ('{"0": "n01440764 tench", "1": "cat"}', "with 'n01440764'"),
        ("[" * 100_000, "nested more than 100 deep"),
        ("names:\n  - a: [\n", "not YAML"),
        ("[True, False]", "expected a name, a number or an id"),
        ("cat; dog; owl\n", "one line with commas, 'cat; dog; owl'"),
        ("['cat', 'dog']\n['owl', 'bat']\n", r"2 lists \(in line 1, in line 2\), expected one"),
        ("“cat”\n“dog”\n", "line 1 is '“cat”', with"),
        (".\n./cat\n./dog\n", "line 1 is '.'"),
        ("cat.n.01: cat, true cat\ndog.n.01: dog\n", r"with '\.n\.01'"),
        ("index,name\n4,cat\n,dog\n", "line 3 has nothing in column 'index'; expected a number"),
        ('{"features": {"fine": {"names": ["a", "b"]}, "coarse": {"names": ["c", "d"]}}}', "objects within objects"),
        ("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n", "a pointer of Git LFS"),
        ("\n<!DOCTYPE html>\n<p>cat</p>\n", "a web page"),
        ("404: Not Found", "a server's answer"),
    ):
        with pytest.raises(TextError, match=message):
            load_classes(write(tmp_path / "classes", text))
    monkeypatch.setattr(entries, "LONGEST_LITERAL", 10)
    with pytest.raises(TextError, match="characters that are not JSON"):
        load_classes(write(tmp_path / "classes", "['cat', 'dog', 'bird']"))


def test_columns_of_a_table_are_not_taken_for_synonyms(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Before, a table with an unknown header gave one class too many, with the second column as synonyms."""
    for text in ("breed,origin\nbeagle,England\npug,China\n", "apple;fruit\nleek;vegetable\n"):
        with pytest.raises(TextError, match="columns without a header that says what they are"):
            load_classes(write(tmp_path / "breeds.csv", text), known=False)
        assert len(load_classes(write(tmp_path / "breeds.txt", text), known=False)) == text.count("\n")
    uneven = load_classes(write(tmp_path / "uneven.csv", "sofa, couch\ndog\n"), known=False)
    assert uneven == (ClassName("sofa", ("couch",)), ClassName("dog"))
    load_classes(write(tmp_path / "one.csv", "breed\nbeagle\npug\n"), known=False)
    assert "a class a line, the first line among them; 3 classes, in prompts: breed, beagle" in capsys.readouterr().err


ENCODINGS = ("utf-8", "utf-8-sig", "utf-16", "utf-32")


@pytest.mark.parametrize("encoding", ENCODINGS)
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_encodings_and_ends_of_lines(tmp_path: Path, encoding: str, end: str) -> None:
    data = end.join(["café", "naïve", "", "dog", ""]).encode(encoding)
    (tmp_path / "texts").write_bytes(data)
    (tmp_path / "table").write_bytes(end.join(["id,name", "1,café", "0,naïve"]).encode(encoding))
    assert [each.name for each in load_classes(str(tmp_path / "texts"), known=False)] == ["café", "naïve", "dog"]
    assert [each.name for each in load_classes(str(tmp_path / "table"), known=False)] == ["naïve", "café"]
    assert load_pool(str(tmp_path / "texts")).texts == ("café", "naïve", "dog")
    assert load_pool(str(tmp_path / "texts")).digest == load_pool(write(tmp_path / "same", "café\nnaïve\ndog\n")).digest


def test_other_encodings_are_named(tmp_path: Path) -> None:
    for data, message in (
        (b"cat\ndog\rcaf\xe9\n", r"byte 0xe9 in line 3 \(byte 11 of the file\)"),
        ("cat\n".encode("utf-16-le"), "byte 0x00 in line 1 .*UTF-16 without its byte order mark"),
        (b"\xff\xfec\0a\0t\0\n\0d", r"damaged UTF-16-LE in line 2 \(byte 10"),
    ):
        (tmp_path / "texts").write_bytes(data)
        for read in (load_classes, load_pool):
            with pytest.raises(TextError, match=message):
                read(str(tmp_path / "texts"))


# Names that stand twice


def test_names_twice_are_classes_of_their_own(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for text in ("bed\ncat\nbed\n", '["bed", "cat", "bed"]', '{"bed": 0, "cat": 1, "bed": 2}', "0: bed\n1: cat\n2: bed\n"):
        assert [each.name for each in load_classes(write(tmp_path / "classes", text), known=False)] == ["bed", "cat", "bed"]
        assert capsys.readouterr().err.count("warning: ") == 1
    assert load_rows(write(tmp_path / "classes", "bed\ncat\nbed\n")).of([2, "cat", "bed"]) == [2, 1, NO_ROW]
    names, owner = distinct_names((ClassName("bed", ("cot",)), ClassName("cat"), ClassName("bed", ("cat", "bunk"))), "x")
    assert dict(zip(names, owner, strict=True)) == {"bed": 0, "cot": 0, "cat": 1, "bunk": 2}
    assert "synonym 'cat' left out, because several classes have it (places 2, 3)" in capsys.readouterr().err
    assert distinct_classes([ClassName("a", ("b",)), ClassName("a", ("c",))]) == (ClassName("a", ("b", "c")),)


# Folders of classes


def test_folders_with_an_id_or_a_number_before_the_name(capsys: pytest.CaptureFixture[str]) -> None:
    for labels, names in (
        (["n02085620-Chihuahua", "n02085782-Japanese_spaniel"], ["Chihuahua", "Japanese spaniel"]),
        (["001.Black_footed_Albatross", "002.Laysan_Albatross"], ["Black footed Albatross", "Laysan Albatross"]),
        (["3 dogs", "7_cats"], ["3 dogs", "7 cats"]),
        (["great_white", "zebra"], ["great white", "zebra"]),
        (["great_white_shark.n.01", "tench.n.01"], ["great white shark", "tench"]),
        (["1_dollar", "2_dollars"], ["1 dollar", "2 dollars"]),
        (["0.5_litres", "1.5_litres"], ["0.5 litres", "1.5 litres"]),
    ):
        rows = rows_named(reversed(labels))
        assert [each.name for each in rows.classes] == names and rows.of(labels) == [0, 1]
    assert "in prompts: Chihuahua, Japanese spaniel" in capsys.readouterr().err
    with pytest.raises(TextError, match="1 of 2 lines begins with an id"):
        rows_named(["n00000001_x", "dog"])


# The accuracy, which is what lists are for

COUNT = 20


def invoked(command: Any, *arguments: object, stdin: bytes = b"") -> bytes:
    result = CliRunner().invoke(command, list(map(str, arguments)), input=stdin)
    assert result.exit_code == 0, result.stderr
    return result.stdout_bytes


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, str], tuple[dict[str, Any], str]]:
    """Return the unchanged model's record for a class file with this name and content."""
    place = tmp_path_factory.mktemp("lists")
    bundle = place / "bundle.safetensors"
    invoked(effects, "--limit", 12, "--layers", 5, "--top-images", 4, "-q", "-o", bundle)
    invoked(scenes, "--single", "--count", COUNT, "-q", "-o", place / "singles.tar")
    numbers = place / "numbers.tar"
    with tarfile.open(place / "singles.tar") as archive, tarfile.open(numbers, "w") as target:
        for member in archive.getmembers():
            content = archive.extractfile(member)
            assert content is not None
            data = content.read()
            if member.name.endswith(".json"):
                member.name = member.name.removesuffix(".json") + ".cls"
                data = str(COUNT - 1 - int(json.loads(data)["key"].rpartition("-")[2])).encode()
                member.size = len(data)
            target.addfile(member, io.BytesIO(data))

    @functools.cache
    def measure(name: str, text: str) -> tuple[dict[str, Any], str]:
        arguments = [numbers, "--bundle", bundle, "--classes", write(place / name, text), "--ablate", "none", "-f", "jsonl"]
        result = CliRunner().invoke(ablate, list(map(str, arguments)))
        assert result.exit_code == 0, result.stderr
        return json.loads(result.stdout.splitlines()[0]), result.stderr

    return measure


def test_top1_is_the_same_with_every_form(measured: Callable[[str, str], tuple[dict[str, Any], str]]) -> None:
    names = [each.name for each in load_classes("emoji", known=False)[:COUNT]][::-1]  # in the order of the labels
    ids = [f"n{number:08d}" for number in range(COUNT)]
    plain, _ = measured("plain.txt", "\n".join(names))
    assert plain["top1"]["value"] > 0.7 and plain["n"] == COUNT
    forms = {
        "array.json": json.dumps(names),
        "mapping.txt": "".join(f"{number} {name}, {name} of Latin\n" for number, name in zip(ids, names, strict=True)),
        "printed.txt": str(dict(enumerate(names))),
        "class_index.json": json.dumps({n: [ids[n], names[n].replace(" ", "_")] for n in reversed(range(COUNT))}),
        "table.csv": "wnid,name,index\n" + "".join(f'{ids[n]},"{names[n]}",{n}\n' for n in reversed(range(COUNT))),
    }
    for form, text in forms.items():
        record, said = measured(form, text)
        assert record["top1"] == plain["top1"] and record["cosine"] == plain["cosine"], form
        assert f"{COUNT} classes, in prompts: {', '.join(names[:3])}, …" in said


def test_a_class_named_twice_keeps_its_number(measured: Callable[[str, str], tuple[dict[str, Any], str]]) -> None:
    """A second class of the same name moves no other class; the images of both count for the first."""
    names = [each.name for each in load_classes("emoji", known=False)[:COUNT]][::-1]
    plain, _ = measured("plain.txt", "\n".join(names))
    repeated, said = measured("twice.txt", "\n".join([*names[:-1], names[0]]))
    assert said.count("stand for several of the 20 classes") == 1
    assert plain["top1"]["value"] - 2 / COUNT <= repeated["top1"]["value"] < plain["top1"]["value"] + 2 / COUNT


def test_lists_in_prompts_of_folders(tmp_path: Path) -> None:
    from PIL import Image

    for name in ("001.Black_footed_Albatross", "002.Laysan_Albatross"):
        (tmp_path / "birds" / name).mkdir(parents=True)
        Image.new("RGB", (2, 2)).save(tmp_path / "birds" / name / "1.png")
    classes = write(tmp_path / "names.txt", "Laysan Albatross\nBlack footed Albatross\n")
    assert open_classified([str(tmp_path / "birds")], None, classes).label.tolist() == [1, 0]
    images = open_classified([str(tmp_path / "birds")], None, None)
    assert [each.name for each in images.classes] == ["Black footed Albatross", "Laysan Albatross"]
