"""The search: it finds the fastest of a world whose times are known, spends little on the slow, keeps to its bounds."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence

import pytest

from trueport.pipeline.tuning.search import FIRST_S, Contest, Search, Timing
from trueport.pipeline.tuning.space import Arm, Candidate, candidates, thread_counts
from trueport.runtime.manifest import Bounds, Precision, Variant
from trueport.runtime.percentiles import samples_needed
from trueport.runtime.runner import RunnerOptions
from trueport.runtime.runners import RUNNERS, RunnerKind

BATCHES = (1, 2, 4, 8, 16, 32)
Ms = Callable[[int], float]


def candidate(name: str, threads: int = 1) -> Candidate:
    return Candidate(variant=name, runner="onnxruntime:cpu", options=RunnerOptions(threads=threads))


def linear(fixed_ms: float, per_row_ms: float) -> Ms:
    return lambda batch: fixed_ms + per_row_ms * batch


class World:
    """Candidates whose times are known. spread: half an interval's width, as a share."""

    def __init__(self, times: Mapping[str, Ms], *, spread: float = 0.02, seconds: float = 1e6) -> None:
        self.times = {candidate(name): ms for name, ms in times.items()}
        self.candidates = list(self.times)
        self.spread, self.left_s = spread, seconds
        self.asked: list[tuple[str, list[Arm], float]] = []
        self.contests: list[tuple[Arm, Arm]] = []
        self.drops: dict[str, float] = {}
        self.broken: dict[Arm, str] = {}
        self.lucky: dict[Arm, float] = {}
        """Factors on what is measured, which a contest does not see."""
        self.p99_over_median = 1.5
        self.search = Search(BATCHES, self.measure, self.contest, self.drop, lambda: self.left_s)

    def drop(self, one: Candidate) -> float:
        return self.drops.get(one.variant, 0.0)

    def measure(self, arms: Sequence[Arm], seconds: float, what: str) -> Mapping[Arm, Timing | str]:
        self.asked.append((what, list(arms), seconds))
        answers: dict[Arm, Timing | str] = {}
        for arm in arms:
            if self.left_s <= 0:
                break
            self.left_s -= seconds
            answers[arm] = self.broken.get(arm) or self.timing(arm, seconds)
        return answers

    def timing(self, arm: Arm, seconds: float) -> Timing:
        ms = self.times[arm.candidate](arm.batch) * self.lucky.get(arm, 1.0)
        calls = int(seconds * 1e3 / ms) + 1
        return Timing(
            rows=arm.batch,
            calls=calls,
            ms=ms,
            low_ms=ms * (1 - self.spread),
            high_ms=ms * (1 + self.spread),
            p99_ms=ms * self.p99_over_median if calls >= samples_needed(0.99) else None,
        )

    def contest(self, a: Arm, b: Arm, needed: bool) -> Contest | None:
        if self.left_s <= 0 and not needed:
            return None
        self.contests.append((a, b))
        speed = {arm: arm.batch / self.times[arm.candidate](arm.batch) for arm in (a, b)}
        ratio = speed[b] / speed[a]
        decided = abs(ratio - 1) > 0.03
        return Contest(a=a, b=b, ratio=ratio, low=ratio * 0.98, high=ratio * 1.02, decided=decided)

    def run(self, p99_ms: float | None = None, default: str | None = None):  # type: ignore[no-untyped-def]
        found = self.search.run(self.candidates, p99_ms, candidate(default) if default else None)
        assert found
        return found

    def seconds_of(self, name: str) -> float:
        return sum(seconds * sum(arm.candidate.variant == name for arm in arms) for _, arms, seconds in self.asked)


def test_each_goal_gets_its_own_best() -> None:
    world = World({"wide": linear(5, 0.1), "quick": linear(0.1, 1), "middle": linear(2, 0.5), "slow": linear(9, 9)})
    found = world.run()
    assert (found.throughput.candidate.variant, found.throughput.batch) == ("wide", 32)
    assert (found.latency.candidate.variant, found.latency.batch) == ("quick", 1)
    assert found.bounded is None


