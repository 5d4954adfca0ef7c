"""Runners that do not answer what their graph says: the stage is theirs, and the cause is shown by experiment."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from trueport.runtime.bundle import Bundle
from trueport.runtime.errors import BundleError, MissingError
from trueport.runtime.runner import Array, Runner, RunnerOptions, RunnerReport
from trueport.runtime.runners import open_runner

Change = Callable[[Array], Array]
ORT = "onnxruntime:cpu"


class Wrapped:
    """A runner with something in front of it, behind it, or in its report."""

    def __init__(self, inner: Runner, before: Change, after: Change, **told: Any) -> None:
        self._inner, self._before, self._after, self._told = inner, before, after, told
        self.inputs, self.outputs = inner.inputs, inner.outputs

    def run(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        changed = {name: np.ascontiguousarray(self._before(rows)) for name, rows in feeds.items()}
        return {name: self._after(logits) for name, logits in self._inner.run(changed).items()}

    def report(self) -> RunnerReport:
        return msgspec.structs.replace(self._inner.report(), **self._told)

    def close(self) -> None:
        self._inner.close()


def same(values: Array) -> Array:
    return values


def softmax(logits: Array) -> Array:
    powers = np.exp(logits)
    return np.asarray(powers / powers.sum(axis=1, keepdims=True), np.float32)


def only_four(logits: Array) -> Array:
    return np.where(np.arange(len(logits))[:, None] < 4, logits, np.float32(0))


def one_late() -> Change:
    kept: dict[tuple[int, ...], Array] = {}

    def late(logits: Array) -> Array:
        told = kept.get(logits.shape, logits)
        kept[logits.shape] = logits
        return told

    return late


def noisy() -> Change:
    chance = np.random.default_rng(0)
    return lambda logits: logits + chance.normal(0, 0.1, logits.shape).astype(np.float32)


def as_planes(rows: Array) -> Array:
    return rows.reshape(-1, 3, 16, 16).transpose(0, 2, 3, 1)


def to_unit_range(rows: Array) -> Array:
    return (rows / 255).astype(np.uint8)


def in_half(logits: Array) -> Array:
    return logits.astype(np.float16).astype(np.float32)


FAULTS: dict[str, tuple[Change, Change, str, bool]] = {
    "channels": (lambda rows: rows[..., ::-1], same, "BGR for RGB", True),
    "layout": (as_planes, same, "NHWC order are read as NCHW", True),
    "unit range": (to_unit_range, same, "scaled to 0 to 1 before they become integers", True),
    "rows": (same, lambda logits: np.roll(logits, 1, axis=0), "come back in another order", True),
    "classes": (same, lambda logits: logits[:, [1, 2, 3, 4, 0]], "classes are permuted: place 0 holds class 1", True),
    "softmax": (same, softmax, "a softmax of the logits", True),
    "float16": (same, in_half, "rounded to float16", True),
    "scaled": (same, lambda logits: logits * np.float32(2), "multiplied by 2", True),
    "four rows": (same, only_four, "places 4 to 31 of a batch of 32 are answered wrongly, and rightly alone", True),
    "late": (same, one_late(), "the one to the batch before", True),
    "noisy": (same, noisy(), "otherwise each time", False),
}


@pytest.mark.parametrize("name", FAULTS)
def test_what_an_application_does_around_a_runner_is_recognised(name: str, speck_path: Path, why: Any) -> None:
    before, after, cause, confirmed = FAULTS[name]
    opened = lambda bundle: Wrapped(open_runner(bundle, ORT, "fp32"), before, after)  # noqa: E731
    found = why(speck_path, opened=opened, gates=("parity", "batch invariance"))
    assert found.stage == "runner"
    assert cause in found.cause
    assert found.confirmed == confirmed
    assert all(result.status != "departs" for result in found.stages if result.stage != "runner")


def test_a_provider_that_fell_back_is_told_as_the_contract_says(speck_path: Path, why: Any) -> None:
    opened = lambda bundle: Wrapped(open_runner(bundle, ORT, "fp32"), same, same, provider="Other")  # noqa: E731
    found = why(speck_path, opened=opened, gates=("contract",))
    assert (found.stage, found.confirmed) == ("runner", True)
    assert "as the gate says" in found.cause


def test_a_runner_that_runs_another_graph_is_found_out(
    speck_path: Path, own_speck: Path, surgery: Any, why: Any
) -> None:
    """By giving it a graph that answers otherwise: it does not notice."""

    def other(model: Any) -> None:
        for tensor in model.graph.initializer:
            if tensor.name == "network.conv2.weight":
                values = np.frombuffer(tensor.raw_data, np.float32)
                tensor.raw_data = np.roll(values, 7).tobytes()

    surgery(own_speck, other)
    kept = Bundle.open(own_speck)
    found = why(speck_path, opened=lambda _: open_runner(kept, ORT, "fp32"))
    assert (found.stage, found.confirmed) == ("runner", True)
    assert "the same whatever graph is in the bundle" in found.cause


class OneByOne(Wrapped):
    """An application's session of a fixed size: it takes single rows."""

    def run(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        if any(len(rows) > 1 for rows in feeds.values()):
            raise RuntimeError("Got invalid dimensions for input: image")
        return super().run(feeds)


def test_a_runner_that_refuses_batches_is_told_so(speck_path: Path, why: Any) -> None:
    gates = ("parity", "batch invariance")
    opened = lambda bundle: OneByOne(open_runner(bundle, ORT, "fp32"), same, same)  # noqa: E731
    found = why(speck_path, opened=opened, gates=gates)
    assert (found.stage, found.confirmed) == ("runner", True)
    assert "refuses batches that the graph takes, and answers single rows: Got invalid dimensions" in found.cause
    swapped = lambda bundle: OneByOne(open_runner(bundle, ORT, "fp32"), lambda x: x[..., ::-1], same)  # noqa: E731
    found = why(speck_path, opened=swapped, gates=gates)
    assert (found.stage, found.confirmed) == ("runner", True)
    assert "BGR for RGB" in found.cause, "what is wrong in single rows too comes first"


def test_a_runner_that_refuses_some_sizes_alone_is_no_error_here(speck_path: Path, why: Any) -> None:
    class NoSevens(Wrapped):
        def run(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
            if any(len(rows) == 7 for rows in feeds.values()):
                raise RuntimeError("no engine was built for 7 rows")
            return super().run(feeds)

    opened = lambda bundle: NoSevens(open_runner(bundle, ORT, "fp32"), same, same)  # noqa: E731
    found = why(speck_path, opened=opened, gates=("batch invariance",))
    assert found.stage == "runner"
    assert found.stages[-1].measured["batches"] is None
    assert "refuses batches that the graph takes, and answers single rows: no engine was built for 7" in found.cause


def test_a_tensor_inside_the_runner_is_found_by_cutting(speck_path: Path, why: Any) -> None:
    """A runner whose first convolution has other weights than the graph that it was given."""

    def opened(bundle: Bundle) -> Runner:
        import onnx

        from trueport.export.attribution.cut import bundle_of

        model = onnx.load_from_string(bundle.read("model.fp32.onnx"))
        for tensor in model.graph.initializer:
            if tensor.name == "network.conv2.weight":
                values = np.frombuffer(tensor.raw_data, np.float32)
                tensor.raw_data = np.roll(values, 7).tobytes()
        with bundle_of(bundle, bundle.variant("fp32"), model) as changed:
            return open_runner(changed, ORT, "fp32", RunnerOptions(threads=1))

    found = why(speck_path, opened=opened)
    assert found.stage == "runner"
    assert found.first[0].layer == "conv2"
    assert "by cutting the graph there" in found.first[0].detail


def test_a_runner_that_refuses_departs_and_one_that_is_missing_is_not_run(speck_path: Path, why: Any) -> None:
    def refusing(_: Bundle) -> Runner:
        raise BundleError("the engine is truncated")

    def missing(_: Bundle) -> Runner:
        raise MissingError("no such device here")

    found = why(speck_path, opened=refusing, gates=("contract",))
    assert found.stage == "runner"
    assert "the engine is truncated" in found.cause
    stages = {result.stage: result for result in why(speck_path, opened=missing).stages}
    assert (stages["runner"].status, stages["runner"].detail) == ("not run", "no such device here")
