"""clip-segment IMAGE...: heat maps and masks of texts, or label maps of classes, written image by image.

front/segment.py makes the maps. `_write` writes them as JSON lines, a table or tensors; `Folder` is --out-dir: pictures, and the
records by which --resume continues. `Stems` names the files of an image. clip-segment-eval shares `CommonOptions`, `check_inputs`
and `open_bundle`.
"""

import json
import re
from collections.abc import Callable, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass
from itertools import chain, count
from pathlib import Path, PurePosixPath
from typing import Any

from cliptools.cli.app import Output, Reading, choose_format
from cliptools.cli.run.bundle_output import read_neurons
from cliptools.cli.surroundings import refuse_idle
from cliptools.errors import CliptoolsError, UsageError
from cliptools.front.mask import mask_hooks
from cliptools.front.segment import open_segments
from cliptools.front.segment_setup import MapSettings, OpenedBundle, opened_bundle, parse_threshold
from cliptools.front.segmented import HeatMaps, LabelMap
from cliptools.front.segments import SegmentRequest, Segments
from cliptools.front.tables import write_table
from cliptools.images.loader import open_images
from cliptools.io.cache import check_same
from cliptools.io.files import binary_output, only_writer, put_whole, text_output
from cliptools.io.header import canonical
from cliptools.io.jsonl import parse, write_record
from cliptools.io.spools import TensorSpool
from cliptools.models.load import load_recorded_model
from cliptools.models.templates import check_template_options
from cliptools.render import contact_sheet as pictures
from cliptools.render.figure_file import check_figure
from cliptools.towers.hooks import hooked

RECORDS = "segments.json"  # ending of an image's file of records, written last: an image that has this file is finished
MOST_ROWS = 40  # rows of a table on a terminal
LONGEST_SLUG = 60

Records = list[dict[str, Any]]


@dataclass(frozen=True, kw_only=True)
class CommonOptions(MapSettings, Output, Reading):
    """Options of both commands: the images, the classes, the method and its settings, the bundle and the device."""

    paths: tuple[str, ...]
    classes: str | None
    bundle: Path | None


@dataclass(frozen=True, kw_only=True)
class SegmentOptions(CommonOptions):
    """Parameters of clip-segment."""

    texts: tuple[str, ...]
    threshold: str | None
    background: str | None
    out_dir: Path | None
    resume: bool
    mask: Path | None
    figures: Path | None
    figure_format: str
    dark: bool


class Stems:
    """Stems of the files of images: an image's name without its ending, made different where two images share it.

    Args:
        owner: Function from a stem to the image that has files of this stem already; it returns None for a free stem.
    """

    def __init__(self, owner: Callable[[str], str | None] = lambda _: None) -> None:
        self._owner, self._image_of, self._stem_of = owner, dict[str, str](), dict[str, str]()

    def of(self, name: str) -> str:
        """Return the stem of an image, which is below the folder of the files and the same at every call."""
        if name not in self._stem_of:
            place = folder_of(name)
            plain = place.removesuffix(PurePosixPath(place).suffix)
            stems = chain((plain, place), map(f"{place}-{{}}".format, count(2)))
            stem = next(stem for stem in stems if stem not in self._image_of and self._owner(stem) in (None, name))
            self._image_of[stem], self._stem_of[name] = name, stem
        return self._stem_of[name]


