"""What this machine has, what it lacks, and what to do about it: found out by trying, not by asking.

Whatever may print, crash or stay in memory (providers, TensorRT, torch) is tried in a process of its own, whose last
words become the reason. Nothing here raises.
"""

from __future__ import annotations

import importlib
import re
import struct
import subprocess
import sys
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from importlib import metadata, util
from typing import Literal

import msgspec

from trueport.runtime.machine import DISTRIBUTIONS, Machine, describe_machine, find_gpus

from .console import Table

Status = Literal["ok", "missing", "not usable"]

PROBE_TIMEOUT_S = 120.0
"""Importing torch from a cold disk can take a minute."""
PURPOSES = {
    "train": "data, training, export, the original in check and bench, and the report",
    "serve": "gRPC beside HTTP, and a faster event loop",
    "timm": "timm/NAME, the architectures and weights of timm",
    "cuda": "the CUDA and cuDNN libraries of onnxruntime:cuda",
    "openvino": "openvino:cpu, a runner for Intel CPUs",
    "tensorrt": "building and running engines for data-centre and desktop GPUs",
    "rtx": "building and running engines for RTX GPUs",
}
"""What each extra of trueport is for."""
SUM = "all"
"""The extra that is the others together."""
_ORT_WHEELS = DISTRIBUTIONS["onnxruntime"]
_CPU = "CPUExecutionProvider"
_RUNNERS = {
    _CPU: "onnxruntime:cpu",
    "CUDAExecutionProvider": "onnxruntime:cuda",
    "TensorrtExecutionProvider": "onnxruntime:tensorrt",
}
_NVIDIA = ("CUDAExecutionProvider", "TensorrtExecutionProvider", "NvTensorRTRTXExecutionProvider")
_FLAVOURS = {"tensorrt": "tensorrt", "tensorrt_rtx": "rtx"}
"""Modules of TensorRT, and the extras that bring them, which are the runners' names too."""


class Row(msgspec.Struct, frozen=True, kw_only=True):
    """One finding."""

    group: str
    """`python`, `processor`, `gpu`, `onnxruntime`, `openvino`, `tensorrt`, `torch`, `extras`."""
    name: str
    status: Status
    detail: str
    """What was found, or the reason as the library itself gave it."""
    remedy: str = ""
    """What to do, often a command; empty where there is nothing to do."""


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """All findings, with the machine they were made on."""

    machine: Machine
    rows: tuple[Row, ...]


@dataclass(frozen=True)
class Probe:
    """What became of an attempt in another process: its answer, or the reason why there is none."""

    answer: str
    reason: str


def examine() -> Report:
    """Look at everything; takes as long as importing onnxruntime and torch."""
    machine = describe_machine()
    gpu_problem = "" if machine.gpus else find_gpus()[1]
    parts: list[Callable[[], Iterable[Row]]] = [
        lambda: python_rows(machine),
        lambda: processor_rows(machine),
        lambda: gpu_rows(machine, gpu_problem),
        lambda: onnxruntime_rows(machine),
        lambda: [openvino_row()],
        lambda: (tensorrt_row(flavour, machine) for flavour in _FLAVOURS),
        torch_rows,
        lambda: extra_rows(_requirements()),
    ]
    with ThreadPoolExecutor(2) as pool:
        found = list(pool.map(lambda part: list(part()), parts))
    return Report(machine=machine, rows=tuple(row for rows in found for row in rows))


def doctor_table(report: Report) -> Table:
    """The findings as text, with what to do where something is missing."""
    rows = (
        (row.status, row.name, row.detail + (f"\nto do: {row.remedy}" if row.remedy else "")) for row in report.rows
    )
    return Table("", ("status", "what", "found"), tuple(rows))


def python_rows(machine: Machine) -> list[Row]:
    """The interpreter; trueport could not have been started by one that is too old."""
    detail = f"{machine.python}, {machine.architecture}, {machine.os}"
    if struct.calcsize("P") != 8:
        remedy = "install a 64-bit Python: onnxruntime and torch have no wheels for this one"
        return [Row(group="python", name="Python", status="not usable", detail=detail, remedy=remedy)]
    return [Row(group="python", name="Python", status="ok", detail=detail)]


