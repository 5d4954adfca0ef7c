"""What everything is judged by is worth nothing: recordings and pictures from which no faithful port can be told."""

from __future__ import annotations

import numpy as np

from ..deployment import Deployment
from .catalogue import DoesNotApplyError, Healthy, fault

FEW = 4


@fault("nan in the recording", "the recorded answers of the original hold a NaN", "evidence")
def record_a_nan(healthy: Healthy) -> Deployment:
    """A recording made on a GPU in half precision: differences from a NaN are never large."""
    logits = healthy.bundle.golden().logits.copy()
    logits[0, 0] = np.nan
    return healthy.with_golden(logits=logits)


@fault("other golden set", "the golden set is of another bundle", "evidence")
def take_another_golden_set(healthy: Healthy) -> Deployment:
    """golden.npz copied between two versions of one model: the same shapes, another original's answers."""
    logits = healthy.bundle.golden().logits
    return healthy.with_golden(logits=np.roll(logits, 1, axis=1) * np.float32(1.1))


@fault("one class", "all evaluation pictures are of one class", "evidence")
def keep_one_class(healthy: Healthy) -> Deployment:
    """The first so many files of a sorted folder."""
    if healthy.bundle.manifest.task != "classification":
        raise DoesNotApplyError("a picture has several labels")
    truth = healthy.bundle.evaluation().labels
    return _rows(healthy, truth == np.bincount(truth).argmax())


@fault("few samples", "there are only a few evaluation pictures", "evidence")
def keep_a_few(healthy: Healthy) -> Deployment:
    """A slice made for a quick look."""
    rows = len(healthy.bundle.evaluation().images)
    if rows <= FEW:
        raise DoesNotApplyError(f"there are {rows} to begin with")
    return _rows(healthy, np.arange(rows) % (rows // FEW) == 0)


@fault("constant pictures", "the evaluation pictures are constant", "evidence")
def make_them_constant(healthy: Healthy) -> Deployment:
    """A broken loader: every picture is grey, and every port answers as the original does."""
    return _pictures(healthy, np.full_like(healthy.bundle.evaluation().images, 128))


@fault("one picture", "the evaluation pictures are one, many times", "evidence")
def repeat_one(healthy: Healthy) -> Deployment:
    """A generator that yields one array, filled anew each time: the last picture, as often as there are pictures."""
    images = healthy.bundle.evaluation().images
    return _pictures(healthy, np.repeat(images[-1:], len(images), axis=0))


@fault("constant golden set", "the golden inputs are constant", "evidence")
def make_the_golden_set_constant(healthy: Healthy) -> Deployment:
    """Recorded on torch.zeros, as an exporter's example is."""
    golden = healthy.bundle.golden()
    return healthy.with_golden(images=np.zeros_like(golden.images), logits=_answers(healthy, golden.images * 0))


def _rows(healthy: Healthy, kept: np.ndarray) -> Deployment:
    evaluation = healthy.bundle.evaluation()
    return healthy.with_evaluation(**{name: values[kept] for name, values in vars(evaluation).items()})


def _pictures(healthy: Healthy, images: np.ndarray) -> Deployment:
    """Other pictures, with what the original truly answers to them."""
    return healthy.with_evaluation(images=images, logits=_answers(healthy, images))


def _answers(healthy: Healthy, images: np.ndarray) -> np.ndarray:
    from trueport.export.golden import answers

    return answers(healthy.original(), images)
