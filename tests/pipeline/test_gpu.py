"""On an NVIDIA GPU: the port is faithful there, and training learns. `make gpu` runs these."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from trueport.pipeline.check import check
from trueport.pipeline.recipe import load_recipe
from trueport.pipeline.train import train
from trueport.runtime import load

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no CUDA device"),
]


def test_every_gate_passes_on_cuda(bundle_path: Path) -> None:
    report = check(bundle_path, runners=["onnxruntime:cuda"])
    assert report, [verdict.would_pass for verdict in report.failed]
    assert report.runners[0].provider == "CUDAExecutionProvider"


def test_a_session_is_on_the_gpu(bundle_path: Path) -> None:
    with load(bundle_path, runner="onnxruntime:cuda") as session:
        assert session.report.provider == "CUDAExecutionProvider"
        evaluation = session.bundle.evaluation()
        assert (session.run(evaluation.images).argmax(1) == evaluation.logits.argmax(1)).all()


def test_training_on_cuda_learns(tmp_path: Path) -> None:
    info = train(load_recipe("digits", ["train.epochs=3", "train.device=cuda"]), tmp_path / "run")
    assert info.test_score > 0.8
