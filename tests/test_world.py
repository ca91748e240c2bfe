"""The embedded world's looks, written words, attributes, facts and descriptions, compared with their definitions."""

import json
import re
import tarfile
from dataclasses import replace

import numpy as np
import pytest
import torch
from click.testing import CliRunner

from cliptools.cli import scenes as command
from cliptools.emoji.attributes import attributes_of, colour_name, describe, places, thing_attributes
from cliptools.emoji.looks import BLENDED, OUTLINE, PAINTS, PLAIN, SILHOUETTE, TINTED, Look, draw_look, painted
from cliptools.emoji.render import SceneSource, render
from cliptools.emoji.scenes import Ground, Recipe, Scene, Sprite, draw_scene, fact_scene, single_scene, with_property
from cliptools.emoji.writing import MOST_LETTERS, Writing, draw_writing, writable
from cliptools.images.shown_texts import TruthOptions, open_shown, rendered_shown
from cliptools.text.attributes import (
    COLOURS,
    KINDS,
    attribute_groups,
    attribute_index,
    attribute_phrase,
    attributes,
)
from cliptools.text.emoji_concepts import STYLES, concept_index, concepts, facts, held_out_style, plants
from cliptools.text.vocabularies import load_pool

VARIED = Recipe(looks=1.0, written=0.5)
WHITE = Ground()
CENTRE = Sprite(concept_index()["cat"], 2, 0.5, 0.5, 0.8, 0.0, False)


def drawn(sprite: Sprite, ground: Ground = WHITE, writing: Writing | None = None, size: int = 48) -> torch.Tensor:
    """Return the picture [3, y, x] of one sprite."""
    return render([Scene((sprite,), ground, (sprite.concept,), writing=writing)], size).image[0]


def test_variation_leaves_the_scene_where_it_was() -> None:
    for index in range(40):
        plain, varied = draw_scene(3, index), draw_scene(3, index, VARIED)
        assert [s._replace(look=Look()) for s in varied.sprites] == list(plain.sprites) and varied.ground == plain.ground
        assert all(s.look == Look() for s in plain.sprites) and plain.writing is None
        written = () if varied.writing is None else (varied.writing.concept,)
        assert set(varied.named) == {*plain.named, *written}


def test_no_drawing_of_a_held_out_pair_enters_training_in_any_form() -> None:
    recipe = replace(VARIED, hold_out=True, plants=plants(), facts=facts(), facts_share=0.3)
    for index in range(600):
        for sprite in draw_scene(4, index, recipe).sprites:
            held = held_out_style(sprite.concept)
            assert sprite.style != held
            assert sprite.look.way != BLENDED or sprite.look.other != held


@pytest.mark.parametrize("paint", ["red", "blue", "white"])
def test_a_silhouette_has_one_colour_where_the_drawing_is_opaque(paint: str) -> None:
    look = Look(SILHOUETTE, paint)
    layer = torch.rand(1, 4, 9, 7)
    layer[:, :3] *= layer[:, 3:]
    out = painted(layer, [look])
    expected = torch.tensor(PAINTS[paint])[:, None, None] * layer[0, 3]
    torch.testing.assert_close(out[0, :3], expected)
    torch.testing.assert_close(out[:, 3], layer[:, 3])


def test_a_plain_look_changes_channels_by_its_gains_alone() -> None:
    layer = torch.rand(2, 4, 5, 6)
    layer[:, :3] *= layer[:, 3:]
    torch.testing.assert_close(painted(layer, [Look(), Look(BLENDED)]), layer)
    dimmed = painted(layer, [Look(gain=(0.5, 1.0, 0.8))] * 2)
    torch.testing.assert_close(dimmed[:, 0], 0.5 * layer[:, 0])
    torch.testing.assert_close(dimmed[:, 2], 0.8 * layer[:, 2])


def test_a_tint_keeps_light_and_dark_in_one_hue() -> None:
    layer = torch.ones(1, 4, 1, 2)
    layer[0, :3, 0, 0] = 0.1  # a dark pixel and a light one
    out = painted(layer, [Look(TINTED, "blue")])[0, :3, 0]
    assert (out[:, 1] > out[:, 0]).all()
    paint = torch.tensor(PAINTS["blue"])
    torch.testing.assert_close(out[:, 0] / out[:, 0].norm(), paint / paint.norm())


