"""clip-concepts: records that describe images by the words of the neurons active on them, or by CLIP's own ranking of texts.

The equations of the scores are in analysis/concepts.py.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from io import BufferedIOBase
from pathlib import Path
from typing import Any, NamedTuple, SupportsFloat

import torch
from jaxtyping import Float
from rich.table import Table
from rich.text import Text
from torch import Tensor

from cliptools.analysis.concepts import (
    Neurons,
    Score,
    active_units,
    counted_units,
    direction_scores,
    largest,
    recall,
    sparse_gamma,
    text_scores,
    unit_weights,
    word_scores,
)
from cliptools.analysis.pursuit import text_space
from cliptools.analysis.selection import by_layers
from cliptools.cli.app import Batching, Output, Sampling, choose_format, parse_layers
from cliptools.cli.run.bundle_output import read_neurons
from cliptools.console import count_of, progress, summarise
from cliptools.devices import in_halves
from cliptools.errors import CliptoolsError, ImageError, StreamError, UsageError
from cliptools.front.tables import rendered
from cliptools.front.unit_records import record_source, signed_words, unit_keys
from cliptools.images.annotations import Annotations, matching_names, read_annotations
from cliptools.images.loader import ImageSource, Skipped, choose, load_batches, open_images
from cliptools.io.bundle import Bundle
from cliptools.io.cache import KeptLines, check_same, kept_lines
from cliptools.io.files import replaceable, text_output
from cliptools.io.jsonl import rounded, write_record
from cliptools.models.load import LoadedModel, load_recorded_model
from cliptools.models.text_encoder import encode_named, template_options
from cliptools.models.unusable import Screen, unusable
from cliptools.text.vocabularies import recorded_pool
from cliptools.unit_effects.factored import FactoredEffect, UnitActivity
from cliptools.unit_effects.select import factored_effect

TOOL = "clip-concepts"
EFFECTS = ("second", "pooled")
NEEDED_TENSORS = ("word", "coefficient", "words", "mean", "threshold")
WIDTHS = {"image": 24, "active": 6, "found": 6}  # columns of the table
SHOWN_NEURONS = 5  # in a record: the neurons of largest weight
SHOWN_WORDS = 3  # of each of these neurons
Record = dict[str, Any]
Describe = Callable[[Sequence[str], Tensor], Iterator[Record | str]]
"""Function from names and pixels [b, 3, y, x] of images to a record of each image, or the reason why it is not usable."""
ScoreTexts = Callable[[Tensor], Tensor]
"""Function from weights of neurons [b, u] to scores of texts [b, text]."""


@dataclass(frozen=True, kw_only=True)
class ConceptsOptions(Sampling, Batching, Output):
    """All parameters of clip-concepts."""

    paths: tuple[str, ...]
    bundle: Path | None
    words: int
    by: str
    score: Score
    neurons: Neurons
    layers: str | None
    truth: Path | None
    evaluate: bool
    resume: bool
    no_cache: bool
    device: str


class ChosenImages(NamedTuple):
    """Images to describe: a source, and indices into it."""

    source: ImageSource
    indices: list[int]


class EarlierRun(NamedTuple):
    """Work of an earlier run, in whole batches, so that the numbers do not depend on the image at which the run ended."""

    place: int = 0
    """Place in the list of the first image that is not described yet."""
    images: int = 0
    """Number of images before this place that could be read."""


def run(options: ConceptsOptions) -> None:
    """Describe the images and write a record of each, or the recall over all images.

    Raises:
        UsageError: options that contradict each other.
        StreamError: a bundle of other effects, or without units.
    """
    output_format = choose_format(options.output_format, options.output, "jsonl")
    plain = options.output is not None and str(options.output) != "-" and replaceable(options.output)
    resumable = options.output if plain and output_format == "jsonl" and not options.evaluate else None
    _check_usage(options, resumable)
    neurons = read_neurons(options.bundle, *NEEDED_TENSORS, option="--bundle FILE", device=options.device)
    effect = neurons.header.settings.get("effect")
    if effect not in EFFECTS:
        raise StreamError(
            f"a bundle of {effect} effects; {TOOL} needs second-order effects of neurons, or a ResNet's pooled effects"
        )
    source = record_source(neurons)
    if options.layers:
        neurons = neurons.select(by_layers(neurons, parse_layers(options.layers)))
    if not neurons.units:
        raise StreamError("a bundle without units: no unit can be active")
    images, truth = _open_images(options)
    common = {"settings": _settings(neurons, options)} | source
    if resumable is None:
        _write(_records(neurons, images, truth, options, EarlierRun()), common, output_format, options)
        return
    with kept_lines(resumable, options.resume) as part_file:
        earlier = _read_earlier(part_file, images, truth, common, options)
        for record in _records(neurons, images, truth, options, earlier):
            write_record(part_file.stream, record | common)


def _check_usage(options: ConceptsOptions, resumable: Path | None) -> None:
    """Reject invalid combinations of options before any input is read.

    Args:
        resumable: The output file, if an earlier run of it can be resumed.
    """
    if "-" in options.paths and (options.bundle is None or str(options.bundle) == "-"):
        raise UsageError("- reads images from standard input, so the bundle needs a file: --bundle FILE")
    if options.evaluate and not options.truth:
        raise UsageError("--evaluate needs --truth FILE")
    if options.by == "text" and (options.score != "norm" or options.neurons != "active" or options.layers):
        raise UsageError("--by text uses no neurons: leave out --score, --neurons and --layers")
    if options.resume and resumable is None:
        raise UsageError("--resume needs -o FILE with JSON lines, without --evaluate or -f table")


def _open_images(options: ConceptsOptions) -> tuple[ChosenImages, Annotations | None]:
    """Return the images and, with --truth, their ground truth.

    Raises:
        StreamError: the ground truth lacks an image; this is checked before any other work.
    """
    source = open_images(options.paths)
    indices = choose(source, options.limit, options.sample, options.seed)
    truth = read_annotations(options.truth) if options.truth else None
    if truth is not None:
        for index in indices:
            truth.of(source.names[index])
    return ChosenImages(source, indices), truth


def _settings(neurons: Bundle, options: ConceptsOptions) -> Record:
    """Return the settings on which a record's numbers depend, in addition to model and bundle."""
    header = neurons.header.settings
    settings: Record = {"by": options.by, "words": options.words, "pool": header.get("words", {}).get("pool")}
    if options.by == "text":
        return settings
    settings |= {"score": options.score, "neurons": options.neurons, "layers": options.layers}
    settings |= {"m": neurons["word"].shape[1], "quantile": header.get("quantile"), "scale": header.get("scale")}
    return settings | ({"seed": options.seed} if options.neurons == "random" else {})


