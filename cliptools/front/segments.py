"""The images of `segment`, whose maps are computed while they are iterated: heat maps of texts, or label maps of classes.

`maps` is also the way of clip-segment, which passes over the images that an earlier run finished.
"""

import copy
import itertools
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

from PIL import Image
from torch import Tensor

from cliptools.console import count_of, front_steps, progress, summarise
from cliptools.devices import in_halves
from cliptools.errors import ImageError, UsageError
from cliptools.front.heat_maps import Segmenter, TextScores, heat_maps
from cliptools.front.label_maps import Labeller
from cliptools.front.segment_setup import MapSettings, check_texts
from cliptools.front.segmented import HeatMaps, LabelMap, Layout, RecordList, heat_row, label_row
from cliptools.front.tables import Records
from cliptools.images.loader import ImageSource, Skipped, same_shapes
from cliptools.io.files import whole_file
from cliptools.io.jsonl import write_record
from cliptools.models.unusable import Screen
from cliptools.segmentation.masks import Threshold, best_texts, to_labels

TOOL = "clip-segment"
MOST_TEXTS = 255  # labels of a label map of 8 bits
Finished = Callable[[str], RecordList]
"""Function that returns the records of an image that an earlier run finished; empty for any other image."""


@dataclass(frozen=True, kw_only=True)
class SegmentRequest:
    """What to look for, and where masks end."""

    texts: tuple[str, ...] = ()
    single: bool = False
    """True for one text that was not given in a list."""
    threshold: Threshold | None = None
    background: str | None = None

    def check(self, classes: object) -> None:
        """Reject texts that are invalid before any input is read.

        Raises:
            UsageError: nothing to look for, an empty text, the same text twice, too many texts, or texts and classes.
        """
        check_texts(self.texts, classes)
        if len(set(self.texts)) < len(self.texts):
            raise UsageError("--text: the same text is given twice")
        if len(self.texts) > MOST_TEXTS:
            raise UsageError(
                f"--text: {count_of(len(self.texts), 'text')}, expected at most {MOST_TEXTS}, the labels of a label map"
            )
        if not (self.texts or classes):
            raise UsageError("nothing to look for: give --text, or --classes for the model's own best class")


@dataclass
class Reader:
    """Reads the images of a pass, and counts those that are left out."""

    source: ImageSource
    strict: bool
    skipped: Skipped = field(default_factory=Skipped)

    def __post_init__(self) -> None:
        self.screen = Screen[str](str, self.skipped.add, self.strict)

    def load(self, index: int) -> Image.Image | None:
        """Load an image; if it cannot be read, warn and return None, or with `strict` raise an ImageError."""
        name = self.source.names[index]
        try:
            return self.source.load(index)
        except ImageError as error:
            if self.strict:
                raise ImageError(f"{name}: {error}") from None
            self.skipped.add(name, str(error))
            return None

    def load_again(self, index: int) -> Image.Image | None:
        """Load an image that an earlier run finished; None if it can no longer be read."""
        try:
            return self.source.load(index)
        except ImageError:
            return None


class _OneImage:
    """An ImageSource of a single image of another source."""

    def __init__(self, source: ImageSource, place: int) -> None:
        self._source, self._place = source, place
        self.names: Sequence[str] = [source.names[place]]

    def __len__(self) -> int:
        return 1

    def load(self, index: int) -> Image.Image:
        """Implements ImageSource.load."""
        return self._source.load(self._place)


class Segments(ABC):
    """The images of `segment` with their maps, in order, which are computed while they are iterated.

    Each iteration computes them again, and so do `records`, `table`, `to_frame` and `save`; `list(...)` keeps all of them. A
    number as index computes the images up to it, a name that image alone.
    """

    def __init__(self, source: ImageSource, settings: MapSettings, shown: bool, layout: Layout, fields: dict[str, Any]) -> None:
        """
        Args:
            shown: Write progress and messages to standard error.
            fields: Fields of every record.
        """
        self.source, self.map_settings, self.layout, self.settings = source, settings, layout, fields
        self._shown = shown

    @abstractmethod
    def _maps(self, reader: Reader, finished: Finished) -> Iterator[HeatMaps | LabelMap | RecordList]:
        """Yield the maps of each image, or the records of a finished image."""

    def maps(self, finished: Finished) -> Iterator[HeatMaps | LabelMap | list[dict[str, Any]]]:
        """Yield the maps of each image that can be read, or the records of an image that an earlier run finished.

        Raises:
            CliptoolsError: no image can be read, or memory has run out.
            ImageError: an image cannot be read, with `strict`.
        """
        reader, count = Reader(self.source, self.map_settings.strict), 0
        for item in self._maps(reader, finished):
            count += 1
            yield item
        reader.screen.require(count)
        skipped = len(reader.skipped)
        summarise(f"{TOOL}: {count_of(count, 'image')}" + (f", {skipped} skipped" if skipped else ""))

    def __iter__(self) -> Iterator[HeatMaps | LabelMap]:
        for item in front_steps(self._shown, self.maps(lambda _: [])):
            if not isinstance(item, list):
                yield item

    def __getitem__(self, index: int | str) -> HeatMaps | LabelMap:
        """Return an image by its name, or by its place among those that can be read; negative numbers count from the end.

        Raises:
            KeyError: there is no image of this name.
            IndexError: there are fewer images.
            ImageError: the image of this name cannot be read.
        """
        if isinstance(index, str):
            return self._named(index)
        if index < 0:
            return list(self)[index]
        item = next(itertools.islice(self, index, None), None)
        if item is None:
            raise IndexError(f"image {index}: there are fewer images that can be read")
        return item

    def _named(self, name: str) -> HeatMaps | LabelMap:
        """Return the image of this name, which is the only one that is read."""
        if name not in self.source.names:
            raise KeyError(f"no image has the name {name!r}; the first one is {self.source.names[0]!r}")
        alone = copy.copy(self)
        alone.source = _OneImage(self.source, self.source.names.index(name))
        alone.map_settings = replace(self.map_settings, strict=True)
        return next(iter(alone))

    def records(self) -> Records:
        """Return the command's records of all images, without the names of files."""
        return Records((record for item in self for record in item.records), lambda records: [self.layout.table(records)])

    def table(self) -> str:
        """Return the table that the command shows, with all images, as text."""
        return self.records().table()

    def to_frame(self) -> Any:
        """Return a pandas.DataFrame with a row for each record.

        Raises:
            CliptoolsError: pandas is not installed.
        """
        return self.records().to_frame()

    def save(self, path: str | Path) -> None:
        """Write the records as JSON lines, as the command does; the file appears whole or not at all."""
        with whole_file(Path(path)) as stream:
            for item in self:
                for record in item.records:
                    write_record(stream, record)


