"""Judgement of the words of units on images that did not make them.

Equations and choices are in analysis/word_judge.py, the presence of texts in analysis/presence.py, and the measures in
analysis/word_metrics.py.
"""

from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np
from jaxtyping import Float64

from cliptools.analysis.held_out import held_out
from cliptools.analysis.presence import Presence, Similarity
from cliptools.analysis.word_judge import Setting, Written, judge_words
from cliptools.analysis.word_metrics import cosy_scores
from cliptools.arguments import checked, require_number
from cliptools.console import count_of, front_call, summarise
from cliptools.errors import StreamError, UsageError
from cliptools.front.bundles import require_neurons
from cliptools.front.images import Images, Reading
from cliptools.front.judge_images import (
    JudgedImages,
    Measured,
    Truth,
    measure,
    measure_pictures,
    open_judged,
    own_presence,
    true_presence,
)
from cliptools.front.judge_null import null_bundle
from cliptools.front.judge_records import (
    Judged,
    JudgedUnits,
    judged_bundle,
    judged_records,
    judged_table,
    shown_number,
    summary_of,
)
from cliptools.front.models import loaded_model_of
from cliptools.front.vocabulary import Vocabulary, vocabulary
from cliptools.images.loader import Skipped
from cliptools.io.bundle import Bundle
from cliptools.io.header import digest
from cliptools.models.load import LoadedModel, load_model
from cliptools.models.other_weights import with_random_weights
from cliptools.models.templates import template_options
from cliptools.models.text_encoder import encode_named
from cliptools.text.vocabularies import Pool, recorded_pool

TOOL = "clip-judge"
NEEDED_TENSORS = ("word", "coefficient", "words", "mean", "top_norm", "images")
EFFECTS = ("second", "first", "pooled")
NULL_FIELDS = ("units", "words", "simulation", "agreement", "with_word", "own_agreement", "rank_correlation")
SEEN = 8  # words of a unit
OWN, TRUTH = "own", "truth"


@dataclass(frozen=True, kw_only=True)
class JudgeRequest:
    """Arguments of `judge`, which describes them."""

    texts: Vocabulary = None
    judge: str | LoadedModel | None = None
    judge_pretrained: str | None = None
    truth: Truth = None
    classes: str | None = None
    share: float = 0.02
    false_discovery: float = 0.05
    pictures: str | None = None
    null: bool = False
    same_names: bool = False
    limit: int | None = None
    sample: int | None = None
    seed: int = 1
    model: LoadedModel | None = None
    device: str = "auto"
    cache: bool = True
    reading: Reading = field(default_factory=Reading)
    step: str = "cliptools.judge"
    """Name of the step in the bundle's history."""

    def check(self) -> None:
        """Reject invalid arguments and combinations before any input is read.

        Raises:
            UsageError: an argument is invalid, or arguments contradict each other.
        """
        if self.judge is not None and self.truth is not None:
            raise UsageError("--judge and --truth both say what images show: give one of them")
        if self.judge_pretrained is not None and not isinstance(self.judge, str):
            raise UsageError("--judge-pretrained names the weights of --judge MODEL, which is missing")
        if self.classes is not None and self.truth is None:
            raise UsageError("--classes gives names to the labels of --truth, which is missing")
        for name, number in {"limit": self.limit, "sample": self.sample}.items():
            require_number(name, number, 1)
        require_number("seed", self.seed, 0)
        for name, share in {"share": self.share, "false_discovery": self.false_discovery}.items():
            require_number(name, share, 0, 1, inside=True)


@dataclass(frozen=True, kw_only=True)
class Task:
    """What units are judged by."""

    request: JudgeRequest
    pool: Pool
    """The vocabulary, with all texts of the bundle's words."""
    images: JudgedImages
    judge: LoadedModel | None
    """Another model whose similarities say what images show."""

    @property
    def by(self) -> str:
        """Return the name of the judge, as bundles record it."""
        if self.images.truth is not None:
            return TRUTH
        return OWN if self.judge is None else self.judge.sha256


