"""Models of each family of image towers in folders, and studies of them by commands as processes."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from conftest import Run
from PIL import Image

import cliptools as ct
from cliptools.models.text_encoder import encode_texts
from helpers.weights_files import TEXT, save

TEXTS = ("cat", "dog", "panda", "a red car", "boat", "pizza", "rocket", "red", "car", "photo of dog")
READ = ("--batch-size", 4, "--workers", 0)


class Study:
    """A model, pictures, a vocabulary, and bundles with words."""

    def __init__(self, folder: Path, model: Path, run: Run, pictures: int = 6) -> None:
        self.folder, self.run = folder, run
        self.model = f"local-dir:{model}"
        self.pool, self.photos, self.classes = folder / "pool.txt", folder / "photos", folder / "classes.txt"
        self.pool.write_text("\n".join(TEXTS) + "\n")
        self.classes.write_text("cat\ndog\npizza\n")
        for number in range(pictures):
            group = self.photos / ("cat", "pizza")[number % 2]
            group.mkdir(parents=True, exist_ok=True)
            noise = np.random.default_rng(number).integers(0, 256, (50 + number, 60, 3), np.uint8)
            Image.fromarray(noise).save(group / f"{number:02}.png")

    def done(self, command: str, *words: Any, stdin: bytes = b"") -> bytes:
        """Return the output of a command that succeeds."""
        ended = self.run(command, *words, "-q", stdin=stdin)
        assert ended.returncode == 0, (command, words, ended.stderr.decode())
        return ended.stdout

    def refused(self, command: str, *words: Any, stdin: bytes = b"") -> str:
        """Return the one line of a command that refuses."""
        ended = self.run(command, *words, "-q", stdin=stdin)
        (line,) = ended.stderr.decode().splitlines()
        assert ended.returncode in (1, 2), line
        return line

    def bundle(self, name: str, *options: Any) -> Path:
        """Return the file of a bundle with words, made with these options of clip-effects."""
        path = self.folder / f"{name}.safetensors"
        words = (self.photos, "--model", self.model, "--top-images", 2, "--quantile", 0.5, *READ, *options)
        path.write_bytes(self.done("decompose", "--m", 3, "--pool", self.pool, "--no-cache", stdin=self.done("effects", *words)))
        return path

    def label(self) -> None:
        """Move every picture to the folder of the class that the model takes it for, which are the labels of clip-ablate."""
        model: Any = ct.load_model(self.model, device="cpu")
        classes = self.classes.read_text().splitlines()
        texts = encode_texts(model, classes)  # (class, d)
        for path in sorted(self.photos.rglob("*.png")):
            with torch.inference_mode():
                embedding = model.clip.encode_image(model.transform(Image.open(path))[None])  # (1, d)
            place = self.photos / classes[int((embedding @ texts.T).argmax())]
            place.mkdir(exist_ok=True)
            path.rename(place / path.name)

    def every_consumer(self, bundle: Path, to: Path) -> None:
        """Run every command that reads a bundle with words on one of single neurons."""
        by = ("--bundle", bundle)
        stdin, bare = bundle.read_bytes(), ("--template", "{}")
        assert self.done("view", bundle, "-f", "jsonl", "--head", 2).count(b"\n") == 2
        self.done("judge", self.photos, "--same-names", *READ, *by, "-f", "jsonl", "--no-cache")
        self.done("shift", self.photos, "--concept", "cat", *bare, *READ, *by, "-f", "jsonl")
        self.done("top", self.photos, "--head", 2, *READ, "-f", "jsonl", stdin=stdin)
        self.done("sheet", "--head", 2, "--images-from", self.photos, "-o", to / "sheet.png", stdin=stdin)
        self.done("gallery", "--head", 2, "--images-from", self.photos, "-o", to / "page.html", stdin=stdin)
        edited = to / "edited.safetensors"
        self.done("edit", "--sees", "cat", "--writes", "dog", *bare, "--head", 2, "-o", edited, stdin=stdin)
        changed = self.done("effects", self.photos, "--model", self.model, "--pretrained", edited, "--top-images", 2, *READ)
        assert changed != stdin
        self.main_consumers(bundle, to)

    def main_consumers(self, bundle: Path, to: Path) -> None:
        """Run clip-concepts, clip-spurious, clip-ablate and clip-segment on a bundle of single neurons with words."""
        by, bare, photos = ("--bundle", bundle), ("--template", "{}"), sorted(self.photos.rglob("*.png"))
        words = self.done("concepts", self.photos, *READ, *by, "-f", "jsonl").splitlines()
        assert len(words) == len(photos)
        assert self.done("spurious", "--depict", "cat", "--predict", "dog", "--near", 1, "--no-cache", bundle)
        self.done("ablate", self.photos, *READ, *by, "--classes", self.classes, *bare, "--reconstruct", "pc,words", "-f", "jsonl")
        maps = self.done("segment", photos[0], "--text", "dog", *bare, "--out-dir", to / "maps", *by)
        assert json.loads(maps)["text"] == "dog"


SIZES = {
    "vit": ("test_vit", 160, "token"),
    "mean": ("test_vit", 160, "avg"),
    "eva": ("eva02_tiny_patch14_224", 224, "token"),
    "vitamin": ("vitamin_small_224", 224, ""),
}
"""Small models of timm's, their sizes and poolings."""
LAYERS = {"vit": "3-4", "mean": "3-4", "eva": "10", "vitamin": "12"}


def timm_model(folder: Path, kind: str) -> Path:
    """Write a folder in open_clip's form with random weights of a tower of timm's."""
    import open_clip

    name, size, pool = SIZES[kind]
    image = {"image_size": size, "timm_model_name": name, "timm_pool": pool, "timm_proj": None if kind == "eva" else "linear"}
    text = TEXT | {"vocab_size": 49408}
    folder.mkdir()
    (folder / "open_clip_config.json").write_text(
        json.dumps({"model_cfg": {"embed_dim": 12, "vision_cfg": image, "text_cfg": text, "custom_text": True}})
    )
    torch.manual_seed(0)
    state = open_clip.create_model(f"local-dir:{folder}", load_weights=False).state_dict()
    save(state, folder / "open_clip_model.safetensors")
    return folder
