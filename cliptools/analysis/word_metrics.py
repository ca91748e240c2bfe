"""Measures of how well a text describes the images on which a unit acts.

a(I) is the activity of a unit on probe image I, c(I) the presence of a text in it: 1 or 0 with labels, a similarity with a model.
A are the images of largest a, C those that show the text (c >= 1/2), or with similarities those of largest c.

    correlation = mean of z(a) z(c)          cosine = <a, c> / (||a|| ||c||)
    F1 = 2 |A and C| / (|A| + |C|)           IoU = |A and C| / |A or C|           recall = |A and C| / |A|
    AUPRC = 1/|A| sum over i in A of |{j in A: c_j >= c_i}| / |{j: c_j >= c_i}|

AUPRC is the average precision of c as a score for A, the orientation of NeuronEval (arXiv 2506.05774); images of equal c, as all
those with c = 0 and all with c = 1, count as one threshold. The first five pass both tests of that paper: they become smaller if
half of the labels are removed, and if as many wrong ones are added. Recall does not notice the latter. For comparison with CoSy
(arXiv 2405.20331), with a_0 on control images and a_1 on n pictures of the text:

    AUC = P(a_1 > a_0) + P(a_1 = a_0) / 2    MAD = (mean a_1 - mean a_0) / sd a_0

The measures take a column per unit, and return a number per unit; `cosy_scores` applies both of CoSy to the words of all units.
"""

import math
from collections.abc import Mapping

import numpy as np
from jaxtyping import Bool, Float64, Int
from scipy.special import ndtri, stdtr, stdtrit

from cliptools.streaming.activities import Activities

SHARE = 0.02  # of the images, in A
CONFIDENCE = 0.95
AUC, MAD = "cosy_auc", "cosy_mad"
Columns = Float64[np.ndarray, "N n"]
"""A number for each image and unit."""
Members = Bool[np.ndarray, "N n"]
"""The images of a set, for each unit."""
PerUnit = Float64[np.ndarray, " n"]
Scores = dict[str, Float64[np.ndarray, " U"]]


def standardised(x: Columns) -> Columns:
    """z: each column with mean 0 and standard deviation 1 (over N); NaN in a column that does not vary."""
    centred = x - x.mean(0)  # (N, n)
    deviation = np.sqrt((centred**2).mean(0))  # (n)
    return centred / np.where(_varies(x, deviation), deviation, np.nan)


def correlation(a: Columns, c: Columns) -> PerUnit:
    """Pearson's correlation; NaN where a or c does not vary."""
    return (standardised(a) * standardised(c)).mean(0)


def cosine(a: Columns, c: Columns) -> PerUnit:
    """The cosine of a and c; NaN where one of them is 0 on all images."""
    with np.errstate(invalid="ignore", divide="ignore"):
        return (a * c).sum(0) / np.sqrt((a**2).sum(0) * (c**2).sum(0))


def largest(x: Columns, share: float = SHARE) -> Members:
    """The ceil(share N) images of largest x; of equal ones, those that come first."""
    count = math.ceil(share * len(x) * (1 - 1e-12))  # 0.07 * 100 is a little more than 7
    least = np.partition(x, len(x) - count, axis=0)[len(x) - count]  # (n): the smallest of them
    members = x > least
    equal = x == least
    return members | (equal & (np.cumsum(equal, axis=0) <= count - members.sum(0)))


def shown(c: Columns) -> Members:
    """The images that show the text, where c is a truth or a probability."""
    return c >= 0.5


def f1(A: Members, C: Members) -> PerUnit:
    """The harmonic mean of precision and recall; NaN where both sets are empty."""
    return _ratio(2 * (A & C).sum(0), A.sum(0) + C.sum(0))


def iou(A: Members, C: Members) -> PerUnit:
    """The intersection of the sets divided by their union; NaN where both are empty."""
    return _ratio((A & C).sum(0), (A | C).sum(0))


def recall(A: Members, C: Members) -> PerUnit:
    """The share of A that shows the text: what a sheet of top images shows. Wrong labels elsewhere do not change it."""
    return _ratio((A & C).sum(0), A.sum(0))


def average_precision(A: Members, c: Columns) -> PerUnit:
    """AUPRC: the average precision of c as a score for A."""
    return np.array([_average_precision(c[A[:, n], n], c[:, n]) for n in range(c.shape[1])], dtype=np.float64)


def _average_precision(inside: Float64[np.ndarray, " k"], c: Float64[np.ndarray, " N"]) -> float:
    """The same for one unit, from the c of A and the c of all images."""
    inside, all_sorted = np.sort(inside), np.sort(c)
    hits = len(inside) - np.searchsorted(inside, inside, side="left")  # (k): of A, with c_j >= c_i
    total = len(all_sorted) - np.searchsorted(all_sorted, inside, side="left")  # (k): of all images
    return float((hits / total).mean()) if len(inside) else math.nan


