"""check --self-test: everything that is planted is caught, and a blind gate is told."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import msgspec
import pytest

from trueport.pipeline import self_test as stage
from trueport.pipeline.faults import FAULTS, Fault
from trueport.pipeline.self_test import SelfTestReport, self_test, self_test_summary, self_test_table
from trueport.runtime.bundle import sealed
from trueport.runtime.errors import UsageError
from trueport.runtime.manifest import MANIFEST, Manifest

SUBSET = (
    "bgr", "filter", "antialias", "exif", "permuted labels", "background class", "relabelled evaluation",
    "nan in the recording", "one class", "few samples", "constant pictures", "constant golden set", "unnormalised",
    "mean for std", "unscaled", "nhwc", "training batch norm", "frozen batch", "mixed rows", "softmax over batch",
    "ceil mode", "align corners", "padding", "counted padding", "old opset", "other head", "older checkpoint",
    "lost bias", "export branch", "folded scale", "flipped bit", "exchanged layers", "transposed layer",
    "other original", "int8 on constants", "int8 zero point",
    "other model", "provider fallback", "precision not reached", "bf16 for fp32", "wrong rows", "stale answer",
    "flushed denormals", "saturating int8", "truncated engine", "engine of other weights", "engine of another GPU",
)  # fmt: skip
"""Of all kinds, and two of those that export the module again; `make fidelity` plants everything."""


@pytest.fixture(scope="module")
def report(victim: Path) -> SelfTestReport:
    return self_test(victim, only=SUBSET, explained=False)


def test_everything_that_is_planted_is_caught(report: SelfTestReport) -> None:
    assert report.healthy
    assert [(one.name, one.harm) for one in report.faults if one.status == "missed"] == []
    assert [(one.name, one.reason) for one in report.faults if one.status == "does not apply"] == []
    assert report
    assert report.planted == report.caught == len(SUBSET)


def test_each_is_seen_by_the_gate_that_is_there_for_it(report: SelfTestReport) -> None:
    gates = {one.name: one.gates for one in report.faults}
    for name, gate in {
        "bgr": "preprocessing",
        "permuted labels": "labels",
        "relabelled evaluation": "labels",
        "few samples": "evidence",
        "other original": "recording",
        "frozen batch": "contract",
        "provider fallback": "contract",
        "lost bias": "parity",
        "wrong rows": "batch invariance",
        "other head": "accuracy",
    }.items():
        assert gate in gates[name], name


def test_the_report_survives_json_and_is_told(report: SelfTestReport) -> None:
    assert msgspec.json.decode(msgspec.json.encode(report), type=SelfTestReport) == report
    table = self_test_table(report)
    assert len(table.rows) == len(SUBSET)
    assert table.notes[-1] == self_test_summary(report)
    assert f"{report.caught} of {report.planted} planted faults caught" in table.notes[-1]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["exif", "lost bias", "export branch", "folded scale"])
def test_faults_are_traced_to_their_stage(victim: Path, name: str) -> None:
    (one,) = self_test(victim, only=[name]).faults
    assert one.named == FAULTS[name].stage
    assert one.confirmed
    if name == "folded scale":
        assert "a constant folded into network.conv1.weight" in one.cause
    else:
        assert one.cause


def test_a_blind_gate_is_told(victim: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    honest = stage._Bench.check
    blind: Any = lambda bench, _, variants, runners: honest(bench, bench.deployment, variants, runners)  # noqa: E731
    monkeypatch.setattr(stage._Bench, "check", blind)
    report = self_test(victim, only=["lost bias"], explained=False)
    assert not report
    assert report.faults[0].status == "missed"
    assert "logits move" in self_test_table(report).rows[0][3]


def test_a_fault_without_harm_is_not_counted(victim: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    harmless = Fault("harmless", "a copy", "onnx", lambda healthy: healthy.with_files({}), "fp32", None)
    monkeypatch.setitem(FAULTS, "harmless", harmless)
    report = self_test(victim, only=["harmless"], explained=False)
    assert not report, "nothing was shown"
    assert report.planted == 0
    assert "changes nothing" in report.faults[0].reason


def test_nothing_is_planted_into_a_bundle_that_fails_by_itself(victim: Path, tmp_path: Path) -> None:
    ill = Path(shutil.copytree(victim, tmp_path / "ill"))
    manifest = msgspec.json.decode((ill / MANIFEST).read_bytes(), type=Manifest)
    other = msgspec.structs.replace(manifest, labels=manifest.labels[::-1])
    (ill / MANIFEST).write_bytes(sealed(other))
    report = self_test(ill, only=["bgr"], explained=False)
    assert not report
    assert not report.healthy
    assert report.faults == ()
    assert self_test_summary(report).startswith("NOTHING WAS PLANTED")


def test_unknown_names_are_refused(victim: Path) -> None:
    with pytest.raises(UsageError, match="unknown fault 'bgrr': did you mean bgr"):
        self_test(victim, only=["bgrr"])
    with pytest.raises(UsageError, match="unknown runner 'openvino'"):
        self_test(victim, runner="openvino")
