"""Comparisons: what is equal passes, what is not fails, and NaN never passes."""

from __future__ import annotations

import math
from typing import Any

import msgspec
import numpy as np
import pytest
from numpy.typing import NDArray

from trueport.runtime.comparison import (
    accuracy,
    batch_invariance,
    decisions,
    overlaps,
    parity,
    preprocessing_identity,
)
from trueport.runtime.manifest import Bounds

BOUNDS = Bounds(max_abs=1e-3, rms=5e-4, noise_max_abs=1e-4, noise_rms=5e-5, noise_from=("test",))
NAMES: dict[str, Any] = {"variant": "fp32", "runner": "onnxruntime:cpu"}


def logits(rows: int = 20, classes: int = 10) -> NDArray[np.float32]:
    return np.random.default_rng(0).normal(size=(rows, classes)).astype(np.float32)


@pytest.mark.parametrize("gate", [accuracy, decisions])
def test_a_precision_may_lose_so_many_points_whichever_predictions_change(gate: Any) -> None:
    """A tenth is lost of a hundred pictures, with one label or ten: the whole interval decides, either way."""
    original = np.full((100, 10), -5, np.float32)
    truth = np.arange(100) % 10
    original[np.arange(100), truth] = 5
    port = original.copy()
    port[:10] *= -1
    labels = truth if gate is accuracy else (original > 0).astype(np.uint8)
    lost = 10.0
    for allowed, status in ((20.0, "passed"), (lost, "undecided"), (lost - 0.5, "undecided"), (2.0, "failed")):
        bounds = msgspec.structs.replace(BOUNDS, max_drop=allowed)
        verdict = gate(port, original, labels, bounds, **NAMES)
        assert verdict.measured["drop_points"] == lost
        assert verdict.status == status
        assert not verdict if status != "passed" else verdict
        assert (verdict.needed is not None) == (allowed == lost - 0.5), "at the very margin no number of samples tells"
    assert (
        f"{gate(port, original, labels, msgspec.structs.replace(BOUNDS, max_drop=9.5), **NAMES).needed:,}"
        in gate(port, original, labels, msgspec.structs.replace(BOUNDS, max_drop=9.5), **NAMES).detail
    )
    assert set(gate(port, original, labels, BOUNDS, **NAMES).would_pass) == {"unexplained"}
    port[50] = np.nan
    assert (
        "non_finite" in gate(port, original, labels, msgspec.structs.replace(BOUNDS, max_drop=99.0), **NAMES).would_pass
    )


def test_parity_of_equals_is_perfect() -> None:
    verdict = parity(logits(), logits(), BOUNDS, detail="", **NAMES)
    assert verdict
    assert verdict.measured["max_abs"] == verdict.measured["rms"] == 0
    assert verdict.measured["snr_db"] is None
    assert verdict.measured["top1_agreement"] == verdict.measured["top5_agreement"] == 100


def test_parity_measures_in_known_units() -> None:
    original = logits()
    port = original + 1e-4
    verdict = parity(port, original, BOUNDS, detail="", **NAMES)
    assert verdict
    assert verdict.measured["max_abs"] == pytest.approx(1e-4, rel=1e-2)
    assert verdict.measured["rms"] == pytest.approx(1e-4, rel=1e-2)
    power = float(np.mean(original.astype(float) ** 2))
    assert verdict.measured["snr_db"] == pytest.approx(10 * math.log10(power / 1e-8), abs=0.1)


@pytest.mark.parametrize("fault", [2e-3, math.nan, math.inf])
def test_one_wrong_logit_fails_and_names_the_bound_that_would_pass(fault: float) -> None:
    port = logits()
    port[3, 4] += fault
    verdict = parity(port, logits(), BOUNDS, detail="", **NAMES)
    assert not verdict
    assert verdict.status == "failed"
    expected = pytest.approx(fault, rel=1e-3) if math.isfinite(fault) else None
    assert verdict.would_pass["max_abs"] == expected


def test_many_small_errors_fail_by_rms_where_none_is_large() -> None:
    verdict = parity(logits() + 8e-4, logits(), BOUNDS, detail="", **NAMES)
    assert set(verdict.would_pass) == {"rms"}


def runner_with(fault: Any) -> Any:
    weights = np.random.default_rng(1).normal(size=(12, 10))

    def infer(images: NDArray[np.uint8]) -> NDArray[Any]:
        return np.asarray(fault(images.reshape(len(images), -1) @ weights))

    return infer


IMAGES = np.random.default_rng(2).integers(0, 256, (9, 2, 2, 3), dtype=np.uint8)


def test_rows_that_do_not_depend_on_their_batch_pass() -> None:
    verdict = batch_invariance(runner_with(lambda out: out), IMAGES, BOUNDS, (1, 2, 7, 32), **NAMES)
    assert verdict
    assert set(verdict.measured) == {"batch_2", "batch_7", "batch_32", "max_abs"}


