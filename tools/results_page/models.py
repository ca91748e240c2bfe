"""The embedded models as the page of results sees them: names, sizes, and the figures of their cards.

Their names stand in one place, `cliptools.embedded_models.EMBEDDED`.
"""

import json
from functools import cached_property
from pathlib import Path
from typing import Any

from cliptools.embedded_models import CONFIG
from examples.result_tables import Row, Share, TableError

MEASURES = "Accuracy on held-out scenes"
PLANTS = "Planted facts"


class Model:
    """An embedded model.

    Attributes:
        name: Name of the model and of its folder.
        folder: Its folder, with figures.json and the configuration of open_clip.
    """

    def __init__(self, folder: Path) -> None:
        self.name, self.folder = folder.name, folder

    @cached_property
    def figures(self) -> dict[str, list[dict[str, Any]]]:
        """The sections of figures.json."""
        return self._json("figures.json")

    @cached_property
    def sizes(self) -> dict[str, Any]:
        """The settings of the image tower."""
        return dict(self._json(CONFIG)["model_cfg"]["vision_cfg"])

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
        return [str(row["named"]) for row in self.section(PLANTS)]

    @property
    def learned(self) -> int:
        """Number of planted pairs that the model learned."""
        return sum(bool(row["learned"]) for row in self.section(PLANTS))

    def section(self, title: str) -> list[dict[str, Any]]:
        """Return the rows of a section of figures.json.

        Raises:
            TableError: there is no such section.
        """
        if title not in self.figures:
            raise TableError(f"{self._figures()}: expected a section {title!r}, found {', '.join(self.figures)}")
        return self.figures[title]

    def row(self, title: str, **values: Any) -> Row:
        """Return the one row of a section that has these values.

        Raises:
            TableError: there is no such section, or not one such row.
        """
        rows = [row for row in self.section(title) if all(row.get(key) == value for key, value in values.items())]
        if len(rows) != 1:
            raise TableError(f"{self._figures()}: expected one row with {values} in section {title!r}, found {len(rows)}")
        return Row(f"{self._figures()}, {title}, {values}", {key: str(value) for key, value in rows[0].items()})

    def measures(self) -> list[str]:
        """Return the names of the measures on held-out scenes."""
        return [str(row["measure"]) for row in self.section(MEASURES)]

    def measured(self, measure: str) -> Share:
        """Return a share on held-out scenes, with its interval."""
        return self.row(MEASURES, measure=measure).share("share")

    def _figures(self) -> Path:
        return Path(self.name) / "figures.json"

    def _json(self, name: str) -> dict[str, Any]:
        path = self.folder / name
        if not path.exists():
            raise TableError(f"{path}: no such file")
        return dict(json.loads(path.read_text(encoding="utf-8")))
