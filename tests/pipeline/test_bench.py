"""bench: original against port, with fakes whose times are known."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import numpy as np
import pytest

from trueport.pipeline import bench as bench_module
from trueport.pipeline.bench import ABSENT, BatchBench, BenchReport, Load, bench, bench_table, tiled
from trueport.runtime.bundle import WEIGHTS, Bundle
from trueport.runtime.errors import MissingError, UsageError
from trueport.runtime.machine import available_cores, describe_machine
from trueport.runtime.manifest import TensorSpec
from trueport.runtime.runner import Array, RunnerOptions, RunnerReport
from trueport.runtime.timing import LatencySummary, Paired

PICTURES = np.arange(3 * 2 * 2, dtype=np.uint8).reshape(3, 2, 2, 1)


class FakeRunner:
    def __init__(self, name: str, threads: int | None, fails: bool = False) -> None:
        self.inputs = self.outputs = (TensorSpec("image", "uint8", (-1, 2, 2, 1)),)
        self.name, self.threads, self.fails = name, threads or 0, fails
        self.feeds: dict[int, list[Array]] = {}
        self.closed = False

    def run(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        if self.fails:
            raise MissingError("out of memory")
        assert not self.closed
        images = feeds["image"]
        self.feeds.setdefault(len(images), []).append(images)
        return {"logits": np.zeros((len(images), 2), np.float32)}

    def report(self) -> RunnerReport:
        return RunnerReport(name=self.name, provider=self.name, device="cpu", threads=self.threads, versions={})

    def close(self) -> None:
        self.closed = True


class Stage:
    """What bench finds: a bundle, and runners that record what they are given."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.files: dict[str, object] = {WEIGHTS: None}
        self.port: FakeRunner | None = None
        self.original: FakeRunner | None = None
        self.port_fails = self.original_missing = False
        self.asked: tuple[str, str | None] | None = None
        monkeypatch.setattr(Bundle, "open", lambda _: self.bundle())
        monkeypatch.setattr(bench_module, "open_runner", self.open_runner)
        fake = SimpleNamespace(original_runner=self.original_runner)
        monkeypatch.setitem(sys.modules, "trueport.export.original", fake)

    def bundle(self) -> Any:
        manifest = SimpleNamespace(
            name="digits",
            version="1",
            sha256="0" * 64,
            files=self.files,
            inputs=(TensorSpec("image", "uint8", (-1, 2, 2, 1)),),
        )
        return SimpleNamespace(
            manifest=manifest,
            variant=lambda name: SimpleNamespace(name=name or "fp32"),
            evaluation=lambda: SimpleNamespace(images=PICTURES),
        )

    def open_runner(self, bundle: Any, runner: str, variant: str | None, options: RunnerOptions) -> FakeRunner:
        self.asked = runner, variant
        self.port = FakeRunner("port", options.threads, self.port_fails)
        return self.port

    def original_runner(self, bundle: Any, threads: int | None = None, trust_code: bool = False) -> FakeRunner:
        if self.original_missing:
            raise MissingError("the original needs torch, which is not installed: pip install 'trueport[train]'")
        self.original = FakeRunner("original", threads)
        return self.original

    def bench(self, **options: Any) -> BenchReport:
        defaults: dict[str, Any] = {"seconds": 0.02, "batches": (1, 5)}
        return bench(Path("digits.bundle"), **(defaults | options))


@pytest.fixture
def stage(monkeypatch: pytest.MonkeyPatch) -> Stage:
    monkeypatch.setattr("trueport.runtime.timing.wait_until_quiet", lambda: None)
    return Stage(monkeypatch)


def test_both_get_the_same_pictures_in_every_batch(stage: Stage) -> None:
    report = stage.bench()
    assert stage.original
    assert stage.port
    assert set(stage.original.feeds) == set(stage.port.feeds) == {1, 5}
    for batch in (1, 5):
        first = stage.port.feeds[batch][0]
        assert all(images is first for images in (*stage.port.feeds[batch], *stage.original.feeds[batch]))
    assert [result.batch for result in report.batches] == [1, 5]
    assert [result.port.rows for result in report.batches] == [1, 5]
    assert all(result.paired and result.paired.b == result.port for result in report.batches)
    assert report.original_not_run == ""


def test_a_batch_larger_than_the_slice_starts_from_its_beginning_again() -> None:
    images = tiled(PICTURES, 5)
    assert images.dtype == np.uint8
    assert images.flags.writeable
    np.testing.assert_array_equal(images, PICTURES[[0, 1, 2, 0, 1]])


@pytest.mark.parametrize(("threads", "expected"), [(None, available_cores()), (3, 3)])
def test_both_have_the_same_threads(stage: Stage, threads: int | None, expected: int) -> None:
    report = stage.bench(threads=threads, batches=(1,))
    assert report.original
    assert report.port.threads == report.original.threads == expected


