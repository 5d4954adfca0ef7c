"""The export stage: a finished run becomes a bundle."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from trueport.runtime.errors import missing_extra
from trueport.runtime.manifest import Manifest

from .data import Dataset
from .data.dataset import Indices
from .data.tensors import prepared
from .recipe import ExportSection
from .run_folder import Run

PICTURE_BYTES = 256 * 1024
"""Encoded pictures above this are not taken into the golden set."""


def export_run(path: Path, out: Path | None = None, section: ExportSection | None = None) -> tuple[Path, Manifest]:
    """Export the run at `path` into a bundle at `out` (None: `bundle` inside the run); an older one is replaced.

    section: None: the run's own recipe decides. Golden inputs and evaluation slice come from the held-out test part.
    Raises UsageError where run or data are not what was trained, ExportError where the graph can't be had.
    """
    try:
        from trueport.export.bundle import Origin, write_bundle
    except ModuleNotFoundError as error:
        raise missing_extra(error.name or "torch", "train", "export") from error
    run = Run.open(path)
    recipe = run.recipe()
    section = section or recipe.export
    dataset, parts = run.data()
    original = run.original()
    golden = _spread(parts.test, section.golden)
    evaluated = _spread(parts.test, section.evaluation)
    out = out or path / "bundle"
    manifest = write_bundle(
        original,
        out,
        name=recipe.name,
        origin=Origin(run.info.data, run.info.data_sha256, run.info.split_sha256, run.info.seed, run.info.recipe),
        golden=prepared(dataset, golden, original.preprocessing),
        pictures=_pictures(dataset, golden),
        evaluation=(prepared(dataset, evaluated, original.preprocessing), dataset.labels[evaluated]),
        precisions=section.precision,
        opset=section.opset,
    )
    return out, manifest


def _spread(indices: Indices, count: int) -> Indices:
    """At most `count` of the ascending indices, evenly spaced, so that every class has its share."""
    if len(indices) <= count:
        return indices
    return indices[np.linspace(0, len(indices) - 1, count).round().astype(np.int64)]


def _pictures(dataset: Dataset, indices: Indices, count: int = 2) -> tuple[bytes, ...]:
    encoded = (dataset.encoded(index) for index in _spread(indices, count).tolist())
    return tuple(picture for picture in encoded if len(picture) <= PICTURE_BYTES)