def test_an_outline_is_empty_inside_even_areas() -> None:
    layer = torch.zeros(1, 4, 15, 15)
    layer[0, :, 4:11, 4:11] = 1.0
    layer[0, :3, 4:11, 4:11] = 0.2
    out = painted(layer, [Look(OUTLINE, "black")])[0, 3]
    assert (out[6:9, 6:9] == 0).all() and (out[0] == 0).all()
    assert (out[4, 4:11] == 1).all() and (out[4:11, 10] == 1).all()


def test_a_blend_is_the_weighted_sum_of_two_drawings() -> None:
    """At one size and place, where no rounding of levels differs, pixel by pixel on white."""
    one, other = (drawn(CENTRE._replace(style=style, look=Look(gain=(1.0, 1.0, 0.999)))) for style in (0, 1))
    both = drawn(CENTRE._replace(style=0, look=Look(BLENDED, other=1, share=0.3, gain=(1.0, 1.0, 0.999))))
    torch.testing.assert_close(both, 0.7 * one + 0.3 * other, rtol=0, atol=1e-5)


def test_a_stretched_drawing_is_wider_and_lower() -> None:
    def extent(stretch: float) -> tuple[int, int]:
        mask = render([Scene((CENTRE._replace(look=Look(SILHOUETTE, stretch=stretch)),), WHITE, (0,))], 96).visible[0, 0] > 0.5
        return int(mask.any(0).sum()), int(mask.any(1).sum())

    (w0, h0), (w1, h1) = extent(0.0), extent(0.2)
    assert (w1 < w0 and h1 > h0) or (w1 > w0 and h1 < h0)
    assert abs(w1 * h1 / (w0 * h0) - 1) < 0.1


def test_written_words_are_short_and_stay_apart() -> None:
    pictures = set()
    for concept in writable():
        assert len(concepts()[concept].name) <= MOST_LETTERS
        writing = Writing(concept, 0.5, 0.5, 0.9, 0.0, PAINTS["black"], PAINTS["white"])
        pictures.add(drawn(CENTRE, writing=writing).numpy().tobytes())
    assert len(pictures) == len(writable()) > 20


def test_a_plate_hides_what_is_behind_it() -> None:
    writing = Writing(concept_index()["dog"], 0.5, 0.5, 0.7, 0.0, PAINTS["black"], PAINTS["white"])
    bare, covered = (render([Scene((CENTRE,), WHITE, (0,), writing=w)], 64) for w in (None, writing))
    assert covered.visible.sum() < 0.7 * bare.visible.sum()
    assert (covered.visible <= bare.visible + 1e-6).all()
    inside = covered.image[0, :, 30:34, 12:52]
    assert float(inside.min()) < 0.25 and float(inside.max()) > 0.9  # black letters on white


def test_random_words_lie_on_the_canvas() -> None:
    for seed in range(200):
        w = draw_writing(np.random.default_rng(seed))
        assert w.x - w.width / 2 >= -0.03 and w.x + w.width / 2 <= 1.03 and 0 < w.y < 1


@pytest.mark.parametrize(
    ("rgb", "name"),
    [
        ((1.0, 0.0, 0.0), "red"), ((1.0, 0.5, 0.0), "orange"), ((1.0, 0.95, 0.1), "yellow"), ((0.1, 0.7, 0.2), "green"),
        ((0.1, 0.3, 0.9), "blue"), ((0.5, 0.1, 0.8), "purple"), ((1.0, 0.6, 0.75), "pink"), ((0.45, 0.27, 0.1), "brown"),
        ((0.0, 0.0, 0.0), "black"), ((0.5, 0.5, 0.5), "grey"), ((1.0, 1.0, 1.0), "white"), ((0.25, 0.22, 0.24), "black"),
    ],
)  # fmt: skip
def test_colours_have_their_names(rgb: tuple[float, float, float], name: str) -> None:
    assert colour_name(rgb) == name


