"""clip-shift as a process: its records of groups of images, its alarm, and errors."""

import io
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import scipy.stats
import torch
from conftest import Run
from helpers.pipes import on_terminal, shell
from helpers.shift import cars
from helpers.shift_command import lines, only_line
from PIL import Image

from cliptools.analysis.concept_units import ConceptShare
from cliptools.images.tar import write_end, write_member
from cliptools.io.bundle import Bundle
from cliptools.io.header import Header
from cliptools.models.load import load_model
from cliptools.models.text_encoder import encode_texts
from cliptools.unit_effects.resnet_pooling import Pairs, pair_directions
from cliptools.unit_effects.vit_second_order import SecondOrder

CONCEPTS = ("cat", "red car")
UNITS = ((1, 4), (2, 0), (1, 7), (2, 33), (1, 2), (0, 3))
GROUPS = {"spring": 6, "autumn": 5}
TEMPLATE = "a photo of {}"


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder, random = tmp_path_factory.mktemp("photos"), np.random.default_rng(4)
    lines = ["file,Cat,red car"]
    for group, count in GROUPS.items():
        (folder / group).mkdir()
        for i in range(count):
            Image.fromarray(random.integers(0, 256, (24, 24, 3)).astype(np.uint8)).save(folder / group / f"{group}{i}.png")
            lines.append(f"{group}/{group}{i}.png,{i % 2},{'no' if i else ''}")
    (folder / "labels.csv").write_text("\n".join(lines))
    return folder


@pytest.fixture(scope="module")
def bundle(tiny_clip_dir: Path) -> Bundle:
    model, random = load_model(f"local-dir:{tiny_clip_dir}", device="cpu"), np.random.default_rng(0)
    unit = np.array([(*unit, -1) for unit in UNITS], np.int32)
    direction = random.normal(size=(len(UNITS), 20)).astype(np.float32)
    return Bundle(Header("effects", model.identity, {"count": 9}, {"effect": "second", "units": "neurons"}), {"unit": unit, "direction": direction})  # fmt: skip  # noqa: E501


