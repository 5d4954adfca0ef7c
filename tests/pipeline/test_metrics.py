"""Metrics: scikit-learn's numbers on random samples, and cases small enough to be counted by hand."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from trueport.pipeline import metrics

SEEDS = range(5)


def drawn(seed: int, rows: int = 60, classes: int = 7) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Probabilities with many ties and classes; class 6 is never there."""
    chance = np.random.default_rng(seed)
    scores = chance.integers(1, 9, (rows, classes)).astype(np.float64)
    labels = chance.integers(0, classes - 1, rows)
    scores[np.arange(rows), labels] += chance.integers(0, 6, rows)
    return scores / scores.sum(axis=1, keepdims=True), labels


def drawn_labels(seed: int, rows: int = 50, labels: int = 6) -> tuple[NDArray[np.float64], NDArray[np.uint8]]:
    chance = np.random.default_rng(seed)
    there = (chance.random((rows, labels)) < 0.3).astype(np.uint8)
    scores: NDArray[np.float64] = np.round(0.3 * there + 0.7 * chance.random((rows, labels)), 1)  # many ties
    return scores, there


@pytest.mark.parametrize("seed", SEEDS)
def test_classes_are_judged_as_scikit_learn_judges_them(seed: int) -> None:
    from sklearn.metrics import accuracy_score, confusion_matrix, precision_recall_fscore_support

    scores, labels = drawn(seed)
    answers, present = scores.argmax(axis=1), np.unique(labels)
    matrix = metrics.confusion_matrix(scores, labels)
    np.testing.assert_array_equal(matrix, confusion_matrix(labels, answers, labels=range(7)))
    assert metrics.top_k_accuracy(scores, labels) == pytest.approx(accuracy_score(labels, answers))
    found = metrics.class_metrics(matrix)
    each = precision_recall_fscore_support(labels, answers, labels=range(7), zero_division=np.nan)
    for ours, theirs in zip((found.precision, found.recall, found.f1, found.support), each, strict=True):
        np.testing.assert_allclose(ours, theirs)
    for means, average in ((found.macro, "macro"), (found.weighted, "weighted")):
        theirs = precision_recall_fscore_support(labels, answers, labels=present, average=average, zero_division=0)
        assert (means.precision, means.recall, means.f1) == pytest.approx(theirs[:3])


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("k", [1, 2, 5, 7])
def test_top_k_is_scikit_learns_where_no_scores_are_equal(seed: int, k: int) -> None:
    from sklearn.metrics import top_k_accuracy_score

    scores, labels = drawn(seed)
    scores = scores + np.random.default_rng(seed).random(scores.shape) * 1e-3
    assert metrics.top_k_accuracy(scores, labels, k) == pytest.approx(
        1.0 if k == 7 else top_k_accuracy_score(labels, scores, k=k, labels=range(7))
    )


@pytest.mark.parametrize("seed", SEEDS)
def test_several_labels_are_judged_as_scikit_learn_judges_them(seed: int) -> None:
    from sklearn.metrics import accuracy_score, average_precision_score, precision_recall_fscore_support

    scores, there = drawn_labels(seed)
    np.testing.assert_allclose(
        metrics.average_precision(scores, there), average_precision_score(there, scores, average=None)
    )
    assert metrics.mean_average_precision(scores, there) == pytest.approx(average_precision_score(there, scores))
    found, said = metrics.label_metrics(scores, there), scores > 0.5
    for means, average in ((found.macro, "macro"), (found.micro, "micro"), (found.weighted, "weighted")):
        theirs = precision_recall_fscore_support(there, said, average=average, zero_division=0)
        assert (means.precision, means.recall, means.f1) == pytest.approx(theirs[:3])
    assert metrics.exact_match(scores, there) == pytest.approx(accuracy_score(there, said))
    assert metrics.decision_accuracy(scores, there) == pytest.approx(accuracy_score(there.ravel(), said.ravel()))


