"""Choice and scores of units' words, on two halves of the images.

For each unit, the words of several kinds, each a text of the vocabulary:

    written         the text of the largest positive coefficient in the unit's decomposition
    seen            the text of the largest correlation of activity and presence on the choosing half
    own             the same with the model's own similarities as presence, if the judge is another
    random          a text drawn at random
    written dealt   the written word of another unit, drawn at random; `seen dealt` is the seen word of another unit

They are scored on the other half, with the measures of word_metrics.py. The simulation s = sum over j of gamma_j c_{t_j} of a
unit's activity (arXiv 2405.06855) is scored by corr(s, a) there; gamma are the coefficients of the decomposition (written), or
the correlations on the choosing half (seen). The agreement of a unit is the correlation of its activity with the presence of its
written word, over all images: nothing was chosen by it.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float64, Int
from scipy.sparse import csr_array

from cliptools.analysis.presence import Images, Presence, UnitGroup, Weights, correlations
from cliptools.analysis.seen import first_positive
from cliptools.analysis.word_metrics import (
    average_precision,
    correlation,
    cosine,
    f1,
    false_discovery_rates,
    iou,
    largest,
    permutation_p,
    shown,
)
from cliptools.streaming.activities import Activities

METRICS = ("correlation", "cosine", "f1", "iou", "auprc")
SHOWN = "shown"
"""The number of scored images that show the text, beside its METRICS with ground truth."""
SIMULATED = 8  # words of a simulation
Texts = Int[np.ndarray, " U"]
"""A text for each unit, -1 for none."""
PerUnit = Float64[np.ndarray, " U"]


@dataclass(frozen=True, kw_only=True)
class Written:
    """The units' decompositions."""

    word: Int[np.ndarray, "U m"]
    """Texts of the vocabulary, -1 after the last."""
    coefficient: Float64[np.ndarray, "U m"]

    @property
    def first(self) -> Texts:
        """The text of the largest positive coefficient of each unit."""
        return first_positive(torch.from_numpy(self.word), torch.from_numpy(self.coefficient)).numpy()

    def largest(self, count: int) -> "Written":
        """The texts of the largest absolute coefficients."""
        order = np.argsort(-np.abs(np.where(self.word >= 0, self.coefficient, 0)), axis=1, kind="stable")[:, :count]
        return Written(word=np.take_along_axis(self.word, order, 1), coefficient=np.take_along_axis(self.coefficient, order, 1))


@dataclass(frozen=True, kw_only=True)
class Setting:
    """Units, images and the judge."""

    activities: Activities
    direction: Float64[np.ndarray, "U d"]
    written: Written
    presence: Presence
    own: Presence | None
    """The model's own similarities, if the judge is another."""
    choosing: Int[np.ndarray, " choosing"]
    """Rows of the images by which words are chosen, ascending."""
    scored: Int[np.ndarray, " scored"]
    """Rows of the images on which they are scored, ascending."""
    share: float
    """Share of the images in the set of largest activity."""
    seen: int
    """Number of seen words a unit."""
    seed: int


@dataclass(frozen=True, kw_only=True)
class Judgement:
    """Words of U units and their scores, NaN where not defined."""

    words: Mapping[str, Texts]
    """The text of each kind."""
    scores: Mapping[str, Mapping[str, PerUnit]]
    """The scores on the scored half, for each kind of word and metric; with ground truth also SHOWN."""
    simulation: Mapping[str, PerUnit]
    """The scores of the simulations by written and by seen words; 0 where no scored image shows one of them."""
    agreement: PerUnit
    own_agreement: PerUnit
    """The same with the model's own similarities, if the judge is another."""
    p: PerUnit
    """Probability of a rank correlation as large on the scored half if the seen word has nothing to do with the unit."""
    false_discovery: PerUnit
    """The smallest false discovery rate at which the unit has a word."""
    seen: Int[np.ndarray, "U s"]
    """Texts of the largest correlations on the choosing half, largest first."""
    seen_correlation: Float64[np.ndarray, "U s"]
    """Their correlations on the scored half."""


