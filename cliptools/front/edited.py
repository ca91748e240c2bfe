"""An edited model: its weights, which are saved as a file or a folder, and the record of what was changed."""

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.table import Table
from torch import Tensor

from cliptools.embedded_models import EMBEDDED_DIR, embedded_names
from cliptools.errors import UsageError
from cliptools.front.tables import rendered, text_table
from cliptools.io.files import whole_file, whole_folder
from cliptools.io.header import Header, recorded_model
from cliptools.io.jsonl import unit_name
from cliptools.models.checkpoints.edited import CONFIG, RECORD, TOKENIZER, WEIGHTS, checkpoint_bytes
from cliptools.models.origin import LOCAL_DIR

TABLE_ROWS = 20
EXPLANATION = {
    ("null", "neurons"): "each neuron no longer writes along the texts, by a later head or directly; paths through later MLPs "
    "remain",
    ("null", "pairs"): "each pair writes along the texts, on any image, only what it writes on average",
    ("zero", "neurons"): "each neuron is at its mean over images and tokens, in all that reads it",
    ("zero", "pairs"): "each pair is at its mean over images",
    ("zero", "pooled neurons"): "each neuron is at its mean over images in all heads of the pooling",
    ("zero", "pooled heads"): "each head of the pooling is at its mean over images",
    ("zero", "heads"): "each head of the last layer is at its mean over images",
    ("zero", "early heads"): "each head is at its mean over images and tokens, not at that of each token",
}
"""The edits, as records explain them."""


@dataclass(frozen=True)
class Edited:
    """An edited model; nothing is written before `save` or `save_folder`."""

    record: dict[str, Any]
    """The record that clip-edit writes: the units, the changed weights, the model before and after, and the exactness."""
    tensors: dict[str, Tensor]
    """All tensors under open_clip's names, as they are stored."""
    header: Header
    """Metadata of the file."""
    settings: dict[str, Any]
    """open_clip's configuration, for a folder."""
    changed: tuple[str, ...]
    """Names of the changed weights in the image tower."""

    def save(self, path: str | Path) -> dict[str, Any]:
        """Write the weights as a safetensors file that open_clip loads, and return the record with the file in it.

        Raises:
            UsageError: the name does not end in .safetensors, or the file is one of the model's own.
            CliptoolsError: the file cannot be written.
        """
        path = Path(path)
        check_name(path)
        refuse_own_files(path, self.header.model["parent"])
        with whole_file(path) as stream:
            stream.write(checkpoint_bytes(self.tensors, self.header))
        model = self.header.model | {"pretrained": str(path)}
        return self.record | {"output": str(path), "model": recorded_model(model)}

    def save_folder(self, path: str | Path) -> dict[str, Any]:
        """Write a new folder with the weights and their configuration, loadable as local-dir:FOLDER; return the record.

        Raises:
            CliptoolsError: the folder exists and is not empty, or cannot be written.
        """
        path, parent = Path(path), self.header.model["parent"]
        record = self.record | {"output": str(path), "model": recorded_model(self.header.model | {"name": f"{LOCAL_DIR}{path}"})}
        with whole_folder(path) as folder:
            (folder / WEIGHTS).write_bytes(checkpoint_bytes(self.tensors, self.header))
            (folder / CONFIG).write_text(_json(self.settings), encoding="utf-8")
            (folder / RECORD).write_text(_json(record), encoding="utf-8")
            for file in tokenizer_files(parent):
                shutil.copyfile(file, folder / file.name)
        return record

    def table(self) -> str:
        """Return the units and figures of the edit as a table, as text."""
        return rendered(*edit_table([self.record]), terminal=False).decode("utf-8").rstrip("\n")


def _json(value: Mapping[str, Any]) -> str:
    return json.dumps(value, ensure_ascii=False, indent=1) + "\n"


def check_name(path: Path) -> None:
    """Check the name of a checkpoint.

    Raises:
        UsageError: it does not end in .safetensors.
    """
    if path.suffix != ".safetensors":
        raise UsageError(f"-o {path}: expected a name that ends in .safetensors, by which open_clip knows the form")


def refuse_own_files(path: Path, model: Mapping[str, Any]) -> None:
    """Refuse an output that is one of the files of the model to be edited.

    Raises:
        UsageError: it is.
    """
    for file in own_files(model):
        if file.exists() and path.exists() and file.samefile(path):
            raise UsageError(f"-o {path}: a file of the model that is edited; name another file")


def own_files(model: Mapping[str, Any]) -> list[Path]:
    """Return the local files of a model."""
    pretrained = model.get("pretrained")
    places = [] if pretrained is None else [Path(pretrained)]
    places += [folder] if (folder := own_folder(model)) is not None else []
    return [file for place in places for file in (sorted(place.iterdir()) if place.is_dir() else [place])]


def own_folder(model: Mapping[str, Any]) -> Path | None:
    """Return the folder of an embedded model or of `local-dir:`; None for others."""
    name = str(model["name"])
    if name in embedded_names():
        return EMBEDDED_DIR / name
    return Path(name.removeprefix(LOCAL_DIR)) if name.startswith(LOCAL_DIR) else None


def tokenizer_files(model: Mapping[str, Any]) -> list[Path]:
    """Return the files of the tokenizer in a model's folder."""
    folder = own_folder(model)
    return [] if folder is None else [folder / name for name in TOKENIZER if (folder / name).is_file()]


def _interval(figure: Mapping[str, float]) -> str:
    """Return a figure with its 95 % interval as a table shows it."""
    return f"{figure['value']:.1%} ({figure['low']:.1%}–{figure['high']:.1%})"


def edit_table(records: Sequence[dict[str, Any]]) -> list[Table]:
    """Return the edit in figures, and its first units."""
    record = records[0]
    facts = [("edit", record["edit"]), ("units", str(record["count"]))]
    facts += [(key, ", ".join(record[key])) for key in ("sees", "writes") if record.get(key)]
    if record["how"] == "null":
        share = record["removed"]
        facts += [("|w| removed", f"{share['mean']:.1%} on average, {share['largest']:.1%} at most")]
        facts += [("largest overlap", f"{record['overlap']:.1e} as stored")]
    if "choice" in record:
        test = record["choice"]["test"]
        facts += [(f"worst group on test, {name}", _interval(test[name]["worst"])) for name in ("before", "after", "random")]
    rounded = f"no: rounded to {record['precision']}" if record["precision"] != "fp32" else "no: --approximate"
    facts += [("exact", "yes" if record["exact"] else rounded), ("precision", record["precision"])]
    facts += [("before", record["before"][:12]), ("after", record["after"][:12])]
    facts += [("output", record["output"])] if "output" in record else []
    columns = [name for name in ("score", "removed") if name in record["units"][0]]
    null = record["how"] == "null"
    wrote = ["wrote"] if null else []
    rows = [
        [unit_name(item["layer"], item.get("neuron", -1), item.get("head", -1))]
        + ([", ".join(item["writes"])] if null else [])
        + [f"{item[name]:.3g}" for name in columns]
        for item in record["units"][:TABLE_ROWS]
    ]
    more = len(record["units"]) - len(rows)
    rows += [[f"… {more} more"] + [""] * len(wrote + columns)] if more else []
    return [text_table(["", ""], [list(fact) for fact in facts]), text_table(["unit", *wrote, *columns], rows)]
