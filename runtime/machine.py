"""What this machine is: processor, cores this process may use, memory, GPUs, and the software that makes it fast.

Everything that reads a file of the system is split from what understands it, so that any machine can be tested on any
other. What can't be found out is left empty; nothing here raises.
"""

from __future__ import annotations

import hashlib
import os
import platform
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path, PurePosixPath

import msgspec

# As Linux spells them; those that choose kernels in onnxruntime, oneDNN, OpenVINO or XNNPACK.
INSTRUCTION_SETS = (
    *("sse4_2", "avx", "avx2", "fma", "f16c", "avx_vnni", "avx_vnni_int8"),
    *("avx512f", "avx512bw", "avx512vl", "avx512_vnni", "avx512_bf16", "avx512_fp16"),
    *("amx_tile", "amx_int8", "amx_bf16", "amx_fp16"),
    *("neon", "asimd", "asimdhp", "asimddp", "i8mm", "bf16", "sve", "sve2", "sme"),
)

# What is reported -> the distributions that can bring it.
DISTRIBUTIONS: Mapping[str, tuple[str, ...]] = {
    "trueport": ("trueport",),
    "numpy": ("numpy",),
    "pillow": ("pillow",),
    "msgspec": ("msgspec",),
    "onnxruntime": ("onnxruntime-gpu", "onnxruntime", "onnxruntime-directml", "onnxruntime-openvino"),
    "torch": ("torch",),
    "onnx": ("onnx",),
    "tensorrt": ("tensorrt", "tensorrt-cu13", "tensorrt-cu12"),
    "tensorrt_rtx": ("tensorrt-rtx",),
    "openvino": ("openvino",),
}

GIB = 1024**3
_QUERY = "name,compute_cap,driver_version,memory.total"


class Gpu(msgspec.Struct, frozen=True, kw_only=True):
    """One NVIDIA GPU as its driver tells it."""

    name: str
    compute_capability: str
    """Such as 8.6."""
    driver: str
    memory_gib: float


class Machine(msgspec.Struct, frozen=True, kw_only=True):
    """What measurements are bound to."""

    key: str
    """Twelve hexadecimal digits, the same for machines that should be equally fast: processor, cores, instruction sets
    and GPUs."""
    os: str
    python: str
    architecture: str
    cpu: str
    logical_cores: int
    """Hardware threads that this process may be scheduled on."""
    physical_cores: int
    """Cores that these threads belong to."""
    quota_cores: float | None
    """Processor time that the control group allows, in cores; None: no limit."""
    cores: int
    """Threads that can really run at once, each with a core of its own; see `available_cores`."""
    instruction_sets: tuple[str, ...]
    memory_gib: float | None
    """Of the machine, or what the control group allows where that is less."""
    gpus: tuple[Gpu, ...]
    versions: dict[str, str]
    """Of what is installed; read from metadata, nothing is imported."""


class CpuInfo(msgspec.Struct, frozen=True):
    """What /proc/cpuinfo says."""

    model: str
    instruction_sets: tuple[str, ...]


def describe_machine() -> Machine:
    """Everything above, in a fraction of a second; the longest part is asking nvidia-smi where there is one."""
    info = cpu_info()
    gpus, _ = find_gpus()
    logical, physical, quota = logical_cores(), physical_cores(), quota_cores()
    cores = usable_cores(physical, quota)
    return Machine(
        key=machine_key(info, cores, gpus),
        os=platform.platform(),
        python=platform.python_version(),
        architecture=platform.machine(),
        cpu=info.model,
        logical_cores=logical,
        physical_cores=physical,
        quota_cores=quota,
        cores=cores,
        instruction_sets=info.instruction_sets,
        memory_gib=memory_gib(),
        gpus=gpus,
        versions=installed_versions(),
    )


def available_cores() -> int:
    """How many threads one computation should have here: physical cores of this process, not more than its quota."""
    return usable_cores(physical_cores(), quota_cores())


def usable_cores(physical: int, quota: float | None) -> int:
    """Whole cores that can be busy at once; a part of a core left by the quota can't carry a thread."""
    return max(1, physical if quota is None else min(physical, int(quota)))


def machine_key(info: CpuInfo, cores: int, gpus: Iterable[Gpu]) -> str:
    """The hash of what determines performance; versions of software and drivers are left to their own fields."""
    parts = [info.model, cores, info.instruction_sets, [(gpu.name, gpu.compute_capability) for gpu in gpus]]
    return hashlib.sha256(msgspec.json.encode(parts)).hexdigest()[:12]