def _read_earlier(
    part_file: KeptLines, images: ChosenImages, truth: Annotations | None, common: Record, options: ConceptsOptions
) -> EarlierRun:
    """Return the work of an earlier run, and drop its records after the last whole batch.

    Raises:
        CliptoolsError: the records are of other images or options.
        ImageError: with --strict, an image that the earlier run skipped.
    """
    names, earlier = [images.source.names[index] for index in images.indices], EarlierRun()
    next_place, lines = 0, 0  # place in the list after the last record; number of records
    for record in part_file.earlier():
        name = str(record.get("image"))
        if name not in names[next_place : next_place + 1]:
            skipped_place = next_place
            try:
                next_place = names.index(name, next_place)
            except ValueError:
                raise CliptoolsError(
                    f"{part_file.part}: has a record of {name!r}, which is not one of the images that follow; "
                    "use the same images or another output file"
                ) from None
            if options.strict:
                raise ImageError(f"{names[skipped_place]}: skipped by the earlier run")
        expected = common if truth is None else common | {"truth": list(truth.of(names[next_place]))}
        for key in expected | {"truth": None}:
            check_same(part_file.part, key, record.get(key), expected.get(key))
        start = next_place - next_place % options.batch_size
        if start > earlier.place:
            earlier = EarlierRun(start, lines)
        next_place, lines = next_place + 1, lines + 1
    if next_place % options.batch_size == 0 or next_place == len(names):
        earlier = EarlierRun(next_place, lines)
    part_file.keep(earlier.images)
    return earlier


