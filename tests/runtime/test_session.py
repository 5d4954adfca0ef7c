"""The embedded session: run, classify, submit, and what it refuses."""

from __future__ import annotations

import asyncio
import io
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, wait
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from trueport.runtime import BatchLimits, Prediction, Session, load
from trueport.runtime import session as session_module
from trueport.runtime.answering import RowsFuture
from trueport.runtime.errors import (
    ClosedError,
    DeadlineError,
    ImageError,
    InvalidRequestError,
    MissingError,
    OutputError,
    OverloadedError,
    UsageError,
)
from trueport.runtime.session import _mapped


@pytest.fixture(scope="module")
def session(bundle_path: Path) -> Session:
    return load(bundle_path)


def test_run_answers_the_original_s_logits(session: Session) -> None:
    golden = session.bundle.golden()
    logits = session.run(golden.images)
    assert logits.dtype == np.float32
    assert np.abs(logits - golden.logits).max() <= session.variant.bounds.max_abs


def test_classify_takes_whatever_holds_a_picture(session: Session, tmp_path: Path) -> None:
    evaluation = session.bundle.evaluation()
    array = evaluation.images[0]
    image = Image.fromarray(array[:, :, 0])
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    file = tmp_path / "digit.png"
    file.write_bytes(buffer.getvalue())
    several = session.classify([file, str(file), buffer.getvalue(), image, array])
    assert len({prediction.label for prediction in several}) == 1
    assert several[0].label == session.labels[int(evaluation.logits[0].argmax())]
    encoded = buffer.getvalue()
    for single in (file, encoded, bytearray(encoded), memoryview(encoded), image, array):
        assert session.classify(single) == several[:1]
    assert len(session.classify(evaluation.images[:70])) == 70


def test_scores_are_probabilities_in_order(session: Session) -> None:
    best = session.predictions(np.array([[1.0, 3.0, 2.0, *[-50.0] * 7]]), top=3)[0]
    assert [score.index for score in best.top] == [1, 2, 0]
    assert [score.label for score in best.top] == ["1", "2", "0"]
    expected = np.exp([3, 2, 1]) / np.exp([1, 2, 3]).sum()
    assert [score.score for score in best.top] == pytest.approx(expected.tolist())
    assert (best.label, best.index, best.score) == ("1", 1, best.top[0].score)
    assert len(session.predictions(np.zeros((1, 10)), top=50)[0].top) == 10
    with pytest.raises(UsageError, match="top must be at least 1"):
        session.predictions(np.zeros((1, 10)), top=0)


def test_submit_and_asubmit_answer_as_classify_does(session: Session) -> None:
    images = list(session.bundle.evaluation().images[:20])
    expected = [prediction.label for prediction in session.classify(images)]
    futures = [session.submit(image) for image in images]
    assert [future.result(10).label for future in futures] == expected

    async def together() -> list[str]:
        return [prediction.label for prediction in await asyncio.gather(*map(session.asubmit, images))]

    assert asyncio.run(together()) == expected


def test_a_bad_picture_is_refused_before_it_is_queued(session: Session) -> None:
    before = session.batcher.stats().requests
    with pytest.raises(ImageError):
        session.submit(b"no picture")
    with pytest.raises(ImageError):
        asyncio.run(session.asubmit(b"no picture"))
    assert session.batcher.stats().requests == before


def test_other_types_and_shapes_are_refused_with_what_was_expected(session: Session) -> None:
    good = np.zeros((1, 32, 32, 1), np.uint8)
    for bad in (good[0], good.astype(np.float32), good[:0], good.transpose(0, 3, 1, 2), [1, 2], None):
        with pytest.raises(InvalidRequestError, match=r"expected a uint8 array \(N, 32, 32, 1\)"):
            session.run(bad)  # type: ignore[arg-type]


def test_a_strided_view_is_read_rightly(session: Session) -> None:
    images = session.bundle.evaluation().images[:8]
    assert np.array_equal(session.run(images[::2]), session.run(images[::2].copy()))


