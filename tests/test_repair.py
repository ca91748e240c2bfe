"""Repairs of planted pairs on the embedded models: the worst group rises, the others stay."""

from pathlib import Path
from typing import Any

import pytest
from helpers.repair import Groups

import cliptools as ct
from cliptools.text.emoji_concepts import concepts, plants

CASES = {"emoji-vit": {"layers": [5, 6], "limit": 400}, "emoji-rn": {"keep": 1.0, "limit": 300}}


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
