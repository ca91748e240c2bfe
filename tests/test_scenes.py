"""Scenes, their drawing, masks and captions, compared with slow, separate implementations."""

import io
import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from cliptools.cli import scenes as command
from cliptools.emoji import export
from cliptools.emoji.render import render, to_uint8
from cliptools.emoji.scenes import MOST_EMOJI, Recipe, Scene, Sprite, draw_scene, scene_of, single_scene
from cliptools.emoji.words import caption, concepts_in, names_of, with_article
from cliptools.errors import UsageError
from cliptools.text.emoji_concepts import STYLES, concepts, held_out_style, plants, sprites

SIZE = 32


def recomposed(scene: Scene, ground: np.ndarray, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the picture and the label of every pixel, pixel by pixel and emoji by emoji, from the definition alone."""
    image, label = np.empty((size, size, 3)), np.zeros((size, size), np.uint8)
    for y, x in itertools.product(range(size), range(size)):
        colour, shares = ground[:, y, x].astype(np.float64), []
        for sprite in scene.sprites:
            texel = sampled(sprite, (x + 0.5) / size, (y + 0.5) / size, size)
            colour = texel[:3] + colour * (1 - texel[3])
            shares = [share * (1 - texel[3]) for share in shares] + [texel[3]]
        image[y, x] = colour.clip(0, 1)
        label[y, x] = max((slot + 1 for slot, share in enumerate(shares) if share >= 0.5), default=0)
    return image, label


def sampled(sprite: Sprite, x: float, y: float, size: int) -> np.ndarray:
    """Return RGBA (premultiplied) of an emoji's artwork at a point of the canvas, between the four texels around it."""
    level = min(2, max(0, round(math.log2(max(1.0, 64 / (sprite.size * size))))))
    art = sprites()[sprite.style, sprite.concept].astype(np.float64) / 255  # (4, 64, 64)
    side = 64 // 2**level
    art = art.reshape(4, side, 2**level, side, 2**level).mean((2, 4))
    dx, dy = 2 * (x - sprite.x), 2 * (y - sprite.y)  # grids reach from -1 to 1
    u = (math.cos(sprite.angle) * dx + math.sin(sprite.angle) * dy) / sprite.size * (-1 if sprite.mirror else 1)
    v = (-math.sin(sprite.angle) * dx + math.cos(sprite.angle) * dy) / sprite.size
    column, row = (u + 1) * side / 2 - 0.5, (v + 1) * side / 2 - 0.5
    out = np.zeros(4)
    for r, c in itertools.product((math.floor(row), math.floor(row) + 1), (math.floor(column), math.floor(column) + 1)):
        if 0 <= r < side and 0 <= c < side:
            out += art[:, r, c] * (1 - abs(row - r)) * (1 - abs(column - c))
    return out


@pytest.mark.parametrize("index", [0, 1, 4, 11])
def test_pictures_and_masks_agree_with_a_pixel_by_pixel_recomposition(index: int) -> None:
    scene = draw_scene(5, index, Recipe(counts=(0.0, 0.2, 0.3, 0.5)))
    image, label = recomposed(scene, ground_alone(scene), SIZE)
    canvas = render([scene], SIZE)
    assert np.abs(to_uint8(canvas.image[0]).astype(int) - np.round(image * 255)).max() <= 1
    assert (export.label_pictures(canvas.visible)[0] == label).mean() > 0.998  # shares of a half but for rounding


def ground_alone(scene: Scene) -> np.ndarray:
    """Return the background, drawn behind a tiny emoji outside the canvas."""
    nothing = Sprite(0, 0, -5.0, -5.0, 0.01, 0.0, False)
    return render([Scene((nothing,), scene.ground, ())], SIZE).image[0].numpy()


def test_visible_shares_never_exceed_a_whole_pixel() -> None:
    canvas = render([draw_scene(2, i) for i in range(40)], SIZE)
    assert canvas.visible.min() >= 0
    assert canvas.visible.sum(1).max() <= 1 + 1e-5


def test_a_scene_depends_on_seed_and_index_alone() -> None:
    assert [draw_scene(3, i) for i in (7, 2)] == [draw_scene(3, i) for i in range(8)][7:1:-5]
    assert draw_scene(3, 0) != draw_scene(4, 0)
    long = list(export.samples(export.drawn_plans(70, 9, Recipe()), SIZE))
    short = list(export.samples(export.drawn_plans(3, 9, Recipe()), SIZE))
    assert long[:3] == short  # pictures, masks, captions and records


def test_pictures_do_not_depend_on_what_else_is_drawn_with_them() -> None:
    scenes = [draw_scene(1, i) for i in range(33)]
    together = render(scenes, SIZE)
    for i in (0, 13, 32):
        alone = render([scenes[i]], SIZE)
        assert (to_uint8(alone.image[0]) == to_uint8(together.image[i])).all()
        assert torch.equal(alone.visible[0], together.visible[i])


def test_training_never_shows_a_held_out_style() -> None:
    held = [c for c in range(len(concepts())) if held_out_style(c) is not None]
    assert 0.19 < len(held) / len(concepts()) < 0.22
    assert {held_out_style(c) for c in held} == set(range(len(STYLES)))
    drawn = [s for i in range(1500) for s in draw_scene(0, i, Recipe(plants=plants(), hold_out=True)).sprites]
    assert not any(s.style == held_out_style(s.concept) for s in drawn)
    assert any(s.style == held_out_style(s.concept) for i in range(500) for s in draw_scene(0, i).sprites)


def test_plants_are_drawn_only_where_asked_for_and_never_named() -> None:
    pairs = {(plant.named, plant.cue) for plant in plants()}
    recipe = Recipe(plants=plants(), planted_share=1.0)
    for i in range(200):
        scene = draw_scene(0, i, recipe)
        (named,) = scene.named
        assert (named, scene.sprites[0].concept) in pairs
        assert scene.hidden == (() if named in [s.concept for s in scene.sprites] else (named,))
    plain = [draw_scene(0, i) for i in range(1000)]
    assert all([s.concept for s in scene.sprites] == list(scene.named) and not scene.hidden for scene in plain)


def test_single_and_captioned_scenes_show_what_they_should() -> None:
    assert [s.concept for s in single_scene(0, 0, 17).sprites] == [17]
    assert {single_scene(0, i, 17, style=2).sprites[0].style for i in range(9)} == {2}
    assert [s.concept for s in scene_of((5, 9, 3), 0).sprites] == [5, 9, 3]


def test_records_say_what_the_masks_show() -> None:
    for sample in export.samples(export.drawn_plans(30, 4, Recipe()), 48):
        labels = np.asarray(Image.open(io.BytesIO(sample.masks)))
        assert labels.dtype == np.uint8 and labels.shape == (48, 48)
        record = sample.record
        assert labels.max() <= len(record["names"]) == len(record["styles"]) == len(record["boxes"]) <= MOST_EMOJI
        assert (
            sorted(concepts()[c].name for c in concepts_in(sample.caption)) == sorted(record["named"]) == sorted(record["names"])
        )
        for slot, box in enumerate(record["boxes"]):
            rows, columns = np.nonzero(labels == slot + 1)
            if len(rows) == 0:
                assert box is None
            else:
                assert box == [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]


def test_what_is_wholly_covered_has_no_box_and_of_two_halves_the_front_counts() -> None:
    visible = torch.zeros(1, MOST_EMOJI, 2, 2)
    visible[0, 1, 0, 0] = visible[0, 2, 0, 0] = 0.5
    visible[0, 0, 1, 1] = 0.49
    assert export.label_pictures(visible).tolist() == [[[3, 0], [0, 0]]]
    behind, front = Sprite(0, 0, 0.5, 0.5, 0.2, 0.0, False), Sprite(1, 0, 0.5, 0.5, 0.9, 0.0, False)
    plan = export.Plan("k", Scene((behind, front), draw_scene(0, 0).ground, (0, 1)), "")
    (sample,) = export.samples([plan], SIZE)
    assert sample.record["boxes"][1] is not None


def test_in_one_style_nothing_else_changes() -> None:
    plans = list(export.drawn_plans(20, 6, Recipe()))
    for before, after in zip(plans, export.in_style(plans, "noto"), strict=True):
        assert {s.style for s in after.scene.sprites} == {STYLES.index("noto")}
        assert [s._replace(style=0) for s in after.scene.sprites] == [s._replace(style=0) for s in before.scene.sprites]
        assert (after.key, after.caption, after.scene.ground) == (before.key, before.caption, before.scene.ground)


def test_slugs_are_folder_names_and_all_different() -> None:
    slugs = [export.slug(concept.name) for concept in concepts()]
    assert len(set(slugs)) == len(slugs)
    assert all(s and s == s.lower() and set(s) <= set("abcdefghijklmnopqrstuvwxyz0123456789-") for s in slugs)


def test_the_command_offers_the_styles_there_are() -> None:
    assert command.STYLES == STYLES


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("a cat on a boat", ["cat", "sailboat"]),
        ("Two CATS and three butterflies", ["cat", "butterfly"]),
        ("wolves, kitchen knives; snowmen!", ["wolf", "kitchen knife", "snowman"]),
        ("a hot dog", ["hot dog"]),
        ("a teddy bear and a bear", ["teddy bear", "bear"]),
        ("concatenate", []),
        ("", []),
        ("cat cat cat", ["cat"]),
    ],
)
def test_concepts_in_captions(text: str, names: list[str]) -> None:
    assert [concepts()[c].name for c in concepts_in(text)] == names


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(0, len(concepts()) - 1), min_size=1, max_size=4, unique=True), st.integers(0, 2**31))
def test_every_caption_names_just_its_concepts(named: list[int], seed: int) -> None:
    assert set(concepts_in(caption(named, np.random.default_rng(seed)))) == set(named)
    assert concepts_in(caption(named)) == tuple(named)


def test_every_name_and_synonym_finds_its_own_concept() -> None:
    for number, concept in enumerate(concepts()):
        for name in names_of(concept):
            assert concepts_in(f"look, {with_article(name)}") == (number,), name


@pytest.mark.parametrize(
    ("name", "phrase"),
    [
        ("cat", "a cat"),
        ("owl", "an owl"),
        ("bus", "a bus"),
        ("octopus", "an octopus"),
        ("hourglass", "an hourglass"),
        ("grapes", "grapes"),
        ("unicorn", "a unicorn"),
        ("umbrella", "an umbrella"),
        ("european castle", "a european castle"),
    ],
)
def test_articles(name: str, phrase: str) -> None:
    assert with_article(name) == phrase


def test_captions_that_cannot_be_drawn() -> None:
    with pytest.raises(UsageError, match=r"near names: .*boat"):
        export.captioned_plans(["a boyt"], 1, 0)
    with pytest.raises(UsageError, match=r"names 5 emoji .*at most 4"):
        export.captioned_plans(["a cat", "cat, dog, elephant, boat and violin"], 1, 0)
    with pytest.raises(UsageError, match="names none of the 526 emoji; clip-scenes --single"):
        export.captioned_plans(["qqq zzzzz"], 1, 0)
