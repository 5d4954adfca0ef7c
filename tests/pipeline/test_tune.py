"""tune on a real, tiny bundle, and the command: what is written is what load takes, and what is refused."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from trueport.pipeline.check import recorded_gates
from trueport.pipeline.tune import tune
from trueport.pipeline.tuning import search, space, workshop
from trueport.pipeline.tuning.report import TuneReport, tune_table
from trueport.pipeline.tuning.search import Contest
from trueport.pipeline.tuning.space import Arm, baseline
from trueport.runtime import load, tuned
from trueport.runtime.bundle import Bundle, Evaluation, sealed
from trueport.runtime.errors import MissingError, UsageError
from trueport.runtime.machine import available_cores, describe_machine
from trueport.runtime.manifest import MANIFEST
from trueport.runtime.runner import Array
from trueport.runtime.runners import open_runner
from trueport.runtime.verdict import Verdict

CPU = ("onnxruntime:cpu",)


@pytest.fixture(autouse=True)
def brief(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, small_heap: None) -> None:
    """Hardly any time for each measurement, and one thread: the machinery is tested, not the machine."""
    one_core = msgspec.structs.replace(describe_machine(), cores=1)
    monkeypatch.setattr("trueport.pipeline.tune.describe_machine", lambda: one_core)
    evaluation = Bundle.evaluation
    monkeypatch.setattr(Bundle, "evaluation", lambda bundle: first(evaluation(bundle), 24))
    monkeypatch.setattr(search, "FIRST_S", 0.002)
    monkeypatch.setattr(search, "ROUNDS", 1)
    monkeypatch.setattr(workshop, "CONTESTS_S", (0.02, 0.04))
    monkeypatch.setattr(workshop, "wait_until_quiet", lambda: None)
    monkeypatch.setattr("trueport.runtime.timing.wait_until_quiet", lambda: None)
    monkeypatch.setenv("TRUEPORT_CACHE", str(tmp_path / "cache"))


def first(evaluation: Evaluation, rows: int) -> Evaluation:
    return Evaluation(evaluation.images[:rows], evaluation.labels[:rows], evaluation.logits[:rows])


def quick(bundle: Path, **options: Any) -> TuneReport:
    return tune(bundle, **({"runners": CPU, "batches": (1, 4)} | options))


def test_what_it_writes_is_what_load_takes(own_bundle: Path) -> None:
    told: list[str] = []
    report = quick(own_bundle, progress=told.append)
    assert report
    found = report.tuned
    assert found
    assert Path(report.file) == own_bundle / tuned.FOLDER / f"{report.machine.key}.json"
    assert tuned.read(Path(report.file)) == found
    for prefer, choice in (("throughput", found.throughput), ("latency", found.latency)):
        with load(own_bundle, prefer=prefer) as session:  # type: ignore[arg-type]
            assert session.chosen.startswith(f"tuned on {found.tuned_at[:10]} for this machine: {choice.described()}")
            assert session.batcher.limits.max_batch_rows == choice.max_batch_rows
    assert [rows for rows, _ in found.throughput.curve] == [1, 4]
    assert found.throughput.images_per_s_low <= found.throughput.images_per_s <= found.throughput.images_per_s_high
    assert found.throughput.drop_points == 0.0
    assert told[0] == "gates: fp32 on onnxruntime:cpu"
    assert len({one.described for one in report.tried}) == len(report.tried)
    assert all(one.drop_points == 0.0 and all(one.verdicts) for one in report.tried)
    assert msgspec.json.decode(msgspec.json.encode(report), type=TuneReport) == report
    Bundle.open(own_bundle)  # as whole as before


def test_a_timing_tells_the_range_of_its_turns() -> None:
    turns = [np.array(seconds) for seconds in ([0.004, 0.004, 0.1], [0.002], [0.003])]
    timing = workshop._timing(turns, 4)
    assert (timing.ms, timing.low_ms, timing.high_ms) == (3.0, 2.0, 4.0)
    assert timing.images_per_s_range == (1000.0, 2000.0)
    assert timing.calls == 5


def test_where_spinning_is_faster_it_is_taken_but_by_a_server(
    own_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    two_cores = msgspec.structs.replace(describe_machine(), cores=2)
    monkeypatch.setattr("trueport.pipeline.tune.describe_machine", lambda: two_cores)
    monkeypatch.setattr(space, "thread_counts", lambda _: [2])

    def contest(self: Any, a: Arm, b: Arm, needed: bool) -> Contest:
        ratio = 2.0 if b.candidate.options.spinning else 1.0
        return Contest(a=a, b=b, ratio=ratio, low=ratio, high=ratio, decided=ratio > 1)

    monkeypatch.setattr(workshop.Workshop, "contest", contest)
    report = quick(own_bundle)
    found = report.tuned
    assert found
    assert found.throughput.options.spinning
    assert found.throughput.resting
    assert found.throughput.resting.options == msgspec.structs.replace(found.throughput.options, spinning=False)
    with load(own_bundle) as session:
        assert "2 threads, spinning" in session.chosen
    with load(own_bundle, spinning=False) as session:
        assert f": {found.throughput.resting.described()}, batches of" in session.chosen
    status = {one.options: one.status for one in report.tried}
    assert "throughput" in status[found.throughput.options]
    assert "serve" in status[found.throughput.resting.options]
    assert [row for row in tune_table(report).rows if "spinning" in row[2]]


def test_where_spinning_is_not_faster_beyond_doubt_that_is_told(
    own_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    two_cores = msgspec.structs.replace(describe_machine(), cores=2)
    monkeypatch.setattr("trueport.pipeline.tune.describe_machine", lambda: two_cores)
    monkeypatch.setattr(space, "thread_counts", lambda _: [2])
    monkeypatch.setattr(workshop.Workshop, "contest", lambda *_: None)
    report = quick(own_bundle)
    assert report.tuned
    assert not report.tuned.throughput.options.spinning
    spinning = [one for one in report.tried if one.options.spinning]
    assert spinning
    assert {(one.status, one.detail) for one in spinning} == {("timed", "not faster beyond doubt")}


def test_the_batch_of_one_picture_is_always_measured(own_bundle: Path) -> None:
    found = quick(own_bundle, batches=(4,)).tuned
    assert found
    assert [rows for rows, _ in found.latency.curve] == [1, 4]


def test_an_interrupted_search_goes_on_where_it_was(own_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    judged: list[str] = []
    measure = workshop.Workshop.measure

    def counted(*arguments: Any) -> list[Verdict]:
        judged.append("gates")
        return recorded_gates(*arguments)

    def interrupted(self: Any, arms: Any, seconds: float, what: str) -> Any:
        if what == "every batch":
            raise KeyboardInterrupt
        return measure(self, arms, seconds, what)

    monkeypatch.setattr(workshop, "recorded_gates", counted)
    monkeypatch.setattr(workshop.Workshop, "measure", interrupted)
    with pytest.raises(KeyboardInterrupt):
        quick(own_bundle, batches=(1, 2, 4))
    first = len(judged)
    assert first > 0
    assert not list((own_bundle / tuned.FOLDER).glob("*[0-9a-f].json"))

    monkeypatch.setattr(workshop.Workshop, "measure", measure)
    told: list[str] = []
    report = quick(own_bundle, batches=(1, 2, 4), progress=told.append)
    assert len(judged) == first
    assert not any(line.startswith(("gates", "the first look")) for line in told)
    assert any("are those of an earlier search" in note for note in report.notes)

    again: list[str] = []
    assert quick(own_bundle, batches=(1, 2, 4), progress=again.append).tuned
    assert again == []
    quick(own_bundle, batches=(1, 2, 4), afresh=True, progress=again.append)
    assert any(line.startswith("gates") for line in again)


def test_what_another_bundle_measured_is_not_taken_over(own_bundle: Path) -> None:
    quick(own_bundle)
    manifest = Bundle.open(own_bundle).manifest
    (own_bundle / MANIFEST).write_bytes(sealed(msgspec.structs.replace(manifest, version="2")))
    told: list[str] = []
    quick(own_bundle, progress=told.append)
    assert any(line.startswith("gates") for line in told)


def test_damaged_trials_are_measured_again(own_bundle: Path) -> None:
    quick(own_bundle)
    (file,) = (own_bundle / tuned.FOLDER).glob(f"*{tuned.TRIALS_SUFFIX}")
    file.write_bytes(file.read_bytes()[:-50])
    assert quick(own_bundle)


class Wrong:
    """A runner whose answers are off by so much."""

    def __init__(self, runner: Any, by: float) -> None:
        self._runner, self._by = runner, by
        self.inputs, self.outputs, self.report, self.close = runner.inputs, runner.outputs, runner.report, runner.close

    def run(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        return {name: output + np.float32(self._by) for name, output in self._runner.run(feeds).items()}


def spoil(monkeypatch: pytest.MonkeyPatch, spoilt: Callable[[Any], bool], by: float = 1.0) -> None:
    def opened(bundle: Bundle, runner: str, variant: str, options: Any) -> Any:
        really = open_runner(bundle, runner, variant, options)
        return Wrong(really, by) if spoilt(options) else really

    monkeypatch.setattr(workshop, "open_runner", opened)


def test_what_fails_a_gate_is_never_chosen(own_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spoil(monkeypatch, lambda options: options.graph_level == "all")
    report = quick(own_bundle)
    assert report.tuned
    assert report.tuned.throughput.options.graph_level == "extended"
    failed = [one for one in report.tried if one.status == "failed"]
    assert {one.options.graph_level for one in failed} == {"all"}
    assert all(one.detail.startswith("parity (max abs 1, allowed ") and one.timing is None for one in failed)


def test_where_nothing_passes_no_choice_is_written(own_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spoil(monkeypatch, lambda _: True)
    report = quick(own_bundle)
    assert not report
    assert report.tuned is None
    assert not list((own_bundle / tuned.FOLDER).glob("*[0-9a-f].json"))
    table = tune_table(report)
    assert "nothing passed the gates on this machine: no choice was written" in table.notes
    assert all("failed: parity" in row[-1] for row in table.rows)


def test_the_accuracy_that_may_be_lost_is_the_user_s_where_the_variant_has_a_bound(
    own_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[float | None] = []

    def gates(bundle: Any, variant: Any, *_: Any) -> Sequence[Verdict]:
        seen.append(variant.bounds.max_drop)
        return [Verdict(gate="parity", status="passed", variant="fp32", runner="x", detail="")]

    monkeypatch.setattr(workshop, "recorded_gates", gates)
    assert quick(own_bundle, max_drop=0.5).max_drop == 0.5
    assert set(seen) == {None}  # what may change no prediction gets no leave to
    manifest = Bundle.open(own_bundle).manifest
    bounds = msgspec.structs.replace(manifest.variants[0].bounds, max_drop=0.3)
    variants = (msgspec.structs.replace(manifest.variants[0], bounds=bounds),)
    (own_bundle / MANIFEST).write_bytes(sealed(msgspec.structs.replace(manifest, variants=variants)))
    seen.clear()
    quick(own_bundle, max_drop=0.5)
    assert set(seen) == {0.5}
    seen.clear()
    found = quick(own_bundle).tuned
    assert set(seen) == {0.3}
    assert found
    assert found.max_drop is None


def test_what_fails_while_it_is_timed_is_told(own_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Small(Wrong):
        def run(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
            if len(next(iter(feeds.values()))) == 3:
                raise MemoryError("out of memory\nand more")
            return super().run(feeds)

    def opened(bundle: Bundle, runner: str, variant: str, options: Any) -> Any:
        really = open_runner(bundle, runner, variant, options)
        return Small(really, 0.0) if options.graph_level == "all" else really

    monkeypatch.setattr(workshop, "open_runner", opened)
    report = quick(own_bundle, batches=(1, 3))
    limited = [one for one in report.tried if "not at batch 3: out of memory" in one.detail]
    assert {one.options.graph_level for one in limited} == {"all"}
    assert all(one.batch == 1 for one in limited)
    assert report.tuned
    assert report.against_default is None


def test_runners_held_open_are_few_and_all_closed(own_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now: set[int] = set()
    most = 0

    def opened(bundle: Bundle, runner: str, variant: str, options: Any) -> Any:
        nonlocal most
        really = open_runner(bundle, runner, variant, options)
        made = Wrong(really, 0.0)

        def close() -> None:
            now.discard(id(made))
            really.close()

        made.close = close
        now.add(id(made))
        most = max(most, len(now))
        return made

    monkeypatch.setattr(workshop, "open_runner", opened)
    monkeypatch.setattr(workshop, "_most_open", lambda _: 2)
    assert quick(own_bundle)
    assert most == 2
    assert not now


def test_a_runner_that_can_not_be_opened_is_told_unless_it_was_named(
    own_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def opened(bundle: Bundle, runner: str, variant: str, options: Any) -> Any:
        if runner != "onnxruntime:cpu":
            raise MissingError(f"{runner} needs what is not here")
        return open_runner(bundle, runner, variant, options)

    monkeypatch.setattr(workshop, "open_runner", opened)
    report = quick(own_bundle, runners=())
    closed = {one.runner: one.detail for one in report.tried if one.status == "not opened"}
    assert closed["onnxruntime:cuda"] == "onnxruntime:cuda needs what is not here"
    (note,) = [note for note in tune_table(report).notes if "not on this machine" in note]
    assert "onnxruntime:cuda" in note
    assert "onnxruntime:cpu" not in note
    assert quick(own_bundle, runners=(), variants=("fp32",))
    with pytest.raises(MissingError, match="onnxruntime:cuda needs what is not here"):
        quick(own_bundle, runners=("onnxruntime:cpu", "onnxruntime:cuda"))


def test_the_default_is_what_load_takes_without_a_choice(bundle_path: Path) -> None:
    one = baseline(Bundle.open(bundle_path).variant(), available_cores())
    with load(bundle_path) as session:
        assert session.chosen.startswith(f"default: {one};")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batches": ()}, "batch sizes must be from 1 to 4096, found none"),
        ({"batches": (0, 4)}, "found 0, 4"),
        ({"batches": (1 << 20,)}, "from 1 to 4096"),
        ({"minutes": 0}, "above 0 minutes, found 0"),
        ({"minutes": float("nan")}, "above 0 minutes, found nan"),
        ({"p99_ms": 0}, "above 0 ms, found 0"),
        ({"max_drop": -1}, "from 0 to 100 points, found -1"),
        ({"variants": ["int9"]}, "unknown variant 'int9'"),
        ({"runners": ["onnxruntime:cpus"]}, "unknown runner 'onnxruntime:cpus': did you mean onnxruntime:cpu"),
        ({"minutes": 1e-6}, "1e-06 minutes were too short to time anything: give more --minutes"),
    ],
)
def test_bad_arguments_are_a_sentence(own_bundle: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        quick(own_bundle, **options)


def test_a_runner_that_no_variant_was_made_for_is_named(own_bundle: Path) -> None:
    manifest = Bundle.open(own_bundle).manifest
    variants = (msgspec.structs.replace(manifest.variants[0], target="gpu"),)
    (own_bundle / MANIFEST).write_bytes(sealed(msgspec.structs.replace(manifest, variants=variants)))
    with pytest.raises(UsageError, match="no variant was made for onnxruntime:cpu: the bundle has fp32 for gpu"):
        quick(own_bundle)


def test_without_evaluation_pictures_accuracy_can_not_be_judged(
    own_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    evaluation = Bundle.evaluation
    monkeypatch.setattr(Bundle, "evaluation", lambda bundle: first(evaluation(bundle), 0))
    with pytest.raises(UsageError, match="has no evaluation pictures, accuracy can't be judged"):
        quick(own_bundle)


# The command


def test_the_command_prints_a_table_and_the_choice(trueport: Any, own_bundle: Path, tmp_path: Path) -> None:
    plot, json = tmp_path / "front.png", tmp_path / "tune.json"
    arguments = ("--runner", "onnxruntime:cpu", "--batch", "1,4", "--plot", plot, "--json", json)
    code, out, err = trueport("tune", own_bundle, *arguments)
    assert code == 0
    assert "\nfastest: fp32 on onnxruntime:cpu" in out
    assert "\nsoonest: fp32 on onnxruntime:cpu" in out
    assert f"written to {own_bundle / tuned.FOLDER}" in out
    assert "the first look: " in err
    assert plot.read_bytes().startswith(b"\x89PNG")
    assert msgspec.json.decode(json.read_bytes(), type=TuneReport).bundle == "digits"


def test_a_bound_that_nothing_meets_fails_and_tells_the_best(trueport: Any, own_bundle: Path) -> None:
    code, out, _ = trueport("tune", own_bundle, "--runner", "onnxruntime:cpu", "--batch", "1", "--p99-ms", "0.0001")
    assert code == 1
    assert "nothing was shown to have a p99 below 0.0001 ms: the best that was reached is " in out
    assert "\nfastest: " in out


def test_nothing_faithful_fails(trueport: Any, own_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spoil(monkeypatch, lambda _: True)
    code, out, _ = trueport("tune", own_bundle, "--runner", "onnxruntime:cpu")
    assert code == 1
    assert "failed: parity (max abs " in out
    assert "no choice was written" in out


def test_an_interruption_says_that_what_was_done_is_kept(
    trueport: Any, own_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(workshop.Workshop, "measure", interrupted)
    code, _, err = trueport("tune", own_bundle, "--runner", "onnxruntime:cpu")
    assert code == 130
    assert "what was measured is kept: the same command goes on from there" in err


def test_usage_errors_of_the_command(trueport: Any, own_bundle: Path, tmp_path: Path) -> None:
    assert trueport("tune", tmp_path / "nothing")[0] == 2
    assert trueport("tune", own_bundle, "--batch", "1,x")[0] == 2
    code, _, err = trueport("tune", own_bundle, "--minutes", "0")
    assert (code, "above 0 minutes" in err) == (2, True)
    code, _, err = trueport("tune", own_bundle, "--plot", "front.txt")
    assert (code, "expected a plot as" in err) == (2, True)
