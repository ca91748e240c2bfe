"""Runs held against the papers' figures: equal ones are reproduced, others are not, and random weights reproduce nothing."""

import csv
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from helpers import ROOT
from open_clip.model import CLIP
from safetensors.torch import save_file

EXAMPLES = ROOT / "examples"
HEADER = "effect,units,layers,change,components,m,keep,pool,explained,n,top1,low,high,top5,agreement,cosine"
TWELVE = {
    "embed_dim": 12,
    "vision_cfg": {"image_size": 16, "patch_size": 8, "width": 16, "layers": 12, "head_width": 8, "mlp_ratio": 4},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1},
}
"""ViT-B-32's number of layers, all else tiny."""


def row(top1: float, **values: str) -> str:
    cells = {"n": "50000", "top1": f"{top1}", "low": f"{top1 - 0.004}", "high": f"{top1 + 0.004}", "agreement": "0.9"} | values
    return ",".join(cells.get(column, "") for column in HEADER.split(","))


def tables(folder: Path, **files: list[str]) -> Path:
    for name, rows in files.items():
        (folder / f"{name}.csv").write_text("\n".join(["# made up", HEADER, *rows]) + "\n")
    return folder


def published(folder: Path, paper: str) -> dict[str, tuple[str, str]]:
    done = subprocess.run(
        [sys.executable, str(EXAMPLES / "published.py"), str(folder), paper], capture_output=True, text=True, check=True
    )
    return {line["figure"]: (line["measured"], line["verdict"]) for line in csv.DictReader(done.stdout.splitlines())}


def paper_1(folder: Path, untouched: float, words: str = "+snowy +frost -closings +advent") -> Path:
    layers = {str(layer): untouched - (0.2 if layer in (8, 9, 10) else 0.01) for layer in range(11)}
    ablation = [row(untouched, change="untouched"), *(row(v, change="all", layers=k) for k, v in layers.items())]
    together = {"change": "small", "layers": "8 9 10"}
    ablation += [row(untouched - 0.005, **together), row(untouched - 0.04, **(together | {"change": "pc"}))]
    indirect = [
        row(0.299, effect="second", change="all", explained="0.479"), row(0.7, effect="indirect", change="joint", explained="0.2")
    ]  # fmt: skip
    (folder / "neurons.csv").write_text(f"layer,neuron,explained,words\n9,4,0.9,{words}\n9,391,0.9,+cedar +advent -sour -oak\n")
    return tables(folder, ablation=ablation, indirect=indirect)


def test_equal_figures_are_reproduced_and_others_are_off_or_not(tmp_path: Path) -> None:
    found = published(paper_1(tmp_path, 0.64), "1")
    assert {name: verdict for name, (_, verdict) in found.items()} == {
        "zero-shot accuracy of the untouched model": "reproduced",
        "ablated second-order effects of layer 9": "reproduced",
        "ablated indirect effects of layer 9": "not",
        "variance explained by PC 1, second order": "reproduced",
        "variance explained by PC 1, indirect": "off by +9.0 points",
        "small effects ablated": "reproduced",
        "effects replaced by PC 1": "off by -4.0 points",
        "the three layers that cost most if mean-ablated": "reproduced",
        "words of neuron 9:4": "reproduced",
        "words of neuron 9:391": "1 of 4",
        "words of neuron 9:2137": "not measured",
        "words of neuron 9:2914": "not measured",
    }


def test_signs_of_words_count_and_their_order_does_not(tmp_path: Path) -> None:
    found = published(paper_1(tmp_path, 0.64, "+advent -closings -snowy +frost"), "1")
    assert found["words of neuron 9:4"][1] == "3 of 4"


def test_another_accuracy_reproduces_nothing(tmp_path: Path) -> None:
    verdicts = {verdict for _, verdict in published(paper_1(tmp_path, 0.59), "1").values()}
    assert verdicts == {"not"}


