"""Export a trained model to the package's folder, in the form that open_clip reads as `local-dir:`.

python -m training.export emoji-vit2 --start run/
"""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click
import torch
from safetensors.torch import save
from torch import Tensor

from cliptools.embedded_models import EMBEDDED_DIR
from cliptools.io.files import whole_file
from cliptools.models.clip_parts import CLIP, HF_CONFIG_NAME, HF_SAFE_WEIGHTS_NAME, PreprocessCfg, SimpleTokenizer
from cliptools.models.load import load_model
from training.card import Row, merge
from training.measures import embed_classes, embed_scenes, recall_at, single_scenes
from training.recipes import ARCHITECTURES

MOST_BYTES = 20_000_000
EIGHT_BITS = "token_embedding.weight"
"""Half of the bytes: 49,408 rows of which training touches a few thousand. Stored as 8-bit floats, which open_clip reads."""
COST = 0.002  # loss of accuracy that rounding may cause


def configuration(name: str) -> dict[str, Any]:
    """Return open_clip's configuration of the model and of its preprocessing."""
    model = ARCHITECTURES[name]
    size = model["vision_cfg"]["image_size"]
    return {"model_cfg": model, "preprocess_cfg": asdict(PreprocessCfg(size=(size, size)))}


def write_model(name: str, weights: dict[str, Tensor], folder: Path) -> int:
    """Write the configuration and the weights, in fp16 but for the token embedding, and return the size of the weights in bytes.

    Raises:
        ValueError: the weights are too large for the package.
    """
    folder.mkdir(parents=True, exist_ok=True)
    types = {EIGHT_BITS: torch.float8_e4m3fn}
    halves = {key: weights[key].detach().to("cpu", types.get(key, torch.float16)).contiguous() for key in sorted(weights)}
    data = save(halves)
    if len(data) > MOST_BYTES:
        raise ValueError(f"{len(data)} bytes of weights, at most {MOST_BYTES} fit the package")
    with whole_file(folder / HF_CONFIG_NAME) as file:
        file.write((json.dumps(configuration(name), indent=1) + "\n").encode())
    with whole_file(folder / HF_SAFE_WEIGHTS_NAME) as file:
        file.write(data)
    return len(data)


def training_rows(run: Path) -> list[Row]:
    """Return the duration of each training stage, from the logs in the run's folder (log.jsonl, log-2.jsonl, … text.json)."""
    rows: list[Row] = []
    for file in sorted(run.glob("log*.jsonl"), key=lambda file: (len(file.name), file.name)):
        last = json.loads(file.read_text().splitlines()[-1])
        name = "image tower against the table" if "sparse" not in last else "image tower, sparse, against the table"
        minutes = round(last["seconds"] / 60, 1)
        rows.append({"stage": name, "minutes": minutes, "steps": last["step"], "examples": last["scenes"]})
    text = json.loads((run / "text.json").read_text()) if (run / "text.json").exists() else {}
    titles = {"align": "text tower against the table", "joint": "both towers together"}
    for stage, title in titles.items():
        if stage in text:
            examples = text[stage].get("texts", text[stage].get("scenes"))
            rows.append({"stage": title, "minutes": text[stage]["minutes"], "steps": text[stage]["steps"], "examples": examples})
    return rows


@click.command()
@click.argument("name", type=click.Choice(list(ARCHITECTURES)))
@click.option("--start", type=click.Path(exists=True, file_okay=False, path_type=Path), required=True, help="The run's folder.")
@click.option("--out", type=click.Path(file_okay=False, path_type=Path), help="Folder of the model [default: the package's own].")
def main(name: str, start: Path, out: Path | None) -> None:
    """Export START/model.pt, and check that the exported model is as accurate as the trained one."""
    folder = out or EMBEDDED_DIR / name
    weights = torch.load(start / "model.pt", weights_only=True, map_location="cpu")
    trained = CLIP(**ARCHITECTURES[name]).eval()
    trained.load_state_dict(weights)
    size = write_model(name, weights, folder)
    exported = load_model(f"local-dir:{folder}", device="cpu").clip
    tokenizer = SimpleTokenizer(context_length=ARCHITECTURES[name]["text_cfg"]["context_length"])
    scenes = single_scenes(2)
    before, after = (recall_at(embed_scenes(m, scenes), embed_classes(m, tokenizer), scenes, 1) for m in (trained, exported))
    click.echo(f"{size / 1e6:.1f} MB; zero-shot top-1 {before.value:.4f} in fp32, {after.value:.4f} rounded -> {folder}")
    if after.value < before.value - COST:
        raise click.ClickException("rounding costs accuracy")
    merge(folder, {"Training": training_rows(start)})


if __name__ == "__main__":
    main()
