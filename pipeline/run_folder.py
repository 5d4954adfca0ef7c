"""The run: the folder that training writes and every later stage reads.

run.json             RunInfo; written last, its presence marks a finished run
recipe.toml          the recipe in full, defaults included
weights.safetensors  of the best epoch
last.safetensors     model, optimizer and state after the last complete epoch, to go on from
metrics.jsonl        EpochMetrics, one line an epoch
tensorboard/         the same as event files
training.lock        held by the training that writes here, empty
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import os
import platform
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import msgspec

from trueport.runtime.atomic import is_filled, write_bytes, write_text
from trueport.runtime.errors import UsageError, missing_extra
from trueport.runtime.manifest import Normalisation, Preprocessing, Task

from .data import Dataset, Split, dataset_names, open_dataset, split
from .recipe import ModelSection, Recipe, recipe_from_table
from .resolve import new_model

if TYPE_CHECKING:
    from torch import Tensor, nn

    from trueport.export.original import Original

SCHEMA = 2
RUN, RECIPE, METRICS, TENSORBOARD = "run.json", "recipe.toml", "metrics.jsonl", "tensorboard"
WEIGHTS, LAST, LOCK = "weights.safetensors", "last.safetensors", "training.lock"
MARKS = (RUN, LAST, "stages.json", LOCK)
"""Files that nothing but trueport writes; a recipe.toml may well be a user's own."""


METRIC: dict[Task, str] = {"classification": "top-1 accuracy", "multilabel": "mean average precision"}
"""What a score is: the number that chooses the best epoch, 0 to 1."""


class EpochMetrics(msgspec.Struct, frozen=True, kw_only=True):
    """One epoch: a line of metrics.jsonl."""

    epoch: int
    """From 1."""
    learning_rate: float
    """At the last step."""
    train_loss: float
    """Mean over the augmented training pictures while the weights were changing."""
    validation_loss: float
    """The same loss, label smoothing included, on pictures as they are."""
    validation_score: float
    """0 to 1, see `METRIC`."""
    seconds: float
    images_per_s: float
    """Training pictures a second, validation not counted."""


