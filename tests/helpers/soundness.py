"""Inputs and checks of test_soundness.py that other tests share."""

import io
from dataclasses import replace

import numpy as np
from PIL import Image

from cliptools.io.bundle import Bundle
from helpers.bundle import small_bundle


def sound() -> Bundle:
    """Return small_bundle with its random values replaced by valid ones."""
    made = small_bundle(words=True)
    picture = io.BytesIO()
    Image.new("RGB", (3, 2)).save(picture, "JPEG")
    jpeg = np.frombuffer(picture.getvalue(), np.uint8)
    directions = made["direction"] / np.linalg.norm(made["direction"], axis=1, keepdims=True)
    tensors = made.tensors | {
        "direction": directions.astype(np.float32),
        "top_image": np.array([[0, 1], [2, 0], [1, -1]], dtype=np.int32),
        "thumbnails": np.tile(jpeg, 3),
        "thumbnail_offsets": np.arange(4, dtype=np.int64) * len(jpeg),
    }
    return replace(made, tensors={name: value.copy() for name, value in tensors.items()})
