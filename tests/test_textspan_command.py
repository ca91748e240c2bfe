"""Heads through the commands: their bundles, words by TextSpan that describe their outputs, and errors."""

import json
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch
from helpers.advgen_input import inside
from helpers.bundle import read, small_bundle
from helpers.decompose import WORDS
from helpers.textspan import greedy
from helpers.top_pairs import some_photos
from PIL import Image
from sklearn.metrics import roc_auc_score

from cliptools.analysis.pursuit import text_space
from cliptools.emoji.render import SceneSource
from cliptools.io.bundle import Bundle
from cliptools.models.load import load_model
from cliptools.models.text_encoder import encode_pool, encode_texts
from cliptools.text.vocabularies import load_pool
from cliptools.unit_effects.factored import UnitBlock
from cliptools.unit_effects.resnet_pooling import supported_resnet, trace_pool, value_output
from cliptools.unit_effects.vit_direct import Heads

M, SCENES = 8, 250


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the heads of the last two layers of emoji-vit2 on some scenes, with words."""
    folder = tmp_path_factory.mktemp("heads")
    done = inside("effects", "--units", "heads", "--layers", "6,7", "--limit", SCENES, "-o", folder / "heads.safetensors")
    assert done.returncode == 0, done.stderr.decode()
    arguments = ("--method", "textspan", "--pool", "emoji", "--m", M, "--prefix", 2, "-o", folder / "words.safetensors")
    done = inside("decompose", *arguments, folder / "heads.safetensors")
    assert done.returncode == 0, done.stderr.decode()
    return folder / "words.safetensors"


class Late(NamedTuple):
    """Outputs of the last layer's heads, and the concepts of their scenes."""

    outputs: torch.Tensor
    """[scene, head, d], less their mean."""
    texts: torch.Tensor
    """[text, d], as they are compared."""
    pool: tuple[str, ...]
    shown: np.ndarray
    """[scene, text]: whether a scene shows what a text names."""


@pytest.fixture(scope="module")
def late() -> Late:
    model, pool, source = load_model("emoji-vit2", device="cpu"), load_pool("emoji"), SceneSource(SCENES, 0)
    paths, slab = Heads(model.clip.visual), UnitBlock(7, torch.arange(6))
    (S,), M_I = paths.read(torch.stack([model.transform(source.load(i)) for i in range(SCENES)]), [slab])
    phi = torch.einsum("bnk,nkd->bnd", S, paths.directions(slab)) * (100 / M_I.norm(dim=1))[:, None, None]
    column, shown = {text: j for j, text in enumerate(pool.texts)}, np.zeros((SCENES, len(pool.texts)), dtype=bool)
    for i in range(SCENES):
        shown[i, [column[name] for name in source.names_in(i)]] = True
    return Late(phi - phi.mean(0), text_space(encode_pool(model, pool, (), use_cache=True)), pool.texts, shown)


def heads_words(heads: Bundle, unit: int, late: Late) -> list[int]:
    """Return a head's words as rows of the pool."""
    texts = heads.text_list("words")["texts"]
    return [late.pool.index(texts[j]) for j in heads["word"][unit]]


def projected(outputs: torch.Tensor, texts: torch.Tensor) -> torch.Tensor:
    """Return the texts projected onto the span of a head's outputs."""
    V = torch.linalg.svd(outputs.double(), full_matrices=False).Vh[:32]
    return texts.double() @ V.T @ V


@pytest.fixture(scope="module")
def heads(file: Path) -> Bundle:
    return read(file.read_bytes())


def test_the_bundle_of_heads(heads: Bundle) -> None:
    assert heads["unit"].tolist() == [[layer, -1, head] for layer in (6, 7) for head in range(6)]
    assert heads["moment"].shape == (12, 32, 32) and str(heads["moment"].dtype) == "float32"
    said = heads.header.settings
    assert (said["units"], said["effect"], said["layers"]) == ("heads", "first", [6, 7])
    assert said["words"]["method"] == "textspan" and heads.header.history[-1]["arguments"]["method"] == "textspan"
    shares = heads["coefficient"].astype(float)
    np.testing.assert_allclose(heads["residual"] ** 2, 1 - shares.sum(1), atol=1e-5)
    np.testing.assert_allclose(heads["prefix_residual"][:, 0] ** 2, 1 - shares[:, :2].sum(1), atol=1e-5)
    assert (shares > 0).all()