# Processor


def cpu_info() -> CpuInfo:
    """Model and instruction sets; the latter only where Linux tells them."""
    info = parse_cpuinfo(_read("/proc/cpuinfo"))
    if info.model:
        return info
    brand = _output(["sysctl", "-n", "machdep.cpu.brand_string"])[0] if sys.platform == "darwin" else ""
    model = brand.strip() or platform.processor() or platform.machine()
    return CpuInfo(model, info.instruction_sets)


def parse_cpuinfo(text: str) -> CpuInfo:
    """Model and instruction sets of the first processor; Arm cores have numbers in place of a name."""
    fields: dict[str, str] = {}
    for line in text.splitlines():
        name, _, value = line.partition(":")
        fields.setdefault(name.strip(), value.strip())
    model = fields.get("model name", "")
    if not model and "CPU part" in fields:
        model = f"Arm implementer {fields.get('CPU implementer', '?')} part {fields['CPU part']}"
    flags = set((fields.get("flags") or fields.get("Features", "")).split())
    return CpuInfo(model, tuple(name for name in INSTRUCTION_SETS if name in flags))


def logical_cores() -> int:
    """Hardware threads that this process may be scheduled on."""
    return len(_allowed()) or 1


def physical_cores() -> int:
    """Cores behind those threads; as many as threads where the system does not tell which share one."""
    folder = Path("/sys/devices/system/cpu")
    siblings = {_read(folder / f"cpu{number}/topology/thread_siblings_list") or str(number) for number in _allowed()}
    return len(siblings) or 1


def busy_seconds() -> float | None:
    """Processor time spent since boot on the cores this process may use, by anybody; None where it is not told."""
    ticks = parse_stat(_read("/proc/stat"), _allowed())
    return None if ticks is None else ticks / os.sysconf("SC_CLK_TCK")


def parse_stat(text: str, cores: Iterable[int]) -> int | None:
    """Ticks of /proc/stat that these cores were not idle, time stolen by other guests of the host included.

    Columns: user, nice, system, idle, iowait, irq, softirq, steal; guest times are part of the first two.
    """
    names = {f"cpu{number}" for number in cores}
    rows = [line.split() for line in text.splitlines() if line.partition(" ")[0] in names]
    busy = [sum(map(int, row[1:4])) + sum(map(int, row[6:9])) for row in rows]
    return sum(busy) if busy else None


def _allowed() -> set[int]:
    if sys.platform == "linux":
        return os.sched_getaffinity(0)
    return set(range(os.cpu_count() or 1))


# Control groups: https://docs.kernel.org/admin-guide/cgroup-v2.html, and v1's sched-bwc


def quota_cores() -> float | None:
    """The tightest limit on processor time of this process's control group and those above it, in cores."""
    limits = [
        cores_from_cpu_max(_read(folder / "cpu.max"))
        or cores_from_cfs(_read(folder / "cpu.cfs_quota_us"), _read(folder / "cpu.cfs_period_us"))
        for folder in _control_groups("cpu")
    ]
    return min((limit for limit in limits if limit is not None), default=None)


def memory_gib() -> float | None:
    """Memory of the machine or of the control group, whichever is less."""
    limits = [
        parse_bytes(_read(folder / name))
        for folder in _control_groups("memory")
        for name in ("memory.max", "memory.limit_in_bytes")
    ]
    sizes = [size for size in (parse_meminfo(_read("/proc/meminfo")) or _pages(), *limits) if size is not None]
    return round(min(sizes) / GIB, 1) if sizes else None


def cores_from_cpu_max(text: str) -> float | None:
    """Version 2's `cpu.max`: `max 100000`, or microseconds of processor time in each period of so many."""
    quota, _, period = text.strip().partition(" ")
    return int(quota) / int(period) if quota.isdigit() and period.isdigit() and int(period) else None


def cores_from_cfs(quota: str, period: str) -> float | None:
    """Version 1's two files; a quota of -1 is none."""
    return cores_from_cpu_max(f"{quota.strip()} {period.strip()}")


def parse_bytes(text: str) -> int | None:
    """A limit in bytes, or None for `max` and for nothing."""
    return int(text) if text.strip().isdigit() else None


