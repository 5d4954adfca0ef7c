"""compare: what is the same is called so, what is worse is found, and what can't be told is never called the same."""

from __future__ import annotations

import hashlib
import re
import shutil
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from trueport.pipeline import compare_bundles
from trueport.pipeline.bench import BatchBench, BenchReport
from trueport.pipeline.check import CheckReport, check
from trueport.pipeline.compare import compare
from trueport.pipeline.comparing import Comparison, Finding, comparison_table
from trueport.runtime.bundle import Bundle, sealed
from trueport.runtime.errors import UsageError
from trueport.runtime.machine import describe_machine
from trueport.runtime.manifest import MANIFEST, FileEntry, Manifest
from trueport.runtime.runner import RunnerReport
from trueport.runtime.timing import LatencySummary, Paired
from trueport.runtime.verdict import judged, not_run, undecided


def standings(comparison: Comparison) -> dict[str, str]:
    return {finding.what: finding.standing for finding in comparison.findings}


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Speed is not what is looked at here: both take the same time."""
    monkeypatch.setattr(compare_bundles, "timed_in_turns", lambda a, b, **_: paired(1.0))


def summary(ms: float) -> LatencySummary:
    return LatencySummary(
        count=9, rows=1, min_ms=ms, median_ms=ms, mean_ms=ms, p90_ms=None, p99_ms=None, images_per_s=1e3 / ms
    )


def paired(ratio: float, spread: float = 1.05, noise: float = 0.02) -> Paired:
    return Paired(
        a=summary(ratio), b=summary(1.0), ratio=ratio, ratio_low=ratio / spread, ratio_high=ratio * spread,
        noise=noise, blocks=9,
    )  # fmt: skip


def changed_manifest(bundle: Path, **changes: Any) -> Path:
    manifest = msgspec.json.decode((bundle / MANIFEST).read_bytes(), type=Manifest)
    (bundle / MANIFEST).write_bytes(sealed(msgspec.structs.replace(manifest, **changes)))
    return bundle


# Bundles


def test_a_copy_is_the_same(bundle_path: Path, own_bundle: Path) -> None:
    comparison = compare(bundle_path, own_bundle)
    assert comparison
    assert comparison.verdict == "same"
    assert comparison.changes == ()
    assert set(standings(comparison).values()) == {"same"}
    assert comparison_table(comparison).notes == ("same: B does what A does",)


def test_a_model_that_lost_accuracy_is_worse_and_the_other_way_round_better(
    bundle_path: Path, own_bundle: Path
) -> None:
    def favour_zero(model: onnx.ModelProto) -> None:
        (bias,) = (tensor for tensor in model.graph.initializer if tensor.name.endswith("bias") and tensor.dims == [10])
        bias.CopyFrom(
            numpy_helper.from_array(numpy_helper.to_array(bias) + np.eye(10, dtype=np.float32)[0] * 9, bias.name)
        )

    model = onnx.load(own_bundle / "model.fp32.onnx")
    favour_zero(model)
    data = model.SerializeToString()
    (own_bundle / "model.fp32.onnx").write_bytes(data)
    manifest = msgspec.json.decode((own_bundle / MANIFEST).read_bytes(), type=Manifest)
    entry = FileEntry(hashlib.sha256(data).hexdigest(), len(data))
    changed_manifest(own_bundle, files=manifest.files | {"model.fp32.onnx": entry})
    for a, b, verdict in ((bundle_path, own_bundle, "worse"), (own_bundle, bundle_path, "better")):
        comparison = compare(a, b)
        assert standings(comparison)["accuracy"] == verdict
        assert standings(comparison)["answers"] == "changed"
        assert bool(comparison) == (verdict == "better")
        assert {change.what for change in comparison.changes} == {"manifest", "graph"}


@pytest.mark.parametrize(
    ("lost", "won", "count", "standing"),
    [
        (0, 0, 400, "same"),
        (1, 0, 400, "undecided"),
        (9, 0, 400, "worse"),
        (0, 9, 400, "better"),
        (12, 0, 5000, "same"),  # beyond chance, and less than what is no difference
        (0, 12, 5000, "same"),
    ],
)
def test_accuracy_is_told_by_its_interval(lost: int, won: int, count: int, standing: str) -> None:
    truth = np.zeros(count, np.int64)
    right, wrong = np.eye(2)[truth], np.eye(2)[1 - truth]
    a, b = right.copy(), right.copy()
    b[:lost], a[lost : lost + won] = wrong[:lost], wrong[:won]
    finding = compare_bundles._accuracy(a, b, truth, 1.0)
    assert finding.standing == standing
    assert ("pictures would tell" in finding.detail) == (standing == "undecided")


def test_as_many_pictures_as_are_said_to_tell_do_tell() -> None:
    def finding(lost: int, won: int, count: int) -> Finding:
        truth = np.zeros(count, np.int64)
        a, b = np.eye(2)[truth], np.eye(2)[truth]
        b[:lost], a[lost : lost + won] = (0, 1), (0, 1)
        return compare_bundles._accuracy(a, b, truth, 1.0)

    undecided = finding(5, 12, 200)
    assert undecided.standing == "undecided"
    told = re.search(r"about ([\d,]+) pictures would tell", undecided.detail)
    assert told is not None
    needed = int(told[1].replace(",", ""))
    assert needed > 200
    assert finding(round(5 * needed / 200), round(12 * needed / 200), needed).standing == "better"


def test_of_several_labels_a_picture_the_pictures_are_compared(labels_bundle: Path) -> None:
    comparison = compare(labels_bundle, labels_bundle, margin=3.0)
    assert comparison.verdict == "same"
    details = {finding.what: finding.detail for finding in comparison.findings}
    assert "0 of 480 decisions changed" in details["answers"]
    assert details["accuracy"].startswith("overlap a picture ")
    assert "on the same 120 held-out pictures" in details["accuracy"]


def test_pictures_that_lose_labels_are_counted() -> None:
    truth = np.zeros((400, 200), np.uint8)
    truth[:, 0] = 1
    a = np.where(truth == 1, 1.0, -1.0)
    for wrong, standing in ((36, "worse"), (1, "undecided")):
        b = a.copy()
        b[:wrong, :9] *= -1  # many decisions of a picture are one loss
        finding = compare_bundles._accuracy(a, b, truth, 1.0)
        assert (finding.standing, finding.measured["lost"]) == (standing, wrong)
    b[7, 3] = np.nan
    assert compare_bundles._accuracy(a, b, truth, 1.0).measured["lost"] == 2, "no answer to the picture at all"
    assert compare_bundles._accuracy(a, np.full_like(a, -1), truth, 1.0).standing == "worse", "it answers nothing"


def test_labels_of_marks_in_another_order_are_matched_by_name(labels_bundle: Path, tmp_path: Path) -> None:
    other = changed_manifest(
        Path(shutil.copytree(labels_bundle, tmp_path / "other.bundle")),
        labels=Bundle.open(labels_bundle).manifest.labels[::-1],
    )
    a, b = Bundle.open(labels_bundle), Bundle.open(other)
    images, truth = compare_bundles._pictures(b, a)
    assert len(images) == len(truth) == 120
    np.testing.assert_array_equal(truth, a.evaluation().labels[:, ::-1])


@pytest.mark.parametrize(
    ("ratio", "spread", "standing"),
    [
        (1.0, 1.002, "same"),
        (1.015, 1.002, "same"),
        (1 / 1.015, 1.002, "same"),
        (1.04, 1.002, "better"),
        (1 / 1.04, 1.002, "worse"),
        (1.0, 1.4, "undecided"),
    ],
)
def test_what_two_openings_of_one_bundle_differ_by_is_no_difference(ratio: float, spread: float, standing: str) -> None:
    finding = compare_bundles._speed(1, paired(ratio, spread, noise=0.001))
    assert finding.standing == standing
    assert ("no difference beyond the noise of 2%" in finding.detail) == (standing in {"same", "undecided"})


def test_labels_in_another_order_are_matched_by_name(bundle_path: Path, own_bundle: Path) -> None:
    manifest = msgspec.json.decode((own_bundle / MANIFEST).read_bytes(), type=Manifest)
    changed_manifest(own_bundle, labels=manifest.labels[::-1])
    comparison = compare(bundle_path, own_bundle)
    assert standings(comparison)["answers"] == "changed", "the same logits now stand for other classes"
    assert "labels" in {change.what for change in comparison.changes}


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"labels": tuple("abcdefghij")}, "other labels"),
        ({"task": "multilabel"}, "A is a model of classification, B of multilabel"),
    ],
)
def test_what_can_not_be_asked_the_same_is_undecided(
    bundle_path: Path, own_bundle: Path, changes: dict[str, Any], why: str
) -> None:
    changed_manifest(own_bundle, **changes)
    comparison = compare(bundle_path, own_bundle)
    assert comparison.verdict == "undecided"
    assert not comparison
    assert why in comparison.findings[0].detail


# Reports


@pytest.fixture(scope="module")
def checked(bundle_path: Path) -> CheckReport:
    return check(bundle_path)


def written(tmp_path: Path, *reports: Any) -> list[Path]:
    files = [tmp_path / f"{name}.json" for name in "ab"]
    for file, report in zip(files, reports, strict=True):
        file.write_bytes(msgspec.json.encode(report))
    return files


def test_a_gate_that_fails_on_the_other_machine_is_worse(checked: CheckReport, tmp_path: Path) -> None:
    machine = msgspec.structs.replace(checked.machine, cpu="another", key="0" * 12)
    parity = next(verdict for verdict in checked.verdicts if verdict.gate == "parity")
    names: dict[str, Any] = {"variant": parity.variant, "runner": parity.runner}
    for other, verdict in (
        (judged("parity", **names, measured={"max_abs": 2.0}, allowed={"max_abs": 1.0}, detail=""), "worse"),
        (undecided("parity", **names, measured={}, allowed={}, detail=""), "undecided"),
        (not_run("parity", **names, why=""), "undecided"),
        (parity, "same"),
    ):
        verdicts = tuple(other if one is parity else one for one in checked.verdicts)
        report = msgspec.structs.replace(checked, verdicts=verdicts, machine=machine)
        comparison = compare(*written(tmp_path, checked, report))
        assert comparison.verdict == verdict
        assert {change.what for change in comparison.changes} == {"machine", "processor"}
        assert msgspec.json.decode(msgspec.json.encode(comparison), type=Comparison) == comparison


def test_a_gate_that_one_report_lacks_proves_nothing(checked: CheckReport, tmp_path: Path) -> None:
    fewer = msgspec.structs.replace(checked, verdicts=checked.verdicts[:-1])
    assert compare(*written(tmp_path, checked, fewer)).verdict == "undecided"
    assert compare(*written(tmp_path, fewer, checked)).verdict == "changed"


def test_other_pictures_and_bounds_are_told(checked: CheckReport, tmp_path: Path) -> None:
    other = msgspec.structs.replace(checked, data="own/pictures", overridden={"max_abs": 1.0})
    changes = compare(*written(tmp_path, checked, other)).changes
    assert {change.what for change in changes} == {"pictures", "bound max_abs, by hand"}


def bench_report(ratio: float | None, key: str = "a", batch: int = 1, **options: float) -> BenchReport:
    runner = RunnerReport(name="onnxruntime:cpu", provider="CPU", device="cpu", threads=1, versions={})
    timed = BatchBench(batch=batch, port=summary(1.0), paired=paired(ratio, **options) if ratio else None)
    return BenchReport(
        bundle="digits", version="1", variant="fp32", machine=msgspec.structs.replace(describe_machine(), key=key),
        port=runner, original=runner, original_not_run="", seconds=1.0, other_load=None, batches=(timed,),
    )  # fmt: skip


def test_speeds_are_compared_beside_the_original(tmp_path: Path) -> None:
    for ratios, keys, verdict in (
        ((4.0, 3.0), "aa", "worse"),
        ((3.0, 4.0), "aa", "better"),
        ((4.0, 3.9), "aa", "same"),
        ((4.0, 3.0), "ab", "changed"),
        ((4.0, None), "aa", "undecided"),
    ):
        reports = (bench_report(ratio, key) for ratio, key in zip(ratios, keys, strict=True))
        assert compare(*written(tmp_path, *reports)).verdict == verdict


def test_times_that_are_too_noisy_to_tell_do_not_pass(tmp_path: Path) -> None:
    a = bench_report(4.0, spread=1.01, noise=0.01)
    for b in (bench_report(2.0, spread=1.05, noise=1.0), bench_report(3.5, spread=1.6, noise=0.01)):
        assert compare(*written(tmp_path, a, b)).verdict == "undecided"


def test_what_two_processes_differ_by_is_no_difference(tmp_path: Path) -> None:
    for ratio, verdict in ((3.95, "same"), (3.8, "worse")):
        reports = (bench_report(one, spread=1.001, noise=0.0) for one in (4.0, ratio))
        assert compare(*written(tmp_path, *reports)).verdict == verdict


def test_what_can_not_be_compared_is_refused(bundle_path: Path, checked: CheckReport, tmp_path: Path) -> None:
    a, b = written(tmp_path, checked, bench_report(2.0))
    with pytest.raises(UsageError, match="reports of different commands"):
        compare(a, b)
    with pytest.raises(UsageError, match="is a bundle and the other is not"):
        compare(a, bundle_path)
    with pytest.raises(UsageError, match="is not there"):
        compare(a, tmp_path / "nowhere")
    other, _ = written(tmp_path, bench_report(2.0, batch=8), None)
    b.write_bytes(msgspec.json.encode(bench_report(2.0)))
    with pytest.raises(UsageError, match="share no batch size: 8 and 1"):
        compare(other, b)
    b.write_text("{}")
    with pytest.raises(UsageError, match="no report of"):
        compare(a, b)
    for options in ({"margin": 101.0}, {"seconds": 0.0}):
        with pytest.raises(UsageError, match="must be"):
            compare(bundle_path, bundle_path, **options)  # type: ignore[arg-type]