def test_finalists_that_lose_in_turns_are_told_how() -> None:
    world = World({"best": linear(1, 0.500), "lucky": linear(1, 0.505), "third": linear(1, 0.507)})
    world.lucky = {Arm(candidate=candidate("lucky"), batch=32): 0.97}
    assert world.run().throughput.candidate.variant == "best"
    assert world.search.lost == {
        candidate("lucky"): f"0.99x {candidate('best')}, batch 32 in turns (0.97 to 1.01)",
        candidate("third"): f"0.99x {candidate('best')}, batch 32 in turns (0.97 to 1.01)",
    }


def test_whom_the_default_beats_is_told_so() -> None:
    world = World({"default": linear(1, 0.480), "best": linear(1, 0.500), "x": linear(1, 0.505)})
    world.lucky = {Arm(candidate=candidate("default"), batch=batch): 1.3 for batch in BATCHES}
    assert world.run(default="default").throughput.candidate.variant == "default"
    assert world.search.lost[candidate("best")].startswith(f"0.96x {candidate('default')}, batch 32 in turns")


def test_what_is_hopeless_costs_the_first_look_alone() -> None:
    times = {f"good {number}": linear(1, 0.5 + number / 1000) for number in range(3)}
    world = World(times | {f"hopeless {number}": linear(10, 5) for number in range(5)})
    world.run()
    for number in range(5):
        assert world.seconds_of(f"hopeless {number}") == pytest.approx(2 * FIRST_S)
        assert world.search.reached[candidate(f"hopeless {number}")] == "the first look"
    assert world.seconds_of("good 0") > 10 * FIRST_S


def test_later_rounds_have_fewer_arms_and_more_time() -> None:
    world = World({f"c{number}": linear(1, 0.5 + 0.05 * number) for number in range(12)}, spread=0.001)
    world.run()
    rounds = [(len(arms), seconds) for what, arms, seconds in world.asked if what.startswith("round")]
    assert [seconds for _, seconds in rounds] == [2 * FIRST_S, 4 * FIRST_S, 8 * FIRST_S]
    counts = [count for count, _ in rounds]
    assert counts == sorted(counts, reverse=True)
    assert counts[-1] < counts[0]


def test_what_can_not_be_told_from_the_leader_stays() -> None:
    times = {f"c{number}": linear(1, 1 + 0.001 * number) for number in range(10)}
    noisy, precise = World(times, spread=0.2), World(times, spread=0.0001)
    noisy.run()
    precise.run()
    last = [next(arms for what, arms, _ in world.asked if what == "round 3") for world in (noisy, precise)]
    names = [{arm.candidate.variant for arm in arms} for arms in last]
    assert len(names[0]) == 10
    assert len(names[1]) < 10


def test_the_last_contest_decides_not_a_lucky_measurement() -> None:
    world = World({"truly": linear(1, 0.5), "lucky": linear(1, 0.6)})
    world.lucky = {Arm(candidate=candidate("lucky"), batch=batch): 0.8 for batch in BATCHES}
    found = world.run()
    assert found.throughput.candidate.variant == "truly"
    assert found.latency.candidate.variant == "truly"


def test_finalists_are_different_candidates() -> None:
    world = World({"a": linear(0.001, 0.5), "b": linear(0.001, 0.52)})
    world.run()
    assert all(a.candidate != b.candidate for a, b in world.contests)


def test_of_equally_fast_ones_the_more_accurate_is_taken() -> None:
    world = World({"loses": linear(1, 0.5), "keeps": linear(1, 0.505)})
    world.drops = {"loses": 0.4}
    assert world.run().throughput.candidate.variant == "keeps"
    world = World({"loses": linear(1, 0.5), "keeps": linear(1, 0.7)})
    world.drops = {"loses": 0.4}
    assert world.run().throughput.candidate.variant == "loses"


