"""Repairs of planted pairs on the embedded models: the worst group rises, the others stay."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from helpers.advgen_input import inside
from helpers.repair import Groups
from PIL import Image

import cliptools as ct
from cliptools.errors import CliptoolsError
from cliptools.front.edit_choose import best_trial
from cliptools.text.emoji_concepts import concepts, plants

CASES = {"emoji-vit2": {"layers": [5, 6], "limit": 800}, "emoji-rn2": {"keep": 1.0, "limit": 300}}


@pytest.mark.parametrize("name", CASES)
def test_a_repaired_model_no_longer_takes_the_cue_for_the_class(name: str, tmp_path: Path) -> None:
    settings: dict[str, Any] = CASES[name]
    bundle = ct.effects(model=name, device="cpu", **settings)
    plant = plants()[0]
    model = ct.load_model(name, None, "cpu")
    names = [concept.name for concept in concepts()]
    edited = ct.edit(bundle, sees=names[plant.cue], writes=names[plant.named], model=model, device="cpu")
    edited.save(tmp_path / "repaired.safetensors")
    repaired = ct.load_model(name, str(tmp_path / "repaired.safetensors"), "cpu")
    assert repaired.sha256 == edited.record["after"]
    groups = Groups(plant.named, plant.cue, 40)
    before, after = groups.accuracy(model), groups.accuracy(repaired)
    assert min(before, key=lambda group: before[group]) == "another + cue"
    assert after["another + cue"] >= before["another + cue"] + 0.1
    assert all(after[group] >= before[group] - 0.1 for group in before)


def scenes_of_groups(folder: Path, groups: Groups, names: tuple[str, str]) -> Path:
    """Write the scenes of a pair as folders CLASS/BESIDE; all of another class are named after one class."""
    for index, picture in enumerate(groups.pictures):
        group, number = divmod(index, len(groups.pictures) // 4)
        place = folder / names[group // 2] / ("cue" if group % 2 == 0 else "other")
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray(picture).save(place / f"{number}.png")
    return folder


def test_the_number_of_units_is_chosen_on_validation_and_reported_on_test(tmp_path: Path) -> None:
    plant, names = plants()[0], [concept.name for concept in concepts()]
    other = next(number for number in range(len(names)) if number not in (plant.named, plant.cue))
    classes = names[plant.named], names[other]
    sets = [Groups(plant.named, plant.cue, 12, seed=seed, other=other) for seed in (7, 8)]
    validation, test = (scenes_of_groups(tmp_path / name, groups, classes) for name, groups in zip("vt", sets, strict=True))
    bundle = tmp_path / "effects.safetensors"
    ct.effects(model="emoji-vit2", device="cpu", layers=[5, 6], limit=300).save(bundle)
    words = ("--sees", names[plant.cue], "--writes", names[plant.named], "--bundle", bundle, "-q", "--device", "cpu")
    words = (*words, "--groups", "folders", "--loss", 0.2, "-o", tmp_path / "repaired.safetensors")
    done = inside("edit", *words, "--choose", validation, "--test", test)
    assert done.returncode == 0, done.stderr.decode()
    record = json.loads(done.stdout)
    choice = record["choice"]
    assert [trial["units"] for trial in choice["trials"]][:4] == [5, 10, 20, 40]
    chosen = next(trial for trial in choice["trials"] if trial["units"] == choice["chosen"])
    assert chosen["worst"] == max(trial["worst"] for trial in choice["trials"] if trial["loss"] <= 0.2)
    assert record["count"] == choice["chosen"] == len(record["units"])
    model, repaired = (ct.load_model("emoji-vit2", name, "cpu") for name in (None, str(tmp_path / "repaired.safetensors")))
    assert repaired.sha256 == record["after"]
    for name, tower in (("before", model), ("after", repaired)):
        accuracy = sets[1].accuracy(tower, names=("emoji",))
        assert len(choice["test"][name]["groups"]) == 4
        values = {group["group"]: group["value"] for group in choice["test"][name]["groups"]}
        assert values[f"{classes[1]}/cue"] == pytest.approx(accuracy["another + cue"], abs=1e-6)
    assert set(choice["test"]) == {"images", "before", "after", "random"}
    assert choice["test"]["images"]["digest"] != choice["validation"]["images"]["digest"]
    same = inside("edit", *words, "--choose", validation, "--test", validation)
    assert same.returncode == 2 and b"stands in --choose and in --test: what" in same.stderr
    copied, one = tmp_path / "copied", next(validation.rglob("*.png"))
    shutil.copytree(test, copied)
    shutil.copy(one, copied / one.relative_to(validation).with_name("another name.png"))
    hidden = inside("edit", *words, "--choose", validation, "--test", copied)
    assert hidden.returncode == 2 and b"stands in --choose and in --test as " in hidden.stderr
    assert b"another name.png" in hidden.stderr
    for more, message in (
        (("--choose", validation), b"--test is missing"),
        (("--choose", validation, "--test", test, "--head", 5), b"leave --head out"),
        (("--choose", validation, "--test", test, "--mask", tmp_path / "m"), b"leave -o and --out-dir out"),
    ):
        refused = inside("edit", *words, *more)
        assert refused.returncode == 2 and message in refused.stderr, refused.stderr.decode()
    tasks = inside("edit", *words, "--choose", tmp_path, "--test", test)
    assert tasks.returncode == 2 and b"images of several tasks" in tasks.stderr, tasks.stderr.decode()
    unscored = inside("edit", *words[2:], "--choose", validation, "--test", test)
    assert unscored.returncode == 2 and b"it needs --sees and --writes" in unscored.stderr
    line = json.dumps({"layer": 5, "neuron": 1, "model": record["model"]}).encode()
    (tmp_path / "lines.jsonl").write_bytes(line)
    lines = inside("edit", *words, "--choose", validation, "--test", test, "--bundle", tmp_path / "lines.jsonl")
    assert lines.returncode == 2 and b"--choose scores the units of a bundle" in lines.stderr


def test_the_best_trial_is_within_the_limit() -> None:
    units, worst, loss = [5, 10, 20, 40], [0.7, 0.9, 0.8, 0.8], [0.0, 0.05, 0.02, 0.0]
    assert best_trial(units, worst, loss, 0.6, 0.02) == 2
    assert best_trial(units, worst, loss, 0.6, 0.05) == 1
    assert best_trial(units, worst, loss, 0.6, 0.01) == 3
    tried = (
        r"no number of units raises the worst group of --choose from 0.950 .* \(--loss\) .*: 5 units 0.700 \(0.000\), 10 units"
    )
    with pytest.raises(CliptoolsError, match=tried):
        best_trial(units, worst, loss, 0.95, 0.02)
