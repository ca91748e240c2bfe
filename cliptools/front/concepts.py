"""Words for images, from the neurons that are active on them, or from CLIP's own ranking of texts.

The equations of the scores and of recall are in analysis/concepts.py; front/image_words.py applies them to batches.
"""

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from rich.table import Table
from rich.text import Text
from torch import Tensor

from cliptools.analysis.concepts import Neurons, Score, recall
from cliptools.analysis.selection import by_layers
from cliptools.arguments import checked, chosen_layers, require_number, require_one_of
from cliptools.console import count_of, front_call, summarise, warn
from cliptools.console import progress as shown
from cliptools.devices import in_halves
from cliptools.errors import StreamError, UsageError
from cliptools.front.bundles import require_neurons
from cliptools.front.image_words import Record, Scoring, describer
from cliptools.front.images import Images, Reading, open_any, read_batches
from cliptools.front.models import loaded_model_of
from cliptools.front.tables import Records
from cliptools.front.unit_records import record_source
from cliptools.front.vocabulary import Vocabulary, vocabulary
from cliptools.images.annotations import Annotations, matching_names, read_annotations
from cliptools.images.loader import ImageSource, Skipped, choose
from cliptools.images.relocate import recorded_source
from cliptools.io.bundle import Bundle
from cliptools.io.jsonl import rounded
from cliptools.models.load import LoadedModel
from cliptools.models.unusable import Screen
from cliptools.text.vocabularies import Pool

TOOL = "clip-concepts"
EFFECTS = ("second", "pooled")
NEEDED_TENSORS = ("word", "coefficient", "words", "mean", "threshold")
WIDTHS = {"image": 24, "active": 6, "found": 6}  # columns of the table
Truth = str | os.PathLike[str] | Mapping[str, Sequence[str]] | None
"""A file, or names of objects by the names of images without their endings."""


@dataclass(frozen=True, kw_only=True)
class ConceptsRequest:
    """Arguments of `concepts`, which describes them."""

    texts: Vocabulary = None
    words: int = 10
    by: str = "words"
    score: Score = "norm"
    neurons: Neurons = "active"
    layers: Sequence[int] | None = None
    layers_text: str | None = None
    """The layers as records name them."""
    truth: Truth = None
    evaluate: bool = False
    limit: int | None = None
    sample: int | None = None
    seed: int = 0
    model: LoadedModel | None = None
    device: str = "auto"
    cache: bool = True
    reading: Reading = field(default_factory=Reading)

    def check(self) -> None:
        """Reject invalid arguments and invalid combinations of them before any input is read.

        Raises:
            UsageError: an argument is invalid, or arguments contradict each other.
        """
        require_one_of("by", self.by, ("words", "directions", "text"))
        require_one_of("score", self.score, ("norm", "signed"))
        require_one_of("neurons", self.neurons, ("active", "all", "random"))
        numbers = {"words": self.words, "limit": self.limit, "sample": self.sample, "batch_size": self.reading.batch_size}
        for name, number in numbers.items():
            require_number(name, number, 1)
        require_number("seed", self.seed, 0)
        require_number("workers", self.reading.workers, 0)
        if self.evaluate and self.truth is None:
            raise UsageError("--evaluate needs --truth FILE")
        if self.by == "text" and (self.score != "norm" or self.neurons != "active" or self.layers is not None):
            raise UsageError("--by text uses no neurons: leave out --score, --neurons and --layers")
        if self.by == "words" and self.texts is not None:
            raise UsageError("texts: by='words' takes the neurons' own texts; leave texts out, or give by='directions' or 'text'")


@dataclass(frozen=True, kw_only=True)
class Task:
    """Units and images, from which records are made."""

    request: ConceptsRequest
    neurons: Bundle
    """The bundle with the selected units alone."""
    source: Record
    """Fields of every record that name the model and the whole bundle."""
    images: ImageSource
    indices: list[int]
    """Positions of the images to describe, in order."""
    truth: Annotations | None
    pool: Pool | None
    """The vocabulary of `texts`."""

    @property
    def names(self) -> list[str]:
        """Return the names of the images to describe."""
        return [self.images.names[index] for index in self.indices]

    @property
    def common(self) -> Record:
        """Return the fields that all records share: the settings on which their numbers depend, the model and the bundle."""
        request, header = self.request, self.neurons.header.settings
        pool = header.get("words", {}).get("pool") if self.pool is None else self.pool.name
        settings: Record = {"by": request.by, "words": request.words, "pool": pool}
        if request.by != "text":
            settings |= {"score": request.score, "neurons": request.neurons, "layers": request.layers_text}
            settings |= {"m": self.neurons["word"].shape[1], "quantile": header.get("quantile"), "scale": header.get("scale")}
            settings |= {"seed": request.seed} if request.neurons == "random" else {}
        return {"settings": settings} | self.source


