"""Engines on disk: what an engine was built from and for, the name that follows from it, and whether it may be loaded.

An engine is bound to the version that built it and to a compute capability, and to graph and weights. All of that is in
a JSON file beside it and is compared with what is here before a byte of the engine is given to TensorRT. Pure Python.

The hash in that file finds damage. It is no seal: whoever can write an engine can write it too, and an engine is code.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Literal

import msgspec

from .bundle import Bundle
from .errors import BundleError, InvalidRequestError, MissingError, TrueportError, UsageError
from .manifest import Precision, Variant

FOLDER = "engines"
ELSEWHERE = "TRUEPORT_ENGINES"
"""Environment variable: one more folder to look for engines in, for bundles that are read-only."""
SUFFIX = ".engine"
SCHEMA = 1
HardwareLevel = Literal["none", "ampere-plus", "same-capability"]


class Profile(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Batch sizes that an engine takes, and the one that it is fastest at."""

    min: int
    opt: int
    max: int

    def __post_init__(self) -> None:
        if not 1 <= self.min <= self.opt <= self.max:
            raise ValueError(f"expected 1 <= min <= opt <= max, found {self}")

    def __str__(self) -> str:
        return f"{self.min}:{self.opt}:{self.max}"

    def holds(self, rows: int) -> bool:
        """Whether a batch of so many rows fits."""
        return self.min <= rows <= self.max


DEFAULT_PROFILES = (Profile(1, 8, 64),)