def processor_rows(machine: Machine) -> list[Row]:
    """Model, usable cores, instruction sets and memory."""
    quota = "" if machine.quota_cores is None else f", quota of {machine.quota_cores:g}"
    cores = (
        f"{machine.cores} usable: {machine.physical_cores} physical, {machine.logical_cores} logical"
        f" for this process{quota}"
    )
    memory = "unknown" if machine.memory_gib is None else f"{machine.memory_gib:g} GiB"
    found = {
        "model": machine.cpu,
        "cores": cores,
        "instruction sets": ", ".join(machine.instruction_sets) or "not told by this system",
        "memory": memory,
    }
    return [Row(group="processor", name=name, status="ok", detail=detail) for name, detail in found.items()]


def gpu_rows(machine: Machine, problem: str) -> list[Row]:
    """Each GPU with its driver, or why there is none."""
    if not machine.gpus:
        remedy = "install NVIDIA's driver if this machine has an NVIDIA GPU; trueport runs on the CPU without"
        return [Row(group="gpu", name="NVIDIA GPU", status="missing", detail=problem, remedy=remedy)]
    return [
        Row(
            group="gpu",
            name=gpu.name,
            status="ok",
            detail=f"compute capability {gpu.compute_capability}, {gpu.memory_gib:g} GiB, driver {gpu.driver}",
        )
        for gpu in machine.gpus
    ]


def onnxruntime_rows(machine: Machine) -> list[Row]:
    """The package, and each of its providers tried with a model of one node."""
    wheels = [name for name in _ORT_WHEELS if _installed(name)]
    package = onnxruntime_row(wheels, machine.versions.get("onnxruntime", ""))
    if not wheels:
        return [package]
    listed = run_probe("onnxruntime_providers")
    if listed.reason:
        broken = Row(
            group="onnxruntime",
            name="import",
            status="not usable",
            detail=listed.reason,
            remedy=f"pip install --force-reinstall {wheels[0]}",
        )
        return [package, broken]
    providers = sorted(listed.answer.split(), key=lambda name: (name != _CPU, name))
    return [package, *(provider_row(name, run_probe("provider", name), bool(machine.gpus)) for name in providers)]


def onnxruntime_row(wheels: list[str], version: str) -> Row:
    """The state of the package: absent, in order, or two wheels that overwrite each other's files."""
    group, name = "onnxruntime", "package"
    if not wheels:
        return Row(group=group, name=name, status="missing", detail="not installed", remedy="pip install trueport")
    if len(wheels) > 1:
        remedy = f"pip uninstall {' '.join(wheels)}, then pip install {wheels[0]}"
        detail = f"{' and '.join(wheels)} are both installed and overwrite each other's files"
        return Row(group=group, name=name, status="not usable", detail=detail, remedy=remedy)
    return Row(group=group, name=name, status="ok", detail=f"{wheels[0]} {version}")


def provider_row(provider: str, probe: Probe, has_gpu: bool) -> Row:
    """Whether a session really ran on the provider."""
    runner = _RUNNERS.get(provider, "")
    name = provider.removesuffix("ExecutionProvider") + (f" ({runner})" if runner else "")
    if not probe.reason:
        detail = "loads and answers"
        return Row(group="onnxruntime", name=name, status="ok", detail=detail)
    remedy = library_remedy(probe.reason)
    if provider in _NVIDIA and not has_gpu:
        remedy = f"needs an NVIDIA GPU and its driver first; {remedy}".rstrip("; ")
    return Row(group="onnxruntime", name=name, status="not usable", detail=probe.reason, remedy=remedy)


def library_remedy(reason: str) -> str:
    """What brings the shared library that a reason names; empty where none is known."""
    found = re.search(r"lib(nvinfer|nvonnxparser|cu|nv)\w*\.so(?:\.(\d+))?", reason)
    if not found:
        return ""
    library, version = found.group(0), found.group(2)
    if library.startswith("libcuda."):
        return "install NVIDIA's driver"
    if found.group(1) in ("nvinfer", "nvonnxparser"):
        return f"install TensorRT {version or ''}".rstrip() + f" so that {library} is on the loader's path"
    return "pip install 'trueport[cuda]'"


def openvino_row() -> Row:
    """Whether OpenVINO really compiled and ran something on the CPU."""
    group, name, install = "openvino", "CPU (openvino:cpu)", "pip install 'trueport[openvino]'"
    if not _findable("openvino"):
        return Row(group=group, name=name, status="missing", detail="not installed", remedy=install)
    probe = run_probe("openvino")
    if probe.reason:
        remedy = install.replace("install", "install --force-reinstall", 1)
        return Row(group=group, name=name, status="not usable", detail=probe.reason, remedy=remedy)
    return Row(group=group, name=name, status="ok", detail=probe.answer)


