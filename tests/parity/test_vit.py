"""Paper 1: what the commands write of a small ViT, against the transcription's results."""

from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load

from . import study
from .agreement import (
    CONCEPTS,
    CONDITIONED,
    EXACT,
    TEMPLATES,
    TIE,
    WRITTEN,
    ablation_of,
    ablations_agree,
    characters_agree,
    effects_of,
    layers_of,
    quoted,
    shift_agrees,
    words_agree,
)
from .reading import Bundle, Held, Pipeline, Within, records


@pytest.fixture(scope="module")
def expected() -> study.Results:
    return study.results("vit")


def more_effects(within: Within, *arguments: object, model: str = "vit") -> Bundle:
    return Bundle(within("effects", "measured", *effects_of(model).split(), *arguments, "-f", "safetensors", "-q"))


def test_second_order_effects(vit_neurons: Bundle, expected: study.Results, held: Held) -> None:
    assert vit_neurons["unit"][:, :2].tolist() == [list(unit) for unit in study.units_of(study.SECOND)]
    characters_agree(held, "second order", vit_neurons, expected, "second")
    held("second order: two components", vit_neurons["component"], expected["second.r"], CONDITIONED)
    held("second order: explained by each", vit_neurons["component_explained"], expected["second.explained"], EXACT)


def test_scale(expected: study.Results, within: Within, place: Path, held: Held) -> None:
    """`--scale raw` is Eq. 5 as it stands; the default multiplies an image's effects by 100 / ‖M(I)‖."""
    raw = within(
        "effects", "measured", *effects_of("vit").split(), "--layers", "0-1", "--scale", "raw", "-f", "safetensors", "-q"
    )
    characters_agree(held, "second order, raw", Bundle(raw), expected, "raw")
    (place / "raw").write_bytes(raw)
    data = within("ablate", *ablation_of("vit", "--ablate", "all,large", "--reconstruct", "pc", "--bundle", "raw", "-q"))
    ablations_agree(held, "ablation, raw", data, expected, "ablate_raw", {"none", "all", "large", "pc 1"}, 2)


def test_first_order_effects(expected: study.Results, within: Within, held: Held) -> None:
    found = more_effects(within, "--effect", "first", "--layers", layers_of(study.FIRST))
    characters_agree(held, "first order", found, expected, "first")


def test_indirect_effects(vit_indirect: Bundle, expected: study.Results, held: Held) -> None:
    characters_agree(held, "indirect", vit_indirect, expected, "indirect")


@pytest.mark.parametrize(("effect", "layers"), [("second", study.SECOND), ("first", study.FIRST), ("indirect", study.INDIRECT)])
def test_layer_scale_and_gelu(effect: str, layers: range, within: Within, held: Held) -> None:
    found = more_effects(within, "--effect", effect, "--layers", layers_of(layers), model="scaled")
    characters_agree(held, f"LayerScale, GELU: {effect}", found, study.results("scaled"), effect)


def test_pursuit(vit_neurons: Bundle, expected: study.Results, within: Within, held: Held) -> None:
    words_agree(held, "pursuit", vit_neurons, expected, "pursuit", "gamma")
    held("pursuit: ‖r − r̂‖", vit_neurons["residual"], expected["pursuit.residual"], EXACT)
    words = ("--m", study.M, "--pool", study.POOL, "-f", "safetensors", "-q")
    found = Bundle(within("decompose", "effects", "--normalize", "dimensions", *words))
    words_agree(held, "pursuit, dimensions", found, expected, "dimensions", "gamma")
    held("pursuit, dimensions: ‖r − r̂‖", found["residual"], expected["dimensions.residual"], EXACT)


def test_textspan(expected: study.Results, within: Within, held: Held) -> None:
    heads = (*effects_of("vit").split(), "--units", "heads", "--layers", layers_of(study.SPAN))
    within("effects", "measured", *heads, "-o", "heads-of-vit", "-q")
    words = ("--method", "textspan", "--m", study.SPANNED, "--pool", study.POOL, "-f", "safetensors", "-q")
    words_agree(held, "TextSpan", Bundle(within("decompose", "heads-of-vit", *words)), expected, "textspan", "share")


