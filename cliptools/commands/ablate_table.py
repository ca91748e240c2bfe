"""The table of clip-ablate."""

from collections.abc import Sequence
from typing import Any

from cliptools.commands.tables import rendered
from cliptools.ground.counted import count_of

Record = dict[str, Any]


def ablate_table(records: Sequence[Record]) -> bytes:
    """A row a setting, the untouched model first."""
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, header_style="bold")
    for title in ("effect", "layers", "change"):
        table.add_column(title)
    for title in ("top-1", "(95 %)", "top-5", "same answer", "cosine"):
        table.add_column(title, justify="right", no_wrap=True)
    for record in records:
        top1, top5 = record["top1"], record["top5"]
        effect = f"{record['effect']}, {record['units']}" if "effect" in record else ""
        cells = [effect, _layers(record["layers"]), in_words(record), f"{top1['value']:.1%}"]
        cells += [f"{top1['low']:.1%}–{top1['high']:.1%}", f"{top5['value']:.1%}"]
        table.add_row(*map(Text, [*cells, f"{record['agreement']:.1%}", f"{record['cosine']:.4f}"]))
    return rendered(
        table, Text(f"{count_of(records[0]['n'], 'image')}, {count_of(records[0]['settings']['class_count'], 'class')}")
    )


def in_words(record: Record) -> str:
    """`all means`, `PC 1–4 of 20 %`, `16 words`."""
    kept = f"{100 * record.get('keep', 1):.4g} %"
    if "effect" not in record:
        return "untouched"
    if "reconstruct" in record:
        count = int(record.get("components") or record.get("m") or 1)
        what = ("PC 1" if count == 1 else f"PC 1–{count}") if record["reconstruct"] == "pc" else count_of(count, "word")
        what += f" along {record['along']}" if record.get("along", "direction") != "direction" else ""
        return f"{what} of {kept}" if "keep" in record else what
    kind = record["ablate"]
    said = {
        "all": "means",
        "none": "untouched",
        "large": "large to means",
        "small": "small to means",
        "joint": "activations to means",
    }
    return said.get(kind) or f"all but {kept} to means"


def _layers(layers: Sequence[int]) -> str:
    """`5–6, 8`."""
    runs: list[list[int]] = []
    for layer in layers:
        if runs and runs[-1][-1] == layer - 1:
            runs[-1].append(layer)
        else:
            runs.append([layer])
    return ", ".join(str(run[0]) if len(run) == 1 else f"{run[0]}–{run[-1]}" for run in runs)