def test_closing_answers_what_was_accepted_and_refuses_the_rest(bundle_path: Path) -> None:
    image = np.zeros((32, 32, 1), np.uint8)
    with load(bundle_path, limits=BatchLimits(max_batch_rows=4)) as session:
        futures = [session.submit(image) for _ in range(50)]
    assert all(future.result(0).top for future in futures)
    session.close()
    with pytest.raises(ClosedError):
        session.submit(image)
    with pytest.raises(ClosedError):
        session.run(image[np.newaxis])


def test_every_way_in_is_shut_after_closing(bundle_path: Path) -> None:
    image = np.zeros((32, 32, 1), np.uint8)
    before = set(threading.enumerate())
    session = load(bundle_path)
    assert not session.closed
    session.close()
    assert session.closed
    for use in (session.classify, lambda picture: asyncio.run(session.asubmit(picture)), session.submit):
        with pytest.raises(ClosedError):
            use(image)
    assert set(threading.enumerate()) <= before


def test_closing_shuts_the_way_in_before_it_waits_for_answers(bundle_path: Path) -> None:
    session = load(bundle_path)
    seen: list[bool] = []
    answered = session.submit(np.zeros((32, 32, 1), np.uint8))
    answer_the_rest = session.batcher.close

    def close(drain: bool = True, timeout_s: float | None = None) -> None:
        seen.append(session.closed)
        session.close()  # a second one neither waits for the first nor does its work again
        answer_the_rest()

    session.batcher.close = close  # type: ignore[method-assign]
    session.close()
    assert seen == [True]
    assert answered.result(0).top


def test_a_run_that_meets_the_closing_is_refused_as_closed(bundle_path: Path) -> None:
    session = load(bundle_path)
    session.runner.close()  # what another thread's `close` may have done between the check and the run
    with pytest.raises(ClosedError):
        session.run(np.zeros((1, 32, 32, 1), np.uint8))
    session.close()


def test_a_cancelled_answer_is_waited_for_by_nobody(session: Session) -> None:
    source: Future[Any] = Future()
    target = _mapped(source, session._first_prediction)
    source.cancel()
    assert wait([target], timeout=10).done == {target}
    source = RowsFuture()
    target = _mapped(source, session._first_prediction)
    source.leave_queue = lambda: True
    target.cancel()
    assert source.cancelled()
    assert wait([target], timeout=10).done == {target}


def test_an_answer_that_can_not_be_told_settles_with_the_reason() -> None:
    source: Future[Any] = Future()

    def convert(_: Any) -> Prediction:
        raise IndexError("no such label")

    target = _mapped(source, convert)
    source.set_result({})
    with pytest.raises(IndexError, match="no such label"):
        target.result(10)


@pytest.mark.parametrize("deadline_ms", [0, -1, float("nan")])
def test_a_deadline_in_the_past_is_named_as_it_was_given(session: Session, deadline_ms: float) -> None:
    image = np.zeros((32, 32, 1), np.uint8)
    with pytest.raises(InvalidRequestError, match=f"deadline_ms .* found {deadline_ms}"):
        session.submit(image, deadline_ms=deadline_ms)
    with pytest.raises(InvalidRequestError, match="deadline_ms"):
        asyncio.run(session.asubmit(image, deadline_ms=deadline_ms))


SMALL = np.zeros((8, 8, 1), np.uint8)


