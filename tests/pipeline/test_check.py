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
from trueport.pipeline.check import (
    RECORDING,
    CheckReport,
    bounds_from_text,
    check,
    check_deployment,
    check_summary,
    check_table,
    explained,
    proven,
)
from trueport.pipeline.deployment import Deployment
from trueport.pipeline.gates import ACCURACY, CONTRACT, INVARIANCE, OPENING, PARITY
from trueport.runtime.bundle import EVALUATION, GOLDEN, WEIGHTS, Bundle, sealed
from trueport.runtime.errors import BundleError, MissingError, PrecisionError, UsageError
from trueport.runtime.manifest import MANIFEST, FileEntry, Manifest, Normalisation
from trueport.runtime.preprocessing import prepare
from trueport.runtime.runner import Runner
from trueport.runtime.runners import RUNNERS, open_runner
from trueport.runtime.runners.written import WRITTEN
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
    assert gates == [
        *("evidence", "labels", "preprocessing", "recording"),
        *("contract", "parity", "batch invariance", "accuracy"),
    ]
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
    (failed,) = check(own_bundle).failed
    assert failed.gate == "preprocessing"
    assert "exported with" in failed.detail


def test_pixels_of_an_application_are_held_against_the_golden_ones(bundle_path: Path) -> None:
    bundle = Bundle.open(bundle_path)
    swapped = Deployment(bundle, prepare=lambda encoded, how: prepare(encoded, how)[:, ::-1])
    (failed,) = check_deployment(swapped).failed
    assert failed.gate == "preprocessing"
    assert failed.would_pass["max_levels"]
    floats = Deployment(bundle, prepare=lambda encoded, how: prepare(encoded, how) / 255)  # type: ignore[arg-type,return-value]
    (failed,) = check_deployment(floats).failed
    assert "expected pixels as uint8" in failed.detail


def test_labels_of_an_application_are_held_against_the_manifest(bundle_path: Path) -> None:
    bundle = Bundle.open(bundle_path)
    names = bundle.manifest.labels
    assert check_deployment(Deployment(bundle, labels=names))
    (failed,) = check_deployment(Deployment(bundle, labels=(*names[1:], names[0]))).failed
    assert failed.gate == "labels"
    assert "'1' in place 0, the manifest '0'" in failed.detail


class Odd:
    """A runner that does not do what a runner must."""

    def __init__(self, runner: Runner, run: Callable[[Any], Any]) -> None:
        self._runner, self._run = runner, run
        self.inputs, self.outputs = runner.inputs, runner.outputs

    def run(self, feeds: Any) -> Any:
        return self._run(feeds["image"])

    def report(self) -> Any:
        return self._runner.report()

    def close(self) -> None:
        self._runner.close()


def test_what_a_runner_raises_or_mixes_is_a_verdict(bundle_path: Path) -> None:
    bundle = Bundle.open(bundle_path)

    def failing(run: Callable[[Runner, Any], Any]) -> dict[str, str]:
        def open_odd(*asked: Any) -> Any:
            runner = open_runner(*asked)
            return Odd(runner, lambda images: run(runner, images))

        return {verdict.gate: verdict.detail for verdict in check_deployment(Deployment(bundle, open=open_odd)).failed}

    def frozen(runner: Runner, images: Any) -> Any:
        if len(images) > 1:
            raise RuntimeError("expected a batch of 1")
        return runner.run({"image": images})

    assert failing(frozen) == {INVARIANCE: "the runner can't answer: expected a batch of 1"}
    none = failing(lambda runner, images: {"logits": runner.run({"image": images})["logits"][:, :5]})
    assert set(none) == {PARITY}
    assert "expected logits" in none[PARITY]

    def in_float(*_: Any) -> Any:
        raise PrecisionError("it computes it in fp32")

    assert failing(in_float) == {PARITY: "the runner can't answer: it computes it in fp32"}
    mixed = failing(lambda runner, images: {"logits": np.roll(runner.run({"image": images})["logits"], 1, axis=0)})
    assert INVARIANCE in mixed


def test_a_bound_that_was_set_by_hand_is_recorded(own_bundle: Path) -> None:
    change_graph(own_bundle, lambda model: scale_constants(model, lambda a: a.shape == (16,), lambda a: a + 1e-4))
    assert not check(own_bundle)
    report = check(own_bundle, bounds={"fp32.max_abs": 1.0, "fp32.rms": 1.0})
    assert report
    assert report.overridden == {"fp32.max_abs": 1.0, "fp32.rms": 1.0}
    assert "the bound fp32.rms was set to 1 by hand" in check_table(report).notes
    for name, match in (("fp32.noise_rms", "unknown bound"), ("int8.rms", "unknown bound")):
        with pytest.raises(UsageError, match=match):
            check(own_bundle, bounds={name: 1.0})
    with pytest.raises(UsageError, match="must be a number from 0 on"):
        check(own_bundle, bounds={"fp32.rms": float("nan")})


