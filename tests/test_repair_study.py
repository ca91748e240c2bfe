"""The study of repairs: whole heads chosen by text, counts of repaired plants, and folders with the layouts of real data."""

import csv
import json
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers import ROOT
from helpers.advgen_input import inside
from helpers.repair import Groups
from PIL import Image

import cliptools as ct
from cliptools.emoji.render import scenes_for
from cliptools.text.emoji_concepts import PLANTED_KINDS, concepts, plants

EXAMPLES = ROOT / "examples"
SCENES, PER_GROUP = 8, 12
NAMES = [concept.name for concept in concepts()]


@pytest.fixture(autouse=True)
def modules(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(EXAMPLES))


@pytest.mark.parametrize("name", ["emoji-vit2", "emoji-rn2"])
def test_whole_heads_by_the_variance_along_a_text(name: str) -> None:
    """Means are those of clip-effects; shares and outputs are those of loops over images and heads."""
    from repair_heads import WholeHeads

    model, s = ct.load_model(name, device="cpu"), torch.randn(3, 256, generator=torch.Generator().manual_seed(1)).double()
    s = s[:, : model.clip.visual.output_dim]
    heads = WholeHeads(model, s, seed=4, scenes=SCENES)
    bundle = ct.effects(
        model=model, effect="pooled" if name == "emoji-rn2" else "first", units="heads", scale="raw", limit=SCENES, seed=4,
        top_images=2, layers=None if name == "emoji-rn2" else list(range(8)), device="cpu",
    )  # fmt: skip
    assert np.allclose(heads.mean.numpy(), bundle["mean"], atol=1e-5)
    source = scenes_for(name, SCENES, 4)
    pictures = torch.stack([model.transform(source.load(row)) for row in range(SCENES)])
    M, phi = heads.read(pictures)
    for head in (0, 5, len(heads.mean) - 1):
        centred = [phi[i, head] - phi[:, head].mean(0) for i in range(SCENES)]
        total = sum(float(x @ x) for x in centred)
        for text in range(3):
            unit = s[text] / s[text].norm()
            expected = sum(float(x @ unit) ** 2 for x in centred) / total
            assert float(heads.share[head, text]) == pytest.approx(expected, abs=1e-9)
    order = heads.order(1)
    assert float(heads.share[order[0], 1]) == float(heads.share[:, 1].max())
    untouched, two = heads.outputs(pictures, [order[:2]])
    assert torch.equal(untouched, M)
    for i in range(SCENES):
        change = sum(phi[i, int(head)] - heads.mean[int(head)] for head in order[:2])
        assert torch.allclose(two[i], M[i] - change, atol=1e-9)


def test_counts_of_plants() -> None:
    from repair import Measured, best_count
    from unnamed_repair import count_plants, found, planted_of, random_lines, unit_count

    plant, planted = plants()[0], planted_of("pair")
    synonym = next(iter(concepts()[plant.named].synonyms), NAMES[plant.named])
    line = {"sees": NAMES[plant.cue], "writes": synonym.upper(), "units": [{"layer": 5, "neuron": 1}, {"layer": 5, "neuron": 2}]}
    other = {"sees": NAMES[plant.named], "writes": NAMES[plant.cue], "units": [{"layer": 5, "neuron": 2}]}
    assert found([other, line], planted[0]) and not found([other], planted[0]) and unit_count([line, other]) == 2
    unit = np.array([[5, number, -1] for number in range(20)])
    drawn, again = random_lines([line, other], unit, np.random.default_rng(1))
    assert drawn["units"][1] == again["units"][0] != drawn["units"][0] and unit_count([drawn, again]) == 2
    assert again | {"units": []} == other | {"units": []} and set(drawn["units"][0]) == {"layer", "neuron"}
    right = np.ones((2, 3), dtype=bool)
    before = np.array([1.0, 0.9, 0.5, 1.0])
    measured = [
        Measured(0, before, np.array([1.0, 0.9, 0.8, 1.0]), right),  # 60 % of the error is gone, nothing is lost
        Measured(0, before, np.array([0.97, 0.9, 0.79, 1.0]), right),  # less is gone, and another group loses 3 points
        Measured(0, before, np.array([1.0, 0.7, 1.0, 1.0]), right),  # the worst group is another one
    ]
    expected = {"findings": 2, "found": 1, "repaired": 1, "found_repaired": 1, "worse": 2}
    assert count_plants([line, other], planted[:3], measured) == expected
    assert [len(planted_of(kind)) for kind in PLANTED_KINDS] == [18, 3, 3, 2]
    for kind, wrong in (("ground", "red"), ("word", "ox"), ("style", "flat drawing")):
        fact = planted_of(kind)[0]
        assert found([{"sees": fact.cue.upper(), "writes": fact.named}], fact)
        assert not found([{"sees": wrong, "writes": fact.named}, {"sees": fact.named, "writes": fact.cue}], fact)
    groups = np.array([[1.0, 0.9, 0.5, 1.0], [1.0, 0.9, 0.6, 1.0], [0.9, 0.9, 0.9, 1.0]])
    assert best_count(groups, [5, 10]) == 5 and best_count(groups[[0, 0, 0]], [5, 10]) == 0
    assert best_count(np.vstack([groups, [[1.0, 0.89, 0.7, 1.0]]]), [5, 10, 20]) == 20


