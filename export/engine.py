"""From an ONNX graph to an engine: one strongly typed path for tensorrt 10.3 to 11 and tensorrt_rtx.

An RTX engine is built for listed compute capabilities on any machine; TensorRT's is for the GPU that builds it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from trueport.runtime.engine import EngineOptions, Profile
from trueport.runtime.engine_layers import inspected_layers
from trueport.runtime.errors import ExportError, MissingError, UsageError, unknown_name
from trueport.runtime.flavours import Flavour, collecting, import_flavour, logger, sentence

from . import timing_cache
from .engine_network import WAY_OUT, layers_from_network, network_from_onnx

Tell = Callable[[str], None]

MIB = 2**20
_LEVELS = {"ampere-plus": "AMPERE_PLUS", "same-capability": "SAME_COMPUTE_CAPABILITY"}


@dataclass(frozen=True, eq=False)
class Engine:
    """A serialised engine and what was learned while it was built."""

    plan: bytes
    layers: dict[str, int]
    """Layers that compute, by the type they compute in."""
    layers_from: Literal["inspector", "network"]
    seconds: float
    """Of building, beyond reading the graph."""


def engine_from_onnx(
    graph: bytes,
    kind: Flavour,
    targets: Sequence[str],
    options: EngineOptions,
    *,
    local: bool = False,
    cache: Path | None = None,
    name: str = "the graph",
    tell: Tell = lambda _: None,
) -> Engine:
    """Build an engine of a graph (serialised ONNX) whose one input has a symbolic batch.

    targets: such as `sm86`. local: the first of them is the GPU that is here, so that the engine can be read back.
    cache: timing cache, for flavours that have one. name: what messages call the graph. tell: the builder's phases.
    Raises UsageError for a target or an option that the flavour does not have, MissingError where it is not installed
    or does not work here, ExportError for what its parser or builder refuses.
    """
    check_options(kind, options)
    trt = import_flavour(kind)
    log = logger(trt)
    with collecting() as errors:
        builder = _builder(trt, kind, log, errors)
        config = builder.create_builder_config()
        _set_options(trt, kind, config, targets, options)
        network, parser = network_from_onnx(trt, kind, builder, log, graph, name)
        _set_profiles(builder, config, network, options.profiles)
        cached = cache if kind.timing_cache else None
        if cached is not None:
            timing_cache.attach(config, cached)
        begun = time.perf_counter()
        plan = _serialized(trt, kind, builder, network, config, name, errors, tell)
        seconds = time.perf_counter() - begun
        if cached is not None:
            timing_cache.keep(config, cached)
        types = layers_from_network(network)
        del parser
    inspected = _read_back(trt, plan) if local else {}
    return Engine(plan, inspected or types, "inspector" if inspected else "network", seconds)


def known_targets(kind: Flavour) -> tuple[str, ...]:
    """Compute capabilities that a flavour builds for without such a GPU; none where it builds only for the GPU here."""
    if not kind.any_target:
        return ()
    members = import_flavour(kind).ComputeCapability.__members__
    return tuple(sorted((name.lower() for name in members if name.startswith("SM")), key=lambda name: int(name[2:])))


def check_targets(kind: Flavour, targets: Sequence[str]) -> None:
    """Raise UsageError for a compute capability that the flavour can't be asked to build for."""
    known = known_targets(kind)
    if known:
        for target in targets:
            if target not in known:
                raise unknown_name(f"{kind.title} target", target, known)


def check_options(kind: Flavour, options: EngineOptions) -> None:
    """Raise UsageError for an option that the flavour does not have."""
    if kind.compatible:
        return
    remedy = "build it for each version and list the targets, or use --flavour tensorrt"
    if options.version_compatible:
        raise UsageError(f"{kind.title} has no engines that other versions load: {remedy}")
    if options.hardware_compatible != "none":
        raise UsageError(f"{kind.title} has no hardware-compatible engines, it is given a list of targets: {remedy}")


def _read_back(trt: Any, plan: bytes) -> dict[str, int]:
    """Layers by type as the engine itself tells them; empty where it can't be loaded or tells none."""
    engine = trt.Runtime(logger(trt)).deserialize_cuda_engine(plan)
    return {} if engine is None else inspected_layers(trt, engine)


def _builder(trt: Any, kind: Flavour, log: Any, errors: list[str]) -> Any:
    try:
        return trt.Builder(log)
    except (TypeError, RuntimeError) as error:  # pybind's word for a constructor that returned nothing
        reason = sentence(errors, "no NVIDIA GPU or driver is usable")
        raise MissingError(
            f"{kind.title} {trt.__version__} can't build here: {reason}; `trueport doctor` tells more"
        ) from error


def _set_options(trt: Any, kind: Flavour, config: Any, targets: Sequence[str], options: EngineOptions) -> None:
    # The default lets float32 layers round their inputs to 10 bits: that is not the precision asked for.
    config.clear_flag(trt.BuilderFlag.TF32)
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED  # else the inspector tells names only
    if options.workspace_mib is not None:
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, options.workspace_mib * MIB)
    if options.version_compatible:
        config.set_flag(trt.BuilderFlag.VERSION_COMPATIBLE)
    if options.hardware_compatible != "none":
        level = _LEVELS[options.hardware_compatible]
        known = trt.HardwareCompatibilityLevel.__members__
        if level not in known:
            raise UsageError(
                f"{kind.title} {trt.__version__} has no engines that are {options.hardware_compatible}: upgrade it"
            )
        config.hardware_compatibility_level = known[level]
    if kind.any_target:
        check_targets(kind, targets)
        config.num_compute_capabilities = len(targets)
        for index, target in enumerate(targets):
            config.set_compute_capability(trt.ComputeCapability.__members__[target.upper()], index)


def _set_profiles(builder: Any, config: Any, network: Any, profiles: Sequence[Profile]) -> None:
    tensor = network.get_input(0)
    row = tuple(tensor.shape)[1:]
    for sizes in profiles:
        profile = builder.create_optimization_profile()
        profile.set_shape(tensor.name, (sizes.min, *row), (sizes.opt, *row), (sizes.max, *row))
        config.add_optimization_profile(profile)


def _serialized(
    trt: Any, kind: Flavour, builder: Any, network: Any, config: Any, name: str, errors: list[str], tell: Tell
) -> bytes:
    monitor = _monitor(trt, tell)
    config.progress_monitor = monitor
    memory = builder.build_serialized_network(network, config)
    if monitor.interrupted is not None:
        raise monitor.interrupted
    if memory is None:
        reason = sentence(errors, "it gives no reason")
        raise ExportError(f"{kind.title} {trt.__version__} can't build an engine of {name}: {reason}; {WAY_OUT}")
    return bytes(memory)


def _monitor(trt: Any, tell: Tell) -> Any:
    """Passes on the names of phases as they begin, and keeps what is raised in between: C++ must not see it."""

    class Monitor(trt.IProgressMonitor):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)
            self.interrupted: BaseException | None = None

        def phase_start(self, phase: str, parent: str | None, steps: int) -> None:  # noqa: ARG002
            self._guarded(lambda: tell(phase))

        def phase_finish(self, phase: str) -> None:
            """Nothing: the next one's start says it."""

        def step_complete(self, phase: str, step: int) -> bool:  # noqa: ARG002
            self._guarded(lambda: None)  # Ctrl-C arrives wherever Python runs again
            return self.interrupted is None

        def _guarded(self, call: Callable[[], None]) -> None:
            try:
                call()
            except BaseException as error:  # noqa: BLE001 -- raised again once the builder has returned
                self.interrupted = error

    return Monitor()