class EngineOptions(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """How an engine is built, beyond graph and target."""

    profiles: tuple[Profile, ...] = DEFAULT_PROFILES
    version_compatible: bool = False
    """It loads on later versions of the flavour too, at some cost in speed."""
    hardware_compatible: HardwareLevel = "none"
    """ampere-plus: it runs on compute capability 8.0 and all above, at some cost in speed; same-capability: on every
    model of GPU of its capability."""
    workspace_mib: int | None = None
    """Scratch memory that a layer may use while it runs; None: as much as the GPU has."""

    def __post_init__(self) -> None:
        if not self.profiles:
            raise UsageError("an engine needs at least one range of batch sizes, such as 1:8:64")
        if self.workspace_mib is not None and self.workspace_mib < 1:
            raise UsageError(f"the workspace must be at least 1 MiB, found {self.workspace_mib}")


class Identity(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """All that makes one engine another: `key` is a hash over it."""

    flavour: str
    version: str
    targets: tuple[str, ...]
    """Compute capabilities such as `sm86`."""
    driver: str | None
    """Of the GPU that it was built on; None: it was built without one."""
    variant: str
    graph_sha256: str
    weights_sha256: str
    options: EngineOptions

    @property
    def key(self) -> str:
        """Eight hexadecimal digits."""
        return hashlib.sha256(msgspec.json.encode(self)).hexdigest()[:8]

    @property
    def file(self) -> str:
        """The engine's file name."""
        return f"{self.flavour}-{self.version}-{'_'.join(self.targets)}-{self.variant}-{self.key}{SUFFIX}"


class Sidecar(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The JSON file beside an engine, of the same name."""

    schema: int = SCHEMA
    identity: Identity
    precision: Precision
    """What was asked for; an engine that does not reach it is not written."""
    layers: dict[str, int]
    """Layers that compute (convolutions, matrix products) by the type they compute in."""
    layers_from: Literal["inspector", "network"]
    """inspector: read back from the engine. network: from the strongly typed network before the build, where there was
    no GPU to load the engine on."""
    sha256: str
    size: int
    created: str
    """UTC, ISO 8601."""
    seconds: float
    """That building took, beyond reading the graph."""


class Here(msgspec.Struct, frozen=True, kw_only=True):
    """What an engine is to run on."""

    flavour: str
    version: str
    target: str | None
    """The GPU's compute capability, such as `sm86`; None: there is no GPU."""
    driver: str | None = None
    problem: str = "no NVIDIA GPU here"
    """That there is none, and why."""


def target_from_capability(capability: str) -> str:
    """`sm86` of `8.6`."""
    return "sm" + capability.replace(".", "")


def profiles_from_text(text: str) -> tuple[Profile, ...]:
    """Of `1:8:64,64:128:256`; a single number is a fixed batch. Raises UsageError."""
    return tuple(_profile(part.strip()) for part in text.split(","))


def _profile(text: str) -> Profile:
    try:
        sizes = [int(size) for size in text.split(":")]
        return Profile(*(sizes * 3 if len(sizes) == 1 else sizes))
    except (ValueError, TypeError):
        raise UsageError(
            f"expected batch sizes as min:opt:max, each at least as large as the one before, such as 1:8:64, "
            f"found {text!r}"
        ) from None


def profile_for(rows: int, profiles: Iterable[Profile]) -> int | None:
    """The index of the profile for a batch of so many rows: one made for it, else the tightest that holds it."""
    fitting = [(p.opt != rows, p.max - p.min, index) for index, p in enumerate(profiles) if p.holds(rows)]
    return min(fitting)[2] if fitting else None


def widened(profiles: Iterable[Profile], rows: int) -> tuple[Profile, ...]:
    """These and one for up to so many rows, in the place of those that it holds."""
    return (*(p for p in profiles if p.max > rows), Profile(1, rows, rows))


def narrowed(profiles: Iterable[Profile], rows: int) -> tuple[Profile, ...]:
    """These, cut off at so many rows."""
    cut = tuple(Profile(p.min, min(p.opt, rows), min(p.max, rows)) for p in profiles if p.min <= rows)
    return cut or (Profile(1, rows, rows),)


def ranges(profiles: Iterable[Profile]) -> str:
    """The batch sizes that profiles hold, in words."""
    return " and ".join(f"{p.min}" if p.min == p.max else f"{p.min} to {p.max}" for p in profiles)


# Files


def identity_of(
    bundle: Bundle, variant: Variant, here: Here, targets: tuple[str, ...], options: EngineOptions
) -> Identity:
    """What an engine of this variant, built here for these targets, is."""
    return Identity(
        flavour=here.flavour,
        version=here.version,
        targets=targets,
        driver=here.driver,
        variant=variant.name,
        graph_sha256=bundle.manifest.files[variant.file].sha256,
        weights_sha256=bundle.manifest.provenance.weights_sha256,
        options=options,
    )


def engine_folders(bundle: Bundle) -> tuple[Path, ...]:
    """Where engines of a bundle may lie."""
    elsewhere = os.environ.get(ELSEWHERE)
    return bundle.path / FOLDER, *([Path(elsewhere)] if elsewhere else [])


def read_sidecar(engine: Path) -> Sidecar | None:
    """What lies beside an engine; None where it is missing, damaged, or of another schema."""
    try:
        found = msgspec.json.decode(engine.with_suffix(".json").read_bytes(), type=Sidecar)
    except (OSError, msgspec.DecodeError, UnicodeError, RecursionError, UsageError):
        return None
    return found if found.schema == SCHEMA else None


def engines_in(folders: Iterable[Path], flavour: str, variant: str) -> Iterator[tuple[Path, Sidecar]]:
    """Engines with their sidecars, newest first in each folder. Temporary files and links out of a folder are none."""
    for folder in folders:
        found = [
            (path, sidecar)
            for path in sorted(folder.glob(f"{flavour}-*{SUFFIX}"))
            if not path.is_symlink() and (sidecar := read_sidecar(path)) is not None
        ]
        found.sort(key=lambda pair: pair[1].created, reverse=True)
        yield from ((p, s) for p, s in found if (s.identity.flavour, s.identity.variant) == (flavour, variant))


# Preflight


def preflight(sidecar: Sidecar, here: Here, bundle: Bundle, rows: int | None = None) -> TrueportError | None:
    """Why an engine can't be used here, as the error to raise; None: it can.

    The message says what it was built for, what is here, and the command that makes one that fits. rows: of the batch
    that it is wanted for. This looks at what is said of the engine; `damage` looks at the engine.
    """
    identity, manifest = sidecar.identity, bundle.manifest
    kind: type[TrueportError]
    if here.target is None:
        found, kind = f"there is {here.problem}", MissingError
    elif identity.flavour != here.flavour or not _version_fits(identity, here.version):
        found, kind = f"here is {here.flavour} {here.version}", MissingError
    elif not _target_fits(identity, here.target):
        found, kind = f"the GPU here is {here.target}", MissingError
    elif identity.weights_sha256 != manifest.provenance.weights_sha256:
        found, kind = "the bundle holds other weights: it is of another export", BundleError
    elif identity.graph_sha256 not in _graphs(bundle, identity.variant):
        found, kind = f"the bundle holds another graph of {identity.variant}: it is of another export", BundleError
    elif rows is not None and profile_for(rows, identity.options.profiles) is None:
        profiles = identity.options.profiles
        return batch_refused(rows, profiles, rebuild(bundle, identity, widened(profiles, rows)))
    else:
        return None
    return kind(f"the engine was built for {built_for(identity)}, {found}; {rebuild(bundle, identity)}")


def damage(path: Path, sidecar: Sidecar, bundle: Bundle, data: bytes) -> BundleError | None:
    """How an engine's bytes differ from those that were built, as the error to raise; None: not at all."""
    remedy = rebuild(bundle, sidecar.identity)
    if len(data) != sidecar.size:
        sizes = f"{len(data):,} bytes, expected {sidecar.size:,}"
        return BundleError(f"{path} has {sizes}: the engine is truncated or changed; {remedy}")
    if hashlib.sha256(data).hexdigest() != sidecar.sha256:
        return BundleError(f"{path} was changed since it was built (its SHA-256 differs); {remedy}")
    return None


def chosen_engine(bundle: Bundle, variant: str, here: Here) -> tuple[Path, Sidecar]:
    """The newest engine of a variant that may be loaded here.

    Raises what `preflight` says of the newest one where none may, MissingError where there is none.
    """
    refused: TrueportError | None = None
    for path, sidecar in engines_in(engine_folders(bundle), here.flavour, variant):
        error = preflight(sidecar, here, bundle)
        if error is None:
            return path, sidecar
        refused = refused or error
    raise refused or no_engine(bundle, here.flavour, variant)


def no_engine(bundle: Bundle, flavour: str, variant: str) -> MissingError:
    """The error for a variant without an engine."""
    where = " or ".join(str(folder) for folder in engine_folders(bundle))
    return MissingError(
        f"{where} holds no {flavour} engine of {variant}; build it: {_command(bundle, flavour, variant)}"
    )


def batch_refused(rows: int, profiles: Iterable[Profile], remedy: str) -> InvalidRequestError:
    """The error for a batch that no profile holds."""
    return InvalidRequestError(f"the engine holds batches of {ranges(profiles)} rows, found {rows}; {remedy}")


def built_for(identity: Identity) -> str:
    """Flavour, version and targets in words."""
    return f"{identity.flavour} {identity.version} on {' or '.join(identity.targets)}"


def rebuild(bundle: Bundle, identity: Identity, profiles: tuple[Profile, ...] | None = None) -> str:
    """The remedy, as a command. profiles: those that are needed; None: the same."""
    profiles = profiles or identity.options.profiles
    batch = "" if profiles == DEFAULT_PROFILES else f" --batch {','.join(map(str, profiles))}"
    return f"build it again: {_command(bundle, identity.flavour, identity.variant)}{batch} --rebuild"


def _command(bundle: Bundle, flavour: str, variant: str) -> str:
    return f"trueport build {bundle.path} --target local --flavour {flavour} --variant {variant}"


def _version_fits(identity: Identity, version: str) -> bool:
    if identity.version == version:
        return True
    return identity.options.version_compatible and _numbers(identity.version) <= _numbers(version)


def _numbers(version: str) -> list[int]:
    return [int(part) for part in re.findall(r"\d+", version)]


def _target_fits(identity: Identity, target: str) -> bool:
    if target in identity.targets:
        return True
    compatible = identity.options.hardware_compatible == "ampere-plus"
    return compatible and _numbers(target) >= [80]


def _graphs(bundle: Bundle, variant: str) -> list[str]:
    """Hashes of the bundle's graph of that variant: one, or none where there is no such variant."""
    files = bundle.manifest.files
    return [files[found.file].sha256 for found in bundle.manifest.variants if found.name == variant]