def test_bounds_are_read_from_the_command_line() -> None:
    assert bounds_from_text(["fp32.rms=0.5"]) == {"fp32.rms": 0.5}
    for text in ("fp32.rms", "fp32.rms=much"):
        with pytest.raises(UsageError, match="expected a bound such as"):
            bounds_from_text([text])


def test_other_pictures_in_place_of_the_evaluation_slice(bundle_path: Path) -> None:
    report = check(bundle_path, data="digits")
    assert report
    (accuracy,) = (verdict for verdict in report.verdicts if verdict.gate == ACCURACY)
    assert "359 held-out samples" in accuracy.detail, "of the data it was trained on the test part is taken"
    assert report.data == "digits"
    assert "judged on the pictures of digits, in place of the bundle's evaluation slice" in check_table(report).notes
    with pytest.raises(UsageError, match="the bundle's own pictures to explain, found one on digits"):
        explained(bundle_path, report)


def test_more_pictures_are_the_evidence_that_a_small_slice_lacks(own_bundle: Path) -> None:
    with np.load(own_bundle / EVALUATION) as file:
        few = {name: array[:5] for name, array in file.items()}
    buffer = io.BytesIO()
    np.savez(buffer, **few)
    replace_file(own_bundle, EVALUATION, buffer.getvalue())
    assert [verdict.gate for verdict in check(own_bundle).undecided] == ["evidence"]
    assert check(own_bundle, data="digits")


def test_an_original_that_answers_nan_is_never_a_pass(own_bundle: Path) -> None:
    with np.load(own_bundle / EVALUATION) as file:
        arrays = dict(file)
    arrays["logits"][3] = np.nan
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)
    replace_file(own_bundle, EVALUATION, buffer.getvalue())
    failed = {verdict.gate: verdict.detail for verdict in check(own_bundle).failed}
    assert {"evidence", "recording"} <= set(failed)
    assert "the original itself answers NaN" in failed["evidence"]


def test_opset_and_normalisation_are_held_against_what_was_exported(own_bundle: Path) -> None:
    def lower(model: onnx.ModelProto) -> None:
        model.opset_import[0].version = 19

    change_graph(own_bundle, lower)
    (failed,) = check(own_bundle).failed
    assert (failed.gate, failed.detail) == (CONTRACT, "the graph was written in opset 20 and now says 19")
    manifest = msgspec.json.decode((own_bundle / MANIFEST).read_bytes(), type=Manifest)
    other = msgspec.structs.replace(manifest, normalisation=Normalisation((0.4,), (0.5,)))
    (own_bundle / MANIFEST).write_bytes(sealed(other))
    details = [verdict.detail for verdict in check(own_bundle).failed if verdict.gate == CONTRACT]
    assert "the normalisation that it was exported with is not the manifest's" in details[0]


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
    (recording,) = (verdict for verdict in report.verdicts if verdict.gate == RECORDING)
    assert WEIGHTS in recording.detail


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


def test_a_bound_that_is_copied_from_the_table_passes(bundle_path: Path) -> None:
    measured, names = {"max_abs": 0.10049, "rms": float("nan")}, ("fp32", "onnxruntime:cpu")
    failed = judged(PARITY, *names, measured, {"max_abs": 0.1, "rms": 0.1}, "-")
    first, second, *_ = check_table(msgspec.structs.replace(check(bundle_path), verdicts=(failed,))).notes
    assert first == "parity of fp32: max abs would have passed with 0.101"
    assert second == "parity of fp32: rms would have passed with no bound at all"


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
        ("int8-gpu", "int8", "gpu", (own_bundle / MODEL).read_bytes()),
    ):
        file = f"model.{name}.onnx"
        (own_bundle / file).write_bytes(data)
        files[file] = FileEntry(hashlib.sha256(data).hexdigest(), len(data))
        changes = {"name": name, "precision": precision, "target": target, "file": file, "reached": {precision: 5}}
        bounds = msgspec.structs.replace(fp32.bounds, max_abs=1.0, rms=1.0, max_drop=2.0)
        added.append(msgspec.structs.replace(fp32, bounds=bounds, **changes))
    whole = msgspec.structs.replace(manifest, variants=(fp32, *added), files=files)
    (own_bundle / MANIFEST).write_bytes(sealed(whole))
    return own_bundle


