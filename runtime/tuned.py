"""What was found to be fastest on a machine: written by `trueport tune`, read by `load`.

`tuned/<machine key>.json` in the bundle, or where that can't be written in the user's cache. It is made on the target
and no part of what is sealed, so nothing in it is trusted: whatever does not fit is passed over with a reason, and what
fits is opened by the same checks as anything else.
"""

from __future__ import annotations

import errno
import functools
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Literal

import msgspec

from .atomic import write_bytes
from .batching import LatencyCurve
from .bundle import Bundle
from .errors import UsageError
from .folders import cache_folder
from .machine import DISTRIBUTIONS, available_cores, cpu_info, find_gpus, installed_versions, machine_key
from .runner import RunnerOptions
from .runners import RUNNERS

SCHEMA = 2
FOLDER = "tuned"
SUFFIX = ".json"
TRIALS_SUFFIX = ".trials.json"
"""What a search has measured so far lies beside its result."""
MOST_BYTES = 1 << 20
"""Of a file that is read; a real one has a few thousand."""

Prefer = Literal["throughput", "latency"]
Rows = Annotated[int, msgspec.Meta(ge=1, le=1 << 16)]

_READ_ONLY = (errno.EACCES, errno.EPERM, errno.EROFS)
_OTHER_LIBRARIES = {"onnxruntime:tensorrt": ("onnxruntime", "tensorrt"), "rtx": ("tensorrt_rtx",)}


