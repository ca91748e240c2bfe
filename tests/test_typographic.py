"""The study of typographic attacks: its scenes, what carries the margin, its edits, and the section of the page of results."""

import csv
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import ROOT
from PIL import Image

import cliptools as ct
from cliptools.embedded_models import EMBEDDED
from cliptools.emoji.export import single_plans
from cliptools.text.emoji_concepts import concepts
from examples.result_tables import Tables, wilson
from tools.results_page.page import RESULTS, render
from tools.results_page.typographic import attacked

NAMES = [concept.name for concept in concepts()]
VIT, RN = EMBEDDED


@pytest.fixture(autouse=True)
def modules(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "examples"))


def test_all_pictures_show_the_same_scenes() -> None:
    """A picture differs from that without a word in the word only; things come in random order; own names are those of things."""
    from typographic_scenes import PICTURES, draw

    drawn = {picture: draw(picture, 150, 9) for picture in PICTURES}
    bare = drawn["none"]
    assert len(bare) == 150 == len(set(bare.thing.tolist())) and sorted(bare.thing.tolist()) != bare.thing.tolist()
    plans = {repr(plan.scene) for plan in single_plans(len(NAMES), 9)}
    assert {repr(scene) for scene in bare.scenes} <= plans
    for picture in ("other", "shuffled", "blank"):
        found = drawn[picture]
        assert np.array_equal(found.thing, bare.thing) and np.array_equal(found.word, bare.word)
        assert not (found.word == found.thing).any()
        for scene, without, word in zip(found.scenes, bare.scenes, found.word, strict=True):
            assert scene.writing is not None and scene.sprites == without.sprites and scene.ground == without.ground
            assert (scene.writing.text == NAMES[word]) == (picture == "other")
            assert scene.writing.plate is not None and scene.writing.plate != scene.writing.colour
            assert sorted(scene.writing.text) == ([] if picture == "blank" else sorted(NAMES[word]))
    own, own_none = drawn["own"], drawn["own_none"]
    assert 0 < len(own) == len(own_none) < 30 and np.array_equal(own.word, own.thing)
    assert [scene.writing.text for scene in own.scenes if scene.writing] == [NAMES[thing] for thing in own.thing]
    assert [repr(scene.sprites) for scene in own.scenes] == [repr(scene.sprites) for scene in own_none.scenes]
    assert all(scene.writing is None for scene in (*bare.scenes, *own_none.scenes))
    assert repr(draw("other", 150, 9)) == repr(drawn["other"]) and len(drawn["other"].first(5)) == 5
    assert not {repr(scene.sprites) for scene in draw("other", 150, 10).scenes} & {repr(scene.sprites) for scene in bare.scenes}