def ranked(score: np.ndarray, pool: tuple[str, ...], count: int) -> tuple[list[str], np.ndarray]:
    """The words of largest positive score; none so near the next that float32 could swap them."""
    order = [j for j in np.argsort(-score)[: count + 1] if score[j] > 0]
    assert np.all(np.diff(score[order]) < -TIE)
    kept = order[:count]
    return [pool[j] for j in kept], score[kept]


@pytest.mark.parametrize("by", ["effect", "overlap", "similar"])
def test_spurious_words(
    by: str, vit_neurons: Bundle, expected: study.Results, pipeline: Pipeline, within: Within, held: Held
) -> None:
    words = ["--depict", study.DEPICT, "--predict", study.PREDICT, "--near", study.NEAR, "--neurons", study.SPURIOUS_NEURONS]
    words += ["--words", study.SPURIOUS_WORDS, "--by", by, "-f", "jsonl"]
    as_process = by == "effect"
    found = records(pipeline(f"clip-spurious {quoted(words)} < neurons") if as_process else within("spurious", "neurons", *words))
    score = expected[f"spurious.{by}"].copy()
    score[expected["spurious.left_out"]] = -np.inf
    chosen, value = ranked(score, study.pool(), study.SPURIOUS_WORDS)
    assert [record["word"] for record in found] == chosen
    held(f"words by {by}", [record["score"] for record in found], value, EXACT + WRITTEN)


def test_concepts(vit_neurons: Bundle, expected: study.Results, pipeline: Pipeline, within: Within, held: Held) -> None:
    assert expected["concepts.on_threshold"] > EXACT  # nothing stands so near its threshold that float32 could decide
    pool = study.pool()
    words = f"--words {study.CONCEPT_WORDS} -f jsonl --bundle"
    plain = records(pipeline(f"clip-concepts shown {words} neurons"))
    signed = records(within("concepts", "shown", *words.split(), "neurons", "--score", "signed", "--neurons", "all"))
    assert [record["active"] for record in plain] == expected["concepts.active"].tolist()
    for name, found, scores in (("norm", plain, "concepts.score"), ("signed", signed, "concepts.signed")):
        assert len(found) == study.SHOWN
        for record, score in zip(found, expected[scores], strict=True):
            chosen, value = ranked(score, pool, study.CONCEPT_WORDS)
            assert [concept["word"] for concept in record["concepts"]] == chosen
            held(f"concepts by {name}", [concept["score"] for concept in record["concepts"]], value, EXACT + WRITTEN)


def test_heat_maps(vit_neurons: Bundle, expected: study.Results, pipeline: Pipeline, held: Held) -> None:
    asked = " ".join(f"--text {text}" for text in study.SEGMENTED)
    paths = " ".join(str(path.relative_to(study.FIXTURES / "images")) for path in study.pictures("shown")[:2])
    found = load(pipeline(f"clip-segment {paths} {asked} --template none --neurons {study.MAP_NEURONS} -f safetensors < effects"))
    maps = [value for _, value in sorted(found.items()) if value.ndim == 3]
    held("heat maps", np.stack(maps), expected["heat"], EXACT)


def test_shift(vit_neurons: Bundle, expected: study.Results, pipeline: Pipeline, held: Held) -> None:
    groups = " ".join(f"shown/{group}" for group in study.GROUPS)
    more = f"--units-per-concept {study.CONCEPT_UNITS} --choose overlap --labels presence.csv --per-image -f jsonl"
    shift_agrees(held, "shift", pipeline(f"clip-shift {groups} {quoted(CONCEPTS + TEMPLATES)} {more} < effects"), expected)


def test_inertia(vit_neurons: Bundle, expected: study.Results, pipeline: Pipeline, held: Held) -> None:
    more = "--images-per-unit 1 --sort index --head 100000 -f jsonl"
    found = records(pipeline(f"clip-top measured --inertia-images {study.INERTIA_IMAGES} {more} < effects"))
    held("inertia", [record["inertia"] for record in found], expected["inertia"], EXACT + WRITTEN)
