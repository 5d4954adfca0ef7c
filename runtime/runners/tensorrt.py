"""Runs an engine of a bundle: TensorRT and TensorRT-RTX, memory and streams by cuda-python, no torch.

What was said about the engine when it was built is compared with this machine and this bundle first; TensorRT sees only
bytes that passed.
"""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from ..bundle import Bundle
from ..engine import (
    Here,
    Profile,
    Sidecar,
    batch_refused,
    built_for,
    chosen_engine,
    damage,
    narrowed,
    profile_for,
    rebuild,
    widened,
)
from ..engine_layers import inspected_layers, unreached
from ..errors import BundleError, InvalidRequestError, MissingError, TrustError
from ..flavours import Flavour, collecting, flavour, import_flavour, logger, sentence
from ..manifest import DType, TensorSpec, Variant
from ..runner import Array, RunnerOptions, RunnerReport
from .cuda import Cuda, NoGpuError, OutOfMemoryError
from .lane import Lane, Lanes, LoadedEngine, Timing

LANES = 2
"""Concurrent batches: while one computes, another one's pictures are on their way."""
TRUSTED = "TRUEPORT_TRUST_ENGINES"
"""Environment variable: 1 lets version-compatible engines run the code for the CPU that they carry."""
MIB = 2**20

_DTYPES: dict[str, DType] = {"UINT8": "uint8", "HALF": "float16", "FLOAT": "float32", "INT64": "int64"}


def open_variant(bundle: Bundle, variant: Variant, runner: str, options: RunnerOptions) -> TensorRtRunner:  # noqa: ARG001 -- none of them is of use on a GPU
    """`tensorrt` and `rtx`, as `open_engine` opens them."""
    return open_engine(bundle, variant, runner)


def open_engine(
    bundle: Bundle, variant: Variant, flavour_name: str, *, lanes: int = LANES, graphs: bool = True
) -> TensorRtRunner:
    """The bundle's newest engine of the variant that fits GPU, version and weights.

    lanes, graphs: as `TensorRtRunner` has them.
    Raises MissingError where there is no such engine, GPU or package, BundleError for an engine that was damaged, is of
    another export, or does not compute in the precision of the variant.
    """
    kind = flavour(flavour_name)
    trt = import_flavour(kind)
    here, cuda = here_with_cuda(kind, trt)
    path, sidecar = chosen_engine(bundle, variant.name, here)
    if cuda is None:  # chosen_engine refuses everything where there is no GPU
        raise MissingError(here.problem)
    data = _read(path)
    if (error := damage(path, sidecar, bundle, data)) is not None:
        raise error
    return TensorRtRunner(trt, kind, cuda, data, sidecar, bundle, variant, lanes=lanes, graphs=graphs)


def here_with_cuda(kind: Flavour, trt: Any) -> tuple[Here, Cuda | None]:
    """What engines of this flavour are to run on, and CUDA where there is a GPU."""
    try:
        cuda = Cuda(kind.name)
    except NoGpuError as error:
        return Here(flavour=kind.name, version=trt.__version__, target=None, problem=str(error)), None
    device = cuda.device
    return Here(flavour=kind.name, version=trt.__version__, target=device.target, driver=device.driver), cuda


