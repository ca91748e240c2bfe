"""Pictures of clip-advgen: paints them or reads them from files, embeds, checks and saves them, and makes a record of each.

A picture fools the model if its margin ⟨M(I), v⟩ is above zero (`margin` in analysis/zero_shot.py). The check replaces looking
through the pictures by hand: it tells whether a picture shows the depicted class, and whether it shows the predicted class.
"""

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from cliptools.analysis.zero_shot import among_closest, class_difference, margin
from cliptools.cli.app import Options
from cliptools.console import warn
from cliptools.devices import Limit, in_halves
from cliptools.embedded_models import EMBEDDED
from cliptools.errors import ImageError, UsageError
from cliptools.generate.captions import seed_of
from cliptools.generate.painters import EmojiPainter, Painter, Painting
from cliptools.generate.painters.diffusion import DiffusionPainter
from cliptools.generate.records import Description, PictureFolder, Task, slug
from cliptools.images.decode import decode
from cliptools.io.header import digest, recorded_model
from cliptools.io.jsonl import rounded
from cliptools.models.load import LoadedModel, load_model, load_recorded_model
from cliptools.models.origin import HUB, LOCAL_DIR
from cliptools.models.text_encoder import encode_texts
from cliptools.models.unusable import Screen, unusable
from cliptools.text.classes import ClassName, distinct_classes, load_classes, parse_class

EMOJI = "emoji"  # name of the painter of emoji scenes


@dataclass(frozen=True, kw_only=True)
class PictureOptions(Options):
    """Options of clip-advgen that concern the pictures and the model's judgement of them."""

    images: int
    painter: str | None
    upscaler: str | None
    size: int | None
    steps: int | None
    guidance: float | None
    dtype: Literal["fp32", "bf16", "fp16"] | None
    offload: Literal["none", "model", "sequential"]
    batch_size: int
    judge: str | None
    judge_preprocess: str | None
    judge_classes: str | None
    judge_top: int
    strict: bool
    seed: int
    device: str


class PictureRequest(NamedTuple):
    """A picture to paint or to read."""

    description: Description
    copy: int
    name: str
    """Its path within the folder of --out-dir."""
    seed: int


class Judge:
    """A second model, which sees a class in a picture if the class is among the few classes closest to the picture."""

    def __init__(self, spec: str, options: PictureOptions, tasks: Sequence[Task]) -> None:
        """
        Args:
            spec: MODEL[:PRETRAINED].
            tasks: Tasks whose classes the judge has to recognise.
        """
        name, _, pretrained = (spec, "", "") if spec.startswith((LOCAL_DIR, HUB)) else spec.partition(":")
        self.model = load_model(name, pretrained or None, options.device, preprocess=options.judge_preprocess, any_tower=True)
        self.top = options.judge_top
        self.further_classes = distinct_classes(
            load_classes(options.judge_classes or ("emoji" if name in EMBEDDED else "cifar10"))
        )
        task_classes = [parse_class(text) for task in tasks for text in (task.depict, task.predict)]
        names = list(dict.fromkeys(name for item in (*task_classes, *self.further_classes) for name in item.names))
        self.texts = dict(zip(names, encode_texts(self.model, names), strict=True))

    @property
    def settings(self) -> dict[str, Any]:
        """Fields of records that name the judge, with its architecture if name and weights do not determine it."""
        identity = recorded_model(self.model.identity)
        settings: dict[str, Any] = {"judge": self.model.name, "judge_sha256": self.model.sha256, "judge_top": self.top}
        return settings | {f"judge_{key}": identity[key] for key in ("architecture",) if key in identity}

    def sees(self, picture: Painting, depict: ClassName, predict: ClassName) -> tuple[bool, bool] | str:
        """Return whether the judge sees the depicted and the predicted class; the reason if the picture is not usable."""
        image = _embed(self.model, [picture])  # (1, d)
        if reasons := unusable(image):
            return reasons[0]
        task_names = {name.lower() for item in (depict, predict) for name in item.names}
        further = [item for item in self.further_classes if not task_names & {name.lower() for name in item.names}]
        classes = [depict, predict, *further]
        names = [name for item in classes for name in item.names]
        owner = torch.tensor([i for i, item in enumerate(classes) for _ in item.names], device=self.model.device)  # (name)
        of_class = owner[None] == torch.arange(len(classes), device=owner.device)[:, None]  # (class, name)
        closest = among_closest(image, torch.stack([self.texts[name] for name in names]), of_class, self.top)  # (1, class)
        return bool(closest[0, 0]), bool(closest[0, 1])


