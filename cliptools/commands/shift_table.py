"""The table of clip-shift."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from cliptools.commands.tables import rendered
from cliptools.ground.unit_names import unit_name

if TYPE_CHECKING:
    from rich.text import Text

Record = dict[str, Any]


def shift_table(records: Sequence[Record], over: Sequence[Record]) -> bytes:
    """Concepts and groups, a row each, and below what labels say of each concept over all."""
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, header_style="bold")
    titles = ["concept", "group", "images", "share", "± s.e."]
    titles += ["shown"] if any("labelled" in record for record in records) else []
    titles += ["z", "drift"] if any("drift" in record for record in records) else []
    for title in titles:
        table.add_column(title, justify="left" if title in ("concept", "group", "drift") else "right")
    before = None
    for record in records:
        drift, concept = record.get("drift", {}), record["concept"]
        z = drift.get("z")
        cells = {"concept": "" if concept == before else concept, "group": record["group"], "images": str(record["images"])}
        cells |= {"share": f"{record['mean']:.4f}", "± s.e.": f"{record['standard_error']:.4f}"}
        cells |= {"shown": f"{record['frequency']:.0%}" if "frequency" in record else "–"}
        cells |= {"z": "–" if z is None else f"{z:+.1f}", "drift": "DRIFT" if drift.get("alarm") else ""}
        table.add_row(*(Text(cells[title]) for title in titles))
        before = concept
    return rendered(table, *map(_over_all, over))


def _over_all(record: Record) -> "Text":
    """`cat: units 6:391 5:12; correlation with the labels 0.62 (0.58 to 0.66) over 480 images, 0.97 (…) over 12 groups`."""
    from rich.text import Text

    said = []
    for key, of in (("correlation", "images"), ("group_correlation", "groups")):
        if (found := record.get(key)) is not None:
            said.append(f"{found['value']:.2f} ({found['low']:.2f} to {found['high']:.2f}) over {found['count']} {of}")
    units = " ".join(unit_name(unit["layer"], unit["neuron"], unit.get("head", -1)) for unit in record["units"])
    asked = f"units {units}; " if units else ""
    return Text(f"{record['concept']}: {asked}correlation with the labels {', '.join(said) or 'not defined'}")
