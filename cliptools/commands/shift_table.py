"""The table of clip-shift."""

from collections.abc import Sequence
from typing import Any

from cliptools.commands.shift_warnings import strays
from cliptools.commands.tables import rendered
from cliptools.ground.unit_names import unit_name

Record = dict[str, Any]


def shift_table(records: Sequence[Record], over: Sequence[Record]) -> bytes:
    """Concepts and groups, a row each, and below each concept's units, how far they follow it, and what labels say."""
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, header_style="bold")
    titles = ["concept", "group", "images"] + ["blocks"] * any("blocks" in record for record in records) + ["share", "± s.e."]
    titles += ["shown"] if any("labelled" in record for record in records) else []
    titles += ["z", "drift"] if any("drift" in record for record in records) else []
    for title in titles:
        table.add_column(title, justify="left" if title in ("concept", "group", "drift") else "right")
    before = None
    for record in records:
        drift, concept = record.get("drift", {}), record["concept"]
        z = drift.get("z")
        cells = {"concept": "" if concept == before else concept, "group": record["group"], "images": str(record["images"])}
        cells |= {"blocks": str(record.get("blocks", ""))}
        cells |= {"share": f"{record['mean']:.4f}", "± s.e.": f"{record['standard_error']:.4f}"}
        cells |= {"shown": f"{record['frequency']:.0%}" if "frequency" in record else "–"}
        cells |= {"z": "–" if z is None else f"{z:+.1f}", "drift": "DRIFT" if drift.get("alarm") else ""}
        table.add_row(*(Text(cells[title]) for title in titles))
        before = concept
    concepts = {record["concept"]: record for record in records}
    labelled = {record["concept"]: record for record in over}
    lines = [_of_concept(record, labelled.get(concept)) for concept, record in concepts.items()]
    return rendered(table, *(Text(line) for line in lines if line))


def _of_concept(record: Record, labelled: Record | None) -> str | None:
    """`cat: units 6:391 5:12, following 0.41 (0.35 to 0.47; chance 0.17); correlation with the labels …`."""
    parts = []
    if record["units"]:
        units = " ".join(unit_name(unit["layer"], unit["neuron"], unit.get("head", -1)) for unit in record["units"])
        parts.append(f"units {units}, {_followed(record)}")
    if labelled is not None:
        parts.append(_labelled(labelled))
    return f"{record['concept']}: {'; '.join(parts)}" if parts else None


def _followed(record: Record) -> str:
    """How far a concept's units follow it."""
    if (follows := record.get("follows")) is None:
        return "following not defined"
    interval = [f"{follows['low']:.2f} to {follows['high']:.2f}"] if follows["low"] is not None else []
    chance = [f"chance {follows['chance']:.2f}"] if "chance" in follows else []
    stray = " NOT THE CONCEPT" if strays(record) else ""
    return f"following {follows['value']:.2f} ({'; '.join(interval + chance)}){stray}".replace(" ()", "")


def _labelled(record: Record) -> str:
    """`correlation with the labels 0.62 (0.58 to 0.66) over 480 images, 0.97 (0.90 to 0.99) over 12 groups`."""
    parts = []
    for key, of in (("correlation", "images"), ("group_correlation", "groups")):
        if (correlation := record.get(key)) is not None:
            low, high = correlation.get("low"), correlation.get("high")
            interval = correlation["no_interval"] if low is None else f"{low:.2f} to {high:.2f}"
            parts.append(f"{correlation['value']:.2f} ({interval}) over {correlation['count']} {of}")
    return f"correlation with the labels {', '.join(parts) or 'not defined'}"
