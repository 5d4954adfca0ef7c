"""Opening a runner: the graph is the verified one and what the manifest states, and failures are told apart."""

from __future__ import annotations

import hashlib
import importlib
from collections.abc import Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import onnxruntime
import pytest

from trueport.runtime.bundle import Bundle, graph_file, sealed
from trueport.runtime.errors import BundleError, ClosedError, MissingError, UsageError
from trueport.runtime.manifest import MANIFEST, FileEntry, Manifest, Preprocessing, TensorSpec
from trueport.runtime.runner import RunnerOptions, run_in_batches
from trueport.runtime.runners import RUNNERS, open_runner

GRAPH = graph_file("fp32")


def changed(bundle: Path, **changes: Any) -> Bundle:
    """A bundle whose manifest is whole, and says something else."""
    manifest = msgspec.json.decode((bundle / MANIFEST).read_bytes(), type=Manifest)
    (bundle / MANIFEST).write_bytes(sealed(msgspec.structs.replace(manifest, **changes)))
    return Bundle.open(bundle)


def with_graph(bundle: Path, graph: bytes) -> Bundle:
    """A bundle with another graph, whose hash the manifest states rightly."""
    (bundle / GRAPH).write_bytes(graph)
    files: Mapping[str, FileEntry] = msgspec.json.decode((bundle / MANIFEST).read_bytes(), type=Manifest).files
    return changed(bundle, files={**files, GRAPH: FileEntry(hashlib.sha256(graph).hexdigest(), len(graph))})


def test_a_graph_changed_after_it_was_verified_is_noticed(own_bundle: Path) -> None:
    bundle = Bundle.open(own_bundle)
    data = bytearray((own_bundle / GRAPH).read_bytes())
    data[len(data) // 2] ^= 1
    (own_bundle / GRAPH).write_bytes(data)
    with pytest.raises(BundleError, match="changed since export"):
        open_runner(bundle)


@pytest.mark.parametrize(
    ("field", "spec", "message"),
    [
        ("inputs", TensorSpec("pixels", "uint8", (-1, 32, 32, 1)), r"input image uint8 .* states pixels uint8"),
        ("inputs", TensorSpec("image", "float32", (-1, 32, 32, 1)), "states image float32"),
        ("inputs", TensorSpec("image", "uint8", (-1, 32, 32, 3)), r"\[-1, 32, 32, 1\], .* \[-1, 32, 32, 3\]"),
        ("outputs", TensorSpec("logits", "float32", (2, 10)), r"\[-1, 10\], .* \[2, 10\]"),
        ("outputs", None, "states none"),
    ],
)
def test_a_graph_that_is_not_what_the_manifest_states(
    own_bundle: Path, field: str, spec: TensorSpec | None, message: str
) -> None:
    bundle = changed(own_bundle, **{field: (spec,) if spec else ()})
    with pytest.raises(BundleError, match=message):
        open_runner(bundle)


def test_labels_and_preprocessing_have_to_fit_the_tensors(own_bundle: Path) -> None:
    with pytest.raises(BundleError, match=r"logits float32 \[-1, 10\], its labels stand for \[-1, 2\]"):
        open_runner(changed(own_bundle, labels=("a", "b")))
    with pytest.raises(BundleError, match=r"image uint8 .*, its preprocessing makes \[-1, 8, 8, 3\]"):
        open_runner(changed(own_bundle, labels=tuple("0123456789"), preprocessing=Preprocessing(height=8, width=8)))


@pytest.mark.parametrize("graph", [b"", b"no graph at all", b"half"])
def test_a_bad_graph_is_the_bundle_s_fault(own_bundle: Path, graph: bytes) -> None:
    whole = (own_bundle / GRAPH).read_bytes()
    bundle = with_graph(own_bundle, whole[: len(whole) // 2] if graph == b"half" else graph)
    with pytest.raises(BundleError, match=rf"can't read .*{GRAPH}: [A-Z][\w ]+; export the bundle again$"):
        open_runner(bundle)


@pytest.mark.parametrize(
    "failure", [MemoryError(), RuntimeError("Failed to allocate memory\nfor requested buffer of size 64")]
)
def test_any_other_failure_is_this_machine_s(
    bundle_path: Path, monkeypatch: pytest.MonkeyPatch, failure: Exception
) -> None:
    def session(*_: object, **__: object) -> None:
        raise failure

    monkeypatch.setattr(onnxruntime, "InferenceSession", session)
    reason = "Failed to allocate memory$" if str(failure) else "MemoryError$"
    with pytest.raises(MissingError, match=f"can't run .*{GRAPH} here: {reason}"):
        open_runner(Bundle.open(bundle_path))


@pytest.mark.parametrize("threads", [0, -1, 1025, 1 << 40])
def test_threads_are_at_least_one_and_no_more_than_a_library_takes(bundle_path: Path, threads: int) -> None:
    with pytest.raises(UsageError, match=f"at least 1 and at most 1024, .* found {threads}"):
        open_runner(Bundle.open(bundle_path), options=RunnerOptions(threads=threads))


def test_a_closed_runner_says_so(bundle_path: Path) -> None:
    runner = open_runner(Bundle.open(bundle_path), options=RunnerOptions(threads=1))
    runner.close()
    runner.close()
    with pytest.raises(ClosedError):
        runner.run({"image": np.zeros((1, 32, 32, 1), np.uint8)})
    assert runner.report().provider == "CPUExecutionProvider"


@pytest.mark.parametrize("name", RUNNERS)
def test_every_runner_has_its_module(name: str) -> None:
    module = importlib.import_module(f"trueport.runtime.runners.{RUNNERS[name].module}")
    assert callable(module.open_variant)


def test_openvino_runs_a_bundle(bundle_path: Path) -> None:
    pytest.importorskip("openvino")
    bundle = Bundle.open(bundle_path)
    with closing(open_runner(bundle, "openvino:cpu")) as runner:
        golden = bundle.golden()
        assert np.abs(run_in_batches(runner, golden.images, 7) - golden.logits).max() <= bundle.variant().bounds.max_abs