@pytest.mark.parametrize("name", ["emoji-vit2", "emoji-rn2"])
def test_every_way_of_editing_a_pair(name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """One pair with few scenes: all rows of a table are there, and all controls edit other units, as many as the edit."""
    import repair
    from repair_heads import WholeHeads

    monkeypatch.setattr(repair, "SINGLE", 8)
    monkeypatch.setattr(repair, "MEANS", 20)
    monkeypatch.setattr(repair, "WholeHeads", partial(WholeHeads, scenes=20))
    bundle = ct.effects(model=name, limit=150, seed=3, device="cpu", **({"keep": 1.0} if name == "emoji-rn2" else {}))
    bundle.save(tmp_path / "b.safetensors")
    done = inside(
        "scenes", "--groups", "--count", 2, "--seed", 3, "--size", 128 if name == "emoji-rn2" else 64, "--out-dir", tmp_path / "g"
    )
    assert done.returncode == 0, done.stderr.decode()
    repairs, plant = repair.Repairs(tmp_path / "g", tmp_path / "b.safetensors"), plants()[0]
    orders = repairs.orders(plant)
    counts = repairs.counts(len(orders["repair"]))
    assert not set(orders["blind"]) & set(orders["repair"]) and all(len(set(order)) >= counts[-1] for order in orders.values())
    with monkeypatch.context() as patch:
        patch.setattr(repair, "best_count", lambda _, counts: counts[1])
        results = {(units, edit): one for units, edit, one in repairs.pair(plant)}
    expected = [(units, "null") for units in ("repair", "random", "write", "see", "blind")]
    expected += [("heads", "mean"), ("none", "projection"), ("repair", "zero")]
    assert set(results) == set(expected)
    assert {results[key].count for key in expected[:5]} == {counts[1]} and results["heads", "mean"].count == 2
    for one in results.values():
        assert np.array_equal(one.before, results["repair", "null"].before) and one.right.shape == (2, 8)
        assert np.array_equal(one.right[0], results["repair", "null"].right[0]) and one.after.shape == (4,)
    monkeypatch.setattr(repair, "LOSS", -2.0)  # which no number of units keeps
    for (units, edit), none in {(units, edit): one for units, edit, one in repairs.pair(plant)}.items():
        assert edit == "projection" or (none.count == 0 and np.array_equal(none.before, none.after)), units
        assert edit == "projection" or np.array_equal(*none.right)
    row = repair.row(repairs, "repair", "null", [results["repair", "null"]] * 2)
    assert tuple(sorted(row)) == tuple(sorted(repair.COLUMNS)) and (row["model"], row["seed"], row["pairs"]) == (name, 3, 2)


def test_the_blind_repair_of_every_kind(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: Any) -> None:
    """One plant of each kind with few scenes: a row for each kind and edit, whose counts are those of its plants."""
    import repair
    import unnamed_repair

    monkeypatch.setattr(repair, "SINGLE", 6)
    of_kind = unnamed_repair.planted_of
    monkeypatch.setattr(unnamed_repair, "planted_of", lambda kind: of_kind(kind)[:1])
    bundle = ct.effects(model="emoji-vit2", limit=100, seed=3, device="cpu")
    bundle.save(tmp_path / "b.safetensors")
    kinds = [word for kind in PLANTED_KINDS for word in ("--kind", kind)]
    done = inside("scenes", "--groups", *kinds, "--split", "test", "--count", 2, "--seed", 3, "--out-dir", tmp_path / "g")
    assert done.returncode == 0, done.stderr.decode()
    (fact,) = unnamed_repair.planted_of("style")
    unit = [dict(zip(("layer", "neuron"), name, strict=False)) for name in bundle["unit"][:3, :2].tolist()]
    line = {"sees": fact.cue, "writes": fact.named, "units": unit, "model": bundle.header.model}
    (tmp_path / "f.jsonl").write_text(json.dumps(line) + "\n")
    ct.edit([line]).save(tmp_path / "e.safetensors")
    unnamed_repair.main(*(tmp_path / name for name in ("g", "b.safetensors", "f.jsonl", "e.safetensors")))
    rows = list(csv.DictReader(capsys.readouterr().out.splitlines()))
    assert [(row["kind"], row["edit"]) for row in rows] == [
        (kind, edit) for kind in PLANTED_KINDS for edit in ("unnamed", "random")
    ]
    assert {row["kind"]: row["found"] for row in rows} == {"pair": "0", "ground": "0", "word": "0", "style": "1"}
    assert all((row["pairs"], row["units"], row["findings"], row["scenes"]) == ("1", "3", "1", "6") for row in rows)


@pytest.fixture(scope="module")
def scenes() -> list[tuple[int, bool, bool, Image.Image]]:
    """Scenes of a planted pair in three splits: the split, True where the class is shown, True where the cue is, the picture."""
    plant = plants()[0]
    other = next(number for number in range(len(NAMES)) if number not in (plant.named, plant.cue))
    rows = []
    for split in range(3):
        groups = Groups(plant.named, plant.cue, PER_GROUP, seed=20 + split, other=other)
        for index, picture in enumerate(groups.pictures):
            group = index // PER_GROUP
            rows.append((split, group < 2, group % 2 == 0, Image.fromarray(picture)))
    return rows


def write_waterbirds(folder: Path, scenes: Any) -> None:
    lines = ["img_id,img_filename,y,split,place,place_filename"]
    for number, (split, named, beside, picture) in enumerate(scenes, 1):
        name = f"{number % 3 + 1:03d}.Some_Bird/Some_Bird_{number:04d}.png"
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        picture.save(folder / name)
        lines.append(f"{number},{name},{int(named)},{split},{int(beside)},/o/ocean/{number}.jpg")
    (folder / "metadata.csv").write_text("\r\n".join(lines) + "\r\n")


def write_celeba(folder: Path, scenes: Any) -> None:
    """The layout of the authors, with a header of the number of images and spaces."""
    (folder / "img_align_celeba").mkdir(parents=True)
    rows, splits = [], []
    for number, (split, named, beside, picture) in enumerate(scenes, 1):
        picture.save(folder / "img_align_celeba" / f"{number:06d}.png")
        rows.append(f"{number:06d}.png -1 {1 if named else -1:2d} {1 if beside else -1:2d}")
        splits.append(f"{number:06d}.png {split}")
    (folder / "list_attr_celeba.txt").write_text("\n".join([str(len(rows)), "Young Blond_Hair Male ", *rows]) + "\n")
    (folder / "list_eval_partition.txt").write_text("\n".join(splits) + "\n")


@pytest.mark.parametrize("kind", ["waterbirds", "celeba"])
def test_real_data_by_make(kind: str, scenes: Any, tmp_path: Path) -> None:
    """Folders with the layouts of the distributions, and pictures of a planted pair: the worst group rises on test images."""
    (write_waterbirds if kind == "waterbirds" else write_celeba)(tmp_path / "data", scenes)
    plant = plants()[0]
    other = next(number for number in range(len(NAMES)) if number not in (plant.named, plant.cue))
    (tmp_path / "classes.txt").write_text(f"{NAMES[other]}\n{NAMES[plant.named]}\n")
    words = (f"WORK={tmp_path}/work", f"{kind.upper()}={tmp_path}/data", f"CLASSES={tmp_path}/classes.txt", "MODEL=emoji-vit2")
    words = (
        *words,
        "PRETRAINED=",
        f"CUE={NAMES[plant.cue]}",
        f"CLASS={NAMES[plant.named]}",
        "LOSS=0.5",
        "TEMPLATES=--template {}",
    )
    ended = subprocess.run(
        ["make", "-C", str(EXAMPLES), "-f", "repair.mk", kind, f"PYTHON={sys.executable}", *words],
        capture_output=True, text=True, timeout=900, check=False,
    )  # fmt: skip
    assert ended.returncode == 0, ended.stderr
    before, after = (json.loads(line) for line in (tmp_path / "work" / f"{kind}.jsonl").read_text().splitlines())
    places = ("land", "water") if kind == "waterbirds" else ("female", "male")
    expected = [f"{NAMES[row]}/{place}" for row in (other, plant.named) for place in places]
    assert [group["group"] for group in before["groups"]] == expected and before["worst"]["group"] == expected[1]
    assert [group["n"] for group in before["groups"]] == [PER_GROUP] * 4
    assert after["worst"]["value"] > before["worst"]["value"] and "against" in after and "weighted" in after
    assert before["settings"]["train_sizes"] == dict.fromkeys(expected, PER_GROUP)
    effects = ct.read(tmp_path / "work" / f"{kind}-effects.safetensors")
    assert effects.header.images["count"] == 4 * PER_GROUP
    record = json.loads((tmp_path / "work" / f"{kind}-repaired.jsonl").read_text())
    assert record["choice"]["validation"]["images"]["count"] == 4 * PER_GROUP


def test_a_folder_that_is_not_there(tmp_path: Path) -> None:
    words = ["make", "-C", str(EXAMPLES), "-f", "repair.mk", "celeba", f"WORK={tmp_path}/work", f"CELEBA={tmp_path}"]
    ended = subprocess.run(words, capture_output=True, text=True, check=False)
    assert ended.returncode != 0 and "no such file; name the folder with CELEBA=FOLDER" in ended.stderr
    assert not (tmp_path / "work").exists()