class TensorRtRunner:
    """One engine, deserialised, with lanes for concurrent batches.

    lanes: how many batches may run at once. graphs: run each profile's optimum as a captured CUDA graph.
    Raises as `open_engine` does, and OutOfMemoryError with the batch that fits.
    """

    def __init__(
        self,
        trt: Any,
        kind: Flavour,
        cuda: Cuda,
        data: bytes,
        sidecar: Sidecar,
        bundle: Bundle,
        variant: Variant,
        *,
        lanes: int = LANES,
        graphs: bool = True,
    ) -> None:
        self._kind, self._cuda, self._sidecar, self._version = kind, cuda, sidecar, trt.__version__
        self._bundle = bundle
        self._closing, self._closed = threading.Lock(), False
        self._runtime = trt.Runtime(logger(trt))
        engine = _deserialised(self._runtime, kind, cuda, data, sidecar, bundle)
        self._layers = inspected_layers(trt, engine)
        if (difference := unreached(variant.precision, self._layers, variant.reached)) is not None:
            raise BundleError(f"the engine of {variant.name}: {difference}; {rebuild(bundle, sidecar.identity)}")
        self._loaded = _loaded(trt, kind, engine)
        self.inputs, self.outputs = self._loaded.inputs, self._loaded.outputs
        self.profiles = self._loaded.profiles
        try:
            self._lanes = Lanes(lambda: Lane(self._loaded, cuda, graphs=graphs), lanes)
        except OutOfMemoryError as error:
            raise self._no_room() from error

    def run(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        """Answer one batch. Raises InvalidRequestError for one that no profile holds, ClosedError after `close`."""
        with self._lane(feeds) as (lane, rows, profile):
            return lane.run(feeds, rows, profile)

    def timed_run(self, feeds: Mapping[str, Array]) -> tuple[dict[str, Array], Timing]:
        """`run`, and how long the device took for upload, computing and download."""
        with self._lane(feeds) as (lane, rows, profile):
            return lane.timed_run(feeds, rows, profile)

    @property
    def captured(self) -> tuple[int, ...]:
        """Batch sizes that idle lanes run as captured graphs; RTX captures its own and does not tell."""
        return tuple(sorted({rows for lane in self._lanes.idle for rows in lane.captured}))

    def report(self) -> RunnerReport:
        """The GPU and the versions; layers as the engine's inspector tells them."""
        return RunnerReport(
            name=self._kind.name,
            provider=self._kind.title,
            device=f"cuda ({self._cuda.device.name})",
            threads=1,
            versions={self._kind.module: self._version, "cuda driver": self._cuda.device.driver},
            layers=self._layers,
        )

    def close(self) -> None:
        """Wait for the batches in flight and free everything. Closing twice is fine."""
        with self._closing:
            if self._closed:
                return
            self._closed = True
            self._cuda.use()
            self._lanes.close()
            del self._loaded
            del self._runtime  # after the engine, which needs it

    @contextmanager
    def _lane(self, feeds: Mapping[str, Array]) -> Iterator[tuple[Lane, int, int]]:
        rows = _rows(feeds, self.inputs)
        profile = profile_for(rows, self.profiles)
        if profile is None:
            identity = self._sidecar.identity
            wanted = widened(identity.options.profiles, rows) if rows else None
            raise batch_refused(rows, self.profiles, rebuild(self._bundle, identity, wanted))
        self._cuda.use()
        with self._lanes.taken() as lane:
            yield lane, rows, profile

    def _no_room(self) -> OutOfMemoryError:
        free = self._cuda.free_bytes()
        loaded, fits = self._loaded, self._loaded.fitting_rows(free)
        needs = f"batches of up to {loaded.max_rows} rows need {loaded.lane_bytes() / MIB:,.0f} MiB on the GPU"
        remedy = "free some of its memory"
        if 0 < fits < loaded.max_rows:
            identity = self._sidecar.identity
            smaller = narrowed(identity.options.profiles, fits)
            remedy = f"about {fits} rows fit; {rebuild(self._bundle, identity, smaller)}"
        return OutOfMemoryError(f"{needs}, {free / MIB:,.0f} MiB are left: {remedy}")


def _deserialised(runtime: Any, kind: Flavour, cuda: Cuda, data: bytes, sidecar: Sidecar, bundle: Bundle) -> Any:
    identity = sidecar.identity
    if identity.options.version_compatible:
        if os.environ.get(TRUSTED) != "1":
            raise TrustError(
                f"a version-compatible engine runs code on the CPU that it carries: where you trust whoever built it, "
                f"set {TRUSTED}=1, or build one without --version-compatible"
            )
        runtime.engine_host_code_allowed = True
    with collecting() as errors:
        engine = runtime.deserialize_cuda_engine(data)
    if engine is not None:
        return engine
    reason = sentence(errors, "it gives no reason")
    if any("memory" in message.lower() for message in errors):
        room = f"{len(data) / MIB:,.0f} MiB and {cuda.free_bytes() / MIB:,.0f} MiB are left on the GPU"
        raise MissingError(f"there is no room for the engine, it has {room}: free some of its memory ({reason})")
    raise BundleError(
        f"{kind.title} can't load the engine built for {built_for(identity)}: {reason}; {rebuild(bundle, identity)}"
    )


def _loaded(trt: Any, kind: Flavour, engine: Any) -> LoadedEngine:
    """What the engine says of its tensors and profiles. Raises BundleError for a type that no bundle has."""
    names = [engine.get_tensor_name(index) for index in range(engine.num_io_tensors)]
    inputs = [name for name in names if engine.get_tensor_mode(name) == trt.TensorIOMode.INPUT]
    outputs = [name for name in names if name not in inputs]
    if not inputs or not outputs:
        raise BundleError(f"the engine has {len(inputs)} inputs and {len(outputs)} outputs: export the bundle again")
    ranges = [engine.get_tensor_profile_shape(inputs[0], index) for index in range(engine.num_optimization_profiles)]
    return LoadedEngine(
        trt=trt,
        kind=kind,
        engine=engine,
        inputs=tuple(_spec(engine, name) for name in inputs),
        outputs=tuple(_spec(engine, name) for name in outputs),
        profiles=tuple(Profile(*(int(next(iter(shape))) for shape in limits)) for limits in ranges),
    )


def _spec(engine: Any, name: str) -> TensorSpec:
    kind = engine.get_tensor_dtype(name).name
    if kind not in _DTYPES:
        raise BundleError(f"the engine has {name} of {kind}, expected one of {', '.join(_DTYPES)}")
    _, *row = engine.get_tensor_shape(name)
    return TensorSpec(name, _DTYPES[kind], (-1, *(int(size) for size in row)))


def _rows(feeds: Mapping[str, Array], inputs: tuple[TensorSpec, ...]) -> int:
    """How many rows the batch has. Raises InvalidRequestError unless it is what the engine takes."""
    expected = ", ".join(f"{spec.name} {spec.dtype} {list(spec.shape)}" for spec in inputs)
    with contextlib.suppress(AttributeError, IndexError):
        fits = set(feeds) == {spec.name for spec in inputs} and all(
            feeds[spec.name].dtype == np.dtype(spec.dtype) and feeds[spec.name].shape[1:] == spec.shape[1:]
            for spec in inputs
        )
        sizes = {len(array) for array in feeds.values()} if fits else set()
        if len(sizes) == 1:
            return sizes.pop()
    found = ", ".join(
        f"{name} {getattr(a, 'dtype', type(a).__name__)} {getattr(a, 'shape', '')}" for name, a in feeds.items()
    )
    raise InvalidRequestError(f"expected {expected}, found {found or 'nothing'}")


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise BundleError(f"can't read {path}: {error.strerror or error}") from error
