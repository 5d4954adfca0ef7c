"""doctor: every finding, from probes that answer as told."""

from __future__ import annotations

import re
import sys
from importlib import metadata

import msgspec
import pytest

from trueport.pipeline import doctor
from trueport.pipeline.doctor import Probe, Report, Row
from trueport.runtime.machine import Gpu, Machine, describe_machine

CUDA_STDERR = (
    "\x1b[1;31m2026-01-01 00:00:00.1 [E:onnxruntime:Default, provider_bridge_ort.cc:2458 operator()] "
    "[ONNXRuntimeError] : 1 : FAIL : Failed to load library /x/libonnxruntime_providers_cuda.so with error: "
    "libcublasLt.so.13: cannot open shared object file: No such file or directory\n\x1b[m\n"
    "Traceback (most recent call last):\n"
    "onnxruntime.capi.onnxruntime_pybind11_state.Fail: [ONNXRuntimeError] : 1 : FAIL : This session contains nodes\n"
)


def machine_with(**changes: object) -> Machine:
    return msgspec.structs.replace(describe_machine(), **changes)


@pytest.fixture
def probes(monkeypatch: pytest.MonkeyPatch) -> dict[tuple[str, ...], Probe]:
    """Answers in place of other processes; what is not listed fails."""
    answers: dict[tuple[str, ...], Probe] = {}
    monkeypatch.setattr(doctor, "run_probe", lambda *what: answers.get(what, Probe("", f"{' '.join(what)} failed")))
    return answers


def by_name(rows: list[Row]) -> dict[str, Row]:
    return {row.name: row for row in rows}


# The model that providers are tried with


def test_the_model_is_valid_onnx() -> None:
    onnx = pytest.importorskip("onnx")
    model = onnx.load_from_string(doctor.relu_model())
    onnx.checker.check_model(model, full_check=True)
    assert [node.op_type for node in model.graph.node] == ["Relu"]


def test_the_processor_provider_is_really_run() -> None:
    assert doctor.run_probe("provider", "CPUExecutionProvider") == Probe("CPUExecutionProvider", "")


def test_a_provider_that_is_not_there_is_never_replaced_by_another() -> None:
    probe = doctor.run_probe("provider", "MIGraphXExecutionProvider")
    assert probe.answer == ""
    assert probe.reason


# Reasons


def test_a_missing_module_is_the_reason() -> None:
    assert doctor.run_probe("module", "no_such_module_at_all").reason == (
        "ModuleNotFoundError: No module named 'no_such_module_at_all'"
    )


def test_a_python_that_can_not_be_started_is_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/nowhere/python")
    assert "can't start /nowhere/python" in doctor.run_probe("module", "json").reason


def test_an_attempt_that_does_not_end_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "PROBE_TIMEOUT_S", 0.001)
    assert doctor.run_probe("module", "json").reason == "did not end within 0.001 s"


@pytest.mark.parametrize(
    ("returncode", "stderr", "reason"),
    [
        (1, CUDA_STDERR, "libcublasLt.so.13: cannot open shared object file: No such file or directory"),
        (1, "x.y.Fail: [ONNXRuntimeError] : 1 : FAIL : no kernel\n", "no kernel"),
        (1, "Traceback\n  File\nImportError: libfoo\n\n", "ImportError: libfoo"),
        (-11, "warming up\n", "crashed with signal 11"),
        (3, "", "ended with exit code 3 without a word"),
    ],
)
def test_the_telling_line_of_a_failure(returncode: int, stderr: str, reason: str) -> None:
    assert doctor.reason_from_output(returncode, stderr) == reason


@pytest.mark.parametrize(
    ("reason", "remedy"),
    [
        ("libcublasLt.so.13: cannot open shared object file", "pip install 'trueport[cuda]'"),
        ("libcudnn.so.9: cannot open", "pip install 'trueport[cuda]'"),
        ("libnvinfer.so.10: cannot open", "install TensorRT 10 so that libnvinfer.so.10 is on the loader's path"),
        ("libcuda.so.1: cannot open", "install NVIDIA's driver"),
        ("no kernel image", ""),
    ],
)
def test_the_remedy_for_a_library(reason: str, remedy: str) -> None:
    assert doctor.library_remedy(reason) == remedy


# Rows


