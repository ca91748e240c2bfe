"""Meaning on the embedded model: planted cues are among the words, far more often than by chance and for random neurons."""

import io

import numpy as np
import pytest
from conftest import Run

from cliptools.analysis.spurious import Search, Settings, Texts, Words
from cliptools.io.bundle import Bundle, read_bundle
from cliptools.models.load import load_model
from cliptools.models.text_encoder import encode_pool
from cliptools.text.classes import make_pair
from cliptools.text.emoji_concepts import concepts, plants
from cliptools.text.vocabularies import recorded_pool

DEPICTED = ("rabbit", "chair", "tomato", "hammer")


@pytest.fixture(scope="module")
def bundle(run: Run) -> Bundle:
    effects = run("effects", "--limit", 400, "--top-images", 40)
    assert effects.returncode == 0, effects.stderr.decode()
    words = run("decompose", "--m", 32, stdin=effects.stdout)
    assert words.returncode == 0, words.stderr.decode()
    return read_bundle(io.BytesIO(words.stdout), "bundle")


@pytest.fixture(scope="module")
def found(bundle: Bundle) -> dict[str, float]:
    """Return the share of (plant, depicted class) whose cue is among 25 words, by effect and by random neurons."""
    pool = recorded_pool(bundle)
    t = encode_pool(load_model("emoji-vit2", device="cpu"), pool).double().numpy()
    row = {text: i for i, text in enumerate(pool.texts)}
    place = np.array([*(row[text] for text in bundle.text_list("words")["texts"]), -1])
    words, texts = Words(place[bundle["word"]], bundle["coefficient"]), Texts(pool.texts, t, {x: t[i] for x, i in row.items()})
    shares = {}
    for by in ("effect", "random"):
        search = Search(bundle["direction"], words, texts, Settings(by=by))
        hits = [
            concepts()[plant.cue].name
            in {pool.texts[j] for j in search.find(make_pair(depict, concepts()[plant.named].name)).word}
            for plant in plants()
            for depict in DEPICTED
        ]
        shares[by] = float(np.mean(hits))
    return shares | {"chance": 25 / len(pool.texts)}


def test_cues_are_found(found: dict[str, float]) -> None:
    assert found["effect"] > 5 * found["chance"] and found["effect"] > 1.5 * found["random"], found
