"""check: a healthy bundle passes, each planted fault fails in the gate that is there for it."""

from __future__ import annotations

import hashlib
import io
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from trueport.pipeline import check as check_stage
from trueport.pipeline.check import OPENING, RECORDING, CheckReport, check, check_summary, check_table, proven
from trueport.runtime.bundle import GOLDEN, WEIGHTS, sealed
from trueport.runtime.errors import BundleError, MissingError, UsageError
from trueport.runtime.manifest import MANIFEST, FileEntry, Manifest
from trueport.runtime.runners import RUNNERS, open_runner
from trueport.runtime.verdict import judged, not_run

MODEL = "model.fp32.onnx"


def failed_gates(report: CheckReport) -> set[str]:
    return {verdict.gate for verdict in report.failed}


def replace_file(bundle: Path, name: str, data: bytes) -> None:
    """Put another file into a bundle and seal it as if it had been exported so."""
    (bundle / name).write_bytes(data)
    manifest = msgspec.json.decode((bundle / MANIFEST).read_bytes(), type=Manifest)
    entry = FileEntry(hashlib.sha256(data).hexdigest(), len(data))
    manifest = msgspec.structs.replace(manifest, files=manifest.files | {name: entry})
    (bundle / MANIFEST).write_bytes(sealed(manifest))


def change_graph(bundle: Path, change: Callable[[onnx.ModelProto], None]) -> None:
    model = onnx.load(bundle / MODEL)
    change(model)
    replace_file(bundle, MODEL, model.SerializeToString())


def scale_constants(model: onnx.ModelProto, where: Callable[[Any], bool], change: Callable[[Any], Any]) -> None:
    hits = 0
    for tensor in model.graph.initializer:
        array = numpy_helper.to_array(tensor)
        if where(array):
            tensor.CopyFrom(numpy_helper.from_array(change(array.copy()), tensor.name))
            hits += 1
    assert hits, "the planted fault found nothing to change"


def test_a_healthy_bundle_passes_every_gate(bundle_path: Path) -> None:
    report = check(bundle_path)
    assert report
    gates = [verdict.gate for verdict in report.verdicts]
    assert gates == ["preprocessing", "recording", "parity", "batch invariance", "accuracy"]
    assert all(report.verdicts)
    assert report.reference == "original"
    accuracy = report.verdicts[-1].measured
    assert accuracy["top1_port"] == accuracy["top1_original"]
    assert accuracy["top1_port"] is not None
    assert accuracy["top1_port"] > 80


def test_the_report_survives_json(bundle_path: Path) -> None:
    report = check(bundle_path)
    assert msgspec.json.decode(msgspec.json.encode(report), type=CheckReport) == report


def test_a_lost_bias_fails_parity(own_bundle: Path) -> None:
    def lose(model: onnx.ModelProto) -> None:
        scale_constants(model, lambda array: array.shape == (16,), lambda array: array * 0)

    change_graph(own_bundle, lose)
    assert "parity" in failed_gates(check(own_bundle))


def test_one_flipped_bit_in_a_weight_fails_parity(own_bundle: Path) -> None:
    def flip(model: onnx.ModelProto) -> None:
        def one(array: Any) -> Any:
            array.reshape(-1).view(np.uint32)[5] ^= 1 << 20
            return array

        scale_constants(model, lambda array: array.shape == (16, 1, 5, 5), one)

    change_graph(own_bundle, flip)
    assert failed_gates(check(own_bundle)) == {"parity"}


def test_rows_that_leak_into_each_other_fail_batch_invariance(own_bundle: Path) -> None:
    def leak(model: onnx.ModelProto) -> None:
        graph = model.graph
        last = graph.node[-1]
        last.output[0] = "raw"
        graph.node.append(onnx.helper.make_node("ReduceMean", ["raw"], ["raw_mean"], keepdims=1))
        graph.node.append(onnx.helper.make_node("Sub", ["raw", "raw_mean"], ["logits"]))

    change_graph(own_bundle, leak)
    assert "batch invariance" in failed_gates(check(own_bundle))


def test_other_preprocessing_fails_its_gate_alone(own_bundle: Path) -> None:
    manifest = msgspec.json.decode((own_bundle / MANIFEST).read_bytes(), type=Manifest)
    other = msgspec.structs.replace(manifest.preprocessing, resample="nearest")
    (own_bundle / MANIFEST).write_bytes(sealed(msgspec.structs.replace(manifest, preprocessing=other)))
    assert failed_gates(check(own_bundle)) == {"preprocessing"}