def parse_meminfo(text: str) -> int | None:
    """MemTotal of /proc/meminfo in bytes."""
    for line in text.splitlines():
        name, _, value = line.partition(":")
        if name == "MemTotal" and value.split()[:1]:
            return int(value.split()[0]) * 1024
    return None


def control_group_folders(controller: str, groups: str, mounts: str) -> list[PurePosixPath]:
    """Folders that may limit a process through a controller (`cpu`, `memory`), its own first, then those above.

    groups, mounts: /proc/self/cgroup and /proc/self/mountinfo. In a container the group's path is often the host's,
    which can't be seen from inside; the mounted root is then the last folder that is left.
    """
    paths: dict[str, PurePosixPath] = {}
    for line in groups.splitlines():
        _, _, rest = line.partition(":")
        names, _, path = rest.partition(":")
        paths |= dict.fromkeys(names.split(","), PurePosixPath(path))
    folders: list[PurePosixPath] = []
    for line in mounts.splitlines():
        before, _, after = line.partition(" - ")
        if len(before.split()) < 5 or len(after.split()) < 3:
            continue
        root, mounted = before.split()[3:5]
        kind, _, options = after.split()[:3]
        name = "" if kind == "cgroup2" else controller  # the unified hierarchy has no name in /proc/self/cgroup
        if kind == "cgroup2" or (kind == "cgroup" and controller in options.split(",")):
            folders += _upwards(PurePosixPath(mounted), PurePosixPath(root), paths.get(name, PurePosixPath("/")))
    return folders


def _upwards(mounted: PurePosixPath, root: PurePosixPath, path: PurePosixPath) -> list[PurePosixPath]:
    inside = path.relative_to(root) if path.is_relative_to(root) else path.relative_to("/")
    own = mounted / inside
    return [own, *(folder for folder in own.parents if folder.is_relative_to(mounted))]


def _control_groups(controller: str) -> list[Path]:
    folders = control_group_folders(controller, _read("/proc/self/cgroup"), _read("/proc/self/mountinfo"))
    return [Path(folder) for folder in folders]


def _pages() -> int | None:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):  # AttributeError: Windows has no sysconf
        return None


# GPUs and software


def find_gpus() -> tuple[tuple[Gpu, ...], str]:
    """NVIDIA GPUs as nvidia-smi lists them, and where there is none, why."""
    import shutil

    program = shutil.which("nvidia-smi")
    if program is None:
        return (), "no nvidia-smi on the path: no NVIDIA driver is installed"
    text, problem = _output([program, f"--query-gpu={_QUERY}", "--format=csv,noheader,nounits"])
    gpus = parse_nvidia_smi(text)
    if gpus:
        return gpus, ""
    return (), problem or " ".join(text.split()) or "nvidia-smi lists no GPU"


def parse_nvidia_smi(text: str) -> tuple[Gpu, ...]:
    """The lines of nvidia-smi's answer, memory in MiB; lines that are no GPU are left out."""
    rows = ([cell.strip() for cell in line.split(",")] for line in text.splitlines())
    return tuple(
        Gpu(
            name=row[0],
            compute_capability=row[1],
            driver=row[2],
            memory_gib=round(float(row[3]) / 1024, 1) if row[3].replace(".", "", 1).isdigit() else 0.0,
        )
        for row in rows
        if len(row) == 4
    )


def installed_versions(distributions: Mapping[str, tuple[str, ...]] = DISTRIBUTIONS) -> dict[str, str]:
    """Versions of what is installed, by the names of `DISTRIBUTIONS`."""
    versions = {name: _version(candidates) for name, candidates in distributions.items()}
    return {name: version for name, version in versions.items() if version is not None}


def _version(candidates: Iterable[str]) -> str | None:
    from importlib import metadata

    for name in candidates:
        try:
            return metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return None


def _output(command: list[str], timeout_s: float = 20.0) -> tuple[str, str]:
    """What a program prints, and what went wrong if something did."""
    import subprocess  # here, because applications that embed the runtime need none of this to start

    try:
        done = subprocess.run(  # noqa: S603 -- the callers' commands are constants
            command, capture_output=True, text=True, errors="replace", timeout=timeout_s, check=False
        )
    except (OSError, subprocess.SubprocessError) as error:
        return "", f"{Path(command[0]).name}: {error}"
    failed = done.returncode != 0
    return ("", " ".join((done.stdout + done.stderr).split())) if failed else (done.stdout, "")


def _read(path: str | Path) -> str:
    try:
        return Path(path).read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