def test_the_default_is_kept_unless_it_is_beaten() -> None:
    world = World({"default": linear(1, 0.5), "lucky": linear(1, 0.6)})
    world.lucky = {Arm(candidate=candidate("default"), batch=batch): 9 for batch in BATCHES}
    assert world.run(default="default").throughput.candidate.variant == "default"
    assert world.search.against_default is None
    world = World({"default": linear(1, 0.5), "faster": linear(1, 0.25)})
    found = world.run(default="default")
    assert found.throughput.candidate.variant == "faster"
    met = world.search.against_default
    assert met
    assert (met.a.candidate.variant, met.a.batch) == ("default", found.throughput.batch)
    assert met.ratio == pytest.approx(world.times[met.a.candidate](32) / world.times[met.b.candidate](32))


def test_a_default_that_is_no_candidate_is_only_compared_with() -> None:
    world = World({"only": linear(1, 0.6)})
    world.times[candidate("default")] = linear(1, 0.5)
    found = world.search.run([candidate("only")], None, candidate("default"))
    assert found
    assert found.throughput.candidate.variant == "only"
    assert world.search.against_default
    assert world.search.against_default.ratio < 1


def test_a_batch_that_fails_leaves_the_smaller_ones_in() -> None:
    world = World({"fits": linear(1, 0.6), "small": linear(1, 0.5)})
    world.broken = {Arm(candidate=candidate("small"), batch=batch): "out of memory" for batch in (8, 16, 32)}
    found = world.run()
    assert (found.throughput.candidate.variant, found.throughput.batch) == ("fits", 32)
    assert (found.latency.candidate.variant, found.latency.batch) == ("small", 1)
    assert world.search.failed == {Arm(candidate=candidate("small"), batch=8): "out of memory"}
    assert [arm.batch for arm in world.search.timings if arm.candidate == candidate("small")] == [1, 2, 4]


def test_what_can_not_run_at_all_is_out() -> None:
    world = World({"works": linear(1, 0.6), "broken": linear(1, 0.5)})
    world.broken = {Arm(candidate=candidate("broken"), batch=batch): "no kernel" for batch in BATCHES}
    assert {arm.candidate.variant for arm in world.run()[:2]} == {"works"}
    world = World({"broken": linear(1, 0.5)})
    world.broken = {Arm(candidate=candidate("broken"), batch=batch): "no kernel" for batch in BATCHES}
    assert world.search.run(list(world.times)) is None


def test_the_curve_of_each_winner_has_every_batch() -> None:
    world = World({"wide": linear(50, 0.1), "quick": linear(0.1, 50)})
    found = world.run()
    for arm in (found.throughput, found.latency):
        known = [known.batch for known in world.search.timings if known.candidate == arm.candidate]
        assert sorted(known) == list(BATCHES)


# A bound


def test_below_a_bound_the_largest_batch_that_meets_it() -> None:
    world = World({"wide": linear(5, 0.1), "quick": linear(0.1, 1)})
    found = world.run(p99_ms=9.0)
    assert found.bounded
    timing = world.search.timings[found.bounded]
    assert timing.p99_ms is not None
    assert timing.p99_ms <= 9.0
    # 5 + 0.1 * 8 ms are a p99 of 8.7 ms; 16 rows of it take 9.9 ms, 4 rows of the other 6.2 ms.
    assert (found.bounded.candidate.variant, found.bounded.batch) == ("wide", 8)
    assert found.throughput.batch == 32


def test_a_bound_that_nothing_meets_tells_the_best_that_was_reached() -> None:
    world = World({"a": linear(5, 0.1), "b": linear(6, 0.1)})
    assert world.run(p99_ms=2.0).bounded is None
    (note,) = world.search.notes
    assert note == "nothing was shown to have a p99 below 2 ms: the best that was reached is 7.65 ms"


def test_without_the_time_for_enough_calls_it_says_how_long_they_take() -> None:
    world = World({"a": linear(1000, 100)}, seconds=60)
    assert world.run(p99_ms=1e5).bounded is None
    assert f"{samples_needed(0.99)} calls of a on onnxruntime:cpu, 1 thread, batch 1, take" in world.search.notes[0]
    assert world.search.notes[0].endswith(" take 837 s; give more --minutes")
    assert "none could be measured" in world.search.notes[-1]


