"""What everything is judged by: too little, too much alike, or in another order is never a pass."""

from __future__ import annotations

import tracemalloc
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from trueport.runtime.bundle import Evaluation, Golden
from trueport.runtime.evidence import NEEDED, better_order, evidence, labels
from trueport.runtime.graph_facts import GraphFacts
from trueport.runtime.manifest import Manifest, Normalisation, Preprocessing, Provenance, TensorSpec

NAMES = tuple("abcdefgh")
ROWS = 200


def manifest() -> Manifest:
    return Manifest(
        name="letters",
        version="1",
        inputs=(TensorSpec("image", "uint8", (-1, 4, 4, 1)),),
        outputs=(TensorSpec("logits", "float32", (-1, len(NAMES))),),
        preprocessing=Preprocessing(height=4, width=4, mode="L"),
        normalisation=Normalisation((0.0,), (1.0,)),
        labels=NAMES,
        variants=(),
        provenance=Provenance(
            arch="x", arch_args={}, weights_sha256="", data="", data_sha256="", split_sha256="", seed=0, created="",
            versions={}, recipe={},
        ),
        files={},
    )  # fmt: skip


def pictures(rows: int = ROWS) -> NDArray[np.uint8]:
    return np.random.default_rng(0).integers(0, 256, (rows, 4, 4, 1), dtype=np.uint8)


def recorded(**changes: Any) -> Evaluation:
    """Two in three answers are right."""
    random = np.random.default_rng(1)
    truth = np.arange(ROWS) % len(NAMES)
    logits = random.normal(size=(ROWS, len(NAMES))).astype(np.float32)
    logits[np.arange(ROWS), truth] += 3
    parts: dict[str, Any] = {"images": pictures(), "labels": truth, "logits": logits} | changes
    return Evaluation(**parts)


def golden(**changes: Any) -> Golden:
    parts: dict[str, Any] = {"images": pictures(9), "logits": np.zeros((9, len(NAMES)), np.float32)} | changes
    return Golden(**parts, encoded=(), prepared=pictures(0))


def test_different_pictures_of_several_classes_are_evidence() -> None:
    verdict = evidence(manifest(), golden(), recorded())
    assert verdict
    assert verdict.measured["pictures"] == ROWS
    assert verdict.measured["classes"] == len(NAMES)


@pytest.mark.parametrize(
    ("images", "found"),
    [
        (np.repeat(pictures(1), ROWS, axis=0), 1),
        (np.repeat(np.arange(ROWS, dtype=np.uint8)[:, None, None, None], 16, axis=1).reshape(ROWS, 4, 4, 1), 0),
        (np.resize(pictures(NEEDED - 1), (ROWS, 4, 4, 1)), NEEDED - 1),
    ],
    ids=["one picture", "each of one colour", "one too few"],
)
def test_too_few_different_pictures_tell_nothing(images: NDArray[np.uint8], found: int) -> None:
    verdict = evidence(manifest(), golden(), recorded(images=images))
    assert verdict.status == "undecided"
    assert (verdict.measured["pictures"], verdict.needed) == (found, NEEDED)
    assert not verdict


def test_pictures_of_one_class_tell_nothing_about_the_others() -> None:
    verdict = evidence(manifest(), golden(), recorded(labels=np.full(ROWS, 3)))
    assert verdict.status == "undecided"
    assert "pictures of one class" in verdict.detail


def test_golden_inputs_of_one_kind_tell_nothing() -> None:
    verdict = evidence(manifest(), golden(images=np.zeros((9, 4, 4, 1), np.uint8)), recorded())
    assert verdict.status == "undecided"
    assert "rows of a batch" in verdict.detail


def test_an_original_that_answers_nan_fails() -> None:
    broken = golden(logits=np.full((9, len(NAMES)), np.nan, np.float32))
    verdict = evidence(manifest(), broken, recorded())
    assert verdict.status == "failed"
    assert "NaN or infinity for 9 of 209" in verdict.detail


def test_labels_in_another_order_are_found_by_the_answers_themselves() -> None:
    truth = recorded().labels
    moved = np.arange(len(NAMES))
    moved[[2, 5]] = moved[[5, 2]]
    for order, count in ((moved, 2), (np.roll(np.arange(len(NAMES)), 1), len(NAMES))):
        verdict = labels(manifest(), {}, recorded(labels=order[truth]), None)
        assert verdict.status == "failed"
        assert verdict.measured["moved_classes"] == count
        assert "labels were permuted" in verdict.detail
    assert labels(manifest(), {}, recorded(), None)


def test_many_classes_take_the_room_of_their_answers_and_not_of_all_pairs() -> None:
    """Of 2,000 classes twenty are permuted."""
    truth = np.arange(1200) % 20
    logits = np.zeros((len(truth), 2000), np.float32)
    logits[np.arange(len(truth)), (truth + 1) % 20] = 1
    tracemalloc.start()
    try:
        found = better_order(logits, truth)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert found == (20, 1.0)
    assert peak < 2000**2


def test_a_weak_model_shows_another_order_too() -> None:
    """Half of its answers are right, and one class is never answered."""
    random = np.random.default_rng(4)
    truth = np.arange(400) % len(NAMES)
    answers = np.where(random.random(400) < 0.5, truth, random.integers(0, len(NAMES), 400))
    answers[answers == 3] = 4
    logits = np.eye(len(NAMES), dtype=np.float32)[answers]
    assert better_order(logits, truth) == (0, 0.0)
    moved, gain = better_order(logits, (truth + 1) % len(NAMES))
    assert moved >= len(NAMES) - 1
    assert gain > 0.3


def test_a_poor_model_is_no_permutation() -> None:
    """Of models that guess, with or without a favourite class, none is ever taken for one."""
    random = np.random.default_rng(2)
    for bias in (0.0, 2.0):
        for _ in range(200):
            logits = random.normal(size=(60, 5))
            logits[:, 1] += bias
            assert better_order(logits, np.arange(60) % 5) == (0, 0.0)


def test_labels_of_graph_and_application_are_those_of_the_manifest() -> None:
    carried = GraphFacts(20, {"trueport.labels": '["a","b"]'})
    verdict = labels(manifest(), {"model.fp32.onnx": carried}, recorded(), None)
    assert not verdict
    assert "model.fp32.onnx: the labels that it was exported with" in verdict.detail
    assert labels(manifest(), {"model.fp32.onnx": GraphFacts(20, {})}, recorded(), NAMES)
    assert "the application has 2 labels, the manifest 8" in labels(manifest(), {}, recorded(), ("a", "b")).detail
