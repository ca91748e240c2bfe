"""The benchmarks run in a small version, and their tables contain the measurements.

Scripts that take minutes even then are run by hand: `python benchmarks/NAME.py --quick` for effects, resnet, consumers,
label_maps, and reading's merge.
"""

import itertools
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from helpers import ROOT

BENCHMARKS = ROOT / "benchmarks"


@pytest.fixture(scope="module")
def scripts() -> Iterator[Any]:
    """Return the modules of the benchmarks' folder by name; they import each other as in a normal run."""
    import importlib

    before = list(sys.path), set(sys.modules)
    sys.path.insert(0, str(BENCHMARKS))
    names = (
        "runs",
        "photos",
        "plain",
        "effects",
        "resnet",
        "guard",
        "consumers",
        "memory",
        "startup",
        "accelerator",
        "chart",
        "turns",
        "judge",
    )
    yield SimpleNamespace(**{name: importlib.import_module(name) for name in names})
    sys.path[:] = before[0]
    for name in set(sys.modules) - before[1]:
        if str(BENCHMARKS) in str(getattr(sys.modules[name], "__file__", "")):
            del sys.modules[name]


def script(name: str, *options: object) -> subprocess.CompletedProcess[str]:
    words = [sys.executable, str(BENCHMARKS / name), *map(str, options)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.run(words, capture_output=True, text=True, timeout=300, check=False, env=environment)


def result(name: str, folder: Path, *options: object) -> Any:
    """Return the JSON that a script wrote, after a check of the tables that it printed."""
    ended = script(f"{name}.py", "--quick", "--out", folder, *options)
    assert ended.returncode == 0, ended.stderr
    document = json.loads((folder / f"{name}.json").read_text())
    assert document["machine"]["threads"] == 1 and document["machine"]["torch"] and "processor" in ended.stdout
    return document


def test_make_bench_lists_every_script_with_its_minutes() -> None:
    ended = script("")
    told = [path.name for path in BENCHMARKS.glob("*.py") if "\nMINUTES = " in path.read_text()]
    assert ended.returncode == 0 and len(told) >= 8
    assert all(f"python benchmarks/{name} " in ended.stdout for name in told)
    runnable = [path.name for path in BENCHMARKS.glob("*.py") if "arguments(__doc__" in path.read_text()]
    assert sorted(runnable) == sorted(told)


@pytest.mark.parametrize("path", sorted(BENCHMARKS.glob("*.py")), ids=lambda path: path.stem)
def test_examples_of_a_docstring_have_options_that_exist(path: Path) -> None:
    text = path.read_text()
    for line in text.split('"""')[1].splitlines():
        command = line.partition("#")[0].split()
        if "python" in command and command[-1] != "python" and command[command.index("python") + 1].endswith(".py"):
            named = BENCHMARKS.parent / command[command.index("python") + 1]
            known = named.read_text() + (BENCHMARKS / "runs.py").read_text()
            assert all(f'"{word}"' in known for word in command if word.startswith("--")), line


def test_startup(tmp_path: Path) -> None:
    rows = {row["what"]: row for row in result("startup", tmp_path, "--only-help", "--commands", "view", "effects")["--help"]}
    assert rows["import click"]["beside import click"] == 1
    for name in ("clip-view --help", "clip-effects --help"):
        assert 0.5 < rows[name]["beside import click"] < 10 and 60 < rows[name]["modules"] < 400


def test_decompose(tmp_path: Path) -> None:
    document = result("decompose", tmp_path, "--threads", 1)
    rows = document["pursuit, 48 units, 2000 texts of width 512"]
    assert rows[0]["times ours"] == 1 and rows[0]["projected"] == ""
    others = [row for row in rows[1:] if row["what"].startswith("scikit-learn")]
    assert len(others) >= 3 and all(row["projected"] == "yes" and row["ms a unit"] > 0 for row in others)
    assert all(row["same texts"] == f"{row['units']} of {row['units']}" for row in others)
    (pairs,) = document["neuron-head pairs, 2000 texts of width 768"]
    assert pairs["projected"] == "yes" and pairs["units"] == 16 and pairs["m"] == 64


def test_memory(scripts: Any, tmp_path: Path) -> None:
    (row,) = result("memory", tmp_path, "--cases", "clip-scenes")["peak by number of images"]
    older = [row | {"GB, 40": 9.0}, row | {"what": "another"}]
    (tmp_path / "memory.json").write_text(json.dumps({"machine": {}, "settings": {}, "peak by number of images": older}))
    joined = scripts.memory.joined({"peak by number of images": [row]}, tmp_path)
    assert joined == {"peak by number of images": [row, row | {"what": "another"}]}
    assert row["flat"] == "yes" == row["should be"] and 0.05 < row["GB, 40"] < 2


def test_reading(tmp_path: Path) -> None:
    document = result("reading", tmp_path, "--work", "list", "decode")
    folders, tar = document["listing"]
    assert folders["images"] == tar["images"] == 2000 and folders["what"] == "files in folders"
    assert 0 < folders["of it, ordering"] < folders["cpu µs an image"] < tar["cpu µs an image"] < 5000
    listed = tar["cpu µs an image"] - tar["of it, ordering"]
    assert tar["cpu µs a member"] == pytest.approx(listed / 3, abs=0.02) and tar["bytes held an image"] > 100
    large, small = document["decoding"]
    assert large["model's input"] == "3 × 64 × 64" and large["kB a file"] > small["kB a file"] > 5
    assert large["cpu ms an image"] > small["cpu ms an image"] > 0


def test_a_peak_that_grows_is_not_called_flat(scripts: Any) -> None:
    assert scripts.memory.judged("x", (1, 10, 100), (0.5, 0.5, 0.9), True)["flat"] == "no"
    assert scripts.memory.judged("x", (1, 10, 100), (0.5, 0.7, 0.71), True)["flat"] == "yes"


def test_the_peak_is_that_of_the_process_itself(scripts: Any) -> None:
    """The peak excludes an earlier process. It is measured from a small process, because a child inherits its parent's peak."""
    code = (
        "import sys, runs\n"
        "big = runs.run([sys.executable, '-c', 'x = bytearray(700_000_000); x[::4096] = x[::4096]'])\n"
        "small = runs.run([sys.executable, '-c', 'pass'])\n"
        "assert 0.69 < big.peak < 0.8 and big.cpu > 0, big\n"
        "assert small.peak < 0.1, small"
    )
    subprocess.run([sys.executable, "-c", code], cwd=BENCHMARKS, check=True)
    assert scripts.runs.run([sys.executable, "-c", "pass"], stdin=BENCHMARKS / "runs.py").seconds > 0


def test_a_run_that_fails_ends_the_benchmark(scripts: Any) -> None:
    with pytest.raises(SystemExit, match="no-such-file"):
        scripts.runs.tool("view", "no-such-file.safetensors")


def test_slopes_are_costs_an_image_and_the_rest_is_fixed(scripts: Any) -> None:
    short, long = ({"seconds": 5 + 0.02 * n, "cpu": 3 + 0.01 * n} for n in (10, 110))
    found = scripts.runs.slopes(short, long, 10, 110)
    assert found == {"ms": 20.0, "fixed s": 5.0, "cpu ms": 10.0, "fixed cpu s": 3.0}


def test_ratios_are_to_the_plain_loop_of_the_same_round_and_case(scripts: Any) -> None:
    def line(number: int, batch: int, setting: str, ms: float) -> dict[str, Any]:
        return {"round": number, "batch": batch, "setting": setting, "ms": ms, "cpu ms": 2 * ms, "fixed s": 1.0, "waiting %": 7}

    log = [line(1, 1, "plain", 10), line(1, 1, "all", 12), line(2, 1, "plain", 20), line(2, 1, "all", 30)]
    log += [line(1, 8, "plain", 1), line(1, 8, "all", 4), {"model": "of another table"}]
    rows = {(row["batch"], row["setting"]): row for row in scripts.runs.compared(log, ("batch",))}
    assert rows[1, "all"]["ratios of ms"] == [1.2, 1.5] and rows[1, "all"]["ratio of ms"] == 1.35
    assert rows[8, "all"]["ratio of ms"] == 4 and rows[8, "plain"]["ratio of cpu ms"] == 1 and rows[8, "all"]["waiting %"] == 7


def test_a_log_can_be_added_to(scripts: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "new" / "effects.jsonl"
    scripts.runs.Log(path, more=False).keep({"a": 1})
    more = scripts.runs.Log(path, more=True)
    more.keep({"a": 2})
    assert more.lines == [{"a": 1}, {"a": 2}] and len(path.read_text().splitlines()) == 2
    assert scripts.runs.Log(path, more=False).lines == [] and not path.exists()
    assert "'a': 2" in capsys.readouterr().out


def test_effects_in_one_process_each(scripts: Any, tmp_path: Path) -> None:
    scripts.photos.make_photos(tmp_path, 6, distinct=4)
    case = {"model": "emoji-vit2", "precision": "bf16", "batch": 3}
    for setting in ("plain", "default layers"):
        found = scripts.effects.measured(setting, tmp_path, 6, case, "cpu")
        assert found["seconds"] > 0 and 0 <= found["waiting"] <= 1 and found["end"] > found["begin"] and "GPU" not in found


def test_directions_of_two_precisions(scripts: Any, tmp_path: Path) -> None:
    import numpy as np
    from safetensors.numpy import save_file

    direction = np.array([[1, 0], [0, 1], [0, 0]], np.float32)
    tensors = {"direction": direction, "top_norm": np.array([[2, 1], [1, 1], [0, 0]], np.float32)}
    tensors |= {"top_image": np.array([[0, 1]] * 3, np.int32), "images": np.frombuffer(b'["a","b"]', np.uint8)}
    save_file(tensors, tmp_path / "a")
    save_file(tensors | {"direction": np.array([[0.6, 0.8], [0, -1], [0, 0]], np.float32)}, tmp_path / "b")
    row = scripts.effects.beside(tmp_path / "a", tmp_path / "b")
    assert row["units"] == 2 and row["signs turned"] == 1 and row["top images shared"] == 1
    assert row["least |cosine|"] == pytest.approx(0.6) and row["mean |cosine|"] == pytest.approx(0.8)


def test_resnet_pairs_in_a_process_of_their_own(scripts: Any, tmp_path: Path) -> None:
    scripts.photos.make_photos(tmp_path, 2)
    script_ = str(BENCHMARKS / "resnet.py")
    found = scripts.runs.in_own_process(script_, work="pairs", model="emoji-rn2", folder=tmp_path, count=2, batch_size=2)
    assert found["bytes"] > 1000 and found["peak GB"] > 0.1


def test_stages_count_each_moment_once(scripts: Any) -> None:
    rows = scripts.consumers.stage_rows(12)
    for command in ("clip-effects", "clip-decompose"):
        of = {row["stage"]: row["seconds"] for row in rows if row["command"] == command}
        assert sum(of.values()) - of["all"] == pytest.approx(of["all"], abs=0.1)
        watched = {name for _, _, name in scripts.consumers.STAGES[command.removeprefix("clip-")]}
        assert watched <= set(of) and min(of.values()) >= 0


def test_the_guard_warns_of_a_ratio_beyond_twice_its_baseline(tmp_path: Path) -> None:
    committed = json.loads((BENCHMARKS / "baseline.json").read_text())
    doctored = tmp_path / "baseline.json"
    ratios = dict(committed["ratios"])
    name = "pursuit beside scikit-learn's"
    ratios[name] /= 20
    doctored.write_text(json.dumps({"ratios": ratios}))
    ended = script("guard.py", "--quick", "--baseline", doctored)
    assert ended.returncode == 0, ended.stderr
    warnings = [line for line in ended.stdout.splitlines() if line.startswith("warning: ")]
    assert any(name in line for line in warnings) and "ratios of processor time" in ended.stdout


def test_batches_in_turns(tmp_path: Path) -> None:
    (row,) = result("turns", tmp_path)["in turns"]
    assert row["pairs of batches"] == 2 and row["goal"] is None and row["images"] == 24
    assert row["ratio"] == pytest.approx(row["ms an image"] / row["plain ms an image"], rel=0.01)
    assert row["quartiles"] == sorted(row["quartiles"]) and row["peak GB"] > 0.2


def test_a_second_look_is_counted_and_not_timed(scripts: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also by a caller that has the patched function by name, as front/images.py has."""
    from cliptools.images import loader
    from cliptools.streaming.statistics import UnitStatistics

    batches = [([0, 1], torch.zeros(2, 3)), ([2, 3, 4], torch.zeros(3, 3))]
    monkeypatch.setattr(loader, "load_batches", lambda: iter(batches))
    monkeypatch.setattr(UnitStatistics, "settle_all", UnitStatistics.settle_all)
    clip = SimpleNamespace(encode_image=lambda pictures: pictures)
    turns = scripts.turns.Turns(SimpleNamespace(clip=clip, device="cpu", precision="fp32"), "cpu")
    by_name = loader.load_batches
    for again in (0, 5, 10):
        assert [numbers for numbers, _ in by_name()] == [[0, 1], [2, 3, 4]]
        assert len(turns.plain) == len(turns.ours) == 2 and turns.read_again == again


def test_judgements_in_turns(tmp_path: Path) -> None:
    (row,) = result("judge", tmp_path, "--no-memory")["in turns"]
    assert row["images"] == 96 and row["units"] == 1536 and len(row["ratios"]) == 1 and row["peak GB"] > 0.2
    assert row["ratio"] == pytest.approx(row["cpu ms an image"] / row["plain cpu ms an image"], rel=0.01)


def test_the_ratio_of_judgements_is_of_sums(scripts: Any) -> None:
    process = {"plain": [1.0, 3.0], "ours": [2.0, 3.0], "units": 7, "peak GB": 1.0}
    row = scripts.judge.line_of(process, "emoji-vit2", 100, 32)
    assert row["ratio"] == 1.25 and row["ratios"] == [2.0, 1.0]
    assert row["plain cpu ms an image"] == 20 and row["cpu ms an image"] == 25 and row["goal"] == 1.15


def test_ratios_in_turns_are_of_all_batches_but_the_first(scripts: Any) -> None:
    plain, ours = [(9.0, 4.0), (1.0, 1.0), (3.0, 1.0)], [(99.0, 50.0), (1.0, 1.0), (3.1, 1.5)]
    found = {"plain": plain, "ours": ours, "waiting": (0.5, 0.5), "peak GB": 4.0, "GB before": 1.5, "passes": 1, "read again": 3}
    case = dict(zip(scripts.turns.SAME, ("ViT-B-32", "fp32", 8, "all layers", 24), strict=True))
    row = scripts.turns.line_of(found, case)
    assert row["ratio"] == 1.15 and row["plain ms an image"] == 250 and row["pairs of batches"] == 2
    assert row["cpu ratio"] == 1.5 and row["plain cpu ms an image"] == 125 and row["GB above"] == 2.5 and row["passes"] == 1
    assert row["read again"] == 3
    goals = [
        scripts.turns.goal(row | {"batch": batch, "setting": of})
        for batch, of in ((8, "all layers"), (1, "all layers"), (1, "default"))
    ]
    assert goals == [1.4, None, 1.15]
    (dot,) = scripts.chart.in_turns({"turns": {"in turns": [row | {"goal": 1.4}]}})
    assert (dot.line, dot.series, dot.value, dot.goal) == ("ViT-B-32, batch 8", "all layers", 1.5, 1.4)
    assert dot.least <= dot.value <= dot.most


def test_what_the_guard_judges(scripts: Any) -> None:
    rows, said = scripts.guard.judged({"a": 2.1, "b": 1.9, "new": 9.0}, {"a": 1.0, "b": 1.0, "gone": 1.0})
    assert [row.get("beside it") for row in rows] == [2.1, 1.9, None]
    assert len(said) == 2 and said[0].startswith("warning: a: 2.1") and "gone: no longer measured" in said[1]
    assert set(json.loads((BENCHMARKS / "baseline.json").read_text())["ratios"]) >= {"clip-effects --help beside import click"}


def test_samples_of_an_accelerator_are_read(scripts: Any) -> None:
    moment, share = scripts.accelerator._sample("2026/11/21 20:00:00.500, 87")
    assert share == 87 and moment % 1 == pytest.approx(0.5)
    with scripts.accelerator.sample_utilization(False) as busy:
        assert busy(0.0, 1.0) is None


def test_ci_measures_before_the_tests_and_ends_with_them() -> None:
    lines = (ROOT / ".ci" / "run").read_text().splitlines()
    commands = [line.split(" || ")[0] for line in lines if line.startswith("make ")]
    assert commands == ["make bench-guard", "make test"]
    assert "bench-guard:" in (ROOT / "Makefile").read_text()


MACHINE = {"processor": "a processor", "torch": "2"}


def small_results(scripts: Any) -> dict[str, Any]:
    """Return results of a few cases in the form that the scripts write."""
    log = [
        {"round": number, "model": "ViT-B-32", "precision": "fp32", "batch": 8, "images": images, "setting": setting}
        | {"ms": ms * (1 + number / 50), "cpu ms": ms, "fixed s": 1}
        for number in (1, 2)
        for images, factor in ((40, 3.0), (512, 1.25), (64, 2.0))
        for setting, ms in (("plain", 50.0), ("default layers", 50 * factor))
    ]
    speed = scripts.runs.compared(log, scripts.effects.SAME)
    pursuit = {
        "pursuit, 7 units, 9 texts of width 4": [
            {"m": 32, "what": "clip-decompose, bfloat16 screening, cpu", "ms a unit": 3.0},
            {"m": 32, "what": "scikit-learn, float64, 2 threads", "ms a unit": 100.0},
            {"m": 32, "what": "scikit-learn, float64, 2 threads: the fastest", "ms a unit": 150.0, "goal": 10},
            {"m": 32, "what": "batched-omp, v0", "ms a unit": 14.0},
            {"m": 32, "what": "batched-omp, naive", "ms a unit": 12.0},
        ]
    }
    consumed = [
        {"model": "emoji-vit2", "batch": 32, "setting": s, "images a second": n} for s, n in (("plain", 240.0), ("ablate", None))
    ]
    peaks = [{"what": f"clip-{i}", "GB, 100": 0.5, "GB, 1,000": 0.6 + i / 1000} for i in range(9)]
    found: dict[str, Any] = {"effects": {"speed": [row | {"goal": 1.15} for row in speed]}}
    found |= {"resnet": {"settings": {"batch": 8}, "speed": scripts.runs.compared([], ("model", "images"))}}
    found |= {"decompose": pursuit, "consumers": {"speed": consumed}, "memory": {"peak by number of images": peaks}}
    return {name: {"machine": MACHINE} | each for name, each in found.items()}


def test_figures_of_the_chart_are_those_of_the_results(scripts: Any) -> None:
    chart, results = scripts.chart, small_results(scripts)
    assert chart.cost(results) == [chart.Dot("ViT-B-32, batch 8", "default layers", 1.25, 1.25, 1.25, 1.15)]
    row = {"model": "RN50", "images": 9, "setting": "pairs", "ratio of ms": 1.02, "ratios of ms": [1.0, None, 1.04], "goal": 1.1}
    results["resnet"]["speed"] = [row, row | {"model": "RN50x16", "ratio of ms": None}]
    assert chart.cost(results)[1:] == [chart.Dot("RN50, batch 8", "pairs", 1.02, 1.0, 1.04, 1.1)]
    dots = {dot.series: (dot.line, dot.value, dot.goal) for dot in chart.pursuit(results)}
    assert dots.pop("clip-decompose") == ("m = 32", 3.0, 15.0)
    assert dots == {"scikit-learn, the fastest": ("m = 32", 150.0, None), "batched-omp": ("m = 32", 12.0, None)}
    assert [(dot.line, dot.value) for dot in chart.consumers(results)] == [("plain forward pass", 240.0)]


def test_labels_of_the_chart_do_not_meet(scripts: Any) -> None:
    places = scripts.chart.apart({"a": 0.5, "b": 0.5, "c": 0.98, "d": 0.1}, 0.1, 1.0)
    assert places["d"] == 0.1 and places["c"] <= 0.9
    ordered = sorted(places.values())
    assert all(high - low >= 0.1 - 1e-9 for low, high in itertools.pairwise(ordered))


def test_chart(scripts: Any, tmp_path: Path) -> None:
    from PIL import Image

    empty = script("chart.py", "--results", tmp_path, "--out", tmp_path / "none.png")
    assert empty.returncode == 1 and not (tmp_path / "none.png").exists()
    assert empty.stderr == f"{tmp_path}: no results to draw; `python benchmarks` names the scripts that write them\n"
    for name, document in small_results(scripts).items():
        (tmp_path / f"{name}.json").write_text(json.dumps(document))
    for name in ("all.png", "again.png"):
        ended = script("chart.py", "--results", tmp_path, "--out", tmp_path / name)
        assert ended.returncode == 0, ended.stderr
    drawn = (tmp_path / "all.png").read_bytes()
    assert drawn == (tmp_path / "again.png").read_bytes() and len(drawn) < 100_000
    with Image.open(tmp_path / "all.png") as whole:
        assert whole.width == 1200 and whole.info.keys() <= {"dpi"} and len(whole.convert("RGB").getcolors() or []) > 10
    some = {name: document for name, document in scripts.chart.read(tmp_path).items() if name == "effects"}
    with Image.open(BytesIO(scripts.chart.picture(some))) as part:
        assert part.width == 600 and part.height < whole.height


def test_the_committed_picture_is_small() -> None:
    assert (ROOT / "docs" / "speed.png").stat().st_size <= 100_000


def test_gpu_without_one_says_so_in_a_line() -> None:
    ended = script("gpu.py", "--device", "cuda")
    assert ended.returncode == 2 and ended.stdout == ""
    assert ended.stderr == "torch finds no GPU: nothing was measured (--device cpu --small tests the script)\n"


def test_every_part_of_gpu_at_the_size_of_a_toy(tmp_path: Path) -> None:
    document = result("gpu", tmp_path, "--device", "cpu", "--small")
    assert [row["equal"] for row in document["CPU = device"]] == ["yes"] * 3
    assert [row.get("least cosine", 1) for row in document["CPU = device"]] == pytest.approx([1, 1, 1])
    plain, effects = document["clip-effects beside a plain pass"]
    assert plain["setting"] == "plain" and effects["ratio"] == pytest.approx(effects["ms"] / plain["ms"], rel=0.01)
    assert [(row["units"], row["m"]) for row in document["pursuit"]] == [(40, 8), (60, 4)]
    assert all(0 < row["residual"] < 1 and row["seconds"] >= 0 for row in document["pursuit"]) and "left out" not in document