@checked
def judge(
    bundle: Bundle,
    images: Images | None = None,
    texts: Vocabulary = None,
    *,
    judge: str | LoadedModel | None = None,
    judge_pretrained: str | None = None,
    truth: Truth = None,
    classes: str | None = None,
    share: float = 0.02,
    false_discovery: float = 0.05,
    pictures: str | None = None,
    null: bool = False,
    same_names: bool = False,
    limit: int | None = None,
    sample: int | None = None,
    seed: int = 1,
    model: LoadedModel | None = None,
    device: str = "auto",
    cache: bool = True,
    batch_size: int = 32,
    workers: int | None = None,
    strict: bool = False,
    progress: bool = False,
) -> Judged:
    """Judge the words of units on images that the bundle was not made from, as clip-judge does.

    Half of the images choose for each unit the text that it sees, the other half score this word and the one that it writes,
    beside controls.

    Args:
        bundle: Units with words.
        images: Images of any kind that `effects` takes. None: scenes of `seed`, for the embedded models.
        texts: Vocabulary of the seen words, of any kind that `decompose` takes. None: that of the bundle's words.
        judge: Another model, or its name, whose similarities say what images show. None: the bundle's own model.
        judge_pretrained: Weights of `judge`.
        truth: What images show: scenes (clip-scenes' records), classes (folders, labels in archives), captions (in archives),
            a file (lines with key and names, a table with a column per text, or a class per image), or a dictionary of names
            by image.
        classes: List of the classes, if labels are numbers.
        share: Share of the images that count as those on which a unit acts, for F1, IoU and AUPRC.
        false_discovery: Rate of false discoveries up to which a unit counts as one with a word.
        pictures: Folder with a folder of pictures for each word, for CoSy's measures.
        null: Judge the same tower with random weights too, for the summary.
        same_names: Images with the names of the bundle's images are other pictures.
        limit: Number of images, the first ones; of rendered scenes 2,000 if None.
        sample: Number of images, drawn at random.
        seed: Random seed of the halves, of the controls, of `sample` and of rendered scenes.
        model: The bundle's model, if it is loaded already.
        device: auto, cpu, cuda, cuda:1 or mps.
        cache: Read text embeddings from the cache, and write them to it.
        batch_size: Images per forward pass.
        workers: Threads that decode images. None: the number of cores, at most 8.
        strict: Raise an error for an unreadable or unusable image instead of a warning.
        progress: Write progress and messages to standard error; else messages go to the logger `cliptools`.

    Returns:
        A record for each unit, with its words and their scores; `.summary` has the means over the units with their intervals,
        `.bundle` the bundle with `seen`, `seen_correlation` and `agreement`.

    Raises:
        UsageError: an argument is invalid, arguments contradict each other, or the images are those of the bundle.
        StreamError: the bundle has no words, or indirect effects; or the ground truth lacks an image.
        ModelError: a model is not available, or not the bundle's.
        TextError: `texts` is unknown, unreadable or empty.
        CliptoolsError: too few images can be read.
    """
    request = JudgeRequest(
        texts=texts, judge=judge, judge_pretrained=judge_pretrained, truth=truth, classes=classes, share=share,
        false_discovery=false_discovery, pictures=pictures, null=null, same_names=same_names, limit=limit,
        sample=sample, seed=seed, model=model, device=device,
        cache=cache, reading=Reading(batch_size=batch_size, workers=workers, strict=strict),
    )  # fmt: skip
    request.check()
    with front_call(progress):
        return judged(require_neurons(bundle, *NEEDED_TENSORS, device=device), images, request)


def judged(bundle: Bundle, images: Images | None, request: JudgeRequest) -> Judged:
    """Return the records of the units, the summary and the judged bundle.

    Args:
        bundle: Units with the NEEDED_TENSORS.
    """
    effect = bundle.header.settings.get("effect")
    if effect not in EFFECTS:
        raise StreamError(f"a bundle of {effect} effects; clip-judge needs effects in factored form (second, first or pooled)")
    if not bundle.units:
        raise StreamError("the bundle has no units to judge; was an earlier selection too narrow?")
    pool = _vocabulary(bundle, request.texts)
    opened = open_judged(
        bundle, images, request.truth, request.classes, pool.texts,
        limit=request.limit, sample=request.sample, seed=request.seed, same_names=request.same_names,
    )  # fmt: skip
    task = Task(request=request, pool=pool, images=opened, judge=_judge(bundle, request))
    model = loaded_model_of(bundle, request.model, request.device)
    units, choosing = judge_units(bundle, model, task)
    summary = summary_of(units)
    means = ", ".join(f"{kind} {shown_number(scores['correlation']['mean'])}" for kind, scores in summary["words"].items())
    summarise(f"{TOOL}: {count_of(bundle.units, 'unit')} on {count_of(units.images['scored'], 'image')}: {means}")
    if request.null:
        random = with_random_weights(model, request.seed)
        null = null_bundle(bundle, random, opened, choosing, pool, request.reading)
        random_units, _ = judge_units(null, random, task)
        summary["null"] = {key: value for key, value in summary_of(random_units).items() if key in NULL_FIELDS}
    return Judged(judged_records(units), partial(judged_table, units, summary), summary, judged_bundle(units))


