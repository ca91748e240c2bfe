"""Inputs and checks of test_gallery_command.py that other tests share."""

import json
from pathlib import Path

import numpy as np
from PIL import Image

from cliptools.images.relocate import thumbnail_tensors
from cliptools.io.bundle import Bundle, json_tensor
from cliptools.io.header import Header

MODEL = {"name": "emoji-vit2", "pretrained": None, "sha256": "0" * 64}


ATTACKS = [
    "</script><img src=x onerror=window.attacked=1>",
    "<!--<script>",
    "<script>window.attacked=1</script>",
    '"><svg onload=window.attacked=1>',
    "' onmouseover='window.attacked=1",
    "javascript:window.attacked=1",
    "\u2028window.attacked=1\u2029//",
    "&lt;b&gt; &#x3c;script&#x3e;",
    "]]><x>@script@ @data@ ${window.attacked=1} `",
    "\u202egnp.exe \u0000 \x1b[31m",
]


class Plain:
    """A source of plain pictures, each of a different colour."""

    def __init__(self, names: list[str]) -> None:
        self.names = names

    def __len__(self) -> int:
        return len(self.names)

    def load(self, index: int) -> Image.Image:
        colour = (index * 37 % 256, index * 91 % 256, index * 151 % 256)
        return Image.new("RGB", (32 + index % 3 * 8, 32), colour)


def units_bundle(
    units: int = 7, images: list[str] | None = None, words: list[str] | None = None, thumbnails: bool = True, heads: bool = False
) -> Bundle:
    """Return units of layers 5 to 7 with five words each and six top images each."""
    random = np.random.default_rng(0)
    images = images or [f"photos/{i:02d} a.png" for i in range(11)]
    words = words or ["dog", "black cat", "café", "boat", "sea", "owl", "sun"]
    unit = [[5 + u % 3, 100 + u, u % 4 if heads else -1] for u in range(units)]
    tensors = {
        "unit": np.array(unit, np.int32).reshape(units, 3),
        "top_norm": -np.sort(-random.random((units, 6)).astype(np.float32)),
        "top_image": np.stack([random.permutation(len(images))[:6] for _ in range(units)]).astype(np.int32),
        "threshold": random.random(units).astype(np.float32),
        "explained": random.random(units).astype(np.float32),
        "explained_all": random.random(units).astype(np.float32),
        "images": json_tensor(images),
        "word": np.stack([random.permutation(len(words))[:5] for _ in range(units)]).astype(np.int32),
        "coefficient": random.normal(size=(units, 5)).astype(np.float32),
        "residual": random.random(units).astype(np.float32),
        "words": json_tensor({"texts": words, "digest": "0"}),
    }
    if thumbnails:
        tensors |= thumbnail_tensors(Plain(images), range(len(images)), 32)
    return Bundle(Header("neurons", MODEL, {"count": 50}, {"units": "pairs" if heads else "neurons"}), tensors)