def test_an_interval_that_decides_nothing_reproduces_nothing(tmp_path: Path) -> None:
    wide = {"low": "0.52", "high": "0.98"}
    rows = [row(0.71, change="untouched"), row(0.70, change="pc", units="pairs", **wide)]
    found = published(tables(tmp_path, pcs=rows), "2")
    assert found["pairs replaced by one PC"] == ("70.0 % (52.0–98.0)", "too few images")


@pytest.mark.parametrize("arguments", [(), ("folder",), ("folder", "3")])
def test_arguments_that_are_no_paper(arguments: tuple[str, ...]) -> None:
    done = subprocess.run(
        [sys.executable, str(EXAMPLES / "published.py"), *arguments], capture_output=True, text=True, check=False
    )
    assert done.returncode == 1 and done.stderr == "usage: published.py RESULTS 1|2\n"


def test_the_second_paper_and_missing_tables(tmp_path: Path) -> None:
    rows = [row(0.71, change="untouched"), row(0.709, change="pc", units="pairs")]
    rows += [row(value, change="pc", units="neurons", components=c) for c, value in (("1", 0.669), ("2", 0.65), ("4", 0.4))]
    found = published(tables(tmp_path, pcs=rows), "2")
    assert [verdict for _, verdict in found.values()] == [
        "reproduced", "reproduced", "reproduced", "off by -4.0 points", "not", "not measured", "not measured"
    ]  # fmt: skip
    assert "sparsity.csv: no such table" in found["a fifth of the pairs kept"][0]


def test_random_weights_reproduce_nothing(tmp_path: Path) -> None:
    """The whole run, with its commands, on a ViT of twelve random layers and folders of scenes."""
    torch.manual_seed(0)
    model = tmp_path / "model"
    model.mkdir()
    (tmp_path / "photos").mkdir()
    (model / "open_clip_config.json").write_text(json.dumps({"model_cfg": TWELVE, "preprocess_cfg": {}}))
    save_file(CLIP(**TWELVE).state_dict(), model / "open_clip_model.safetensors")
    for name in ("cat", "dog", "pizza"):
        scenes = ["--caption", name, "--count", "8", "--size", "32", "--out-dir", str(tmp_path / name)]
        subprocess.run([sys.executable, "-m", "cliptools.cli.scenes", *scenes], check=True, cwd=ROOT, capture_output=True)
        (tmp_path / name / "images").rename(tmp_path / "photos" / name)
    (tmp_path / "classes.txt").write_text("cat\ndog\npizza\n")
    settings = [
        f"MODEL=local-dir:{model}", f"IMAGES={tmp_path}/photos", f"LABELLED={tmp_path}/photos", f"CLASSES={tmp_path}/classes.txt",
        f"WORK={tmp_path}/work", f"RESULTS={tmp_path}/results", "POOL=words10k", "OPTIONS=--device cpu", "INDIRECT=",
        "READ=--units 9:4",
    ]  # fmt: skip
    environment = {key: value for key, value in os.environ.items() if key != "MAKEFLAGS"} | {"PYTHON": sys.executable}
    done = subprocess.run(
        ["make", "-C", str(EXAMPLES), "published", *settings],
        capture_output=True, text=True, timeout=600, check=False, env=environment,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    with (tmp_path / "results" / "published.csv").open(encoding="utf-8") as lines:
        verdicts = [line["verdict"] for line in csv.DictReader(lines)]
    assert len(verdicts) == 12 and set(verdicts) == {"not"}


@pytest.mark.parametrize("paper", ["1", "2"])
def test_a_run_without_tables_is_an_error_of_one_line(tmp_path: Path, paper: str) -> None:
    done = subprocess.run(
        [sys.executable, str(EXAMPLES / "published.py"), str(tmp_path), paper], capture_output=True, text=True, check=False
    )
    assert (
        done.returncode == 1 and done.stdout == "" and len(done.stderr.splitlines()) == 1 and "none of the tables" in done.stderr
    )
