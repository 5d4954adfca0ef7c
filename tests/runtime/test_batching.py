"""The batching policy, without threads or clocks."""

from __future__ import annotations

import math
import random
from collections.abc import Iterable, Iterator

import pytest

from trueport.runtime.batching import (
    CAUTION,
    Batch,
    BatchLimits,
    LatencyCurve,
    Refused,
    Waiting,
    WaitingQueue,
    admit,
    next_batch,
)
from trueport.runtime.errors import UsageError

UNKNOWN = LatencyCurve()
CURVE = LatencyCurve(((1, 0.010), (4, 0.016)))


def waiting(rows: int = 1, arrived_s: float = 0.0, deadline_s: float = math.inf, priority: int = 0) -> Waiting:
    return Waiting(rows, arrived_s, deadline_s, priority)


def batch_of(
    queue: WaitingQueue[Waiting], now_s: float = 0.0, limits: BatchLimits | None = None, curve: LatencyCurve = UNKNOWN
) -> Batch[Waiting]:
    return next_batch(queue, now_s, limits or BatchLimits(4, 100), curve)


class TestLimits:
    def test_documented_defaults(self) -> None:
        assert BatchLimits() == BatchLimits(max_batch_rows=32, max_queue_rows=1024, max_wait_s=0.0, max_request_rows=0)

    @pytest.mark.parametrize(
        ("arguments", "named"),
        [
            ({"max_batch_rows": 0}, "max_batch_rows"),
            ({"max_batch_rows": 8, "max_queue_rows": 7}, "max_queue_rows"),
            ({"max_queue_rows": 31, "max_batch_rows": 4, "max_request_rows": 32}, "max_request_rows"),
            ({"max_request_rows": -1}, "max_request_rows"),
            ({"max_wait_s": -0.1}, "max_wait_s"),
            ({"max_wait_s": math.nan}, "max_wait_s"),
            ({"max_wait_s": math.inf}, "max_wait_s"),
        ],
    )
    def test_bad_limits_are_refused_by_name(self, arguments: dict[str, float], named: str) -> None:
        with pytest.raises(UsageError, match=named):
            BatchLimits(**arguments)  # type: ignore[arg-type]


class TestLatencyCurve:
    def test_empty_knows_nothing(self) -> None:
        assert UNKNOWN.seconds(7) == 0.0

    @pytest.mark.parametrize(("rows", "seconds"), [(1, 0.010), (2, 0.012), (3, 0.014), (4, 0.016)])
    def test_linear_between_points(self, rows: int, seconds: float) -> None:
        assert CURVE.seconds(rows) == pytest.approx(seconds)

    def test_fewer_rows_than_measured_take_no_longer_and_more_take_their_share(self) -> None:
        curve = LatencyCurve(((4, 0.02), (8, 0.03)))
        assert curve.seconds(1) == 0.02
        assert curve.seconds(32) == pytest.approx(0.12)

    @pytest.mark.parametrize(
        "points", [((0, 1.0),), ((2, 1.0), (2, 1.0)), ((4, 1.0), (2, 1.0)), ((1, -1.0),), ((1, math.nan),)]
    )
    def test_bad_points_are_refused(self, points: tuple[tuple[float, float], ...]) -> None:
        with pytest.raises(UsageError, match="latency curve"):
            LatencyCurve(points)

    def test_the_first_measurement_is_taken_as_it_is(self) -> None:
        assert UNKNOWN.updated(3, 0.5).seconds(3) == 0.5

    def test_converges_to_a_new_latency_and_believes_faster_sooner(self) -> None:
        faster = slower = UNKNOWN.updated(8, 1.0)
        for _ in range(8):
            faster, slower = faster.updated(8, 0.1), slower.updated(8, 10.0)
        assert faster.seconds(8) == pytest.approx(0.1, rel=0.1)
        assert 8.0 < slower.seconds(8) < 10.0

    def test_one_slow_run_does_not_stay_in_the_curve(self) -> None:
        stuck = UNKNOWN.updated(1, 2.0).updated(16, 2.0)
        assert stuck.updated(32, 0.05).seconds(1) <= 0.05  # fewer rows take no longer
        assert stuck.updated(2, 0.001).seconds(16) <= 1.0 + 1e-9
        small = UNKNOWN.updated(1, 0.001).updated(16, 2.0)
        assert small.updated(1, 0.001).seconds(16) <= 0.016 + 1e-9  # as many small runs are a bound

    def test_learns_a_line_from_noisy_runs_in_few_points(self) -> None:
        chance = random.Random(7)
        curve = UNKNOWN
        for _ in range(3000):
            rows = chance.randint(1, 64)
            curve = curve.updated(rows, (1.0 + 0.1 * rows) * chance.uniform(0.95, 1.05))
        assert len(curve.points) <= 7
        for rows in (2, 7, 20, 40, 60):
            assert curve.seconds(rows) == pytest.approx(1.0 + 0.1 * rows, rel=0.15)


