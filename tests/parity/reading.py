"""What the commands write, read without the commands' own code."""

import json
from collections.abc import Callable
from typing import Any

import numpy as np
from safetensors.numpy import load

from .vit import Array

Held = Callable[..., None]
Pipeline = Callable[[str], bytes]
Within = Callable[..., bytes]


class Bundle:
    """Tensors by name, and lists of texts."""

    def __init__(self, data: bytes) -> None:
        self.tensors = load(data)

    def __getitem__(self, name: str) -> Array:
        return self.tensors[name]

    def listed(self, name: str) -> Any:
        return json.loads(self.tensors[name].tobytes())

    def top_images(self) -> Array:
        """Numbers of the images, which their files are called by."""
        numbers = np.array([int(name.split("/")[-1].removesuffix(".png")) for name in self.listed("images")])
        return numbers[self["top_image"]]

    def words(self) -> list[list[str]]:
        texts = self.listed("words")["texts"]
        return [[texts[j] for j in row] for row in self["word"]]


def records(data: bytes) -> list[dict[str, Any]]:
    return [json.loads(line) for line in data.splitlines()]
