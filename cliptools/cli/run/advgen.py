"""The second half of clip-advgen: pictures painted or read, embedded, checked, kept and counted."""

import itertools
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch
from rich.table import Table
from rich.text import Text
from torch import Tensor

from cliptools.analysis.zero_shot import among_closest, class_difference, margin
from cliptools.cli.run.bundle_output import rendered
from cliptools.console import count_of, note, progress, warn
from cliptools.devices import Limit, in_halves
from cliptools.embedded_models import EMBEDDED
from cliptools.errors import CliptoolsError, ImageError, UsageError
from cliptools.generate.captions import seed_of
from cliptools.generate.painters import EmojiPainter, Painted, Painter
from cliptools.generate.painters.diffusion import DiffusionPainter
from cliptools.generate.records import Description, Gallery, Task, slug
from cliptools.images.decode import decode
from cliptools.io.files import stdout_is_terminal, text_output
from cliptools.io.header import recorded_model
from cliptools.io.jsonl import rounded, write_record
from cliptools.models.load import LoadedModel, load_model, load_recorded_model
from cliptools.models.origin import HUB, LOCAL_DIR
from cliptools.models.text_encoder import encode_texts
from cliptools.models.unusable import Screen, unusable
from cliptools.text.classes import ClassName, distinct_classes, load_classes, parse_class

OFTEN = 8  # words named of those that a painter leaves out


class Order(NamedTuple):
    """A picture to make or to read."""

    of: Description
    copy: int
    name: str
    """Its place in a gallery."""
    seed: int


@dataclass
class Tally:
    """Pictures of a task, and how many of them fooled the model: in all, and among those that show what they should."""

    images: int = 0
    fooled: int = 0
    checked: bool = False
    sound: int = 0
    sound_fooled: int = 0

    def add(self, record: dict[str, Any]) -> None:
        """Count a record."""
        self.images += 1
        self.fooled += record["fooled"]
        if check := record.get("check"):
            sound = check["depicted"] and not check["predicted"]
            self.checked = True
            self.sound += sound
            self.sound_fooled += sound and record["fooled"]


@dataclass
class Studio:
    """All that is loaded once: the model and its view of the classes, the painter, the judge."""

    loaded: LoadedModel
    texts: dict[str, Tensor]
    """Unit embeddings [d] of bare class names."""
    painter: Painter | None
    judge: "Judge | None"
    classes: dict[str, ClassName] = field(default_factory=dict)
    limit: Limit = field(default_factory=Limit)
    """Pictures that the model looks at together, once the device has run out of memory with more."""

    def look(self, painted: Sequence[Painted], orders: Sequence[Order]) -> list[dict[str, Any] | str]:
        """Margin and check of each picture, all of which there are; or the reason why it is not usable."""
        seen = _embed(self.loaded, painted, self.limit)  # (picture, d)
        reasons = unusable(seen)
        found: list[dict[str, Any] | str] = []
        for row, (one, order) in enumerate(zip(painted, orders, strict=True)):
            task = order.of.task
            if row in reasons:
                found.append(reasons[row])
                continue
            v = class_difference(self.texts[task.predict], self.texts[task.depict])
            value = float(margin(seen[row : row + 1], v)[0])
            check = self._check(one, task)
            found.append(check if isinstance(check, str) else {"margin": rounded(value), "fooled": value > 0} | check)
        return found

    def _check(self, painted: Painted, task: Task) -> dict[str, Any] | str:
        """Whether the depicted class is there and the predicted one is not: by the judge, or by the scene's own truth.

        A judge's reason where the picture is not usable for it.
        """
        both = [parse_class(task.depict), parse_class(task.predict)]
        if self.judge is not None:
            seen = self.judge.sees(painted, both)
            if isinstance(seen, str):
                return f"by the judge {self.judge.loaded.name}, {seen}"
            depicted, predicted = seen
            return {"check": {"by": self.judge.loaded.name, "depicted": depicted, "predicted": predicted}}
        if painted.shown is None:
            return {}
        shown = {name.lower() for name in painted.shown}
        depicted, predicted = (any(name.lower() in shown for name in one.names) for one in both)
        return {"check": {"by": "scene", "depicted": depicted, "predicted": predicted}}


