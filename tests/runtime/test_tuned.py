"""Tuned choices: what fits is used, whatever else lies there is passed over with a reason, never a crash."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any

import msgspec
import pytest

from trueport.runtime import BatchLimits, Session, load, tuned
from trueport.runtime.atomic import write_bytes
from trueport.runtime.bundle import Bundle
from trueport.runtime.errors import UsageError
from trueport.runtime.runner import RunnerOptions
from trueport.runtime.tuned import Choice, Tuned, find_choice, own_key


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The user's own cache is none of a test's business."""
    monkeypatch.setenv("TRUEPORT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def bundle(own_bundle: Path) -> Bundle:
    return Bundle.open(own_bundle)


def choice(**changes: Any) -> Choice:
    made = Choice(
        variant="fp32",
        runner="onnxruntime:cpu",
        options=RunnerOptions(threads=1, graph_level="extended"),
        max_batch_rows=8,
        curve=((1, 0.1), (8, 0.4)),
        images_per_s=20e3,
        images_per_s_low=19e3,
        images_per_s_high=21e3,
        p99_ms=None,
        drop_points=0.0,
        versions=tuned.runner_versions("onnxruntime:cpu"),
    )
    return msgspec.structs.replace(made, **changes)


def found_for(bundle: Bundle, **changes: Any) -> Tuned:
    made = Tuned(
        machine=own_key(),
        bundle_sha256=bundle.manifest.sha256,
        tuned_at="2026-11-22T07:00:00+00:00",
        max_drop=None,
        p99_bound_ms=None,
        throughput=choice(),
        latency=choice(max_batch_rows=4),
        bounded=None,
    )
    return msgspec.structs.replace(made, **changes)


def put(bundle: Bundle, content: Tuned) -> Path:
    return tuned.write(bundle, f"{content.machine}.json", content)


def chosen(bundle: Bundle, **options: Any) -> tuple[str, Session]:
    with load(bundle.path, **options) as session:
        return session.chosen, session


def test_a_fitting_choice_is_used_and_says_so(bundle: Bundle) -> None:
    put(bundle, found_for(bundle))
    told, session = chosen(bundle)
    assert told == (
        "tuned on 2026-11-22 for this machine: fp32 on onnxruntime:cpu, 1 thread, graph level extended, "
        "batches of up to 8"
    )
    assert session.report.threads == 1
    assert session.batcher.limits.max_batch_rows == 8
    assert session.batcher.limits.request_rows == 32, "what clients may send is not for tuning to narrow"
    assert session.batcher.curve.seconds(8) == pytest.approx(0.0004)


def test_what_is_preferred_is_taken(bundle: Bundle) -> None:
    put(bundle, found_for(bundle))
    assert chosen(bundle, prefer="latency")[1].batcher.limits.max_batch_rows == 4
    put(bundle, found_for(bundle, p99_bound_ms=5.0, bounded=choice(max_batch_rows=2)))
    assert chosen(bundle)[1].batcher.limits.max_batch_rows == 2
    with pytest.raises(UsageError, match="prefer must be 'throughput' or 'latency', found 'speed'"):
        load(bundle.path, prefer="speed")  # type: ignore[arg-type]


def spun(**changes: Any) -> Choice:
    return choice(options=RunnerOptions(threads=2, spinning=True), resting=choice(max_batch_rows=4), **changes)


def test_whoever_may_not_burn_cores_takes_what_rests(bundle: Bundle) -> None:
    put(bundle, found_for(bundle, throughput=spun()))
    told, session = chosen(bundle)
    assert told.endswith("fp32 on onnxruntime:cpu, 2 threads, spinning, batches of up to 8")
    assert session.report.threads == 2
    told, session = chosen(bundle, spinning=False)
    assert told.endswith("fp32 on onnxruntime:cpu, 1 thread, graph level extended, batches of up to 4")
    assert session.report.threads == 1
    assert chosen(bundle, prefer="latency", spinning=False)[0].startswith("tuned on"), "which never did"


def test_a_choice_that_spins_without_one_that_rests_is_damaged(bundle: Bundle) -> None:
    file = put(bundle, found_for(bundle, throughput=spun()))
    good = file.read_bytes()
    for old, new in ((b'"spinning": true', b'"spinning": false'), (b'"spinning": false', b'"spinning": true')):
        assert old in good
        file.write_bytes(good.replace(old, new))
        assert f"{file} is damaged: a choice whose threads spin has one beside it" in chosen(bundle)[0]


def test_a_large_batch_has_a_queue_that_holds_it(bundle: Bundle) -> None:
    put(bundle, found_for(bundle, throughput=choice(max_batch_rows=2048)))
    limits = chosen(bundle)[1].batcher.limits
    assert (limits.max_batch_rows, limits.max_queue_rows) == (2048, 2048)


@pytest.mark.parametrize("given", [{"variant": "fp32"}, {"runner": "onnxruntime:cpu"}, {"threads": 2}])
def test_whatever_is_asked_for_goes_before_it(bundle: Bundle, given: dict[str, Any]) -> None:
    put(bundle, found_for(bundle))
    told, session = chosen(bundle, **given)
    assert told == f"as asked: fp32 on onnxruntime:cpu, {session.report.threads} thread" + "s" * (
        session.report.threads > 1
    )
    assert session.batcher.limits == BatchLimits()


def test_limits_that_are_given_stay_while_the_choice_is_used(bundle: Bundle) -> None:
    put(bundle, found_for(bundle))
    told, session = chosen(bundle, limits=BatchLimits(max_batch_rows=16))
    assert session.batcher.limits.max_batch_rows == 16
    assert told.startswith("tuned on")
    assert told.endswith("batches of up to 16")


def test_without_one_the_default_says_how_to_get_one(bundle: Bundle) -> None:
    told, session = chosen(bundle)
    assert told.startswith("default: fp32 on onnxruntime:cpu, ")
    assert told.endswith("; no tuned choice: `trueport tune` finds one")
    assert session.batcher.limits == BatchLimits()


def test_without_one_nobody_asks_what_machine_this_is(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse() -> str:
        raise AssertionError("the machine was asked for")

    monkeypatch.setattr(tuned, "own_key", refuse)
    assert find_choice(bundle) == (None, None, "")
    folder = bundle.path / tuned.FOLDER
    folder.mkdir()
    (folder / f"0123456789ab{tuned.TRIALS_SUFFIX}").write_text("{}")
    assert find_choice(bundle) == (None, None, "")


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"bundle_sha256": "0" * 64}, "it was made for another export of the bundle"),
        ({"machine": "0123456789ab"}, "it was made for another machine, 0123456789ab; this one is"),
        ({"throughput": {"variant": "int8-cpu"}}, "it names the variant 'int8-cpu', which the bundle does not have"),
        ({"throughput": {"runner": "abacus"}}, "it names the runner 'abacus', which this trueport does not have"),
        ({"throughput": {"versions": {"trueport": "0.0.1"}}}, "it was made with trueport 0.0.1, here is trueport "),
    ],
)
def test_what_does_not_fit_is_passed_over_with_the_reason(bundle: Bundle, changes: dict[str, Any], reason: str) -> None:
    changes = {name: choice(**value) if isinstance(value, dict) else value for name, value in changes.items()}
    tuned.write(bundle, f"{own_key()}.json", found_for(bundle, **changes))
    told, _ = chosen(bundle)
    assert told.startswith("default: fp32 on onnxruntime:cpu, ")
    assert f"; the tuned choice is not used: {reason}" in told
    assert told.endswith("; `trueport tune` finds one anew")


