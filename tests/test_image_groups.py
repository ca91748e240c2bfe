"""Groups of images from folders, scenes, columns and the metadata of Waterbirds and CelebA, and scenes of groups."""

import io
import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from helpers.advgen_input import inside
from helpers.images import encoded, picture

from cliptools.emoji.attributes import attributes_of
from cliptools.emoji.export import Plan
from cliptools.emoji.group_scenes import SPLITS, group_fact, group_pair, group_plans, neutral_concepts, other_properties
from cliptools.emoji.looks import OUTLINE, SILHOUETTE, Look
from cliptools.emoji.scenes import scene_of
from cliptools.errors import CliptoolsError, StreamError, UsageError
from cliptools.images.classification.grouped import ImageGroups, groups_of, open_grouped
from cliptools.images.groups import Columns
from cliptools.images.tar import write_end, write_member
from cliptools.text.attributes import attribute_groups
from cliptools.text.emoji_concepts import PLANTED_KINDS, concept_index, concepts, fact_words, facts, plants


def put(folder: Path, *names: str) -> Path:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(encoded(picture()))
    return folder


def by_image(found: tuple, full: bool = False) -> dict[str, str]:
    """Return the name of each image's group; of an image by its last part."""
    images, groups = found
    names = [name if full else name.rpartition("/")[2] for name in images.source.names]
    return {name: groups.names[g] for name, g in zip(names, groups.of, strict=True)}


BIRDS = {"1.png": "land bird/water", "2.png": "land bird/land", "3.png": "water bird/water", "4.png": "water bird/land"}
PLACES = ("land_bird/water/1.png", "land_bird/land/2.png", "water_bird/water/3.png", "water_bird/land/4.png")


@pytest.mark.parametrize("above", ["", "test/", "data/test/"])
@pytest.mark.parametrize("archive", [False, True])
def test_two_levels_of_folders(tmp_path: Path, above: str, archive: bool) -> None:
    """Folders that all images share do not count, in a folder or in an archive."""
    names = [above + name for name in PLACES]
    path = put(tmp_path / "birds", *names)
    if archive:
        path = tmp_path / "birds.tar"
        with path.open("wb") as stream:
            for name in names:
                write_member(stream, name, encoded(picture()))
            write_end(stream)
    images, groups = open_grouped([str(path)], "folders", None, None)
    assert by_image((images, groups)) == BIRDS
    assert [row.name for row in images.classes] == ["land bird", "water bird"]
    assert groups.names == ("land bird/land", "land bird/water", "water bird/land", "water bird/water")
    assert groups.tasks == (("", (0, 1, 2, 3), (0, 1)),) and groups.training is None
    assert images.label.tolist() == [groups.names[g].startswith("water bird") for g in groups.of]


def test_three_levels_are_tasks(tmp_path: Path) -> None:
    put(tmp_path, "t1/cat/sea/1.png", "t1/dog/sea/2.png", "t2/cow/sea/3.png", "t2/dog/sky/4.png")
    images, groups = open_grouped([str(tmp_path)], "folders", None, None)
    assert groups.names == ("t1/cat/sea", "t1/dog/sea", "t2/cow/sea", "t2/dog/sky")
    assert [row.name for row in images.classes] == ["cat", "cow", "dog"]
    assert groups.tasks == (("t1", (0, 1), (0, 2)), ("t2", (2, 3), (1, 2)))


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (("cat/1.png", "dog/2.png"), "1.png lies in cat; expected CLASS/VALUE/IMAGE"),
        (("cat/sea/1.png", "dog/2.png"), "dog/2.png lies in"),
        (("a/t/cat/sea/1.png", "b/t/cat/sea/1.png"), "expected CLASS/VALUE/IMAGE, or TASK/CLASS/VALUE/IMAGE"),
        (("val/cat/sea/1.png", "test/cat/sea/1.png"), "test and val are parts of a data set"),
        (("t/cat/sea/1.png", "u/cat/sea/1.png", "u/dog/sea/1.png"), "all images of t have the same class"),
    ],
)
def test_other_folders_are_refused(tmp_path: Path, names: tuple[str, ...], message: str) -> None:
    put(tmp_path, *names)
    with pytest.raises(StreamError, match=message):
        open_grouped([str(tmp_path)], "folders", None, None)


