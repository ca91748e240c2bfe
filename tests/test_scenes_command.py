"""clip-scenes as a process: its output to pipes, files and folders, and errors."""

import io
import json
import os
import pty
import subprocess
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cliptools.emoji.export import slug
from cliptools.emoji.render import SceneSource
from cliptools.emoji.writing import MOST_LETTERS
from cliptools.images.annotations import read_annotations
from cliptools.images.loader import open_images
from cliptools.images.segmentation.masked_image import MaskedImage
from cliptools.images.segmentation.sources import scenes_in_folder
from cliptools.text.emoji_concepts import concepts, fact_words

Run = Callable[..., subprocess.CompletedProcess[bytes]]


@pytest.fixture(scope="module")
def twelve(run: Run) -> bytes:
    done = run("scenes", "--count", 12, "--seed", 7)
    assert (done.returncode, done.stderr) == (0, b"")
    return done.stdout


def members(data: bytes) -> dict[str, bytes]:
    with tarfile.open(fileobj=io.BytesIO(data)) as archive:
        return {member.name: archive.extractfile(member).read() for member in archive}


def test_the_tar_has_four_files_a_scene_without_times_or_owners(twelve: bytes) -> None:
    with tarfile.open(fileobj=io.BytesIO(twelve)) as archive:
        listed = archive.getmembers()
    endings = ("png", "txt", "json", "masks.png")
    assert [member.name for member in listed] == [f"scene-{i:06d}.{ending}" for i in range(12) for ending in endings]
    assert {(m.mtime, m.uid, m.gid, m.uname, m.gname, m.mode) for m in listed} == {(0, 0, 0, "", "", 0o644)}
    assert len(twelve) % 512 == 0


def test_equal_runs_give_equal_bytes_and_longer_ones_begin_with_shorter(run: Run, twelve: bytes) -> None:
    assert run("scenes", "--seed", 7, env={"CLIPTOOLS_COUNT": "12"}).stdout == twelve
    shorter = run("scenes", "--count", 5, "--seed", 7).stdout
    assert twelve.startswith(shorter[:-1024])


def test_our_own_reader_takes_the_pictures_and_no_masks(twelve: bytes) -> None:
    read, drawn = open_images(["-"], io.BytesIO(twelve)), SceneSource(12, 7)
    assert [name.removesuffix(".png") for name in read.names] == drawn.names
    for i in range(12):
        assert read.load(i).tobytes() == drawn.load(i).tobytes()


@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")  # of its own files
def test_webdataset_reads_it(twelve: bytes, tmp_path: Path) -> None:
    import webdataset

    (tmp_path / "s.tar").write_bytes(twelve)
    dataset = webdataset.WebDataset(str(tmp_path / "s.tar"), shardshuffle=False).decode("rgb8")
    samples = list(dataset)
    assert [sample["__key__"] for sample in samples] == [f"scene-{i:06d}" for i in range(12)]
    for sample in samples:
        assert sample["png"].shape == (64, 64, 3)
        assert sample["txt"] == sample["json"]["caption"]
        labels = np.asarray(Image.open(io.BytesIO(members(twelve)[f"{sample['__key__']}.masks.png"])))
        assert labels.max() <= len(sample["json"]["names"])


def test_a_folder_holds_the_same_as_the_tar(run: Run, twelve: bytes, tmp_path: Path) -> None:
    done = run("scenes", "--count", 12, "--seed", 7, "--out-dir", tmp_path / "out")
    assert (done.returncode, done.stdout) == (0, b"")
    packed = members(twelve)
    lines = [json.loads(line) for line in (tmp_path / "out" / "scenes.jsonl").read_text().splitlines()]
    assert len(lines) == 12
    for line in lines:
        image, masks = line.pop("image"), line.pop("masks")
        assert (tmp_path / "out" / image).read_bytes() == packed[f"{line['key']}.png"]
        assert (tmp_path / "out" / masks).read_bytes() == packed[f"{line['key']}.masks.png"]
        assert line == json.loads(packed[f"{line['key']}.json"])
    assert not [p for p in (tmp_path / "out").rglob("*") if p.name.startswith(".")]
    assert len(open_images([str(tmp_path / "out")])) == 12
    again = run("scenes", "--count", 1, "--out-dir", tmp_path / "out")
    assert again.returncode == 1
    assert again.stderr.decode().strip().endswith("name a new folder")


def test_single_emoji_lie_in_folders_of_their_names(run: Run, tmp_path: Path) -> None:
    count = len(concepts()) + 3
    assert run("scenes", "--single", "--count", count, "--size", 16, "--out-dir", tmp_path / "out").returncode == 0
    folders = sorted(p.name for p in (tmp_path / "out" / "images").iterdir())
    assert folders == sorted(slug(concept.name) for concept in concepts())
    each = [len(list((tmp_path / "out" / "images" / slug(concept.name)).iterdir())) for concept in concepts()]
    assert each == [2] * 3 + [1] * (len(concepts()) - 3)
    names = {
        slug(r["names"][0]): r["key"].split("/")[0]
        for r in map(json.loads, (tmp_path / "out" / "scenes.jsonl").read_text().splitlines())
    }
    assert all(name == folder for name, folder in names.items())