def tensorrt_row(flavour: str, machine: Machine) -> Row:
    """Whether a TensorRT flavour can be imported, and which version it is."""
    extra = _FLAVOURS[flavour]
    install = f"pip install 'trueport[{extra}]'"
    if not _findable(flavour):
        detail = f"not installed; for {PURPOSES[extra]}"
        return Row(group="tensorrt", name=flavour, status="missing", detail=detail, remedy=install)
    probe = run_probe("module", flavour)
    if probe.reason:
        remedy = library_remedy(probe.reason) or install.replace("install", "install --force-reinstall", 1)
        return Row(group="tensorrt", name=flavour, status="not usable", detail=probe.reason, remedy=remedy)
    lacking = "" if machine.gpus else "; builds engines here, a GPU to run one on is not there"
    return Row(group="tensorrt", name=flavour, status="ok", detail=probe.answer + lacking)


def torch_rows() -> list[Row]:
    """Whether torch imports beside torchvision, which must be of its release; absent, it is told among the extras."""
    if not (_findable("torch") and _findable("torchvision")):
        return []
    probe = run_probe("torch")
    if probe.reason:
        remedy = "pip install --force-reinstall 'trueport[train]'"
        return [Row(group="torch", name="torch", status="not usable", detail=probe.reason, remedy=remedy)]
    return [Row(group="torch", name="torch", status="ok", detail=probe.answer)]


def extra_rows(requirements: Mapping[str, Iterable[str]]) -> list[Row]:
    """For each extra, by its requirements on this platform, what is installed and what is not."""
    if not _findable("packaging"):
        detail = "can't be told without packaging, which comes with onnxruntime"
        return [Row(group="extras", name="all", status="not usable", detail=detail, remedy="pip install packaging")]
    rows = []
    for extra, lines in requirements.items():
        lacking = [problem for line in lines if (problem := requirement_problem(line, extra))]
        purpose = PURPOSES.get(extra, "")
        rows.append(
            Row(
                group="extras",
                name=extra,
                status="missing" if lacking else "ok",
                detail="; ".join(filter(None, (purpose, ", ".join(lacking)))),
                remedy=f"pip install 'trueport[{extra}]'" if lacking else "",
            )
        )
    return rows


def requirement_problem(line: str, extra: str) -> str:
    """Why a requirement (`torch>=2.11; extra == "train"`) is not met here; empty where it is, or does not apply."""
    from packaging.requirements import Requirement

    requirement = Requirement(line)
    if requirement.marker and not requirement.marker.evaluate({"extra": extra}):
        return ""
    version = _installed(requirement.name)
    if version is None:
        return f"no {requirement.name}"
    if not requirement.specifier.contains(version, prereleases=True):
        return f"{requirement.name} {version} where {requirement.specifier} is needed"
    inner = [line for line in metadata.requires(requirement.name) or () if "extra" in line]
    problems = (requirement_problem(line, name) for name in sorted(requirement.extras) for line in inner)
    return ", ".join(filter(None, problems))


def _requirements() -> dict[str, list[str]]:
    """Requirements of each extra, as the installed trueport declares them."""
    try:
        names = set(metadata.metadata("trueport").get_all("Provides-Extra") or []) - {SUM}
        lines = metadata.requires("trueport") or []
    except metadata.PackageNotFoundError:
        return {}
    return {
        name: [line for line in lines if re.search(rf"extra\s*==\s*['\"]{name}['\"]", line)] for name in sorted(names)
    }


# Trying things in another process


def run_probe(*arguments: str) -> Probe:
    """Run `probe(*arguments)` in a process of its own: its last printed line, or the reason of its failure."""
    code = "import sys; from trueport.pipeline import doctor; doctor.probe(*sys.argv[1:])"
    command = [sys.executable, "-c", code, *arguments]
    try:
        done = subprocess.run(  # noqa: S603 -- our own interpreter with our own code
            command, capture_output=True, text=True, errors="replace", timeout=PROBE_TIMEOUT_S, check=False
        )
    except subprocess.TimeoutExpired:
        return Probe("", f"did not end within {PROBE_TIMEOUT_S:g} s")
    except OSError as error:
        return Probe("", f"can't start {sys.executable or 'Python'}: {error}")
    if done.returncode == 0 and done.stdout.strip():
        return Probe(done.stdout.strip().splitlines()[-1], "")
    return Probe("", reason_from_output(done.returncode, done.stderr))