@dataclass
class Folder:
    """--out-dir: masks, overlays and records of each image, in files that begin with its name."""

    path: Path
    resume: bool

    def __post_init__(self) -> None:
        self.stems = Stems(self._owner)
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            occupied = any(self.path.iterdir())
        except OSError as error:
            raise CliptoolsError(f"{self.path}: cannot write here ({error.strerror})") from None
        if occupied and not self.resume:
            raise CliptoolsError(f"{self.path}: the folder is not empty; continue it with --resume, or name a new folder")

    def finished(self, name: str, settings: dict[str, Any], texts: Sequence[str] = ()) -> Records:
        """Records of an image that an earlier run finished; empty if it did not.

        Raises:
            CliptoolsError: the earlier run had other settings or texts.
        """
        if not self.resume:
            self.stems.of(name)
            return []
        path = self.path / folder_of(name) / RECORDS  # where earlier versions wrote them
        if not path.is_file():
            path = self.path / f"{self.stems.of(name)}.{RECORDS}"
        records = self._read(path)
        earlier_texts = [record.get("text") for record in records]
        for record in records:
            for key, value in settings.items():
                check_same(path, key, record.get(key), value)
        if texts and records:
            check_same(path, "texts", earlier_texts, list(texts))
        return records

    def _owner(self, stem: str) -> str | None:
        """Return the image whose records an earlier run wrote with this stem."""
        records = self._read(self.path / f"{stem}.{RECORDS}") if self.resume else []
        return str(records[0].get("image")) if records else None

    def _read(self, path: Path) -> Records:
        """Return the records in a file, or an empty list if the file does not exist.

        Raises:
            CliptoolsError: the file is damaged.
        """
        if not path.is_file():
            return []
        try:
            records: Records = parse(path.read_bytes())
            if not all(isinstance(record, dict) for record in records):
                raise TypeError
        except (ValueError, TypeError):
            raise CliptoolsError(f"{path}: the file is damaged; remove it, or name a new folder") from None
        return records

    def write(self, name: str, data: bytes) -> str:
        """Write a file that appears whole or not at all; return its name for records."""
        write_file(self.path / name, data)
        return name


def check_inputs(options: CommonOptions) -> None:
    """Reject invalid images and templates before any input is read.

    Raises:
        UsageError: no images, or invalid templates.
    """
    if not options.paths:
        raise UsageError("no images named: give files, folders, tar archives, or - for a tar on standard input")
    check_template_options(options.templates)


def open_bundle(options: CommonOptions) -> OpenedBundle:
    """Read the bundle of --bundle or standard input, and load its model.

    Raises:
        CliptoolsError: the bundle cannot be read, its model is not available, or the model does not have the method.
    """
    bundle = read_neurons(options.bundle, option="--bundle", device=options.device)
    return opened_bundle(bundle, load_recorded_model(bundle.header.model, options.device), options.method)


def run(options: SegmentOptions) -> None:
    """Make heat maps of --text or of a ViT's best class, or label maps of a CLIP-ResNet, and write them image by image."""
    request = _request(options)
    output_format = choose_format(options.output_format, options.output, "jsonl")
    if output_format == "safetensors" and options.resume:
        raise UsageError("--resume does not go with -f safetensors: images finished earlier would be missing from the tensors")
    source = open_images(options.paths)
    opened = open_bundle(options)
    hooks, mask = mask_hooks(opened.model, options.mask)
    with hooked(hooks):
        segments = open_segments(source, opened, options, request, shown=True)
        segments.settings.update(mask)
        _write(options, output_format, segments)


def _request(options: SegmentOptions) -> SegmentRequest:
    """Reject invalid options before any input is read; return what to look for.

    Raises:
        UsageError: nothing to look for, texts that are invalid, or --resume without a folder.
    """
    check_inputs(options)
    threshold = None if options.threshold is None else parse_threshold(options.threshold)
    request = SegmentRequest(texts=options.texts, threshold=threshold, background=options.background)
    request.check(options.classes)
    if options.resume and not options.out_dir:
        raise UsageError("--resume needs --out-dir, the folder to continue")
    if options.figures is not None:
        check_figure(options.figure_format)
    else:
        refuse_idle(("figure_format", "dark"), "without --figures")
    return request


def _write(options: SegmentOptions, output_format: str, segments: Segments) -> None:
    """Write the records of every image as they come, or at the end the tensors or the table."""
    rows: list[list[str]] = []
    layout = segments.layout
    with ExitStack() as stack:
        folder = spool = None
        if options.out_dir:
            stack.enter_context(only_writer(options.out_dir))
            folder = Folder(options.out_dir, options.resume)
        figures = Figures(options, Stems() if folder is None else folder.stems)
        if output_format == "safetensors":
            stream = stack.enter_context(binary_output(options.output))
            spool = stack.enter_context(closing(TensorSpool()))
        else:
            stream = stack.enter_context(text_output(options.output))

        def finished(name: str) -> Records:
            records = [] if folder is None else folder.finished(name, segments.settings, options.texts)
            return records if figures.drawn(records) else []

        for item in segments.maps(finished):
            drawn = {} if isinstance(item, list) else figures.draw(item)
            if spool is not None and not isinstance(item, list):
                spool.put_whole(item.name, item.maps if isinstance(item, HeatMaps) else item.logits())
            for record in item if isinstance(item, list) else _records(item, folder, drawn):
                if output_format == "jsonl":
                    write_record(stream, record)
                elif len(rows) <= MOST_ROWS:
                    rows.append(layout.row(record))
        if spool is not None:
            spool.write(stream, canonical(layout.header))
        elif output_format == "table":
            write_table(stream, layout.columns, rows[:MOST_ROWS])
            if len(rows) > MOST_ROWS:
                stream.write("… more images (-f jsonl for all)\n".encode())