# Time


def test_when_the_time_is_over_the_best_so_far_is_taken() -> None:
    times = {f"c{number}": linear(1, 1 - 0.01 * number) for number in range(8)}
    world = World(times, seconds=16 * FIRST_S + 6 * FIRST_S)
    found = world.run()
    assert found.throughput.candidate.variant == "c7"
    assert not any(what.startswith("round") for what, _, _ in world.asked)
    assert not world.contests


def test_the_default_is_compared_with_even_when_the_time_is_over() -> None:
    world = World({"default": linear(1, 0.5), "faster": linear(1, 0.25)}, seconds=4 * FIRST_S)
    assert world.run(default="default").throughput.candidate.variant == "faster"
    assert world.search.against_default


def test_without_time_for_anything_there_is_no_winner() -> None:
    world = World({"a": linear(1, 1)}, seconds=0)
    assert world.search.run(list(world.times)) is None
    assert world.search.run([]) is None


# Spinning


def spinning_world(resting: Ms, spinning: Ms) -> tuple[World, Candidate, Candidate]:
    """The fastest of two, and the same with threads that spin."""
    fast, slow = candidate("fast", threads=2), candidate("slow", threads=2)
    world = World({})
    assert fast.spun
    world.times = {fast: resting, slow: linear(2, 2), fast.spun: spinning}
    world.candidates = [fast, slow]
    return world, fast, fast.spun


def test_of_the_winners_alone_it_is_tried_whether_threads_spin() -> None:
    world, fast, spun = spinning_world(linear(1, 0.5), linear(1, 0.4))
    found = world.run()
    assert found.spun == {
        Arm(candidate=fast, batch=32): Arm(candidate=spun, batch=32),
        Arm(candidate=fast, batch=1): Arm(candidate=spun, batch=1),
    }
    assert (found.throughput.candidate, found.latency.candidate) == (fast, fast)
    assert found.taken(found.throughput) == Arm(candidate=spun, batch=32)
    assert sorted(arm.batch for arm in world.search.timings if arm.candidate == spun) == list(BATCHES)


@pytest.mark.parametrize(("nearest", "taken"), [(linear(1.3, 1), True), (linear(3, 1), False)])
def test_where_the_winner_can_not_spin_the_nearest_to_it_that_can_is_tried(nearest: Ms, taken: bool) -> None:
    winner = Candidate(variant="best", runner="openvino:cpu", options=RunnerOptions(threads=2))
    near, far = candidate("near", threads=2), candidate("far", threads=2)
    assert near.spun
    assert far.spun
    world = World({})
    world.times = {
        winner: linear(1, 0.5),
        near: nearest,
        far: linear(9, 9),
        near.spun: linear(0.9, 0.5),
        far.spun: linear(0, 0.1),
    }
    world.candidates = [winner, near, far]
    found = world.run()
    assert (found.throughput.candidate, found.latency.candidate) == (winner, winner)
    soonest = Arm(candidate=winner, batch=1)
    assert found.spun.get(soonest) == (Arm(candidate=near.spun, batch=1) if taken else None)
    assert far.spun not in world.search.reached


@pytest.mark.parametrize("spinning", [linear(1, 0.49), linear(1, 0.6)])
def test_what_is_not_faster_beyond_doubt_does_not_spin(spinning: Ms) -> None:
    world, fast, _ = spinning_world(linear(1, 0.5), spinning)
    found = world.run()
    assert found.spun == {}
    assert found.taken(found.throughput) == Arm(candidate=fast, batch=32)


def test_the_default_is_compared_with_what_is_taken() -> None:
    world, fast, spun = spinning_world(linear(1, 0.5), linear(1, 0.25))
    found = world.search.run(world.candidates, None, fast)
    assert found
    assert found.throughput.candidate == fast
    met = world.search.against_default
    assert met
    assert (met.a.candidate, met.b.candidate) == (fast, spun)
    assert world.search.notes == []