def test_torchs_threads_are_set_for_the_time_of_the_bench(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    now, seen = [7], []
    torch = SimpleNamespace(get_num_threads=lambda: now[0], set_num_threads=lambda count: now.__setitem__(0, count))
    monkeypatch.setitem(sys.modules, "torch", torch)
    stage.bench(threads=3, batches=(1,), progress=lambda _: seen.append(now[0]))
    assert seen == [3]
    assert now == [7]


def test_runner_variant_and_progress_are_passed_on(stage: Stage) -> None:
    told: list[str] = []
    report = stage.bench(runner="onnxruntime:cuda", variant="fp16", progress=told.append)
    assert stage.asked == ("onnxruntime:cuda", "fp16")
    assert report.variant == "fp16"
    assert told == ["batch 1", "batch 5"]


def test_without_torch_the_port_is_timed_alone_and_the_report_says_why(stage: Stage) -> None:
    stage.original_missing = True
    report = stage.bench()
    assert report.original is None
    assert report.original_not_run.startswith("not run: the original needs torch")
    assert all(result.paired is None and result.port.count > 0 for result in report.batches)
    table = bench_table(report)
    assert "times faster" not in table.columns
    assert any("pip install 'trueport[train]'" in note for note in table.notes)


def test_without_weights_in_the_bundle_the_port_is_timed_alone(stage: Stage) -> None:
    stage.files = {}
    report = stage.bench()
    assert stage.original is None
    assert f"does not ship {WEIGHTS}" in report.original_not_run


def test_runners_are_closed_even_when_one_fails(stage: Stage) -> None:
    stage.port_fails = True
    with pytest.raises(MissingError, match="out of memory"):
        stage.bench()
    assert stage.port
    assert stage.original
    assert stage.port.closed
    assert stage.original.closed


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batches": ()}, "found none"),
        ({"batches": (1, 0)}, "at least 1, found 1, 0"),
        ({"seconds": 0}, "above 0 seconds, found 0"),
        ({"threads": 0}, "threads must be at least 1, found 0"),
    ],
)
def test_bad_arguments_are_refused_before_the_bundle_is_opened(
    stage: Stage, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        stage.bench(**options)
    assert stage.port is None


def test_the_report_goes_to_json_and_back(stage: Stage) -> None:
    report = stage.bench()
    assert msgspec.json.decode(msgspec.json.encode(report), type=BenchReport) == report


# Other work


@pytest.mark.parametrize(("busy_s", "share"), [(4.0, 0.0), (14.0, 0.5), (100.0, 1.0), (3.9, 0.0), (None, None)])
def test_load_is_what_others_took(monkeypatch: pytest.MonkeyPatch, busy_s: float | None, share: float | None) -> None:
    readings = {"busy": 0.0 if busy_s is not None else None, "own": 1.0, "wall": 2.0}
    monkeypatch.setattr(bench_module, "busy_seconds", lambda: readings["busy"])
    clock = SimpleNamespace(process_time=lambda: readings["own"], perf_counter=lambda: readings["wall"])
    monkeypatch.setattr(bench_module, "time", clock)
    load = Load(cores=2)
    readings |= {"busy": busy_s, "own": 5.0, "wall": 12.0}
    assert load.others() == share


def test_the_table_warns_of_other_work() -> None:
    quiet = report_of(result(1, 3.4, 0.02))
    assert not any("other work" in note for note in bench_table(quiet).notes)
    loud = msgspec.structs.replace(quiet, other_load=0.62)
    assert any(note.startswith("other work took 62% of the processor") for note in bench_table(loud).notes)


# The table


def summary(median_ms: float, rows: int, p99_ms: float | None) -> LatencySummary:
    return LatencySummary(
        count=1000,
        rows=rows,
        min_ms=median_ms,
        median_ms=median_ms,
        mean_ms=median_ms,
        p90_ms=median_ms * 2,
        p99_ms=p99_ms,
        images_per_s=rows / median_ms * 1e3,
    )


def result(batch: int, ratio: float, noise: float, p99_ms: float | None = None) -> BatchBench:
    port = summary(0.04, batch, p99_ms)
    paired = Paired(
        a=summary(0.04 * ratio, batch, None),
        b=port,
        ratio=ratio,
        ratio_low=ratio * 0.98,
        ratio_high=ratio * 1.02,
        noise=noise,
        blocks=20,
    )
    return BatchBench(batch=batch, port=port, paired=paired)


def report_of(*results: BatchBench) -> BenchReport:
    runner = RunnerReport(name="x", provider="CPUExecutionProvider", device="cpu", threads=1, versions={})
    return BenchReport(
        bundle="digits",
        version="1",
        variant="fp32",
        machine=describe_machine(),
        port=runner,
        original=msgspec.structs.replace(runner, provider="torch eager", threads=2),
        original_not_run="",
        seconds=2.0,
        batches=results,
        other_load=0.04,
    )


def test_the_table_shows_times_ratio_interval_and_noise() -> None:
    table = bench_table(report_of(result(1, 3.4, 0.02, p99_ms=123.4)))
    cells = dict(zip(table.columns, table.rows[0], strict=True))
    assert cells == {
        "batch": "1",
        "port ms": "0.0400",
        "p90": "0.0800",
        "p99": "123",
        "port images/s": "25,000",
        "original ms": "0.136",
        "original images/s": "7,353",
        "times faster": "3.40",
        "95 % interval": "3.33 to 3.47",
        "noise": "2%",
    }
    assert table.title == (
        "digits 1: fp32 on CPUExecutionProvider (cpu, 1 thread), original on torch eager (cpu, 2 threads)"
    )
    assert not any("noise" in note or "percentile" in note for note in table.notes)


def test_the_table_says_where_samples_are_too_few_and_where_nothing_is_shown() -> None:
    table = bench_table(report_of(result(1, 3.4, 0.02), result(8, 1.1, 0.3), result(32, 0.5, 0.02)))
    assert [row[3] for row in table.rows] == [ABSENT] * 3
    assert any(note.startswith(f"{ABSENT}: too few samples") for note in table.notes)
    (doubt,) = [note for note in table.notes if "beyond the noise" in note]
    assert "at batch 8:" in doubt


def test_the_title_says_what_the_layers_compute_in(stage: Stage) -> None:
    report = stage.bench(batches=(1,))
    port = msgspec.structs.replace(report.port, layers={"int8": 20, "fp32": 1})
    table = bench_table(msgspec.structs.replace(report, port=port))
    assert "20 layers in int8, 1 in fp32" in table.title
    assert "layers" not in bench_table(report).title
