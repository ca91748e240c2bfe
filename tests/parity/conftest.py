"""The small models as open_clip wants them, the commands, and a ledger of what deviated how far."""

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from helpers.advgen_input import inside
from helpers.pipes import shell
from safetensors.numpy import save_file

from . import study
from .agreement import effects_of, layers_of
from .reading import Bundle, Held, Pipeline, Within


@pytest.fixture(scope="session")
def held() -> Iterator[Held]:
    """held(quantity, found, expected, tolerance, scale): nothing may differ by more than tolerance · scale (else the largest).

    `pytest tests/parity -s` shows all of it as a table in the end.
    """
    ledger: dict[str, tuple[float, float]] = {}

    def hold(quantity: str, found: object, expected: object, tolerance: float, scale: object = None) -> None:
        found, expected = np.asarray(found, np.float64), np.asarray(expected, np.float64)
        assert found.shape == expected.shape, (quantity, found.shape, expected.shape)
        deviation = float(np.max(np.abs(found - expected) / (np.abs(expected).max() if scale is None else scale)))
        ledger[quantity] = (tolerance, max(deviation, ledger.get(quantity, (0, 0.0))[1]))
        assert deviation <= tolerance, (quantity, deviation)

    yield hold
    print("\n\n| quantity | tolerance | largest deviation |\n|---|---|---|")
    for quantity, (tolerance, deviation) in ledger.items():
        print(f"| {quantity} | {tolerance:.0e} | {deviation:.1e} |")


@pytest.fixture(scope="session")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with both models in open_clip's local-dir form, labels, classes, and links to the fixtures."""
    folder = tmp_path_factory.mktemp("parity")
    for name, config in study.MODELS.items():
        (folder / name).mkdir()
        (folder / name / "open_clip_config.json").write_text(json.dumps({"model_cfg": config, "preprocess_cfg": {}}))
        save_file(study.weights(name), folder / name / "open_clip_model.safetensors")
    (folder / "classes.txt").write_text("\n".join(study.CLASSES) + "\n")
    (folder / "measured").symlink_to(study.FIXTURES / "images" / "measured")
    (folder / "shown").symlink_to(study.FIXTURES / "images" / "shown")
    rows = zip(study.pictures("shown"), *study.presence(), strict=True)
    lines = [",".join(map(str, (path.relative_to(study.FIXTURES / "images"), *labels))) for path, *labels in rows]
    (folder / "presence.csv").write_text("\n".join([",".join(("image", *study.CONCEPTS)), *lines]) + "\n")
    for name in ("vit", "resnet"):
        rows = zip(study.pictures("shown"), study.results(name)["ablate.label"], strict=True)
        lines = [f"{path.name},{study.CLASSES[label]}" for path, label in rows]
        (folder / f"{name}-labels.csv").write_text("\n".join(["image,label", *lines]) + "\n")
    return folder


@pytest.fixture(scope="session")
def pipeline(place: Path) -> Pipeline:
    """Shell lines run in that folder, every command a process of its own; what they write."""

    def run(lines: str) -> bytes:
        ended = shell(f"set -e; cd {place}; export CLIPTOOLS_QUIET=1; {lines}")
        assert ended.returncode == 0, ended.stderr.decode()
        return ended.stdout

    return run


@pytest.fixture(scope="session")
def within(place: Path) -> Within:
    """One command more, in this process, where the libraries are loaded already."""

    def run(name: str, *arguments: object) -> bytes:
        with contextlib.chdir(place):
            ended = inside(name, *arguments)
        assert ended.returncode == 0, ended.stderr.decode()
        return ended.stdout

    return run


@pytest.fixture(scope="session")
def vit_neurons(pipeline: Pipeline, place: Path) -> Bundle:
    """The pipeline of the README; `effects` and `neurons` then lie in the folder."""
    effects = f"clip-effects measured {effects_of('vit')} --layers {layers_of(study.SECOND)} --components 2"
    pipeline(f"{effects} | tee effects | clip-decompose --m {study.M} --pool {study.POOL} > neurons")
    return Bundle((place / "neurons").read_bytes())


@pytest.fixture(scope="session")
def vit_indirect(within: Within, place: Path) -> Bundle:
    words = (*effects_of("vit").split(), "--effect", "indirect", "--layers", layers_of(study.INDIRECT))
    within("effects", "measured", *words, "-o", "indirect", "-q")
    return Bundle((place / "indirect").read_bytes())


@pytest.fixture(scope="session")
def resnet_pairs(within: Within, place: Path) -> Bundle:
    within("effects", "measured", *effects_of("resnet").split(), "-o", "pairs", "-q")
    return Bundle((place / "pairs").read_bytes())


@pytest.fixture(scope="session")
def resnet_neurons(within: Within, place: Path) -> Bundle:
    words = (*effects_of("resnet").split(), "--units", "neurons", "--components", 2)
    within("effects", "measured", *words, "-o", "whole", "-q")
    return Bundle((place / "whole").read_bytes())