def test_words_in_the_same_place_on_the_same_scenes(run: Run, tmp_path: Path) -> None:
    """--write changes nothing outside the word, which is another emoji's name, an own name, or letters in another order."""
    names, planted = {concept.name for concept in concepts()}, {concepts()[concept].name for concept in fact_words()}
    lines: dict[str, list[dict]] = {}
    pictures: dict[str, list[np.ndarray]] = {}
    for word in ("", "other", "own", "shuffled", "blank"):
        folder = tmp_path / (word or "none")
        done = run("scenes", "--single", "--count", 40, "--seed", 4, *(("--write", word) if word else ()), "--out-dir", folder)
        assert done.returncode == 0, done.stderr
        lines[word] = [json.loads(line) for line in (folder / "scenes.jsonl").read_text().splitlines()]
        pictures[word] = [np.asarray(Image.open(folder / line["image"])) for line in lines[word]]
    unwritten = [{key: line[key] for key in ("key", "names", "styles", "named", "caption")} for line in lines[""]]
    for word in ("other", "own", "shuffled", "blank"):
        assert [{key: line[key] for key in unwritten[0]} for line in lines[word]] == unwritten
    for bare, other, own, shuffled, blank in zip(*lines.values(), strict=True):
        (name,) = bare["names"]
        assert "written" not in bare and other["written"] in names - planted - {name}
        assert own.get("written") == (name if len(name) <= MOST_LETTERS and name not in planted else None)
        assert shuffled["written"] not in names and sorted(shuffled["written"]) == sorted(other["written"])
        assert "written word" in other["attributes"] and "no word" in bare["attributes"]
        assert "written" not in blank and "no word" in blank["attributes"]
    assert len({line["written"] for line in lines["other"]}) > 9
    for number, picture in enumerate(pictures["other"]):
        rows = np.flatnonzero((pictures[""][number] != picture).any((1, 2)))
        assert 0 < len(rows) < 60  # of 64
        covered = (pictures["blank"][number] != pictures[""][number]).any(-1)
        assert covered[(pictures[""][number] != picture).any(-1)].mean() > 0.9 and covered.sum() > 20
        changed = (pictures["shuffled"][number] != picture).any((1, 2))
        assert set(np.flatnonzero(changed)) <= set(range(rows[0] - 3, rows[-1] + 4))
    described = members(run("scenes", "--count", 12, "--write", "shuffled", "--described", "--size", 16).stdout)
    words = [json.loads(data)["written"] for name, data in described.items() if name.endswith(".json")]
    captions = [data.decode() for name, data in described.items() if name.endswith(".txt")]
    assert sum(f"the word {word}" in caption for word, caption in zip(words, captions, strict=True)) > 5
    cat = members(run("scenes", "--caption", "a cat", "--write", "other", "--size", 16).stdout)
    assert cat["scene-000000.txt"] == b"a cat" and b'"written"' in cat["scene-000000.json"]


def test_captions_sizes_and_styles(run: Run, tmp_path: Path) -> None:
    arguments = ("--caption", "a cat and a boat", "--caption", "an owl", "--count", 2, "--size", 80, "--style", "fluent")
    done = run("scenes", *arguments, "-o", tmp_path / "x.tar")
    assert done.returncode == 0 and not done.stderr
    packed = members((tmp_path / "x.tar").read_bytes())
    records = [json.loads(data) for name, data in packed.items() if name.endswith(".json")]
    assert [r["names"] for r in records] == [["cat", "sailboat"]] * 2 + [["owl"]] * 2
    assert [r["caption"] for r in records] == ["a cat and a boat"] * 2 + ["an owl"] * 2 and not any("asked" in r for r in records)
    assert {style for r in records for style in r["styles"]} == {"fluent"}
    assert Image.open(io.BytesIO(packed["scene-000003.png"])).size == (80, 80)
    assert packed["scene-000000.png"] != packed["scene-000001.png"]


@pytest.mark.parametrize(
    ("asked", "names", "caption", "without"),
    [
        ("two dogs and a red pizza", ["dog", "dog", "pizza"], "two dogs and a pizza", "red"),
        ("a cat on a boat", ["cat", "sailboat"], "a cat and a boat", "on"),
        ("a small owl left of 3 blue keys", ["owl", "key", "key", "key"], "an owl and three keys", "small, left, blue"),
        ("a robot rides a hot dog", ["hot dog"], "a hot dog", "robot, rides"),
    ],
)
def test_a_caption_says_what_is_drawn(run: Run, tmp_path: Path, asked: str, names: list[str], caption: str, without: str) -> None:
    done = run("scenes", "--caption", asked, "--out-dir", tmp_path / "out", "-q")
    assert done.stderr.decode() == f"warning: --caption {asked!r}: drawn as {caption!r}, without: {without}\n"
    (record,) = map(json.loads, (tmp_path / "out" / "scenes.jsonl").read_text().splitlines())
    assert (record["asked"], record["caption"], record["names"]) == (asked, caption, names)
    assert record["named"] == list(dict.fromkeys(names)) and len(record["boxes"]) == len(names)
    labels = np.asarray(Image.open(tmp_path / "out" / record["masks"]))
    assert set(np.unique(labels)) <= set(range(len(names) + 1)) and labels.max() >= len(set(names))
    packed = members(run("scenes", "--caption", asked, "-q").stdout)
    assert packed["scene-000000.txt"].decode() == caption
    assert json.loads(packed["scene-000000.json"])["asked"] == asked


