"""What a fault does to those who use the deployment, measured apart from any gate.

A fault that changes nothing on this model is none: padding that is moved where there are zeros, an order of two equal
values. Logits count where they move by more than the original differs from itself in the variant's precision.
"""

from __future__ import annotations

from contextlib import closing
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trueport.runtime.bundle import EVALUATION, GOLDEN, WEIGHTS
from trueport.runtime.errors import TrueportError
from trueport.runtime.runner import run_in_batches

from ..deployment import Deployment
from .catalogue import Fault, Healthy, opened

ROWS = 64
"""Of the evaluation slice, beside the golden inputs."""


@dataclass(frozen=True, eq=False)
class Unharmed:
    """What a healthy deployment answers, to compare with."""

    deployment: Deployment
    images: NDArray[np.uint8]
    logits: NDArray[Any]
    """(N, K) of the variant on its runner."""
    provider: str
    layers: dict[str, int]
    noise: float
    """Largest distance of the original from itself, in the variant's precision."""


def unharmed(healthy: Healthy) -> Unharmed:
    """Ask the healthy deployment."""
    images = _images(healthy.deployment)
    with closing(healthy.open()) as runner:
        logits, report = run_in_batches(runner, images), runner.report()
    bounds = healthy.variant.bounds
    return Unharmed(healthy.deployment, images, logits, report.provider, report.layers, bounds.noise_max_abs)


def harm(fault: Fault, faulty: Deployment, healthy: Healthy, before: Unharmed) -> str:
    """What changes, in a few words; nothing where nothing does that could be told from noise."""
    return (
        _pixels(before.deployment, faulty)
        or _labels(before.deployment, faulty)
        or _evidence(before.deployment, faulty)
        or _answers(fault, faulty, healthy, before)
    )


def _images(deployment: Deployment) -> NDArray[np.uint8]:
    golden, evaluation = deployment.bundle.golden(), deployment.bundle.evaluation()
    return np.concatenate([golden.images, evaluation.images[:ROWS]])


def _pixels(healthy: Deployment, faulty: Deployment) -> str:
    if healthy.prepare is faulty.prepare:
        return ""
    preprocessing = healthy.bundle.manifest.preprocessing
    largest = 0
    for encoded in healthy.bundle.golden().encoded:
        ours, theirs = (np.asarray(one.prepare(encoded, preprocessing), np.int16) for one in (healthy, faulty))
        largest = max(largest, int(np.abs(ours - theirs).max()))
    return f"pixels move by up to {largest} of 255" if largest else ""


def _labels(healthy: Deployment, faulty: Deployment) -> str:
    ours, theirs = (one.labels or one.bundle.manifest.labels for one in (healthy, faulty))
    if len(ours) != len(theirs):
        return f"{len(theirs)} names for {len(ours)} classes"
    other = sum(a != b for a, b in zip(ours, theirs, strict=True))
    return f"{other} of {len(ours)} classes have another name" if other else ""


def _evidence(healthy: Deployment, faulty: Deployment) -> str:
    """Whether what everything is judged by is another."""
    changed = []
    mine, theirs = healthy.bundle, faulty.bundle
    for name, ours, others in (
        (GOLDEN, mine.golden(), theirs.golden()),
        (EVALUATION, mine.evaluation(), theirs.evaluation()),
    ):
        if any(not np.array_equal(value, vars(others)[key]) for key, value in vars(ours).items()):
            changed.append(name)
    if mine.manifest.files.get(WEIGHTS) != theirs.manifest.files.get(WEIGHTS):
        changed.append(WEIGHTS)
    return f"{' and '.join(changed)} is another" if changed else ""


def _answers(fault: Fault, faulty: Deployment, healthy: Healthy, before: Unharmed) -> str:
    asked = fault.runner or healthy.runner
    try:
        with closing(opened(faulty, asked, healthy.variant.name, healthy.options)) as runner:
            report, logits = runner.report(), run_in_batches(runner, before.images)
    except TrueportError as error:
        return f"it can't be opened: {error}"
    except Exception as error:  # noqa: BLE001 -- whatever a library raises while it runs is no answer
        return f"it does not answer: {str(error).strip().splitlines()[0][:160]}"
    if report.provider == before.provider and asked != healthy.runner:
        return f"{asked} runs on {report.provider}"
    precision = healthy.variant.precision
    if precision in before.layers and precision not in report.layers:
        return f"it computes in {', '.join(report.layers)}"
    return _moved(logits, before)


def _moved(logits: NDArray[Any], before: Unharmed) -> str:
    if logits.shape != before.logits.shape:
        return f"it answers {list(logits.shape)} for {list(before.logits.shape)}"
    if not np.isfinite(logits).all():
        return "it answers NaN or infinity"
    moved = float(np.abs(logits.astype(np.float64) - before.logits).max())
    return f"logits move by up to {moved:.3g}, the noise is {before.noise:.3g}" if moved > before.noise else ""
