"""clip-advgen as a process, with plain sentences and the emoji painter."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import ROOT
from helpers.advgen_input import WORDS, inside, lines, model, parsed
from PIL import Image
from scipy.stats import binomtest

from cliptools.emoji.words import concepts_in
from cliptools.models.load import load_model
from cliptools.text.emoji_concepts import concept_index

Run = Callable[..., subprocess.CompletedProcess[bytes]]
PLAIN = ("--llm", "template", "-f", "jsonl")


@pytest.fixture(scope="module")
def twelve() -> bytes:
    done = inside("advgen", *PLAIN, "--take", 4, "--images", 3, stdin=lines(*WORDS))
    assert done.returncode == 0, done.stderr
    return done.stdout


def error(done: subprocess.CompletedProcess[bytes]) -> str:
    """Return the one line of a failed command."""
    assert done.returncode in (1, 2) and done.stdout == b"", (done.returncode, done.stdout[:200])
    said = done.stderr.decode().strip().splitlines()
    assert len(said) == 1 and said[0].startswith("clip-advgen: "), said
    return said[0]


def test_records_say_what_was_drawn_and_how_it_was_seen(twelve: bytes) -> None:
    records = parsed(twelve)
    assert [(r["caption"], r["copy"]) for r in records] == [(i, j) for i in range(4) for j in range(3)]
    for record in records:
        drawn = concepts_in(record["description"])
        assert concept_index()["panda"] in drawn and len(record["words"]) == 3 and len(drawn) == 4
        assert record["fooled"] == (record["margin"] > 0)
        assert record["model"] == model() and record["bundle"] == "f00d"
        assert record["check"]["by"] == "scene" and record["check"]["predicted"] is False
        assert record["settings"] == {"llm": "template", "words_per_caption": 3, "seed": 0, "painter": "emoji", "size": 64}
    assert len({r["image_seed"] for r in records}) == 12
    used = [word for r in records[::3] for word in r["words"]]
    assert sorted(used) == sorted(2 * WORDS), "words are dealt so that all are used alike"


def test_margins_are_those_of_the_pictures(twelve: bytes, tmp_path: Path) -> None:
    """⟨M(I), v⟩ is computed again from the PNG with open_clip's own functions."""
    done = inside("advgen", *PLAIN, "--take", 4, "--images", 3, "--out-dir", tmp_path / "out", stdin=lines(*WORDS))
    assert done.returncode == 0, done.stderr
    loaded = load_model()
    import open_clip

    tokens = open_clip.get_tokenizer(f"local-dir:{ROOT / 'cliptools/data/models/emoji-vit2'}")(["cat", "panda"])
    with torch.inference_mode():
        cat, panda = torch.nn.functional.normalize(loaded.clip.encode_text(tokens), dim=1)
        for record, bare in zip(parsed(done.stdout), parsed(twelve), strict=True):
            picture = Image.open(record["file"])
            assert picture.info == {} and picture.size == (64, 64)
            seen = loaded.clip.encode_image(loaded.transform(picture)[None])[0]
            assert record["margin"] == pytest.approx(float((seen / seen.norm()) @ (cat - panda)), abs=1e-5)
            assert record | {"file": None, "margin": pytest.approx(bare["margin"], abs=1e-5)} == bare
    kept = parsed((tmp_path / "out" / "images.jsonl").read_bytes())
    assert [tmp_path / "out" / r["file"] for r in kept] == [Path(r["file"]) for r in parsed(done.stdout)]


def test_pairs_of_like_names_have_folders_of_their_own(tmp_path: Path) -> None:
    given = lines(*WORDS) + lines(*WORDS, predict="cat!") + lines(*WORDS, depict="熊猫", predict="猫")
    done = inside("advgen", *PLAIN, "--take", 2, "--images", 1, "--out-dir", tmp_path / "out", stdin=given)
    assert done.returncode == 0, done.stderr
    files = [Path(record["file"]).relative_to(tmp_path / "out") for record in parsed(done.stdout)]
    assert len(set(files)) == 6 and len({file.parts[0] for file in files}) == 3
    assert files[0].parts[0] == "panda-to-cat" and files[4].parts[0] == "熊猫-to-猫"


