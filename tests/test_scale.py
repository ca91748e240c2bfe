"""The scale of effects: the defaults, shards and merges keep it, and later commands use the scale of the bundle."""

import json
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch
from helpers.advgen_input import inside
from helpers.bundle import read
from PIL import Image
from safetensors.numpy import load

from cliptools.emoji.render import single_scenes_for
from cliptools.front.effects_bundle import with_directions
from cliptools.io.bundle import Bundle
from cliptools.models.load import load_model
from cliptools.unit_effects.resnet_pooling import pair_directions, supported_resnet, trace_pool

ASKED = ("--top-images", 5, "--quantile", 0.9, "-q", "--workers", 0)
POOLED = [("pairs", ()), ("neurons", ("--components", 2)), ("heads", ())]


def written(name: str, *arguments: object, stdin: bytes = b"") -> bytes:
    ended = inside(name, *arguments, stdin=stdin)
    assert ended.returncode == 0, ended.stderr.decode()
    return ended.stdout


def said(data: bytes) -> tuple[object, object]:
    """Return the scale in settings and in the history."""
    header = read(data).header
    return header.settings["scale"], header.history[0]["arguments"]["scale"]


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("photos")
    random = np.random.default_rng(6)
    for i in range(24):
        coarse = random.integers(0, 256, (3, 3, 3)).astype(np.uint8)
        Image.fromarray(coarse).resize((44, 36)).save(folder / f"{i:02d}.png")
    return folder


@pytest.fixture(scope="module")
def resnet(photos: Path, tiny_resnet_dir: Path) -> list[object]:
    return [photos, "--model", f"local-dir:{tiny_resnet_dir}", *ASKED]


@pytest.fixture(scope="module")
def scaled_pairs(resnet: list[object]) -> dict[str, bytes]:
    return {scale: written("effects", *resnet, "--scale", scale) for scale in ("unit", "raw")}


class Pooled(NamedTuple):
    """Values of the ResNet's pairs: scalars of every photograph [image, unit], ||w|| [unit], and ||M(I)|| [image]."""

    s: np.ndarray
    w: np.ndarray
    size: np.ndarray


