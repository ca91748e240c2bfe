"""Records of accuracies under changed effects, one for each setting, and their table."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from cliptools.analysis.zero_shot import BEST, Tally
from cliptools.console import count_of
from cliptools.front.ablate_settings import BundleSettings, Record
from cliptools.front.unit_records import record_source
from cliptools.io.jsonl import rounded


def setting_records(
    bundles: Sequence[BundleSettings],
    tally: Tally,
    settings: Record,
    group_fields: Callable[[int], Record] = lambda setting: {},
    mask: Record | None = None,
    against: Record | None = None,
) -> Iterator[Record]:
    """Yield the record of the untouched model, that of the masked model, one per setting, and at last that of another model.

    Args:
        group_fields: Fields of groups for the record of a setting.
        mask: Fields of the mask, if there is one, under which all settings are measured.
        against: The other model, if there is one.
    """
    source = record_source(bundles[0].bundle)
    untouched_source = source if len(bundles) == 1 else {"model": source["model"]}
    first = {"layers": [], "ablate": "none"}
    yield first | _accuracies(tally, 0) | group_fields(0) | {"settings": settings} | untouched_source
    number = 1
    if mask:
        yield first | mask | _accuracies(tally, 1) | group_fields(1) | {"settings": settings} | untouched_source
        number = 2
    for bundle_settings in bundles:
        source, header = record_source(bundle_settings.bundle), bundle_settings.bundle.header.settings
        record_settings = settings | {"scale": header.get("scale", "unit")}
        if "rest_mean" in bundle_settings.bundle:
            record_settings |= {"rest": header["measured"] - bundle_settings.bundle.units}
        if "words" in bundle_settings.bundle and "words" in header:
            record_settings |= {"words": {key: value for key, value in header["words"].items() if key != "prefix"}}
        for setting in bundle_settings.settings:
            record = (
                {
                    "effect": bundle_settings.effect,
                    "units": bundle_settings.units,
                    "layers": list(setting.layers),
                }
                | setting.change.record()
                | (mask or {})
            )
            yield record | _accuracies(tally, number) | group_fields(number) | {"settings": record_settings} | source
            number += 1
    if against is not None:
        record = first | {"against": against} | _accuracies(tally, number) | group_fields(number)
        yield record | {"settings": settings} | untouched_source


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
        cells = [*_setting_cells(record), f"{top1['value']:.1%}"]
        among_five = f"{top5['value']:.1%}" if record["settings"]["class_count"] > BEST else "–"  # of five classes it is 100 %
        cells += [f"{top1['low']:.1%}–{top1['high']:.1%}", among_five]
        table.add_row(*map(Text, [*cells, f"{record['agreement']:.1%}", f"{record['cosine']:.4f}"]))
    count = Text(f"{count_of(records[0]['n'], 'image')}, {count_of(records[0]['settings']['class_count'], 'class')}")
    parts: list[RenderableType] = [table, count]
    return [*parts, Text(""), group_table(records)] if "groups" in records[0] else parts


SHOWN_GROUPS = 6  # groups that have a column of their own


def group_table(records: Sequence[Record]) -> Table:
    """Return the table of accuracies per group with one row per setting; many groups have no column of their own."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    names = [group["group"] for group in records[0]["groups"]]
    shown = names if len(names) <= SHOWN_GROUPS else []
    figures = [name for name in ("average", "weighted", "gap") if name in records[0]]
    effects = {record["effect"] for record in records if "effect" in record}
    titles = ["effect", "layers", "change"] if len(effects) > 1 else ["layers", "change"]
    for title in titles:
        table.add_column(title, overflow="fold")
    for title in [*shown, "worst", "(95 %)", *figures]:
        table.add_column(title, justify="right", overflow="fold")
    for record in records:
        worst = record["worst"]
        cells = [f"{group['value']:.1%}" for group in record["groups"]] if shown else []
        cells += [f"{worst['value']:.1%}", f"{worst['low']:.1%}–{worst['high']:.1%}"]
        cells += [f"{record[name]['value']:.1%}" for name in figures]
        table.add_row(*map(Text, [*_setting_cells(record)[-len(titles) :], *cells]))
    return table


def _setting_cells(record: Record) -> list[str]:
    effect = f"{record['effect']}, {record['units']}" if "effect" in record else ""
    return [effect, _layers(record["layers"]), setting_text(record)]


def setting_text(record: Record) -> str:
    """Return a setting as a text: `means`, `PC 1–4 of 20 %`, `16 words, masked`."""
    if "against" in record:
        return f"against {Path(str(record['against']['pretrained'])).name}"
    if "effect" not in record:
        return "masked" if "mask" in record else "untouched"
    return f"{_change_text(record)}, masked" if "mask" in record else _change_text(record)


def _change_text(record: Record) -> str:
    share = f"{100 * record.get('keep', 1):.4g} %"
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