def test_providers_each_have_their_own_outcome(
    probes: dict[tuple[str, ...], Probe], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(doctor, "_installed", lambda name: "1.30.0" if name == "onnxruntime-gpu" else None)
    probes["onnxruntime_providers",] = Probe("CUDAExecutionProvider CPUExecutionProvider", "")
    probes["provider", "CPUExecutionProvider"] = Probe("CPUExecutionProvider", "")
    probes["provider", "CUDAExecutionProvider"] = Probe("", "libcudnn.so.9: cannot open shared object file")
    rows = doctor.onnxruntime_rows(machine_with(gpus=(), versions={"onnxruntime": "1.30.0"}))
    assert [(row.name, row.status) for row in rows] == [
        ("package", "ok"),
        ("CPU (onnxruntime:cpu)", "ok"),
        ("CUDA (onnxruntime:cuda)", "not usable"),
    ]
    assert rows[0].detail == "onnxruntime-gpu 1.30.0"
    assert "libcudnn.so.9" in rows[2].detail
    assert rows[2].remedy == "needs an NVIDIA GPU and its driver first; pip install 'trueport[cuda]'"


def test_with_a_gpu_the_remedy_is_the_install_alone() -> None:
    row = doctor.provider_row("CUDAExecutionProvider", Probe("", "libcudnn.so.9: cannot open"), has_gpu=True)
    assert row.remedy == "pip install 'trueport[cuda]'"


def test_an_onnxruntime_that_does_not_import_is_told_once(
    probes: dict[tuple[str, ...], Probe], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(doctor, "_installed", lambda name: "1.30.0" if name == "onnxruntime" else None)
    probes["onnxruntime_providers",] = Probe("", "ImportError: DLL load failed")
    rows = by_name(doctor.onnxruntime_rows(machine_with()))
    assert rows["import"].status == "not usable"
    assert rows["import"].remedy == "pip install --force-reinstall onnxruntime"


def test_onnxruntime_absent_or_twice() -> None:
    assert doctor.onnxruntime_row([], "").status == "missing"
    twice = doctor.onnxruntime_row(["onnxruntime-gpu", "onnxruntime"], "1.30.0")
    assert twice.status == "not usable"
    assert twice.remedy == "pip uninstall onnxruntime-gpu onnxruntime, then pip install onnxruntime-gpu"


def test_gpus_or_why_there_is_none() -> None:
    gpu = Gpu(name="A10", compute_capability="8.6", driver="580.1", memory_gib=22.5)
    (row,) = doctor.gpu_rows(machine_with(gpus=(gpu,)), "")
    assert (row.status, row.detail) == ("ok", "compute capability 8.6, 22.5 GiB, driver 580.1")
    (row,) = doctor.gpu_rows(machine_with(gpus=()), "no nvidia-smi")
    assert (row.status, row.detail) == ("missing", "no nvidia-smi")


def test_cores_tell_the_quota() -> None:
    machine = machine_with(cores=2, physical_cores=8, logical_cores=16, quota_cores=2.5, instruction_sets=("avx2",))
    rows = by_name(doctor.processor_rows(machine))
    assert rows["cores"].detail == "2 usable: 8 physical, 16 logical for this process, quota of 2.5"
    assert rows["instruction sets"].detail == "avx2"


@pytest.mark.parametrize(
    ("findable", "probe", "status", "words"),
    [
        (False, Probe("", ""), "missing", "pip install 'trueport[rtx]'"),
        (True, Probe("1.7.1", ""), "ok", "1.7.1"),
        (True, Probe("", "libcuda.so.1: cannot open"), "not usable", "install NVIDIA's driver"),
    ],
)
def test_tensorrt_flavours(
    monkeypatch: pytest.MonkeyPatch,
    probes: dict[tuple[str, ...], Probe],
    findable: bool,
    probe: Probe,
    status: str,
    words: str,
) -> None:
    monkeypatch.setattr(doctor, "_findable", lambda _: findable)
    probes["module", "tensorrt_rtx"] = probe
    row = doctor.tensorrt_row("tensorrt_rtx", machine_with())
    assert row.status == status
    assert words in f"{row.detail} {row.remedy}"


def test_openvino_is_really_run() -> None:
    pytest.importorskip("openvino")
    row = doctor.openvino_row()
    assert row.status == "ok", row
    assert re.fullmatch(r"20\d\d\.\d+\.\d+ loads and answers; this CPU computes in fp32.*", row.detail)


def test_openvino_absent_or_broken(monkeypatch: pytest.MonkeyPatch, probes: dict[tuple[str, ...], Probe]) -> None:
    monkeypatch.setattr(doctor, "_findable", lambda _: False)
    assert (doctor.openvino_row().status, doctor.openvino_row().remedy) == (
        "missing",
        "pip install 'trueport[openvino]'",
    )
    monkeypatch.setattr(doctor, "_findable", lambda _: True)
    probes["openvino",] = Probe("", "ImportError: libopenvino.so")
    assert (doctor.openvino_row().status, doctor.openvino_row().detail) == ("not usable", "ImportError: libopenvino.so")


def test_providers_are_told_with_their_runner() -> None:
    row = doctor.provider_row("TensorrtExecutionProvider", Probe("", "libnvinfer.so.10: cannot open"), has_gpu=True)
    assert row.name == "Tensorrt (onnxruntime:tensorrt)"
    assert "install TensorRT 10" in row.remedy


def test_a_torch_that_does_not_import_beside_torchvision(
    monkeypatch: pytest.MonkeyPatch, probes: dict[tuple[str, ...], Probe]
) -> None:
    monkeypatch.setattr(doctor, "_findable", lambda _: True)
    probes["torch",] = Probe("", "RuntimeError: operator torchvision::nms does not exist")
    (row,) = doctor.torch_rows()
    assert row.status == "not usable"
    assert "torchvision::nms" in row.detail
    monkeypatch.setattr(doctor, "_findable", lambda _: False)
    assert doctor.torch_rows() == []


# Extras


def test_requirements_met_absent_too_old_and_not_for_this_platform(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "_installed", {"torch": "2.11.0", "onnx": "1.17.0"}.get)
    assert doctor.requirement_problem('torch>=2.11; extra == "train"', "train") == ""
    assert doctor.requirement_problem('onnx>=1.18; extra == "train"', "train") == "onnx 1.17.0 where >=1.18 is needed"
    assert doctor.requirement_problem('jinja2; extra == "train"', "train") == "no jinja2"
    elsewhere = 'jinja2; sys_platform == "atari" and extra == "train"'
    assert doctor.requirement_problem(elsewhere, "train") == ""


def test_requirements_of_a_requirements_own_extras_count(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "_installed", {"ort": "1.30"}.get)
    own = ["numpy>=1", 'curand~=10.0; extra == "cuda"', 'other; extra == "x"']
    monkeypatch.setattr(metadata, "requires", lambda _: own)
    assert doctor.requirement_problem('ort[cuda]>=1.30; extra == "cuda"', "cuda") == "no curand"


def test_an_extra_names_its_purpose_and_its_command() -> None:
    lines = {"serve": ['no-such-distribution; extra == "serve"'], "train": []}
    serve, train = doctor.extra_rows(lines)
    assert (serve.status, serve.remedy) == ("missing", "pip install 'trueport[serve]'")
    assert serve.detail == f"{doctor.PURPOSES['serve']}; no no-such-distribution"
    assert (train.status, train.remedy) == ("ok", "")


def test_every_extra_that_trueport_declares_has_a_purpose() -> None:
    declared = metadata.metadata("trueport").get_all("Provides-Extra") or []
    assert declared
    assert set(declared) == {*doctor.PURPOSES, doctor.SUM}


# The whole


def test_a_machine_that_lacks_everything_is_still_examined(
    monkeypatch: pytest.MonkeyPatch, probes: dict[tuple[str, ...], Probe]
) -> None:
    assert probes == {}
    monkeypatch.setattr(doctor, "_installed", lambda _: None)
    monkeypatch.setattr(doctor, "_findable", lambda _: False)
    report = doctor.examine()
    rows = {(row.group, row.name): row for row in report.rows}
    assert rows["onnxruntime", "package"].status == "missing"
    assert rows["tensorrt", "tensorrt"].status == "missing"
    assert all(row.detail for row in report.rows)
    assert all(row.remedy for row in report.rows if row.status == "missing")
    assert msgspec.json.decode(msgspec.json.encode(report), type=Report) == report


def test_groups_come_in_a_fixed_order(monkeypatch: pytest.MonkeyPatch, probes: dict[tuple[str, ...], Probe]) -> None:
    monkeypatch.setattr(doctor, "_findable", lambda _: True)
    assert probes == {}
    groups = list(dict.fromkeys(row.group for row in doctor.examine().rows))
    assert groups == ["python", "processor", "gpu", "onnxruntime", "openvino", "tensorrt", "torch", "extras"]