class TestQueue:
    def test_counts_rows_and_requests(self) -> None:
        queue = WaitingQueue([waiting(3), waiting(2, priority=5), waiting(1)])
        assert (queue.rows, len(queue), bool(queue)) == (6, 3, True)
        assert not WaitingQueue()

    def test_rows_ahead_are_those_of_the_same_or_a_higher_priority(self) -> None:
        queue = WaitingQueue([waiting(3), waiting(2, priority=5), waiting(1, priority=-1)])
        assert [queue.rows_ahead(priority) for priority in (-2, -1, 0, 3, 5, 6)] == [6, 6, 5, 2, 2, 0]

    def test_discard_takes_a_request_out_wherever_it_is_and_only_once(self) -> None:
        first, middle, last = waiting(1), waiting(2), waiting(3)
        queue = WaitingQueue([first, middle, last])
        assert queue.discard(middle)
        assert not queue.discard(middle)
        assert not queue.discard(waiting(2, priority=9))
        assert list(queue) == [first, last]
        assert queue.rows == 4

    def test_orders_by_priority_then_arrival_under_random_changes(self) -> None:
        chance = random.Random(3)
        queue: WaitingQueue[Waiting] = WaitingQueue()
        expected: list[Waiting] = []
        for step in range(2000):
            if expected and chance.random() < 0.45:
                gone = chance.choice(expected)
                expected.remove(gone)
                assert queue.discard(gone)
            else:
                new = waiting(chance.randint(1, 9), float(step), priority=chance.randint(-2, 2))
                expected.append(new)
                queue.add(new)
            assert queue.rows == sum(request.rows for request in expected)
        assert list(queue) == sorted(expected, key=lambda request: (-request.priority, request.arrived_s))


