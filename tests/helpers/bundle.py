"""Inputs and checks of test_bundle.py that other tests share."""

import io

import numpy as np

from cliptools.io.bundle import Bundle, json_tensor, read_bundle
from cliptools.io.header import Header


def small_bundle(units: int = 3, top: int = 2, d: int = 4, words: bool = False) -> Bundle:
    random = np.random.default_rng(0)
    header = Header("effects", {"name": "m", "pretrained": None, "sha256": "0" * 64}, {"count": 5}, {"effect": "second"})
    tensors = {
        "unit": np.stack([np.full(units, 6), np.arange(units), np.full(units, -1)], 1).astype(np.int32),
        "direction": random.normal(size=(units, d)).astype(np.float32),
        "mean": random.normal(size=(units, d)).astype(np.float32),
        "top_norm": np.sort(random.random((units, top)).astype(np.float32))[:, ::-1].copy(),
        "top_image": random.integers(0, 3, (units, top)).astype(np.int32),
        "threshold": random.random(units).astype(np.float32),
        "explained": random.random(units).astype(np.float32),
        "explained_all": random.random(units).astype(np.float32),
        "images": json_tensor(["a.png", "ä b.png", "c.png"]),
    }
    if words:
        tensors["word"] = np.array([[0, 1, -1], [1, 2, 0], [2, -1, -1]], dtype=np.int32)
        tensors["coefficient"] = np.array([[0.9, -0.2, 0], [0.5, 0.4, 0.1], [-0.3, 0, 0]], dtype=np.float32)
        tensors["residual"] = np.array([0.1, 0.5, 0.9], dtype=np.float32)
        tensors["words"] = json_tensor({"texts": ["dog", "cat", "boat"], "pool": "p", "digest": "1"})
    return Bundle(header.after("clip-effects", {"layers": [6]}), tensors)


def read(data: bytes) -> Bundle:
    return read_bundle(io.BytesIO(data), "it")
