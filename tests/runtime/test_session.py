"""The embedded session: run, classify, submit, and what it refuses."""

from __future__ import annotations

import asyncio
import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from trueport.runtime import BatchLimits, Session, load
from trueport.runtime.errors import ClosedError, ImageError, InvalidRequestError, MissingError, UsageError


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
    for single in (file, buffer.getvalue(), image, array):
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