def test_decoding_takes_of_the_time_until_the_deadline(
    session_of: Callable[..., Session], monkeypatch: pytest.MonkeyPatch
) -> None:
    left_s: list[float] = []

    def slow(picture: Any) -> Any:
        time.sleep(0.03)
        return picture

    with session_of() as session:
        submit, asubmit = session.batcher.submit, session.batcher.asubmit

        def submitted(rows: Any, *, deadline_s: float, priority: int) -> Any:
            left_s.append(deadline_s)
            return submit(rows, deadline_s=deadline_s, priority=priority)

        async def awaited(rows: Any, *, deadline_s: float, priority: int) -> Any:
            left_s.append(deadline_s)
            return await asubmit(rows, deadline_s=deadline_s, priority=priority)

        monkeypatch.setattr(session, "prepare", slow)
        monkeypatch.setattr(session.batcher, "submit", submitted)
        monkeypatch.setattr(session.batcher, "asubmit", awaited)
        with pytest.raises(DeadlineError, match="passed before the picture was decoded"):
            session.submit(SMALL, deadline_ms=10)
        with pytest.raises(DeadlineError, match="passed before the picture was decoded"):
            asyncio.run(session.asubmit(SMALL, deadline_ms=10))
        assert not left_s
        assert session.submit(SMALL, deadline_ms=60_000).result(10).top
        assert asyncio.run(session.asubmit(SMALL, deadline_ms=60_000)).top
        assert [0 < seconds < 59.97 for seconds in left_s] == [True, True]


def test_whose_time_is_over_is_not_decoded_any_more(
    session_of: Callable[..., Session], monkeypatch: pytest.MonkeyPatch
) -> None:
    with session_of() as session:
        monkeypatch.setattr(session, "prepare", lambda _: pytest.fail("it was decoded"))
        with pytest.raises(DeadlineError):
            session._decoded([SMALL], time.monotonic() - 1)


def test_more_pictures_than_may_wait_to_be_decoded_are_refused(
    session_of: Callable[..., Session], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert session_module.MOST_UNDECODED == 1024
    monkeypatch.setattr(session_module, "MOST_UNDECODED", 2)
    gate = threading.Event()

    def gated(picture: Any) -> Any:
        assert gate.wait(20), "the gate stayed closed"
        return picture

    async def ask(session: Session) -> Prediction:
        waiting = [asyncio.create_task(session.asubmit(SMALL)) for _ in range(2)]
        await asyncio.sleep(0)
        with pytest.raises(OverloadedError, match="too many pictures wait to be decoded: try again in") as refused:
            await session.asubmit(SMALL)
        assert 0 < refused.value.expected_wait_s < 1
        gate.set()
        await asyncio.gather(*waiting)
        return await session.asubmit(SMALL)

    with session_of() as session:
        monkeypatch.setattr(session, "prepare", gated)
        assert asyncio.run(ask(session)).top


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_what_is_no_answer_is_none_whoever_asks(
    session_of: Callable[..., Session], monkeypatch: pytest.MonkeyPatch, value: float
) -> None:
    with session_of() as session:
        answered = session.runner.run

        def run(feeds: Any) -> Any:
            outputs = answered(feeds)
            outputs["logits"][-1, 2] = value
            return outputs

        monkeypatch.setattr(session, "_run", run)
        monkeypatch.setattr(session.runner, "run", run)
        with pytest.raises(OutputError, match="NaN or infinity"):
            session.classify([SMALL, SMALL])
        with pytest.raises(OutputError, match="NaN or infinity"):
            session.submit(SMALL).result(10)
        assert not np.isfinite(session.run(SMALL[np.newaxis])).all(), "the bare runner's answer, as it is"


def test_threads_are_what_was_asked_for(bundle_path: Path) -> None:
    with load(bundle_path, threads=1) as session:
        assert session.report.threads == 1
        assert session.report.provider == "CPUExecutionProvider"


def test_an_unknown_runner_lists_those_there_are(bundle_path: Path) -> None:
    with pytest.raises(UsageError, match="onnxruntime:cpu"):
        load(bundle_path, runner="onnxruntime")


def test_cuda_is_used_or_refused_never_replaced(bundle_path: Path) -> None:
    """On a machine with a GPU the session is on it; on any other it is an error that says what is missing."""
    try:
        session = load(bundle_path, runner="onnxruntime:cuda")
    except MissingError as error:
        assert "onnxruntime:cuda" in str(error)
        assert "trueport[cuda]" in str(error)
    else:
        assert session.report.provider == "CUDAExecutionProvider"
