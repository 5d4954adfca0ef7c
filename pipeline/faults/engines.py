"""Engines on disk that are not what a runner believes: held against their sidecar, which needs no GPU.

A stand-in for TensorRT's runner does what that does before it loads an engine, and then answers from the graph.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import replace

import msgspec

from trueport.runtime.bundle import Bundle
from trueport.runtime.engine import FOLDER, EngineOptions, Here, Sidecar, chosen_engine, damage, identity_of
from trueport.runtime.runner import Runner, RunnerOptions
from trueport.runtime.runners import DEFAULT, RUNNERS

from ..deployment import Deployment
from .catalogue import Healthy, fault
from .lying import LyingRunner

ASKED = "tensorrt"
HERE = Here(flavour="tensorrt", version="10.13.3", target="sm86", driver="580.65")
"""A machine with a GPU, as far as the sidecar is concerned."""
PLAN = b"ftrt" + bytes(range(256)) * 16


def _with_engine(healthy: Healthy, change: Callable[[Sidecar], Sidecar], plan: bytes = PLAN) -> Deployment:
    """The healthy bundle with an engine beside it, served by a runner that looks at it first."""
    copy = healthy.with_files({}).bundle
    right = Sidecar(
        identity=identity_of(copy, healthy.variant, HERE, ("sm86",), EngineOptions()),
        precision="fp32",
        layers=dict(healthy.variant.reached),
        layers_from="inspector",
        sha256=hashlib.sha256(PLAN).hexdigest(),
        size=len(PLAN),
        created="2026-01-01T00:00:00+00:00",
        seconds=1.0,
    )
    told = change(right)
    engine = copy.path / FOLDER / told.identity.file
    engine.parent.mkdir()
    engine.write_bytes(plan)
    engine.with_suffix(".json").write_bytes(msgspec.json.encode(told))
    return replace(healthy.deployment, bundle=copy, open=_looking(healthy))


def _looking(healthy: Healthy) -> Callable[[Bundle, str, str, RunnerOptions], Runner]:
    honest = healthy.deployment.open

    def open_engine(bundle: Bundle, runner: str, variant: str, options: RunnerOptions) -> Runner:
        path, sidecar = chosen_engine(bundle, variant, HERE)
        if error := damage(path, sidecar, bundle, path.read_bytes()):
            raise error
        told = {"name": runner, "provider": RUNNERS[ASKED].provider, "device": "cuda"}
        return LyingRunner(honest(bundle, DEFAULT, variant, options), told=told)

    return open_engine


def _identity(**changes: object) -> Callable[[Sidecar], Sidecar]:
    def change(sidecar: Sidecar) -> Sidecar:
        return msgspec.structs.replace(sidecar, identity=msgspec.structs.replace(sidecar.identity, **changes))

    return change


@fault("engine of other weights", "the engine was built from other weights", "runner", runner=ASKED)
def engine_of_other_weights(healthy: Healthy) -> Deployment:
    """engines/ was kept while the bundle beside it was exported anew."""
    return _with_engine(healthy, _identity(weights_sha256="ab" * 32))


@fault("engine of another graph", "the engine was built from another graph", "runner", runner=ASKED)
def engine_of_another_graph(healthy: Healthy) -> Deployment:
    """The same weights, exported with another normalisation or opset."""
    return _with_engine(healthy, _identity(graph_sha256="cd" * 32))


@fault("truncated engine", "the engine is truncated", "runner", runner=ASKED)
def truncate_the_engine(healthy: Healthy) -> Deployment:
    """A disk that was full, a download that was cut off."""
    return _with_engine(healthy, lambda sidecar: sidecar, PLAN[: len(PLAN) // 2])


@fault("engine of another GPU", "the engine was built for another GPU", "runner", runner=ASKED)
def engine_of_another_gpu(healthy: Healthy) -> Deployment:
    """Built on the machine that trained, shipped to the one that serves."""
    return _with_engine(healthy, _identity(targets=("sm120",)))