class Judge:
    """A second model, asked whether a class is among the few closest to a picture."""

    def __init__(self, spec: str, options: dict[str, Any], pairs: Sequence[Task]) -> None:
        name, _, pretrained = (spec, "", "") if spec.startswith((LOCAL_DIR, HUB)) else spec.partition(":")
        self.loaded = load_model(
            name, pretrained or None, options["device"], preprocess=options["judge_preprocess"], any_tower=True
        )
        self.top = options["judge_top"]
        self.others = distinct_classes(load_classes(options["judge_classes"] or ("emoji" if name in EMBEDDED else "cifar10")))
        both = [parse_class(text) for task in pairs for text in (task.depict, task.predict)]
        names = list(dict.fromkeys(name for one in (*both, *self.others) for name in one.names))
        self.texts = dict(zip(names, encode_texts(self.loaded, names), strict=True))

    @property
    def settings(self) -> dict[str, Any]:
        """What records say of it; its architecture where name and weights do not settle that."""
        known = recorded_model(self.loaded.identity)
        settings = {"judge": self.loaded.name, "judge_sha256": self.loaded.sha256, "judge_top": self.top}
        return settings | {f"judge_{key}": known[key] for key in ("architecture",) if key in known}

    def sees(self, painted: Painted, both: Sequence[ClassName]) -> tuple[bool, bool] | str:
        """Whether the first and the second of two classes are among the closest; or the reason why it cannot tell."""

        image = _embed(self.loaded, [painted])
        if reasons := unusable(image):
            return reasons[0]
        own = {name.lower() for one in both for name in one.names}
        classes = [*both, *(one for one in self.others if not own & {name.lower() for name in one.names})]
        names = [name for one in classes for name in one.names]
        owner = torch.tensor([i for i, one in enumerate(classes) for _ in one.names], device=self.loaded.device)
        of_class = owner[None] == torch.arange(len(classes), device=owner.device)[:, None]  # (class, name)
        found = among_closest(image, torch.stack([self.texts[name] for name in names]), of_class, self.top)
        return bool(found[0, 0]), bool(found[0, 1])


def judge_pictures(
    given: Sequence[Description], options: dict[str, Any], gallery: Gallery | None, chosen: str, output: Path | None
) -> None:
    """Make or read every picture, write its record, and say how many fooled the model.

    Raises:
        CliptoolsError: no picture at all could be made or is usable, or with --strict one is not.
    """
    tasks = {one.task.key: one.task for one in given}
    studio = _studio(given, list(tasks.values()), options)
    tallies = {key: Tally() for key in tasks}
    total = sum(1 if one.file else options["images"] for one in given)
    screen = Screen[tuple[int, str]](lambda picture: picture[1], strict=options["strict"])
    with text_output(output) as stream:
        for record, task in progress(_records(given, options, gallery, studio, screen), "pictures", total):
            tallies[task.key].add(record)
            if chosen == "jsonl":
                write_record(stream, record)
        rows = [(tasks[key], tally) for key, tally in tallies.items()]
        count = sum(tally.images for _, tally in rows)
        if not count and not len(screen):
            raise CliptoolsError(f"none of {count_of(total, 'picture')} could be made or read")
        screen.require(count)
        if chosen == "table":
            stream.write(_table(rows, output is None and stdout_is_terminal()))
    for task, tally in rows:
        note(_sentence(task, tally))
    if studio.painter is not None and (said := _left_out([one for one in given if not one.file], studio.painter)):
        note(said)