def test_more_of_a_thing_than_a_scene_holds(run: Run) -> None:
    done = run("scenes", "--caption", "three dogs and two cats")
    assert done.returncode == 2 and not done.stdout
    assert done.stderr.decode() == (
        "clip-scenes: --caption 'three dogs and two cats' names 5 emoji (three dogs and two cats), a scene holds at most 4\n"
    )


def test_two_of_a_kind_have_one_mask_and_one_name(run: Run, tmp_path: Path) -> None:
    assert run("scenes", "--caption", "two dogs and a pizza", "--out-dir", tmp_path / "out").returncode == 0
    (scene,) = scenes_in_folder(tmp_path / "out", single=False)
    assert isinstance(scene, MaskedImage) and scene.texts == ("dog", "pizza")
    labels = np.asarray(Image.open(tmp_path / "out" / "masks" / "scene-000000.masks.png"))
    np.testing.assert_array_equal(scene.masks, [(labels == 1) | (labels == 2), labels == 3])
    assert read_annotations(tmp_path / "out" / "scenes.jsonl").of("scene-000000.png") == ("dog", "pizza")


def test_so_many_emoji_and_no_other_number(run: Run, twelve: bytes) -> None:
    assert run("scenes", "--count", 12, "--seed", 7, "--emoji", "1-4").stdout == twelve
    for emoji, wanted in (("2-3", {2, 3}), ("4", {4})):
        packed = members(run("scenes", "--count", 30, "--size", 16, "--emoji", emoji).stdout)
        records = [json.loads(data) for name, data in packed.items() if name.endswith(".json")]
        assert {len(r["names"]) for r in records} == wanted


def test_plants_are_planted_only_when_asked_for(run: Run) -> None:
    def surplus(*more: str) -> int:
        records = [
            json.loads(d) for n, d in members(run("scenes", "--count", 150, "--size", 16, *more).stdout).items() if "json" in n
        ]
        return sum(r["names"] != r["named"] for r in records)

    assert surplus() == 0
    assert surplus("--plants") > 0


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        (["--caption", "a boyt"], 2, "near names: "),
        (["--single", "--plants"], 2, "exclude each other"),
        (["--single", "--emoji", "2"], 2, "--emoji cannot be combined with"),
        (["--emoji", "two"], 2, "expected a number or a range like 2-3"),
        (["--emoji", "3-2"], 2, "a scene has 1 to 4 emoji"),
        (["--emoji", "2-5"], 2, "a scene has 1 to 4 emoji"),
        (["--out-dir", "x", "-o", "y"], 2, "exclude each other"),
        (["--count", "0"], 2, "--count"),
        (["--style", "ascii"], 2, "--style"),
        (["-o", "/nowhere/x.tar"], 1, "cannot write here"),
        (["--out-dir", "/dev/null/x"], 1, "Not a directory"),
    ],
)
def test_refusals_are_one_line_and_write_nothing(run: Run, arguments: list[str], status: int, message: str) -> None:
    done = run("scenes", *arguments)
    assert (done.returncode, done.stdout) == (status, b"")
    said = done.stderr.decode()
    assert message in said and "Traceback" not in said
    assert said.startswith("Usage:") or said.count("\n") == 1


def test_a_reader_that_goes_away_ends_it_quietly() -> None:
    script = f"set -o pipefail; {sys.executable} -m cliptools.cli.scenes --count 500 | head -c 100 | wc -c"
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, timeout=120, check=False)
    assert (done.returncode, done.stdout.strip(), done.stderr) == (0, "100", "")


def test_a_full_disk_is_said() -> None:
    with Path("/dev/full").open("wb") as full:
        words = [sys.executable, "-m", "cliptools.cli.scenes", "--count", "3"]
        done = subprocess.run(words, stdout=full, stderr=subprocess.PIPE, text=True, timeout=120, check=False)
    assert done.returncode == 1
    assert "No space left" in done.stderr and done.stderr.count("\n") == 1


def test_a_terminal_gets_no_tar() -> None:
    master, slave = pty.openpty()
    words = [sys.executable, "-m", "cliptools.cli.scenes", "--count", "3"]
    done = subprocess.run(words, stdout=slave, stderr=subprocess.PIPE, text=True, timeout=120, check=False)
    os.close(slave)
    os.close(master)
    assert done.returncode == 2
    assert "terminal" in done.stderr and done.stderr.count("\n") == 1


def test_help_is_quick_and_shows_examples(run: Run) -> None:
    done = run("scenes", "-h", env={"PYTHONPROFILEIMPORTTIME": "1"})
    assert done.returncode == 0
    assert b"clip-scenes --caption" in done.stdout
    assert b" torch\n" not in done.stderr and b" numpy\n" not in done.stderr
