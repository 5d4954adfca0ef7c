"""JUnit, Markdown, SARIF and annotations: the notations' own rules, whatever text a report holds."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from markdown_it import MarkdownIt

from trueport.pipeline.check import CheckReport
from trueport.pipeline.gates import ACCURACY, CONTRACT, INVARIANCE, PARITY
from trueport.pipeline.outputs import announce, refuse_shared, write_outputs
from trueport.pipeline.outputs.github import annotations_from_report
from trueport.pipeline.outputs.junit import junit_from_report
from trueport.pipeline.outputs.markdown import markdown_from_report
from trueport.pipeline.outputs.rules import RULES
from trueport.pipeline.outputs.sarif import sarif_from_report
from trueport.pipeline.outputs.told import told_text, would_pass
from trueport.runtime.errors import UsageError
from trueport.runtime.explanation import Departure, Explanation, StageResult
from trueport.runtime.machine import Gpu, Machine
from trueport.runtime.runner import RunnerReport
from trueport.runtime.verdict import Verdict, judged, not_run, undecided

NAMES = ("int8-cpu", "onnxruntime:cpu")
MACHINE = Machine(
    key="0123456789ab",
    os="Linux-6.1",
    python="3.12.1",
    architecture="x86_64",
    cpu="A Processor @ 2 GHz",
    logical_cores=4,
    physical_cores=2,
    quota_cores=None,
    cores=2,
    instruction_sets=("avx2", "fma"),
    memory_gib=8.0,
    gpus=(Gpu(name="A GPU", compute_capability="8.6", driver="600.1", memory_gib=8.0),),
    versions={"trueport": "0.1.0", "numpy": "2.4.0"},
)
PASSED = judged("preprocessing", "-", "-", {"max_levels": 0.0}, {"max_levels": 0.0}, "to the bit")
FAILED = judged(
    "parity", *NAMES, {"max_abs": 0.5, "rms": float("nan"), "snr_db": 9.0}, {"max_abs": 0.1, "rms": 0.1}, "x"
)
UNDECIDED = undecided("accuracy", *NAMES, {"drop_points": 0.4}, {"drop_points": 0.5}, "too few", needed=4096)
LEFT_OUT = not_run("opening", "fp16", "onnxruntime:cpu", "no fp16 here")
WHY = Explanation(
    variant="int8-cpu",
    runner="onnxruntime:cpu",
    gates=("parity",),
    stage="precision",
    stages=(StageResult(stage="precision", status="departs", detail="128 inputs"),),
    first=(Departure(layer="features.0", tensor="conv_0", max_abs=None, allowed=0.01, detail="saturates"),),
    cause="calibrated on constants",
    confirmed=True,
    remedy="calibrate on pictures",
    float_layers=("features.0",),
)
FORMATS: list[Callable[[CheckReport], str]] = [
    junit_from_report,
    markdown_from_report,
    sarif_from_report,
    told_text,
    lambda report: "\n".join(annotations_from_report(report)),
]
HOSTILE = "a|b `c` <img src=x onerror=y> [d](http://e) ]]> &amp; \"f\" 'g' %0A\r\n::error::h, \x1b[31m\x00\ud800\u202e"


def report_of(*verdicts: Verdict, **changes: Any) -> CheckReport:
    report = CheckReport(
        bundle="digits",
        version="1",
        faithful=all(verdict.status == "passed" for verdict in verdicts),
        machine=MACHINE,
        reference="original",
        runners=(RunnerReport(name=NAMES[1], provider="CPUExecutionProvider", device="cpu", threads=2, versions={}),),
        verdicts=verdicts,
        seconds={"original": 1.5},
    )
    return msgspec.structs.replace(report, **changes)


EVERYTHING = report_of(PASSED, FAILED, UNDECIDED, LEFT_OUT, explanations=(WHY,), overridden={"fp32.max_abs": 0.25})
HEALTHY = report_of(PASSED)


def hostile_report(text: str) -> CheckReport:
    """The text wherever a bundle, a library or an application can put its own."""
    verdict = judged(text, text, text, {text: 2.0}, {text: 1.0}, text)
    first = Departure(layer=text, tensor=text, max_abs=1.0, allowed=0.5, detail=text)
    why = msgspec.structs.replace(
        WHY, variant=text, runner=text, gates=(text,), first=(first,), cause=text, remedy=text
    )
    others = (not_run(text, text, text, text), undecided(text, "-", "-", {}, {}, text))
    machine = msgspec.structs.replace(MACHINE, cpu=text, versions={"torch": text})
    return report_of(verdict, *others, bundle=text, version=text, machine=machine, explanations=(why,))


@pytest.mark.parametrize("written", FORMATS)
@pytest.mark.parametrize("report", [EVERYTHING, HEALTHY, hostile_report(HOSTILE)])
def test_the_same_report_gives_the_same_text(written: Callable[[CheckReport], str], report: CheckReport) -> None:
    later = msgspec.structs.replace(report, seconds={"original": 9.0})
    turned = dict(reversed(report.machine.versions.items()))
    later = msgspec.structs.replace(later, machine=msgspec.structs.replace(report.machine, versions=turned))
    assert written(report) == written(later)


@pytest.mark.parametrize("written", FORMATS)
def test_everything_that_decides_is_told(written: Callable[[CheckReport], str]) -> None:
    told = written(EVERYTHING).replace("\\_", "_")
    for words in (
        "int8-cpu on onnxruntime",
        "max abs 0.5",
        "allowed 0.1",
        "would have passed with 0.5",
        "4,096 samples",
    ):
        assert words.replace(",", "%2C") in told or words in told, words
    for words in ("no bound on rms would have passed", "calibrated on constants", "calibrate on pictures", "no fp16"):
        assert words in told
    for words in ("features.0 (conv_0)", "layers to keep in float: features.0", "the stage precision"):
        assert words in told
    assert "Processor" in told or written is FORMATS[-1], "an annotation leaves the machine to the summary"


@pytest.mark.parametrize("written", FORMATS)
def test_no_stage_is_told_where_none_departs(written: Callable[[CheckReport], str]) -> None:
    agrees = msgspec.structs.replace(WHY.stages[0], status="agrees")
    why = msgspec.structs.replace(
        WHY, gates=("accuracy",), stages=(agrees,), cause="no stage departs beyond its bounds"
    )
    told = written(report_of(UNDECIDED, explanations=(why,)))
    assert "no stage departs beyond its bounds" in told
    assert "first departs" not in told


@pytest.mark.parametrize("written", FORMATS[:4])
def test_whose_pictures_were_judged_is_told(written: Callable[[CheckReport], str]) -> None:
    assert "the bundle's evaluation slice" in written(HEALTHY)
    told = written(report_of(PASSED, data="holidays"))
    assert "other pictures: holidays" in told
    assert "evaluation slice" not in told


@given(st.floats(1e-12, 1e6))
@settings(max_examples=200, deadline=None)
def test_the_bound_that_is_told_would_pass(measured: float) -> None:
    (told,) = would_pass(judged("parity", *NAMES, {"max_abs": measured}, {"max_abs": 0.0}, "x"))
    bound = float(told.rpartition(" ")[2])
    assert judged("parity", *NAMES, {"max_abs": measured}, {"max_abs": bound}, "x")
    assert bound <= 1.011 * measured


# JUnit


# Elements of Jenkins's junit-10.xsd that are used here: children, attributes that are required, those that may be.
SCHEMA: dict[str, tuple[set[str], set[str], set[str]]] = {
    "testsuites": ({"testsuite"}, set(), {"name", "time", "tests", "failures", "errors"}),
    "testsuite": (
        {"testsuite", "properties", "testcase", "system-out", "system-err"},
        {"name", "tests", "failures", "errors"},
        {"group", "time", "skipped", "timestamp", "hostname", "id", "package", "file", "log", "url"},
    ),
    "properties": ({"property"}, set(), set()),
    "property": (set(), {"name", "value"}, set()),
    "testcase": ({"skipped", "error", "failure", "system-out", "system-err"}, {"name"}, {"time", "classname", "group"}),
    "failure": (set(), set(), {"type", "message"}),
    "skipped": (set(), set(), {"type", "message"}),
    "system-out": (set(), set(), set()),
}


def junit(report: CheckReport) -> ET.Element:
    """The document's root, once it keeps to the schema and its counts are those of its cases."""
    root = ET.fromstring(junit_from_report(report).encode())
    assert root.tag == "testsuites"
    for element in root.iter():
        children, required, optional = SCHEMA[element.tag]
        assert {child.tag for child in element} <= children
        assert required <= element.attrib.keys() <= required | optional
    (suite,) = root
    for tag, name in (("testcase", "tests"), ("testcase/failure", "failures"), ("testcase/skipped", "skipped")):
        assert suite.get(name) == str(len(suite.findall(tag)))
    return suite


