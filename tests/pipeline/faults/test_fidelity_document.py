"""docs/fidelity.md: what is missed, traced wrongly or raised without a cause can't be overlooked in it."""

from __future__ import annotations

import msgspec
import pytest

from tests.fidelity.alarms import Export, Measured, alarms, healthy_export
from tests.fidelity.lab import document, told, work
from trueport.models import names
from trueport.pipeline.self_test import PlantedFault, SelfTestReport
from trueport.runtime.machine import describe_machine

CAUGHT = PlantedFault(
    name="a", title="something is wrong", stage="onnx", status="caught", gates=("parity",), named="onnx", seconds=1.0
)
HEALTHY = Measured("parity", "fp32", "onnxruntime:cpu", 1, "passed", 1.5, 0.19)


def test_every_outcome_has_its_own_words() -> None:
    changed = msgspec.structs.replace
    assert told(CAUGHT) == "caught, traced"
    assert told(changed(CAUGHT, named="runner")) == "caught, traced to runner"
    assert told(changed(CAUGHT, named=None)) == "caught"
    assert told(changed(CAUGHT, named=None, refusal="no")) == "refused"
    assert told(changed(CAUGHT, status="missed")) == "**missed**"
    assert told(changed(CAUGHT, status="does not apply")) == told(None) == "-"


def test_the_document_counts_and_names() -> None:
    report = SelfTestReport(
        bundle="everything",
        version="1",
        machine=describe_machine(),
        runner="onnxruntime:cpu",
        control=(),
        healthy=True,
        faults=(CAUGHT,),
        planted=1,
        caught=1,
        traced=1,
        named_right=1,
    )
    false = Measured("parity", "fp32", "openvino:cpu", 2, "failed", 9.0, 1.13, "logits")
    exports = [Export("lenet", 0, (), (HEALTHY,), 1.0), Export("vgg_a", 1, ("int8 can't be had",), (false,), 1.0)]
    text = document([report], exports, ["c0ffee"])
    assert "of revision c0ffee, " in text
    assert "| faults caught / planted | 1 / 1 |" in text
    assert "| false alarms / healthy exports | 1 / 2 |" in text
    assert "| something is wrong | onnx | caught, traced | parity |" in text
    assert "| fp32 | openvino:cpu | 1 | 1 | 9.00 | 1.13 | vgg_a |" in text
    assert "- vgg_a, seed 1: parity of fp32 on openvino:cpu with 2 threads failed: logits" in text
    assert "- vgg_a, seed 1: int8 can't be had" in text


def test_every_architecture_is_among_the_healthy_ones() -> None:
    planned = [name for name, _ in work()]
    assert len(set(planned)) == len(planned)
    assert {f"healthy-{arch}-0" for arch in names()} <= set(planned)


@pytest.mark.slow
def test_a_healthy_export_raises_no_alarm() -> None:
    export = healthy_export("lenet5", (32, 32), {}, seed=3, precisions=("fp32",))
    assert alarms([export]) == []
    assert {one.gate for one in export.measured} >= {"recording", "contract", "parity", "batch invariance", "accuracy"}
    assert any(0 < (one.to_bound or 0) < 1 for one in export.measured)
