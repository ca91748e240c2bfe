"""The committed results are the transcription's own, and the transcription is nobody else's."""

import ast
from pathlib import Path

import numpy as np
import pytest

from . import answers, character, maps, resnet, study, texts, vit, words
from .agreement import TIE

HERE = Path(__file__).parent
TRANSCRIPTION = ("answers", "character", "maps", "resnet", "sparse", "study", "texts", "vit", "words")
SAME = 1e-9  # of numbers computed again, perhaps on another machine


def close(found: object, expected: object) -> None:
    np.testing.assert_allclose(found, expected, rtol=SAME, atol=SAME)


@pytest.mark.parametrize("name", TRANSCRIPTION)
def test_shares_no_code(name: str) -> None:
    """Only numpy, Pillow, safetensors, and torch for a ResNet's convolutions; nothing of the suite or of open_clip."""
    tree = ast.parse((HERE / f"{name}.py").read_text())
    names = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    names |= {str(node.module) for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and not node.level}
    roots = {name.split(".")[0] for name in names}
    assert roots <= {"json", "math", "collections", "pathlib", "typing", "numpy", "PIL", "safetensors"} | (
        {"torch"} if name == "resnet" else set()
    )


def test_fixtures_are_small() -> None:
    files = [path for path in study.FIXTURES.rglob("*") if path.is_file()]
    assert len(study.pictures("measured")) == study.MEASURED and len(study.pictures("shown")) == study.SHOWN
    assert sum(path.stat().st_size for path in files) < 2_000_000


def test_vit_results_are_its_own() -> None:
    of, kept = study.given("vit"), study.results("vit")
    runs, shown = answers.vit_runs(of)
    close([run.M for run in runs], kept["M"])
    scale = answers.unit_scale(kept["M"])[:, None]
    rows = [3, 40]
    units = [study.units_of(study.SECOND)[row] for row in rows]
    second = answers.described(answers.second_orders(of, runs, units) * scale, components=2)
    for name, value in second.items():
        close(value, kept[f"second.{name}"][rows])
    first = np.array([[vit.first_order(of.W, run, *unit) for run in runs] for unit in units])
    close(answers.described(first * scale)["b"], kept["first.b"][rows])
    row = 41
    indirect = answers.indirects(of, runs, [study.units_of(study.INDIRECT)[row]]) * scale
    close(answers.described(indirect)["r"], kept["indirect.r"][[row]])
    t = np.stack([texts.encode(of.W, of.tokens[text], of.act) for text in of.pool])
    D = texts.pool_texts(np.stack([texts.unit(row) for row in t]))
    again = answers.pursued(second["r"][:, 0], D)
    assert np.array_equal(again["chosen"], kept["pursuit.chosen"][rows]) and again["margin"].min() > TIE
    close(again["gamma"], kept["pursuit.gamma"][rows])
    heat = maps.heat_map(
        shown[0],
        np.array(study.units_of(study.SECOND)),
        kept["second.r"][:, 0],
        answers.bare(of, study.SEGMENTED[0]),
        study.MAP_NEURONS,
        study.SIDE,
    )
    np.testing.assert_allclose(heat, kept["heat"][0, 0], atol=1e-6)
    joint = answers.jointly_ablated(of, runs, of.shown)
    classes = np.stack([answers.in_templates(of, name) for name in study.CLASSES])
    label = answers.labels(kept["M_shown"], classes)
    assert np.array_equal(label, kept["ablate.label"])
    close(character.accuracy(kept["M_shown"], joint, classes, label), kept["ablate.joint"])


def test_scaled_results_are_its_own() -> None:
    of, kept = study.given("scaled"), study.results("scaled")
    runs, _ = answers.vit_runs(of)
    row = 30
    phi = answers.second_orders(of, runs, [study.units_of(study.SECOND)[row]]) * answers.unit_scale(kept["M"])[:, None]
    for name, value in answers.described(phi).items():
        close(value, kept[f"second.{name}"][[row]])


def test_resnet_results_are_its_own() -> None:
    of, kept = study.given("resnet"), study.results("resnet")
    runs = [resnet.pool(of.W, image, study.HEADS["resnet"]) for image in of.measured]
    close([run.M for run in runs], kept["M"])
    for row in (5, 500):
        phi = np.array([resnet.contribution(of.W, run, *study.PAIRS[row], study.HEADS["resnet"]) for run in runs])
        for name, value in answers.described(phi[None]).items():
            close(value[0], kept[f"pairs.{name}"][row])
    top = kept["pairs.top_image"][7][: study.INERTIA_IMAGES]
    close(words.inertia(kept["M"][top]), kept["inertia"][7])
    assert kept["sum_of_pairs"] < SAME
