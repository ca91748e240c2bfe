"""Figures in JSON files: those of the embedded models' cards, with the names and sizes of the models, and those of benchmarks.

The names of the embedded models stand in one place, `cliptools.embedded_models.EMBEDDED`.
"""

import json
from functools import cached_property
from pathlib import Path
from typing import Any

from cliptools.embedded_models import CONFIG
from examples.result_tables import Row, Share, TableError

MEASURES = "Accuracy on held-out scenes"
PLANTS = "Planted facts"


class Sections:
    """A JSON file of sections, each a list of rows: figures.json of a model, or a result of a benchmark."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @cached_property
    def everything(self) -> dict[str, Any]:
        """The content of the file.

        Raises:
            TableError: the file does not exist.
        """
        if not self.path.exists():
            raise TableError(f"{self.path}: no such file")
        return dict(json.loads(self.path.read_text(encoding="utf-8")))

    def section(self, title: str) -> list[dict[str, Any]]:
        """Return the rows of a section.

        Raises:
            TableError: the file has no such section.
        """
        if title not in self.everything:
            raise TableError(f"{self.path}: expected a section {title!r}, found {', '.join(self.everything)}")
        return list(self.everything[title])

    def row(self, title: str, **values: Any) -> Row:
        """Return the one row of a section that has these values.

        Raises:
            TableError: the file has no such section, or the section has no such row or several.
        """
        rows = [row for row in self.section(title) if all(row.get(key) == value for key, value in values.items())]
        if len(rows) != 1:
            raise TableError(f"{self.path}: expected one row with {values} in section {title!r}, found {len(rows)}")
        return Row(f"{self.path}, {title}, {values}", {key: str(value) for key, value in rows[0].items()})


class Model:
    """An embedded model.

    Attributes:
        name: Name of the model and of its folder.
        figures: The figures of its card.
    """

    def __init__(self, folder: Path) -> None:
        self.name, self.figures = folder.name, Sections(folder / "figures.json")
        self._config = Sections(folder / CONFIG)

    @property
    def sizes(self) -> dict[str, Any]:
        """The settings of the image tower."""
        return dict(self._config.everything["model_cfg"]["vision_cfg"])

    @property
    def channels(self) -> int:
        """Neurons of a ResNet's last block."""
        return int(self.sizes["width"]) * 32

    @property
    def heads(self) -> int:
        """Heads of a ResNet's attention pooling."""
        return self.channels // int(self.sizes["head_width"])

    @property
    def planted(self) -> list[str]:
        """The names under which the planted cues appeared."""
        return [str(row["named"]) for row in self.figures.section(PLANTS)]

    @property
    def learned(self) -> int:
        """Number of planted pairs that the model learned."""
        return sum(bool(row["learned"]) for row in self.figures.section(PLANTS))

    def measures(self) -> list[str]:
        """Return the names of the measures on held-out scenes."""
        return [str(row["measure"]) for row in self.figures.section(MEASURES)]

    def measured(self, measure: str) -> Share:
        """Return a share on held-out scenes, with its interval."""
        return self.figures.row(MEASURES, measure=measure).share("share")