def test_weights_of_another_training_fail_the_recording(own_bundle: Path) -> None:
    from safetensors.numpy import load, save

    weights = {name: array * np.float32(1.01) for name, array in load((own_bundle / WEIGHTS).read_bytes()).items()}
    replace_file(own_bundle, WEIGHTS, save(weights))
    assert "recording" in failed_gates(check(own_bundle))


def test_weights_that_do_not_fit_are_a_damaged_bundle(own_bundle: Path) -> None:
    from safetensors.numpy import save

    replace_file(own_bundle, WEIGHTS, save({"x": np.zeros(3, np.float32)}))
    with pytest.raises(BundleError, match="don't fit lenet"):
        check(own_bundle)


def test_permuted_classes_fail_accuracy(own_bundle: Path) -> None:
    def permute(model: onnx.ModelProto) -> None:
        scale_constants(model, lambda array: array.shape[:1] == (10,), lambda array: np.roll(array, 1, axis=0))

    change_graph(own_bundle, permute)
    assert {"parity", "accuracy"} <= failed_gates(check(own_bundle))


def test_without_torch_the_recording_is_the_reference(bundle_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] in ("torch", "safetensors")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "torch", None)
    monkeypatch.setitem(sys.modules, "safetensors", None)
    report = check(bundle_path)
    assert report
    assert report.reference == "recording"
    statuses = {verdict.gate: verdict.status for verdict in report.verdicts}
    assert statuses.pop("recording") == "not run"
    assert set(statuses.values()) == {"passed"}


def test_without_weights_the_recording_is_the_reference(own_bundle: Path) -> None:
    manifest = msgspec.json.decode((own_bundle / MANIFEST).read_bytes(), type=Manifest)
    files = {name: entry for name, entry in manifest.files.items() if name != WEIGHTS}
    (own_bundle / MANIFEST).write_bytes(sealed(msgspec.structs.replace(manifest, files=files)))
    report = check(own_bundle)
    assert report
    assert report.reference == "recording"
    assert WEIGHTS in report.verdicts[1].detail


def test_a_golden_picture_that_can_not_be_decoded_fails(own_bundle: Path) -> None:
    with np.load(own_bundle / GOLDEN) as file:
        arrays = dict(file)
    arrays["encoded"] = arrays["encoded"] * 0
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)
    replace_file(own_bundle, GOLDEN, buffer.getvalue())
    assert failed_gates(check(own_bundle)) == {"preprocessing"}


def test_the_table_names_what_would_have_passed(own_bundle: Path) -> None:
    change_graph(own_bundle, lambda model: scale_constants(model, lambda a: a.shape == (16,), lambda a: a * 0))
    table = check_table(check(own_bundle))
    assert any("parity of fp32: max abs would have passed with" in note for note in table.notes)
    assert table.notes[-1].startswith("NOT PROVEN FAITHFUL")


def test_a_check_without_a_runner_is_refused(bundle_path: Path) -> None:
    with pytest.raises(UsageError, match="needs a runner"):
        check(bundle_path, runners=[])


# Several variants and runners


@pytest.fixture
def variants_bundle(own_bundle: Path) -> Path:
    """Beside fp32: fp16 for any device, which onnxruntime's CPU provider has no kernels for, and a graph for GPUs."""
    from onnxruntime.transformers.float16 import convert_float_to_float16

    halved = convert_float_to_float16(onnx.load(own_bundle / MODEL), keep_io_types=True)
    manifest = msgspec.json.decode((own_bundle / MANIFEST).read_bytes(), type=Manifest)
    (fp32,), files = manifest.variants, dict(manifest.files)
    added = []
    for name, precision, target, data in (
        ("fp16", "fp16", "any", halved.SerializeToString()),
        ("int8-gpu", "int8", "gpu", b"never read"),
    ):
        file = f"model.{name}.onnx"
        (own_bundle / file).write_bytes(data)
        files[file] = FileEntry(hashlib.sha256(data).hexdigest(), len(data))
        changes = {"name": name, "precision": precision, "target": target, "file": file, "reached": {precision: 5}}
        added.append(msgspec.structs.replace(fp32, **changes))
    whole = msgspec.structs.replace(manifest, variants=(fp32, *added), files=files)
    (own_bundle / MANIFEST).write_bytes(sealed(whole))
    return own_bundle


