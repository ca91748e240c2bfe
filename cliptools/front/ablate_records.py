"""Records of accuracies under changed effects, one for each setting, and their table."""

from collections.abc import Iterator, Sequence
from typing import Any

from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from cliptools.analysis.zero_shot import Tally
from cliptools.console import count_of
from cliptools.front.ablate_settings import BundleSettings
from cliptools.front.unit_records import record_source
from cliptools.io.jsonl import rounded

Record = dict[str, Any]


def setting_records(bundles: Sequence[BundleSettings], tally: Tally, settings: Record) -> Iterator[Record]:
    """Yield the record of the untouched model, then one per setting."""
    source = record_source(bundles[0].bundle)
    untouched_source = source if len(bundles) == 1 else {"model": source["model"]}
    yield {"layers": [], "ablate": "none"} | _accuracies(tally, 0) | {"settings": settings} | untouched_source
    number = 1
    for bundle_settings in bundles:
        source, header = record_source(bundle_settings.bundle), bundle_settings.bundle.header.settings
        record_settings = settings | {"scale": header.get("scale", "unit")}
        if "rest_mean" in bundle_settings.bundle:
            record_settings |= {"rest": header["measured"] - bundle_settings.bundle.units}
        if "words" in bundle_settings.bundle and "words" in header:
            record_settings |= {"words": {key: value for key, value in header["words"].items() if key != "prefix"}}
        for setting in bundle_settings.settings:
            record = {
                "effect": bundle_settings.effect,
                "units": bundle_settings.units,
                "layers": list(setting.layers),
            } | setting.change.record()
            yield record | _accuracies(tally, number) | {"settings": record_settings} | source
            number += 1


def _accuracies(tally: Tally, setting: int) -> Record:
    """Return the accuracies of a setting with their intervals, and its agreement with the untouched model."""
    record: Record = {"n": tally.count}
    for name, share in {"top1": tally.top1(setting), "top5": tally.top5(setting)}.items():
        low, high = share.interval()
        record[name] = {"value": rounded(share.value), "low": rounded(low), "high": rounded(high)}
    return record | {"agreement": rounded(tally.agreement(setting)), "cosine": rounded(tally.cosine(setting))}


def ablate_table(records: Sequence[Record]) -> list[RenderableType]:
    """Return the parts of the table with one row per setting, the untouched model first."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for title in ("effect", "layers", "change"):
        table.add_column(title)
    for title in ("top-1", "(95 %)", "top-5", "same answer", "cosine"):
        table.add_column(title, justify="right", no_wrap=True)
    for record in records:
        top1, top5 = record["top1"], record["top5"]
        effect = f"{record['effect']}, {record['units']}" if "effect" in record else ""
        cells = [effect, _layers(record["layers"]), setting_text(record), f"{top1['value']:.1%}"]
        cells += [f"{top1['low']:.1%}–{top1['high']:.1%}", f"{top5['value']:.1%}"]
        table.add_row(*map(Text, [*cells, f"{record['agreement']:.1%}", f"{record['cosine']:.4f}"]))
    return [table, Text(f"{count_of(records[0]['n'], 'image')}, {count_of(records[0]['settings']['class_count'], 'class')}")]


def setting_text(record: Record) -> str:
    """Return a setting as a text: `means`, `PC 1–4 of 20 %`, `16 words`."""
    share = f"{100 * record.get('keep', 1):.4g} %"
    if "effect" not in record:
        return "untouched"
    if "reconstruct" in record:
        count = int(record.get("components") or record.get("m") or 1)
        parts = ("PC 1" if count == 1 else f"PC 1–{count}") if record["reconstruct"] == "pc" else count_of(count, "word")
        parts += f" along {record['along']}" if record.get("along", "direction") != "direction" else ""
        return f"{parts} of {share}" if "keep" in record else parts
    names = {
        "all": "means",
        "none": "untouched",
        "large": "large to means",
        "small": "small to means",
        "joint": "activations to means",
    }
    return names.get(record["ablate"]) or f"all but {share} to means"


def _layers(layers: Sequence[int]) -> str:
    """Return layers as a text with runs joined: `5–6, 8`."""
    runs: list[list[int]] = []
    for layer in layers:
        if runs and runs[-1][-1] == layer - 1:
            runs[-1].append(layer)
        else:
            runs.append([layer])
    return ", ".join(str(run[0]) if len(run) == 1 else f"{run[0]}–{run[-1]}" for run in runs)
