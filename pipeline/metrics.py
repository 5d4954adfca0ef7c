"""What a classifier's answers are worth: arrays in, numbers out; NumPy alone, nothing here knows where they come from.

Scores are (N, K), the larger the surer; of equal ones the class of lower index comes first, as argmax has it. A row
with a NaN is no answer, and wrong. What a sample says nothing about is NaN: the recall of a class that is not in it,
the precision of one that was never answered, the average precision of a label that no picture has.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

Scores = NDArray[np.floating[Any]]
Values = NDArray[np.float64]
Counts = NDArray[np.int64]
Labels = NDArray[np.integer[Any]]
"""Classes (N,), or 0 and 1 for each label (N, K)."""

BINS = 15
"""Of the calibration error, as in Guo et al. 2017."""
THRESHOLD = 0.5
"""Of a label's probability, above which it is said to be there."""


def top_k_accuracy(scores: Scores, labels: Labels, k: int = 1) -> float:
    """Share of rows whose class (N,) is among the k of largest score."""
    return _mean(ranks(scores, labels) < k)


def ranks(scores: Scores, labels: Labels) -> Counts:
    """How many classes come before the right one, (N,): 0 is a right answer, K a row with a NaN."""
    own = np.take_along_axis(scores, labels[:, np.newaxis].astype(np.int64), axis=1)
    earlier = np.arange(scores.shape[1]) < labels[:, np.newaxis]
    before = ((scores > own) | ((scores == own) & earlier)).sum(axis=1)
    return cast("Counts", np.where(np.isnan(scores).any(axis=1), scores.shape[1], before))


def confusion_matrix(scores: Scores, labels: Labels) -> Counts:
    """(K, K): rows of each true class by the class answered, a column. Rows with a NaN are in none."""
    classes = scores.shape[1]
    answered = ~np.isnan(scores).any(axis=1)
    cells = labels[answered].astype(np.int64) * classes + scores[answered].argmax(axis=1)
    return np.bincount(cells, minlength=classes * classes).reshape(classes, classes)


@dataclass(frozen=True, eq=False)
class ClassMetrics:
    """Of each class or label, (K,), from counts."""

    hits: Counts
    """It was there and was said to be."""
    false_alarms: Counts
    """It was said to be there and was not."""
    support: Counts
    """How often it was there."""

    @property
    def precision(self) -> Values:
        """Hits by answers; NaN where it was never answered."""
        return _ratio(self.hits, self.hits + self.false_alarms)

    @property
    def recall(self) -> Values:
        """Hits by support; NaN where it was never there."""
        return _ratio(self.hits, self.support)

    @property
    def f1(self) -> Values:
        """Harmonic mean of precision and recall; NaN where it was neither there nor answered."""
        return _ratio(2 * self.hits, self.hits + self.false_alarms + self.support)

    @property
    def macro(self) -> Means:
        """Each class that is in the sample counts alike; one of them that was never answered has a precision of 0."""
        return self._means((self.support > 0).astype(np.float64))

    @property
    def weighted(self) -> Means:
        """Each class counts as often as it is in the sample."""
        return self._means(self.support.astype(np.float64))

    @property
    def micro(self) -> Means:
        """All decisions in one pot."""
        pot = ClassMetrics(*(np.array([part.sum()]) for part in (self.hits, self.false_alarms, self.support)))
        return pot.macro

    def _means(self, weights: Values) -> Means:
        total = float(weights.sum())
        if not total:
            return Means(np.nan, np.nan, np.nan)
        precision, recall, f1 = (
            float(np.nan_to_num(values) @ weights) / total for values in (self.precision, self.recall, self.f1)
        )
        return Means(precision, recall, f1)


@dataclass(frozen=True)
class Means:
    """Over classes; NaN where there is none to mean over."""

    precision: float
    recall: float
    f1: float


def class_metrics(matrix: Counts, support: Counts | None = None) -> ClassMetrics:
    """Of each class, from a confusion matrix (K, K); support: where rows without an answer count as missed."""
    hits = np.diagonal(matrix)
    return ClassMetrics(hits, matrix.sum(axis=0) - hits, matrix.sum(axis=1) if support is None else support)


def label_metrics(probabilities: Scores, labels: Labels, threshold: float = THRESHOLD) -> ClassMetrics:
    """Of each label where a row has several: probabilities and 0 or 1, both (N, K)."""
    said, there = decided(probabilities, threshold), labels.astype(bool)
    return ClassMetrics((said & there).sum(axis=0), (said & ~there).sum(axis=0), there.sum(axis=0))


