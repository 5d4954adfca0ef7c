"""Learning rate, optimizer and what a recipe leaves open."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from trueport.pipeline.data import open_dataset
from trueport.pipeline.progress import SECONDS_BETWEEN_LINES, SECONDS_OF_SILENCE, Lines
from trueport.pipeline.recipe import TrainSection, recipe_from_table
from trueport.pipeline.resolve import resolve
from trueport.pipeline.seeds import derived_seed
from trueport.pipeline.training import evaluation
from trueport.pipeline.training.distributed import Processes
from trueport.pipeline.training.losses import new_loss
from trueport.runtime.errors import UsageError


def test_evaluate_counts_over_several_batches_in_eval_mode(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(evaluation, "BATCH", 3)

    class Parity(torch.nn.Module):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            assert not self.training
            odd = images.flatten(1)[:, 0] % 2 == 1
            return torch.stack([torch.where(odd, -50.0, 50.0), torch.where(odd, 50.0, -50.0)], 1)

    images = torch.arange(8, dtype=torch.uint8).reshape(8, 1, 1, 1)
    labels = torch.tensor([0, 1, 0, 1, 0, 1, 1, 0])
    here = Processes(torch.device("cpu"))
    loss = new_loss(TrainSection(), "classification", labels.numpy(), 2, here.device)
    measured = evaluation.evaluate(Parity(), evaluation.Labelled(images, labels), loss, here)
    assert measured.score == 0.75
    assert measured.loss == pytest.approx(2 / 8 * 100)
    marks = torch.stack([labels == 0, labels == 1], 1).to(torch.uint8)
    several = new_loss(TrainSection(), "multilabel", marks.numpy(), 2, here.device)
    measured = evaluation.evaluate(Parity(), evaluation.Labelled(images, marks), several, here)
    assert measured.score == pytest.approx(0.75 * 0.75 + 0.25 * 0.5)  # three of the first four, all after eight
    assert measured.loss == pytest.approx(2 / 8 * 50)


def test_derived_seeds_differ_by_every_part() -> None:
    seeds = {derived_seed(seed, purpose, epoch) for seed in (0, 1) for purpose in ("a", "b") for epoch in (1, 11)}
    assert len(seeds) == 8
    assert all(0 <= seed < 2**63 for seed in seeds)
    assert derived_seed(0, "order", 1) == 1332101017241992705


def test_resolve_takes_size_from_the_architecture_and_mode_from_the_data() -> None:
    digits = open_dataset("digits")
    preprocessing, normalisation = resolve(recipe_from_table({"name": "x"}), digits)
    assert preprocessing.shape == (32, 32, 1)
    assert normalisation.mean == (0.5,)
    spelt_out = {"name": "x", "preprocessing": {"mean": [0], "std": [1]}, "model": {"arch": "bpnet"}}
    assert resolve(recipe_from_table(spelt_out), digits)[1].std == (1.0,)
    asked = recipe_from_table({"name": "x", "preprocessing": {"mode": "RGB", "mean": [0.25]}})
    preprocessing, normalisation = resolve(asked, digits)
    assert preprocessing.shape == (32, 32, 3)
    assert normalisation.mean == (0.25, 0.25, 0.25)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"preprocessing": {"size": 48}}, "lenet takes 32 x 32 pictures and no others, found 48 x 48: change preproc"),
        ({"preprocessing": {"size": 32}, "model": {"arch": "bpnet"}}, "bpnet takes 25 x 15 or .* found 32 x 32"),
        (
            {"preprocessing": {"mean": [0.5]}, "model": {"arch": "bpnet"}},
            r"bpnet takes pictures of mean 0.0 and std 1.0 and no others, found mean \[0.5\] and std \[1.0\]: leave",
        ),
        ({"preprocessing": {"std": [0.5]}, "model": {"arch": "bpnet"}}, r"found mean \[0.0\] and std \[0.5\]: leave"),
        ({"preprocessing": {"mean": [0.1, 0.2, 0.3]}}, "mean and std need one value, or 1 for"),
        ({"preprocessing": {"std": [0.0]}}, "std must be positive"),
        ({"preprocessing": {"resize_to": 40}}, "resize_to goes with"),
        ({"model": {"arch": "lennet"}}, "unknown architecture 'lennet': did you mean lenet"),
    ],
)
def test_resolve_refuses_what_does_not_go_together(changes: dict[str, object], sentence: str) -> None:
    with pytest.raises(UsageError, match=sentence):
        resolve(recipe_from_table({"name": "x", **changes}), open_dataset("digits"))


def test_lines_come_at_a_moderate_pace_and_the_last_always() -> None:
    import io

    now, shown = [0.0], io.StringIO()
    lines = Lines(shown, lambda: now[0])
    lines.begin("training", 100)
    for epoch in range(1, 11):
        now[0] += SECONDS_BETWEEN_LINES / 4
        lines.advance(10)
        lines.report(f"epoch {epoch}", last=epoch == 10)
    assert shown.getvalue().splitlines() == ["training: 100 pictures", "epoch 1", "epoch 5", "epoch 9", "epoch 10"]


def test_a_log_hears_of_work_that_takes_long() -> None:
    import io

    now, shown = [0.0], io.StringIO()
    lines = Lines(shown, lambda: now[0])
    lines.begin("training", 1000)
    for _ in range(10):
        now[0] += SECONDS_OF_SILENCE / 4
        lines.advance(100, "loss 1.5")
    told = ["training: 400 of 1,000 pictures, loss 1.5", "training: 800 of 1,000 pictures, loss 1.5"]
    assert shown.getvalue().splitlines() == ["training: 1,000 pictures", *told]


def test_the_normalisation_in_training_is_that_of_the_graph() -> None:
    """Training feeds the very module that export writes out; here its input side is compared with the formula."""
    from trueport.export.original import Original, served_module

    preprocessing, normalisation = resolve(recipe_from_table({"name": "x"}), open_dataset("digits"))
    original = Original(torch.nn.Flatten(), ("a", "b"), preprocessing, normalisation, "none")
    images = torch.arange(1024, dtype=torch.int64).to(torch.uint8).reshape(1, 32, 32, 1)
    expected = (images.numpy().astype(np.float32) / np.float32(255) - np.float32(0.5)) / np.float32(0.5)
    assert np.array_equal(served_module(original)(images).numpy(), expected.reshape(1, -1))
    assert math.isclose(float(expected.max()), 1.0)
