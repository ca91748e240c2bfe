"""Results of `segment`, one for each image: heat maps of texts, or the label map of classes, with pictures and records."""

import functools
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Float32, Int
from PIL import Image
from rich.table import Table

from cliptools.errors import UsageError
from cliptools.front.heat_maps import TextScores
from cliptools.front.tables import rendered, text_table
from cliptools.io.files import whole_file
from cliptools.io.jsonl import rounded
from cliptools.render import contact_sheet as pictures
from cliptools.render.figure_file import check_figure, kind_of
from cliptools.render.segment_plot import DrawnHeat, DrawnLabels, draw_heat_maps, draw_label_map
from cliptools.segmentation.masks import MemoryLimits, WindowAverage, at_size, bounding_box, label_map, logits_at_size, mask_of

MOST_CLASSES = 3  # classes of an image in a row of the table
RecordList = list[dict[str, Any]]


class Layout(NamedTuple):
    """The form of results that are not JSON lines: the header of tensors, and the columns and rows of the table."""

    header: dict[str, Any]
    columns: list[str]
    row: Callable[[dict[str, Any]], list[str]]

    def table(self, records: Sequence[dict[str, Any]]) -> Table:
        """Return a table with a row for each record."""
        return text_table(self.columns, [self.row(record) for record in records])


class _Result(ABC):
    """What the results of an image have in common."""

    name: str
    """The image's name: of a file or member of an archive, or `image-000000` of the first picture or array."""
    picture: Image.Image
    layout: Layout

    @abstractmethod
    def overlay(self) -> Image.Image:
        """Return the picture under its map, as the command draws it."""

    @property
    @abstractmethod
    def records(self) -> list[dict[str, Any]]:
        """The records that the command writes for the image, without the names of its files."""

    @abstractmethod
    def _figure(self, kind: str, dark: bool) -> bytes:
        """Return the figure as the bytes of a file."""

    def figure(self, kind: str = "png", dark: bool = False) -> bytes:
        """Return a figure for a paper, as the bytes of a file: the picture and its maps, with colour bars or a legend.

        Args:
            kind: png, svg or pdf.
            dark: Draw light text on a dark ground.

        Raises:
            UsageError: another kind.
            CliptoolsError: matplotlib is not installed.
        """
        check_figure(kind)
        return self._figure(kind, dark)

    def save_figure(self, path: str | Path, dark: bool = False) -> None:
        """Write the figure; the ending .png, .svg or .pdf is its format. The file appears whole or not at all.

        Raises:
            UsageError: another ending.
            CliptoolsError: matplotlib is not installed.
        """
        data = self._figure(kind_of(Path(path), "figure"), dark)
        with whole_file(Path(path)) as stream:
            stream.write(data)

    def show(self) -> None:
        """Open the overlay in a program that shows pictures."""
        self.overlay().show(self.name)

    def save(self, path: str | Path) -> None:
        """Write the overlay as a PNG, which appears whole or not at all."""
        _save(self.overlay(), path)

    def table(self) -> str:
        """Return the rows of the command's table for the image, as text."""
        return rendered(self.layout.table(self.records), terminal=False).decode("utf-8").rstrip("\n")