class Figures:
    """--figures: a figure of each image, in a file with the image's name; none without the option."""

    def __init__(self, options: SegmentOptions, stems: Stems) -> None:
        self.folder, self.kind, self.dark = options.figures, options.figure_format, options.dark
        self.stems = stems

    def drawn(self, records: Records) -> bool:
        """Return True unless the figure of an image that an earlier run finished is asked for and missing."""
        names = {str(record.get("figure")) for record in records}
        return self.folder is None or all((self.folder / name).is_file() and name.endswith(f".{self.kind}") for name in names)

    def draw(self, item: HeatMaps | LabelMap) -> dict[str, str]:
        """Draw the figure of an image; return the field of its records that names the file."""
        if self.folder is None:
            return {}
        name = f"{self.stems.of(item.name)}.{self.kind}"
        write_file(self.folder / name, item.figure(self.kind, self.dark))
        return {"figure": name}


def write_file(path: Path, data: bytes) -> None:
    """Write a file that appears whole or not at all, and the folder in which it is.

    Raises:
        CliptoolsError: it cannot be written.
    """
    try:
        put_whole(path, data)
    except OSError as error:
        raise CliptoolsError(f"{path}: could not be written ({error.strerror})") from None


def _records(item: HeatMaps | LabelMap, folder: Folder | None, drawn: dict[str, str]) -> Records:
    """Return the records of an image; with a folder, write its pictures and, last of all, its records.

    Args:
        drawn: Further fields of every record.
    """
    if folder is None:
        return [record | drawn for record in item.records]
    stem = folder.stems.of(item.name)
    records = _write_heat_maps(item, folder, stem) if isinstance(item, HeatMaps) else _write_label_map(item, folder, stem)
    records = [record | drawn for record in records]
    folder.write(f"{stem}.{RECORDS}", json.dumps(records, ensure_ascii=False).encode())
    return records


def _write_heat_maps(item: HeatMaps, folder: Folder, stem: str) -> Records:
    """Write mask and overlay of each text, and the label map of several texts; return the records with their names."""
    records = []
    for i, (fact, text) in enumerate(zip(item.facts, slugs(item.texts), strict=True)):
        fact["mask"] = folder.write(f"{stem}.{text}.mask.png", pictures.png(pictures.mask_picture(item.masks[i])))
        fact["overlay"] = folder.write(f"{stem}.{text}.overlay.png", pictures.png(item.overlay(item.texts[i])))
        if len(item.texts) > 1:
            fact["label_map"] = f"{stem}.labels.png"
        records.append(fact | item.settings)
    if len(item.texts) > 1:
        folder.write(f"{stem}.labels.png", pictures.png(pictures.label_picture(item.label_map)))
    return records


def _write_label_map(item: LabelMap, folder: Folder, stem: str) -> Records:
    """Write the label map and the overlay; return the record with their names."""
    record = item.records[0]
    drawn = pictures.label_picture(item.label_map, len(item.classes) - 1)
    record["label_map"] = folder.write(f"{stem}.labels.png", pictures.png(drawn))
    record["overlay"] = folder.write(f"{stem}.overlay.png", pictures.png(item.overlay()))
    return [record]


def folder_of(name: str) -> str:
    """The place of an image below a folder of files: its name, without parts such as `..` that lead out of the folder."""
    parts = [part for part in PurePosixPath(name).parts if part.strip("/")]
    return "/".join(f"{part}_" if set(part) == {"."} else part for part in parts)


def slugs(texts: Sequence[str]) -> list[str]:
    """File names without ending, one for each text and all different."""
    plain = [re.sub(r"\W+", "-", text.lower()).strip("-")[:LONGEST_SLUG] or "text" for text in texts]
    names: dict[str, None] = {}
    for number, name in enumerate(plain, 1):
        candidates = chain((name,), (f"{n}-{name}" for n in count(number)))
        names[next(candidate for candidate in candidates if candidate not in names)] = None
    return list(names)