def test_below_a_bound_threads_spin_only_where_that_is_shown_to_be_below_it_too() -> None:
    world, fast, spun = spinning_world(linear(1, 0.5), linear(1, 0.4))
    found = world.run(p99_ms=8.0)
    assert found.bounded
    assert found.spun[found.bounded].candidate == spun
    world, fast, spun = spinning_world(linear(1, 0.5), linear(1, 0.4))
    world.lucky = {Arm(candidate=spun, batch=batch): 9 for batch in BATCHES}  # calls alone, which a contest has not
    found = world.run(p99_ms=8.0)
    assert found.bounded == Arm(candidate=fast, batch=8)
    assert found.bounded not in found.spun
    assert found.throughput in found.spun


def test_without_time_no_thread_spins() -> None:
    world, _, _ = spinning_world(linear(1, 0.5), linear(1, 0.25))
    world.left_s = 4 * FIRST_S
    assert world.run().spun == {}


def test_what_has_no_threads_to_spin_is_not_tried() -> None:
    assert candidate("a", threads=1).spun is None
    spun = candidate("a", threads=2).spun
    assert spun
    assert spun.spun is None
    assert str(spun) == "a on onnxruntime:cpu, 2 threads, spinning"
    assert Candidate(variant="a", runner="openvino:cpu", options=RunnerOptions(threads=2)).spun is None


# The space


def variant(name: str, precision: Precision, target: str = "any") -> Variant:
    bounds = Bounds(max_abs=1.0, rms=1.0, noise_max_abs=0.1, noise_rms=0.1, noise_from=())
    return Variant(
        name=name, format="onnx", precision=precision, reached={}, target=target, file=name, bounds=bounds  # type: ignore[arg-type]
    )  # fmt: skip


@pytest.mark.parametrize(("cores", "counts"), [(1, [1]), (2, [2, 1]), (6, [6, 3, 1]), (8, [8, 4, 2, 1])])
def test_threads_are_halved_down_to_one(cores: int, counts: list[int]) -> None:
    assert thread_counts(cores) == counts


def test_variants_meet_the_runners_that_they_were_made_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(RUNNERS, "openvino:cpu", RunnerKind("openvino", "cpu", "OpenVINO"))
    variants = [variant("fp32", "fp32"), variant("int8-cpu", "int8", "cpu"), variant("int8-gpu", "int8", "gpu")]
    names = ["onnxruntime:cpu", "onnxruntime:cuda", "openvino:cpu"]
    found = candidates(variants, names, 2, ("avx2",))
    pairs = Counter((one.variant, one.runner) for one in found)
    assert pairs == {
        ("fp32", "onnxruntime:cpu"): 4,
        ("fp32", "onnxruntime:cuda"): 1,
        ("fp32", "openvino:cpu"): 2,
        ("int8-cpu", "onnxruntime:cpu"): 4,
        ("int8-cpu", "openvino:cpu"): 2,
        ("int8-gpu", "onnxruntime:cuda"): 1,
    }
    assert len(set(found)) == len(found)
    assert next(one.variant for one in found if one.runner.endswith(":cpu")) == "int8-cpu"
    mixed = candidates(variants, names, 2, ("amx_bf16",))
    types = Counter(
        one.options.float_type for one in mixed if (one.variant, one.runner) == ("int8-cpu", "openvino:cpu")
    )
    assert types == {"fp32": 2, "bf16": 2}


def test_numerics_are_all_but_threads_and_how_they_wait() -> None:
    assert candidate("a", 1).numerics == candidate("a", 2).numerics
    spun = candidate("a", 2).spun
    assert spun
    assert spun.numerics == candidate("a", 2).numerics
    extended = Candidate(variant="a", runner="onnxruntime:cpu", options=RunnerOptions(graph_level="extended"))
    assert extended.numerics != candidate("a").numerics
