"""explain: everything that check failed or can't tell gets a stage, a cause and a remedy, in a table for people."""

from __future__ import annotations

import hashlib
import io
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import onnx
import pytest
from onnx import numpy_helper
from safetensors.torch import load, save

from trueport.pipeline.check import check_deployment
from trueport.pipeline.deployment import Deployment
from trueport.pipeline.explain import explain, explanation_table, rebuilt
from trueport.runtime.bundle import EVALUATION, GOLDEN, WEIGHTS, Bundle, sealed
from trueport.runtime.errors import UsageError
from trueport.runtime.explanation import Explanation, StageResult
from trueport.runtime.manifest import MANIFEST, FileEntry, Manifest
from trueport.runtime.preprocessing import prepare

MODEL = "model.fp32.onnx"


def put(bundle: Path, name: str, data: bytes, **changes: Any) -> None:
    (bundle / name).write_bytes(data)
    manifest = msgspec.json.decode((bundle / MANIFEST).read_bytes(), type=Manifest)
    files = manifest.files | {name: FileEntry(hashlib.sha256(data).hexdigest(), len(data))}
    (bundle / MANIFEST).write_bytes(sealed(msgspec.structs.replace(manifest, files=files, **changes)))


def change_graph(bundle: Path, change: Callable[[onnx.ModelProto], None]) -> None:
    model = onnx.load(bundle / MODEL)
    change(model)
    put(bundle, MODEL, model.SerializeToString())


def change_arrays(bundle: Path, name: str, **changes: Any) -> None:
    with np.load(bundle / name) as file:
        arrays = dict(file)
    buffer = io.BytesIO()
    np.savez_compressed(
        buffer, **{key: changes[key](value) if key in changes else value for key, value in arrays.items()}
    )
    put(bundle, name, buffer.getvalue())


def explained(deployment: Deployment) -> tuple[Explanation, ...]:
    return explain(deployment, check_deployment(deployment))


def test_nothing_is_explained_where_nothing_failed(bundle_path: Path) -> None:
    assert explained(Deployment(Bundle.open(bundle_path))) == ()
    assert explanation_table(()).rows == ()


def test_a_lost_bias_is_named_with_its_layer_and_told_in_a_table(own_bundle: Path) -> None:
    def lose(model: onnx.ModelProto) -> None:
        tensor = next(tensor for tensor in model.graph.initializer if tensor.name == "network.conv2.bias")
        tensor.CopyFrom(numpy_helper.from_array(np.zeros(32, np.float32), tensor.name))

    change_graph(own_bundle, lose)
    (found,) = explained(Deployment(Bundle.open(own_bundle)))
    assert (found.variant, found.runner, found.stage) == ("fp32", "onnxruntime:cpu", "onnx")
    assert "parity" in found.gates
    assert found.cause == "the bias of conv2 is lost: it is zero throughout"
    assert found.confirmed
    assert found.first[0].layer == "conv2"
    assert msgspec.json.decode(msgspec.json.encode(found), type=Explanation) == found
    rows = explanation_table((found,)).rows
    assert [row[0] for row in rows][:7] == ["gates", "original", "export", "onnx", "optimised", "precision", "runner"]
    (cause,) = (row for row in rows if row[0] == "cause")
    assert cause[1] == "confirmed"
    assert found.cause in cause[2]
    assert any(row[0] == "tensor" and "conv2" in row[2] for row in rows)