def decided(probabilities: Scores, threshold: float = THRESHOLD) -> NDArray[np.bool_]:
    """Whether each label (N, K) is said to be there: its probability is above the threshold, and no NaN in the row."""
    return (probabilities > threshold) & ~np.isnan(probabilities).any(axis=1, keepdims=True)


def exact_match(probabilities: Scores, labels: Labels, threshold: float = THRESHOLD) -> float:
    """Share of rows of which every label is decided rightly."""
    return _mean(np.all(_right(probabilities, labels, threshold), axis=1))


def decision_accuracy(probabilities: Scores, labels: Labels, threshold: float = THRESHOLD) -> float:
    """Share of single decisions (N, K) that are right."""
    return _mean(_right(probabilities, labels, threshold))


def _right(probabilities: Scores, labels: Labels, threshold: float) -> NDArray[np.bool_]:
    right = decided(probabilities, threshold) == labels.astype(bool)
    return cast("NDArray[np.bool_]", right & ~np.isnan(probabilities).any(axis=1, keepdims=True))


def average_precision(scores: Scores, labels: Labels) -> Values:
    """Area under each label's precision and recall, (K,): the sum over thresholds of (R_n - R_(n-1)) P_n.

    Equal scores share a threshold; nothing is interpolated. scores and labels (0 or 1) are (N, K).
    """
    if not len(scores):
        return np.full(scores.shape[1], np.nan)
    order = np.argsort(-_ranked(scores), axis=0, kind="stable")
    scores, there = (np.take_along_axis(part, order, axis=0) for part in (_ranked(scores), labels.astype(np.float64)))
    last = np.vstack([scores[1:] != scores[:-1], np.ones((1, scores.shape[1]), bool)])  # of those of equal score
    rows = np.arange(len(scores))[:, np.newaxis]
    ends = np.minimum.accumulate(np.where(last, rows, len(scores))[::-1], axis=0)[::-1]
    precision = np.take_along_axis(np.cumsum(there, axis=0), ends, axis=0) / (ends + 1)
    return _ratio((there * precision).sum(axis=0), there.sum(axis=0))


def mean_average_precision(scores: Scores, labels: Labels) -> float:
    """Mean of `average_precision` over the labels that some row has; NaN where there are none."""
    each = average_precision(scores, labels)
    return _mean(each[~np.isnan(each)])


@dataclass(frozen=True, eq=False)
class Reliability:
    """How sure the answers are beside how often they are right, in bins ((m-1)/M, m/M] of equal width; NaN if empty."""

    count: Counts
    confidence: Values
    """Mean of each bin, (M,)."""
    accuracy: Values
    """Share of right answers in each bin, (M,)."""

    @property
    def error(self) -> float:
        """Expected calibration error: mean distance of the two, each bin counting as many answers as it holds."""
        total = int(self.count.sum())
        distance = np.nan_to_num(np.abs(self.confidence - self.accuracy))
        return float(self.count @ distance) / total if total else np.nan


def reliability(confidence: Scores, right: NDArray[Any], bins: int = BINS) -> Reliability:
    """Of answers (N,) with a confidence from 0 to 1 each; NaNs are left out.

    For several labels a row: each label's probability, and whether it is there.
    Guo et al., On Calibration of Modern Neural Networks, 2017, https://arxiv.org/abs/1706.04599
    """
    known = ~np.isnan(confidence)
    confidence, right = confidence[known].astype(np.float64), right[known]
    place = np.clip(np.ceil(confidence * bins).astype(np.int64) - 1, 0, bins - 1)
    count = np.bincount(place, minlength=bins)
    return Reliability(
        count,
        _ratio(np.bincount(place, confidence, bins), count),
        _ratio(np.bincount(place, right.astype(np.float64), bins), count),
    )


def _ranked(scores: Scores) -> Scores:
    return np.where(np.isnan(scores), -np.inf, scores)


def _ratio(part: NDArray[Any], whole: NDArray[Any]) -> Values:
    """NaN where the whole is 0."""
    with np.errstate(invalid="ignore"):
        return cast("Values", np.where(whole == 0, np.nan, part / np.where(whole == 0, 1, whole)))


def _mean(values: NDArray[Any]) -> float:
    return float(np.mean(values)) if values.size else float("nan")