class TestAdmission:
    limits = BatchLimits(max_batch_rows=4, max_queue_rows=10)

    def decide(
        self,
        request: Waiting,
        queued: list[Waiting] | None = None,
        running: tuple[tuple[float, int], ...] = (),
        now_s: float = 0.0,
        curve: LatencyCurve = CURVE,
        runners: int = 1,
    ) -> Refused | None:
        return admit(request, WaitingQueue(queued or []), running, now_s, self.limits, curve, runners)

    def test_more_rows_than_a_batch_can_never_run(self) -> None:
        assert self.decide(waiting(4)) is None
        assert self.decide(waiting(5)) == Refused("too many rows", 0.0)

    @pytest.mark.parametrize(
        ("rows", "queued", "running", "runners", "completion_s"),
        [
            (12, [], (), 1, 3 * 0.016),  # in parts of 4, one after the other
            (12, [], (), 2, 3 * 0.016),  # ... on one runner
            (9, [], (), 1, 2 * 0.016 + 0.010),  # the last part is a whole run too
            (9, [waiting(3)], (), 1, 0.016 + 2 * 0.016 + 0.010),  # never in a batch with others
            (12, [waiting(4)], (), 2, 3 * 0.016),
            (1, [], ((0.0, 9),), 1, 2 * 0.016 + 0.010 + 0.010),  # behind one that runs
        ],
    )
    def test_a_request_larger_than_a_batch_takes_as_long_as_its_parts(
        self,
        rows: int,
        queued: list[Waiting],
        running: tuple[tuple[float, int], ...],
        runners: int,
        completion_s: float,
    ) -> None:
        limits = BatchLimits(max_batch_rows=4, max_queue_rows=20, max_request_rows=12)
        for spare_s, expected in ((1e-9, None), (-0.004, "deadline")):
            request = waiting(rows, deadline_s=CAUTION * completion_s + spare_s)
            refused = admit(request, WaitingQueue(queued), running, 0.0, limits, CURVE, runners)
            assert (refused and refused.reason) == expected
            if not queued and not running:
                assert bool(batch_of(WaitingQueue([request]), 0.0, limits, CURVE).take) == (expected is None)
        assert admit(waiting(13), WaitingQueue(queued), (), 0.0, limits, CURVE) == Refused("too many rows", 0.0)

    def test_the_queue_is_bounded_by_rows(self) -> None:
        assert self.decide(waiting(2), [waiting(4), waiting(4)]) is None
        refused = self.decide(waiting(3), [waiting(4), waiting(4)])
        assert refused is not None
        assert refused.reason == "queue full"

    def test_priority_does_not_widen_the_queue(self) -> None:
        assert self.decide(waiting(3, priority=9), [waiting(4), waiting(4)]) is not None

    @pytest.mark.parametrize(
        ("rows", "running", "runners", "expected_wait_s"),
        [
            (1, (), 1, 0.0),  # the next batch makes room, and a runner is free
            (1, ((0.0, 4),), 1, 0.016),  # when the run in progress ends
            (4, ((0.0, 4),), 1, 0.016),  # ... one batch of 4 makes room for 4
            (4, ((-0.006, 4),), 1, 0.010),
            (4, ((-9.0, 4),), 1, 0.0),  # overdue: expected any moment, never in the past
            (1, ((0.0, 4), (-0.006, 4)), 2, 0.010),  # when the first of two runners is free
        ],
    )
    def test_a_full_queue_tells_when_it_has_room(
        self, rows: int, running: tuple[tuple[float, int], ...], runners: int, expected_wait_s: float
    ) -> None:
        refused = self.decide(waiting(rows), [waiting(4), waiting(4), waiting(2)], running, runners=runners)
        assert refused is not None
        assert refused.reason == "queue full"
        assert refused.expected_wait_s == pytest.approx(expected_wait_s)

    def test_room_for_more_than_one_batch_takes_as_many_batches(self) -> None:
        limits = BatchLimits(max_batch_rows=4, max_queue_rows=4)
        queue = WaitingQueue([waiting(2), waiting(2)])
        refused = admit(waiting(4), queue, ((0.0, 4),), 0.0, limits, CURVE)
        assert refused == Refused("queue full", 0.016)

    @pytest.mark.parametrize(
        ("queued", "running", "runners", "completion_s"),
        [
            ([], (), 1, 0.010),  # at once
            ([waiting(3)], (), 1, 0.016),  # in the same batch
            ([waiting(4)], (), 1, 0.016 + 0.010),  # after a full batch
            ([waiting(4)], ((-0.004, 1),), 1, 0.006 + 0.016 + 0.010),  # after the run in progress, too
            ([waiting(4), waiting(4)], (), 2, 0.016 + 0.010),  # two runners take one batch each, then this one
            ([], ((0.0, 4),), 2, 0.010),  # the second runner is free
            ([waiting(4)], ((-0.006, 4),), 2, 0.010 + 0.010),  # which the batch before it takes
        ],
    )
    def test_a_deadline_is_held_against_the_expected_completion(
        self, queued: list[Waiting], running: tuple[tuple[float, int], ...], runners: int, completion_s: float
    ) -> None:
        met = waiting(deadline_s=CAUTION * completion_s + 1e-9)
        missed = waiting(deadline_s=CAUTION * completion_s - 0.004)
        assert self.decide(met, queued, running, runners=runners) is None
        refused = self.decide(missed, queued, running, runners=runners)
        assert refused is not None
        assert refused.reason == "deadline"
        assert refused.expected_wait_s == pytest.approx(0.004)

    def test_only_rows_that_run_before_it_delay_a_request(self) -> None:
        queued = [waiting(4), waiting(4)]
        assert self.decide(waiting(deadline_s=0.012, priority=1), queued) is None
        assert self.decide(waiting(deadline_s=0.012, priority=0), queued) is not None

    def test_nothing_measured_refuses_no_deadline(self) -> None:
        assert self.decide(waiting(deadline_s=1e-9), [waiting(4)], ((0.0, 4),), curve=UNKNOWN) is None

    def test_a_deadline_that_is_not_a_number_or_has_passed_is_refused(self) -> None:
        assert self.decide(waiting(deadline_s=math.nan)) is not None
        assert self.decide(waiting(deadline_s=4.0), now_s=5.0) is not None