class QueuedImage(NamedTuple):
    """An image in a batch."""

    name: str
    picture: Image.Image | None
    """None for a finished image that can no longer be read."""
    records: RecordList
    """Records of a finished image, empty for any other image.

    A finished image stays in its batch, because the last digits of the other images' scores depend on the batch.
    """


class HeatSegments(Segments):
    """Images with heat maps of texts, or of each image's own best class."""

    def __init__(
        self, source: ImageSource, settings: MapSettings, shown: bool, segmenter: Segmenter, request: SegmentRequest
    ) -> None:
        fields = segmenter.settings | {"threshold": 0.5 if request.threshold is None else request.threshold}
        layout = Layout({"kind": "heat maps", "format": 1} | fields, ["image", "text", "score", "share"], heat_row)
        super().__init__(source, settings, shown, layout, fields)
        self._segmenter, self._texts = segmenter, request.texts
        self._single = request.single or not request.texts

    def _maps(self, reader: Reader, finished: Finished) -> Iterator[HeatMaps | LabelMap | RecordList]:
        """Implements Segments._maps."""

        def score(batch: Sequence[QueuedImage], tensors: Tensor | None) -> list[list[TextScores] | str] | None:
            if tensors is None or all(image.records for image in batch):
                return None
            return self._segmenter.score(tensors, [self._texts] * len(batch))

        images = progress(self._queued(reader, finished), "images", len(self.source))
        for batch, scores in in_halves(same_shapes(images, self.map_settings.batch_size), score):
            if scores is None:
                yield from (image.records for image in batch)
                continue
            reasons = {i: row for i, row in enumerate(scores) if isinstance(row, str) and not batch[i].records}
            for place in reader.screen.places([image.name for image in batch], reasons):
                image, row = batch[place], scores[place]
                if image.records:
                    yield image.records
                    continue
                assert image.picture is not None and not isinstance(row, str)
                maps = heat_maps(row, *image.picture.size)
                yield HeatMaps(image.name, image.picture, self.layout, self.settings, tuple(row), maps, self._single)

    def _queued(self, reader: Reader, finished: Finished) -> Iterator[tuple[QueuedImage, Tensor | None]]:
        """Yield each image with its tensor [3, y, x]; None instead of the tensor if the image can no longer be read."""
        for index, name in enumerate(self.source.names):
            records = finished(name)
            picture = reader.load_again(index) if records else reader.load(index)
            if picture is not None:
                yield QueuedImage(name, picture, records), self._segmenter.tensor(picture)
            elif records:
                yield QueuedImage(name, None, records), None


class LabelSegments(Segments):
    """Images with label maps of all classes, by pairs."""

    def __init__(self, source: ImageSource, settings: MapSettings, shown: bool, labeller: Labeller) -> None:
        fields = labeller.settings | {"background": labeller.background(labeller.cuts[0])}
        header = {"kind": "logits", "format": 1, "label": labeller.label_of_text.tolist(), "names": list(labeller.classes)}
        super().__init__(source, settings, shown, Layout(header | fields, ["image", "classes"], label_row), fields)
        self._labeller = labeller

    def _maps(self, reader: Reader, finished: Finished) -> Iterator[HeatMaps | LabelMap | RecordList]:
        """Implements Segments._maps."""
        for index, name in enumerate(progress(self.source.names, "images", len(self.source))):
            if records := finished(name):
                if reader.screen.places([name], {}):
                    yield records[:1]
                continue
            picture = reader.load(index)
            if picture is None:
                continue
            item = self._label_map(name, picture)
            if reader.screen.places([name], {0: item} if isinstance(item, str) else {}):
                assert not isinstance(item, str)
                yield item

    def _label_map(self, name: str, picture: Image.Image) -> LabelMap | str:
        """Return the label map of an image, or the reason why the image is not usable."""
        labeller = self._labeller
        try:
            averaged = labeller.averaged(picture)
        except ImageError as error:
            return str(error)
        cut = labeller.cuts[0]
        best = best_texts(averaged, picture.height, picture.width, cut is not None, limits=labeller.limits)
        labels = to_labels(best, labeller.label_of_text, cut).numpy()  # (y, x)
        return LabelMap(name, picture, self.layout, self.settings, labeller.classes, labels, averaged, labeller.limits)