def cosy_auc(a0: Float64[np.ndarray, "N n"], a1: Float64[np.ndarray, "M n"]) -> PerUnit:
    """P(a_1 > a_0) + P(a_1 = a_0) / 2 for a_1 on pictures of the text and a_0 on control images."""
    values = []
    for control, picture in zip(np.sort(a0, axis=0).T, a1.T, strict=True):
        below, up_to = (np.searchsorted(control, picture, side=side) for side in ("left", "right"))  # (M)
        values.append(float((below + up_to).mean()) / (2 * len(control)))
    return np.array(values, dtype=np.float64)


def cosy_mad(a0: Float64[np.ndarray, "N n"], a1: Float64[np.ndarray, "M n"]) -> PerUnit:
    """The difference of the means in standard deviations (over N) of the control images; 0 where these do not vary."""
    deviation, difference = a0.std(0), a1.mean(0) - a0.mean(0)
    varies = _varies(a0, deviation)
    return np.where(varies, difference / np.where(varies, deviation, 1), 0.0)


def permutation_p(a: Columns, c: Columns) -> PerUnit:
    """The probability that a correlation of c with the normal scores of a is as large if the images of c are permuted at random.

    The score of an image is the normal quantile of the rank of its a over N + 1 (van der Waerden); equal a rank at random. The
    scores are nearly normal for any a, so that for any c, however few images show the text,

        r sqrt((N - 2) / (1 - r^2))

    has Student's distribution with N - 2 degrees of freedom. The correlation of a itself does not: where a has large values of
    both signs and few images show the text, a single image makes it large. NaN where a or c does not vary, and for N < 3.
    """
    N = len(a)
    order = np.lexsort((np.random.default_rng(0).random(a.shape), a), axis=0)  # (N, n): a ascending
    score = np.empty(a.shape)
    np.put_along_axis(score, order, ndtri(np.arange(1, N + 1) / (N + 1))[:, None], axis=0)
    r = correlation(score, c).clip(-1, 1)
    with np.errstate(divide="ignore", invalid="ignore"):
        p = stdtr(N - 2, -r * np.sqrt((N - 2) / (1 - r**2)))
    return np.where(_varies(a, a.std(0)), p, np.nan)


def false_discovery_rates(p: PerUnit) -> PerUnit:
    """Benjamini and Hochberg: the smallest false discovery rate at which each p-value counts as a discovery; NaN stays NaN."""
    q = np.full(p.shape, np.nan)
    known = np.flatnonzero(np.isfinite(p))
    order = known[np.argsort(p[known], kind="stable")]  # smallest first
    scaled = p[order] * len(order) / np.arange(1, len(order) + 1)
    q[order] = np.minimum.accumulate(scaled[::-1])[::-1].clip(max=1.0)
    return q


def mean_interval(x: PerUnit) -> tuple[float, float, float]:
    """The mean over the units where x is finite, and the ends of its 95 % interval by Student's t; NaN if not defined.

    Equal values, such as the scores of words that no scored image shows, do not say how far their mean is from that of other
    units: their interval is not defined.
    """
    finite = x[np.isfinite(x)]
    if not len(finite):
        return (math.nan,) * 3
    mean = float(finite.mean())
    if len(finite) < 2 or not np.ptp(finite):
        return mean, math.nan, math.nan
    reach = float(stdtrit(len(finite) - 1, (1 + CONFIDENCE) / 2)) * float(finite.std(ddof=1)) / math.sqrt(len(finite))
    return mean, mean - reach, mean + reach


def _varies(x: Columns, deviation: PerUnit) -> Bool[np.ndarray, " n"]:
    """False for a column that is constant up to the rounding of its values."""
    return deviation > 1e-12 * np.abs(x).max(0, initial=0)


def _ratio(part: np.ndarray, whole: np.ndarray) -> PerUnit:
    return np.where(whole > 0, part / np.where(whole > 0, whole, 1), np.nan)


def cosy_scores(
    control: Activities,
    images: Int[np.ndarray, " i"],
    pictures: Activities,
    pictures_of: Mapping[int, Int[np.ndarray, " _"]],
    words: Mapping[str, Int[np.ndarray, " U"]],
) -> dict[str, Scores]:
    """AUC and MAD of each unit's word of each kind, NaN where there are no pictures of it or the unit does not act.

    Args:
        control: Activities on the control images; `pictures` must have the same groups of units.
        images: Rows of the control images.
        pictures_of: Rows of the pictures of each text.
        words: A text for each unit, -1 for none, by kind of word.
    """
    units = sum(group.stop - group.start for group in control.groups)
    scores = {kind: {name: np.full(units, np.nan) for name in (AUC, MAD)} for kind in words}
    for (group, a0), (other_group, a1) in zip(control.columns(), pictures.columns(), strict=True):
        assert group == other_group
        for column, unit in enumerate(range(group.start, group.stop)):
            control_column = a0[images, column, None]  # (i, 1)
            for kind, text in words.items():
                rows = pictures_of.get(int(text[unit]))
                if rows is None or not np.ptp(control_column):
                    continue
                scores[kind][AUC][unit] = cosy_auc(control_column, a1[rows, column, None])[0]
                scores[kind][MAD][unit] = cosy_mad(control_column, a1[rows, column, None])[0]
    return scores
