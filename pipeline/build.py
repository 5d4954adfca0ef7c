"""build: TensorRT engines of a bundle's variants, for the GPU that is here or for listed compute capabilities."""

from __future__ import annotations

import datetime
import hashlib
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, cast, get_args

import msgspec

from trueport.export import timing_cache
from trueport.export.engine import check_options, check_targets, engine_from_onnx, known_targets
from trueport.runtime.atomic import write_bytes
from trueport.runtime.bundle import Bundle
from trueport.runtime.engine import (
    ELSEWHERE,
    FOLDER,
    EngineOptions,
    HardwareLevel,
    Here,
    Identity,
    Sidecar,
    damage,
    identity_of,
    profiles_from_text,
    read_sidecar,
)
from trueport.runtime.engine_layers import unreached
from trueport.runtime.errors import ExportError, MissingError, UsageError, missing_extra, unknown_name
from trueport.runtime.flavours import FLAVOURS, Flavour, flavour, import_flavour, installed_flavours
from trueport.runtime.manifest import Precision, Variant
from trueport.runtime.runners.reached import shown

from .console import Table

Tell = Callable[[str], None]

LOCAL = "local"
SECONDS_BETWEEN_LINES = 2.0


class BuiltEngine(msgspec.Struct, frozen=True, kw_only=True):
    """One engine, and whether it had to be built."""

    file: str
    built: bool
    """False: it was there, with the same key and undamaged."""
    sidecar: Sidecar


class BuildReport(msgspec.Struct, frozen=True, kw_only=True):
    """What `build` did."""

    bundle: str
    folder: str
    engines: tuple[BuiltEngine, ...]


def build(
    path: Path,
    *,
    targets: Sequence[str] = (LOCAL,),
    flavour_name: str | None = None,
    variants: Sequence[str] = (),
    precisions: Sequence[str] = (),
    options: EngineOptions | None = None,
    rebuild: bool = False,
    out: Path | None = None,
    progress: Tell = lambda _: None,
) -> BuildReport:
    """Build an engine of each variant; one that is there with the same key, and undamaged, is left as it is.

    targets: `local` for the GPU that is here, or such as `sm86`; one engine serves all that are listed. flavour_name:
    None: the one that is installed. variants, precisions: none: all that are made for a GPU or for any device.
    out: a folder in place of the bundle's own, for bundles that can't be written to.
    Raises UsageError for unknown names, targets or options, and where the folder can't be written; MissingError where
    the flavour, or the GPU that `local` needs, is missing; ExportError for what TensorRT refuses, and for an engine
    that does not compute in the precision of its variant.
    """
    options = options or EngineOptions()
    bundle = Bundle.open(path)
    chosen = _variants(bundle, variants, precisions)
    kind = _flavour(flavour_name, targets)
    check_options(kind, options)
    trt = import_flavour(kind)
    here, wanted = _targets(kind, trt, targets)
    folder = _writable(out or bundle.path / FOLDER, bundle)
    local = here.target is not None
    engines = []
    for variant in chosen:
        identity = identity_of(bundle, variant, here, wanted, options)
        file = folder / identity.file
        sidecar = None if rebuild else _intact(file, bundle)
        if sidecar is None:
            engines.append(_built(file, bundle, variant, kind, identity, local, progress))
        else:
            progress(f"{variant.name} for {', '.join(wanted)}: already built")
            engines.append(BuiltEngine(file=file.name, built=False, sidecar=sidecar))
    return BuildReport(bundle=bundle.manifest.name, folder=str(folder), engines=tuple(engines))


def options_from_text(
    batch: str, version_compatible: bool, hardware_compatible: str, workspace_mib: int | None
) -> EngineOptions:
    """Of the command line's words. Raises UsageError."""
    if hardware_compatible not in get_args(HardwareLevel):
        raise unknown_name("hardware compatibility", hardware_compatible, get_args(HardwareLevel))
    return EngineOptions(
        profiles=profiles_from_text(batch),
        version_compatible=version_compatible,
        hardware_compatible=cast("HardwareLevel", hardware_compatible),
        workspace_mib=workspace_mib,
    )


def build_table(report: BuildReport) -> Table:
    """File, variant, target, size, seconds and layer types of each engine."""
    rows = tuple(
        (
            engine.file,
            engine.sidecar.identity.variant,
            ", ".join(engine.sidecar.identity.targets),
            f"{engine.sidecar.size / 2**20:,.1f}",
            f"{engine.sidecar.seconds:.1f}" if engine.built else "already built",
            f"{shown(engine.sidecar.layers)} ({engine.sidecar.layers_from})",
        )
        for engine in report.engines
    )
    notes = [f"in {report.folder}"]
    if any(engine.sidecar.layers_from == "network" for engine in report.engines):
        notes.append(
            "network: the types of the strongly typed network; the engine's own are read back where it is loaded"
        )
    return Table(
        f"{report.bundle}: engines", ("file", "variant", "target", "MiB", "seconds", "layers"), rows, tuple(notes)
    )