def test_a_cat_fools_where_a_panda_does_not(tmp_path: Path) -> None:
    """Pictures from another source are judged: the sign of the margin follows their content."""
    records = []
    for name in ("cat", "panda"):
        done = inside("scenes", "--caption", name, "--count", 4, "--size", 128, "--out-dir", tmp_path / name)
        assert done.returncode == 0
        for file in sorted((tmp_path / name / "images").iterdir()):
            records.append({"depict": "panda", "predict": "cat", "model": model(), "file": str(file)})
    stdin = b"".join(json.dumps(record).encode() + b"\n" for record in records)
    done = inside("advgen", "--images-only", "-f", "jsonl", "--judge", "emoji-vit2", stdin=stdin)
    assert done.returncode == 0, done.stderr
    found = parsed(done.stdout)
    assert [r["fooled"] for r in found] == [True] * 4 + [False] * 4
    assert [(r["check"]["depicted"], r["check"]["predicted"]) for r in found] == [(False, True)] * 4 + [(True, False)] * 4
    assert found[0]["file"] == records[0]["file"] and found[0]["pair"] == "panda->cat" and found[0]["description"] is None
    note = done.stderr.decode()
    assert "8 pictures" in note and "of the 4 that show panda and no cat, 0: 0.0 % (0.0–49.0)" in note


def test_unreadable_pictures_are_named_and_skipped(tmp_path: Path) -> None:
    (tmp_path / "bad.png").write_bytes(b"\x89PNG nothing")
    Image.new("RGB", (9, 5), "red").save(tmp_path / "good.png")
    base = {"depict": "panda", "predict": "cat", "model": model()}
    given = b"".join(json.dumps(base | {"file": str(tmp_path / f"{n}.png")}).encode() + b"\n" for n in ("bad", "gone", "good"))
    done = inside("advgen", "--images-only", "-f", "jsonl", stdin=given)
    assert done.returncode == 0 and [Path(r["file"]).stem for r in parsed(done.stdout)] == ["good"]
    assert done.stderr.decode().count("skipped") == 2 and "gone.png" in done.stderr.decode()
    assert "bad.png" in error(inside("advgen", "--images-only", "--strict", "-f", "jsonl", stdin=given))
    none = b"\n".join(given.splitlines()[:2])
    done = inside("advgen", "--images-only", "-f", "jsonl", stdin=none)
    assert done.returncode == 1 and "none of 2 pictures" in done.stderr.decode()


def test_two_halves_make_the_whole(twelve: bytes, tmp_path: Path) -> None:
    captions = inside("advgen", "--llm", "template", "--take", 4, "--captions-only", stdin=lines(*WORDS))
    assert captions.returncode == 0 and len(parsed(captions.stdout)) == 4
    done = inside("advgen", "--images-only", "--painter", "emoji", "--images", 3, "-f", "jsonl", stdin=captions.stdout)
    assert done.stdout == twelve
    table = inside("advgen", "--images-only", "--images", 3, "-f", "table", "-o", tmp_path / "t.txt", stdin=captions.stdout)
    assert table.returncode == 0 and table.stdout == b""
    row = (tmp_path / "t.txt").read_text().splitlines()[1]
    assert row.split()[:5] == ["panda->cat", "second-order", "effect", "0", "12"]


def test_seeds_and_pairs(twelve: bytes) -> None:
    both = lines(*WORDS) + lines(*WORDS, depict="frog", predict="dog") + lines(*WORDS, by="random", seed=3)
    done = inside("advgen", *PLAIN, "--take", 4, "--images", 3, stdin=both)
    found = parsed(done.stdout)
    assert len(found) == 36
    for record, alone in zip(found[:12], parsed(twelve), strict=True):  # embedded in other batches: equal but for the last bits
        assert record | {"margin": pytest.approx(alone["margin"], abs=1e-5)} == alone
    notes = done.stderr.decode().splitlines()
    titles = (
        "panda->cat by second-order effect, seed 0",
        "frog->dog by second-order effect, seed 0",
        "panda->cat by random, seed 3",
    )
    assert [note.split(":")[0] for note in notes] == list(titles)
    fooled = sum(r["fooled"] for r in parsed(twelve))
    ends = [f"{100 * end:.1f}" for end in binomtest(fooled, 12).proportion_ci(method="wilson")]
    rate = f"{100 * fooled / 12:.1f} % ({'–'.join(ends)})"
    assert notes[0].startswith(f"{titles[0]}: {fooled} of 12 pictures fool emoji-vit2: {rate}")
    other = inside("advgen", *PLAIN, "--take", 4, "--images", 3, "--seed", 1, stdin=lines(*WORDS))
    assert [r["description"] for r in parsed(other.stdout)] != [r["description"] for r in parsed(twelve)]


def test_words_are_those_that_are_drawn() -> None:
    """A teddy bear is no bear, although both words are in the list."""
    given = lines("teddy bear", "bear", "hot dog", "key", "crown")
    records = parsed(inside("advgen", *PLAIN, "--take", 8, "--images", 1, stdin=given).stdout)
    assert len(records) == 8 and any("teddy bear" in r["words"] for r in records) and any("bear" in r["words"] for r in records)
    for record in records:
        assert len(record["words"]) == 3 and sorted(record["drawn"]) == sorted([*record["words"], "panda"])