def reason_from_output(returncode: int, stderr: str) -> str:
    """The telling line of a failed attempt: the library that did not load, else the last line."""
    text = re.sub(r"\x1b\[[0-9;]*m", "", stderr)
    loader = re.search(r"with error: (.+)", text)
    if loader:
        return loader.group(1).strip()
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    if returncode < 0:
        return f"crashed with signal {-returncode}"
    if not lines:
        return f"ended with exit code {returncode} without a word"
    return re.sub(r"^[\w.]+: \[ONNXRuntimeError\] : \d+ : \w+ : ", "", lines[-1])


def probe(what: str, name: str = "") -> None:
    """The other process's side: try one thing and print one line about it, or fail as the thing itself does."""
    if what == "onnxruntime_providers":
        import onnxruntime

        print(*onnxruntime.get_available_providers())  # noqa: T201 -- read by run_probe
    elif what == "provider":
        _try_provider(name)
    elif what == "openvino":
        _try_openvino()
    elif what == "torch":
        _try_torch()
    else:
        module = importlib.import_module(name)
        print(getattr(module, "__version__", "of unknown version"))  # noqa: T201


def _try_provider(provider: str) -> None:
    """Run one node on the provider alone: no other one may take its place, in the session or in Python."""
    import numpy as np
    import onnxruntime

    if provider in _NVIDIA and hasattr(onnxruntime, "preload_dlls"):
        onnxruntime.preload_dlls(directory="")  # CUDA and cuDNN from their pip packages, as the runner does
    options = onnxruntime.SessionOptions()
    if provider != _CPU:
        options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
    session = onnxruntime.InferenceSession(relu_model(), options, providers=[provider], enable_fallback=False)
    session.disable_fallback()
    first = session.get_providers()[0]
    if first != provider:
        raise SystemExit(f"the session dropped to {first}")
    (answer,) = session.run(None, {"x": np.array([-1, 2], np.float32)})
    if answer.tolist() != [0, 2]:
        raise SystemExit(f"relu of [-1, 2] came out as {answer.tolist()}")
    print(first)  # noqa: T201


def _try_openvino() -> None:
    """Run one node, imported as the runner does it: without the package's telemetry."""
    import numpy as np

    from trueport.runtime.runners.openvino_cpu import import_openvino, shared_core

    openvino = import_openvino()
    core = shared_core()
    compiled = core.compile_model(core.read_model(relu_model()), "CPU")
    answer = compiled([np.array([-1, 2], np.float32)])[0]
    if answer.tolist() != [0, 2]:
        raise SystemExit(f"relu of [-1, 2] came out as {answer.tolist()}")
    known = set(core.get_property("CPU", "OPTIMIZATION_CAPABILITIES"))
    kinds = ", ".join(kind.lower() for kind in ("FP32", "BF16", "FP16", "INT8") if kind in known)
    print(f"{openvino.__version__.partition('-')[0]} loads and answers; this CPU computes in {kinds}")  # noqa: T201


def _try_torch() -> None:
    import torch
    import torchvision

    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU that it can use"
    cuda = f"built for CUDA {torch.version.cuda}" if torch.version.cuda else "built without CUDA"
    print(f"{torch.__version__} with torchvision {torchvision.__version__}, {cuda}; {device}")  # noqa: T201


def relu_model() -> bytes:
    """An ONNX model of one node, y = Relu(x) on float32 (2,), encoded here: onnx is not part of a base install.

    Field numbers are those of https://github.com/onnx/onnx/blob/main/onnx/onnx.proto.
    """
    dimension = _field(1, 2)  # dim_value
    tensor = _field(1, 1) + _field(2, _field(1, dimension))  # elem_type FLOAT, shape
    node = _field(1, b"x") + _field(2, b"y") + _field(4, b"Relu")
    x, y = (_field(1, name) + _field(2, _field(1, tensor)) for name in (b"x", b"y"))  # ValueInfoProto
    graph = _field(1, node) + _field(2, b"probe") + _field(11, x) + _field(12, y)
    return _field(1, 8) + _field(7, graph) + _field(8, _field(1, b"") + _field(2, 14))  # IR 8, graph, opset 14


def _field(number: int, value: int | bytes) -> bytes:
    """One protobuf field: a varint, or bytes with their length; all numbers here are below 128."""
    if isinstance(value, int):
        return bytes((number << 3, value))
    return bytes((number << 3 | 2, len(value))) + value


def _installed(distribution: str) -> str | None:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None


def _findable(module: str) -> bool:
    return util.find_spec(module) is not None