@dataclass
class Evaluation:
    """The parts that are loaded once: the model, its embeddings of the class names, the painter and the judge."""

    model: LoadedModel
    texts: dict[str, Tensor]
    """Unit embeddings [d] of the bare class names."""
    painter: Painter | None
    judge: Judge | None
    limit: Limit = field(default_factory=Limit)
    """Number of pictures per forward pass, once the device has run out of memory with more."""

    def evaluate(self, pictures: Sequence[Painting], requests: Sequence[PictureRequest]) -> list[dict[str, Any] | str]:
        """Return margin and check of every picture, as fields of its record; the reason for a picture that is not usable.

        Args:
            pictures: Pictures that all have an image.
        """
        embeddings = _embed(self.model, pictures, self.limit)  # (picture, d)
        reasons = unusable(embeddings)
        results: list[dict[str, Any] | str] = []
        for row, (picture, request) in enumerate(zip(pictures, requests, strict=True)):
            task = request.description.task
            if row in reasons:
                results.append(reasons[row])
                continue
            v = class_difference(self.texts[task.predict], self.texts[task.depict])  # (d)
            value = float(margin(embeddings[row : row + 1], v)[0])
            check = self._check(picture, task)
            results.append(check if isinstance(check, str) else {"margin": rounded(value), "fooled": value > 0} | check)
        return results

    def _check(self, picture: Painting, task: Task) -> dict[str, Any] | str:
        """Return the check by the judge, or by the contents of the scene; empty if there is neither.

        Returns:
            The judge's reason if the picture is not usable for it.
        """
        depict, predict = parse_class(task.depict), parse_class(task.predict)
        if self.judge is not None:
            judgement = self.judge.sees(picture, depict, predict)
            if isinstance(judgement, str):
                return f"by the judge {self.judge.model.name}, {judgement}"
            return {"check": {"by": self.judge.model.name, "depicted": judgement[0], "predicted": judgement[1]}}
        if picture.concepts is None:
            return {}
        shown_names = {name.lower() for name in picture.concepts}
        depicted, predicted = (any(name.lower() in shown_names for name in item.names) for item in (depict, predict))
        return {"check": {"by": "scene", "depicted": depicted, "predicted": predicted}}


def load_evaluation(descriptions: Sequence[Description], tasks: Sequence[Task], options: PictureOptions) -> Evaluation:
    """Load the model of the tasks and, where needed, the judge and the painter."""
    model = load_recorded_model(tasks[0].model | {"precision": "fp32"}, options.device, source="the list of words")
    names = list(dict.fromkeys(name for task in tasks for name in (task.depict, task.predict)))
    texts = dict(zip(names, encode_texts(model, names), strict=True))
    judge = Judge(options.judge, options, tasks) if options.judge else None
    painter = None if all(item.file for item in descriptions) else _load_painter(options)
    return Evaluation(model, texts, painter, judge)


def _load_painter(options: PictureOptions) -> Painter:
    """Return the emoji painter, or the diffusers pipeline of --painter."""
    if options.painter is None or options.painter == EMOJI:
        return EmojiPainter(options.size)
    return DiffusionPainter(
        options.painter,
        upscaler=options.upscaler,
        device=options.device,
        dtype=options.dtype,
        offload=options.offload,
        steps=options.steps,
        guidance=options.guidance,
        size=options.size,
    )


def picture_records(
    descriptions: Sequence[Description],
    options: PictureOptions,
    folder: PictureFolder | None,
    evaluation: Evaluation,
    screen: Screen[tuple[int, str]],
) -> Iterator[tuple[dict[str, Any], Task]]:
    """Yield the records of all pictures with their tasks, in order.

    Batches are the same whether or not an earlier run finished some of their pictures, so the numbers are the same as well.
    """
    requests = iter(
        list(_requests(descriptions, options.images, options.seed))
    )  # a list: duplicate paths are an error before painting
    numbers = itertools.count()
    while batch := list(itertools.islice(requests, options.batch_size)):
        drafts = [_draft(request, evaluation) for request in batch]
        records = [
            folder.finished(request.name, draft) if folder and not request.description.file else None
            for request, draft in zip(batch, drafts, strict=True)
        ]
        if not all(records):
            pictures = _pictures(batch, evaluation.painter, options.strict)
            with_image = [i for i, picture in enumerate(pictures) if picture.image is not None]
            results = evaluation.evaluate([pictures[i] for i in with_image], [batch[i] for i in with_image]) if with_image else []
            # pictures that an earlier run recorded count as usable, even if this run judges otherwise
            reasons = {
                row: result for row, result in enumerate(results) if isinstance(result, str) and not records[with_image[row]]
            }
            for row in screen.places([(next(numbers), _picture_name(batch[i])) for i in with_image], reasons):
                i, result = with_image[row], results[row]
                if records[i] is None and not isinstance(result, str):
                    records[i] = _finish(batch[i], drafts[i], result, pictures[i], folder)
        for request, record in zip(batch, records, strict=True):
            if record is not None:
                yield record, request.description.task


