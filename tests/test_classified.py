"""Images with a class each: every way such sets are kept, and what is refused."""

from pathlib import Path

import numpy as np
from PIL import Image

from cliptools.ground.classified import ClassifiedImages, classified_scenes, open_classified
from cliptools.ground.emoji.concepts import concepts
from cliptools.ground.emoji.samples import single_plans
from cliptools.ground.scene_images import SceneSource


def put(folder: Path, *names: str) -> Path:
    """Tiny pictures by these names."""
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (2, 2)).save(folder / name)
    return folder


def said(images: ClassifiedImages) -> dict[str, str]:
    """Each image's class, by name."""
    return {name: images.classes[row].name for name, row in zip(images.source.names, images.label, strict=True)}


def test_a_folder_for_each_class(tmp_path: Path) -> None:
    from torchvision.datasets import ImageFolder

    put(tmp_path, "zebra/1.png", "great_white_shark/b/2.png", "great_white_shark/1.png", "Cat/1.png")
    images, oracle = open_classified([str(tmp_path)], None, None), ImageFolder(str(tmp_path))
    assert [each.names[-1] for each in images.classes] == oracle.classes
    assert {str(tmp_path / name): row for name, row in zip(images.source.names, images.label, strict=True)} == dict(
        oracle.samples
    )
    assert said(images)["great_white_shark/b/2.png"] == "great white shark"
    assert images.label.dtype == np.int64 and images.classes_source == "folders"


def test_rendered_scenes_show_each_concept_in_turn() -> None:
    count = len(concepts())
    images = classified_scenes("emoji-rn", 2 * count + 5, seed=3)
    turns = [images.label[:count], images.label[count : 2 * count]]
    assert all(sorted(turn) == list(range(count)) for turn in turns) and (turns[0] != turns[1]).any()
    assert images.source.load(0).size == (128, 128) and classified_scenes("emoji-vit", 1, 0).source.load(0).size == (64, 64)
    assert [each.name for each in images.classes] == [concept.name for concept in concepts()]
    same = classified_scenes("emoji-rn", 5, seed=3)
    assert (same.label == images.label[:5]).all() and same.source.load(4) == images.source.load(4)
    assert isinstance(images.source, SceneSource)
    scenes = {plan.scene.named[0]: plan.scene for plan in single_plans(count, 3)}
    assert all(images.source.scene(index) == scenes[int(images.label[index])] for index in range(0, count, 50))
