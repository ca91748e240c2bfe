"""Measure clip-shift without a concept: word_drift.py measure BUNDLE CACHE.npz, then word_drift.py CACHE.npz > CSV

`measure` runs the model of the bundle once over three sets of scenes and keeps the measures of all words: ordinary scenes; for
each of six concepts scenes that show it; and films of eight frames, in which the emoji of a scene move a little from frame to
frame. Neither training nor bundles use these scenes.

The second form draws streams from them without replacement, and compares each with a baseline by the code of the command. With
an unchanged frequency, of independent scenes or of films with and without blocks, it counts the runs that alarm. With a
frequency that rises from 5 %, it counts how often the word of the concept is found.
The columns are the kind of stream, the frequencies before and now, the numbers of images before and now, the size of a block,
the number of runs, the share of runs with an alarm at --alarm 3 and 2 (expected by chance: at most 0.0027 and 0.0455) and by
single words without control of false discoveries at 3, and, for rising concepts, the share of runs in which the word alarms at 3
by units and by similarities, in which it is the first of all lines and one of the first ten, and the mean number of lines that
alarm (words that look alike rise together).
"""

import csv
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image

from cliptools.analysis.shift_statistics import GroupMoments, chance, chances, compare_all, false_discovery
from cliptools.analysis.word_shares import WordMeasure, units_of_words
from cliptools.emoji.render import render, to_uint8
from cliptools.emoji.scenes import Scene, draw_scene, scene_of
from cliptools.front.mismatch import read_directions
from cliptools.front.vocabulary import default_vocabulary
from cliptools.io.bundle import read_bundle
from cliptools.models.load import load_recorded_model
from cliptools.models.text_encoder import encode_named
from cliptools.text.emoji_concepts import concepts
from cliptools.unit_effects.select import factored_effect

SEED, PLAIN, CONCEPTS, SHOWN, FILMS, FRAMES = 9_300_000, 1600, 6, 120, 200, 8
UNITS_PER_WORD, BATCH, BASELINE, RUNS, POWER_RUNS = 5, 40, 480, 200, 60
COLUMNS = (
    "model", "stream", "before", "now", "baseline_images", "images", "block", "runs", "alarmed_at_3", "alarmed_at_2",
    "single_at_3", "by_units", "by_similarities", "first", "first_ten", "lines",
)  # fmt: skip


class Setting(NamedTuple):
    """Images of a group, size of a block of frames of films (0: independent scenes), and the frequency of now."""

    images: int
    block: int = 0
    now: float = 0.0
    film: bool = False


NULLS = (
    Setting(5), Setting(10), Setting(20), Setting(40), Setting(200),
    Setting(320, 0, film=True), Setting(320, 8, film=True), Setting(320, 16, film=True), Setting(320, 40, film=True),
)  # fmt: skip
RISES = tuple(Setting(images, 0, now) for images in (40, 200) for now in (0.1, 0.2, 0.4))
BEFORE = 0.05


def frames(index: int) -> Iterator[Scene]:
    """Yield the frames of a film: an ordinary scene whose emoji move and turn a little."""
    scene, random = draw_scene(SEED + 1, index), np.random.default_rng((SEED + 1, index))
    step = random.uniform(-0.02, 0.02, (len(scene.sprites), 3))
    for f in range(FRAMES):
        moved = [
            sprite._replace(x=sprite.x + f * dx, y=sprite.y + f * dy, angle=sprite.angle + 3 * f * turn)
            for sprite, (dx, dy, turn) in zip(scene.sprites, step.tolist(), strict=True)
        ]
        yield Scene(tuple(moved), scene.ground, scene.named)


def shown(concept: int, index: int) -> Scene:
    """Return scene number `index` of those that show a concept, in place of one of the emoji of an ordinary scene."""
    others = [other for other in draw_scene(SEED + 2 + concept, index).named if other != concept]
    return scene_of([concept, *others[1:]], SEED + 2 + concept, index)


def scenes(drawn: Sequence[int]) -> Iterator[Scene]:
    """Yield all scenes in the order of the cache."""
    yield from (draw_scene(SEED, i) for i in range(PLAIN))
    for concept in drawn:
        yield from (shown(concept, i) for i in range(SHOWN))
    for film in range(FILMS):
        yield from frames(film)


def measure(bundle_path: Path, out: Path) -> None:
    """Write the measures of all words on all scenes, and what these show."""
    with bundle_path.open("rb") as stream:
        bundle = read_bundle(stream, str(bundle_path))
    model = load_recorded_model(bundle.header.model)
    pool = default_vocabulary(bundle)
    t = encode_named(model, pool, ())
    direction, unit = (torch.from_numpy(bundle[name]) for name in ("direction", "unit"))
    row = units_of_words(direction, t.cpu(), UNITS_PER_WORD, read_directions(bundle), bundle.header.images["count"]).row
    settings = bundle.header.settings
    words = WordMeasure(factored_effect(model.clip, settings["effect"], settings["units"]), unit, row, t)
    known = [c for c, concept in enumerate(concepts()) if concept.name in pool.texts]
    drawn = np.random.default_rng(SEED).choice(known, CONCEPTS, replace=False).tolist()
    everything, values = list(scenes(drawn)), []
    size: Any = model.preprocessing["size"]
    with torch.no_grad():
        for start in range(0, len(everything), BATCH):
            pictures = to_uint8(render(everything[start : start + BATCH], size if isinstance(size, int) else size[0]).image)
            measured = words(torch.stack([model.transform(Image.fromarray(picture)) for picture in pictures]))
            values.append(torch.cat([measured.part.sum(-1), measured.similarity], 1).cpu().numpy())
    named = [[sprite.concept for sprite in scene.sprites] for scene in everything[:PLAIN]]
    without = np.array([[concept not in scene for scene in named] for concept in drawn])  # (concept, plain)
    place = [pool.texts.index(concepts()[concept].name) for concept in drawn]
    np.savez(out, value=np.concatenate(values), without=without, word=place, words=len(pool.texts), model=model.name)