def test_a_variant_that_can_not_run_here_is_told_and_not_passed(variants_bundle: Path) -> None:
    report = check(variants_bundle)
    assert report
    fp16 = [verdict for verdict in report.verdicts if verdict.variant == "fp16"]
    assert [(verdict.gate, verdict.status) for verdict in fp16] == [(OPENING, "not run")]
    assert "computes it in fp32" in fp16[0].detail
    (int8,) = [verdict for verdict in report.verdicts if verdict.variant == "int8-gpu"]
    assert (int8.gate, int8.status) == (OPENING, "not run")
    assert "made for a GPU" in int8.detail
    assert check_summary(report) == "faithful: 5 passed, 2 not run, fp16 and int8-gpu on no runner at all"
    rows = check_table(report).rows
    assert any(status == "not run" and "computes it in fp32" in told for status, _, told in rows)


def test_what_was_named_and_can_not_be_had_is_an_error(variants_bundle: Path) -> None:
    with pytest.raises(MissingError, match="expected fp16"):
        check(variants_bundle, variants=["fp16"])
    with pytest.raises(MissingError, match="expected fp16"):
        check(variants_bundle, variants=["fp32", "fp16"])
    with pytest.raises(MissingError, match="onnxruntime:tensorrt needs"):
        check(variants_bundle, runners=["onnxruntime:tensorrt"])


def test_all_runners_are_those_that_can_be_opened(variants_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[tuple[str, str]] = []

    def open_some(bundle: Any, name: str, variant: str, options: Any) -> Any:
        if name == "onnxruntime:cuda" or variant == "fp16":
            raise MissingError("not here")
        opened.append((name, variant))
        return open_runner(bundle, "onnxruntime:cpu", variant, options)

    monkeypatch.setattr(check_stage, "open_runner", open_some)
    monkeypatch.setattr(check_stage, "RUNNERS", {name: RUNNERS[name] for name in ("openvino:cpu", "onnxruntime:cuda")})
    report = check(variants_bundle, runners=["all"])
    assert report
    assert opened == [("openvino:cpu", "fp32")]
    left_out = [(verdict.variant, verdict.runner) for verdict in report.verdicts if verdict.gate == OPENING]
    assert left_out == [("fp16", "openvino:cpu"), ("fp32, fp16, int8-gpu", "onnxruntime:cuda")]
    with pytest.raises(MissingError, match="not here"):
        check(variants_bundle, runners=["all"], variants=["fp16"])


def test_openvino_and_onnxruntime_pass_the_same_gates(bundle_path: Path) -> None:
    pytest.importorskip("openvino")
    report = check(bundle_path, runners=["onnxruntime:cpu", "openvino:cpu", "openvino:cpu"])
    assert report, [verdict.would_pass for verdict in report.failed]
    assert [runner.name for runner in report.runners] == ["onnxruntime:cpu", "openvino:cpu"]
    (parity,) = (one for one in report.verdicts if one.gate == "parity" and one.runner == "openvino:cpu")
    assert parity.detail.endswith("layers in fp32")


def test_a_runner_without_a_variant_for_its_device_is_refused(own_bundle: Path) -> None:
    manifest = msgspec.json.decode((own_bundle / MANIFEST).read_bytes(), type=Manifest)
    only = msgspec.structs.replace(manifest.variants[0], target="gpu")
    (own_bundle / MANIFEST).write_bytes(sealed(msgspec.structs.replace(manifest, variants=(only,))))
    with pytest.raises(UsageError, match="none of the bundle's variants was made for onnxruntime:cpu"):
        check(own_bundle)
    assert check(own_bundle, variants=["fp32"]), "named, it is tried"


def test_an_unknown_runner_is_refused_before_anything_is_read(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="unknown runner 'openvino': did you mean openvino:cpu"):
        check(tmp_path / "nowhere", runners=["openvino"])


def test_what_proves_a_port() -> None:
    passed = judged("parity", "fp32", "it", {"max_abs": 0.0}, {"max_abs": 1.0}, "-")
    failed = judged("parity", "fp32", "it", {"max_abs": 2.0}, {"max_abs": 1.0}, "-")
    left_out = [not_run(gate, "fp16", "it", "why") for gate in (OPENING, RECORDING)]
    assert proven([passed, *left_out])
    assert not proven(left_out)
    assert not proven([passed, failed, *left_out])
    assert not proven([passed, not_run("parity", "fp32", "it", "why")])