@checked
def concepts(
    bundle: Bundle,
    images: Images | None = None,
    texts: Vocabulary = None,
    *,
    words: int = 10,
    by: str = "words",
    score: Score = "norm",
    neurons: Neurons = "active",
    layers: Sequence[int] | None = None,
    truth: Truth = None,
    evaluate: bool = False,
    limit: int | None = None,
    sample: int | None = None,
    seed: int = 0,
    model: LoadedModel | None = None,
    device: str = "auto",
    cache: bool = True,
    batch_size: int = 32,
    workers: int | None = None,
    strict: bool = False,
    progress: bool = False,
) -> Records:
    """Describe images by the words of the neurons that are active on them (paper 1, App. A.5), as clip-concepts does.

    Args:
        bundle: Units with words, of second-order or pooled effects.
        images: Images of any kind that `effects` takes. None: the scenes that were rendered for the bundle.
        texts: Vocabulary for `by` directions or text, of any kind that `decompose` takes. None: that of the bundle's words.
        words: Largest number of words per image.
        by: words (the neurons' own texts), directions (the same sum of the neurons' directions, compared with the vocabulary)
            or text (the cosine of the image with the vocabulary, without neurons).
        score: Weight of a neuron's words: norm, ‖φ − b‖, or signed, ⟨φ − b, r⟩.
        neurons: active (those with ‖φ − b‖ above the bundle's threshold), all, or random (as many as are active).
        layers: Layers of the neurons. None: all.
        truth: File with a `key` and `names` on each line, as clip-scenes writes it; or names of objects by the names of
            images without their endings. Records then list the names and which of them were found.
        evaluate: With `truth`, return a single record: the recall over all images with its interval.
        limit: Number of images, the first ones.
        sample: Number of images, drawn at random.
        seed: Random seed for `sample` and for random neurons.
        model: The bundle's model, if it is loaded already.
        device: auto, cpu, cuda, cuda:1 or mps.
        cache: Read text embeddings from the cache, and write them to it.
        batch_size: Images per forward pass.
        workers: Threads that decode images. None: the number of cores, at most 8.
        strict: Raise an error for an unreadable or unusable image instead of a warning.
        progress: Write progress and messages to standard error; else messages go to the logger `cliptools`.

    Returns:
        A record for each image: image, concepts (word, score), active (number of neurons), and the neurons of largest weight.

    Raises:
        UsageError: an argument is invalid, or arguments contradict each other.
        StreamError: the bundle has no words, no units, or other effects; or `truth` lacks an image.
        ModelError: the model is not available, or not the bundle's.
        TextError: `texts` is unknown, unreadable or empty.
        CliptoolsError: no image can be read.
    """
    request = ConceptsRequest(
        texts=texts, words=words, by=by, score=score, neurons=neurons, layers=chosen_layers(layers), truth=truth,
        evaluate=evaluate, limit=limit,
        layers_text=None if layers is None else ",".join(map(str, layers)), sample=sample, seed=seed, model=model, device=device,
        cache=cache, reading=Reading(batch_size=batch_size, workers=workers, strict=strict),
    )  # fmt: skip
    request.check()
    with front_call(progress):
        task = prepare(require_neurons(bundle, *NEEDED_TENSORS, device=device), images, request)
        records, common = describe_images(task), task.common
        records = iter([recall_record(records)]) if evaluate else records
        return Records((record | common for record in records), lambda rows: _row_tables(rows, common))


def prepare(bundle: Bundle, images: Images | None, request: ConceptsRequest) -> Task:
    """Select the units, and open the images and their ground truth.

    Raises:
        StreamError: the bundle has other effects or no units, or the ground truth lacks an image.
        UsageError: the bundle lacks a layer, or `images` or `truth` is invalid.
    """
    effect = bundle.header.settings.get("effect")
    if effect not in EFFECTS:
        raise StreamError(f"a bundle of {effect} effects; {TOOL} needs second-order effects of neurons, or pooled effects")
    neurons = bundle if request.layers is None else bundle.select(by_layers(bundle, request.layers))
    if not neurons.units:
        raise StreamError("a bundle without units: no unit can be active")
    source = recorded_source(bundle, ()) if images is None else open_any(images)
    indices = choose(source, request.limit, request.sample, request.seed)
    truth = _annotations(request.truth)
    if truth is not None:
        for index in indices:
            truth.of(source.names[index])
    return Task(
        request=request, neurons=neurons, source=record_source(bundle), images=source, indices=indices, truth=truth,
        pool=None if request.texts is None else vocabulary(request.texts),
    )  # fmt: skip


