"""clip-top: inertia and uncentred norms compared with slow forms, and its output and errors as a process."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import Run
from helpers.advgen_input import inside
from helpers.bundle import read
from helpers.oracles import second_order_effects
from helpers.pipes import shell
from helpers.second_order import SHAPES, pictures, random_tower
from helpers.sheet import cell, near, synthetic
from PIL import Image
from sklearn.cluster import KMeans

from cliptools.analysis.retrieval import inertia, largest_norms
from cliptools.emoji.render import SceneSource, scene_key
from cliptools.front.tables import rendered
from cliptools.front.top import top_table
from cliptools.front.top_images import Top
from cliptools.io.bundle import Bundle, json_tensor
from cliptools.models.load import LoadedModel, load_model
from cliptools.render.contact_sheet import SheetRow, contact_sheet
from cliptools.unit_effects.vit_second_order import SecondOrder

SCENES, TOP, SEED = 30, 12, 3


def test_inertia_is_that_of_one_cluster() -> None:
    draw = torch.Generator().manual_seed(0)
    embedding = 7 * torch.randn(40, 9, generator=draw, dtype=torch.float64) + 3
    chosen = torch.stack([torch.randperm(40, generator=draw)[:10] for _ in range(6)])
    chosen[2, 4:] = -1  # images that are not there
    unit = torch.nn.functional.normalize(embedding, dim=1).numpy()
    expected = [KMeans(1, n_init=1).fit(unit[row[row >= 0]]).inertia_ / len(row[row >= 0]) for row in chosen]
    np.testing.assert_allclose(inertia(embedding, chosen), expected, rtol=1e-9)
    of_one = torch.full((2, 10), -1)
    of_one[0, 0] = 5
    assert inertia(embedding, of_one).isnan().all() and inertia(torch.zeros(0, 0), of_one).isnan().all()
    same = embedding[:1] * torch.arange(1, 11)[:, None]  # one direction, ten lengths
    assert float(inertia(same, torch.arange(10)[None])) < 1e-12


@pytest.mark.parametrize("scaled", [True, False])
def test_largest_uncentred_norms_are_those_of_the_full_matrices(scaled: bool) -> None:
    visual, n = random_tower(SHAPES[1]), 13
    images = pictures(visual, n)
    phi = {layer: torch.stack([second_order_effects(visual, image, layer) for image in images]) for layer in (0, 1)}
    scale = 100 / visual(images).norm(dim=-1) if scaled else torch.ones(n, dtype=torch.float64)
    unit = torch.tensor([[1, 5, -1], [0, 2, -1], [1, 0, -1]])
    batches = [([100 + i for i in range(start, min(start + 4, n))], images[start : start + 4]) for start in range(0, n, 4)]
    found = largest_norms(SecondOrder(visual), unit, batches, 6, scaled)
    for row, (layer, neuron, _) in enumerate(unit.tolist()):
        norm, image = (phi[layer][:, neuron].norm(dim=-1) * scale).sort(descending=True)
        torch.testing.assert_close(found.norm[row], norm[:6], rtol=1e-9, atol=0)
        assert found.image[row].tolist() == [100 + i for i in image[:6].tolist()]


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return neurons of layer 6 on rendered scenes."""
    path = tmp_path_factory.mktemp("top") / "effects.safetensors"
    done = inside("effects", "--limit", SCENES, "--seed", SEED, "--layers", 6, "--top-images", TOP, "-o", path)
    assert done.returncode == 0, done.stderr.decode()
    return path


@pytest.fixture(scope="module")
def effects(file: Path) -> Bundle:
    return read(file.read_bytes())


@pytest.fixture(scope="module")
def records(run: Run, file: Path) -> list[dict]:
    """Return the records of the two units of lowest inertia, from the scenes rendered again, with the sheet beside the bundle."""
    sheet = file.with_name("top.png")
    done = run("top", "--sort", "inertia", "--head", 2, "--images-per-unit", 4, "--sheet", sheet, "--bundle", file)
    assert (done.returncode, done.stderr) == (0, b"")
    return [json.loads(line) for line in done.stdout.splitlines()]


@pytest.fixture(scope="module")
def model() -> LoadedModel:
    return load_model("emoji-vit2", device="cpu")


@pytest.fixture(scope="module")
def pixels(model: LoadedModel) -> torch.Tensor:
    source = SceneSource(SCENES, SEED)
    return torch.stack([model.transform(source.load(i)) for i in range(SCENES)])