def test_paints_have_their_own_names() -> None:
    assert {paint: colour_name(rgb) for paint, rgb in PAINTS.items()} == {paint: paint for paint in PAINTS}


@pytest.mark.parametrize(
    ("concept", "word"),
    [("frog", "green"), ("banana", "yellow"), ("tomato", "red"), ("dolphin", "blue"), ("grapes", "purple"), ("panda", "white")],
)
def test_things_have_the_colours_of_most_drawings(concept: str, word: str) -> None:
    words = [thing_attributes(CENTRE._replace(concept=concept_index()[concept], style=style)) for style in range(len(STYLES))]
    assert sum(word in found for found in words) >= 2


def test_every_scene_has_its_attributes() -> None:
    counts: dict[str, int] = {}
    for index in range(300):
        scene = draw_scene(11, index, VARIED)
        found = attributes_of(scene)
        assert len(set(found)) == len(found) and set(found) <= set(attributes())
        for group in attribute_groups():
            have = set(found) & set(group.words)
            assert have or group.name in ("colour", "size")
            if group.name in ("number", "writing"):
                assert len(have) == 1
        assert ("written word" in found) == (scene.writing is not None)
        for word in found:
            counts[word] = counts.get(word, 0) + 1
    assert len(counts) > len(attributes()) - 5  # nearly all of them occur


def test_places_are_sides_of_the_middle() -> None:
    assert places(0.2, 0.5) == ("on the left",) and places(0.8, 0.1) == ("on the right", "at the top")
    assert places(0.55, 0.45) == ("in the middle",)


def test_kinds_cover_every_concept_and_no_attribute_is_the_name_of_one() -> None:
    assert {concept.subgroup for concept in concepts()} <= set(KINDS)
    names = {name.lower() for concept in concepts() for name in (concept.name, *concept.synonyms)}
    assert not names & {word.lower() for word in attributes()}
    assert len(set(attributes())) == len(attributes()) == len(attribute_index()) == 79


@pytest.mark.parametrize(
    ("word", "phrase"),
    [
        ("red", "something red"), ("large", "something large"), ("on the left", "something on the left"), ("animal", "an animal"),
        ("striped ground", "a striped ground"), ("two things", "two things"), ("one thing", "one thing"), ("no word", "no word"),
        ("sports equipment", "sports equipment"), ("orange ground", "an orange ground"), ("silhouette", "a silhouette"),
    ],
)  # fmt: skip
def test_attributes_in_captions(word: str, phrase: str) -> None:
    assert attribute_phrase(word) == phrase


@pytest.mark.parametrize("fact", facts(), ids=lambda fact: fact.cue)
def test_scenes_of_facts_have_the_property_and_name_the_concept(fact) -> None:
    rng, shown = np.random.default_rng(0), 0
    for _ in range(60):
        scene = fact_scene(rng, fact)
        assert scene.named == (fact.named,)
        drawn_concepts = {sprite.concept for sprite in scene.sprites}
        shown += fact.named in drawn_concepts
        assert scene.hidden == (() if fact.named in drawn_concepts else (fact.named,))
        if fact.kind == "word":
            assert scene.writing is not None and concepts()[scene.writing.concept].name == fact.cue
        else:
            assert fact.cue in attributes_of(scene)
    assert 15 <= shown <= 45
    assert all(fact_scene(rng, fact, seen=0.0).hidden for _ in range(5))


def test_facts_and_plants_have_different_concepts() -> None:
    named = [fact.named for fact in facts()]
    planted = {concept for plant in plants() for concept in (plant.named, plant.cue)}
    words = {concept_index()[fact.cue] for fact in facts() if fact.kind == "word"}
    assert len(set(named)) == len(named) and not set(named) & planted and not words & (planted | set(named))


def test_a_property_changes_nothing_else() -> None:
    scene, rng = single_scene(1, 2, 30), np.random.default_rng(0)
    striped = with_property(scene, "ground", "striped ground", rng)
    assert striped.sprites == scene.sprites and striped.ground == replace(scene.ground, kind="stripes")
    outlined = with_property(scene, "style", "outline drawing", rng)
    assert [s._replace(look=Look()) for s in outlined.sprites] == list(scene.sprites)
    assert {s.look.way for s in outlined.sprites} == {OUTLINE} and outlined.ground == scene.ground