class Choice(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One way to run a bundle, and what it was measured to do."""

    variant: str
    runner: str
    options: RunnerOptions
    max_batch_rows: Rows
    """The batch that it was chosen at."""
    curve: tuple[tuple[Rows, float], ...]
    """(rows, median milliseconds), rows ascending."""
    images_per_s: float
    """At `max_batch_rows`, of the median."""
    images_per_s_low: float
    """Of the slowest turn in the search: with the fastest a range, no interval."""
    images_per_s_high: float
    p99_ms: float | None
    """At `max_batch_rows`; None where too few calls were timed for it."""
    drop_points: float
    """Points of accuracy lost on the evaluation slice, measured on this machine; negative: won."""
    versions: dict[str, str]
    """Of trueport and of the libraries that this runner is made of."""
    resting: Choice | None = None
    """What to take in the place of one whose threads spin, where they are to leave the cores to others between runs."""

    def __post_init__(self) -> None:
        if self.options.spinning != (self.resting is not None) or (self.resting and self.resting.options.spinning):
            raise ValueError("a choice whose threads spin has one beside it whose threads do not, and no other has")
        try:
            self.latency_curve()
        except UsageError as error:
            raise ValueError(str(error)) from error

    def latency_curve(self) -> LatencyCurve:
        """What the batcher expects a run to take."""
        return LatencyCurve(tuple((float(rows), ms / 1e3) for rows, ms in self.curve))

    def described(self) -> str:
        """Such as `int8-cpu on openvino:cpu, 2 threads, bf16`."""
        return described(self.variant, self.runner, self.options)


class Tuned(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What one search found."""

    schema: int = SCHEMA
    machine: str
    """Its key; see `machine.machine_key`."""
    bundle_sha256: str
    """The manifest's own hash."""
    tuned_at: str
    """UTC, ISO 8601."""
    max_drop: float | None
    """Points of accuracy, where `--max-drop` took the place of the variants' own bounds."""
    p99_bound_ms: float | None
    """What was asked for."""
    throughput: Choice
    latency: Choice
    """The lowest median of a single picture; its `max_batch_rows` are those of its own highest throughput."""
    bounded: Choice | None
    """The highest throughput with a p99 below the bound; None where none was asked for or nothing meets it."""

    def choice(self, prefer: Prefer, *, spinning: bool = True) -> Choice:
        """For throughput the one below the bound, where a bound was asked for and met. spinning: threads may."""
        found = self.latency if prefer == "latency" else self.bounded or self.throughput
        return found if spinning else found.resting or found


def described(variant: str, runner: str, options: RunnerOptions) -> str:
    """One way to run a bundle in words; options are told where they are not the default."""
    told = [f"{variant} on {runner}"]
    if options.threads is not None:
        told.append(f"{options.threads} thread{'s' if options.threads != 1 else ''}")
    if options.graph_level != "all":
        told.append(f"graph level {options.graph_level}")
    if options.float_type != "fp32":
        told.append(f"float layers in {options.float_type}")
    if options.spinning:
        told.append("spinning")
    return ", ".join(told)


def find_choice(
    bundle: Bundle, prefer: Prefer = "throughput", *, spinning: bool = True
) -> tuple[Choice | None, Tuned | None, str]:
    """The choice for this machine and all of what it is part of; else why there is none: empty where nothing is there.

    spinning: see `Tuned.choice`. Never raises for what a file holds. Without a file it costs two looks into folders.
    """
    files = [file for folder in folders(bundle) for file in _files(folder)]
    if not files:
        return None, None, ""
    own = [file for file in files if file.name == own_key() + SUFFIX]
    if not own:
        return None, None, f"it was made for another machine, this one is {own_key()}"
    fitting: list[tuple[str, Choice, Tuned]] = []
    problem = ""
    for file in own:
        tuned = read(file)
        if isinstance(tuned, str):
            problem = tuned
            continue
        choice = tuned.choice(prefer, spinning=spinning)
        problem = _misfit(tuned, choice, bundle)
        if not problem:
            fitting.append((tuned.tuned_at, choice, tuned))
    if not fitting:
        return None, None, problem
    _, choice, tuned = max(fitting, key=lambda found: found[0])
    return choice, tuned, ""


def read(file: Path) -> Tuned | str:
    """What a file holds, or in words why it can't be used."""
    try:
        if file.stat().st_size > MOST_BYTES:
            return f"{file} is larger than any that trueport writes"
        data = file.read_bytes()
        schema = msgspec.json.decode(data, type=_Schema).schema
        if schema != SCHEMA:
            return f"{file} has schema {schema}, this trueport reads schema {SCHEMA}"
        return msgspec.json.decode(data, type=Tuned)
    except (msgspec.DecodeError, UsageError, UnicodeError, RecursionError) as error:  # UsageError: of RunnerOptions
        return f"{file} is damaged: {error}"
    except OSError as error:
        return f"can't read {file}: {error.strerror or error}"


def write(bundle: Bundle, name: str, content: object) -> Path:
    """Write JSON as tuned/<name> of the bundle, or where it is read-only into the user's cache; returns where it is."""
    data = msgspec.json.format(msgspec.json.encode(content), indent=2) + b"\n"
    inside, cached = (folder / name for folder in folders(bundle))
    try:
        write_bytes(inside, data)
    except OSError as error:
        if error.errno not in _READ_ONLY:
            raise
        write_bytes(cached, data)
        return cached
    return inside


def folders(bundle: Bundle) -> tuple[Path, Path]:
    """Where choices for this very bundle lie: in it, and in the user's cache."""
    return bundle.path / FOLDER, cache_folder() / FOLDER / bundle.manifest.sha256


@functools.cache
def own_key() -> str:
    """This machine's key; asks nvidia-smi where there is one, once in a process."""
    return machine_key(cpu_info(), available_cores(), find_gpus()[0])


def runner_versions(runner: str) -> dict[str, str]:
    """Of trueport and of the libraries that a runner is made of, as installed."""
    libraries = _OTHER_LIBRARIES.get(runner, (runner.partition(":")[0],))
    return _installed(("trueport", *libraries))


def _installed(names: Iterable[str]) -> dict[str, str]:
    return installed_versions({name: DISTRIBUTIONS[name] for name in names if name in DISTRIBUTIONS})


def _files(folder: Path) -> list[Path]:
    try:
        found = sorted(folder.glob(f"*{SUFFIX}"))
    except OSError:
        return []
    return [file for file in found if not file.name.endswith(TRIALS_SUFFIX) and file.is_file()]


def _misfit(tuned: Tuned, choice: Choice, bundle: Bundle) -> str:
    """Why a choice can't be used here; empty where it can."""
    if tuned.machine != own_key():
        return f"it was made for another machine, {tuned.machine}; this one is {own_key()}"
    if tuned.bundle_sha256 != bundle.manifest.sha256:
        return "it was made for another export of the bundle"
    if choice.variant not in {variant.name for variant in bundle.manifest.variants}:
        return f"it names the variant {choice.variant!r}, which the bundle does not have"
    if choice.runner not in RUNNERS:
        return f"it names the runner {choice.runner!r}, which this trueport does not have"
    here = runner_versions(choice.runner)
    if choice.versions != here:
        return f"it was made with {_versions(choice.versions)}, here is {_versions(here)}"
    return ""


def _versions(versions: dict[str, str]) -> str:
    return ", ".join(f"{name} {version}" for name, version in versions.items()) or "nothing known"


class _Schema(msgspec.Struct):
    schema: int
