"""A stored baseline of a port's speed, and the gate that holds a later port against it on the same machine.

What is stored is no time but a ratio to a yardstick that drifts with the machine: the very graph that was the baseline,
kept beside the file and run by plain onnxruntime on as many threads. Of the yardsticks that were tried it varies least
between processes (docs/numbers.md). Its blind spot is what slows onnxruntime itself: where its version is another one
than at the baseline, nothing passes.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, closing, contextmanager
from pathlib import Path

import msgspec
import numpy as np

from trueport.runtime.atomic import write_bytes
from trueport.runtime.bundle import Bundle
from trueport.runtime.errors import UsageError
from trueport.runtime.machine import Machine
from trueport.runtime.rounds import difference, log_ratios
from trueport.runtime.runner import Array, Runner
from trueport.runtime.timing import Call
from trueport.runtime.verdict import Verdict, undecided

from .slowdown import GATE, LOOKS, MARGIN, Logs, Setting, level_of, looked

SCHEMA = 1
KIND = "trueport latency baseline"
ENOUGH = MARGIN / 4
"""Half of the interval of a baseline that is not measured for longer: what is left is for the later measurement."""

Progress = Callable[[str], None]
OpenPort = Callable[[], Runner]
Feeds = Mapping[str, Array]


class BatchBaseline(msgspec.Struct, frozen=True, kw_only=True):
    """One batch size."""

    batch: int
    log_ratios: tuple[float, ...]
    """Logarithm of the port's time over the yardstick's, by round."""


class Yardstick(msgspec.Struct, frozen=True, kw_only=True):
    """The graph beside the file, and what it was run by."""

    file: str
    sha256: str
    onnxruntime: str
    """Version."""


class Baseline(msgspec.Struct, frozen=True, kw_only=True, tag_field="kind", tag=KIND):
    """What `--baseline FILE` holds: one variant of one bundle on one runner and machine."""

    schema: int = SCHEMA
    bundle: str
    version: str
    variant: str
    runner: str
    threads: int
    machine: Machine
    yardstick: Yardstick
    batches: tuple[BatchBaseline, ...]


class Subject(msgspec.Struct, frozen=True, kw_only=True):
    """What is timed: has to be the same as at the baseline, but for the version."""

    bundle: str
    version: str
    variant: str
    runner: str
    threads: int
    machine: Machine


def read_baseline(path: Path) -> Baseline:
    """The baseline of a file. Raises UsageError where there is none, or it is not one that this trueport reads."""
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        raise UsageError(
            f"there is no baseline at {path}: trueport bench BUNDLE --baseline {path} --update-baseline makes one"
        ) from None
    except OSError as error:
        raise UsageError(f"can't read the baseline {path}: {error.strerror}") from error
    try:
        head = msgspec.json.decode(data, type=_Head)
        if head.schema > SCHEMA:
            raise UsageError(
                f"{path} is a baseline of schema {head.schema}, this trueport reads {SCHEMA}: update trueport, or name "
                "another file"
            )
        return msgspec.json.decode(data, type=Baseline)
    except msgspec.DecodeError as error:
        raise UsageError(f"{path} holds no latency baseline ({error}): name another file, or delete it") from None


class _Head(msgspec.Struct, tag_field="kind", tag=KIND):
    """What every schema begins with."""

    schema: int


def require_fit(baseline: Baseline, subject: Subject, batches: Sequence[int], path: Path) -> None:
    """Raise UsageError where the baseline is of something else than what is to be timed."""
    pairs = {
        "the machine": (_machine(baseline.machine), _machine(subject.machine)),
        **{
            name: (str(getattr(baseline, name)), str(getattr(subject, name)))
            for name in ("bundle", "variant", "runner", "threads")
        },
    }
    differing = [f"{name} {then}, here it is {now}" for name, (then, now) in pairs.items() if then != now]
    if differing:
        raise UsageError(f"{path} is a baseline of {'; of '.join(differing)}: measure against one of the same")
    stored = {entry.batch for entry in baseline.batches}
    if missing := [str(batch) for batch in batches if batch not in stored]:
        raise UsageError(
            f"{path} has no batch {', '.join(missing)}, only {', '.join(map(str, sorted(stored)))}: "
            "choose among these by --batch, or make it anew with --update-baseline"
        )


def yardstick_graph(baseline: Baseline, path: Path) -> bytes:
    """The graph beside the file. Raises UsageError where it is gone, or is another one."""
    name = baseline.yardstick.file
    anew = "make the baseline anew with --update-baseline"
    if Path(name).name != name:
        raise UsageError(f"{path} names the yardstick {name!r}, expected a file beside it: {anew}")
    try:
        graph = (path.parent / name).read_bytes()
    except OSError as error:
        raise UsageError(
            f"can't read {path.parent / name}, the yardstick of {path}: {error.strerror}; {anew}"
        ) from None
    if hashlib.sha256(graph).hexdigest() != baseline.yardstick.sha256:
        raise UsageError(f"{path.parent / name} is not the yardstick that {path} was measured with: {anew}")
    return graph


def write_baseline(path: Path, subject: Subject, graph: bytes, ratios: Mapping[int, Logs]) -> None:
    """Put the baseline at `path` and its graph beside it; a graph that no one refers to then is removed.

    Raises UsageError where the file is there and is no baseline.
    """
    before = read_baseline(path) if path.exists() else None
    digest = hashlib.sha256(graph).hexdigest()
    name = f"{path.stem}.{digest[:12]}.onnx"
    write_bytes(path.parent / name, graph)
    baseline = Baseline(
        **msgspec.structs.asdict(subject),
        yardstick=Yardstick(file=name, sha256=digest, onnxruntime=_onnxruntime_version()),
        batches=tuple(BatchBaseline(batch=batch, log_ratios=tuple(map(float, logs))) for batch, logs in ratios.items()),
    )
    write_bytes(path, msgspec.json.format(msgspec.json.encode(baseline), indent=2) + b"\n")
    if before and before.yardstick.file.startswith(f"{path.stem}.") and before.yardstick.file != name:
        (path.parent / Path(before.yardstick.file).name).unlink(missing_ok=True)


def against_baseline(
    path: Path,
    subject: Subject,
    bundle: Bundle,
    open_port: OpenPort,
    feeds: Mapping[int, Feeds],
    *,
    update: bool,
    seconds: float,
    progress: Progress,
) -> tuple[Verdict, ...]:
    """The verdicts of the gate; none where the baseline is made, or made anew (update).

    Raises UsageError as `read_baseline`, `require_fit`, `yardstick_graph` and `write_baseline` do.
    """
    if update:
        graph = bundle.read(bundle.variant(subject.variant).file)
        ratios = measured_baseline(open_port, graph, feeds, subject.threads, seconds, progress)
        write_baseline(path, subject, graph, ratios)
        return ()
    baseline = read_baseline(path)
    require_fit(baseline, subject, tuple(feeds), path)
    return judge(baseline, yardstick_graph(baseline, path), open_port, feeds, seconds, progress)


def check_baseline(path: Path | None, update: bool) -> None:
    """Raise UsageError for what will not do, before anything is measured."""
    if path is None:
        if update:
            raise UsageError("there is no baseline to update: name its file with --baseline FILE")
    elif not update or path.exists():
        read_baseline(path)


def measured_baseline(
    open_port: OpenPort, graph: bytes, feeds: Mapping[int, Feeds], threads: int, seconds: float, progress: Progress
) -> dict[int, Logs]:
    """The rounds of each batch size, measured for longer where they are noisy; seconds: for each look."""
    ratios = {}
    for batch, images in feeds.items():
        progress(f"baseline, batch {batch}")
        logs = np.empty(0)
        for times in LOOKS:
            more = (log_ratios(_pair(open_port, graph, images, threads), seconds=seconds) for _ in range(times))
            logs = np.concatenate([logs, *more])
            with_itself = difference(logs, logs, level_of(len(feeds)))
            if math.log(with_itself.high) / math.sqrt(2) <= ENOUGH:
                break
        ratios[batch] = logs
    return ratios


def judge(
    baseline: Baseline,
    graph: bytes,
    open_port: OpenPort,
    feeds: Mapping[int, Feeds],
    seconds: float,
    progress: Progress,
) -> tuple[Verdict, ...]:
    """One verdict a batch size: is the port slower than the baseline?"""
    then = {entry.batch: np.array(entry.log_ratios) for entry in baseline.batches}
    verdicts = []
    for batch, images in feeds.items():
        progress(f"against the baseline, batch {batch}")
        pair = _pair(open_port, graph, images, baseline.threads)
        setting = Setting(
            variant=baseline.variant, runner=baseline.runner, batch=batch, verdicts=len(feeds), seconds=seconds
        )
        verdict = looked(lambda pair=pair: log_ratios(pair, seconds=seconds), then[batch], setting)  # type: ignore[misc]
        verdicts.append(_seen_by_the_yardstick(verdict, baseline.yardstick.onnxruntime, _onnxruntime_version()))
    return tuple(verdicts)


def _seen_by_the_yardstick(verdict: Verdict, then: str, now: str) -> Verdict:
    """The verdict, but nothing passes by a yardstick that may have slowed down as well."""
    if then == now or not verdict:
        return verdict
    detail = (
        f"{verdict.detail}; but the baseline is of onnxruntime {then} and this is {now}, which the yardstick runs on "
        "too: what it slows in both is not seen; compare the times, then make the baseline anew with --update-baseline"
    )
    measured = {name: value for name, value in verdict.measured.items() if value is not None}
    return undecided(GATE, verdict.variant, verdict.runner, measured, verdict.allowed, detail)


def _pair(
    open_port: OpenPort, graph: bytes, feeds: Feeds, threads: int
) -> Callable[[], AbstractContextManager[tuple[Call, Call]]]:
    """Opens port and yardstick anew; the yardstick gets pictures of its own shape."""
    batch = len(next(iter(feeds.values())))

    @contextmanager
    def opened() -> Iterator[tuple[Call, Call]]:
        with closing(open_port()) as port:
            yield lambda: port.run(feeds), yardstick_call(graph, batch, threads)

    return opened


def yardstick_call(graph: bytes, batch: int, threads: int) -> Call:
    """One run of the graph by plain onnxruntime: none of our own code, which may be what got slower."""
    import onnxruntime

    settings = onnxruntime.SessionOptions()
    settings.intra_op_num_threads = threads
    settings.log_severity_level = 4
    settings.add_session_config_entry("session.intra_op.allow_spinning", "0")  # or it would burn the port's cores
    session = onnxruntime.InferenceSession(graph, settings, providers=["CPUExecutionProvider"])
    image, outputs = session.get_inputs()[0], [output.name for output in session.get_outputs()]
    pictures = np.random.default_rng(0).integers(0, 256, (batch, *image.shape[1:]), np.uint8)
    return lambda: session.run(outputs, {image.name: pictures})


def _onnxruntime_version() -> str:
    import onnxruntime

    return str(onnxruntime.__version__)


def _machine(machine: Machine) -> str:
    return f"{machine.key} ({machine.cpu}, {machine.cores} cores)"