def test_the_shares_are_those_of_the_outputs(heads: Bundle, late: Late) -> None:
    """They are computed from the last layer's outputs on the same scenes, and are at most those of the principal directions."""
    for unit, phi in zip(range(6, 12), late.outputs.unbind(1), strict=True):
        Q, _ = torch.linalg.qr(projected(phi, late.texts)[heads_words(heads, unit, late)].T.double())
        shares = ((phi.double() @ Q) ** 2).sum() / (phi.double() ** 2).sum()
        assert 1 - float(heads["residual"][unit]) ** 2 == pytest.approx(float(shares), abs=1e-3)
        principal = torch.linalg.svdvals(phi.double())[:M].square().sum() / (phi.double() ** 2).sum()
        assert shares <= principal + 1e-9


def test_words_name_what_heads_carry(heads: Bundle, late: Late) -> None:
    """A head's output along its own words separates the scenes with the named emoji better than along other texts."""
    chosen, every = [], []
    for unit, phi in zip(range(6, 12), late.outputs.unbind(1), strict=True):
        along = (phi @ late.texts.T).numpy()  # (scene, text)
        own = set(heads_words(heads, unit, late))
        for j in late.shown.any(0).nonzero()[0]:
            score = roc_auc_score(late.shown[:, j], along[:, j])
            every.append(score)
            chosen += [score] if int(j) in own else []
    assert len(chosen) >= 20 and np.mean(chosen) > np.mean(every) + 0.08


def test_records_and_table(file: Path, heads: Bundle) -> None:
    lines = inside("view", "-f", "jsonl", "--units", "7:.2,6:.0", file).stdout.splitlines()
    records = [json.loads(line) for line in lines]
    assert [(record["layer"], record["head"], "neuron" in record) for record in records] == [(6, 0, False), (7, 2, False)]
    texts = heads.text_list("words")["texts"]
    words = {texts[j]: float(c) for j, c in zip(heads["word"][8], heads["coefficient"][8], strict=True)}
    assert {each["word"]: each["share"] for each in records[1]["words"]} == pytest.approx(words, rel=1e-5)
    table = inside("view", "-f", "table", "--units", "7:.2", file).stdout.decode()
    assert "7:.2" in table and "+" not in table


def test_heads_of_a_resnet(tiny_resnet_dir: Path, tmp_path: Path) -> None:
    """Words and shares equal those from the outputs: W_O^h W_V^h times the attended tokens."""
    (tmp_path / "pool.txt").write_text("\n".join(WORDS))
    photos = some_photos(tmp_path / "photos")
    model = ("--model", f"local-dir:{tiny_resnet_dir}", "--units", "heads", "--top-images", 5, "--quantile", 0.9)
    bundle = inside("effects", photos, *model, "--workers", 0)
    done = inside("decompose", "--method", "textspan", "--m", 3, "--pool", tmp_path / "pool.txt", stdin=bundle.stdout)
    assert done.returncode == 0, done.stderr.decode()
    found, loaded = read(done.stdout), load_model(f"local-dir:{tiny_resnet_dir}", device="cpu")
    visual = supported_resnet(loaded.clip)
    with torch.inference_mode():
        traced = trace_pool(visual, torch.stack([loaded.transform(Image.open(path)) for path in sorted(photos.iterdir())]))
        W_V, W_O, _ = value_output(visual)
        phi = torch.einsum("hde,hen,bhi,bin->bhd", W_O, W_V, traced.attention, traced.x).double()
    t = text_space(encode_texts(loaded, WORDS)).double()
    texts = found.text_list("words")["texts"]
    for head in range(found.units):
        chosen, shares = greedy(phi[:, head], t, 3)
        assert [texts[j] for j in found["word"][head]] == [WORDS[j] for j in chosen]
        np.testing.assert_allclose(found["coefficient"][head], shares, rtol=1e-3)


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (("effects", "--units", "heads", "--effect", "second"), 2, "--effect second"),
        (("decompose", "--method", "textspan"), 1, "needs second moments of heads (clip-effects --units heads)"),
        (("spurious", "--depict", "cat", "--predict", "dog"), 1, "TextSpan"),
    ],
)
def test_refusals_are_one_line(file: Path, arguments: tuple[str, ...], code: int, message: str) -> None:
    given = {"effects": b"", "decompose": small_bundle().to_bytes(), "spurious": file.read_bytes()}[arguments[0]]
    done = inside(*arguments, stdin=given)
    assert (done.returncode, done.stdout) == (code, b"") and message in done.stderr.decode()
    assert done.stderr.count(b"\n") == 1