def _studio(given: Sequence[Description], tasks: Sequence[Task], options: dict[str, Any]) -> Studio:
    loaded = load_recorded_model(tasks[0].model | {"precision": "fp32"}, options["device"], source="the list of words")
    names = list(dict.fromkeys(name for task in tasks for name in (task.depict, task.predict)))
    texts = dict(zip(names, encode_texts(loaded, names), strict=True))
    asked = Judge(options["judge"], options, tasks) if options["judge"] else None
    painter = None if all(one.file for one in given) else _painter(options)
    return Studio(loaded, texts, painter, asked)


def _painter(options: dict[str, Any]) -> Painter:
    if options["painter"] == "emoji":
        return EmojiPainter(options["size"])

    kept = ("upscaler", "device", "dtype", "offload", "steps", "guidance", "size")
    return DiffusionPainter(options["painter"], **{key: options[key] for key in kept})


def _records(
    given: Sequence[Description],
    options: dict[str, Any],
    gallery: Gallery | None,
    studio: Studio,
    screen: Screen[tuple[int, str]],
) -> Iterator[tuple[dict[str, Any], Task]]:
    """A record a picture, in order; the batches do not depend on what an earlier run has finished, so neither do the numbers."""
    orders = iter(list(_orders(given, options["images"], options["seed"])))  # all, so that nothing is painted if two clash
    numbers = itertools.count()
    while batch := list(itertools.islice(orders, options["batch_size"])):
        wanted = [_wanted(order, studio) for order in batch]
        made = [
            gallery.finished(order.name, want) if gallery and not order.of.file else None
            for order, want in zip(batch, wanted, strict=True)
        ]
        if not all(made):
            painted = _pictures(batch, studio.painter, options["strict"])
            there = [i for i, one in enumerate(painted) if one.image is not None]
            seen = studio.look([painted[i] for i in there], [batch[i] for i in there]) if there else []
            reasons = {place: looked for place, looked in enumerate(seen) if isinstance(looked, str) and not made[there[place]]}
            for place in screen.places([(next(numbers), _where(batch[i])) for i in there], reasons):
                i, looked = there[place], seen[place]
                if made[i] is None and not isinstance(looked, str):
                    made[i] = _finish(batch[i], wanted[i], looked, painted[i], gallery)
        for order, record in zip(batch, made, strict=True):
            if record is not None:
                yield record, order.of.task


def _orders(given: Sequence[Description], images: int, seed: int) -> Iterator[Order]:
    """Every picture, with a place and a seed of its own.

    Raises:
        UsageError: two would have the same place.
    """
    places: set[str] = set()
    for one in given:
        for copy in range(1 if one.file else images):
            task = one.task
            name = f"{slug(task.pair)}/{slug(task.kind)}-{task.seed}/{one.number:03d}-{copy:03d}.png"
            if name in places and not one.file:
                raise UsageError(f"{task.title}: description {one.number} comes twice; give each pair, kind and seed once")
            places.add(name)
            yield Order(one, copy, name, seed_of(task.pair, one.text, seed, copy))


def _wanted(order: Order, studio: Studio) -> dict[str, Any]:
    """What a record says before its picture is made."""
    one = order.of
    said: dict[str, Any] = {"caption": one.number, "copy": order.copy, "description": one.text or None, "words": list(one.words)}
    settings = dict(one.settings)
    if not one.file and studio.painter is not None:
        if (understood := studio.painter.understood(one.text, one.words)) is not None:
            said |= {"words": list(understood.words), "drawn": list(understood.drawn)}
        said["image_seed"] = order.seed
        settings |= studio.painter.settings
    if studio.judge is not None:
        settings |= studio.judge.settings
    return one.task.fields | said | {"settings": settings} | one.task.source


def _finish(
    order: Order, wanted: dict[str, Any], looked: dict[str, Any], painted: Painted, gallery: Gallery | None
) -> dict[str, Any]:
    """The whole record, its picture kept where there is a gallery."""
    ending = {key: wanted[key] for key in ("settings", "model", "bundle")}
    start = {key: value for key, value in wanted.items() if key not in ending}
    if order.of.file or gallery is None or painted.image is None:
        return start | {"file": order.of.file} | looked | ending
    gallery.add(order.name, painted.image, start | {"file": order.name} | looked | ending)
    return start | {"file": gallery.path(order.name)} | looked | ending