@pytest.fixture(scope="module", params=EMBEDDED)
def bundle(request, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("typographic") / f"{request.param}-3.safetensors"
    pairs = request.param == RN
    units = {"keep": 1.0} if pairs else {"layers": [5, 6]}
    ct.effects(model=request.param, limit=120, seed=3, device="cpu", **units).save(path)
    return path


def test_what_carries_the_margin(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Excess and change are means of what `explain` gives for each picture; the changes of the parts add up to the margin's."""
    import typographic
    from typographic_parts import half_count, rows
    from typographic_scenes import pictures

    monkeypatch.setattr(typographic, "SCENES", {"validation": 2, "test": 4})
    attack = typographic.Attack(bundle)
    assert (attack.seed, attack.model.name) == (3, bundle.stem[:-2]) and attack.pairs == (attack.model.name == RN)
    found = attack.carried()
    assert found.scenes == 2
    excess: dict[tuple[int, ...], list[float]] = {}
    change, margin = np.zeros(attack.bundle.units), 0.0
    for picture in ("other", "blank"):
        drawn = attack.draw("validation", picture)
        size = 64 if attack.model.name == VIT else 128
        assert pictures(attack.model, drawn.scenes).shape == (2, 3, size, size)
        for row in range(2):
            image = shown(drawn.scenes[row], size)
            (one,) = ct.explain(
                attack.bundle, [image], NAMES[drawn.word[row]], NAMES[drawn.thing[row]], model=attack.model, delete=0.001,
                draws=1, templates=["emoji"], cache=False, head=300,
            ).images  # fmt: skip
            sign = 1 if picture == "other" else -1
            change += sign * one.shares / 2
            margin += sign * one.record["margin"] / 2
            if sign > 0:
                for unit in one.record["units"]:
                    excess.setdefault((unit["layer"], unit["neuron"], unit.get("head", -1)), []).append(unit["excess"])
    assert np.abs(found.change.numpy() - change).max() < 1e-4 and found.parts["margin"] == pytest.approx(margin, abs=1e-3)
    assert sum(value for name, value in found.parts.items() if name != "margin") == pytest.approx(found.parts["margin"], abs=1e-9)
    assert (found.change.sum() - found.parts["units"]).abs() < 1e-9
    places = {tuple(name): place for place, name in enumerate(attack.bundle["unit"].tolist())}
    both = {places[name]: sum(values) / 2 for name, values in excess.items() if len(values) == 2}
    assert both and all(float(found.excess[place]) == pytest.approx(value, abs=1e-3) for place, value in both.items())
    listed = list(rows(found, attack.bundle, attack.pool, attack.t))
    units = [row for row in listed if row["part"] == "unit"]
    assert [row["rank"] for row in units] == list(range(1, 21)) and all(row["sees"] in attack.pool.texts for row in units)
    assert float(units[0]["change"]) == pytest.approx(found.change.max().item(), abs=1e-4)
    heads = [float(row["change"]) for row in listed if row["part"] == "head"]
    assert heads == sorted(heads, reverse=True) and len(heads) == (16 if attack.pairs else 6)
    assert half_count(torch.tensor([1.0, -9.0, 3.0, 2.0])) == 1 and half_count(torch.tensor([1.0, 1.0, 1.0, 0.9])) == 2


def shown(scene, size: int) -> Image.Image:
    from cliptools.emoji.render import render, to_uint8

    return Image.fromarray(to_uint8(render([scene], size).image[0]))


def test_the_rows_of_the_study(bundle: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys) -> None:
    """With few scenes: every way of editing has a row for every picture, whose figures follow from the answers."""
    import typographic

    monkeypatch.setattr(typographic, "SCENES", {"validation": 8, "test": 150})
    monkeypatch.setattr(typographic, "EXPLAINED", 4)
    monkeypatch.setattr(typographic, "MEANS", 10)
    typographic.main(tmp_path / "parts.csv", [bundle])
    table = list(csv.DictReader(capsys.readouterr().out.splitlines()))
    attack = typographic.Attack(bundle)
    ways = list(dict.fromkeys((row["units"], row["edit"]) for row in table))
    null = [] if attack.pairs else [(units, "null") for units in ("sees", "explain", "random", "write")]
    zero = [(units, "zero") for units in ("sees", "explain", "heads", "random", "write", "random heads")]
    assert set(ways) == {("none", "none"), *zero, *null} and ways[0] == ("none", "none")
    assert [row["picture"] for row in table] == ["none", "blank", "shuffled", "other", "own", "own_none"] * len(ways)
    drawn = attack.draw("test", "other")
    answers = attack.answers(drawn, [])
    (row,) = (row for row in table if (row["units"], row["picture"]) == ("none", "other"))
    right = int((answers.answer[0] == drawn.thing).sum())
    expected = wilson(right / 150, 150)
    assert [float(row[name]) for name in ("accuracy", "low", "high")] == pytest.approx(list(expected), abs=1e-4)
    assert float(row["fooled"]) == pytest.approx((answers.answer[0] == drawn.word).mean(), abs=1e-4)
    assert float(row["told"]) == pytest.approx(answers.told[0].mean(), abs=1e-4) and row["n"] == "150"
    assert float(row["change"]) == float(row["gone"] or 0) == 0 and (row["seed"], row["count"]) == ("3", "0")
    counts = {way: {int(row["count"]) for row in table if (row["units"], row["edit"]) == way} for way in ways}
    assert all(len(found) == 1 for found in counts.values())
    for how in ("zero",) if attack.pairs else ("zero", "null"):
        assert counts["random", how] == {max(*counts["sees", how], *counts["explain", how])}
    assert counts["random heads", "zero"] == counts["heads", "zero"]
    parts = list(csv.DictReader((tmp_path / "parts.csv").open()))
    assert {row["part"] for row in parts} >= {"margin", "units", "rest", "head", "unit"}
    assert {row["scenes"] for row in parts} == {"4"}


def test_edits_and_their_choice(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A null edit removes what a neuron writes along its words; the choice is that of validation scenes under the limit."""
    import typographic

    monkeypatch.setattr(typographic, "MEANS", 5)
    attack = typographic.Attack(bundle)
    rows = np.array([40, 3, 7])
    (weights,) = (attack.weights(rows, "zero"),)
    assert weights and all(name.startswith("attnpool.") for name in weights) == attack.pairs
    if not attack.pairs:
        t = attack.encode([NAMES[word] for word in attack.words]) - attack.mean
        words = (torch.from_numpy(attack.bundle["direction"][rows]).double() @ t.T).argmax(1)
        before, after = (attack.model.clip.visual.state_dict(), attack.weights(rows, "null"))
        for place, (layer, neuron, _) in enumerate(attack.bundle["unit"][rows].tolist()):
            name = f"transformer.resblocks.{layer}.mlp.c_proj.weight"
            visual = attack.model.clip.visual
            direct = (visual.ln_post.weight * (visual.proj @ t[words[place]].float())).double()
            direct -= direct.mean()
            lost = [abs(float(direct @ column[name][:, neuron].double())) for column in (before, after)]
            assert lost[1] < 1e-5 * max(1.0, lost[0])
    edits = [typographic.Edit("sees", "zero", count, {}) for count in (0, 5, 10, 20)]

    wrong = {True: (200, 100, 50, 0), False: (0, 5, 5, 6)}

    def answers(drawn, flat):
        attacked = drawn.scenes[0].writing is not None
        answer = np.stack([np.where(np.arange(len(drawn)) < count, -1, drawn.thing) for count in wrong[attacked]])
        return typographic.Answers(answer, answer < 0)

    monkeypatch.setattr(attack, "answers", answers)
    assert attack.choose([edits])[0].count == 10  # 20 units cost 6 of 1052 scenes, more than half a point
    wrong = {True: (200, 200), False: (0, 0)}
    assert [edit.count for edit in attack.choose([edits[:1], edits[:2]])] == [0, 0]  # no candidate; none that helps
    accuracy = {name: np.array(values) for name, values in {"none": [0.9], "blank": [0.7], "other": [0.5]}.items()}
    after = {"none": 0.9, "blank": 0.75, "other": 0.65}
    both = {name: np.append(values, after[name]) for name, values in accuracy.items()}
    assert typographic.gone(both, 1) == {"gone": "0.5000", "gone_whole": "0.3750"}


def write_table(folder: Path, after: float, lost: float = 0.0, covered: float = 0.0, winners: tuple[str, ...] = ()) -> None:
    """Write both tables of the study: a name costs 40 points, a plate 20, and edits leave accuracy `after` on named scenes."""
    from typographic import COLUMNS
    from typographic_parts import COLUMNS as PARTS

    rows, parts = [], []
    for model in EMBEDDED:
        for seed in range(3):
            ways = [(units, "zero") for units in ("sees", "heads", "random", "random heads")]
            for units, edit in (("none", "none"), *ways):
                gained = after if units in ("sees", *winners) else 0.5
                plate = 0.7 + covered * (units == "sees")
                shares = {"none": 0.9 - lost * (units == "sees"), "blank": plate, "shuffled": 0.6, "other": gained, "own": 0.95}
                for picture, share in (shares | {"own_none": 0.9}).items():
                    row = {"model": model, "seed": seed, "units": units, "edit": edit, "count": 20 * (units != "none")}
                    change = share - {"none": 0.9, "blank": 0.7, "other": 0.5}.get(picture, share)
                    row |= {"picture": picture, "n": 1000, "accuracy": share, "fooled": 0.3, "gone": "", "gone_whole": ""}
                    row |= {"change": change, "change_low": change - 0.002, "change_high": change + 0.002, "told": 0.4}
                    row |= {"gone": (share - 0.5) / 0.2, "gone_whole": (share - 0.5) / 0.4} if picture == "other" else {}
                    rows.append(row)
            fixed = {"model": model, "seed": seed, "scenes": 200}
            parts += [fixed | {"part": part, "change": value} for part, value in (("margin", 5.0), ("rest", 1.0))]
            parts.append(fixed | {"part": "units", "change": 4.0, "count": 7})
            parts += [fixed | {"part": "head", "rank": n, "layer": 4, "head": n, "change": 1 / n} for n in range(1, 5)]
            unit = {"part": "unit", "layer": 4, "neuron": 12, "head": 3 if model == RN else "", "sees": "dog", "writes": "fox"}
            parts += [fixed | unit | {"rank": n, "change": 1 / n, "excess": 1.0} for n in range(1, 8)]
    for name, columns, lines in (("typographic", COLUMNS, rows), ("typographic-parts", PARTS, parts)):
        with (folder / f"{name}.csv").open("w", newline="") as stream:
            stream.write("# make -C examples -f typographic.mk\n")
            writer = csv.DictWriter(stream, columns)
            writer.writeheader()
            writer.writerows(lines)


@pytest.fixture
def tables(tmp_path: Path) -> Path:
    folder = tmp_path / "results"
    shutil.copytree(ROOT / RESULTS, folder, ignore=shutil.ignore_patterns("typographic*"))
    return folder


def test_the_section_of_the_page(tables: Path) -> None:
    """It is there only with its tables, and says which edits meet the goals."""
    assert "Typographic attacks and their repair" not in render(ROOT, tables)
    write_table(tables, after=0.64)
    page = render(ROOT, tables)
    text = " ".join(page[page.index("## Typographic attacks and their repair") :].split())
    assert "asks for the thing among 526 concepts" in text
    share = wilson(0.5, 3000)
    assert f"| the name of another thing | {share} |" in text
    assert text.count("Reading costs 20.0 points (") == 2 and "tells it on 40.0 % of the scenes" in text
    assert "layer 4, neuron 12 (+1.00, sees dog, writes fox)" in text and "neuron 12, head 3 (+1.00" in text
    assert "heads of the last layer: 1 (+1.00), 2 (+0.50), 3 (+0.33)." in text and "| +5.00 | +4.00 | – |" in text
    assert (
        "| 20, 20, 20 | 50.0 % → 64.0 % (" in text
        and "| 70.0 % → 70.0 % | 30.0 % → 30.0 %" in text
        and "| 70 % (35 %) | +0.00 (-0.20 to +0.20) | 40.0 % → 40.0 % |" in text
    )
    assert text.count("(gains significantly more than 2 of 2 controls in every seed)") == 2 and "Met by a control" not in text
    assert text.count("met by neurons that see") == 1 and text.count("met by pairs that see") == 1
    write_table(tables, after=0.64, lost=0.01)
    assert render(ROOT, tables).count("half a point without words, is met by no edit") == 2
    write_table(tables, after=0.6)
    assert render(ROOT, tables).count("half a point without words, is met by no edit") == 2
    write_table(tables, after=0.64, covered=0.05)  # (0.14 - 0.05) / 0.2: what a plate gains is not reading
    assert render(ROOT, tables).count("half a point without words, is met by no edit") == 2
    write_table(tables, after=0.64, winners=("random",))
    page = " ".join(render(ROOT, tables).split())
    assert page.count("(gains significantly more than 1 of 2 controls in every seed)") == 2
    assert "Met by a control, too: random neurons." in page and "Met by a control, too: random pairs." in page
    study = attacked(Tables(tables), VIT)
    assert study.read().value == pytest.approx(0.2) and [way.is_control for way in study.ways] == [False, False, True, True]


def test_the_picture_by_make(tmp_path: Path) -> None:
    write_table(tmp_path, after=0.64)
    words = ("picture", f"RESULTS={tmp_path}", f"WORK={tmp_path}/work", f"PICTURE={tmp_path}/p.png", f"PYTHON={sys.executable}")
    ended = subprocess.run(
        ["make", "-C", str(ROOT / "examples"), "-f", "typographic.mk", *words], capture_output=True, text=True, check=False
    )
    assert ended.returncode == 0, ended.stderr
    assert Image.open(tmp_path / "p.png").size[0] > 900 and not (tmp_path / "work").exists()
