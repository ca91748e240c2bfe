"""A loaded model with the weights of another file, for comparisons of a model before and after an edit."""

import copy
from dataclasses import replace
from pathlib import Path

from cliptools.console import escape, warn
from cliptools.errors import ModelError
from cliptools.models.architecture import weights_sha256
from cliptools.models.checkpoints.checkpoint import load_weights, read_checkpoint
from cliptools.models.checkpoints.edited import parent_of
from cliptools.models.load import DTYPE, LoadedModel
from cliptools.models.origin import LOCAL_DIR, weights_in


def with_weights(model: LoadedModel, place: str, option: str) -> LoadedModel:
    """Return the same architecture, activation and preprocessing with the weights of a file or folder, in the same precision.

    Args:
        model: A complete model, whose weights stay as they are.
        place: The file or folder, also as local-dir:FOLDER.
        option: Option that names the file, for messages.

    Raises:
        ModelError: there is no such file, it cannot be read, or its weights are of another architecture.
    """
    path = Path(place.removeprefix(LOCAL_DIR))
    file = weights_in(path) if path.is_dir() else path
    if file is None or not file.is_file():
        raise ModelError(f"{option} {escape(place)}: expected a file of weights, or a folder with one")
    clip = copy.deepcopy(model.clip).float().cpu()
    checkpoint = read_checkpoint(file)
    load_weights(clip, checkpoint, model.name, None)
    sha256 = weights_sha256(clip)
    if sha256 == model.sha256:
        warn(f"{option} {escape(place)}: holds the weights of the model itself, so nothing differs")
    clip = clip.to(device=model.device, dtype=DTYPE[model.precision]).eval().requires_grad_(False)
    return replace(model, clip=clip, pretrained=place, sha256=sha256, parent=parent_of(checkpoint.edit, sha256))