def moments(value: np.ndarray, block: int) -> GroupMoments:
    """Return the moments of a stream [image, column], of images or of blocks of consecutive images."""
    value = value if not block else value[: len(value) // block * block].reshape(-1, block, value.shape[1]).mean(1)
    sums = GroupMoments(1, value.shape[1])
    sums.add(np.zeros(len(value), np.int64), value)
    return sums


def compared(now: np.ndarray, before: np.ndarray, block: int) -> tuple[np.ndarray, np.ndarray]:
    """Return p and q of every column."""
    comparisons = compare_all(moments(now, block), moments(before, block))
    assert comparisons is not None  # both streams are large enough
    p = chances(comparisons)
    return p, false_discovery(p)


def unchanged(value: np.ndarray, setting: Setting, random: np.random.Generator) -> list[float]:
    """Return the shares of runs that alarm at 3, at 2, and without control of false discoveries."""
    counts = np.zeros(3)
    for _ in range(RUNS):
        if setting.film:
            first = PLAIN + CONCEPTS * SHOWN
            stream = value[first:].reshape(FILMS, FRAMES, -1)[random.permutation(FILMS)].reshape(FILMS * FRAMES, -1)
            begin = int(random.integers(FRAMES))  # blocks do not begin with films
            before, now = stream[begin:][: 3 * setting.images], stream[begin + 3 * setting.images + FRAMES :][: setting.images]
        else:
            drawn = random.choice(PLAIN, BASELINE + setting.images, replace=False)
            before, now = value[drawn[:BASELINE]], value[drawn[BASELINE:]]
        p, q = compared(now, before, setting.block)
        counts += [q.min() <= chance(3.0), q.min() <= chance(2.0), p.min() <= chance(3.0)]
    return (counts / RUNS).tolist()


def rising(cache: Any, value: np.ndarray, setting: Setting, random: np.random.Generator) -> list[float]:
    """Return the shares of runs with an alarm at 3 and at 2, with the word found, first, and among ten, and the alarmed lines."""
    counts, words = np.zeros(7), int(cache["words"])
    for run in range(POWER_RUNS):
        c = run % CONCEPTS
        plain, rich = random.permutation(np.flatnonzero(cache["without"][c])), PLAIN + c * SHOWN + random.permutation(SHOWN)
        many = [round(BEFORE * BASELINE), round(setting.now * setting.images)]
        before = np.concatenate([rich[: many[0]], plain[: BASELINE - many[0]]])
        now = np.concatenate([rich[many[0] :][: many[1]], plain[BASELINE:][: setting.images - many[1]]])
        p, q = compared(value[now], value[before], 0)
        word = int(cache["word"][c])
        by = [q[word] <= chance(3.0), q[words + word] <= chance(3.0)]
        lines = (p.argsort(kind="stable")[:10] % words == word).tolist()
        counts += [q.min() <= chance(3.0), q.min() <= chance(2.0), *by, lines[0], any(lines), (q <= chance(3.0)).sum()]
    return (counts / POWER_RUNS).tolist()


def main(path: Path) -> None:
    """Write one line per setting."""
    cache, random = np.load(path), np.random.default_rng(SEED)
    value, model = cache["value"].astype(np.float64), str(cache["model"])
    print("# make -C examples -f drift.mk")
    writer = csv.writer(sys.stdout, lineterminator="\n")
    writer.writerow(COLUMNS)
    for setting in NULLS:
        kind, baseline = ("films", 3 * setting.images) if setting.film else ("scenes", BASELINE)
        rates = [f"{rate:.3g}" for rate in unchanged(value, setting, random)]
        row = [model, kind, "", "", baseline, setting.images, setting.block or "", RUNS, *rates]
        writer.writerow([*row, "", "", "", "", ""])
        sys.stdout.flush()
    for setting in RISES:
        at_3, at_2, *rest = (f"{rate:.3g}" for rate in rising(cache, value, setting, random))
        row = [model, "rising", BEFORE, setting.now, BASELINE, setting.images, "", POWER_RUNS, at_3, at_2, ""]
        writer.writerow([*row, *rest])


if __name__ == "__main__":
    if sys.argv[1] == "measure":
        measure(Path(sys.argv[2]), Path(sys.argv[3]))
    else:
        main(Path(sys.argv[1]))