def test_another_machine_s_file_is_told_apart_by_its_name(bundle: Bundle) -> None:
    put(bundle, found_for(bundle, machine="0123456789ab"))
    assert f"made for another machine, this one is {own_key()}" in chosen(bundle)[0]


DAMAGED = {
    "empty": b"",
    "cut": b'{"schema": 1, "machine": "',
    "not JSON": b"\x80\x04K\x01.",
    "not an object": b"[1, 2]",
    "nested": b"[" * 100_000,
    "a field too many": b'{"schema": 2, "surprise": 1}',
}


@pytest.mark.parametrize("data", DAMAGED.values(), ids=DAMAGED)
def test_a_damaged_file_is_passed_over(bundle: Bundle, data: bytes) -> None:
    file = put(bundle, found_for(bundle))
    file.write_bytes(data)
    assert f"the tuned choice is not used: {file} is damaged: " in chosen(bundle)[0]


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("curve", [[8, 1.0], [1, 2.0]]),
        ("curve", [[1, -1.0]]),
        ("max_batch_rows", 0),
        ("max_batch_rows", 10**9),
        ("options", {"threads": 0}),
        ("options", {"threads": 1 << 40}),
        ("options", {"graph_level": "most"}),
    ],
)
def test_values_that_make_no_sense_are_damage(bundle: Bundle, field: str, value: object) -> None:
    file = put(bundle, found_for(bundle))
    content: dict[str, Any] = msgspec.json.decode(file.read_bytes())
    content["throughput"][field] = value
    file.write_bytes(msgspec.json.encode(content))
    assert f"{file} is damaged" in chosen(bundle)[0]