def test_of_equal_scores_the_lower_index_comes_first() -> None:
    scores = np.array([[1.0, 1.0, 0.0], [1.0, 1.0, 0.0]])
    labels = np.array([0, 1])
    assert metrics.ranks(scores, labels).tolist() == [0, 1]
    assert metrics.top_k_accuracy(scores, labels) == 0.5 == np.mean(scores.argmax(1) == labels)
    assert metrics.top_k_accuracy(scores, labels, 2) == 1


def test_what_the_sample_says_nothing_about_is_nan() -> None:
    """Class 0: right; 1: there, never answered; 2: answered, never there; 3: neither."""
    found = metrics.class_metrics(np.array([[2, 0, 0, 0], [1, 0, 1, 0], [0, 0, 0, 0], [0, 0, 0, 0]]))
    np.testing.assert_array_equal(found.support, [2, 2, 0, 0])
    np.testing.assert_allclose(found.precision, [2 / 3, np.nan, 0, np.nan])
    np.testing.assert_allclose(found.recall, [1, 0, np.nan, np.nan])
    np.testing.assert_allclose(found.f1, [0.8, 0, 0, np.nan])
    assert vars(found.macro) == pytest.approx({"precision": 1 / 3, "recall": 0.5, "f1": 0.4})  # silence is no merit


def test_a_row_with_a_nan_is_no_answer_and_wrong() -> None:
    scores = np.array([[0.9, 0.1], [np.nan, 0.1], [0.2, 0.8]])
    labels = np.array([0, 0, 1])
    assert metrics.top_k_accuracy(scores, labels, 2) == pytest.approx(2 / 3)
    assert metrics.confusion_matrix(scores, labels).tolist() == [[1, 0], [0, 1]]
    assert metrics.exact_match(scores, np.eye(2, dtype=np.uint8)[labels]) == pytest.approx(2 / 3)
    assert np.isfinite(metrics.average_precision(scores, np.eye(2, dtype=np.uint8)[labels])).all()


def test_average_precision_by_hand() -> None:
    scores = np.array([[0.9, 0.5], [0.8, 0.5], [0.7, 0.5], [0.6, 0.5]])
    there = np.array([[1, 0], [0, 1], [1, 0], [0, 0]], np.uint8)
    np.testing.assert_allclose(metrics.average_precision(scores, there), [(1 + 2 / 3) / 2, 1 / 4])
    there[:, 1] = 0
    assert np.isnan(metrics.average_precision(scores, there)[1])
    assert metrics.mean_average_precision(scores, there) == pytest.approx(5 / 6)  # the label that is there


def test_calibration_by_hand() -> None:
    """Four answers: two at 0.95, one of them right; one at 0.6, right; one at exactly 1/15, wrong."""
    found = metrics.reliability(np.array([0.95, 0.95, 0.6, 1 / 15]), np.array([1, 0, 1, 0]))
    assert found.count.tolist() == [1, *[0] * 7, 1, *[0] * 5, 2]
    assert found.accuracy[-1] == 0.5
    assert found.confidence[-1] == pytest.approx(0.95)
    assert np.isnan(found.accuracy[1])
    assert found.error == pytest.approx((2 * 0.45 + 0.4 + 1 / 15) / 4)


def test_confidences_of_nought_and_one_have_their_bins() -> None:
    found = metrics.reliability(np.array([0.0, 1.0, np.nan]), np.array([0, 1, 1]), 10)
    assert found.count.tolist() == [1, *[0] * 8, 1]
    assert found.error == 0


def test_no_rows_is_nan_throughout() -> None:
    scores, labels = np.empty((0, 3)), np.empty(0, np.int64)
    assert np.isnan(metrics.top_k_accuracy(scores, labels))
    assert np.isnan(metrics.class_metrics(metrics.confusion_matrix(scores, labels)).macro.f1)
    assert np.isnan(metrics.reliability(scores[:, 0], labels).error)
    assert np.isnan(metrics.mean_average_precision(scores, np.empty((0, 3), np.uint8)))
