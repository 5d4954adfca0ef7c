"""Parsing is tested on the texts of other machines; what is read from this one only on what must hold anywhere."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path, PurePosixPath

import msgspec
import numpy as np
import pytest

from trueport.runtime import machine
from trueport.runtime.machine import CpuInfo, Gpu, Machine

XEON = """\
processor	: 0
vendor_id	: GenuineIntel
model name	: Intel(R) Xeon(R) Platinum 8481C CPU @ 2.70GHz
physical id	: 0
core id		: 0
flags		: fpu sse4_2 avx f16c fma avx2 avx512f avx512bw avx512vl avx512_vnni amx_bf16 avx512_fp16 amx_tile amx_int8
bugs		: spectre_v1

processor	: 1
model name	: another one
flags		: fpu
"""
GRAVITON = """\
processor	: 0
BogoMIPS	: 2100.00
Features	: fp asimd evtstrm aes crc32 atomics asimdhp asimddp sve i8mm bf16
CPU implementer	: 0x41
CPU part	: 0xd40
"""
V1_GROUPS = "9:name=systemd:/\n4:memory:/docker/abc\n2:cpu,cpuacct:/docker/abc\n0::/\n"
V1_MOUNTS = """\
31 23 0:28 / /sys/fs/cgroup rw,relatime - tmpfs tmpfs rw,mode=755
32 31 0:29 /docker/abc /sys/fs/cgroup/cpu,cpuacct rw,relatime shared:9 - cgroup cgroup rw,cpu,cpuacct
35 31 0:32 /docker/abc /sys/fs/cgroup/memory rw,relatime - cgroup cgroup rw,memory
"""
V2_MOUNTS = "30 23 0:26 / /sys/fs/cgroup rw,nosuid shared:4 - cgroup2 cgroup2 rw,nsdelegate\n"


def test_an_intel_processor() -> None:
    info = machine.parse_cpuinfo(XEON)
    assert info.model == "Intel(R) Xeon(R) Platinum 8481C CPU @ 2.70GHz"
    assert {"avx2", "f16c", "avx512_vnni", "amx_int8", "amx_bf16"} <= set(info.instruction_sets)
    assert not {"fpu", "avx_vnni", "asimd"} & set(info.instruction_sets)


def test_an_arm_processor_has_numbers_for_a_name() -> None:
    info = machine.parse_cpuinfo(GRAVITON)
    assert info.model == "Arm implementer 0x41 part 0xd40"
    assert info.instruction_sets == ("asimd", "asimdhp", "asimddp", "i8mm", "bf16", "sve")


def test_no_cpuinfo() -> None:
    assert machine.parse_cpuinfo("") == CpuInfo("", ())


@pytest.mark.parametrize(
    ("text", "cores"), [("max 100000\n", None), ("150000 100000\n", 1.5), ("", None), ("50000 0", None), ("x y", None)]
)
def test_version_2_quota(text: str, cores: float | None) -> None:
    assert machine.cores_from_cpu_max(text) == cores


@pytest.mark.parametrize(
    ("quota", "period", "cores"), [("-1\n", "100000\n", None), ("200000\n", "100000\n", 2.0), ("", "", None)]
)
def test_version_1_quota(quota: str, period: str, cores: float | None) -> None:
    assert machine.cores_from_cfs(quota, period) == cores


@pytest.mark.parametrize(
    ("physical", "quota", "cores"), [(8, None, 8), (8, 2.0, 2), (8, 2.9, 2), (8, 0.5, 1), (2, 64.0, 2)]
)
def test_usable_cores_are_whole_and_at_least_one(physical: int, quota: float | None, cores: int) -> None:
    assert machine.usable_cores(physical, quota) == cores


def folders(controller: str, groups: str, mounts: str) -> list[str]:
    return [str(folder) for folder in machine.control_group_folders(controller, groups, mounts)]


def test_version_1_folders_of_a_container_are_its_mounted_root() -> None:
    assert folders("cpu", V1_GROUPS, V1_MOUNTS) == ["/sys/fs/cgroup/cpu,cpuacct"]
    assert folders("memory", V1_GROUPS, V1_MOUNTS) == ["/sys/fs/cgroup/memory"]


def test_version_2_folders_go_from_the_group_to_the_root() -> None:
    assert folders("cpu", "0::/user.slice/job.scope\n", V2_MOUNTS) == [
        "/sys/fs/cgroup/user.slice/job.scope",
        "/sys/fs/cgroup/user.slice",
        "/sys/fs/cgroup",
    ]


@pytest.mark.parametrize(("groups", "mounts"), [("", ""), ("nonsense\n", "a b\n\nc - d\n"), (V1_GROUPS, "")])
def test_unknown_control_groups_are_none(groups: str, mounts: str) -> None:
    assert folders("cpu", groups, mounts) == []


def test_the_tightest_limit_of_the_groups_above_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    inner = tmp_path / "slice" / "job"
    inner.mkdir(parents=True)
    (inner / "cpu.max").write_text("max 100000\n")
    (inner.parent / "cpu.max").write_text("250000 100000\n")
    (tmp_path / "cpu.max").write_text("800000 100000\n")
    (inner.parent / "memory.max").write_text(f"{3 * machine.GIB}\n")
    (inner / "memory.max").write_text("max\n")
    monkeypatch.setattr(machine, "_control_groups", lambda _: [inner, inner.parent, tmp_path])
    monkeypatch.setattr(machine, "parse_meminfo", lambda _: 64 * machine.GIB)
    assert machine.quota_cores() == 2.5
    assert machine.memory_gib() == 3.0


def test_memory_of_meminfo() -> None:
    assert machine.parse_meminfo("MemTotal:       24684096 kB\nMemFree: 1 kB\n") == 24684096 * 1024
    assert machine.parse_meminfo("") is None


def test_busy_ticks_of_the_cores_in_use_include_what_the_host_stole() -> None:
    text = (
        "cpu  9 9 9 9 9 9 9 9 0 0\n"
        "cpu0 1 2 3 1000 500 4 5 6 1 0\n"
        "cpu1 10 0 0 1000 0 0 0 90 0 0\n"
        "cpu10 7 7 7 7 7 7 7 7 0 0\n"
        "intr 5\n"
    )
    assert machine.parse_stat(text, [0]) == 1 + 2 + 3 + 4 + 5 + 6
    assert machine.parse_stat(text, [0, 1]) == 21 + 100
    assert machine.parse_stat("", [0]) is None


def test_nvidia_smi_lines() -> None:
    text = "NVIDIA H200, 9.0, 580.65.06, 143771\nNVIDIA Thor, 11.0, 580.00, [N/A]\nsomething else\n"
    h200, thor = machine.parse_nvidia_smi(text)
    assert h200 == Gpu(name="NVIDIA H200", compute_capability="9.0", driver="580.65.06", memory_gib=140.4)
    assert (thor.name, thor.memory_gib) == ("NVIDIA Thor", 0.0)


def smi(folder: Path, script: str) -> None:
    program = folder / "nvidia-smi"
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)


@pytest.mark.skipif(sys.platform == "win32", reason="a shell script stands in for nvidia-smi")
@pytest.mark.parametrize(
    ("script", "count", "problem"),
    [
        ("echo 'NVIDIA A10, 8.6, 550.1, 23028'", 1, ""),
        ("echo NVIDIA-SMI has failed; echo no driver >&2; exit 9", 0, "NVIDIA-SMI has failed no driver"),
        ("echo No devices were found", 0, "No devices were found"),
        ("exit 0", 0, "nvidia-smi lists no GPU"),
    ],
)
def test_gpus_or_the_reason_why_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str, count: int, problem: str
) -> None:
    smi(tmp_path, script)
    monkeypatch.setenv("PATH", str(tmp_path))
    gpus, reason = machine.find_gpus()
    assert (len(gpus), reason) == (count, problem)


def test_no_nvidia_smi_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    gpus, reason = machine.find_gpus()
    assert gpus == ()
    assert "no NVIDIA driver" in reason


def test_the_key_depends_on_what_makes_a_machine_fast_and_on_nothing_else() -> None:
    info, gpu = CpuInfo("a", ("avx2",)), Gpu(name="A10", compute_capability="8.6", driver="1", memory_gib=24)
    key = machine.machine_key(info, 4, (gpu,))
    assert len(key) == 12
    assert key == machine.machine_key(info, 4, (msgspec.structs.replace(gpu, driver="2"),))
    others = [
        machine.machine_key(CpuInfo("b", ("avx2",)), 4, (gpu,)),
        machine.machine_key(CpuInfo("a", ()), 4, (gpu,)),
        machine.machine_key(info, 8, (gpu,)),
        machine.machine_key(info, 4, ()),
    ]
    assert len({key, *others}) == 5


def test_this_machine() -> None:
    found = machine.describe_machine()
    assert 1 <= found.cores <= found.physical_cores <= found.logical_cores
    assert found.cores == machine.available_cores()
    assert found.cpu
    assert found.versions["numpy"] == np.__version__
    assert msgspec.json.decode(msgspec.json.encode(found), type=Machine) == found


def test_a_system_without_proc_is_described_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "_read", lambda _: "")
    monkeypatch.setattr(machine, "_output", lambda _: ("", "no such program"))
    monkeypatch.setattr(sys, "platform", "darwin")
    found = machine.describe_machine()
    assert found.instruction_sets == ()
    assert found.quota_cores is None
    assert found.cores >= 1


def test_versions_are_read_without_importing() -> None:
    code = (
        "import sys; from trueport.runtime.machine import describe_machine; describe_machine(); "
        "print(sorted({'torch', 'onnx', 'onnxruntime', 'numpy', 'openvino'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_a_limit_outside_the_mounted_root_is_looked_for_below_it() -> None:
    mounts = V2_MOUNTS.replace(" / /sys", " /kubepods/pod1 /sys")
    assert PurePosixPath("/sys/fs/cgroup") in machine.control_group_folders("cpu", "0::/\n", mounts)