def test_a_variant_that_can_not_run_here_is_told_and_not_passed(variants_bundle: Path) -> None:
    report = check(variants_bundle)
    assert report
    fp16 = [verdict for verdict in report.verdicts if verdict.variant == "fp16"]
    assert [(verdict.gate, verdict.status) for verdict in fp16[:1]] == [(OPENING, "not run")]
    assert "computes it in fp32" in fp16[0].detail
    int8 = [verdict for verdict in report.verdicts if verdict.variant == "int8-gpu"]
    assert (int8[0].gate, int8[0].status) == (OPENING, "not run")
    assert "made for a GPU" in int8[0].detail
    for judged_as_written in (fp16[1:], int8[1:]):
        assert {verdict.runner for verdict in judged_as_written} == {WRITTEN}
        assert [verdict.gate for verdict in judged_as_written] == [CONTRACT, PARITY, INVARIANCE, ACCURACY]
    assert check_summary(report) == "faithful: 16 passed, 2 not run, fp16 and int8-gpu on no runner at all"
    rows = check_table(report).rows
    assert any(status == "not run" and "computes it in fp32" in told for status, _, told in rows)


@pytest.mark.parametrize("options", [{}, {"variants": ["int8-gpu"]}, {"variants": ["int8-gpu"], "runners": ["all"]}])
def test_int8_that_is_computed_in_float_on_its_own_kind_of_device_has_failed(
    variants_bundle: Path, options: dict[str, Any]
) -> None:
    manifest = msgspec.json.decode((variants_bundle / MANIFEST).read_bytes(), type=Manifest)
    fp32, fp16, int8 = manifest.variants
    here = msgspec.structs.replace(int8, target="cpu")
    (variants_bundle / MANIFEST).write_bytes(sealed(msgspec.structs.replace(manifest, variants=(fp32, fp16, here))))
    report = check(variants_bundle, **options)
    assert not report
    assert {(verdict.gate, verdict.variant) for verdict in report.failed} == {(CONTRACT, "int8-gpu")}
    assert "onnxruntime:cpu" in {verdict.runner for verdict in report.failed}
    assert all("to be computed in int8" in verdict.detail for verdict in report.failed)
    fp16_left_out = [verdict.gate for verdict in report.verdicts if verdict.variant == "fp16"]
    assert fp16_left_out[:1] == ([] if options else [OPENING]), "made for any device, it may run elsewhere"


def test_a_graph_that_no_runner_here_takes_is_judged_as_it_is_written(variants_bundle: Path) -> None:
    manifest = msgspec.json.decode((variants_bundle / MANIFEST).read_bytes(), type=Manifest)
    (file,) = (variant.file for variant in manifest.variants if variant.name == "int8-gpu")
    model = onnx.load(variants_bundle / file)
    scale_constants(model, lambda array: array.shape == (16,), lambda array: array + 3)
    replace_file(variants_bundle, file, model.SerializeToString())
    report = check(variants_bundle)
    assert not report
    assert {(verdict.variant, verdict.runner) for verdict in report.failed} == {("int8-gpu", WRITTEN)}
    replace_file(variants_bundle, file, b"no graph")
    (broken,) = check(variants_bundle).failed
    assert (broken.gate, broken.variant) == (CONTRACT, "int8-gpu")
    assert "can't read" in broken.detail


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

    monkeypatch.setattr(check_stage, "RUNNERS", {name: RUNNERS[name] for name in ("openvino:cpu", "onnxruntime:cuda")})
    deployment = Deployment(Bundle.open(variants_bundle), open=open_some)
    report = check_deployment(deployment, runners=["all"])
    assert opened == [("openvino:cpu", "fp32")]
    left_out = [(verdict.variant, verdict.runner) for verdict in report.verdicts if verdict.gate == OPENING]
    assert left_out == [("fp16", "openvino:cpu"), ("fp32, fp16, int8-gpu", "onnxruntime:cuda")]
    assert {verdict.gate for verdict in report.failed} == {CONTRACT}, "it ran on onnxruntime and not on OpenVINO"
    named = check_deployment(deployment, runners=["all"], variants=["fp32", "fp16"])
    fp16 = [(verdict.gate, verdict.runner) for verdict in named.verdicts if verdict.variant == "fp16"]
    assert fp16[:1] == [(OPENING, "openvino:cpu")]
    assert fp16[1:] == [(gate, WRITTEN) for gate in (CONTRACT, PARITY, INVARIANCE, ACCURACY)]
    with pytest.raises(MissingError, match="not here"):
        check_deployment(deployment, runners=["all"], variants=["fp16"])


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