class TestNextBatch:
    def test_nothing_waiting(self) -> None:
        assert batch_of(WaitingQueue()) == Batch([], [], math.inf)

    def test_what_would_be_answered_too_late_is_not_run(self) -> None:
        late, in_time = waiting(deadline_s=CAUTION * 0.016), waiting(3, deadline_s=CAUTION * 0.0161)
        assert CURVE.seconds(4) == 0.016
        assert batch_of(WaitingQueue([late, in_time]), curve=CURVE) == Batch([in_time], [late], 0.0)

    def test_an_admitted_request_is_held_against_what_runs_before_it_and_itself_alone(self) -> None:
        """Rows of a lower priority and those that came later don't make it late: the batch ends before them."""
        for others in ([waiting() for _ in range(8)], [waiting(3, priority=-1)], [waiting(4, 0.0, 0.099, -1)]):
            hurried = waiting(deadline_s=0.012, priority=0 if others[0].priority else 1)
            assert admit(hurried, WaitingQueue(others), (), 0.0, BatchLimits(4, 100), CURVE) is None
            assert batch_of(WaitingQueue([*others, hurried]), curve=CURVE) == Batch([hurried], [], 0.0)
        hurried, later = waiting(deadline_s=0.012), [waiting(), waiting(deadline_s=0.029)]
        assert batch_of(WaitingQueue([hurried, *later]), curve=CURVE) == Batch([hurried], [], 0.0)

    def test_a_batch_is_filled_as_far_as_nobody_in_it_is_late(self) -> None:
        first, *others = waiting(deadline_s=CAUTION * 0.0141), waiting(), waiting(), waiting()
        assert CURVE.seconds(3) == pytest.approx(0.014)
        assert batch_of(WaitingQueue([first, *others]), curve=CURVE).take == [first, *others[:2]]

    def test_of_one_priority_the_nearest_to_its_deadline_gives_way_where_only_one_can_be_in_time(self) -> None:
        nearest, next_one, patient = waiting(deadline_s=0.012), waiting(deadline_s=0.017), waiting()
        assert batch_of(WaitingQueue([nearest, next_one]), curve=CURVE) == Batch([next_one], [nearest], 0.0)
        batch = batch_of(WaitingQueue([nearest, next_one, patient]), curve=CURVE)
        assert batch == Batch([next_one, patient], [nearest], 0.0)

    def test_nobody_gives_way_to_a_lower_priority_or_to_fewer_rows(self) -> None:
        nearest, lower = waiting(deadline_s=0.012), waiting(deadline_s=0.017, priority=-1)
        assert batch_of(WaitingQueue([nearest, lower]), curve=CURVE) == Batch([nearest], [], 0.0)
        nearest, fewer = waiting(3, deadline_s=CAUTION * 0.0155), waiting(deadline_s=0.019)
        assert batch_of(WaitingQueue([nearest, fewer]), curve=CURVE) == Batch([nearest], [], 0.0)

    def test_takes_what_is_waiting_at_once(self) -> None:
        only = waiting()
        assert batch_of(WaitingQueue([only]), now_s=3.0) == Batch([only], [], 3.0)

    def test_leaves_the_queue_as_it_is(self) -> None:
        queue = WaitingQueue([waiting(3), waiting(3)])
        batch_of(queue)
        assert len(queue) == 2

    def test_counts_rows_not_requests(self) -> None:
        a, b, c, d = waiting(2), waiting(1), waiting(1), waiting(1)
        assert batch_of(WaitingQueue([a, b, c, d])).take == [a, b, c]

    def test_a_request_is_never_split_and_not_overtaken_by_a_smaller_one(self) -> None:
        a, large, small = waiting(2), waiting(3), waiting(1)
        assert batch_of(WaitingQueue([a, large, small])).take == [a]

    def test_a_lower_priority_does_not_fill_up_behind_one_that_did_not_fit(self) -> None:
        a, large, low = waiting(2, priority=1), waiting(3, priority=1), waiting(1)
        assert batch_of(WaitingQueue([low, a, large])).take == [a]

    def test_a_lower_priority_fills_up_a_batch(self) -> None:
        low, high = waiting(2), waiting(2, priority=1)
        assert batch_of(WaitingQueue([low, high])).take == [high, low]

    def test_a_deadline_that_passed_is_expired_and_not_run(self) -> None:
        late, at_the_very_moment, in_time = waiting(deadline_s=0.9), waiting(deadline_s=1.0), waiting(deadline_s=1.1)
        batch = batch_of(WaitingQueue([late, at_the_very_moment, in_time]), now_s=1.0)
        assert batch.expired == [late, at_the_very_moment]
        assert batch.take == [in_time]

    def test_expired_rows_take_no_room(self) -> None:
        late, full = waiting(4, deadline_s=0.5), waiting(4)
        assert batch_of(WaitingQueue([late, full]), now_s=1.0).take == [full]

    def test_the_expired_of_lower_priorities_hear_of_it_though_the_batch_is_full(self) -> None:
        full, late = waiting(4, priority=1), waiting(deadline_s=0.5)
        batch = batch_of(WaitingQueue([late, waiting(), full]), now_s=1.0)
        assert (batch.take, batch.expired) == ([full], [late])

    def test_only_expired_leaves_nothing_to_wait_for(self) -> None:
        late = waiting(deadline_s=0.5)
        assert batch_of(WaitingQueue([late]), now_s=1.0) == Batch([], [late], math.inf)

    def test_looks_only_at_the_front_of_a_long_queue(self) -> None:
        class Counted(WaitingQueue[Waiting]):
            seen = 0

            def levels(self) -> Iterator[Iterator[Waiting]]:
                return (self.counted(level) for level in super().levels())

            def counted(self, level: Iterable[Waiting]) -> Iterator[Waiting]:
                for request in level:
                    self.seen += 1
                    yield request

        queue = Counted(waiting(priority=number % 2) for number in range(10_000))
        assert len(batch_of(queue).take) == 4
        assert queue.seen == 4 + 2