def _pictures(batch: Sequence[Order], painter: Painter | None, strict: bool) -> list[Painted]:
    """Each picture painted, or read from its file; one that cannot be is named, and is fatal with `strict`."""
    blank = [order for order in batch if not order.of.file]
    fresh = iter(painter.paint([order.of.text for order in blank], [order.seed for order in blank]) if painter and blank else ())
    pictures = []
    for order in batch:
        where = _where(order)
        try:
            one = Painted(decode(order.of.file)) if order.of.file else next(fresh)
        except ImageError as error:
            one = Painted(None, refusal=str(error))
        if one.image is None and strict:
            raise ImageError(f"{where}: {one.refusal}")
        if one.image is None and order.copy == 0:
            warn(f"{where}: skipped, {one.refusal}")
        pictures.append(one)
    return pictures


def _where(order: Order) -> str:
    """A picture in messages."""
    return order.of.file or f"{order.of.text!r}"


def _embed(loaded: LoadedModel, painted: Sequence[Painted], limit: Limit | None = None) -> Tensor:
    """M(I), float32 [picture, d], not normalised."""

    pixels = torch.stack([loaded.transform(one.image) for one in painted if one.image is not None])  # (picture, 3, y, x)
    clip: Any = loaded.clip
    with torch.inference_mode():
        batches = [(range(len(pixels)), pixels)]
        looked = in_halves(batches, lambda _, some: clip.encode_image(some.to(loaded.device)).float(), "pictures", limit)
        return torch.cat([part for _, part in looked])


def _sentence(task: Task, tally: Tally) -> str:
    rate = _percent(tally.fooled, tally.images)
    said = f"{task.title}: {tally.fooled} of {count_of(tally.images, 'picture')} fool {task.model['name']} ({rate})"
    if not tally.checked:
        return f"{said}; unchecked"
    rate = f"{tally.sound_fooled} ({_percent(tally.sound_fooled, tally.sound)})"
    return f"{said}; of the {tally.sound} that show {task.depict} and no {task.predict}, {rate}"


def _left_out(given: Sequence[Description], painter: Painter) -> str:
    """In one line: how many descriptions ask for more than the painter draws, and the words it leaves out most often."""
    left = [understood.left_out for one in given if (understood := painter.understood(one.text, one.words)) is not None]
    words = Counter(word for words in left for word in words)
    if not words:
        return ""
    often = ", ".join(f"{word} {count}" for word, count in sorted(words.items(), key=lambda entry: (-entry[1], entry[0]))[:OFTEN])
    asking, more = sum(map(bool, left)), ", …" if len(words) > OFTEN else ""
    return (
        f"more is asked for than is drawn in {asking} of {count_of(len(left), 'description')} ({often}{more}); "
        f"`drawn` says what the pictures show"
    )


def _percent(part: int, whole: int) -> str:
    return f"{100 * part / whole:.1f} %" if whole else "none"


def _table(rows: Sequence[tuple[Task, Tally]], terminal: bool) -> bytes:
    """A row a task."""

    table = Table(box=None, pad_edge=False, header_style="bold")
    for title in ("pair", "by"):
        table.add_column(title)
    for title in ("seed", "pictures", "fooled", "", "sound", "fooled of these", ""):
        table.add_column(title, justify="right")
    for task, tally in rows:
        sound = (
            (str(tally.sound), str(tally.sound_fooled), _percent(tally.sound_fooled, tally.sound))
            if tally.checked
            else ("–",) * 3
        )
        rate = _percent(tally.fooled, tally.images)
        table.add_row(Text(task.pair), Text(task.kind), str(task.seed), str(tally.images), str(tally.fooled), rate, *sound)
    return rendered(table, terminal=terminal)
