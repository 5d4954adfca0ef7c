"""The export stage: a finished run becomes a bundle."""

from __future__ import annotations

from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np

from trueport.runtime.errors import UsageError, missing_extra
from trueport.runtime.manifest import Manifest, Preprocessing

from .data import Dataset
from .data.dataset import Indices
from .data.split import Split
from .data.tensors import prepared
from .recipe import ExportSection, Recipe
from .run_folder import LAST, RUN, Run, recipe_table

if TYPE_CHECKING:
    from trueport.export.variants import Material

PICTURE_BYTES = 256 * 1024
"""Encoded pictures above this are not taken into the golden set."""
LOOKED_AT = 32
"""Encoded pictures of which the golden set takes those that are small enough."""
VALIDATION = 500
"""Pictures of the validation part that calibrations are compared on, at most: a fifth of a point each."""


def export_run(
    path: Path, out: Path | None = None, recipe: Recipe | None = None, say: Callable[[str], None] = lambda _: None
) -> tuple[Path, Manifest]:
    """Export the run at `path` into a bundle at `out` (None: `bundle` inside the run); an older one is replaced.

    recipe: its name and its [export] decide; None: the run's own. Golden inputs and evaluation slice come from the
    held-out test part; int8 is calibrated on the training part and chosen by the validation part. say is told what is
    done.
    Raises UsageError where run or data are not what was trained or can't be calibrated on, ExportError where a graph
    can't be had.
    """
    try:
        from trueport.export.bundle import Origin, write_bundle
        from trueport.export.int8 import Int8Options
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
        material=_material(dataset, parts, original.preprocessing, recipe.export),
        opset=recipe.export.opset,
        max_drop=recipe.export.max_drop,
        int8=Int8Options(**msgspec.structs.asdict(recipe.export.int8)),
        say=say,
    )
    return out, manifest


def tell_warnings(manifest: Manifest, say: Callable[[str], None]) -> None:
    """What export found doubtful in a bundle's variants, a line each."""
    for variant in manifest.variants:
        for warning in variant.warnings:
            say(f"warning: {variant.name}: {warning}")


def _material(dataset: Dataset, parts: Split, preprocessing: Preprocessing, section: ExportSection) -> Material | None:
    """Pictures for the precisions that need any, none where there is no such."""
    from trueport.export.variants import Material

    if not {"fp16", "int8"} & set(section.precision):
        return None
    calibration = prepared(dataset, parts.calibration(section.int8.samples), preprocessing)
    if "int8" not in section.precision:
        return Material(calibration)
    judged = _spread(parts.validation, VALIDATION)
    return Material(calibration, prepared(dataset, judged, preprocessing), dataset.labels[judged])


def run_of_weights(recipe: Recipe) -> tuple[Run, Recipe]:
    """A run that is nothing but the weights `model.init` as they are, measured on the test part; and its recipe.

    It is in `runs/NAME-given`; there again for other weights, it is made anew, since it has cost no training.
    Raises UsageError where the weights are none for this architecture and data, as `train` does, and where a training
    is in that folder.
    """
    from .train import train

    folder = Path("runs") / f"{recipe.name}-given"
    finished = (folder / RUN).exists()
    if Run.open(folder).info.epochs if finished else (folder / LAST).exists():
        raise UsageError(f"{folder} holds a training: call this export otherwise, --set name=…, or move that away")
    taken = msgspec.structs.replace(recipe, train=msgspec.structs.replace(recipe.train, epochs=0))
    return Run(folder, train(taken, folder, replace=True)), taken


def made_by(recipe: Recipe) -> dict[str, Any]:
    """The part of a recipe that a bundle follows from: all but how it is looked at afterwards."""
    return {key: value for key, value in recipe_table(recipe).items() if key not in {"check", "bench"}}


def _spread(indices: Indices, count: int) -> Indices:
    """At most `count` of the ascending indices, evenly spaced, so that every class has its share."""
    if len(indices) <= count:
        return indices
    return indices[np.linspace(0, len(indices) - 1, count).round().astype(np.int64)]


def _pictures(dataset: Dataset, indices: Indices, count: int = 2) -> tuple[bytes, ...]:
    """A few that are small enough to be shipped; where the first ones are not, more are looked at."""
    for looked_at in (count, LOOKED_AT):
        encoded = (dataset.encoded(index) for index in _spread(indices, looked_at).tolist())
        small = tuple(islice((picture for picture in encoded if len(picture) <= PICTURE_BYTES), count))
        if small:
            return small
    return ()