@pytest.mark.parametrize(
    "fault",
    [
        pytest.param(lambda out: out[::-1], id="rows reversed"),
        pytest.param(lambda out: out - out.mean(0), id="statistics of the batch"),
        pytest.param(lambda out: np.where(len(out) == 32, out + 1, out), id="only at one size"),
        pytest.param(lambda out: np.concatenate([out[:1]] * len(out)), id="the first row everywhere"),
        pytest.param(lambda out: out * (math.nan if len(out) == 7 else 1), id="NaN at one size"),
        pytest.param(lambda out: out + (np.arange(len(out)) == 6)[:, None], id="only at one position"),
    ],
)
def test_rows_that_depend_on_their_batch_fail(fault: Any) -> None:
    assert batch_invariance(runner_with(fault), IMAGES, BOUNDS, (1, 2, 7, 32), **NAMES).status == "failed"


def test_preprocessing_must_be_the_same_to_the_bit() -> None:
    golden = IMAGES
    assert preprocessing_identity(list(golden), golden)
    changed = golden.copy()
    changed[4, 1, 1, 2] ^= 1
    verdict = preprocessing_identity(list(changed), golden)
    assert not verdict
    assert verdict.would_pass == {"max_levels": 1.0}


def test_accuracy_counts_flips_each_way() -> None:
    original = np.eye(10, dtype=np.float32)[np.arange(100) % 10]
    labels = np.arange(100, dtype=np.int64) % 10
    labels[:2] = (labels[:2] + 1) % 10  # the original is wrong twice
    port = original.copy()
    port[0] = np.eye(10)[labels[0]]  # the port is right once where it was wrong
    port[50:53] = np.roll(port[50:53], 1, axis=1)  # and wrong three times where it was right
    verdict = accuracy(port, original, labels, BOUNDS, **NAMES)
    measured = verdict.measured
    assert not verdict
    assert (measured["lost"], measured["won"]) == (3, 1)
    assert measured["top1_original"] == pytest.approx(98)
    assert measured["top1_port"] == pytest.approx(96)
    assert measured["drop_points"] == pytest.approx(2)
    assert measured["drop_low"] is not None
    assert measured["drop_high"] is not None
    assert measured["drop_low"] < 2 < measured["drop_high"]
    assert verdict.would_pass == {"unexplained": 4.0}


def test_a_loss_is_not_made_up_for_by_a_win() -> None:
    original = np.eye(10, dtype=np.float32)[np.arange(20) % 10]
    labels = np.arange(20, dtype=np.int64) % 10
    labels[0] = 5
    port = original.copy()
    port[0] = original[5]  # right where the original is wrong
    port[1] = original[5]  # wrong where it is right
    verdict = accuracy(port, original, labels, BOUNDS, **NAMES)
    assert verdict.measured["drop_points"] == 0
    assert verdict.would_pass == {"unexplained": 2.0}


def test_answers_that_are_no_numbers_are_never_right() -> None:
    """Of a row of NaN, argmax is class 0."""
    original = np.eye(10, dtype=np.float32)[np.zeros(20, int)]
    port = original.copy()
    port[3:] = math.nan
    verdict = accuracy(port, original, np.zeros(20, np.int64), BOUNDS, **NAMES)
    assert verdict.measured["top1_port"] == pytest.approx(15)
    assert verdict.would_pass == {"unexplained": 17.0, "non_finite": 17.0}


def test_ties_of_the_original_may_go_either_way() -> None:
    original = np.zeros((100, 10), np.float32)
    original[:, 3] = 1
    original[0, 4] = 1 + BOUNDS.max_abs  # right by less than the port may differ
    labels = np.full(100, 3, np.int64)
    labels[0] = 4
    port = original.copy()
    port[0, 4] = 1 - BOUNDS.max_abs / 2
    assert accuracy(port, original, labels, BOUNDS, **NAMES)
    port[1] = np.roll(port[1], 1)
    assert not accuracy(port, original, labels, BOUNDS, **NAMES)


def marks(original: NDArray[np.float32], wrong: int = 0) -> NDArray[np.uint8]:
    """The labels that the original decides rightly, but for so many decisions at the start."""
    truth = (original > 0).astype(np.uint8)
    truth.ravel()[:wrong] ^= 1
    return truth