@dataclass(frozen=True, eq=False)
class HeatMaps(_Result):
    """Heat maps of one or several texts over an image, at the image's own size."""

    name: str
    picture: Image.Image
    layout: Layout
    settings: dict[str, Any]
    """Fields of every record: the model, the bundle, the method and all settings, `threshold` among them."""
    scores: tuple[TextScores, ...]
    """The patches' scores of each text, and the text's cosine with the image."""
    maps: Float[np.ndarray, "text y x"]
    """Scores at every pixel, from 0 (lowest) to 1 (highest)."""
    single: bool
    """True if the image has one text that was not given in a list, so that maps and masks have no axis of texts."""

    @property
    def texts(self) -> list[str]:
        """The texts, in the order of the maps."""
        return [text.text for text in self.scores]

    @property
    def heat_map(self) -> Float[np.ndarray, "*text y x"]:
        """The map [y, x] of a single text, or [text, y, x] of a list of texts, from 0 to 1."""
        return self.maps[0] if self.single else self.maps

    @property
    def mask(self) -> Bool[np.ndarray, "*text y x"]:
        """The pixels where the heat map reaches the threshold: [y, x] of a single text, or [text, y, x] of a list."""
        return self.masks[0] if self.single else self.masks

    @functools.cached_property
    def masks(self) -> Bool[np.ndarray, "text y x"]:
        """The mask of each text."""
        return mask_of(torch.from_numpy(self.maps), self.settings["threshold"]).numpy()

    @functools.cached_property
    def label_map(self) -> Int[np.ndarray, "y x"]:
        """1 + the text of each pixel, whose standardised map is highest there; 0 where the pixel is in no text's mask."""
        return label_map(torch.from_numpy(self.maps), self.settings["threshold"]).numpy()

    def overlay(self, text: str | None = None) -> Image.Image:
        """Return the picture under a text's heat map, with the outline of the mask, as the command draws it.

        Args:
            text: One of the texts. None: the first one.

        Raises:
            UsageError: it is another text.
        """
        if text is not None and text not in self.texts:
            raise UsageError(f"text={text!r}: expected one of {', '.join(map(repr, self.texts))}")
        index = 0 if text is None else self.texts.index(text)
        return pictures.overlay(self.picture, self.maps[index], self.masks[index])

    def _figure(self, kind: str, dark: bool) -> bytes:
        """Implements _Result._figure."""
        maps = []
        for i, text in enumerate(self.scores):
            threshold = self.settings["threshold"]
            cut = float(self.maps[i].mean()) if threshold == "mean" else threshold
            maps.append(DrawnHeat(text.text, self.maps[i], self.masks[i], *self._ends(i), cut))
        labels = DrawnLabels(self.label_map, ["", *self.texts]) if len(self.texts) > 1 else None
        return draw_heat_maps(self.picture, maps, labels, kind, dark)

    def _ends(self, i: int) -> tuple[float, float]:
        """Return the scores at the pixels where the map of a text is 0 and 1."""
        scores = at_size(self.scores[i].scores[None], *self.maps.shape[1:])  # (1, y, x)
        return float(scores.min()), float(scores.max())

    def save(self, path: str | Path, text: str | None = None) -> None:
        """Write the overlay of a text, by default the first one, as a PNG, which appears whole or not at all."""
        _save(self.overlay(text), path)

    @property
    def facts(self) -> list[dict[str, Any]]:
        """The records of the texts without the settings, which are the same for all images."""
        facts: RecordList = []
        for i, text in enumerate(self.scores):
            low, high = self._ends(i)
            fact = {"image": self.name, "text": text.text, "score": rounded(text.cosine), "share": rounded(self.masks[i].mean())}
            fact |= {"box": bounding_box(self.masks[i]), "lowest": rounded(low), "highest": rounded(high)}
            fact |= {"width": self.picture.width, "height": self.picture.height, "grid": list(text.scores.shape)}
            if len(self.scores) > 1:
                fact |= {"label": i + 1, "label_share": rounded((self.label_map == i + 1).mean())}
                fact["label_rule"] = "highest of the maps standardised over the image, 0 below every threshold"
            facts.append(fact)
        return facts

    @property
    def records(self) -> list[dict[str, Any]]:
        """The command's records of the image, one for each text, without the names of files."""
        return [fact | self.settings for fact in self.facts]


@dataclass(frozen=True, eq=False)
class LabelMap(_Result):
    """The label map of an image: the class of each pixel."""

    name: str
    picture: Image.Image
    layout: Layout
    settings: dict[str, Any]
    """Fields of every record: the model, the bundle, the method and all settings, `background` among them."""
    classes: tuple[str, ...]
    """Names by label: the background, then the classes from 1."""
    label_map: Int[np.ndarray, "y x"]
    """The label of each pixel; 0 for the background."""
    averaged: WindowAverage
    limits: MemoryLimits

    def logits(self) -> Float32[np.ndarray, "text y x"]:
        """Compute the logits of all texts at the size that the model sees; a class has a text for each synonym."""
        return logits_at_size(self.averaged, self.limits)

    def mask(self, name: str) -> Bool[np.ndarray, "y x"]:
        """Return the pixels of a class, or of the background.

        Raises:
            UsageError: there is no class of this name.
        """
        if name not in self.classes:
            raise UsageError(f"name={name!r}: expected the background or one of the {len(self.classes) - 1} classes")
        labels = [label for label, other in enumerate(self.classes) if other == name]
        return np.isin(self.label_map, labels)

    def overlay(self) -> Image.Image:
        """Return the picture under the colours of its labels, as the command draws it."""
        return pictures.label_overlay(self.picture, self.label_map)

    def _figure(self, kind: str, dark: bool) -> bytes:
        """Implements _Result._figure."""
        return draw_label_map(self.picture, DrawnLabels(self.label_map, self.classes), kind, dark)

    @property
    def fact(self) -> dict[str, Any]:
        """The record without the settings, which are the same for all images."""
        labels = self.label_map
        numbers, pixels = (counts.tolist() for counts in np.unique(labels, return_counts=True))
        classes = []
        for label, count in sorted(zip(numbers, pixels, strict=True), key=lambda pair: (-pair[1], pair[0])):
            share = {"label": label, "class": self.classes[label], "share": rounded(count / labels.size)}
            classes.append(share | {"box": bounding_box(labels == label)})
        return {"image": self.name, "width": self.picture.width, "height": self.picture.height, "found": classes}

    @property
    def records(self) -> list[dict[str, Any]]:
        """The command's record of the image, without the names of files."""
        return [self.fact | self.settings]


def heat_row(record: dict[str, Any]) -> list[str]:
    """Return the row of a text in a table: image, text, score and share."""
    return [record["image"], record["text"], f"{record['score']:.3f}", f"{100 * record['share']:.1f} %"]


def label_row(record: dict[str, Any]) -> list[str]:
    """Return the row of an image in a table: its name and its largest classes."""
    classes = [f"{share['class']} {100 * share['share']:.0f} %" for share in record["found"][:MOST_CLASSES]]
    more = len(record["found"]) - MOST_CLASSES
    return [record["image"], ", ".join(classes) + (f" and {more} more" if more > 0 else "")]


def _save(picture: Image.Image, path: str | Path) -> None:
    with whole_file(Path(path)) as stream:
        stream.write(pictures.png(picture))
