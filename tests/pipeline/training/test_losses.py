"""Losses are sums over rows, whatever targets, smoothing, weights and auxiliary classifiers do to them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional

from trueport.pipeline.recipe import TrainSection
from trueport.pipeline.training.losses import Loss, new_loss
from trueport.runtime.errors import UsageError
from trueport.runtime.manifest import Task

CPU = torch.device("cpu")
LABELS = np.array([0, 0, 0, 0, 1, 2])
MARKS = np.array([[1, 0, 1], [1, 1, 0], [1, 0, 0], [0, 0, 1]], np.uint8)
LOGITS = torch.tensor([[2.0, -1.0, 0.5], [0.1, 0.2, -3.0], [1.0, 1.0, 1.0], [-2.0, 4.0, 0.0]])


def loss(task: Task = "classification", **changes: Any) -> Loss:
    labels = LABELS if task == "classification" else MARKS
    return new_loss(TrainSection(**changes), task, labels, 3, CPU)


def test_cross_entropy_is_a_sum_of_rows_of_classes_or_shares() -> None:
    targets = torch.tensor([0, 1, 2, 1])
    by_class = loss().sum(LOGITS, targets)
    assert by_class == pytest.approx(4 * functional.cross_entropy(LOGITS, targets).item())
    assert loss().sum(LOGITS, functional.one_hot(targets).float()) == pytest.approx(by_class.item())
    shares = torch.tensor([[0.25, 0.75, 0.0]]).expand(4, 3)
    expected = sum(share * functional.cross_entropy(LOGITS, torch.full((4,), it), reduction="sum").item()
                   for it, share in enumerate((0.25, 0.75)))  # fmt: skip
    assert loss().sum(LOGITS, shares) == pytest.approx(expected)
    assert loss(label_smoothing=0.1).sum(LOGITS.double(), shares).dtype == torch.float64


def test_balanced_classes_count_alike_and_pictures_one_on_average() -> None:
    weights = loss(class_weights="balanced").weights
    assert weights is not None
    assert weights.tolist() == pytest.approx([0.5, 2.0, 2.0])
    assert weights[torch.from_numpy(LABELS)].mean() == pytest.approx(1.0)
    even = torch.zeros(6, 3)  # every row alike: only the weights tell classes apart
    total = loss(class_weights="balanced").sum(even, torch.from_numpy(LABELS))
    assert total == pytest.approx(6 * np.log(3))


def test_several_labels_are_as_many_questions() -> None:
    marks = torch.from_numpy(MARKS).float()
    expected = functional.binary_cross_entropy_with_logits(LOGITS, marks).item() * 4
    assert loss("multilabel").sum(LOGITS, marks) == pytest.approx(expected)
    assert loss("multilabel").sum(LOGITS, torch.from_numpy(MARKS)) == pytest.approx(expected)
    sure = torch.full((1, 3), 50.0)
    smoothed = loss("multilabel", label_smoothing=0.2).sum(sure, torch.ones(1, 3))
    assert smoothed == pytest.approx(0.1 * 50)
    weights = loss("multilabel", class_weights="balanced").weights
    assert weights is not None
    assert weights.tolist() == pytest.approx([1 / 3, 3.0, 1.0])


def test_one_label_can_be_learnt_by_binary_cross_entropy() -> None:
    targets = torch.tensor([0, 1, 2, 1])
    expected = functional.binary_cross_entropy_with_logits(LOGITS, functional.one_hot(targets).float()).item() * 4
    assert loss(loss="binary-cross-entropy").sum(LOGITS, targets) == pytest.approx(expected)
    smoothed = loss(loss="binary-cross-entropy", label_smoothing=0.3)._smoothed(targets)
    assert smoothed.sum(1).tolist() == pytest.approx([1.0] * 4)
    assert smoothed[0].tolist() == pytest.approx([0.8, 0.1, 0.1])


def test_auxiliary_classifiers_are_part_of_what_is_minimised_and_not_of_what_is_told() -> None:
    targets = torch.tensor([0, 1, 2, 1])
    main, whole = loss(auxiliary_weight=0.25).sums((LOGITS, LOGITS * 2, LOGITS * 3), targets)
    parts = [functional.cross_entropy(LOGITS * factor, targets, reduction="sum").item() for factor in (1, 2, 3)]
    assert main == pytest.approx(parts[0])
    assert whole == pytest.approx(parts[0] + 0.25 * (parts[1] + parts[2]))
    alone, same = loss().sums(LOGITS, targets)
    assert alone is same


def test_what_does_not_fit_is_said() -> None:
    with pytest.raises(UsageError, match=r"answers \(4, 3\) for 4 pictures, expected \(4, 5\), a logit for each class"):
        new_loss(TrainSection(), "classification", LABELS, 5, CPU).sum(LOGITS, torch.tensor([0, 1, 2, 1]))
    with pytest.raises(UsageError, match=r"cross-entropy, but the data has several labels a picture"):
        loss("multilabel", loss="cross-entropy")
