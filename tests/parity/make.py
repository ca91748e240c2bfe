"""`python -m tests.parity.make`: draws models and images, looks up texts' tokens, writes the transcription's results beside them.

`python -m tests.parity.make results` writes the results alone, from the fixtures that stand.
"""

import json
import sys

import numpy as np
from PIL import Image, ImageDraw
from safetensors.numpy import save_file

from cliptools.library_patches import ensure_torchvision

from . import answers, study


def draw_images() -> None:
    """Flat shapes of random colours, sizes and places."""
    random = np.random.RandomState(5)
    folders = ["measured"] * study.MEASURED + [f"shown/{group}" for group in study.GROUPS for _ in range(study.SHOWN // 2)]
    for number, folder in enumerate(folders):
        image = Image.new("RGB", (study.SIDE, study.SIDE), tuple(random.randint(0, 256, 3).tolist()))
        pen = ImageDraw.Draw(image)
        for _ in range(random.randint(2, 7)):
            x, y, w, h = random.randint(-20, 80), random.randint(-20, 80), *random.randint(15, 70, 2).tolist()
            shape = (pen.rectangle, pen.ellipse)[random.randint(2)]
            shape((x, y, x + w, y + h), fill=tuple(random.randint(0, 256, 3).tolist()))
        path = study.FIXTURES / "images" / folder / f"{number:02d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        image.save(path, optimize=True)


def draw_model(name: str, config: dict, seed: int) -> None:
    """Random weights, large enough for images and texts to make a difference, rounded to float16."""
    import torch
    from open_clip.model import CLIP

    model, random = CLIP(**config), np.random.RandomState(seed)
    for key, value in model.named_parameters():
        fan = value[0].numel() if value.ndim > 1 else 1
        around = 1.0 if value.ndim == 1 and key.endswith(("weight", "gamma")) else 0.0
        large = 3.0 if key.startswith("transformer.") else 1.3 if name == "resnet" else 1.6
        spread = 0.15 if value.ndim <= 1 else 1.0 if "embedding" in key else large / fan**0.5
        value.data = torch.from_numpy(np.asarray(around + spread * random.standard_normal(tuple(value.shape)))).to(value.dtype)
    if name == "resnet":
        for module in model.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                module.momentum = None  # all images count alike
        images = np.stack([study.pixels(path) for path in study.pictures("measured")])
        with torch.no_grad():
            model.visual.train()(torch.from_numpy(images).float())
    kept = {key: value.numpy() for key, value in model.state_dict().items() if key != "token_embedding.weight"}
    small = {key: value.astype(np.float16) if value.dtype == np.float32 else value for key, value in kept.items()}
    save_file(dict(sorted(small.items())), study.FIXTURES / f"{name}.safetensors")


def tokenise() -> None:
    """Every text that is asked for, those of pool.txt included, as open_clip's tokenizer has it."""
    from open_clip import SimpleTokenizer

    tokenizer = SimpleTokenizer(context_length=study.TEXT_TOWER["context_length"])
    sentences = {template.format(name) for name in {*study.CLASSES, *study.CONCEPTS} for template in study.TEMPLATES}
    asked = sorted({*study.pool(), *study.CLASSES, *study.SEGMENTED, study.DEPICT, study.PREDICT} | sentences)
    tokens = {text: [int(token) for token in tokenizer([text])[0] if token] for text in asked}
    lines = ",\n".join(f"{json.dumps(text)}: {json.dumps(ids)}" for text, ids in tokens.items())
    (study.FIXTURES / "tokens.json").write_text("{\n" + lines + "\n}\n")


def main() -> None:
    study.FIXTURES.mkdir(exist_ok=True)
    if sys.argv[1:] != ["results"]:
        ensure_torchvision()
        draw_images()
        for seed, (name, config) in zip((21, 23, 22), study.MODELS.items(), strict=True):
            draw_model(name, config, seed)
        tokenise()
    for name in study.MODELS:
        results = {"vit": answers.vit_results, "scaled": answers.scaled_results, "resnet": answers.resnet_results}[name]
        found = {key: np.ascontiguousarray(value) for key, value in results().items()}
        save_file(dict(sorted(found.items())), study.FIXTURES / f"{name}-results.safetensors")


if __name__ == "__main__":
    main()
