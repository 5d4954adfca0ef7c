"""The export stage: a finished run becomes a bundle."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from trueport.runtime.errors import missing_extra
from trueport.runtime.manifest import Manifest

from .data import Dataset
from .data.dataset import Indices
from .data.tensors import prepared
from .recipe import Recipe
from .run_folder import Run, recipe_table

PICTURE_BYTES = 256 * 1024
"""Encoded pictures above this are not taken into the golden set."""


def export_run(path: Path, out: Path | None = None, recipe: Recipe | None = None) -> tuple[Path, Manifest]:
    """Export the run at `path` into a bundle at `out` (None: `bundle` inside the run); an older one is replaced.

    recipe: its name and its [export] decide; None: the run's own. Golden inputs and evaluation slice come from the
    held-out test part.
    Raises UsageError where run or data are not what was trained, ExportError where the graph can't be had.
    """
    try:
        from trueport.export.bundle import Origin, write_bundle
    except ModuleNotFoundError as error:
        raise missing_extra(error.name or "torch", "train", "export") from error
    run = Run.open(path)
    info, recipe = run.info, recipe or run.recipe()
    dataset, parts = run.data()
    original = run.original()
    golden = _spread(parts.test, recipe.export.golden)
    evaluated = _spread(parts.test, recipe.export.evaluation)
    out = out or path / "bundle"
    manifest = write_bundle(
        original,
        out,
        name=recipe.name,
        origin=Origin(info.data, info.data_sha256, info.split_sha256, info.seed, made_by(recipe)),
        golden=prepared(dataset, golden, original.preprocessing),
        pictures=_pictures(dataset, golden),
        evaluation=(prepared(dataset, evaluated, original.preprocessing), dataset.labels[evaluated]),
        precisions=recipe.export.precision,
        opset=recipe.export.opset,
    )
    return out, manifest


def made_by(recipe: Recipe) -> dict[str, Any]:
    """The part of a recipe that a bundle follows from: all but how it is looked at afterwards."""
    return {key: value for key, value in recipe_table(recipe).items() if key not in {"check", "bench"}}


def _spread(indices: Indices, count: int) -> Indices:
    """At most `count` of the ascending indices, evenly spaced, so that every class has its share."""
    if len(indices) <= count:
        return indices
    return indices[np.linspace(0, len(indices) - 1, count).round().astype(np.int64)]


def _pictures(dataset: Dataset, indices: Indices, count: int = 2) -> tuple[bytes, ...]:
    encoded = (dataset.encoded(index) for index in _spread(indices, count).tolist())
    return tuple(picture for picture in encoded if len(picture) <= PICTURE_BYTES)