class RunInfo(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The whole of run.json."""

    schema: int = SCHEMA
    task: Task
    arch: str
    arch_args: dict[str, int | float | str | bool]
    labels: tuple[str, ...]
    preprocessing: Preprocessing
    normalisation: Normalisation
    data: str
    """The data set's name; for a folder its own name."""
    data_sha256: str
    split_sha256: str
    weights_sha256: str
    initial_sha256: str = ""
    """Of the weights it started from; empty: fresh."""
    seed: int
    epochs: int
    """Complete ones; 0: the initial weights as they were."""
    best_epoch: int
    metric: str
    """What the scores are: top-1 accuracy, or the mean average precision where a picture has several labels."""
    validation_score: float
    """Of the best epoch, 0 to 1; it chose that epoch, so it is no estimate."""
    validation_loss: float
    test_score: float
    """On the held-out test pictures, 0 to 1."""
    test_loss: float
    train_count: int
    validation_count: int
    test_count: int
    parameters: int
    seconds: float
    """Spent in epochs, interrupted ones not counted."""
    processes: int = 1
    """That trained together."""
    device: str
    versions: dict[str, str]
    recipe: dict[str, Any]

    def told(self) -> str:
        """How good it is, in a line."""
        best = f"epoch {self.best_epoch} of {self.epochs}" if self.epochs else "as it was given"
        return (
            f"{self.metric} {self.test_score:.2%} on {self.test_count} held-out test pictures "
            f"({best}, {self.parameters:,} parameters)"
        )


@dataclass(frozen=True)
class Run:
    """A finished run."""

    path: Path
    info: RunInfo

    @classmethod
    def open(cls, path: str | Path) -> Run:
        """Read and validate. Raises UsageError where this is no run, or not a finished one."""
        path = Path(path)
        if not (path / RUN).is_file():
            raise UsageError(_why_no_run(path))
        if not (path / WEIGHTS).is_file():
            raise UsageError(f"the run {path} has lost its {WEIGHTS}: restore it, or train afresh")
        return cls(path, _decode(path / RUN))

    def recipe(self) -> Recipe:
        """The recipe it was trained by."""
        return recipe_from_table(dict(self.info.recipe))

    def metrics(self) -> list[EpochMetrics]:
        """Every epoch, in order."""
        return read_metrics(self.path / METRICS)

    def weights(self) -> dict[str, Tensor]:
        """The best epoch's weights. Raises UsageError where the file is damaged or of another model than run.json."""
        return self.model().state_dict()

    def model(self) -> nn.Module:
        """The trained network in eval mode, on the CPU. Raises UsageError, see `weights`."""
        info, file = self.info, self.path / WEIGHTS
        model = new_model(
            ModelSection(arch=info.arch, args=info.arch_args), len(info.labels), info.preprocessing.channels
        )
        load_weights(model, read_tensors(file), file, info.labels)
        if file_sha256(file) != info.weights_sha256:
            raise UsageError(f"{file} is not the file whose accuracy {RUN} states: restore it, or train again")
        return model.eval()

    def original(self) -> Original:
        """The trained network with what turns a picture into its input. Raises UsageError, see `weights`."""
        from trueport.export.original import Original

        info = self.info
        return Original(
            self.model(), info.labels, info.preprocessing, info.normalisation, info.arch, info.arch_args, info.task
        )

    def data(self) -> tuple[Dataset, Split]:
        """The data and split it was trained on. Raises UsageError where either is not the same any more."""
        section = self.recipe().data
        try:
            dataset = open_dataset(section.source)
        except UsageError as error:
            path = Path(section.source).expanduser()
            if section.source in dataset_names() or path.is_absolute() or path.exists():
                raise
            raise UsageError(
                f"{error}; {self.path} was trained where it is called so: go there, or move it here"
            ) from error
        if dataset.fingerprint != self.info.data_sha256:
            raise UsageError(
                f"the data {section.source} has changed since the run {self.path} was trained: train again"
            )
        parts = split(dataset, section.validation, section.test, section.seed)
        if parts.fingerprint != self.info.split_sha256:
            raise UsageError(f"the split of {section.source} is not the one {self.path} was trained on: train again")
        return dataset, parts


def refuse_foreign(path: Path) -> None:
    """Raise UsageError where something is at `path` that is neither a run, begun or finished, nor an empty folder."""
    if is_filled(path) and not any((path / mark).is_file() for mark in MARKS):
        raise UsageError(
            f"{path} is not empty and no run, which has {' or '.join(MARKS[:-1])}: "
            "refusing to write into it, choose another folder"
        )


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Keep every other training out of the folder `path`, which is made where there is none; any end unlocks it.

    The lock's file stays and marks the folder as ours, unless nothing else was put there: then all is as it was before.
    Raises UsageError where another training holds the lock.
    """
    existed = path.is_dir()
    path.mkdir(parents=True, exist_ok=True)
    with (path / LOCK).open("ab") as file:
        if not _lock(file) or not _is_at(file, path / LOCK):
            raise UsageError(f"another training is writing {path}: wait for its end, or train into another folder")
        try:
            yield
        finally:
            if [entry.name for entry in path.iterdir()] == [LOCK]:
                with suppress(OSError):  # Windows removes no open file: then it stays
                    (path / LOCK).unlink()
                    if not existed:
                        path.rmdir()


def _lock(file: IO[bytes]) -> bool:
    """Lock without waiting; the system unlocks when the file is closed or its process ends. False where it is taken."""
    try:
        if sys.platform == "win32":
            import msvcrt

            msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
        else:
            import fcntl

            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        return False
    except OSError:
        return True  # a file system without locks: better an unguarded training than none
    return True


def _is_at(file: IO[bytes], path: Path) -> bool:
    """Whether it was not removed between opening and locking."""
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except FileNotFoundError:
        return False


def refreshed(run: Run, recipe: Recipe) -> Run:
    """The run with this recipe in run.json and recipe.toml, for where only what training does not depend on differs."""
    table = recipe_table(recipe)
    write_recipe(run.path / RECIPE, recipe)
    if table == run.info.recipe:
        return run
    info = msgspec.structs.replace(run.info, recipe=table)
    write_info(run.path / RUN, info)
    return Run(run.path, info)


def load_weights(model: nn.Module, weights: Mapping[str, Tensor], file: Path, labels: tuple[str, ...]) -> None:
    """Put weights into a model in place. Raises UsageError that says what does not match: classes, shapes, names."""
    from trueport.models.state import load_tensors

    expected = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    found = {name: tuple(value.shape) for name, value in weights.items()}
    for name in sorted(expected.keys() ^ found.keys()):
        side = "lacks" if name in expected else "has an unexpected"
        raise UsageError(f"{file} {side} tensor {name}: it is of another architecture than the run")
    for name, shape in expected.items():
        if found[name] == shape:
            continue
        if shape[:1] == (len(labels),) and found[name][1:] == shape[1:]:
            raise UsageError(
                f"{file} was trained for {found[name][0]} classes, the run has {len(labels)} "
                f"({', '.join(labels[:3])}, …): use the weights that belong to it, or train again"
            )
        raise UsageError(f"{file} has {name} as {found[name]}, the model expects {shape}: it is of another model")
    load_tensors(model, weights)


def read_tensors(file: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file, on the CPU. Raises UsageError for a damaged one."""
    try:
        from safetensors import SafetensorError
        from safetensors.torch import load
    except ModuleNotFoundError as error:
        raise missing_extra(error.name or "safetensors", "train", "reading weights") from error
    try:
        return load(file.read_bytes())
    except (OSError, SafetensorError) as error:
        raise UsageError(f"can't read {file}: {error}; it is damaged, train afresh") from error


def write_recipe(path: Path, recipe: Recipe) -> None:
    """Put a recipe at `path` as TOML, defaults included; the same one is left. Raises MissingError without tomli_w."""
    try:
        import tomli_w
    except ModuleNotFoundError as error:
        raise missing_extra("tomli_w", "train", "writing the recipe") from error
    text = tomli_w.dumps(recipe_table(recipe))
    if not path.is_file() or path.read_bytes() != text.encode():
        write_text(path, text)


def recipe_table(recipe: Recipe) -> dict[str, Any]:
    """A recipe as nested tables of plain values; what is None is left out, as TOML has no word for it."""

    def without_none(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: without_none(item) for key, item in value.items() if item is not None}
        return list(value) if isinstance(value, tuple) else value

    table: dict[str, Any] = without_none(msgspec.to_builtins(recipe))
    return table


def write_info(path: Path, info: RunInfo) -> None:
    """Put run.json at `path`."""
    write_bytes(path, msgspec.json.format(msgspec.json.encode(info), indent=2) + b"\n")


def read_metrics(path: Path, until: int | None = None) -> list[EpochMetrics]:
    """The lines of metrics.jsonl, up to and with epoch `until`; a half-written last line is not one."""
    if not path.exists():
        return []
    lines: list[EpochMetrics] = []
    for line in path.read_bytes().splitlines():
        try:
            metrics = msgspec.json.decode(line, type=EpochMetrics)
        except msgspec.DecodeError:
            break
        if until is None or metrics.epoch <= until:
            lines.append(metrics)
    return lines


def write_metrics(path: Path, lines: list[EpochMetrics]) -> None:
    """Put exactly these lines at `path`."""
    write_bytes(path, b"".join(msgspec.json.encode(line) + b"\n" for line in lines))


def append_metrics(path: Path, line: EpochMetrics) -> None:
    """Add one line."""
    with path.open("ab") as file:
        file.write(msgspec.json.encode(line) + b"\n")


def file_sha256(path: Path) -> str:
    """Of a file's bytes, as 64 hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def versions() -> dict[str, str]:
    """Of Python and of the packages that a run's numbers depend on, as far as they are installed."""
    found = {"python": platform.python_version()}
    for package in ("trueport", "torch", "numpy", "pillow", "scikit-learn"):
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def _why_no_run(path: Path) -> str:
    if not path.is_dir():
        return f"there is no folder {path}: expected a run, the folder that `trueport train` writes"
    if (path / LAST).is_file():
        return f"the run {path} is not finished: train it again with the same recipe, it goes on where it stopped"
    return f"{path} is not a run: it has no {RUN}, expected a folder that `trueport train` has written"


def _decode(file: Path) -> RunInfo:
    try:
        data = file.read_bytes()
        schema = msgspec.json.decode(data, type=dict[str, Any]).get("schema")
        if schema != SCHEMA:
            raise UsageError(f"{file} has schema {schema!r}, this trueport reads {SCHEMA}: use the one that wrote it")
        return msgspec.json.decode(data, type=RunInfo)
    except (OSError, msgspec.DecodeError) as error:
        raise UsageError(f"can't read {file}: {error}; it is damaged, train afresh") from error