@pytest.fixture(scope="module")
def file(bundle: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("bundle") / "effects.safetensors"
    path.write_bytes(bundle.to_bytes())
    return path


def asked(folder: Path, *more: object) -> tuple[object, ...]:
    concepts = [word for concept in CONCEPTS for word in ("--concept", concept)]
    groups = [folder / group for group in GROUPS]
    return ("shift", *groups, *concepts, "--units-per-concept", 2, "--choose", "overlap", "--template", TEMPLATE, "-q", *more)


@pytest.fixture(scope="module")
def whole(run: Run, photos: Path, bundle: Bundle, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    plot = tmp_path_factory.mktemp("plot") / "shift.svg"
    labelled = ("--labels", photos / "labels.csv", "--image-column", "file", "--plot", plot)
    result = run(*asked(photos, *labelled), stdin=bundle.to_bytes())
    assert result.returncode == 0 and result.stderr == b"", result.stderr.decode()
    assert b"<svg" in plot.read_bytes()
    return result.stdout


@pytest.fixture(scope="module")
def shares(bundle: Bundle, photos: Path) -> dict[str, np.ndarray]:
    """Return the shares of each group [image, concept], computed in this process."""
    model = load_model(bundle.header.model["name"], device="cpu")
    t = encode_texts(model, CONCEPTS, (TEMPLATE,))
    overlap = bundle["direction"] @ t.numpy().T
    rows = torch.from_numpy(np.argsort(-overlap, axis=0)[:2].T.copy())
    measure = ConceptShare(SecondOrder(model.clip.visual), torch.from_numpy(bundle["unit"]), rows, t)
    found = {}
    for group, count in GROUPS.items():
        pictures = [model.transform(Image.open(photos / group / f"{group}{i}.png")) for i in range(count)]
        found[group] = measure(torch.stack(pictures)).norm.numpy()
    return found


def test_records_are_means_and_correlations_of_shares(whole: bytes, shares: dict[str, np.ndarray], bundle: Bundle) -> None:
    *groups, cat, car = lines(whole)
    assert [(record["concept"], record["group"]) for record in groups] == [(c, g) for c in CONCEPTS for g in GROUPS]
    for record in groups:
        value = shares[record["group"]][:, CONCEPTS.index(record["concept"])]
        expected = (len(value), value.mean(), value.std(ddof=1), scipy.stats.sem(value))
        found = [record[key] for key in ("images", "mean", "spread", "standard_error")]
        np.testing.assert_allclose(found, expected, rtol=1e-3)
        assert record["bundle"] == bundle.digest and record["model"]["sha256"] == bundle.header.model["sha256"]
        assert len(record["units"]) == 2 and record["settings"]["templates"] == [TEMPLATE]
        if record["concept"] == "cat":
            label = np.arange(len(value)) % 2
            expected = scipy.stats.pointbiserialr(label, value).statistic
            np.testing.assert_allclose(record["correlation"]["value"], expected, rtol=1e-3)
            np.testing.assert_allclose((record["labelled"], record["frequency"]), (len(value), label.mean()), rtol=1e-5)
        else:
            assert (record["labelled"], record["frequency"]) == (len(value) - 1, 0) and "correlation" not in record
    everything = np.concatenate([shares[group][:, 0] for group in GROUPS])
    label = np.concatenate([np.arange(count) % 2 for count in GROUPS.values()])
    assert "group" not in cat and cat["concept"] == "cat" and "group_correlation" not in cat  # two groups are too few
    assert car["concept"] == "red car" and (car["labelled"], car["frequency"]) == (9, 0) and "correlation" not in car
    np.testing.assert_allclose(cat["correlation"]["value"], scipy.stats.pointbiserialr(label, everything).statistic, rtol=1e-3)
    assert cat["correlation"]["low"] <= cat["correlation"]["value"] <= cat["correlation"]["high"]


def test_a_tar_on_standard_input_image_by_image(
    run: Run, photos: Path, file: Path, shares: dict[str, np.ndarray], tmp_path: Path
) -> None:
    tar, table = io.BytesIO(), ["file,season"]
    for group, count in GROUPS.items():
        for i in range(count):
            write_member(tar, f"{group}{i}.png", (photos / group / f"{group}{i}.png").read_bytes())
            table.append(f"{group}{i},{group}")
    write_end(tar)
    (tmp_path / "groups.csv").write_text("\n".join(table))
    named = ("--groups", tmp_path / "groups.csv", "--image-column", "file", "--group-column", "season", "--per-image")
    concepts = (
        "--concept",
        "cat",
        "--concept",
        "red car",
        "--units-per-concept",
        2,
        "--choose",
        "overlap",
        "--template",
        TEMPLATE,
    )
    result = run("shift", "-", "--bundle", file, *concepts, *named, "--batch-size", 4, stdin=tar.getvalue())
    assert result.returncode == 0 and result.stderr.startswith(b"clip-shift: 11 images in 2 groups, 2 concepts (")
    records = [record for record in lines(result.stdout) if "image" in record]
    assert [record["group"] for record in lines(result.stdout) if "image" not in record] == ["autumn", "spring"] * 2
    assert [record["group"] for record in records] == [group for group, count in GROUPS.items() for _ in range(count)]
    found = [[record["shares"][concept] for concept in CONCEPTS] for record in records]
    np.testing.assert_allclose(found, np.concatenate(list(shares.values())), rtol=1e-3)


def test_an_equal_run_is_no_drift(run: Run, photos: Path, file: Path, whole: bytes, tmp_path: Path) -> None:
    (tmp_path / "old.jsonl").write_bytes(whole)
    compared = ("--bundle", file, "--baseline", tmp_path / "old.jsonl", "--alarm", 3, "--match")
    result = run(*asked(photos, *compared))
    assert result.returncode == 0 and result.stderr == b""
    for record in lines(result.stdout):
        drift = record["drift"]
        assert abs(drift["z"]) < 1e-4 and drift["alarm"] is False and drift["comparisons"] == 4
        assert drift["before"]["images"] == record["images"] and drift["limit"] > 3
        np.testing.assert_allclose(drift["chance"], 0.0027, rtol=1e-3)


def test_drift_ends_with_3_and_says_where(run: Run, photos: Path, file: Path, whole: bytes, tmp_path: Path) -> None:
    old = [record for record in lines(whole) if "group" in record]
    for record in old:
        if record["concept"] == "cat":
            record |= {"mean": record["mean"] * 0.5, "spread": 1e-4 * record["mean"], "images": 50}
        else:
            record["images"] = 60
    (tmp_path / "old.jsonl").write_text("\n".join(map(json.dumps, old)))
    target = tmp_path / "new.jsonl"
    result = run(*asked(photos, "--bundle", file, "--baseline", tmp_path / "old.jsonl", "--alarm", 0.2, "--each", "-o", target))
    records = lines(target.read_bytes())
    pool = {concept: [record for record in old if record["concept"] == concept] for concept in CONCEPTS}
    alarms = []
    for record in records:
        earlier, drift = pool[record["concept"]], record["drift"]
        mean = np.average([each["mean"] for each in earlier], weights=[each["images"] for each in earlier])
        np.testing.assert_allclose(drift["before"]["mean"], mean, rtol=1e-6)
        size, before = record["images"], drift["before"]["images"]
        squares = (size - 1) * record["spread"] ** 2 + before * (before - 1) * drift["before"]["standard_error"] ** 2
        error = np.sqrt(squares / (size + before - 2) * (1 / size + 1 / before))
        np.testing.assert_allclose(drift["z"], (record["mean"] - mean) / error, rtol=1e-4)
        assert drift["alarm"] == (abs(drift["z"]) > drift["limit"]) and 0.2 < drift["limit"] < 0.4
        alarms += [f"{record['group']}, {record['concept']}"] * drift["alarm"]
    assert result.returncode == 3 and result.stdout == b"" and alarms
    assert result.stderr.decode().startswith("warning: drift: ")
    assert all(name in result.stderr.decode() for name in alarms)


def test_unreadable_images(run: Run, photos: Path, file: Path, tmp_path: Path) -> None:
    (tmp_path / "0a.png").write_bytes(b"no picture")
    (tmp_path / "b.png").write_bytes((photos / "spring" / "spring0.png").read_bytes())
    words = ("shift", tmp_path, "--concept", "cat", "--template", "{}")
    result = run(*words, stdin=file.read_bytes())
    (record,) = lines(result.stdout)
    assert record["images"] == 1 and record["spread"] == 0 and len(record["units"]) == 5
    assert "0a.png: skipped" in result.stderr.decode() and "1 image, 1 skipped" in result.stderr.decode()
    (tmp_path / "one.jsonl").write_bytes(result.stdout)
    again = run(*words, "--baseline", tmp_path / "one.jsonl", stdin=file.read_bytes())
    said = again.stderr.decode().splitlines()[-1]
    assert again.returncode == 1 and said.startswith("clip-shift: nothing to compare: a mean needs at least two images")
    target = tmp_path / "out.jsonl"
    strict = run(*words, "--strict", "-o", target, stdin=file.read_bytes())
    assert strict.returncode == 1 and only_line(strict).startswith("clip-shift: 0a.png") and not target.exists()


def test_stanford_cars_as_a_table_on_a_terminal(file: Path, tmp_path: Path) -> None:
    named = ("--concept", "convertible", "--by", "signed", "--bundle", str(file), "-q")
    code, shown = on_terminal("cliptools.cli.shift", str(cars(tmp_path, True)), *named)
    assert code == 0 and "convertible" in shown and "correlation with the labels" in shown
    assert all(year in shown for year in ("2001", "2010", "2012"))


def test_pairs_of_a_resnet(run: Run, photos: Path, tiny_resnet_dir: Path) -> None:
    model = load_model(f"local-dir:{tiny_resnet_dir}", device="cpu")
    unit = np.array([(4, n, h) for n, h in ((3, 1), (9, 0), (9, 5), (40, 2), (190, 3))], np.int32)
    sign = np.array([1, -1, 0, 1, -1], np.int8)
    header = Header("effects", model.identity, {"count": 9}, {"effect": "pooled", "units": "pairs"})
    pairs = Bundle(header, {"unit": unit, "sign": sign, "mean_scalar": np.zeros(5, np.float32)})
    named = ("--concept", "cat", "--units-per-concept", 2, "--choose", "overlap", "--template", TEMPLATE, "-q")
    (record,) = lines(run("shift", photos / "spring", *named, stdin=pairs.to_bytes()).stdout)
    w = pair_directions(model.clip.visual, *torch.from_numpy(unit[:, 1:]).long().T)
    r, t = torch.from_numpy(sign)[:, None] * torch.nn.functional.normalize(w), encode_texts(model, ["cat"], (TEMPLATE,))
    best = (r @ t[0]).argsort(descending=True)[:2]
    assert [(each["neuron"], each["head"]) for each in record["units"]] == [tuple(row) for row in unit[best, 1:].tolist()]
    assert record["bundle"] == pairs.digest and record["settings"]["effect"] == "pooled"
    pictures = torch.stack([model.transform(Image.open(photos / "spring" / f"spring{i}.png")) for i in range(6)])
    found = ConceptShare(Pairs(model.clip.visual), torch.from_numpy(unit), best[None], t)(pictures).norm[:, 0].numpy()
    np.testing.assert_allclose((record["mean"], record["spread"]), (found.mean(), found.std(ddof=1)), rtol=1e-3)


def test_a_reader_that_leaves(photos: Path, file: Path) -> None:
    ended = shell(f"clip-shift -q {photos}/spring --per-image --concept cat --batch-size 1 --bundle {file} | head -c 20")
    assert ended.returncode == 0 and ended.stderr == b"" and len(ended.stdout) == 20


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (("SPRING", "--concept", " "), 2, "name a concept by --concept TEXT"),
        (("SPRING", "--concept", "cat", "--concept", "cat"), 2, "the same concept twice"),
        (("SPRING", "--concept", "cat", "--concept", "cat "), 2, "the same concept twice"),
        (("-", "--concept", "cat"), 2, "cannot both come from standard input: name --bundle FILE"),
        (("--concept", "cat"), 2, "no images named"),
        (("SPRING", "--concept", "cat", "--alarm", "3"), 2, "--baseline FILE"),
        (("SPRING", "--concept", "cat", "--labels", "a.csv", "--truth", "scenes"), 2, "give one of them"),
        (("SPRING", "--concept", "cat", "--plot", "a.gif"), 2, "expected a name ending in .png, .svg or .pdf"),
        (("SPRING", "--concept", "cat", "--per-image", "-f", "table"), 2, "--per-image needs JSON lines"),
        (("SPRING", "--concept", "cat", "--baseline", "no-such.jsonl"), 1, "no-such.jsonl: cannot be read"),
        (("SPRING", "--concept", "cat", "--units-per-concept", "7"), 1, "the bundle has 6 units"),
        (("SPRING", "--concept", "cat", "--truth", "scenes"), 1, "has no scenes.jsonl in a folder above it"),
        (("no-such-folder", "--concept", "cat"), 1, "no-such-folder: no such file or folder"),
    ],
)
def test_refusals_of_the_command_line(
    run: Run, photos: Path, file: Path, arguments: tuple[str, ...], code: int, said: str
) -> None:
    named = [str(photos / "spring") if each == "SPRING" else each for each in arguments]
    result = run("shift", *named, stdin=file.read_bytes())
    assert said in only_line(result) and result.returncode == code


def test_refusals_of_the_bundle_and_the_baseline(
    run: Run, photos: Path, bundle: Bundle, file: Path, whole: bytes, tmp_path: Path
) -> None:
    spring = ("shift", photos / "spring", "--concept", "cat")
    other = replace(bundle, header=replace(bundle.header, settings={"effect": "indirect"}))
    for data, said in ((bundle.to_bytes()[:-5], "truncated bundle"), (other.to_bytes(), "a bundle of indirect effects")):
        result = run(*spring, stdin=data)
        assert said in only_line(result) and result.returncode == 1
    (tmp_path / "old.jsonl").write_bytes(whole)
    compared = ("--bundle", file, "--baseline", tmp_path / "old.jsonl")
    result = run(*spring, *compared)
    assert "'cat' was measured with other settings" in only_line(result) and result.returncode == 1
