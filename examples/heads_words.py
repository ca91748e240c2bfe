"""Measure how much TextSpan's words explain of heads' outputs and whether they name their content: heads_words.py BUNDLE > CSV

The columns are means over the heads of a layer.
variance is the share of variance that the words explain. random_directions is the share for the same number of directions,
selected in the same way from a pool of random directions; drawn_texts for the same number of texts drawn at random; principal for
the same number of principal directions, the largest possible share.
The other columns are measured on other scenes, for texts that name an emoji of some scene. auc is the area under the ROC curve of
a head's output along its words, for scenes that show the named emoji against all others; auc_any is the same for all texts. top10
is the share of scenes with the emoji among the ten scenes of largest output along a word; top10_any is the same for all texts.
"""

import sys
from pathlib import Path

import numpy as np
import torch
from sklearn.metrics import roc_auc_score

from cliptools.analysis.pursuit import text_space
from cliptools.analysis.textspan import head_directions, text_spans
from cliptools.emoji.render import SceneSource
from cliptools.io.bundle import Bundle, read_bundle
from cliptools.models.load import load_recorded_model
from cliptools.models.text_encoder import encode_pool
from cliptools.text.vocabularies import load_pool
from cliptools.unit_effects.factored import FactoredEffect, UnitBlock, scale_of
from cliptools.unit_effects.select import factored_effect

SCENES, SEED, BATCH, DRAWS, TOP = 1500, 77, 50, 20, 10
EXPLAINED = ("variance", "random_directions", "drawn_texts", "principal")
NAMED = ("auc", "auc_any", "top10", "top10_any")


def explained(bundle: Bundle, D: torch.Tensor, t: torch.Tensor) -> dict[str, torch.Tensor]:
    """Return the shares of the variance of each head's outputs."""
    V, m = torch.from_numpy(bundle["moment"]), bundle["word"].shape[1]
    draw = torch.Generator().manual_seed(0)
    noise = torch.nn.functional.normalize(torch.randn(t.shape, generator=draw), dim=1)
    drawn = [text_spans(V, D, t[torch.randperm(len(t), generator=draw)[:m]], m).residual for _ in range(DRAWS)]
    outputs = D.mT.double() @ V.double() @ D.double()  # (head, d, d)
    values = torch.linalg.eigvalsh(outputs).flip(1)
    shares = (
        1 - torch.from_numpy(bundle["residual"]) ** 2,
        1 - text_spans(V, D, noise, m).residual ** 2,
        (1 - torch.stack(drawn) ** 2).mean(0),
        values[:, :m].sum(1) / values.sum(1),
    )
    return dict(zip(EXPLAINED, shares, strict=True))


def outputs_along(paths: FactoredEffect, layer: int, pictures: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
    """Return <phi, t> for every head of a layer, [head, scene, text]."""
    slab = UnitBlock(layer, torch.arange(paths.size(layer)[0]))
    reach = paths.directions(slab) @ t.T  # (head, k, text)
    parts = []
    for batch in pictures.split(BATCH):
        (S,), embedding = paths.read(batch, [slab])
        parts.append((S * scale_of(embedding, True)[:, None, None]).transpose(0, 1) @ reach)
    return torch.cat(parts, 1)


def named(along: np.ndarray, shown: np.ndarray, words: list[int]) -> tuple[float, ...]:
    """Return the values of NAMED for one head; `along` and `shown` are [scene, text]."""
    texts = shown.any(0).nonzero()[0]
    auc = np.full(shown.shape[1], np.nan)
    auc[texts] = [roc_auc_score(shown[:, j], along[:, j]) for j in texts]
    top = np.take_along_axis(shown, np.argsort(-along, axis=0, kind="stable")[:TOP], 0).mean(0)
    own = np.intersect1d(words, texts)
    return auc[own].mean(), auc[texts].mean(), top[own].mean(), top[texts].mean()


def main(path: Path) -> None:
    """Write the table to stdout."""
    with path.open("rb") as stream:
        bundle = read_bundle(stream, str(path))
    model, pool = load_recorded_model(bundle.header.model), load_pool("emoji")
    t = text_space(encode_pool(model, pool, ()))
    paths = factored_effect(model.clip, "first", "heads")
    source = SceneSource(SCENES, SEED)
    pictures = torch.stack([model.transform(source.load(i)) for i in range(SCENES)])
    column, shown = {text: j for j, text in enumerate(pool.texts)}, np.zeros((SCENES, len(pool.texts)), dtype=bool)
    for i in range(SCENES):
        shown[i, [column[name] for name in source.names_in(i)]] = True
    texts = bundle.text_list("words")["texts"]
    shares = explained(bundle, head_directions(paths, torch.from_numpy(bundle["unit"])), t)
    print("# make -C examples -f heads.mk")
    print(",".join(["layer", *EXPLAINED, *NAMED]))
    for layer in sorted(set(bundle["unit"][:, 0].tolist())):
        rows = np.flatnonzero(bundle["unit"][:, 0] == layer)
        along = outputs_along(paths, layer, pictures, t).numpy()
        words = [[column[texts[j]] for j in bundle["word"][row]] for row in rows]
        means = np.mean([named(one, shown, own) for one, own in zip(along, words, strict=True)], axis=0)
        figures = [*(float(shares[name][rows].mean()) for name in EXPLAINED), *means]
        print(",".join([str(layer), *(f"{value:.3f}" for value in figures)]))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
