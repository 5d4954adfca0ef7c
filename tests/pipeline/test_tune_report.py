"""What tune shows: the front, the table, the sentences, the plot."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import pytest

from trueport.pipeline.bench import ABSENT
from trueport.pipeline.tuning.front import Point, draw_front, front
from trueport.pipeline.tuning.report import Tried, TuneReport, draw_tuned, tune_summary, tune_table
from trueport.pipeline.tuning.search import Contest, Timing
from trueport.pipeline.tuning.space import Arm, Candidate
from trueport.runtime.errors import UsageError
from trueport.runtime.machine import describe_machine
from trueport.runtime.runner import RunnerOptions
from trueport.runtime.tuned import Choice, Tuned


def point(drop: float, speed: float) -> Point:
    return Point("a", "a", drop, speed)


def test_the_front_is_what_nothing_beats_in_both() -> None:
    points = [point(0, 10), point(0.2, 30), point(0.2, 20), point(0.3, 25), point(-0.1, 5), point(0.5, 30)]
    assert front(points) == [True, True, False, False, True, False]
    assert front([point(0, 10), point(0, 10)]) == [True, True]
    assert front([]) == []


def timing(batch: int, ms: float, p99_ms: float | None = None) -> Timing:
    return Timing(rows=batch, calls=700, ms=ms, low_ms=ms * 0.9, high_ms=ms * 1.1, p99_ms=p99_ms)


def tried(variant: str, runner: str, status: str, **values: Any) -> Tried:
    front = "timing" in values
    return Tried(variant=variant, runner=runner, options=RunnerOptions(threads=2), status=status, front=front, **values)


def choice(variant: str, runner: str, batch: int, **values: Any) -> Choice:
    fields: dict[str, Any] = {
        "images_per_s": 3200.0,
        "images_per_s_low": 3000.0,
        "images_per_s_high": 3300.0,
        "p99_ms": None,
        "drop_points": 0.25,
        "curve": ((1, 1.25), (32, 10.0)),
    }
    return Choice(
        variant=variant,
        runner=runner,
        options=RunnerOptions(threads=2),
        max_batch_rows=batch,
        versions={},
        **(fields | values),
    )


@pytest.fixture
def report() -> TuneReport:
    default = Candidate(variant="fp32", runner="onnxruntime:cpu", options=RunnerOptions(threads=2))
    winner = Candidate(variant="int8-cpu", runner="openvino:cpu", options=RunnerOptions(threads=2))
    found = Tuned(
        machine="0123456789ab",
        bundle_sha256="00",
        tuned_at="2026-11-22T07:00:00+00:00",
        max_drop=None,
        p99_bound_ms=5.0,
        throughput=choice("int8-cpu", "openvino:cpu", 32),
        latency=choice("int8-cpu", "openvino:cpu", 32),
        bounded=choice("int8-cpu", "openvino:cpu", 8, p99_ms=4.5),
    )
    met = Contest(
        a=Arm(candidate=default, batch=32),
        b=Arm(candidate=winner, batch=32),
        ratio=9.6,
        low=9.2,
        high=9.9,
        decided=True,
    )
    return TuneReport(
        bundle="digits",
        version="1",
        machine=describe_machine(),
        seconds=12.0,
        p99_ms=5.0,
        max_drop=None,
        tried=(
            tried(
                "int8-cpu", "openvino:cpu", "throughput, p99", batch=32, timing=timing(32, 10, 12.5), drop_points=0.25
            ),
            tried("fp32", "openvino:cpu", "timed", detail="out after round 1", batch=8, timing=timing(8, 20)),
            tried("int8-cpu", "onnxruntime:cpu", "failed", detail="accuracy (drop points 3.2, allowed 0.5)"),
            tried("fp32", "onnxruntime:cuda", "not opened", detail="no driver"),
            tried("bf16", "onnxruntime:cuda", "not opened", detail="no driver"),
            tried("bf16", "openvino:cpu", "not opened", detail="no bf16"),
        ),
        tuned=found,
        file="digits.bundle/tuned/0123456789ab.json",
        against_default=met,
        notes=("a note",),
    )


def test_what_serve_takes_is_told_where_threads_spin(report: TuneReport) -> None:
    assert report.tuned
    resting = report.tuned.throughput
    spinning = RunnerOptions(threads=2, spinning=True)
    found = msgspec.structs.replace(
        report.tuned, throughput=msgspec.structs.replace(resting, options=spinning, resting=resting)
    )
    told = tune_summary(msgspec.structs.replace(report, tuned=found))[0]
    assert told.startswith("fastest: int8-cpu on openvino:cpu, 2 threads, spinning, batch 32")
    assert "; for `serve` without spinning, 3,200 images/s; 9.60x the default" in told
    assert "serve" not in tune_summary(report)[0]


def test_the_table_tells_what_became_of_each(report: TuneReport) -> None:
    table = tune_table(report)
    rows = [dict(zip(table.columns, row, strict=True)) for row in table.rows]
    assert rows[0] == {
        "variant": "int8-cpu",
        "runner": "openvino:cpu",
        "options": "2 threads",
        "batch": "32",
        "images/s": "3,200",
        "ms": "10",
        "p99": "12.5",
        "drop": "0.25",
        "front": "*",
        "verdict": "throughput, p99",
    }
    assert (rows[1]["p99"], rows[1]["verdict"]) == (ABSENT, "timed: out after round 1")
    assert rows[2]["verdict"] == "failed: accuracy (drop points 3.2, allowed 0.5)"
    assert (rows[2]["images/s"], rows[2]["front"], len(rows)) == (ABSENT, "", 3)


def test_the_notes_tell_the_choices_and_what_was_not_opened(report: TuneReport) -> None:
    notes = tune_table(report).notes
    assert notes == (
        "not opened: bf16 on openvino:cpu: no bf16",
        "not on this machine: onnxruntime:cuda; `trueport tune --runner NAME` says why",
        "a note",
        "fastest: int8-cpu on openvino:cpu, 2 threads, batch 32: 3,200 images/s (turns from 3,000 to 3,300), 0.25 "
        "points of accuracy lost; 9.60x the default, fp32 on onnxruntime:cpu, 2 threads, at this batch (9.20 to 9.90)",
        "p99 below 5 ms: int8-cpu on openvino:cpu, 2 threads, batch 8: 3,200 images/s (turns from 3,000 to 3,300), "
        "0.25 points of accuracy lost, p99 4.5 ms",
        "soonest: int8-cpu on openvino:cpu, 2 threads, 1.25 ms for a single picture",
        "written to digits.bundle/tuned/0123456789ab.json, where `load`, `predict` and `serve` find it",
    )


def test_a_bound_that_was_not_met_is_no_success(report: TuneReport) -> None:
    assert report
    assert report.tuned
    unmet = msgspec.structs.replace(report, tuned=msgspec.structs.replace(report.tuned, bounded=None))
    assert not unmet
    assert msgspec.structs.replace(unmet, p99_ms=None)


@pytest.mark.parametrize(("suffix", "magic"), [(".png", b"\x89PNG"), (".svg", b"<?xml"), (".pdf", b"%PDF")])
def test_the_plot_is_in_the_format_of_its_suffix(report: TuneReport, tmp_path: Path, suffix: str, magic: bytes) -> None:
    file = tmp_path / f"front{suffix}"
    draw_tuned(report, file)
    assert file.read_bytes().startswith(magic)


def test_the_plot_names_the_choice_and_every_group(report: TuneReport, tmp_path: Path) -> None:
    file = tmp_path / "front.svg"
    draw_tuned(report, file)
    drawn = file.read_text(encoding="utf-8")
    for text in ("int8-cpu on openvino:cpu, 2 threads", "fp32 on openvino:cpu", "accuracy drop in points", "images/s"):
        assert text in drawn


def test_one_point_can_be_drawn_and_none_is_refused(report: TuneReport, tmp_path: Path) -> None:
    draw_front(tmp_path / "one.png", [point(0, 10)], "one")
    assert (tmp_path / "one.png").stat().st_size > 1000
    with pytest.raises(UsageError, match="nothing was timed"):
        draw_tuned(msgspec.structs.replace(report, tried=report.tried[2:]), tmp_path / "none.png")