def test_junit_has_a_case_for_each_gate() -> None:
    cases = {case.get("name"): case for case in junit(EVERYTHING).findall("testcase")}
    assert list(cases) == ["preprocessing", "parity", "accuracy", "opening"]
    assert [case.get("classname") for case in cases.values()] == [
        "digits",
        *["digits/int8-cpu/onnxruntime:cpu"] * 2,
        "digits/fp16/onnxruntime:cpu",
    ]
    assert {child.tag for child in cases["preprocessing"]} == {"system-out"}
    failure = cases["parity"].find("failure")
    assert failure is not None
    assert failure.get("type") == "failed"
    assert failure.text
    assert "max abs would have passed with 0.5" in failure.text
    assert "cause, shown: calibrated on constants" in failure.text
    undecided = cases["accuracy"].find("failure")
    assert undecided is not None, "undecided must not look green"
    assert undecided.get("type") == "undecided"
    skipped = cases["opening"].find("skipped")
    assert skipped is not None
    assert skipped.text == skipped.get("message") == "no fp16 here"


def test_junit_tells_what_it_holds_for() -> None:
    properties = {one.get("name"): one.get("value") for one in junit(EVERYTHING).iter("property")}
    assert properties["reference"] == "original"
    assert properties["pictures"] == "the bundle's evaluation slice"
    assert properties["machine"] == MACHINE.key
    assert properties["version.numpy"] == "2.4.0"
    assert properties["gpu.0"] == "A GPU, driver 600.1"
    assert properties["bound.fp32.max_abs"] == "0.25, set by hand"
    assert properties["runner.onnxruntime:cpu"] == "CPUExecutionProvider on cpu, threads: 2"


