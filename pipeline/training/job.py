"""What a training is to do, resolved and checked, and what there is of it already."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import torch

from trueport.export.original import Original
from trueport.runtime.errors import UsageError

from .. import run_folder
from ..checkpoint import Checkpoint, load_checkpoint
from ..data import Dataset, Split, split
from ..initial import load_initial
from ..recipe import Recipe
from ..resolve import model_spec, new_model, resolve
from ..run_folder import Run, RunInfo
from ..seeds import derived_seed

NOT_OF_THE_SETUP = {("train", "device"), ("train", "workers")}
"""Where it is computed, and by how many; the second changes no number."""


@dataclass(frozen=True)
class Job:
    """A training that can begin."""

    recipe: Recipe
    dataset: Dataset
    parts: Split
    original: Original
    """With its initial weights; its module is what is trained."""
    initial_sha256: str
    """Of the weights it starts from; empty where they are fresh."""
    processes: int
    notes: tuple[str, ...]
    """What a person should know before it begins."""

    @property
    def setup(self) -> dict[str, Any]:
        """All that the numbers follow from, flat."""
        return _setup(
            self.recipe, self.dataset.fingerprint, self.parts.fingerprint, self.initial_sha256, self.processes
        )

    def setup_of(self, info: RunInfo) -> dict[str, Any]:
        """Of a finished run, which may well have been trained by more or fewer processes."""
        recipe = Run(Path(), info).recipe()
        return _setup(recipe, info.data_sha256, info.split_sha256, info.initial_sha256, self.processes)


def new_job(recipe: Recipe, dataset: Dataset, processes: int = 1) -> Job:
    """Build the network with its initial weights and check that all goes together. Raises UsageError, MissingError."""
    section = recipe.data
    notes: list[str] = []
    if recipe.train.freeze and not recipe.model.init:
        notes.append("train.freeze is on and model.init is empty: the backbone keeps the weights it is built with")
    if recipe.train.epochs == 0 and not recipe.model.init:
        raise UsageError(
            "train.epochs is 0, which takes initial weights as they are, but there are none: "
            "set model.init to a file or imagenet, or train for an epoch or more"
        )
    preprocessing, normalisation = resolve(recipe, dataset)
    parts = split(dataset, section.validation, section.test, section.seed)
    with torch.random.fork_rng():
        torch.manual_seed(derived_seed(recipe.train.seed, "weights"))
        size = (preprocessing.height, preprocessing.width)
        module = new_model(recipe.model, len(dataset.classes), preprocessing.channels, size)
    initial = load_initial(module, recipe.model, model_spec(recipe.model.arch), len(dataset.classes), notes.append)
    untrained = [name for name in initial.fresh if not name.lower().startswith("aux")]  # which training alone sees
    if recipe.train.epochs == 0 and untrained:
        raise UsageError(
            f"train.epochs is 0, but {initial.source} does not bring {', '.join(untrained)}: "
            f"give weights for the {len(dataset.classes)} classes of the data, or train for an epoch or more"
        )
    original = Original(
        module,
        dataset.classes,
        preprocessing,
        normalisation,
        recipe.model.arch,
        dict(recipe.model.args),
        dataset.task,
    )
    return Job(recipe, dataset, parts, original, initial.sha256, processes, tuple(notes))


def found(job: Job, out: Path, replace: bool) -> Run | Checkpoint | None:
    """What there is of this training: the finished run, the checkpoint to go on from, or nothing.

    Raises UsageError where there is a run of another setup, unless it may be replaced.
    """
    there: Run | Checkpoint
    if (out / run_folder.RUN).exists():
        there = Run.open(out)
        before = job.setup_of(there.info)
    elif (out / run_folder.LAST).exists():
        there = load_checkpoint(out / run_folder.LAST)
        before = there.state.setup
    else:
        return None
    now = msgspec.to_builtins(job.setup)
    changed = [key for key in sorted(before.keys() | now.keys()) if before.get(key) != now.get(key)]
    if changed and not replace:
        raise _other_setup(out, changed, before, now)
    if not changed and isinstance(there, Checkpoint) and not (out / run_folder.WEIGHTS).exists():
        raise UsageError(
            f"{out} has lost its {run_folder.WEIGHTS}, the best so far: restore it, or discard the run with --afresh"
        )
    return None if changed else there


def _setup(recipe: Recipe, data_sha256: str, split_sha256: str, initial_sha256: str, processes: int) -> dict[str, Any]:
    table = run_folder.recipe_table(recipe)
    flat = {
        f"{section}.{key}": value
        for section in ("model", "preprocessing", "augment", "train")
        for key, value in table[section].items()
        if (section, key) not in NOT_OF_THE_SETUP
    }
    told = {"the data": data_sha256, "the split": split_sha256, "the initial weights": initial_sha256}
    return flat | told | {"processes": processes}


def _other_setup(out: Path, changed: list[str], before: dict[str, Any], now: dict[str, Any]) -> UsageError:
    missing = "left out"
    told = [
        f"{key} (not the same)"
        if key.startswith("the ")
        else f"{key} (was {before.get(key, missing)}, is {now.get(key, missing)})"
        for key in changed
    ]
    return UsageError(
        f"{out} holds a run of another setup, different in {', '.join(told)}: "
        "train into another folder, or discard this one with --afresh"
    )