def _annotations(truth: Truth) -> Annotations | None:
    """Return the ground truth.

    Raises:
        UsageError: the names of an image are not a list.
        StreamError: the file cannot be read, or is of another kind.
    """
    if truth is None:
        return None
    if isinstance(truth, str | os.PathLike):
        return read_annotations(Path(truth))
    if (key := next((key for key, names in truth.items() if isinstance(names, str)), None)) is not None:
        raise UsageError(f"truth: {key!r} has the text {truth[key]!r}, expected a list of names")
    return Annotations({key: tuple(dict.fromkeys(names)) for key, names in truth.items()}, "truth")


def describe_images(task: Task, place: int = 0, count: int = 0) -> Iterator[Record]:
    """Yield a record of each image, in the order of the list, without the fields of `Task.common`.

    Args:
        place: Place in the list of the first image to describe.
        count: Number of images before this place that an earlier run has described.

    Raises:
        CliptoolsError: no image can be read, or none is usable.
    """
    source, request, earlier, acting = task.images, task.request, count, False
    model = loaded_model_of(task.neurons, task.request.model, task.request.device)
    describe = describer(task.neurons, model, _scoring(task))
    skipped, indices = Skipped(), task.indices[place:]
    screen = Screen[int](source.names.__getitem__, skipped.add, request.reading.strict, passed=earlier > 0)
    batches = read_batches(source, indices, model, request.reading, skipped)

    def describe_batch(numbers: Sequence[int], pictures: Tensor) -> list[tuple[str, Record | str]]:
        names = [source.names[number] for number in numbers]
        return list(zip(names, describe(names, pictures), strict=True))

    counted_batches = shown(batches, "images", len(indices), lambda batch: len(batch[0]))
    for numbers, results in in_halves(counted_batches, describe_batch):
        usable = screen.places(numbers, {row: result for row, (_, result) in enumerate(results) if isinstance(result, str)})
        for name, record in (results[row] for row in usable):
            assert isinstance(record, dict)  # images with reasons are not usable
            acting |= record.get("active") != 0
            yield {"image": name} | record | _truth_fields(task.truth, name, record)
        count += len(usable)
    screen.require(count)
    if count > earlier and not acting and request.neurons != "all":
        warn("no neuron is above its threshold on these images, as with bundles of few images: --neurons all counts all neurons")
    earlier_text = f", {earlier} of them by an earlier run" if earlier else ""
    summarise(f"{TOOL}: {count_of(count, 'image')}{earlier_text}" + (f", {len(skipped)} skipped" if len(skipped) else ""))


def _scoring(task: Task) -> Scoring:
    """Return how the words are chosen."""
    request = task.request
    return Scoring(
        by=request.by, score=request.score, neurons=request.neurons, words=request.words, seed=request.seed, pool=task.pool,
        cache=request.cache,
    )  # fmt: skip


def _truth_fields(truth: Annotations | None, name: str, record: Record) -> Record:
    """Return the names of the objects in an image, and those that are among its words; nothing without ground truth."""
    if truth is None:
        return {}
    names = truth.of(name)
    return {"truth": list(names), "found": matching_names(names, [concept["word"] for concept in record["concepts"]])}


def recall_record(records: Iterable[Record]) -> Record:
    """Return the recall of the objects shown, over all images."""
    counts = [(len(record["found"]), len(record["truth"]), record.get("active")) for record in records]
    share = recall([hits for hits, _, _ in counts], [names for _, names, _ in counts])
    record_total: Record = {"images": len(counts), "names": share.names, "found": share.hits}
    record_total |= {"recall": rounded(share.value), "low": rounded(share.low), "high": rounded(share.high)}
    active = [count for _, _, count in counts if count is not None]
    return record_total | ({"active": rounded(sum(active) / len(active))} if active else {})


def row_table(record: Record, titles: bool) -> Table:
    """Return a table with a row for an image, or for the recall over all images; its fixed widths make it independent of others.

    Args:
        record: Record without the fields of `Task.common`.
        titles: Show the titles of the columns.
    """
    table = Table(box=None, pad_edge=False, header_style="bold", show_header=titles)
    if "image" in record:
        words = "  ".join(f"{concept['word']} {concept['score']:.3g}" for concept in record["concepts"])
        cells = {"image": record["image"], "active": str(record.get("active", "–")), "concepts": words}
        cells |= {"found": f"{len(record['found'])} of {len(record['truth'])}"} if "truth" in record else {}
    else:
        cells = {key: str(value) for key, value in record.items()}
    for title in cells:
        table.add_column(title, width=WIDTHS.get(title), overflow="fold", ratio=1 if title == "concepts" else None)
    table.add_row(*map(Text, cells.values()))
    return table


def _row_tables(records: Sequence[Record], common: Record) -> list[Table]:
    """Return the tables of all records, without the fields that they share."""
    rows = [{key: value for key, value in record.items() if key not in common} for record in records]
    return [row_table(row, titles=number == 0) for number, row in enumerate(rows)]