def records(bundle: Bundle, folder: Path) -> list[str]:
    """Return records of the other commands as options: concepts, a masked image, a picture that fools, and explained margins."""
    image = bundle.text_list("images")[0]
    source = {"model": MODEL, "bundle": bundle.digest}
    neuron = {"layer": 5, "neuron": 100, "norm": 3.5, "projection": 3.0, "words": [{"word": "dog", "coefficient": 0.5}]}
    concept = {"image": image, "concepts": [{"word": "dog", "score": 2.5}], "active": 4, "neurons": [neuron]} | source
    (folder / "concepts.jsonl").write_text(json.dumps(concept) + "\n" + json.dumps(concept | {"image": "elsewhere.png"}) + "\n")
    place = folder / "masks" / "one.png"
    place.mkdir(parents=True)
    Image.new("RGB", (40, 30), "red").save(place / "dog.overlay.png")
    mask = {"image": image, "text": "dog", "score": 0.25, "share": 0.5, "overlay": "one.png/dog.overlay.png", "method": "neurons"}
    (place / "segments.json").write_text(json.dumps([mask | source]))
    Image.new("RGB", (300, 200), "blue").save(folder / "fooled.png")
    fooled = {
        "depict": "cat",
        "predict": "dog",
        "description": "a cat, a boat",
        "words": ["boat"],
        "margin": 0.07,
        "fooled": True,
    }
    fooled |= {"file": str(folder / "fooled.png"), "check": {"by": "scene", "depicted": True, "predicted": False}} | source
    (folder / "fooled.jsonl").write_text(json.dumps(fooled) + "\n" + json.dumps(fooled | {"fooled": False, "file": None}) + "\n")
    (folder / "maps").mkdir()
    Image.new("RGB", (50, 20), "green").save(folder / "maps" / "5-100.png")
    unit = {
        "layer": 5,
        "neuron": 100,
        "share": 1.5,
        "excess": 1.25,
        "map": "5-100.png",
        "writes": [{"word": "dog", "coefficient": 0.5}, {"word": "sea", "overlap": 0.25}],
    }
    unit |= {"sees": [{"word": "boat", "correlation": 0.25}]}
    margin = {
        "image": image,
        "a": "cat",
        "b": "dog",
        "margin": -2.5,
        "parts": {"units": -3.0, "rest": 0.5},
        "units": [unit],
    } | source
    (folder / "why.jsonl").write_text(json.dumps(margin) + "\n" + json.dumps(margin | {"b": None}) + "\n")
    names = {
        "--concepts": "concepts.jsonl",
        "--masks": "masks",
        "--fooled": "fooled.jsonl",
        "--explained": "why.jsonl",
        "--maps": "maps",
    }
    return [word for option, name in names.items() for word in (option, str(folder / name))]


def hostile(folder: Path) -> tuple[Bundle, list[str]]:
    """Return a bundle and records in which every text and name is an attack."""
    bundle = units_bundle(12, [f"{attack}.png" for attack in ATTACKS], ATTACKS)
    said = {"count": 9, "digest": ATTACKS[1]}  # a count and units that are none are refused before
    header = Header("neurons", MODEL | {"name": ATTACKS[0], "pretrained": ATTACKS[3]}, said, {"units": "neurons"})
    source = {"model": MODEL}
    words = [{"word": attack, "score": 1.0, "coefficient": 1.0} for attack in ATTACKS]
    lines = [
        {"image": a, "concepts": words, "neurons": [{"layer": 5, "neuron": 100, "norm": 1, "words": words}]} for a in ATTACKS
    ]
    (folder / "c.jsonl").write_text("".join(json.dumps(line | source) + "\n" for line in lines))
    fooled = [{"depict": a, "predict": a, "description": a, "words": [a], "margin": 1, "fooled": True, "by": a} for a in ATTACKS]
    (folder / "f.jsonl").write_text(
        "".join(
            json.dumps(line | source | {"check": {"by": ATTACKS[0], "depicted": True, "predicted": True}}) + "\n"
            for line in fooled
        )
    )
    (folder / "m").mkdir()
    Image.new("RGB", (4, 4)).save(folder / "m" / "o.png")
    masks = [{"image": a, "text": a, "score": 1, "share": 1, "overlay": "o.png", "method": a} for a in ATTACKS]
    masks += [{"image": a, "found": [{"class": a, "share": 1}], "overlay": "o.png"} for a in ATTACKS]
    (folder / "m" / "segments.json").write_text(json.dumps(masks))
    units = [{"layer": 5, "neuron": 100, "share": 1, "excess": 1, "map": "o.png", "sees": words, "writes": words}]
    margins = [{"image": a, "a": a, "b": a, "margin": 1, "parts": {"units": 1}, "units": units} | source for a in ATTACKS]
    (folder / "e.jsonl").write_text("".join(json.dumps(line) + "\n" for line in margins))
    options = [
        "--explained",
        folder / "e.jsonl",
        "--maps",
        folder / "m",
        "--concepts",
        folder / "c.jsonl",
        "--fooled",
        folder / "f.jsonl",
        "--masks",
        folder / "m",
    ]
    return Bundle(header, bundle.tensors), list(map(str, options))