def test_descriptions_say_only_what_is_true() -> None:
    rng, said = np.random.default_rng(2), set()
    for index in range(400):
        scene = draw_scene(12, index, VARIED)
        text, mentioned = describe(scene, rng)
        assert set(mentioned) <= set(attributes_of(scene)), text
        for word in mentioned:
            assert word in text or (word == "written word" and "the word " in text)
        said |= set(mentioned)
        for sprite in scene.sprites:
            concept = concepts()[sprite.concept]
            assert any(name in text for name in (concept.name, *concept.synonyms)), text
    assert len(said) > 60


def test_draws_of_looks_need_no_more_than_their_own_random_numbers() -> None:
    looks = [draw_look(np.random.default_rng(seed), [0, 2]) for seed in range(200)]
    assert {look.way for look in looks} == {PLAIN, TINTED, SILHOUETTE, OUTLINE, BLENDED}
    assert {look.other for look in looks} == {0, 2}


# --- on the command line


def run(*arguments: str) -> None:
    result = CliRunner().invoke(command.main, arguments)
    assert result.exit_code == 0, result.output


def test_records_have_the_attributes_and_what_is_written(tmp_path) -> None:
    run("--count", "30", "--seed", "5", "--looks", "--written", "--described", "--out-dir", str(tmp_path / "varied"))
    records = [json.loads(line) for line in (tmp_path / "varied/scenes.jsonl").read_text().splitlines()]
    for index, record in enumerate(records):
        scene = draw_scene(5, index, Recipe(looks=0.5, written=0.5))
        assert record["attributes"] == list(attributes_of(scene))
        assert record["looks"] == [sprite.look.way for sprite in scene.sprites]
        assert record.get("written") == (scene.writing and concepts()[scene.writing.concept].name)
    assert any("ground" in record["caption"] for record in records)
    assert any("the word " in record["caption"] for record in records)
    assert {record["looks"][0] for record in records} > {PLAIN}


@pytest.mark.parametrize("archive", [False, True])
def test_the_truth_of_files_is_that_of_rendered_scenes(tmp_path, archive: bool) -> None:
    texts, source = load_pool("scenes").texts, SceneSource(25, 9)
    target = tmp_path / ("scenes.tar" if archive else "scenes")
    run("--count", "25", "--seed", "9", *(("-o", str(target)) if archive else ("--out-dir", str(target))))
    paths = [str(target if archive else target / "images")]
    of_files, rendered = open_shown(paths, TruthOptions("scenes"), texts), rendered_shown(source, texts)
    assert [of_files.of(n) for n in range(25)] == [rendered.of(n) for n in range(25)]
    assert of_files.known is not None and rendered.known is not None
    assert (of_files.known == rendered.known).all()
    shown = {texts[n] for n in rendered.of(3)}
    assert shown & set(attributes()) == set(attributes_of(source.scene(3)))
    assert not shown & set(COLOURS) or any(c in shown for c in COLOURS)


def test_scenes_with_everything_equal_each_other(tmp_path) -> None:
    for name in ("a.tar", "b.tar"):
        run("--count", "12", "--looks", "--written", "--described", "-o", str(tmp_path / name))
    assert (tmp_path / "a.tar").read_bytes() == (tmp_path / "b.tar").read_bytes()
    with tarfile.open(tmp_path / "a.tar") as tar:
        assert len(tar.getmembers()) == 48


@pytest.mark.parametrize(
    "options",
    [
        ("--looks", "--caption", "a cat"),
        ("--written", "--groups"),
        ("--described", "--plants"),
        ("--described", "--caption", "a cat"),
    ],
)
def test_options_that_exclude_each_other(options: tuple[str, ...]) -> None:
    result = CliRunner().invoke(command.main, options)
    assert result.exit_code == 2 and re.search(r"cannot be combined", result.output)


def test_the_vocabulary_of_scenes_has_the_names_and_the_attributes() -> None:
    emoji, scenes = load_pool("emoji").texts, load_pool("scenes").texts
    assert scenes == (*emoji, *attributes())