def test_junit_is_not_green_where_nothing_is_proven() -> None:
    (case,) = junit(report_of(LEFT_OUT)).findall("testcase")[1:]
    failure = case.find("failure")
    assert failure is not None
    assert "NOT PROVEN FAITHFUL" in (failure.text or "")
    assert not junit(HEALTHY).findall("testcase/failure")


@given(st.text(st.characters(codec=None)))
@settings(max_examples=60, deadline=None)
def test_any_text_is_well_formed_everywhere(text: str) -> None:
    report = hostile_report(text or "-")
    junit(report)
    sarif(report)
    markdown_from_report(report).encode()
    for line in annotations_from_report(report):
        assert re.fullmatch(r"::(error|warning|notice) title=[^\r\n:,]*::[^\r\n]*", line)


# Markdown


def rendered(report: CheckReport) -> str:
    return str(MarkdownIt("commonmark").enable("table").render(markdown_from_report(report)))


def test_markdown_opens_with_the_verdict() -> None:
    assert markdown_from_report(HEALTHY).startswith("## ✅ digits 1: faithful: 1 passed\n")
    first, *_ = markdown_from_report(EVERYTHING).splitlines()
    assert first.startswith("## ❌ digits 1: NOT PROVEN FAITHFUL: 1 passed, 1 failed, 1 undecided, 1 not run")