def test_without_onnx_and_the_weights_the_recording_is_enough(
    own_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A swap of classes around a runner is found with onnxruntime alone."""
    from trueport.runtime.runners import open_runner

    (own_bundle / WEIGHTS).unlink()
    manifest = msgspec.json.decode((own_bundle / MANIFEST).read_bytes(), type=Manifest)
    files = {name: entry for name, entry in manifest.files.items() if name != WEIGHTS}
    (own_bundle / MANIFEST).write_bytes(sealed(msgspec.structs.replace(manifest, files=files)))

    class Swapped:
        def __init__(self, inner: Any) -> None:
            self.inputs, self.outputs = inner.inputs, inner.outputs
            self.report, self.close = inner.report, inner.close
            self._inner = inner

        def run(self, feeds: Any) -> Any:
            return {name: logits[:, ::-1] for name, logits in self._inner.run(feeds).items()}

    deployment = Deployment(
        Bundle.open(own_bundle),
        open=lambda *asked: Swapped(open_runner(*asked)),
    )
    report = check_deployment(deployment)
    monkeypatch.setitem(sys.modules, "onnx", None)
    (found,) = explain(deployment, report)
    assert (found.stage, found.confirmed, found.first) == ("runner", True, ())
    assert "classes are permuted: place 0 holds class 9" in found.cause
    assert next(result for result in found.stages if result.stage == "original").status == "not run"


def test_it_loads_without_torch_and_onnx() -> None:
    """They are looked for when something is explained, and said to be missing then."""
    blocked = "import sys; sys.modules |= dict.fromkeys(('torch', 'onnx', 'onnxscript', 'safetensors'));"
    code = f"{blocked} import trueport.pipeline.explain"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stderr


def test_preprocessing_of_an_application_is_recognised(bundle_path: Path) -> None:
    other = lambda data, wanted: prepare(data, msgspec.structs.replace(wanted, resample="nearest"))  # noqa: E731
    (found,) = explained(Deployment(Bundle.open(bundle_path), prepare=other))
    assert (found.variant, found.runner, found.gates) == ("-", "-", ("preprocessing",))
    assert found.stage == "preprocessing"
    assert "the filter nearest, where bicubic is stated" in found.cause
    assert found.confirmed


def test_labels_of_an_application_are_told_apart(bundle_path: Path) -> None:
    deployment = Deployment(Bundle.open(bundle_path))
    labels = deployment.bundle.manifest.labels
    (found,) = explained(replace(deployment, labels=labels[::-1]))
    assert found.stage == "labels"
    assert "the application has the labels in another order: '9' where '0' belongs" in found.cause
    (found,) = explained(replace(deployment, labels=("background", *labels)))
    assert "11 of them, not 10" in found.cause


def test_weights_that_were_exchanged_are_the_originals_stage(own_bundle: Path) -> None:
    tensors = load((own_bundle / WEIGHTS).read_bytes())
    put(own_bundle, WEIGHTS, save({name: values * 1.1 for name, values in tensors.items()}))
    found = explained(Deployment(Bundle.open(own_bundle)))
    assert {one.stage for one in found} == {"original"}
    assert found[0].gates == ("recording",)
    assert "is not the file that was exported" in found[0].cause
    assert all(one.confirmed for one in found)


def test_a_recording_of_another_model_is_evidence(own_bundle: Path) -> None:
    for name in (GOLDEN, EVALUATION):
        change_arrays(own_bundle, name, logits=lambda logits: np.roll(logits, 1, axis=0))
    found = next(one for one in explained(Deployment(Bundle.open(own_bundle))) if one.gates == ("recording",))
    assert (found.stage, found.confirmed) == ("evidence", True)
    assert "another model's" in found.cause


def test_too_few_pictures_are_evidence_and_the_number_needed_is_told(own_bundle: Path) -> None:
    few = {key: lambda values: values[:4] for key in ("images", "labels", "logits")}
    change_arrays(own_bundle, EVALUATION, **few)
    found = explained(Deployment(Bundle.open(own_bundle)))[0]
    assert (found.stage, found.gates) == ("evidence", ("evidence",))
    assert "29 are needed" in found.cause


def test_golden_inputs_that_are_all_alike_are_told_as_that(own_bundle: Path) -> None:
    change_arrays(own_bundle, GOLDEN, images=lambda images: images * 0)
    found = next(one for one in explained(Deployment(Bundle.open(own_bundle))) if one.gates == ("evidence",))
    assert (found.stage, found.confirmed) == ("evidence", True)
    assert "there are 0 different golden inputs that are not of one colour, 2 are needed" in found.cause
    assert "of one class" not in found.cause


def test_where_nothing_departs_no_stage_stands_in_front_of_the_cause() -> None:
    result = StageResult(stage="runner", status="agrees", detail="-")
    found = Explanation(
        variant="fp32", runner="onnxruntime:cpu", gates=("parity",), stage="runner", stages=(result,),
        cause="no stage departs", confirmed=False, remedy="-",
    )  # fmt: skip
    told = [row[2] for row in explanation_table((found,)).rows if row[0] == "cause"]
    assert told == ["no stage departs (look first at runner: the variant on its runner, against the variant's graph as "
                    "it is written)"]  # fmt: skip
    departed = msgspec.structs.replace(found, stages=(msgspec.structs.replace(result, status="departs"),))
    assert any(row[2].startswith("runner (") for row in explanation_table((departed,)).rows)


def test_bounds_set_by_hand_hold_for_the_explanation_too(bundle_path: Path) -> None:
    deployment = Deployment(Bundle.open(bundle_path))
    report = check_deployment(deployment, bounds={"fp32.max_abs": 0.0, "fp32.rms": 0.0})
    found = next(one for one in explain(deployment, report) if one.variant == "fp32")
    assert next(iter(result for result in found.stages if result.stage == "onnx")).allowed["max_abs"] == 0.0


def test_a_rebuild_needs_layers(bundle_path: Path, tmp_path: Path) -> None:
    nothing = Explanation(
        variant="fp32", runner="onnxruntime:cpu", gates=("parity",), stage="onnx", stages=(), cause="-",
        confirmed=False, remedy="-",
    )  # fmt: skip
    with pytest.raises(UsageError, match="expected layers of an int8 variant"):
        rebuilt(Deployment(Bundle.open(bundle_path)), nothing, tmp_path / "out")
