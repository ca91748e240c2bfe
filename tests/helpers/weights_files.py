"""Small architectures with open_clip's names and their weights files, for tests of weights that do not fit a name."""

import copy
import json
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

TEXT = {"context_length": 16, "vocab_size": 100, "width": 16, "heads": 2, "layers": 1}
VIT = {"image_size": 32, "patch_size": 8, "width": 16, "layers": 2, "head_width": 8}
RESNET = {"image_size": 64, "layers": [1, 1, 1, 1], "width": 4, "head_width": 32}


def config(image: dict[str, Any], text: dict[str, Any] | None = None, **more: Any) -> dict[str, Any]:
    """Return a config in open_clip's form."""
    return {"embed_dim": 12, "vision_cfg": image, "text_cfg": TEXT | (text or {}), **more}


CONFIGS: dict[str, dict[str, Any]] = {
    "Tiny-8": config(VIT),
    "Tiny-8-quickgelu": config(VIT, quick_gelu=True),
    "Tiny-8-64": config(VIT | {"image_size": 64}),
    "Tiny-8-wide": config(VIT | {"image_size": [32, 80]}),
    "Tiny-8-long": config(VIT, {"context_length": 32}),
    "Tiny-4": config(VIT | {"patch_size": 4, "image_size": 16}),
    "Tiny-8-deep": config(VIT | {"layers": 3}),
    "Tiny-8-broad": config(VIT | {"width": 24}),
    "Tiny-RN": config(RESNET),
    "Tiny-RN-96": config(RESNET | {"image_size": 96}),
    "Tiny-RN-deep": config(RESNET | {"layers": [1, 2, 1, 1]}),
}


@contextmanager
def registered(folder: Path) -> Iterator[None]:
    """Register CONFIGS in open_clip within the block."""
    import open_clip

    for name, settings in CONFIGS.items():
        (folder / f"{name}.json").write_text(json.dumps(settings))
    factory = open_clip.factory
    paths, configs = list(factory._MODEL_CONFIG_PATHS), dict(factory._MODEL_CONFIGS)
    open_clip.add_model_config(folder)
    try:
        yield
    finally:
        factory._MODEL_CONFIG_PATHS[:] = paths
        factory._MODEL_CONFIGS = configs


def state_of(name: str, seed: int = 0) -> dict[str, torch.Tensor]:
    """Return random weights of one of CONFIGS."""
    from open_clip.model import CLIP

    torch.manual_seed(seed)
    return {key: value.clone() for key, value in CLIP(**copy.deepcopy(CONFIGS[name])).state_dict().items()}


def save(state: dict[str, Any], path: Path) -> Path:
    """Save the weights to a file, and make its folder."""
    from safetensors.torch import save_file

    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".safetensors":
        save_file({key: value.contiguous() for key, value in state.items()}, path)
    else:
        torch.save(state, path)
    return path


def torchscript(state: dict[str, torch.Tensor], path: Path) -> Path:
    """Save the weights as a TorchScript archive with modules of these names, and make its folder."""
    root = torch.nn.Module()
    for key, value in state.items():
        *parents, leaf = key.split(".")
        module = root
        for name in parents:
            if name not in module._modules:
                module.add_module(name, torch.nn.Module())
            module = module._modules[name]
        module.register_buffer(leaf, value.clone())
    path.parent.mkdir(parents=True, exist_ok=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch.jit is on its way out; the archives stay
        torch.jit.script(root).save(str(path))
    return path


def local_dir(folder: Path, name: str, seed: int = 0, preprocess: dict[str, Any] | None = None, **more: Any) -> Path:
    """Write a folder in open_clip's form."""
    save(state_of(name, seed), folder / "open_clip_model.safetensors")
    settings = {"model_cfg": CONFIGS[name] | more, "preprocess_cfg": preprocess or {}}
    (folder / "open_clip_config.json").write_text(json.dumps(settings))
    return folder