WATERBIRDS = """img_id,img_filename,y,split,place,place_filename
1,001.A/a.png,0,0,1,/x
2,001.A/b.png,0,2,0,/x
3,002.B/c.png,1,2,1,/x
4,002.B/d.png,1,1,0,/x
5,002.B/e.png,1,2,0,/x
6,001.A/f.png,0,0,0,/x
7,001.A/g.png,0,0,0,/x
8,001.A/h.png,0,2,1,/x
"""


def test_waterbirds(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    put(tmp_path, *(line.split(",")[1] for line in WATERBIRDS.splitlines()[1:]))
    table = tmp_path / "metadata.csv"
    table.write_text(WATERBIRDS)
    found = open_grouped([], str(table), None, None)
    expected = {
        "b.png": "landbird/land", "c.png": "waterbird/water", "e.png": "waterbird/land", "h.png": "landbird/water",
    }  # fmt: skip
    assert by_image(found) == expected == by_image(open_grouped([str(tmp_path)], str(table), None, None, split="test"))
    assert found[1].training == {"landbird/land": 2, "landbird/water": 1, "waterbird/land": 0, "waterbird/water": 0}
    found[0].source.load(0)
    assert "no image of" not in capsys.readouterr().err
    table.write_text(WATERBIRDS.replace("h.png,0,2,", "h.png,0,1,"))
    assert open_grouped([], str(table), None, None)[1].names == ("landbird/land", "waterbird/land", "waterbird/water")
    assert "no image of landbird/water, which training images have" in capsys.readouterr().err
    table.write_text(WATERBIRDS)
    training = open_grouped([], str(table), None, None, split="train")
    assert by_image(training)["f.png"] == "landbird/land" and len(training[0].source) == 3
    (tmp_path / "names.txt").write_text("bird of land\nbird of water\n")
    named = open_grouped([], str(table), None, str(tmp_path / "names.txt"))
    assert by_image(named)["h.png"] == "bird of land/water"
    with pytest.raises(StreamError, match=r"has no row for"):
        open_grouped([str(put(tmp_path / "more", "z.png"))], str(table), None, None)
    table.write_text(WATERBIRDS.replace(",1,2,1,", ",3,2,1,"))
    with pytest.raises(StreamError, match=r"c.png has y '3' and place '1', expected 0 or 1"):
        open_grouped([], str(table), None, None)


CELEBA = """6
5_o_Clock_Shadow Blond_Hair Male
000001.png -1  1 -1
000002.png  1 -1  1
000003.png  1  1  1
000004.png  1 -1 -1
000005.png  1 -1 -1
000006.png  1  1  1
"""


@pytest.mark.parametrize(("separator", "mark"), [(";", ""), ("\t", ""), (";", "\ufeff")])
def test_metadata_with_other_separators(tmp_path: Path, separator: str, mark: str) -> None:
    """Spreadsheets write semicolons, tabs and a byte-order mark."""
    put(tmp_path, "1.png", "2.png")
    rows = ("img_id,img_filename,y,split,place,place_filename", "1,1.png,0,2,1,/b", "2,2.png,1,2,0,/a", "3,3.png,1,0,0,/a")
    (tmp_path / "metadata.csv").write_text(mark + "\r\n".join(rows).replace(",", separator) + "\r\n", encoding="utf-8")
    found = open_grouped([], str(tmp_path / "metadata.csv"), None, None)
    assert by_image(found) == {"1.png": "landbird/water", "2.png": "waterbird/land"}
    assert found[1].training == {"landbird/water": 0, "waterbird/land": 1}


@pytest.mark.parametrize("ending", ["txt", "csv"])
def test_celeba(tmp_path: Path, ending: str) -> None:
    put(tmp_path / "img_align_celeba", *(f"00000{number}.png" for number in range(1, 7)))
    rows, splits = CELEBA, "".join(f"00000{number}.png {split}\n" for number, split in enumerate("222201", 1))
    if ending == "csv":
        rows = "image_id," + "\n".join(",".join(line.split()) for line in CELEBA.splitlines()[1:])
        splits = "image_id,partition\n" + splits.replace(" ", ",")
    table = tmp_path / f"list_attr_celeba.{ending}"
    table.write_text(rows)
    with pytest.raises(StreamError, match=f"expected list_eval_partition.{ending} beside it"):
        open_grouped([], str(table), None, None)
    (tmp_path / f"list_eval_partition.{ending}").write_text(splits)
    found = open_grouped([], str(table), None, None)
    dark, blond = "person with dark hair", "person with blond hair"
    assert by_image(found) == {
        "000001.png": f"{blond}/female", "000002.png": f"{dark}/male", "000003.png": f"{blond}/male",
        "000004.png": f"{dark}/female",
    }  # fmt: skip
    assert found[1].training is not None and found[1].training[f"{dark}/female"] == 1
    found[0].source.load(3)
    (tmp_path / f"list_eval_partition.{ending}").rename(tmp_path / f"list_eval_partition.{'txt' if ending == 'csv' else 'csv'}")
    assert by_image(open_grouped([], str(table), None, None)) == by_image(found)


def test_a_column_beside_the_labels(tmp_path: Path) -> None:
    put(tmp_path, *(f"{number}.png" for number in range(5)))
    table = tmp_path / "table.csv"
    table.write_text("image,label,place,split\n0.png,cat,sea,train\n1.png,cat,sky,val\n2.png,dog,sea,val\n3.png,dog,,val\n")
    with pytest.raises(StreamError, match=r"no place of 3.png"):
        open_grouped([], "place", str(table), None)
    table.write_text("image,label,place,split\n0.png,cat,sea,train\n1.png,cat,sky,val\n2.png,dog,sea,val\n3.png,dog,sea,train\n")
    everything = open_grouped([], "place", str(table), None)
    assert by_image(everything) == {"0.png": "cat/sea", "1.png": "cat/sky", "2.png": "dog/sea", "3.png": "dog/sea"}
    found = open_grouped([], "place", str(table), None, split="validation")
    assert by_image(found) == {"1.png": "cat/sky", "2.png": "dog/sea"}
    assert found[1].training == {"cat/sky": 0, "dog/sea": 1}
    for arguments, kind, message in (
        (("place", "-"), UsageError, "name a file for --labels"),
        (("colour", str(table)), StreamError, "no column 'colour' \\(--groups\\)"),
        (("place", None), UsageError, "expected folders, scenes, the metadata of"),
        (("folders", "folders"), UsageError, "leave out --labels"),
        ((str(table), None), StreamError, "has neither the columns of Waterbirds"),
    ):
        with pytest.raises(kind, match=message):
            open_grouped([], *arguments, None)
    with pytest.raises(StreamError, match="no image of the split test; there are train, validation"):
        open_grouped([], "place", str(table), None, split="test")
    with pytest.raises(StreamError, match="has no label for it"):
        open_grouped([str(tmp_path)], "place", str(table), None, Columns())


def test_values_that_a_program_gives(tmp_path: Path) -> None:
    images, groups = open_grouped([str(put(tmp_path, *PLACES))], "folders", None, None)
    values = [name.split("/")[1] for name in images.source.names]
    given = groups_of(images, values)
    assert given.names == groups.names and given.of.tolist() == groups.of.tolist()
    with pytest.raises(UsageError, match="groups: 3 for 4 images"):
        groups_of(images, values[:3])


def scenes(*more: object) -> bytes:
    ended = inside("scenes", "--groups", "--size", 16, *more)
    assert ended.returncode == 0, ended.stderr
    return ended.stdout


def check_scenes(groups: ImageGroups, count: int) -> None:
    assert len(groups.tasks) == len(plants()) and Counter(groups.of.tolist()) == dict.fromkeys(range(4 * len(plants())), count)
    for task, plant in zip(sorted(groups.tasks), sorted(plants(), key=lambda plant: group_pair(plant, 3).name), strict=True):
        pair = group_pair(plant, 3)
        a, b, c = (concepts()[concept].name for concept in pair)
        assert {groups.names[g] for g in task.groups} == {
            f"{pair.name}/{label}/{beside}" for label in (a, c) for beside in (b, "other")
        }
        assert task.name == pair.name and len(task.classes) == 2


def test_scenes_of_groups_in_an_archive_and_in_a_folder(tmp_path: Path) -> None:
    path, folder = tmp_path / "scenes.tar", tmp_path / "scenes"
    path.write_bytes(scenes("--count", 1, "--seed", 3))
    for split in SPLITS:
        images, groups = open_grouped([str(path)], "scenes", None, None, split=split)
        check_scenes(groups, 1)
        assert all(f"{split}/" in name for name in images.source.names)
        named = by_image((images, groups), full=True)
    scenes("--count", 2, "--seed", 3, "--split", "test", "--out-dir", folder)
    found = open_grouped([str(folder)], "scenes", None, None)
    check_scenes(found[1], 2)
    of_folders = open_grouped([str(folder / "images")], "folders", None, None)
    assert [task.name for task in of_folders[1].tasks] == [task.name for task in found[1].tasks]
    assert of_folders[1].of.tolist() == found[1].of.tolist()
    in_folder = {name.partition("test/")[2]: group for name, group in by_image(found, full=True).items()}
    assert all(in_folder[name.partition("test/")[2]] == group for name, group in named.items())
    with pytest.raises(StreamError, match="images of the splits validation, test; expected --split"):
        open_grouped([str(path)], "scenes", None, None)
    with pytest.raises(CliptoolsError, match="has no record: expected KEY"):
        open_grouped([str(put(tmp_path / "bare", "a/b/1.png"))], "scenes", None, None)
    (tmp_path / "plain.tar").write_bytes(inside("scenes", "--count", 1).stdout)
    with pytest.raises(StreamError, match="has no `pair`, `label`, `beside` and `split`"):
        open_grouped([str(tmp_path / "plain.tar")], "scenes", None, None)


def test_scenes_show_what_their_records_say() -> None:
    """Class and thing are drawn, nothing else; splits share no scene; longer sequences begin with the shorter ones."""
    plans = list(group_plans(3, 5))
    assert len(plans) == 3 * 2 * 4 * len(plants()) == len({plan.key for plan in plans})
    assert len({repr(plan.scene.sprites) for plan in plans}) == len(plans)
    shorter = list(group_plans(2, 5, ["test"]))
    longer = list(group_plans(3, 5, ["test"]))
    assert longer[: len(shorter)] == shorter and longer == plans[len(longer) :]
    neutral, by_name = set(neutral_concepts()), {concept.name: number for number, concept in enumerate(concepts())}
    for plan in plans:
        label, beside = by_name[plan.truth["label"]], plan.truth["beside"]
        a, c = (by_name[name] for name in plan.truth["classes"])
        drawn = [sprite.concept for sprite in plan.scene.sprites]
        assert len(drawn) == 2 and label in drawn and label in (a, c) and c in neutral
        (thing,) = set(drawn) - {label}
        cue = next(plant.cue for plant in plants() if plant.named == a and group_pair(plant, 5).other_class == c)
        assert thing == cue if beside != "other" else thing in neutral - {c}
        assert plan.scene.hidden == () and set(plan.scene.named) == set(drawn)
    fronts = [plan.scene.sprites[1].concept == by_name[plan.truth["label"]] for plan in plans]
    assert 0.35 < np.mean(fronts) < 0.65
    assert len({group_pair(plants()[0], seed).other_class for seed in range(8)}) > 4


KINDS = PLANTED_KINDS[1:]


def by_property(plans: list[Plan]) -> dict[tuple[str, str, str, str], tuple[Plan, Plan]]:
    """Return the scenes with and without the property by split, fact, class and number."""
    found: dict[tuple[str, str, str, str], dict[bool, Plan]] = {}
    for plan in plans:
        split, fact, label, beside, number = plan.key.split("/")
        found.setdefault((split, fact, label, number), {})[beside != "other"] = plan
    return {key: (pair[True], pair[False]) for key, pair in found.items()}


def test_scenes_of_facts_differ_in_the_property_only() -> None:
    """The thing is the same drawing in the same place, nothing else is shown, and all but the property is the same."""
    plans = list(group_plans(3, 5, kinds=KINDS))
    assert len(plans) == 3 * 2 * 4 * len(facts()) == len({plan.key for plan in plans})
    assert not {plan.key for plan in plans} & {plan.key for plan in group_plans(3, 5)}
    assert sorted(plan.key for plan in group_plans(2, 5, kinds=PLANTED_KINDS)) == sorted(
        plan.key for kinds in (("pair",), KINDS) for plan in group_plans(2, 5, kinds=kinds)
    )
    shorter, longer = (list(group_plans(count, 5, ["test"], PLANTED_KINDS)) for count in (1, 2))
    assert longer[: len(shorter)] == shorter
    by_name, of_fact = concept_index(), {group_fact(fact, 5).name: group_fact(fact, 5) for fact in facts()}
    scenes: dict[str, set[str]] = {}
    for (split, name, _, number), (having, lacking) in by_property(plans).items():
        fact, other_class = of_fact[name]
        index = SPLITS.index(split) + 2 * int(number.removeprefix("scene-"))
        for plan in (having, lacking):
            label = by_name[plan.truth["label"]]
            assert label in (fact.named, other_class) and plan.truth["kind"] == fact.kind
            assert plan.truth["classes"] == [concepts()[fact.named].name, concepts()[other_class].name]
            base = scene_of([label], 5, index)
            (thing,) = plan.scene.sprites
            assert plan.scene.named == (label,) and not plan.scene.hidden and thing._replace(look=Look()) == base.sprites[0]
            assert fact.kind == "style" or thing.look == Look()
            assert (plan.scene.writing is None) == (fact.kind != "word") and plan.truth["split"] == split
            if fact.kind != "ground":
                assert plan.scene.ground == base.ground
            scenes.setdefault(f"{name}/{label}", set()).add(repr(plan.scene))
        assert (having.truth["beside"], lacking.truth["beside"]) == (fact.cue, "other")
        check_property(fact, having, lacking, other_class)
    assert all(len(drawn) == 3 * 2 * 2 for drawn in scenes.values())  # no scene stands in two splits


def check_property(fact, having: Plan, lacking: Plan, other_class: int) -> None:
    """The one scene has the property of the fact, the other one another property of the same kind, in the same way."""
    if fact.kind == "word":
        goat, ball = having.scene.writing, lacking.scene.writing
        assert goat is not None and ball is not None and goat.text == fact.cue and ball.text in other_properties(fact)
        assert ball.concept != other_class and ball._replace(concept=goat.concept) == goat
    elif fact.kind == "style":
        ways = [plan.scene.sprites[0].look for plan in (having, lacking)]
        assert {look.way for look in ways} == {SILHOUETTE, OUTLINE} and ways[1]._replace(way=ways[0].way) == ways[0]
        assert fact.cue in attributes_of(having.scene) and fact.cue not in attributes_of(lacking.scene)
        assert {look.other for look in ways} == {having.scene.sprites[0].style}  # a blend would show another style
    else:
        group = next(group for group in attribute_groups() if fact.cue in group.words)
        cues, others = (set(attributes_of(plan.scene)) & set(group.words) for plan in (having, lacking))
        assert fact.cue in cues and fact.cue not in others and others & set(other_properties(fact))
        kinds, colours = ({getattr(plan.scene.ground, field) for plan in (having, lacking)} for field in ("kind", "colours"))
        assert (len(kinds), len(colours)) == ((1, 2) if group.name == "ground" else (2, 1))


def test_other_classes_and_properties_of_facts_are_of_no_fact() -> None:
    planted = {fact.named for fact in facts()} | fact_words()
    for fact in facts():
        classes = {group_fact(fact, seed).other_class for seed in range(40)}
        assert len(classes) > 20 and classes <= set(neutral_concepts()) - planted
        others = other_properties(fact)
        assert fact.cue not in others and len(others) == len(set(others)) >= (1 if fact.kind == "style" else 3)
        assert fact.kind == "style" or not set(others) & {other.cue for other in facts()}
        assert fact.kind != "word" or not {concept_index()[cue] for cue in others} & planted


def test_groups_of_facts_on_the_command_line(tmp_path: Path) -> None:
    """The groups are read back by records and by folders; pairs are drawn as without --kind."""
    path, folder = tmp_path / "scenes.tar", tmp_path / "scenes"
    words = ("--count", 2, "--seed", 3, "--kind", "word", "--kind", "style")
    path.write_bytes(scenes(*words))
    scenes(*words, "--split", "test", "--out-dir", folder)
    wanted = [fact for fact in facts() if fact.kind in ("word", "style")]
    for images, groups in (
        open_grouped([str(path)], "scenes", None, None, split="test"), open_grouped([str(folder)], "scenes", None, None),
        open_grouped([str(folder / "images")], "folders", None, None),
    ):  # fmt: skip
        assert sorted(task.name for task in groups.tasks) == sorted(group_fact(fact, 3).name for fact in wanted)
        assert Counter(groups.of.tolist()) == dict.fromkeys(range(4 * len(wanted)), 2) and len(images.source) == 8 * len(wanted)
    lines = [json.loads(line) for line in (folder / "scenes.jsonl").read_text().splitlines()]
    assert Counter(line["kind"] for line in lines) == {"word": 3 * 8, "style": 2 * 8}
    assert all(("written" in line) == (line["kind"] == "word") for line in lines)
    assert scenes("--count", 1, "--kind", "pair") == scenes("--count", 1)


def test_refusals_of_clip_scenes() -> None:
    for words, message in (
        (("--groups", "--single"), "exclude each other"),
        (("--groups", "--emoji", 2), "cannot be combined with"),
        (("--split", "test"), "--split needs --groups"),
        (("--kind", "word"), "--kind needs --groups"),
        (("--groups", "--write", "own"), "cannot be combined with"),
    ):
        ended = inside("scenes", *words)
        assert ended.returncode == 2 and message in ended.stderr.decode()


def test_records_of_scenes(tmp_path: Path) -> None:
    scenes("--count", 1, "--split", "validation", "--out-dir", tmp_path / "scenes")
    lines = [json.loads(line) for line in (tmp_path / "scenes" / "scenes.jsonl").read_text().splitlines()]
    assert len(lines) == 4 * len(plants())
    for line in lines:
        assert set(line) >= {"key", "names", "boxes", "caption", "split", "pair", "classes", "label", "beside", "image", "masks"}
        assert line["key"].startswith(f"validation/{line['pair']}/") and line["label"] in line["names"]
        assert (tmp_path / "scenes" / line["image"]).is_file()
    assert io.BytesIO(scenes("--count", 1)).getvalue() == scenes("--count", 1)