def test_records_are_the_bundles_with_the_inertia_of_their_images(
    effects: Bundle, records: list[dict], model: LoadedModel, pixels: torch.Tensor
) -> None:
    names = effects.text_list("images")
    with torch.inference_mode():
        M = torch.nn.functional.normalize(torch.cat([model.clip.encode_image(one[None]) for one in pixels]), dim=1).double()
    number = [int(name.removeprefix("scene-")) for name in names]
    expected = []
    for row in range(effects.units):
        m = M[[number[i] for i in effects["top_image"][row, :10]]]
        expected.append(float(((m - m.mean(0)) ** 2).sum(1).mean()) if effects["top_norm"][row, 0] > 0 else np.inf)
    lowest = np.argsort(expected, kind="stable")[:2]
    assert [(record["neuron"], record["rank"]) for record in records] == [(int(n), k) for n in lowest for k in (1, 2, 3, 4)]
    for j, record in enumerate(records):
        row, rank = lowest[j // 4], record["rank"] - 1
        assert record["image"] == names[effects["top_image"][row, rank]]
        assert record["norm"] == pytest.approx(float(effects["top_norm"][row, rank]), rel=1e-5)
        assert record["inertia"] == pytest.approx(expected[row], rel=1e-4) and record["inertia_images"] == 10
        assert record["model"]["sha256"] == effects.header.model["sha256"] and record["bundle"] == effects.digest
        assert record["effect"] == "second" and record["ranked_by"] == "centred norm" and "words" not in record


def test_equal_runs_give_equal_bytes_and_a_reader_may_leave(file: Path, records: list[dict]) -> None:
    """There are two processes, and one of them is interrupted."""
    ended = shell(f"clip-top --sort inertia --head 2 --images-per-unit 4 --bundle {file} | head -n 3")
    assert ended.returncode == 0 and ended.stderr == b""
    assert [json.loads(line) for line in ended.stdout.splitlines()] == records[:3]


def test_the_sheet_shows_the_same_images(file: Path, records: list[dict]) -> None:
    sheet = Image.open(file.with_name("top.png"))
    assert json.loads(sheet.text["cliptools"])["kind"] == "effects"
    for j, record in enumerate(records):
        scene = SceneSource(SCENES, SEED).load(int(record["image"].removeprefix("scene-"))).resize((96, 96), Image.LANCZOS)
        assert near(cell(sheet.convert("RGB"), j // 4, j % 4), scene.getpixel((48, 48)))


def test_raw_norms_from_all_the_images(file: Path, model: LoadedModel, pixels: torch.Tensor) -> None:
    done = inside("top", "--units", "6:5", "--images-per-unit", SCENES, "--raw", "--bundle", file)
    assert done.returncode == 0, done.stderr.decode()
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    unit, batches = torch.tensor([[6, 5, -1]]), [(list(range(SCENES)), pixels)]
    found = largest_norms(SecondOrder(model.clip.visual), unit, batches, SCENES, True)
    assert [line["image"] for line in lines] == [scene_key(i) for i in found.image[0].tolist()]
    np.testing.assert_allclose([line["norm"] for line in lines], found.norm[0], rtol=1e-4)
    assert lines[0]["ranked_by"] == "raw norm" and [line["rank"] for line in lines] == list(range(1, SCENES + 1))


def test_images_that_lie_in_an_archive(file: Path, effects: Bundle, records: list[dict]) -> None:
    """The same scenes are pictures of a tar, whose names have endings."""
    named = json_tensor([f"shard.tar/{name}.png" for name in effects.text_list("images")])
    file.with_name("tar.safetensors").write_bytes(effects.with_tensors(effects.header, images=named).to_bytes())
    units = ",".join(f"6:{records[j]['neuron']}" for j in (4, 0))
    scenes = inside("scenes", "--count", SCENES, "--seed", SEED).stdout
    done = inside("top", "-", "--units", units, "-f", "table", "--bundle", file.with_name("tar.safetensors"), stdin=scenes)
    assert (done.returncode, done.stderr) == (0, b"")
    rows = [line.split() for line in done.stdout.decode().splitlines() if line.lstrip().startswith("6:")]
    assert [row[0] for row in rows] == units.split(",")
    assert [row[1] for row in rows] == [f"{records[j]['inertia']:.3f}" for j in (4, 0)]
    assert rows[0][3] == f"shard.tar/{records[4]['image']}.png"


def test_the_table_says_of_how_few_images_an_inertia_is(effects: Bundle) -> None:
    counts = {10: 0.5, 3: 0.125, 1: math.nan}
    tops = [Top(effects, row, ["a.png"], [1.0], [0], value, count) for row, (count, value) in enumerate(counts.items())]
    table = rendered(top_table(tops, len(tops)), terminal=False).decode()
    cells = [line.split("  ") for line in table.splitlines()[1:]]
    assert [[cell.strip() for cell in line if cell][1] for line in cells] == ["0.500", "0.125 (3 images)", "–"]


def test_a_row_that_belongs_to_the_one_above_has_no_rule() -> None:
    rule = (0xE3, 0xE3, 0xE3)
    rows = [SheetRow("n", "", (), ()), SheetRow("h", "", (), (), inner=True), SheetRow("m", "", (), ())]
    sheet = contact_sheet("", "", rows)
    assert sum(sheet.getpixel((100, y)) == rule for y in range(sheet.height)) == 2


def without(bundle: Bundle, name: str) -> Bundle:
    return Bundle(bundle.header, {key: value for key, value in bundle.tensors.items() if key != name})


@pytest.mark.parametrize(
    ("bundle", "arguments", "code", "message"),
    [
        (synthetic(), ("--units", "6:999"), 2, "no unit 6:999"),
        (synthetic(), ("--word", "zebra"), 2, "no unit that matches --word\n"),
        (synthetic(words=False), ("--word", "cat"), 2, "no words yet"),
        (synthetic(), ("-",), 2, "PATH - and the bundle cannot both come from standard input: name --bundle FILE"),
        (synthetic(), (), 2, "Name their folder or tar as PATH"),
        (synthetic(), ("nowhere/",), 1, "nowhere/: no such file or folder"),
        (synthetic(), ("docs/neurons.webp",), 2, "contains no top image of the bundle"),
        (without(synthetic(), "top_norm"), (), 1, "a bundle without `top_norm`; run clip-effects first"),
    ],
)
def test_refusals_are_one_line(bundle: Bundle, arguments: tuple[str, ...], code: int, message: str) -> None:
    done = inside("top", *arguments, stdin=bundle.to_bytes())
    assert (done.returncode, done.stdout) == (code, b"") and message in done.stderr.decode()
    assert done.stderr.count(b"\n") == 1


def test_damaged_input(run: Run) -> None:
    done = run("top", stdin=synthetic().to_bytes()[:-9])
    assert done.returncode == 1 and b"truncated" in done.stderr and done.stderr.count(b"\n") == 1
