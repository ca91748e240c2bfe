"""Write streams of scenes in which the frequency of a concept rises: drifting_scenes.py OUT SIZE

For each of twelve concepts, drawn from all concepts with a seed, the script writes a folder of twelve archives in the format of
clip-scenes. Each archive is a group of forty scenes. The share of scenes that show the concept rises from 5 % in the first
archive to 60 % in the last; the concept replaces one of the emoji of an ordinary scene. OUT/concepts.txt has one concept per
line. Training and bundles use other scenes.
"""

import sys
from pathlib import Path

import numpy as np

from cliptools.emoji.export import Plan, samples, slug
from cliptools.emoji.render import scene_key
from cliptools.emoji.scenes import Scene, draw_scene, scene_of
from cliptools.images.tar import write_end, write_member
from cliptools.io.files import put_whole, whole_file
from cliptools.io.header import canonical
from cliptools.text.emoji_concepts import concepts

CONCEPTS, GROUPS, IMAGES, SEED = 12, 12, 40, 9_100_000
LEAST, MOST = 0.05, 0.60


def scene(concept: int, shown: bool, index: int) -> Scene:
    """Return scene number `index` of a concept's stream."""
    others = [other for other in draw_scene(SEED + concept, index).named if other != concept]
    return scene_of([concept, *others[1:]] if shown or not others else others, SEED + concept, index)


def main(out: Path, size: int) -> None:
    """Write all streams and the list of concepts."""
    drawn = np.random.default_rng(SEED).choice(len(concepts()), CONCEPTS, replace=False).tolist()
    for concept in drawn:
        random = np.random.default_rng((SEED, concept))
        folder = out / slug(concepts()[concept].name)
        folder.mkdir(parents=True, exist_ok=True)
        for group, share in enumerate(np.linspace(LEAST, MOST, GROUPS)):
            shown = random.random(IMAGES) < share
            plans = (Plan(scene_key(i), scene(concept, bool(shown[i]), group * IMAGES + i), "") for i in range(IMAGES))
            with whole_file(folder / f"{group + 1:02d}.tar") as stream:
                for sample in samples(plans, size):
                    write_member(stream, f"{sample.key}.png", sample.image)
                    write_member(stream, f"{sample.key}.json", canonical(sample.record).encode())
                write_end(stream)
    put_whole(out / "concepts.txt", "".join(f"{concepts()[concept].name}\n" for concept in drawn).encode())


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