def test_markdown_says_what_failed_and_why() -> None:
    page = rendered(EVERYTHING)
    assert page.count("<tr>") == 5
    headings = re.findall("<h3>(.*?)</h3>", page)
    assert headings == ["What failed, and what would have passed", "Why", "Not run, and never counted as passed"]
    assert re.findall("<h3>", rendered(HEALTHY)) == []
    assert "max abs 0.5, allowed 0.1" in page


def test_markdown_shows_hostile_text_and_obeys_none() -> None:
    page = rendered(hostile_report(HOSTILE))
    allowed = {
        "h2",
        "h3",
        "table",
        "thead",
        "tbody",
        "tr",
        "th",
        "td",
        "br",
        "ul",
        "li",
        "strong",
        "details",
        "summary",
        "p",
    }
    assert set(re.findall(r"<([a-z0-9]+)", page)) <= allowed
    for row in re.findall(r"<tr>(.*?)</tr>", page, re.DOTALL):
        assert len(re.findall("<t[hd]>", row)) == 3
    assert "&lt;img src=x onerror=y&gt;" in page
    assert "a|b `c`" in page
    assert "\\x1b[31m\\x00\\ud800\\u202e" in page


# SARIF


def sarif(report: CheckReport) -> dict[str, Any]:
    """The one run, once it has all that GitHub's upload requires."""
    log = json.loads(sarif_from_report(report))
    assert log["version"] == "2.1.0"
    assert log["$schema"].endswith("sarif-2.1.0.json")
    (run,) = log["runs"]
    assert run["automationDetails"]["id"].count("/") == 2
    driver = run["tool"]["driver"]
    assert driver["name"] == "trueport"
    ids = [rule["id"] for rule in driver["rules"]]
    assert len(set(ids)) == len(ids)
    for rule in driver["rules"]:
        texts = [rule["id"], *(rule[key]["text"] for key in ("shortDescription", "fullDescription", "help"))]
        assert all(texts), "the empty string is not supported"
        assert len(rule["name"]) <= 255
        assert max(map(len, texts)) <= 1024
    for result in run["results"]:
        assert result["ruleId"] == ids[result["ruleIndex"]]
        assert result["level"] in {"error", "warning", "note"}
        assert result["message"]["text"]
        (location,) = result["locations"]
        uri = location["physicalLocation"]["artifactLocation"]["uri"]
        assert re.fullmatch(r"[A-Za-z0-9._~%-]+/[A-Za-z0-9._~%-]+", uri), "relative, and no absolute path of a machine"
        assert location["physicalLocation"]["region"].keys() == {"startLine", "startColumn", "endLine", "endColumn"}
        assert re.fullmatch(r"[0-9a-f]{16}:1", result["partialFingerprints"]["primaryLocationLineHash"])
    return dict(run)


def test_sarif_results_are_what_did_not_pass() -> None:
    run = sarif(EVERYTHING)
    results = {result["ruleId"]: result for result in run["results"]}
    assert {name: result["level"] for name, result in results.items()} == {
        "parity": "error", "accuracy": "warning", "opening": "note",
    }  # fmt: skip
    location = results["parity"]["locations"][0]["physicalLocation"]["artifactLocation"]
    assert location == {"uri": "digits/model.int8-cpu.onnx"}
    assert "cause, shown: calibrated on constants" in results["parity"]["message"]["text"]
    assert run["tool"]["driver"]["version"] == "0.1.0"
    assert sarif(HEALTHY)["results"] == []