def _built(
    file: Path, bundle: Bundle, variant: Variant, kind: Flavour, identity: Identity, local: bool, progress: Tell
) -> BuiltEngine:
    what = f"{variant.name} for {', '.join(identity.targets)}"
    progress(f"{what}: building with {kind.title} {identity.version}")
    engine = engine_from_onnx(
        bundle.read(variant.file),
        kind,
        identity.targets,
        identity.options,
        local=local,
        cache=timing_cache.cache_file(kind.name, identity.version, identity.targets[0]),
        name=str(bundle.file(variant.file)),
        tell=throttled(lambda phase: progress(f"{what}: {phase.lower()}")),
    )
    if (difference := unreached(variant.precision, engine.layers, variant.reached)) is not None:
        raise ExportError(f"the engine of {variant.name} is not what was asked for: {difference}")
    sidecar = Sidecar(
        identity=identity,
        precision=variant.precision,
        layers=engine.layers,
        layers_from=engine.layers_from,
        sha256=hashlib.sha256(engine.plan).hexdigest(),
        size=len(engine.plan),
        created=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        seconds=round(engine.seconds, 3),
    )
    write_bytes(file, engine.plan)  # first: the sidecar says that the engine is there
    write_bytes(file.with_suffix(".json"), msgspec.json.format(msgspec.json.encode(sidecar), indent=2) + b"\n")
    return BuiltEngine(file=file.name, built=True, sidecar=sidecar)


def throttled(tell: Tell, clock: Callable[[], float] = time.monotonic) -> Tell:
    """Passes a line on when the last one is some seconds old: most phases of a build are over in no time."""
    due = clock() + SECONDS_BETWEEN_LINES

    def maybe(text: str) -> None:
        nonlocal due
        if clock() >= due:
            tell(text)
            due = clock() + SECONDS_BETWEEN_LINES

    return maybe


def _variants(bundle: Bundle, names: Sequence[str], precisions: Sequence[str]) -> list[Variant]:
    """Those that were asked for, else all that a GPU can run."""
    for precision in precisions:
        if precision not in get_args(Precision):
            raise unknown_name("precision", precision, get_args(Precision))
    chosen = [bundle.variant(name) for name in dict.fromkeys(names)]
    if other := [variant.name for variant in chosen if variant.target == "cpu"]:
        raise UsageError(
            f"{', '.join(other)} is made for CPUs, engines are for GPUs: choose int8-gpu or another variant"
        )
    if not chosen:
        chosen = [variant for variant in bundle.manifest.variants if variant.target != "cpu"]
    fitting = [variant for variant in chosen if not precisions or variant.precision in precisions]
    if not fitting:
        has = ", ".join(variant.name for variant in bundle.manifest.variants)
        asked = f" in {', '.join(precisions)}" if precisions else ""
        raise UsageError(f"{bundle.path} has no variant for GPUs{asked}, it has {has}: export it with --precision")
    return fitting


def _flavour(name: str | None, targets: Sequence[str]) -> Flavour:
    """The one that is named, else the one that is installed; of two, TensorRT for the GPU here and RTX for a list."""
    if name is not None:
        return flavour(name)
    installed = installed_flavours()
    if not installed:
        raise missing_extra("tensorrt_rtx", "rtx", "building engines (or 'trueport[tensorrt]' for data centres' GPUs)")
    preferred = FLAVOURS["tensorrt" if list(targets) == [LOCAL] else "rtx"]
    return preferred if preferred in installed else installed[0]


def _targets(kind: Flavour, trt: Any, asked: Sequence[str]) -> tuple[Here, tuple[str, ...]]:
    """What is here, as far as the engines depend on it, and compute capabilities; the GPU's own first."""
    named = [target for target in dict.fromkeys(asked) if target != LOCAL]
    if not kind.any_target and named:
        raise UsageError(
            f"{kind.title} builds for the GPU that is here, found the target {', '.join(named)}: use --target local "
            f"on such a machine, or --flavour rtx"
        )
    check_targets(kind, named)
    if LOCAL not in asked:
        if not named:
            raise UsageError("build needs a target: local, or compute capabilities such as sm86,sm120")
        return Here(flavour=kind.name, version=trt.__version__, target=None), tuple(named)
    from trueport.runtime.runners.tensorrt import here_with_cuda

    here, _ = here_with_cuda(kind, trt)
    if here.target is None:
        raise MissingError(f"--target local needs a GPU, there is {here.problem}; {_buildable()}")
    known = known_targets(kind)
    if known and here.target not in known:
        raise UsageError(
            f"{kind.title} has no target for the GPU here, {here.target}, it has {', '.join(known)}: use --flavour "
            "tensorrt"
        )
    return here, tuple(dict.fromkeys((here.target, *named)))


def _buildable() -> str:
    """What can be built without a GPU."""
    rtx = FLAVOURS["rtx"]
    if rtx not in installed_flavours():
        return "without one, `pip install 'trueport[rtx]'` and --flavour rtx build for a list of targets"
    return f"without one, --flavour rtx builds here for --target {','.join(known_targets(rtx))}"


def _writable(folder: Path, bundle: Bundle) -> Path:
    """The folder, made and tried: a build is long, and this is better known before it."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise UsageError(
            f"can't write engines into {folder}: {error.strerror or error}; choose another with --out FOLDER, and set "
            f"{ELSEWHERE} to it where {bundle.path} is used"
        ) from error
    return folder


def _intact(file: Path, bundle: Bundle) -> Sidecar | None:
    """The sidecar of an engine that is there and undamaged."""
    sidecar = read_sidecar(file)
    try:
        return sidecar if sidecar and damage(file, sidecar, bundle, file.read_bytes()) is None else None
    except OSError:
        return None