def test_decisions_are_counted_one_by_one() -> None:
    original = logits()
    port = original.copy()
    port[0, 0] *= -1  # of the original's ten wrong decisions one is put right
    port[5, 3] *= -1
    port[6, 4] *= -1
    verdict = decisions(port, original, marks(original, wrong=10), BOUNDS, **NAMES)
    assert verdict.status == "failed"
    measured = verdict.measured
    assert measured["unexplained"] == verdict.would_pass["unexplained"] == 3
    assert (measured["worse"], measured["better"]) == (2, 0), "all of its labels are wrong still, but for one"
    assert measured["decisions_original"] == pytest.approx(95)
    assert measured["decisions_port"] == pytest.approx(94.5)
    assert measured["exact_original"] == pytest.approx(95)
    assert measured["exact_port"] == pytest.approx(85)
    assert measured["overlap_original"] == pytest.approx(95), "one of twenty pictures has none of its labels"
    assert measured["drop_points"] == pytest.approx(100 * (1 / 5 + 1 / 5) / 20)
    assert (measured["drop_low"] or 0) < 2 < (measured["drop_high"] or 0)
    assert measured["mcnemar_p"] == 0.5
    assert "3 decisions changed" in verdict.detail


def test_a_port_that_answers_nothing_does_not_pass_for_rare_labels() -> None:
    """Of 200 labels each picture has one: to leave all of them out is right in 99.5 % of the decisions."""
    original = np.full((400, 200), -5, np.float32)
    original[np.arange(400), np.arange(400) % 200] = 5
    bounds = msgspec.structs.replace(BOUNDS, max_drop=1.0)
    truth = marks(original)
    verdict = decisions(np.full_like(original, -5), original, truth, bounds, **NAMES)
    assert verdict.status == "failed"
    assert verdict.measured["decisions_port"] == pytest.approx(99.5)
    assert verdict.measured["drop_points"] == 100
    assert decisions(original, original, truth, bounds, **NAMES)


def test_the_samples_that_would_tell_are_pictures_and_not_decisions() -> None:
    """Where nothing is lost a point takes 276 of them, however many labels each has."""
    bounds = msgspec.structs.replace(BOUNDS, max_drop=1.0)
    for labels in (1, 10, 200):
        original = logits(275, labels)
        verdict = decisions(original, original, marks(original), bounds, **NAMES)
        assert (verdict.status, verdict.needed) == ("undecided", 276)
        assert "about 276 samples would tell" in verdict.detail


def test_labels_that_hang_together_in_a_picture_are_no_evidence_of_their_own() -> None:
    """A picture is lost with all of its labels: the interval is that of pictures with one label."""
    original = np.full((200, 50), 5, np.float32)
    port = original.copy()
    port[:4] *= -1
    bounds = msgspec.structs.replace(BOUNDS, max_drop=3.0)
    several = decisions(port, original, marks(original), bounds, **NAMES)
    alone = decisions(port[:, :1], original[:, :1], marks(original[:, :1]), bounds, **NAMES)
    assert several.status == "undecided"
    for name in ("drop_points", "drop_low", "drop_high", "mcnemar_p"):
        assert several.measured[name] == alone.measured[name]


def test_overlaps_are_of_answered_and_true_labels() -> None:
    truth = np.array([[1, 1, 0], [1, 0, 0], [0, 0, 0], [0, 0, 0], [1, 1, 1]], np.uint8)
    answers = np.array([[1, 1, -1], [1, 1, 1], [-1, -1, -1], [-1, 1, -1], [1, 1, math.nan]])
    assert overlaps(answers, truth) == pytest.approx([1, 1 / 3, 1, 0, 0])


def test_a_decision_may_change_where_its_logit_is_within_the_bound() -> None:
    original = logits()
    truth = marks(original)
    original[2, 3] = np.float32(0.9 * BOUNDS.max_abs)
    port = original.copy()
    port[2, 3] = np.float32(-0.1 * BOUNDS.max_abs)
    verdict = decisions(port, original, truth, BOUNDS, **NAMES)
    assert verdict
    assert "1 decisions changed, 1 are so close that they may" in verdict.detail
    original[2, 3] = port[2, 3] = np.float32(1.1 * BOUNDS.max_abs)
    port[2, 3] *= -1
    assert not decisions(port, original, truth, BOUNDS, **NAMES)


def test_a_row_with_a_nan_decides_nothing() -> None:
    original = logits()
    port = original.copy()
    port[4, 0] = math.nan
    verdict = decisions(port, original, marks(original), BOUNDS, **NAMES)
    assert verdict.measured["non_finite"] == 1
    assert verdict.measured["unexplained"] == 10
    assert verdict.measured["decisions_port"] == pytest.approx(95)
    assert not verdict


def test_parity_of_several_labels_tells_of_decisions() -> None:
    port = logits()
    port[0] *= -1
    measured = parity(port, logits(), BOUNDS, detail="", task="multilabel", **NAMES).measured
    assert measured["decision_agreement"] == pytest.approx(95)
    assert not {"top1_agreement", "top5_agreement"} & set(measured)