def judge_units(bundle: Bundle, model: LoadedModel, task: Task) -> tuple[JudgedUnits, list[int]]:
    """Return the judged units, and the positions in the source of the images that chose their words."""
    request, pool, skipped = task.request, task.pool, Skipped()
    t = _embed_texts(model, pool, bundle, request.cache)
    measured = measure(bundle, model, task.images, len(pool.texts), request.reading, skipped, task.judge)
    presence, rows = _presence(bundle, measured, t, task)
    order = np.random.default_rng(request.seed).permutation(rows)
    choosing, scored = np.sort(order[: len(rows) // 2]), np.sort(order[len(rows) // 2 :])
    r, own = bundle["direction"].astype(np.float64), None if task.by == OWN else own_presence(bundle, measured, t)
    judgement = judge_words(Setting(
        activities=measured.activities, direction=r, written=_written(bundle, pool), presence=presence, own=own,
        choosing=choosing, scored=scored, share=request.share, seen=_seen_count(bundle), seed=request.seed,
    ))  # fmt: skip
    similarity = presence if isinstance(presence, Similarity) else own
    assert similarity is not None
    held = held_out(measured.activities, r, similarity, choosing, scored)
    if request.pictures is not None:
        pictures = measure_pictures(bundle, model, request.pictures, measured, pool.texts, request.reading)
        scores = cosy_scores(measured.activities, scored, pictures.activities, pictures.rows, judgement.words)
        judgement = replace(judgement, scores={kind: {**by, **scores[kind]} for kind, by in judgement.scores.items()})
    counts = {"choosing": len(choosing), "scored": len(scored), "recurring": task.images.recurring, "skipped": len(skipped)}
    units = JudgedUnits(
        bundle, pool, judgement, task.by, counts, request.false_discovery, _settings(request, pool), held,
        request.step, None if task.judge is None else task.judge.identity,
    )  # fmt: skip
    return units, [measured.numbers[row] for row in choosing]


def _seen_count(bundle: Bundle) -> int:
    """Return the number of seen words of a unit: that of the words of largest overlap, which bundles store beside them."""
    return bundle["overlap"].shape[1] if "overlap" in bundle else SEEN


def _settings(request: JudgeRequest, pool: Pool) -> dict[str, Any]:
    """Return the settings on which the numbers depend."""
    return {
        "pool": pool.name, "share": request.share, "seed": request.seed,
        "truth": request.truth if isinstance(request.truth, str) else None,
    } | {name: value for name in ("limit", "sample", "same_names", "classes") if (value := getattr(request, name))}  # fmt: skip


def _vocabulary(bundle: Bundle, texts: Vocabulary) -> Pool:
    """Return the vocabulary with all texts of the bundle's words."""
    pool = recorded_pool(bundle) if texts is None else vocabulary(texts)
    own_texts: list[str] = bundle.text_list("words")["texts"]
    texts_and_own = tuple(dict.fromkeys((*pool.texts, *own_texts)))
    return pool if texts_and_own == pool.texts else replace(pool, texts=texts_and_own, digest=digest(*texts_and_own))


def _written(bundle: Bundle, pool: Pool) -> Written:
    """Return the bundle's words as indices into the vocabulary."""
    number = {text: n for n, text in enumerate(pool.texts)}
    index = np.array([*(number[text] for text in bundle.text_list("words")["texts"]), -1], dtype=np.int64)  # the last is for -1
    return Written(word=index[bundle["word"]], coefficient=bundle["coefficient"].astype(np.float64))


def _embed_texts(model: LoadedModel, pool: Pool, bundle: Bundle, cache: bool) -> Float64[np.ndarray, "text d"]:
    """Return unit embeddings of the vocabulary with the templates of the bundle's words."""
    templates = template_options(bundle.header.settings.get("words", {}).get("templates", ()))
    return encode_named(model, pool, templates, use_cache=cache).cpu().double().numpy()


def _judge(bundle: Bundle, request: JudgeRequest) -> LoadedModel | None:
    """Return the model whose similarities say what images show; None for the bundle's own, and with ground truth.

    Raises:
        UsageError: it is the bundle's own model.
    """
    model = request.judge
    if isinstance(model, str):
        model = load_model(model, request.judge_pretrained, request.device, any_tower=True)
    if model is not None and model.sha256 == bundle.header.model["sha256"]:
        raise UsageError(f"--judge {model.name}: this is the bundle's own model; leave --judge out, or name another")
    return model


def _presence(bundle: Bundle, measured: Measured, t: Float64[np.ndarray, "text d"], task: Task) -> tuple[Presence, list[int]]:
    """Return the presence of the texts, and the rows of the images for which it is known."""
    rows = list(range(len(measured.numbers)))
    if task.images.truth is not None:
        return true_presence(task.images.truth, measured.numbers, len(task.pool.texts)), rows
    if task.judge is None or measured.judge is None:
        return own_presence(bundle, measured, t), rows
    judge_t = _embed_texts(task.judge, task.pool, bundle, task.request.cache)
    return Similarity(measured.judge, judge_t), measured.judge.numbers.tolist()
