"""A stored baseline: what it refuses, what it writes, and the gate with rounds that are made up."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from typer.testing import CliRunner

from trueport.pipeline import baseline as baseline_module
from trueport.pipeline import slowdown
from trueport.pipeline.baseline import (
    SCHEMA,
    Baseline,
    Subject,
    judge,
    measured_baseline,
    read_baseline,
    require_fit,
    write_baseline,
    yardstick_call,
    yardstick_graph,
)
from trueport.pipeline.bench import bench
from trueport.pipeline.cli import app
from trueport.runtime.bundle import Bundle
from trueport.runtime.errors import UsageError
from trueport.runtime.machine import describe_machine
from trueport.runtime.runner import Array

GRAPH = b"a graph"
SUBJECT = Subject(
    bundle="digits", version="1", variant="fp32", runner="onnxruntime:cpu", threads=2, machine=describe_machine()
)
ELSEWHERE = msgspec.structs.replace(SUBJECT.machine, key="0" * 12)
ROUNDS = np.linspace(-0.01, 0.01, 10)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "speed.json"
    write_baseline(path, SUBJECT, GRAPH, {1: ROUNDS, 8: ROUNDS})
    return path


class Port:
    """Counts what is open."""

    open = 0

    def __init__(self) -> None:
        Port.open += 1

    def run(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        return {}

    def close(self) -> None:
        Port.open -= 1


def made_up(monkeypatch: pytest.MonkeyPatch, logs: Callable[[], Any]) -> None:
    def rounds(open_pair: Any, *, seconds: float) -> Any:
        with open_pair() as (port, _):
            port()
        return logs()

    monkeypatch.setattr(baseline_module, "log_ratios", rounds)
    monkeypatch.setattr(baseline_module, "yardstick_call", lambda *_: lambda: None)


def judged(file: Path, batches: tuple[int, ...] = (1, 8)) -> tuple[Any, ...]:
    feeds = {batch: {"image": np.zeros((batch, 2, 2, 1), np.uint8)} for batch in batches}
    baseline = read_baseline(file)
    graph = yardstick_graph(baseline, file)
    return judge(baseline, graph, Port, feeds, 1.0, lambda _: None)  # type: ignore[arg-type]


def test_a_baseline_is_read_as_it_was_written_with_its_graph_beside_it(file: Path) -> None:
    baseline = read_baseline(file)
    assert baseline.bundle == "digits"
    assert baseline.machine == SUBJECT.machine
    assert {entry.batch: entry.log_ratios for entry in baseline.batches} == {1: tuple(ROUNDS), 8: tuple(ROUNDS)}
    assert yardstick_graph(baseline, file) == GRAPH
    assert sorted(path.name for path in file.parent.iterdir()) == [baseline.yardstick.file, "speed.json"]


def test_a_new_baseline_takes_the_old_graph_away(file: Path) -> None:
    write_baseline(file, SUBJECT, b"another graph", {1: ROUNDS})
    assert yardstick_graph(read_baseline(file), file) == b"another graph"
    assert len(list(file.parent.iterdir())) == 2


@pytest.mark.parametrize("content", [b"", b"{}", b"[1]", b"\xff\x00", b'{"kind": "trueport run", "schema": 1}'])
def test_a_file_of_other_content_is_refused_and_never_overwritten(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "manifest.json"
    path.write_bytes(content)
    with pytest.raises(UsageError, match="holds no latency baseline"):
        read_baseline(path)
    with pytest.raises(UsageError, match="holds no latency baseline"):
        write_baseline(path, SUBJECT, GRAPH, {1: ROUNDS})
    assert path.read_bytes() == content
    assert list(tmp_path.iterdir()) == [path]


def test_a_newer_schema_is_refused(file: Path) -> None:
    raw = msgspec.json.decode(file.read_bytes())
    file.write_bytes(msgspec.json.encode({"kind": raw["kind"], "schema": SCHEMA + 1, "new": []}))
    with pytest.raises(UsageError, match=f"of schema {SCHEMA + 1}, this trueport reads {SCHEMA}"):
        read_baseline(file)


def test_a_missing_file_says_how_to_make_one_and_a_folder_is_none(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="--update-baseline makes one"):
        read_baseline(tmp_path / "none.json")
    with pytest.raises(UsageError, match="can't read the baseline"):
        read_baseline(tmp_path)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (
            {"machine": msgspec.structs.replace(SUBJECT.machine, key="0" * 12)},
            "of the machine .*, here it is 000000000000",
        ),
        ({"bundle": "flowers"}, "of bundle digits, here it is flowers"),
        ({"variant": "int8-cpu"}, "of variant fp32, here it is int8-cpu"),
        ({"runner": "openvino:cpu"}, "of runner onnxruntime:cpu, here it is openvino:cpu"),
        ({"threads": 1}, "of threads 2, here it is 1"),
    ],
)
def test_a_baseline_of_something_else_is_refused(file: Path, change: dict[str, Any], told: str) -> None:
    with pytest.raises(UsageError, match=told):
        require_fit(read_baseline(file), msgspec.structs.replace(SUBJECT, **change), (1, 8), file)


def test_a_batch_that_was_not_measured_is_refused_and_another_version_is_what_it_is_for(file: Path) -> None:
    baseline = read_baseline(file)
    with pytest.raises(UsageError, match="has no batch 4, 32, only 1, 8"):
        require_fit(baseline, SUBJECT, (1, 4, 32), file)
    require_fit(baseline, msgspec.structs.replace(SUBJECT, version="2"), (8,), file)


def test_a_yardstick_that_is_gone_changed_or_elsewhere_is_refused(file: Path) -> None:
    baseline = read_baseline(file)
    graph = file.parent / baseline.yardstick.file
    graph.write_bytes(b"changed")
    with pytest.raises(UsageError, match="is not the yardstick"):
        yardstick_graph(baseline, file)
    graph.unlink()
    with pytest.raises(UsageError, match=r"can't read .*make the baseline anew"):
        yardstick_graph(baseline, file)
    elsewhere = msgspec.structs.replace(baseline.yardstick, file="../graph.onnx")
    with pytest.raises(UsageError, match="expected a file beside it"):
        yardstick_graph(msgspec.structs.replace(baseline, yardstick=elsewhere), file)


@pytest.mark.parametrize(("slower", "status"), [(0.0, "passed"), (0.1, "failed")])
def test_the_gate_judges_each_batch_and_closes_what_it_opens(
    file: Path, monkeypatch: pytest.MonkeyPatch, slower: float, status: str
) -> None:
    made_up(monkeypatch, lambda: ROUNDS + slower)
    verdicts = judged(file)
    assert [verdict.status for verdict in verdicts] == [status] * 2
    assert [verdict.measured["batch"] for verdict in verdicts] == [1, 8]
    assert Port.open == 0


def test_nothing_passes_by_a_yardstick_of_another_onnxruntime(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(baseline_module, "_onnxruntime_version", lambda: "9.9")
    made_up(monkeypatch, lambda: ROUNDS)
    (verdict,) = judged(file, (8,))
    assert verdict.status == "undecided"
    assert "this is 9.9" in verdict.detail
    made_up(monkeypatch, lambda: ROUNDS + 0.1)
    assert judged(file, (8,))[0].status == "failed"


def test_a_noisy_baseline_is_measured_for_longer(monkeypatch: pytest.MonkeyPatch) -> None:
    def count(spread: float) -> int:
        made_up(monkeypatch, lambda: ROUNDS * spread)
        feeds = {1: {"image": np.zeros((1, 2, 2, 1), np.uint8)}}
        return measured_baseline(Port, GRAPH, feeds, 1, 1.0, lambda _: None)[1].size  # type: ignore[arg-type]

    assert count(0.5) < count(30)


def test_the_yardstick_runs_pictures_of_its_own(bundle_path: Path) -> None:
    bundle = Bundle.open(bundle_path)
    call: Callable[[], Any] = yardstick_call(bundle.read(bundle.variant(None).file), 3, 1)
    (logits,) = call()
    assert logits.shape == (3, len(bundle.manifest.labels))


def test_a_baseline_is_made_and_held_against_for_real(
    bundle_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (baseline_module, slowdown):
        monkeypatch.setattr(module, "LOOKS", (1,))
    file = tmp_path / "speed.json"
    options: dict[str, Any] = {"batches": (2,), "seconds": 0.02, "threads": 1, "baseline": file}
    assert bench(bundle_path, update_baseline=True, **options).verdicts == ()
    made = file.read_bytes()
    (verdict,) = bench(bundle_path, **options).verdicts
    assert verdict.gate == "latency"
    assert verdict.allowed == {"slowdown": 0.05}
    assert file.read_bytes() == made, "only --update-baseline writes"
    with pytest.raises(UsageError, match="of threads 1, here it is 2"):
        bench(bundle_path, **(options | {"threads": 2}))


# The command


def run(*arguments: str) -> tuple[int, str]:
    result = CliRunner().invoke(app, ["bench", *arguments])
    return result.exit_code, result.output + result.stderr


def test_a_slower_port_is_exit_code_1_and_the_baseline_stays(
    bundle_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = tmp_path / "bundle"
    shutil.copytree(bundle_path, own)
    file = tmp_path / "speed.json"
    common = (str(own), "--batch", "1", "--seconds", "0.02", "--threads", "1", "--baseline", str(file))
    made_up(monkeypatch, lambda: ROUNDS)
    code, said = run(*common, "--update-baseline")
    assert code == 0, said
    assert "and its yardstick beside it" in said
    assert run(*common)[0] == 0
    before = file.read_bytes()
    made_up(monkeypatch, lambda: ROUNDS + 0.2)
    code, said = run(*common)
    assert code == 1
    assert "slower beyond doubt" in said
    assert file.read_bytes() == before
    assert msgspec.json.decode(before, type=Baseline).batches[0].batch == 1


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("--update-baseline",), "name its file with --baseline"),
        (("--baseline", "none.json"), "--update-baseline makes one"),
        (("--scenario", "single", "--baseline", "x.json"), "leave out --scenario"),
        (("--rate", "5"), "it is of --scenario server"),
        (("--p99-ms", "5"), "it is of --scenario server"),
        (("--scenario", "multi"), "unknown scenario"),
        (("--scenario", "server", "--rate", "0"), "rate must be a number above 0"),
        (("--scenario", "single", "--p99-ms", "5"), "p99_ms is of the server scenario"),
        (("--scenario", "single", "--seconds", "-1"), "positive number of seconds"),
        (("--seconds", "nan"), "above 0 seconds"),
    ],
)
def test_bad_input_is_exit_code_2_and_a_sentence(bundle_path: Path, arguments: tuple[str, ...], told: str) -> None:
    code, said = run(str(bundle_path), *arguments)
    assert code == 2
    assert told in " ".join(said.replace("│", " ").split())