def _records(
    neurons: Bundle, images: ChosenImages, truth: Annotations | None, options: ConceptsOptions, earlier: EarlierRun
) -> Iterator[Record]:
    """Yield a record of each image, in the order of the list.

    Raises:
        CliptoolsError: no image can be read, or none is usable.
    """
    source, indices = images.source, images.indices[earlier.place :]
    model = load_recorded_model(neurons.header.model, options.device)
    describe = (_text_describer if options.by == "text" else _neuron_describer)(neurons, model, options)
    skipped, count = Skipped(), earlier.images
    screen = Screen[int](source.names.__getitem__, skipped.add, options.strict, passed=count > 0)
    batches = load_batches(
        source, indices, model.transform,
        batch_size=options.batch_size, workers=options.workers, strict=options.strict, skipped=skipped,
    )  # fmt: skip

    def describe_batch(numbers: Sequence[int], pictures: Tensor) -> list[tuple[str, Record | str]]:
        names = [source.names[number] for number in numbers]
        return list(zip(names, describe(names, pictures), strict=True))

    counted_batches = progress(batches, "images", len(indices), lambda batch: len(batch[0]))
    for numbers, results in in_halves(counted_batches, describe_batch):
        usable = screen.places(numbers, {place: result for place, (_, result) in enumerate(results) if isinstance(result, str)})
        for name, record in (results[place] for place in usable):
            assert isinstance(record, dict)  # images with reasons are not usable
            if truth is not None:
                words = [concept["word"] for concept in record["concepts"]]
                record |= {"truth": list(truth.of(name)), "found": matching_names(truth.of(name), words)}
            yield {"image": name} | record
        count += len(usable)
    screen.require(count)
    earlier_text = f", {earlier.images} of them by an earlier run" if earlier.images else ""
    summarise(f"{TOOL}: {count_of(count, 'image')}{earlier_text}" + (f", {len(skipped)} skipped" if len(skipped) else ""))


def _text_describer(neurons: Bundle, model: LoadedModel, options: ConceptsOptions) -> Describe:
    """Return a function that describes images by CLIP's own ranking of the vocabulary."""
    texts, t = _vocabulary(neurons, model, options)
    clip: Any = model.clip
    dtype = next(clip.parameters()).dtype

    @torch.inference_mode()
    def describe(names: Sequence[str], pictures: Tensor) -> Iterator[Record | str]:
        embedding: Tensor = clip.encode_image(pictures.to(model.device, dtype))  # (b, d)
        reasons = unusable(embedding)
        ranked = largest(text_scores(embedding, t), options.words)
        for row, (column, value) in enumerate(zip(ranked.column.tolist(), ranked.value.tolist(), strict=True)):
            if row in reasons:
                yield reasons[row]
                continue
            yield {"concepts": [{"word": texts[j], "score": rounded(v)} for j, v in zip(column, value, strict=True)]}

    return describe


def _neuron_describer(neurons: Bundle, model: LoadedModel, options: ConceptsOptions) -> Describe:
    """Return a function that describes images by the words or the directions of the neurons active on them."""
    own_texts = neurons.text_list("words")["texts"]
    texts, score_texts = _score_texts(neurons, model, options)
    unit, b, r = (torch.from_numpy(neurons[name]) for name in ("unit", "mean", "direction"))
    tau = torch.from_numpy(neurons["threshold"])
    measure = UnitActivity(_effect_of(neurons, model), unit, b, r, neurons.header.scaled)

    def describe(names: Sequence[str], pictures: Tensor) -> Iterator[Record | str]:
        activity = measure(pictures)
        reasons = unusable(activity.embedding, activity.norm, activity.along)
        active = active_units(activity, tau)  # (b, u)
        weight = unit_weights(activity, counted_units(active, options.neurons, names, options.seed), options.score)  # (b, u)
        words, strongest = largest(score_texts(weight), options.words), largest(weight, SHOWN_NEURONS)
        for row in range(len(names)):
            if row in reasons:
                yield reasons[row]
                continue
            scores = zip(words.column[row].tolist(), words.value[row].tolist(), strict=True)
            weights = zip(strongest.column[row].tolist(), strongest.value[row].tolist(), strict=True)
            yield {
                "concepts": [{"word": texts[j], "score": rounded(v)} for j, v in scores if v > 0],
                "active": int(active[row].sum()),
                "neurons": [
                    _neuron(neurons, own_texts, n, activity.norm[row, n], activity.along[row, n]) for n, v in weights if v > 0
                ],
            }

    return describe