@pytest.fixture(scope="module")
def pooled(photos: Path, tiny_resnet_dir: Path) -> Pooled:
    model = load_model(f"local-dir:{tiny_resnet_dir}", device="cpu")
    pictures = torch.stack([model.transform(Image.open(path)) for path in sorted(photos.iterdir())])
    visual = supported_resnet(model.clip)
    with torch.inference_mode():
        traced = trace_pool(visual, pictures)
    s = torch.einsum("bin,bhi->bnh", traced.x, traced.attention).flatten(1)
    number, heads = torch.arange(s.shape[1]), traced.attention.shape[1]
    w = pair_directions(visual, number // heads, number % heads).norm(dim=1)
    return Pooled(s.double().numpy(), w.double().numpy(), traced.embedding.norm(dim=1).double().numpy())


@pytest.mark.parametrize(("units", "more"), POOLED)
def test_pooled_effects_are_raw_unless_asked_otherwise(units: str, more: tuple[object, ...], resnet: list[object]) -> None:
    """Paper 2 never divides by the output's norm."""
    asked = (*resnet, "--units", units, *more)
    default = written("effects", *asked)
    assert said(default) == ("raw", "raw")
    assert default == written("effects", *asked, "--scale", "raw")
    unit = written("effects", *asked, "--scale", "unit")
    assert said(unit) == ("unit", "unit") and read(unit)["top_norm"].max() > 2 * read(default)["top_norm"].max()


@pytest.fixture(scope="module")
def emoji_pairs() -> dict[str, bytes]:
    """Return bundles of emoji-rn2's pairs, by --scale."""
    asked = ("--model", "emoji-rn2", "--limit", 12, "--top-images", 4, "-q")
    more = {"": (), "raw": ("--scale", "raw"), "unit": ("--scale", "unit")}
    return {scale: written("effects", *asked, *options) for scale, options in more.items()}


def test_emoji_rn_is_raw_too(emoji_pairs: dict[str, bytes]) -> None:
    assert said(emoji_pairs[""]) == ("raw", "raw") and emoji_pairs[""] == emoji_pairs["raw"] != emoji_pairs["unit"]


@pytest.mark.parametrize(
    "more", [(), ("--effect", "first"), ("--effect", "indirect", "--sample-neurons", 3), ("--units", "heads")]
)
def test_effects_of_a_vit_are_in_units_of_the_output(more: tuple[object, ...], photos: Path, tiny_clip_dir: Path) -> None:
    """Paper 1 multiplies them by 100 / ||M(I)||."""
    asked = (photos, "--model", f"local-dir:{tiny_clip_dir}", *ASKED, "--layers", 1, *more)
    default = written("effects", *asked)
    assert said(default) == ("unit", "unit") and default == written("effects", *asked, "--scale", "unit")
    assert said(written("effects", *asked, "--scale", "raw")) == ("raw", "raw")


def test_norms_and_the_units_kept_are_those_of_raw_effects(resnet: list[object], pooled: Pooled) -> None:
    """The strongest fifth by raw norms differs from the strongest fifth by norms in units of the output."""
    bundle = read(written("effects", *resnet, "--keep", "20%"))

    def kept(scale: np.ndarray) -> np.ndarray:
        s = pooled.s * scale[:, None]
        norm = np.sort(np.abs(s - s.mean(0)) * pooled.w, axis=0)[::-1][:5].mean(0)
        return np.sort(np.argsort(-norm, kind="stable")[: round(0.2 * len(norm))])

    heads = int(bundle["unit"][:, 2].max()) + 1
    assert np.array_equal(bundle["unit"][:, 1] * heads + bundle["unit"][:, 2], kept(np.ones(len(pooled.size))))
    assert not np.array_equal(kept(np.ones(len(pooled.size))), kept(100 / pooled.size))


def test_shards_and_their_merge_are_raw(resnet: list[object], scaled_pairs: dict[str, bytes], tmp_path: Path) -> None:
    """A partial in the other scale belongs to another run, for --resume and for a merge."""
    parts = [tmp_path / f"{i}.safetensors" for i in (1, 2)]
    for i, part in enumerate(parts, 1):
        written("effects", *resnet, "--shard", f"{i}/2", "-o", part)
    merged, whole = read(written("merge", *parts, "--images", resnet[0])), read(scaled_pairs["raw"])
    assert merged.header.settings == whole.header.settings and merged.header.settings["scale"] == "raw"
    for name in ("top_norm", "mean_scalar", "sign"):
        np.testing.assert_allclose(merged[name], whole[name], rtol=1e-4, atol=1e-5)
    written("effects", *resnet, "--shard", "1/2", "--scale", "unit", "-o", parts[0])
    again = inside("effects", *resnet, "--shard", "1/2", "--resume", "-o", parts[0])
    assert again.returncode == 1 and b"started with other options (scale unit instead of raw)" in again.stderr
    mixed = inside("merge", *parts, "--images", resnet[0])
    assert mixed.returncode == 1 and b"not of the same run" in mixed.stderr and b"scale" in mixed.stderr


@pytest.mark.parametrize("scale", ["unit", "raw"])
def test_top_images_and_concepts_are_in_the_scale_of_the_bundle(
    scale: str, photos: Path, scaled_pairs: dict[str, bytes], pooled: Pooled, tmp_path: Path
) -> None:
    """This holds for the uncentred norms of clip-top, and for the norms, threshold and mean of clip-concepts."""
    factor = 100 / pooled.size if scale == "unit" else np.ones(len(pooled.size))
    s = pooled.s * factor[:, None]
    unit = 37
    bundle = tmp_path / "named.safetensors"
    (tmp_path / "pool.txt").write_text("dog\ncat\nboat\n")
    pool = ("--pool", tmp_path / "pool.txt", "--no-cache")
    bundle.write_bytes(written("decompose", "--m", 2, *pool, stdin=scaled_pairs[scale]))
    layer, neuron, head = read(scaled_pairs[scale])["unit"][unit].tolist()
    named = f"{layer}:{neuron}.{head}"
    lines = written("top", photos, "--raw", "--units", named, "--images-per-unit", 6, "-f", "jsonl", "-q", "--bundle", bundle)
    found = [json.loads(line) for line in lines.splitlines()]
    norm = np.sort(np.abs(s[:, unit]) * pooled.w[unit])[::-1][:6]
    np.testing.assert_allclose([record["norm"] for record in found], norm, rtol=1e-3)
    assert found[0]["scale"] == scale
    lines = written("concepts", photos, "--bundle", bundle, "--neurons", "all", "-f", "jsonl", "-q")
    for image, record in enumerate(map(json.loads, lines.splitlines())):
        norm = np.abs(s[image] - s.mean(0)) * pooled.w
        beyond = norm / read(scaled_pairs[scale])["threshold"]  # a threshold is some image's own norm
        assert (beyond > 1 + 1e-3).sum() <= record["active"] <= (beyond > 1 - 1e-3).sum()
        assert record["neurons"][0]["norm"] == pytest.approx(norm.max(), rel=1e-3)
        assert record["settings"]["scale"] == scale


def test_shares_of_concepts_do_not_depend_on_the_scale(photos: Path, scaled_pairs: dict[str, bytes], tmp_path: Path) -> None:
    """They are shares of ||M(I)||, so the factor cancels; the units are the same where signs are."""
    found = []
    for scale, data in scaled_pairs.items():
        bundle = read(data)
        ones = {"sign": np.ones_like(bundle["sign"])}
        (tmp_path / scale).write_bytes(replace(bundle, tensors=bundle.tensors | ones).to_bytes())
        asked = (photos, "--concept", "dog", "--template", "{}", "--per-image", "-f", "jsonl", "-q", "--bundle", tmp_path / scale)
        records = map(json.loads, written("shift", *asked).splitlines())
        found.append([record["shares"]["dog"] for record in records if "shares" in record])
    assert found[0] == found[1] and len(found[0]) == 24


def ablated_cosine(bundle: Bundle, scaled: bool, images: int) -> float:
    """Return the mean cosine with M(I) of outputs whose pairs are all at their means.

    Such an output is a constant plus the sum of the means, times ||M(I)|| / 100.
    """
    model = load_model("emoji-rn2", device="cpu")
    scenes = single_scenes_for("emoji-rn2", images, 5_000_000)
    pictures = torch.stack([model.transform(scenes.load(i)) for i in range(images)])
    visual = supported_resnet(model.clip)
    with torch.inference_mode():
        M = visual(pictures).double()
        pool = visual.attnpool.double()
        constant = pool.c_proj(pool.v_proj.bias[None])[0]
    b = torch.from_numpy(with_directions(bundle, means=True, device="cpu")["mean"]).double().sum(0)
    left = constant + b * (M.norm(dim=1, keepdim=True) / 100 if scaled else 1)
    return float(torch.nn.functional.cosine_similarity(left, M).mean())


@pytest.mark.parametrize("scale", ["unit", "raw"])
def test_ablation_happens_in_the_scale_of_the_bundle(scale: str, emoji_pairs: dict[str, bytes]) -> None:
    """Bundles from before pooled effects became raw are still ablated in their own scale."""
    data = emoji_pairs[scale]
    lines = written("ablate", "--limit", 10, "--ablate", "all", "--template", "{}", "-f", "jsonl", "-q", stdin=data)
    record = json.loads(lines.splitlines()[1])
    assert record["settings"]["scale"] == scale and record["ablate"] == "all"
    assert record["cosine"] == pytest.approx(ablated_cosine(read(data), scale == "unit", 10), abs=2e-5)


def test_a_header_without_a_scale_is_of_the_time_when_all_effects_were_in_units(scaled_pairs: dict[str, bytes]) -> None:
    bundle = read(scaled_pairs["unit"])
    settings = {key: value for key, value in bundle.header.settings.items() if key != "scale"}
    old = replace(bundle, header=replace(bundle.header, settings=settings)).to_bytes()
    assert read(old).header.scaled and "scale" not in read(old).header.settings
    assert not read(scaled_pairs["raw"]).header.scaled and load(old).keys() == load(scaled_pairs["unit"]).keys()