class TestWaitingForCompany:
    limits = BatchLimits(max_batch_rows=4, max_queue_rows=100, max_wait_s=0.5)

    def test_waits_until_the_oldest_has_waited_long_enough(self) -> None:
        oldest, newer = waiting(arrived_s=1.0), waiting(arrived_s=1.2, priority=1)
        queue = WaitingQueue([oldest, newer])
        assert batch_of(queue, 1.3, self.limits) == Batch([], [], 1.5)
        assert batch_of(queue, 1.5, self.limits).take == [newer, oldest]

    @pytest.mark.parametrize("rows", [[4], [2, 2], [3, 2]])
    def test_a_batch_that_can_take_no_more_runs_at_once(self, rows: list[int]) -> None:
        assert batch_of(WaitingQueue([waiting(count, 1.0) for count in rows]), 1.0, self.limits).take

    def test_does_not_wait_where_it_would_make_somebody_late(self) -> None:
        patient, hurried = waiting(arrived_s=1.0), waiting(arrived_s=1.0, deadline_s=1.51)
        assert batch_of(WaitingQueue([patient, hurried]), 1.0, self.limits, UNKNOWN).take == []
        assert batch_of(WaitingQueue([patient, hurried]), 1.0, self.limits, CURVE).take == [patient, hurried]

    def test_does_not_wait_for_so_long_that_it_would_expire_whom_it_waited_with(self) -> None:
        hurried = waiting(arrived_s=1.0, deadline_s=1.5 + CAUTION * 0.010)
        assert batch_of(WaitingQueue([hurried]), 1.0, self.limits, CURVE).take == [hurried]

    def test_the_expired_are_told_while_the_others_wait(self) -> None:
        late, other = waiting(arrived_s=0.0, deadline_s=0.5), waiting(arrived_s=1.0)
        assert batch_of(WaitingQueue([late, other]), 1.0, self.limits) == Batch([], [late], 1.5)