@dataclass(frozen=True, kw_only=True)
class _Chosen:
    """Texts that were chosen on the choosing half."""

    seen: Int[np.ndarray, "U s"]
    signed: Written
    """The texts of the largest absolute correlations, with these."""
    own: Texts | None


def judge_words(setting: Setting) -> Judgement:
    """Choose the words of all units on one half of the images and score them on the other."""
    chosen = _choose(setting)
    written, seen = setting.written.first, chosen.seen[:, 0]
    rng = np.random.default_rng(setting.seed)
    candidates = np.flatnonzero(setting.presence.known)
    words = {"written": written, "seen": seen}
    words |= {} if chosen.own is None else {"own": chosen.own}
    drawn = rng.choice(candidates, len(written)) if len(candidates) else np.full(len(written), -1)
    words |= {"random": np.where(seen >= 0, drawn, -1)}
    words |= {"written dealt": rng.permutation(written), "seen dealt": rng.permutation(seen)}
    return _score(setting, words, chosen)


def _choose(setting: Setting) -> _Chosen:
    """Choose texts for every unit by their correlations on the choosing half."""
    seen, signed, gamma, own = [], [], [], []
    for rows, a in setting.activities.columns():
        units = UnitGroup(a, setting.direction[rows])
        value = _correlations(units, setting.presence, setting.choosing)  # (n, text)
        seen.append(_best(value, setting.seen))
        strongest = _best(np.abs(value), SIMULATED)
        signed.append(strongest)
        gamma.append(np.where(strongest >= 0, np.take_along_axis(value, strongest, 1), 0))
        if setting.own is not None:
            own.append(_best(_correlations(units, setting.own, setting.choosing), 1)[:, 0])
    own_words = np.concatenate(own) if own else None
    words = Written(word=np.concatenate(signed), coefficient=np.concatenate(gamma))
    return _Chosen(seen=np.concatenate(seen), signed=words, own=own_words)


def _correlations(units: UnitGroup, presence: Presence, images: Images) -> Float64[np.ndarray, "n text"]:
    """Correlations with all texts, NaN where the presence is not known."""
    return np.where(presence.known, correlations(units.a[images], presence.moments(units, images)), np.nan)


def _best(value: Float64[np.ndarray, "n text"], count: int) -> Int[np.ndarray, "n s"]:
    """The texts of the largest values, largest first, -1 after the last that is defined."""
    score = np.where(np.isfinite(value), value, -np.inf)
    best = np.full((len(score), count), -1)
    rows = np.arange(len(score))
    for column in best.T[: score.shape[1]]:  # a maximum at a time: the first of equal ones
        text = score.argmax(1)
        column[:] = np.where(np.isfinite(score[rows, text]), text, -1)
        score[rows, text] = -np.inf
    return best