def _score_texts(neurons: Bundle, model: LoadedModel, options: ConceptsOptions) -> tuple[Sequence[str], ScoreTexts]:
    """Return the texts that can describe images, and the function that scores them."""
    if options.by == "words":
        texts = neurons.text_list("words")["texts"]
        word, coefficient = torch.from_numpy(neurons["word"]), torch.from_numpy(neurons["coefficient"])
        return texts, partial(word_scores, gamma=sparse_gamma(word, coefficient, len(texts)))
    texts, t = _vocabulary(neurons, model, options)
    words = neurons.header.settings.get("words", {})
    atoms = text_space(t, words.get("center", "pool"), words.get("normalize", "texts"))  # (text, d)
    return texts, partial(direction_scores, r=torch.from_numpy(neurons["direction"]), atoms=atoms)


def _effect_of(neurons: Bundle, model: LoadedModel) -> FactoredEffect:
    """Return the effect that the bundle was measured with.

    Raises:
        StreamError: the bundle's vectors are not as wide as the model's outputs.
    """
    settings = neurons.header.settings
    visual: Any = model.clip.visual
    widths = {neurons["mean"].shape[1], neurons["direction"].shape[1]}
    if widths != {visual.output_dim}:
        raise StreamError(f"directions and means have width {sorted(widths)}, the model's outputs have width {visual.output_dim}")
    return factored_effect(model.clip, settings["effect"], settings.get("units", "neurons"))


def _vocabulary(neurons: Bundle, model: LoadedModel, options: ConceptsOptions) -> tuple[Sequence[str], Float[Tensor, "text d"]]:
    """Return the vocabulary of the bundle's words, and its unit embeddings with the same templates."""
    pool = recorded_pool(neurons)
    templates = template_options(neurons.header.settings.get("words", {}).get("templates", ()))
    return pool.texts, encode_named(model, pool, templates, use_cache=not options.no_cache)


def _neuron(neurons: Bundle, texts: Sequence[str], row: int, norm: SupportsFloat, along: SupportsFloat) -> Record:
    """Return the fields of a unit for the record of an image.

    Args:
        texts: The texts of the bundle's words.
    """
    words = [{"word": texts[j], "coefficient": rounded(c)} for j, c in signed_words(neurons, row)[:SHOWN_WORDS]]
    return unit_keys(*neurons["unit"][row].tolist()) | {"norm": rounded(norm), "projection": rounded(along), "words": words}


def _write(records: Iterator[Record], common: Record, output_format: str, options: ConceptsOptions) -> None:
    """Write records as they come, or with --evaluate the recall over all, as JSON lines or rows of a table."""
    with text_output(options.output) as stream:
        if options.evaluate:
            records = iter([_recall(records)])
        for number, record in enumerate(records):
            if output_format == "jsonl":
                write_record(stream, record | common)
            else:
                _write_row(stream, record, titles=number == 0)


def _recall(records: Iterable[Record]) -> Record:
    """Return the recall of the objects shown, over all images."""
    counts = [(len(record["found"]), len(record["truth"]), record.get("active")) for record in records]
    share = recall([hits for hits, _, _ in counts], [names for _, names, _ in counts])
    record_total: Record = {"images": len(counts), "names": share.names, "found": share.hits}
    record_total |= {"recall": rounded(share.value), "low": rounded(share.low), "high": rounded(share.high)}
    active = [count for _, _, count in counts if count is not None]
    return record_total | ({"active": rounded(sum(active) / len(active))} if active else {})


def _write_row(stream: BufferedIOBase, record: Record, titles: bool) -> None:
    """Write an image, or the recall over all images, as a row of a table. Fixed widths make it independent of later rows."""
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
    stream.write(rendered(table))
    stream.flush()
