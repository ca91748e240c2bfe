"""Results of `explain`, one for each image: the record, the shares of all units, maps and figures."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float32
from PIL import Image
from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from cliptools.front.tables import Records
from cliptools.io.files import whole_file
from cliptools.io.jsonl import unit_name
from cliptools.render import contact_sheet as pictures
from cliptools.render.explain_plot import Drawing, DrawnUnit, draw_explanation
from cliptools.render.figure_file import check_figure

PARTS = {
    "units": "units",
    "other_units": "other units",
    "heads": "heads, of all else",
    "mlps": "MLPs, directly",
    "pooling_mlp": "MLP of the pooling",
    "rest": "rest",
}
"""Names of the parts of a margin in tables and figures."""
SIDE = 224  # pixels of the shorter side of a map's picture, at least


@dataclass(frozen=True, eq=False)
class Explanation:
    """The margin of an image, explained."""

    record: dict[str, Any]
    """The record that the command writes, without the names of files."""
    shares: Float32[np.ndarray, " unit"]
    """Shares of all units of the bundle, in its order."""
    maps: Float32[np.ndarray, "unit row column"]
    """Shares of the units of the record at every token."""
    picture: Image.Image
    """The picture as the model sees it."""

    @property
    def name(self) -> str:
        """The image's name."""
        return str(self.record["image"])

    @property
    def units(self) -> list[str]:
        """Names of the units of the record, as `6:391` or `4:624.21`."""
        return [name_of(unit) for unit in self.record["units"]]

    def overlays(self) -> list[Image.Image]:
        """Return the picture under the map of each unit: red towards text A, blue towards text B, each at its own strength."""
        large = max(1, -(-SIDE // min(self.picture.size)))
        picture = self.picture.resize((self.picture.width * large, self.picture.height * large), Image.Resampling.BICUBIC)
        return [pictures.signed_overlay(picture, heat) for heat in self.maps]

    def figure(self, kind: str = "png", dark: bool = False) -> bytes:
        """Return the figure as the bytes of a file.

        Args:
            kind: png, svg or pdf.
            dark: Draw light lines on a dark ground.

        Raises:
            CliptoolsError: matplotlib is not installed.
        """
        check_figure(kind)
        record = self.record
        units = [
            DrawnUnit(name_of(unit), unit["share"], _listed(unit["sees"]), _listed(unit["writes"]), overlay)
            for unit, overlay in zip(record["units"], self.overlays(), strict=True)
        ]
        parts = [(PARTS[name], value) for name, value in record["parts"].items()]
        deletion = record["deletion"]
        drawing = Drawing(
            self.name, record["a"], record["b"], record["margin"], parts, units, self.picture, deletion["counts"],
            deletion["margins"], deletion["random_deviation"], len(self.shares),
        )  # fmt: skip
        return draw_explanation(drawing, kind, dark)

    def save(self, path: str | Path, dark: bool = False) -> None:
        """Write the figure; the ending .png, .svg or .pdf is its format. The file appears whole or not at all.

        Raises:
            UsageError: another ending.
            CliptoolsError: matplotlib is not installed.
        """
        kind = Path(path).suffix.lower().removeprefix(".")
        data = self.figure(kind, dark)
        with whole_file(Path(path)) as stream:
            stream.write(data)


class Explanations(Records):
    """Records of explained margins, and the explanations with maps and figures."""

    def __init__(self, explanations: Iterable[Explanation]) -> None:
        self.images: list[Explanation] = list(explanations)
        """An explanation for each record."""
        super().__init__((image.record for image in self.images), explain_table)


def name_of(unit: dict[str, Any]) -> str:
    """Return the name of a unit from its record."""
    return unit_name(unit["layer"], unit.get("neuron", -1), unit.get("head", -1))


def _listed(words: Sequence[dict[str, Any]]) -> str:
    """Return words as a list; those with a negative number have a minus sign."""
    numbers = [next(value for key, value in word.items() if key != "word") for word in words]
    return ", ".join(f"{'−' if number < 0 else ''}{word['word']}" for word, number in zip(words, numbers, strict=True))


def explain_table(records: Sequence[dict[str, Any]]) -> list[RenderableType]:
    """Return for each image a line with the margin and its parts, and a table of its units."""
    tables: list[RenderableType] = []
    for record in records:
        parts = "  ".join(f"{PARTS[name]} {value:+.2f}" for name, value in record["parts"].items())
        other = record["b"] or "mean of the vocabulary"
        head = f"{record['image']}: {record['a']} − {other} = {record['margin']:+.2f}  ({parts})"
        table = Table(box=None, pad_edge=False, header_style="bold")
        for title in ("unit", "share", "excess"):
            table.add_column(title, justify="right", no_wrap=True)
        for title in ("sees", "writes"):
            table.add_column(title, overflow="fold")
        for unit in record["units"]:
            cells = (name_of(unit), f"{unit['share']:+.3f}", f"{unit['excess']:+.3f}")
            table.add_row(*map(Text, (*cells, _listed(unit["sees"]), _listed(unit["writes"]))))
        area = "  ".join(f"{name} {value:+.2f}" for name, value in record["deletion"]["area"].items())
        most = record["deletion"]["counts"][-1]
        foot = Text(f"mean margin while {most} units are replaced by their means: {area}", style="dim")
        tables += [Text(head, style="bold"), table, foot]
    return tables