def _score(setting: Setting, words: Mapping[str, Texts], chosen: _Chosen) -> Judgement:
    """Score the words of each kind on the scored half."""
    scores: dict[str, dict[str, PerUnit]] = {kind: {} for kind in words}
    U = len(setting.direction)
    simulation = {kind: np.full(U, np.nan) for kind in ("written", "seen")}
    agreement, own_agreement, p = (np.full(U, np.nan) for _ in range(3))
    seen_correlation = np.zeros(chosen.seen.shape)
    for by_metric in scores.values():
        by_metric |= {metric: np.full(U, np.nan) for metric in (METRICS if setting.presence.graded else (*METRICS, SHOWN))}
    signed = {"written": setting.written.largest(SIMULATED), "seen": chosen.signed}
    everything = np.sort(np.concatenate([setting.choosing, setting.scored]))
    for rows, a in setting.activities.columns():
        units = UnitGroup(a, setting.direction[rows])
        presence, scored = _Columns(setting.presence, units, setting.scored), a[setting.scored]  # scored: (i, n)
        A = largest(scored, setting.share)
        for kind, text in words.items():
            c, known = presence.of_texts(text[rows])
            for metric, value in _metrics(scored, A, c, setting).items():
                scores[kind][metric][rows] = np.where(known, value, np.nan)
            if kind == "seen":
                p[rows] = np.where(known, np.nan_to_num(permutation_p(scored, c), nan=1.0), np.nan)
        for kind, sums in signed.items():
            word = sums.word[rows]
            s = presence.of_sums(word, sums.coefficient[rows])  # (i, n)
            defined = ((word >= 0) & setting.presence.known[word]).any(1) & (np.ptp(scored, axis=0) > 0)
            simulation[kind][rows] = np.where(defined, _defined(correlation, scored, s), np.nan)
        agreement[rows] = _agreement(setting.presence, units, everything, words["written"][rows])
        if setting.own is not None:
            own_agreement[rows] = _agreement(setting.own, units, everything, words["written"][rows])
        value = _correlations(units, setting.presence, setting.scored)  # (n, text)
        picked = np.take_along_axis(value, chosen.seen[rows], 1)
        seen_correlation[rows] = np.where(chosen.seen[rows] >= 0, np.nan_to_num(picked), 0)
    return Judgement(
        words=words, scores=scores, simulation=simulation, agreement=agreement,
        own_agreement=own_agreement, p=p, false_discovery=false_discovery_rates(p),
        seen=chosen.seen, seen_correlation=seen_correlation,
    )  # fmt: skip


def _agreement(presence: Presence, units: UnitGroup, images: Images, text: Int[np.ndarray, " n"]) -> Float64[np.ndarray, " n"]:
    """Correlations with the presence of one text a unit, NaN where it is not known."""
    c, known = _Columns(presence, units, images).of_texts(text)
    return np.where(known, _defined(correlation, units.a[images], c), np.nan)


class _Columns:
    """The presence of texts of a group of units in some images, a column per unit."""

    def __init__(self, presence: Presence, units: UnitGroup, images: Images) -> None:
        self._presence, self._units, self._images = presence, units, images

    def of_texts(self, text: Int[np.ndarray, " n"]) -> tuple[Float64[np.ndarray, "i n"], np.ndarray]:
        """c of one text a unit, and True for the units whose text is known and that act."""
        known = (text >= 0) & self._presence.known[text] & (np.ptp(self._units.a, axis=0) > 0)
        return self.of_sums(text[:, None], np.ones((len(text), 1))), known

    def of_sums(self, text: Int[np.ndarray, "n m"], gamma: Float64[np.ndarray, "n m"]) -> Float64[np.ndarray, "i n"]:
        """The sum of gamma_j c_{t_j} for each unit, over the texts that are known."""
        return self._presence.sums(self._units, self._images, self._weights(text, gamma))

    def _weights(self, text: Int[np.ndarray, "n m"], gamma: Float64[np.ndarray, "n m"]) -> Weights:
        """Return the sparse matrix [n, text] of gamma."""
        known = self._presence.known
        row, column = np.nonzero((text >= 0) & known[text])
        return csr_array((gamma[row, column], (row, text[row, column])), shape=(len(text), len(known)))


def _metrics(a: np.ndarray, A: np.ndarray, c: np.ndarray, setting: Setting) -> dict[str, np.ndarray]:
    """Return all METRICS of one text a unit, and SHOWN with ground truth."""
    graded = setting.presence.graded
    C = largest(c, setting.share) if graded else shown(c)
    values = _defined(correlation, a, c), _defined(cosine, a, c), f1(A, C), iou(A, C), average_precision(A, c)
    return dict(zip(METRICS, values, strict=True)) | ({} if graded else {SHOWN: C.sum(0).astype(np.float64)})


def _defined(metric: Callable[[np.ndarray, np.ndarray], np.ndarray], a: np.ndarray, c: np.ndarray) -> np.ndarray:
    """The metric, 0 where no image shows the text."""
    return np.nan_to_num(metric(a, c), nan=0.0)