@pytest.mark.parametrize(
    ("description", "words", "drawn", "left"),
    [
        ("Two pandas on a table with a rocket", ["rocket"], ["panda", "panda", "rocket"], "on 1, table 1"),
        ("a panda with freedom and a polar bear", [], ["panda", "polar bear"], "freedom 1"),
        ("three pandas, a key and a small crown", ["key"], ["panda", "panda", "key", "crown"], "small 1"),
    ],
)
def test_a_record_says_what_of_its_description_is_drawn(description: str, words: list[str], drawn: list[str], left: str) -> None:
    line = json.loads(lines("rocket")) | {"description": description, "words": ["bear", "rocket", "key", "freedom"]}
    done = inside("advgen", "--images-only", "--images", 2, "-f", "jsonl", stdin=json.dumps(line).encode())
    assert [(r["description"], r["words"], r["drawn"]) for r in parsed(done.stdout)] == 2 * [(description, words, drawn)]
    said = f"some words are not drawn in 1 of 1 description ({left}); `drawn` lists what the pictures show"
    assert done.stderr.decode().splitlines()[-1] == said


def files(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def test_a_killed_run_goes_on_and_ends_as_if_it_had_not_been(run: Run, tmp_path: Path) -> None:
    given = lines(*WORDS)
    options = (*PLAIN, "--take", "4", "--images", "12", "--batch-size", "4")
    whole = run("advgen", *options, "--out-dir", tmp_path / "whole", stdin=given)
    assert whole.returncode == 0
    command = [sys.executable, "-m", "cliptools.cli.advgen", *options, "--out-dir", str(tmp_path / "cut")]
    process = subprocess.Popen(
        command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
        pipesize=4096,  # a reader that is slow holds the writer back, so that it is killed in the middle
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    with process:
        process.stdin.write(given)
        process.stdin.close()
        written = [process.stdout.readline() for _ in range(5)]
        process.send_signal(signal.SIGKILL)
    assert 5 <= len(parsed((tmp_path / "cut" / "images.jsonl").read_bytes()[:-1].rpartition(b"\n")[0])) + 1 < 48
    with (tmp_path / "cut" / "images.jsonl").open("ab") as stream:
        stream.write(b'{"pair": "pan')  # as a machine that stops in the middle of a line leaves it
    before = {name: (tmp_path / "cut" / name).stat().st_mtime_ns for name in files(tmp_path / "cut") if name.endswith(".png")}
    time.sleep(0.01)
    again = run("advgen", *options, "--out-dir", tmp_path / "cut", "--resume", stdin=given)
    assert again.returncode == 0, again.stderr
    assert again.stdout.replace(b"/cut/", b"/whole/") == whole.stdout
    assert again.stdout.startswith(b"".join(written)) and again.stderr == whole.stderr
    assert files(tmp_path / "cut") == files(tmp_path / "whole")
    kept = [name for name, when in before.items() if (tmp_path / "cut" / name).stat().st_mtime_ns == when]
    assert len(kept) >= 5, "finished pictures are not made again"


def test_resume_wants_the_same_options_and_an_old_folder_a_word(tmp_path: Path) -> None:
    small = (*PLAIN, "--take", 2, "--images", 2, "--out-dir", tmp_path / "out")
    assert inside("advgen", *small, stdin=lines(*WORDS)).returncode == 0
    assert error(inside("advgen", *small, stdin=lines(*WORDS))).endswith("name a new folder")
    other = error(inside("advgen", *small, "--resume", "--size", 32, stdin=lines(*WORDS)))
    assert "started with size 64, now asked for 32" in other
    assert "started with" in error(inside("advgen", *small, "--resume", "--seed", 5, stdin=lines(*WORDS)))
    (tmp_path / "out" / "panda-to-cat" / "second-order-effect-0" / "001-000.png").unlink()
    more = inside("advgen", *small, "--resume", "--images", 3, stdin=lines(*WORDS))
    assert more.returncode == 0 and len(parsed(more.stdout)) == 6
    assert all(Path(r["file"]).is_file() for r in parsed(more.stdout))


def test_what_is_done_survives_a_later_failure(tmp_path: Path) -> None:
    """The second description names no emoji, which ends the run with --strict; the first description's pictures are complete."""
    captions = inside("advgen", "--llm", "template", "--take", 2, "--captions-only", stdin=lines(*WORDS)).stdout.splitlines()
    broken = json.loads(captions[1]) | {"description": "a thing that nobody draws"}
    given = captions[0] + b"\n" + json.dumps(broken).encode() + b"\n"
    options = ("--images-only", "--images", 4, "--batch-size", 4, "-f", "jsonl", "--out-dir", tmp_path / "out")
    done = inside("advgen", *options, "--strict", stdin=given)
    assert done.returncode == 1 and "names no emoji" in done.stderr.decode() and len(parsed(done.stdout)) == 4
    assert len(list((tmp_path / "out").rglob("*.png"))) == 4
    on = inside("advgen", *options, "--resume", stdin=given)
    assert on.returncode == 0 and on.stdout == done.stdout and on.stderr.decode().count("skipped") == 1


def test_a_reader_that_leaves_and_lines_of_two_models() -> None:
    line = f"{sys.executable} -m cliptools.cli.advgen {' '.join(PLAIN)} | head -n 1"
    done = subprocess.run(["bash", "-o", "pipefail", "-c", line], input=lines(*WORDS), capture_output=True, cwd=ROOT, check=False)
    assert done.returncode == 0 and done.stderr == b"" and len(parsed(done.stdout)) == 1
    other = lines("rocket", model={"name": "emoji-vit2", "pretrained": None, "sha256": "0" * 64})
    assert "lines of 2 models" in error(inside("advgen", *PLAIN, stdin=lines(*WORDS) + other))
    assert "same name, another model" in error(inside("advgen", *PLAIN, stdin=other))


def wrong(**fields: Any) -> bytes:
    record = parsed(lines("rocket"))[0] | fields
    return json.dumps({key: value for key, value in record.items() if value is not None}).encode()


@pytest.mark.parametrize(
    ("arguments", "stdin", "status", "said"),
    [
        ((), b"", 1, "empty, expected words of clip-spurious"),
        ((), b"rocket\n", 1, "line 1: expected a JSON object, found 'rocket'"),
        ((), b"[1]\n", 1, "line 1: expected a JSON object"),
        ((), b"\xff\xfe\n", 1, "line 1: expected a JSON object"),
        ((), lambda: lines("key") + wrong(word=None), 1, "line 2: expected `word`, found pair, depict"),
        ((), lambda: wrong(rank="first"), 1, "`rank` should be a whole number, found 'first'"),
        ((), lambda: wrong(depict=""), 1, "`depict` should be a text"),
        ((), lambda: wrong(model={"name": "emoji-vit2"}), 1, "`model` should hold name, pretrained and sha256"),
        (("--images-only",), lambda: lines("key"), 1, "line 1: expected `description` (to paint) or `file` (to judge)"),
        (("--images-only",), b"", 1, "empty, expected lines of clip-advgen --captions-only"),
        (("--images-only", "--captions-only"), b"", 2, "exclude each other"),
        (("--resume",), b"", 2, "--resume needs --out-dir"),
        (("--captions-only", "--out-dir", "x"), b"", 2, "--captions-only paints nothing"),
        (("--painter", "nothing-there"), lambda: lines("key"), 2, "no such folder; expected emoji, a pipeline's folder"),
        (("--painter", "tests"), lambda: lines("key"), 2, "a folder without model_index.json"),
        (("--steps", "3"), lambda: lines("key"), 2, "--steps does not apply to the emoji painter"),
        ((), lambda: wrong(model={"name": "ViT-B-32", "sha256": "0"}), 2, "no default for the model ViT-B-32"),
        (("--judge", "no-such-model"), lambda: lines("key"), 1, "unknown model 'no-such-model'"),
        (("--judge", "emoji-vit2", "--judge-classes", "gone.txt"), lambda: lines("key"), 1, "neither a file nor one of"),
        (("--llm", "gone.gguf"), b"", 2, "no such file; expected template, smollm2"),
    ],
    ids=range(20),
)  # fmt: skip
def test_bad_input_is_one_line(arguments: tuple, stdin: Any, status: int, said: str) -> None:
    given = stdin() if callable(stdin) else stdin
    defaults = () if {"--llm", "--images-only"} & {*arguments} else ("--llm", "template")
    done = inside("advgen", *defaults, "-f", "jsonl", *arguments, stdin=given)
    assert said in error(done) and done.returncode == status


def test_nothing_left_to_say() -> None:
    """All words name one of the two classes."""
    done = inside("advgen", *PLAIN, stdin=lines("cats", "panda"))
    assert done.returncode == 1 and done.stdout == b""
    first, second = done.stderr.decode().splitlines()
    assert "no word left that names neither class" in first and "no description passed for any pair" in second


def test_pictures_have_equal_bytes(tmp_path: Path) -> None:
    small = (*PLAIN, "--take", 2, "--images", 1, "--size", 40)
    for name in ("a", "b"):
        assert inside("advgen", *small, "--out-dir", tmp_path / name, stdin=lines(*WORDS)).returncode == 0
    assert files(tmp_path / "a") == files(tmp_path / "b")
    for data in (d for n, d in files(tmp_path / "a").items() if n.endswith(".png")):
        assert Image.open(BytesIO(data)).size == (40, 40) and b"tEXt" not in data and b"iTXt" not in data
