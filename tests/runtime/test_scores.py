"""Scores of logits: probabilities at every size, in the logits' own precision."""

from __future__ import annotations

import numpy as np
import pytest

from trueport.runtime.scores import scores_from_logits, sigmoid, softmax


@pytest.mark.parametrize("kind", [np.float32, np.float64])
def test_sigmoid_is_exact_at_both_ends(kind: type[np.floating]) -> None:
    scores = sigmoid(np.array([-1e4, -80, -1, 0, 1, 80, 1e4], kind))
    assert scores.dtype == kind
    e = np.exp(-1)
    assert scores.tolist() == pytest.approx([0, np.exp(-80), e / (1 + e), 0.5, 1 / (1 + e), 1, 1], rel=1e-4)


def test_softmax_adds_up_and_sigmoids_do_not() -> None:
    logits = np.array([[1.0, 2.0, 3.0], [1e4, 1e4, 0.0]])
    np.testing.assert_allclose(scores_from_logits(logits, "classification").sum(axis=1), 1)
    np.testing.assert_allclose(scores_from_logits(logits, "multilabel")[1], [1, 1, 0.5])
    np.testing.assert_allclose(softmax(logits)[1], [0.5, 0.5, 0])


def test_what_is_no_number_has_no_score() -> None:
    assert np.isnan(softmax(np.array([np.nan, 1.0]))).all()
    assert np.isnan(sigmoid(np.array([np.nan, 1.0]))).tolist() == [True, False]
