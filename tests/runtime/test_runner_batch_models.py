"""Which batch sizes have a compiled model of their own: a policy, and the plumbing around it."""

from __future__ import annotations

import threading
import weakref
from typing import TypeVar

import pytest

from trueport.runtime.errors import ClosedError
from trueport.runtime.runners.batch_models import CLEARLY, MEMORY_BYTES, MOST, BatchModels, gives_way, places

Model = TypeVar("Model")
PATIENCE_S = 20.0
"""Before a test that hangs is given up; nothing waits for so long when all is well."""


def test_as_many_as_memory_allows_and_one_in_any_case() -> None:
    assert places(1) == MOST
    assert places(MEMORY_BYTES // 3) == 3
    assert places(MEMORY_BYTES * 10) == 1


def test_there_is_room_until_all_places_are_taken() -> None:
    assert gives_way(3, {}, {1: "", 2: ""}, most=3) == 0
    assert gives_way(3, {1: 9, 2: 8, 3: 1}, {1: "", 2: ""}, most=2) is None


def test_the_rarest_gives_way_to_what_is_used_far_more() -> None:
    held = {1: "", 2: ""}
    assert gives_way(3, {1: 9, 2: 8, 3: 2 * 8 + CLEARLY}, held, most=2) is None
    assert gives_way(3, {1: 9, 2: 8, 3: 2 * 8 + CLEARLY + 1}, held, most=2) == 2


class Compiler:
    def __init__(self) -> None:
        self.asked: list[int | None] = []

    def __call__(self, rows: int | None) -> str:
        self.asked.append(rows)
        return f"model {rows}"


def test_each_size_is_compiled_once_and_the_rest_share_one() -> None:
    compiler = Compiler()
    models = BatchModels(compiler, most=2)
    assert [models(rows) for rows in (1, 8, 1, 3, 5, 8)] == [
        *("model 1", "model 8", "model 1", "model None", "model None", "model 8")
    ]
    assert compiler.asked == [1, 8, None]


def test_sizes_that_take_turns_do_not_compile_in_turns() -> None:
    compiler = Compiler()
    models = BatchModels(compiler, most=1)
    for _ in range(500):
        models(1)
        models(2)
    assert compiler.asked == [1, None]


def settled(models: BatchModels[Model]) -> BatchModels[Model]:
    """As they are when nothing is being compiled."""
    if (thread := models._replacing) is not None:
        thread.join(PATIENCE_S)
    assert models._replacing is None
    return models


def test_a_size_that_became_the_usual_one_gets_its_own_and_no_more_than_allowed_are_held() -> None:
    compiler = Compiler()
    models = BatchModels(compiler, most=2)
    for rows in (1, 3, *[32] * 40):
        settled(models)(rows)
    assert settled(models)(32) == "model 32"
    assert len(models._fixed) == 2


class GatedCompiler(Compiler):
    """What is compiled beside the batches waits for the gate."""

    def __init__(self) -> None:
        super().__init__()
        self.begun, self.gate = threading.Event(), threading.Event()

    def __call__(self, rows: int | None) -> str:
        model = super().__call__(rows)
        if rows not in (1, 3, None):
            self.begun.set()
            assert self.gate.wait(PATIENCE_S), "the gate stayed closed"
        return model


def test_no_batch_waits_for_what_takes_the_place_of_another_and_one_is_compiled_at_a_time() -> None:
    compiler = GatedCompiler()
    models = BatchModels(compiler, most=2)
    answered = {models(rows) for rows in (1, 3, *[32] * 40, *[16] * 40)}
    assert answered == {"model 1", "model 3", "model None"}, "the gate was closed all the time"
    assert compiler.begun.wait(PATIENCE_S)
    assert compiler.asked == [1, 3, None, 32]
    assert {models(1), models(3)} == {"model 1", "model 3"}, "none has given way yet"
    compiler.gate.set()
    assert settled(models)(32) == "model 32"
    assert settled(models)(16) == "model None", "its turn comes now"
    assert settled(models)(16) == "model 16"


def test_what_can_not_be_compiled_is_told_once_and_the_shared_model_goes_on(caplog: pytest.LogCaptureFixture) -> None:
    asked: list[int | None] = []

    def compiled(rows: int | None) -> str:
        asked.append(rows)
        if rows == 32:
            raise MemoryError("no room for the weights")
        return f"model {rows}"

    models = BatchModels(compiled, most=2)
    for rows in (1, 3, *[32] * 40, *[16] * 40):
        settled(models)(rows)
    assert asked.count(32) == 1
    assert settled(models)(32) == "model None"
    assert settled(models)(16) == "model 16"
    (record,) = caplog.records
    assert record.getMessage() == "batches of 32 rows get no model of their own: it can't be compiled"
    assert record.exc_info is not None
    assert "no room for the weights" in caplog.text


@pytest.mark.parametrize("fails", [False, True])
def test_what_is_compiled_when_they_are_closed_is_dropped_and_nothing_is_told(
    caplog: pytest.LogCaptureFixture, fails: bool
) -> None:
    class Weights:
        pass

    made: list[weakref.ref[Weights]] = []
    begun, gate = threading.Event(), threading.Event()

    def compiled(rows: int | None) -> Weights:
        if rows == 32:
            begun.set()
            assert gate.wait(PATIENCE_S), "the gate stayed closed"
            if fails:
                raise ClosedError("closed")
        model = Weights()
        made.append(weakref.ref(model))
        return model

    models = BatchModels(compiled, most=1)
    for rows in (1, *[32] * 20):
        models(rows)
    assert begun.wait(PATIENCE_S)
    models.close()
    models.close()
    with pytest.raises(ClosedError):
        models(1)
    gate.set()
    settled(models)
    assert [model() for model in made] == [None] * (2 if fails else 3)
    assert not caplog.records


def test_threads_that_need_the_same_size_compile_it_once() -> None:
    asked, together = [], threading.Barrier(4)

    def compile_slowly(rows: int | None) -> int | None:
        asked.append(rows)
        threading.Event().wait(0.02)
        return rows

    models = BatchModels(compile_slowly, most=2)

    def need() -> None:
        together.wait()
        models(7)

    threads = [threading.Thread(target=need) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert asked == [7]
