"""Answers that are right under names that are not: another order of classes."""

from __future__ import annotations

from dataclasses import replace

from ..deployment import Deployment
from .catalogue import DoesNotApplyError, Healthy, fault


@fault("permuted labels", "the manifest's labels are in another order", "labels")
def permute_the_manifest(healthy: Healthy) -> Deployment:
    """A manifest put together from a folder listing, which is sorted otherwise on every file system."""
    labels = healthy.bundle.manifest.labels
    return healthy.with_files({}, labels=(*labels[1:], labels[0]))


@fault("application's labels", "the application has the classes in another order", "labels")
def order_the_applications_labels(healthy: Healthy) -> Deployment:
    """Sorted as text, `10` comes before `2`; where that is the same, in reverse, as set() may have it."""
    labels = healthy.bundle.manifest.labels
    by_text = tuple(sorted(labels))
    return replace(healthy.deployment, labels=by_text if by_text != labels else labels[::-1])


@fault("background class", "the application counts a background class before the others", "labels")
def count_a_background(healthy: Healthy) -> Deployment:
    """1,001 names for 1,000 classes, as in TensorFlow's label files."""
    return replace(healthy.deployment, labels=("background", *healthy.bundle.manifest.labels))


@fault("relabelled evaluation", "the evaluation slice counts classes in another order", "labels")
def relabel_the_evaluation(healthy: Healthy) -> Deployment:
    """Held-out pictures from another folder, whose classes were sorted otherwise."""
    classes = len(healthy.bundle.manifest.labels)
    if healthy.bundle.manifest.task != "classification":
        raise DoesNotApplyError("pictures have several labels, whose order no gate holds against the answers")
    if classes < 2:
        raise DoesNotApplyError("there is one class")
    return healthy.with_evaluation(labels=(healthy.bundle.evaluation().labels + 1) % classes)
