"""Which batch sizes have a compiled model of their own: a policy, and the plumbing around it."""

from __future__ import annotations

import threading

from trueport.runtime.runners.batch_models import CLEARLY, MEMORY_BYTES, MOST, BatchModels, gives_way, places


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


def test_a_size_that_became_the_usual_one_gets_its_own_and_no_more_than_allowed_are_held() -> None:
    compiler = Compiler()
    models = BatchModels(compiler, most=2)
    for rows in (1, 3, *[32] * 40):
        last = models(rows)
    assert last == "model 32"
    assert len(models._fixed) == 2


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