def test_another_schema_is_not_guessed_at(bundle: Bundle) -> None:
    file = put(bundle, found_for(bundle))
    file.write_bytes(b'{"schema": 99, "throughput": "anything"}')
    assert f"{file} has schema 99, this trueport reads schema {tuned.SCHEMA}" in chosen(bundle)[0]


def test_a_file_of_any_size_is_not_read(bundle: Bundle) -> None:
    file = put(bundle, found_for(bundle))
    file.write_bytes(b" " * (tuned.MOST_BYTES + 1))
    assert "larger than any that trueport writes" in chosen(bundle)[0]


def test_what_is_no_file_or_no_folder_is_nothing(bundle: Bundle) -> None:
    folder = bundle.path / tuned.FOLDER
    folder.mkdir()
    os.mkfifo(folder / f"{own_key()}.json")  # reading it would wait for ever
    assert find_choice(bundle) == (None, None, "")
    (folder / f"{own_key()}.json").unlink()
    folder.rmdir()
    folder.write_text("a file")
    assert find_choice(bundle) == (None, None, "")


def test_a_choice_that_can_not_be_opened_any_more_leaves_the_default(bundle: Bundle) -> None:
    gone = choice(runner="onnxruntime:cuda", versions=tuned.runner_versions("onnxruntime:cuda"))
    put(bundle, found_for(bundle, throughput=gone))
    told, session = chosen(bundle)
    if session.report.name != "onnxruntime:cuda":
        assert told.startswith("default: fp32 on onnxruntime:cpu")
        assert "the tuned choice is not used: onnxruntime:cuda" in told


def test_a_read_only_bundle_has_its_choice_in_the_cache(
    bundle: Bundle, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(file: Path, data: bytes) -> None:
        if file.is_relative_to(bundle.path):
            raise OSError(errno.EROFS, "Read-only file system", str(file))
        write_bytes(file, data)

    monkeypatch.setattr(tuned, "write_bytes", refuse)
    file = put(bundle, found_for(bundle))
    assert file == cache / tuned.FOLDER / bundle.manifest.sha256 / f"{own_key()}.json"
    assert chosen(bundle)[0].startswith("tuned on 2026-11-22")

    def full(file: Path, data: bytes) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", str(file))

    monkeypatch.setattr(tuned, "write_bytes", full)
    with pytest.raises(OSError, match="No space left"):
        put(bundle, found_for(bundle))


def test_of_two_that_fit_the_newer_is_used(bundle: Bundle) -> None:
    put(bundle, found_for(bundle))
    _, cached = tuned.folders(bundle)
    cached.mkdir(parents=True)
    newer = found_for(bundle, tuned_at="2026-11-23T07:00:00+00:00")
    (cached / f"{own_key()}.json").write_bytes(msgspec.json.encode(newer))
    assert chosen(bundle)[0].startswith("tuned on 2026-11-23")


def test_versions_are_those_of_what_the_runner_is_made_of() -> None:
    assert set(tuned.runner_versions("onnxruntime:cpu")) == {"trueport", "onnxruntime"}
    assert "tensorrt" not in tuned.runner_versions("rtx")
