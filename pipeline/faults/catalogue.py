"""The catalogue of deployment faults: one dict, one decorator, and what a fault is given to be planted into."""

from __future__ import annotations

import hashlib
import io
import os
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np

from trueport.runtime.bundle import EVALUATION, GOLDEN, Bundle, sealed
from trueport.runtime.errors import ExportError, MissingError, TrustError
from trueport.runtime.explanation import Stage
from trueport.runtime.manifest import MANIFEST, FileEntry, Precision, Variant
from trueport.runtime.runner import Runner, RunnerOptions
from trueport.runtime.runners import RUNNERS
from trueport.runtime.runners.written import WRITTEN

from ..deployment import Deployment

if TYPE_CHECKING:
    import onnx

    from trueport.export.original import Original


class DoesNotApplyError(Exception):
    """The fault can't be planted into this model; the message says why."""


@dataclass(frozen=True)
class Fault:
    """One way in which a deployment goes wrong."""

    name: str
    """Short, as on the command line."""
    title: str
    """What is wrong, in a few words."""
    stage: Stage
    """Where it is: what an explanation has to name."""
    plant: Callable[[Healthy], Deployment]
    """Makes the faulty deployment of a healthy one. Raises DoesNotApplyError."""
    precision: Precision
    """Of the variant that is harmed, and checked."""
    runner: str | None
    """That has to be asked for; None: any."""


FAULTS: dict[str, Fault] = {}
"""By name."""
Plant = Callable[["Healthy"], Deployment]


def fault(
    name: str, title: str, stage: Stage, *, precision: Precision = "fp32", runner: str | None = None
) -> Callable[[Plant], Plant]:
    """Put the decorated function into the catalogue. Raises ValueError for a taken name."""

    def decorate(plant: Plant) -> Plant:
        if name in FAULTS:
            raise ValueError(f"two faults are named {name!r}: {FAULTS[name].plant} and {plant}")
        FAULTS[name] = Fault(name, title, stage, plant, precision, runner)
        return plant

    return decorate


@dataclass(frozen=True, eq=False)
class Healthy:
    """A deployment without a fault, one of its variants, and a folder to write a faulty copy into."""

    deployment: Deployment
    variant: Variant
    runner: str
    """That the variant is judged on: one of the RUNNERS, or `written`."""
    scratch: Path
    options: RunnerOptions = field(default_factory=RunnerOptions)
    trust_code: bool = False

    @property
    def bundle(self) -> Bundle:
        """The bundle as it was exported."""
        return self.deployment.bundle

    def graph(self, variant: str | None = None) -> onnx.ModelProto:
        """A graph of the bundle's to be changed; None: the variant's own. Raises DoesNotApplyError without onnx."""
        try:
            import onnx
        except ImportError as error:
            raise DoesNotApplyError(f"planting it needs {error.name}") from error
        model = onnx.ModelProto()
        model.ParseFromString(self.bundle.read(self.bundle.variant(variant or self.variant.name).file))
        return model

    def original(self) -> Original:
        """The original, rebuilt to be changed. Raises DoesNotApplyError where it can't be had here."""
        try:
            return self.deployment.original(self.bundle, self.trust_code)
        except (MissingError, TrustError, ImportError) as error:
            raise DoesNotApplyError(f"it is planted into the original: {error}") from error

    def open(self) -> Runner:
        """The variant, on the runner that it is judged on."""
        return opened(self.deployment, self.runner, self.variant.name, self.options)

    def with_graph(self, model: onnx.ModelProto) -> Deployment:
        """A deployment of a bundle that was sealed with this graph in place of the variant's."""
        return self.with_files({self.variant.file: model.SerializeToString(deterministic=True)})

    def with_exported(self, original: Original) -> Deployment:
        """A deployment of a bundle whose fp32 graph is exported from another module, and says of itself what the
        healthy one says. Raises DoesNotApplyError where it can't be exported.
        """
        try:
            from trueport.export.graph import onnx_from_original

            told = self.graph()
            opset = next(entry.version for entry in told.opset_import if not entry.domain)
            model = onnx_from_original(original, opset)
        except (MissingError, ExportError) as error:
            raise DoesNotApplyError(str(error)) from error
        del model.metadata_props[:]
        model.metadata_props.extend(told.metadata_props)
        return self.with_graph(model)

    def with_golden(self, **arrays: Any) -> Deployment:
        """A deployment of a bundle whose golden set has other arrays."""
        return self.with_files({GOLDEN: self._other_arrays(GOLDEN, arrays)})

    def with_evaluation(self, **arrays: Any) -> Deployment:
        """A deployment of a bundle whose evaluation slice has other arrays."""
        return self.with_files({EVALUATION: self._other_arrays(EVALUATION, arrays)})

    def with_files(self, content: dict[str, bytes], **changes: Any) -> Deployment:
        """A deployment of a sealed copy of the bundle, with other files and other fields in its manifest."""
        files = self.bundle.manifest.files | {
            name: FileEntry(hashlib.sha256(data).hexdigest(), len(data)) for name, data in content.items()
        }
        manifest = msgspec.structs.replace(self.bundle.manifest, files=files, **changes)
        for name in files:
            target = self.scratch / name
            target.parent.mkdir(parents=True, exist_ok=True)
            target.unlink(missing_ok=True)  # of an earlier copy: it may be the bundle's own file by another name
            if name in content:
                target.write_bytes(content[name])
            else:
                _link(self.bundle.file(name), target)
        (self.scratch / MANIFEST).write_bytes(sealed(manifest))
        return replace(self.deployment, bundle=Bundle.open(self.scratch))

    def _other_arrays(self, name: str, changes: dict[str, Any]) -> bytes:
        with np.load(io.BytesIO(self.bundle.read(name)), allow_pickle=False) as file:
            arrays = dict(file) | changes
        buffer = io.BytesIO()
        np.savez_compressed(buffer, allow_pickle=False, **arrays)
        return buffer.getvalue()


def opened(deployment: Deployment, runner: str, variant: str, options: RunnerOptions) -> Runner:
    """A variant on a runner, or on `written`, which shows graphs that no runner here computes in their precision."""
    if runner in RUNNERS:
        return deployment.open(deployment.bundle, runner, variant, options)
    from trueport.export.written import open_as_written

    if runner != WRITTEN:
        raise ValueError(f"expected a runner's name, found {runner!r}")
    return open_as_written(deployment.bundle, deployment.bundle.variant(variant), options)


def _link(source: Path, target: Path) -> None:
    """A second name for a file, or a copy of it where the two are on different file systems."""
    try:
        os.link(source, target)
    except OSError:
        target.write_bytes(source.read_bytes())
