"""Inputs and checks of test_data_layout.py that other tests share."""

import tarfile
from pathlib import Path

import pytest
from PIL import Image

from helpers.advgen_input import inside


def paint(*paths: Path) -> None:
    """Write small pictures."""
    for number, path in enumerate(paths):
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (32, 24), (40 * number % 256, 90, 30)).save(path, format="PNG")


def pack(archive: Path, *members: Path) -> Path:
    """Write a tar of files."""
    with tarfile.open(archive, "w") as tar:
        for member in members:
            tar.add(member, member.name)
    return archive


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a bundle of neurons of emoji-vit2."""
    folder = tmp_path_factory.mktemp("bundle")
    for name, arguments in (
        ("effects", ("--limit", 12, "--layers", 6, "-o", folder / "effects.safetensors")),
        ("decompose", (folder / "effects.safetensors", "--m", 2, "-o", folder / "neurons.safetensors")),
    ):
        assert inside(name, *arguments).returncode == 0
    return folder / "neurons.safetensors"