def _requests(descriptions: Sequence[Description], images: int, seed: int) -> Iterator[PictureRequest]:
    """Yield a request for each picture, with its path and its seed.

    Raises:
        UsageError: two pictures have the same path.
    """
    names: set[str] = set()
    pair_of: dict[str, str] = {}
    for item in descriptions:
        task = item.task
        folder = slug(task.pair)
        if pair_of.setdefault(folder, task.pair) != task.pair:  # C->D and C++->D
            folder = f"{folder}-{digest(task.pair)[:8]}"
        for copy in range(1 if item.file else images):
            name = f"{folder}/{slug(task.kind)}-{task.seed}/{item.number:03d}-{copy:03d}.png"
            if name in names and not item.file:
                raise UsageError(f"{task.title}: duplicate description {item.number}; give each pair, kind and seed once")
            names.add(name)
            yield PictureRequest(item, copy, name, seed_of(task.pair, item.text, seed, copy))


def _draft(request: PictureRequest, evaluation: Evaluation) -> dict[str, Any]:
    """Return the fields of a record that are known before its picture exists."""
    item = request.description
    fields: dict[str, Any] = {
        "caption": item.number, "copy": request.copy, "description": item.text or None, "words": list(item.words),
    }  # fmt: skip
    settings = dict(item.settings)
    if not item.file and evaluation.painter is not None:
        if (understood := evaluation.painter.depiction(item.text, item.words)) is not None:
            fields |= {"words": list(understood.words), "drawn": list(understood.drawn)}
        fields["image_seed"] = request.seed
        settings |= evaluation.painter.settings
    if evaluation.judge is not None:
        settings |= evaluation.judge.settings
    return item.task.fields | fields | {"settings": settings} | item.task.source


def _finish(
    request: PictureRequest, draft: dict[str, Any], result: dict[str, Any], picture: Painting, folder: PictureFolder | None
) -> dict[str, Any]:
    """Return the complete record of a picture; if there is a folder, save record and picture."""
    tail = {key: draft[key] for key in ("settings", "model", "bundle")}
    head = {key: value for key, value in draft.items() if key not in tail}
    file = request.description.file
    if file or folder is None or picture.image is None:
        return head | {"file": file} | result | tail
    folder.add(request.name, picture.image, head | {"file": request.name} | result | tail)
    return head | {"file": folder.path(request.name)} | result | tail


def _pictures(batch: Sequence[PictureRequest], painter: Painter | None, strict: bool) -> list[Painting]:
    """Return the pictures of a batch, painted or read from their files; warn of those that cannot be painted or read.

    Raises:
        ImageError: strict, and a picture cannot be painted or read.
    """
    to_paint = [request for request in batch if not request.description.file]
    painted: Iterator[Painting] = iter(())
    if painter and to_paint:
        painted = iter(painter.paint([request.description.text for request in to_paint], [request.seed for request in to_paint]))
    pictures = []
    for request in batch:
        file = request.description.file
        try:
            picture = Painting(decode(file)) if file else next(painted)
        except ImageError as error:
            picture = Painting(None, refusal=str(error))
        if picture.image is None and strict:
            raise ImageError(f"{_picture_name(request)}: {picture.refusal}")
        if picture.image is None and request.copy == 0:
            warn(f"{_picture_name(request)}: skipped, {picture.refusal}")
        pictures.append(picture)
    return pictures


def _picture_name(request: PictureRequest) -> str:
    """Return the name of a picture in messages: its file, or its description in quotes."""
    return request.description.file or f"{request.description.text!r}"


def _embed(model: LoadedModel, pictures: Sequence[Painting], limit: Limit | None = None) -> Float[Tensor, "picture d"]:
    """Return the embeddings M(I) in float32, not normalised."""
    images = [picture.image for picture in pictures if picture.image is not None]
    pixels = torch.stack([model.transform(image) for image in images])  # (picture, 3, y, x)
    clip: Any = model.clip
    with torch.inference_mode():
        batches = [(range(len(pixels)), pixels)]
        parts = in_halves(batches, lambda _, part: clip.visual(part.to(model.device)).float(), "pictures", limit)
        return torch.cat([embeddings for _, embeddings in parts])  # (picture, d)