@pytest.mark.parametrize("seed", range(20))
def test_any_queue_drains_whole_in_order_and_within_limits(seed: int) -> None:
    chance = random.Random(seed)
    limits = BatchLimits(chance.randint(1, 12), 10_000, chance.choice([0.0, 0.0, 0.3]), chance.choice([0, 9]))
    queue: WaitingQueue[Waiting] = WaitingQueue()
    everybody: list[Waiting] = []
    ran: list[Waiting] = []
    expired: list[Waiting] = []
    now_s = 0.0
    while len(everybody) < 300 or queue:
        for _ in range(chance.randint(0, 6) if len(everybody) < 300 else 0):
            deadline_s = now_s + chance.uniform(0.0, 3.0) if chance.random() < 0.3 else math.inf
            request = waiting(chance.randint(1, limits.request_rows), now_s, deadline_s, chance.randint(0, 2))
            everybody.append(request)
            queue.add(request)
        batch = next_batch(queue, now_s, limits, UNKNOWN)
        assert sum(request.rows for request in batch.take) <= limits.max_batch_rows or len(batch.take) == 1
        assert all(request.deadline_s > now_s for request in batch.take)
        assert all(request.deadline_s <= now_s for request in batch.expired)
        if queue and not batch.take and not batch.expired:
            assert now_s < batch.wait_until_s <= min(request.arrived_s for request in queue) + limits.max_wait_s
        in_time = [request for request in queue if request.deadline_s > now_s]
        assert batch.take == in_time[: len(batch.take)], "nobody in time is passed over"
        for request in [*batch.take, *batch.expired]:
            assert queue.discard(request)
        ran += batch.take
        expired += batch.expired
        now_s += chance.uniform(0.0, 0.5)
    assert len(ran) + len(expired) == len(everybody) == len({id(request) for request in [*ran, *expired]})
    for priority in range(3):
        arrivals = [request.arrived_s for request in ran if request.priority == priority]
        assert arrivals == sorted(arrivals), "within a priority the order is that of arrival"


@pytest.mark.parametrize("deadline_batches", [1.5, 3.0])
@pytest.mark.parametrize("load", [1.2, 5.0])
def test_an_overloaded_runner_goes_on_answering_in_large_batches(load: float, deadline_batches: float) -> None:
    """Were batches cut short for whoever is nearest to a deadline, a quarter of what can be answered would be."""
    curve, limits, chance = LatencyCurve(((1, 0.004), (32, 0.010))), BatchLimits(), random.Random(1)
    queue: WaitingQueue[Waiting] = WaitingQueue()
    now_s = arrival_s = 0.0
    running: tuple[tuple[float, int], ...] = ()
    in_time = 0
    while now_s < 0.5:
        run_s = 0.0
        batch = next_batch(queue, now_s, limits, curve)
        for request in [*batch.take, *batch.expired]:
            queue.discard(request)
        if batch.take:
            rows = sum(request.rows for request in batch.take)
            run_s = curve.seconds(rows) * chance.uniform(0.95, 1.15)
            running = ((now_s, rows),)
            in_time += sum(now_s + run_s <= request.deadline_s for request in batch.take)
        end_s = max(now_s + run_s, arrival_s if not batch.take else 0.0)
        while arrival_s <= end_s:
            request = waiting(1, arrival_s, arrival_s + deadline_batches * 0.010)
            if admit(request, queue, running, arrival_s, limits, curve) is None:
                queue.add(request)
            arrival_s += chance.expovariate(load * 3200)
        now_s, running = end_s, ()
    assert in_time > 0.6 * 3200 * 0.5