def test_sarif_knows_a_failure_again_and_tells_two_apart() -> None:
    def fingerprints(*verdicts: Verdict) -> list[str]:
        return [one["partialFingerprints"]["primaryLocationLineHash"] for one in sarif(report_of(*verdicts))["results"]]

    worse = msgspec.structs.replace(FAILED, measured={"max_abs": 0.7, "rms": 0.7})
    elsewhere = msgspec.structs.replace(FAILED, runner="openvino:cpu")
    assert fingerprints(FAILED) == fingerprints(worse)
    assert len(set(fingerprints(FAILED, elsewhere))) == 2


def test_every_gate_is_a_rule() -> None:
    assert {
        "evidence",
        "labels",
        "preprocessing",
        "recording",
        CONTRACT,
        PARITY,
        INVARIANCE,
        ACCURACY,
        "opening",
    } == set(RULES)
    rules = sarif(report_of(not_run("something new", "-", "-", "x")))["tool"]["driver"]["rules"]
    assert rules[-1]["id"] == "something-new"


# GitHub Actions


def test_annotations_begin_with_the_verdict_then_the_worst() -> None:
    lines = list(annotations_from_report(EVERYTHING))
    assert [line.split(" ")[0] for line in lines] == ["::error", "::error", "::warning", "::notice"]
    assert "NOT PROVEN FAITHFUL" in lines[0]
    assert list(annotations_from_report(HEALTHY)) == []


def test_annotations_are_escaped_as_the_runner_undoes_it() -> None:
    failed = msgspec.structs.replace(FAILED, detail="50% of\nrows: a, b", runner="a,b:c%")
    line = list(annotations_from_report(report_of(failed)))[1]
    heading, _, message = line.removeprefix("::error title=").partition("::")
    assert heading == "trueport%3A failed%3A parity of int8-cpu on a%2Cb%3Ac%25"
    assert message.startswith("50%25 of%0Arows: a, b%0Amax abs")


def test_announced_on_github_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    summary = tmp_path / "summary.md"
    summary.write_text("before\n", encoding="utf-8")
    announce(EVERYTHING, {"GITHUB_STEP_SUMMARY": str(summary)})
    assert capsys.readouterr().out == ""
    assert summary.read_text(encoding="utf-8") == "before\n"
    announce(EVERYTHING, {"GITHUB_ACTIONS": "true", "GITHUB_STEP_SUMMARY": str(summary)})
    assert capsys.readouterr().out.splitlines() == list(annotations_from_report(EVERYTHING))
    assert summary.read_text(encoding="utf-8") == f"before\n{markdown_from_report(EVERYTHING)}\n"
    announce(EVERYTHING, {"GITHUB_ACTIONS": "true"})


# Files


def test_outputs_are_written_where_they_are_asked_for(
    tmp_path: Path, capsysbinary: pytest.CaptureFixture[bytes]
) -> None:
    junit_file = tmp_path / "new" / "junit.xml"
    write_outputs(EVERYTHING, junit=str(junit_file), markdown="-", sarif=None)
    assert junit_file.read_bytes() == junit_from_report(EVERYTHING).encode()
    assert capsysbinary.readouterr().out == markdown_from_report(EVERYTHING).encode()
    assert [file.name for file in tmp_path.rglob("*")] == ["new", "junit.xml"], "nothing is left beside them"
    write_outputs(HEALTHY, junit=str(junit_file), markdown=None, sarif="/dev/null")
    assert junit_file.read_bytes() == junit_from_report(HEALTHY).encode()


def test_two_outputs_for_one_place_are_refused() -> None:
    refuse_shared(json="a", junit="b", markdown=None, sarif=None)
    with pytest.raises(UsageError, match="--json and --sarif would both write to standard output"):
        refuse_shared(json="-", junit=None, sarif="-")
    with pytest.raises(UsageError, match=r"--junit and --markdown would both write to a\.xml"):
        refuse_shared(junit="a.xml", markdown="a.xml")
