"""Single-stream, offline and server: a session under load, after MLPerf inference's definitions.

single: the next query when the last is answered; the 90th percentile of latency. offline: all samples are there at
once; images a second. server: queries of one picture arrive by a Poisson process; the highest rate at which the 99th
percentile of latency, counted from when a query was due, is within a bound. Percentiles are LoadGen's early-stopping
estimates: limits that hold with 99 % confidence. Runs are shorter than MLPerf's 600 s, and no results of MLPerf.
https://github.com/mlcommons/inference_policies/blob/master/inference_rules.adoc, "Scenarios"
"""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Callable, Sequence
from concurrent.futures import wait
from functools import partial
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from trueport.runtime.errors import OverloadedError, StuckError, UsageError, unknown_name
from trueport.runtime.percentiles import allowed_over, percentile_bound, samples_needed
from trueport.runtime.session import Session
from trueport.runtime.timing import LatencySummary, Samples, check_seconds, no_collector, timed

from .console import Table

SCENARIOS = ("single", "offline", "server")
P99_MS = 15.0
"""Bound of the server scenario where none is given; MLPerf's for ResNet-50."""
SINGLE, SERVER = 0.90, 0.99
"""Percentiles of the scenarios."""
TRIALS = 8
CLOSE = 1.03
"""The search ends when the lowest rate that failed is at most so many times the highest that did not."""
CONFIRMED = 3
"""Rates that are tried again, from the highest on: the one that the search ends with was in part lucky."""
HEAD_START_S = 0.01
SLEEP_S = 0.0002
"""Shorter waits are not slept: waking up takes about as long."""
ANSWER_S = 60.0
POOL = 64
"""Batches of the offline scenario, over and over: few enough to fit in memory, too many for a cache."""


class SingleStream(msgspec.Struct, frozen=True, kw_only=True):
    """One query after the other, of one picture each."""

    latency: LatencySummary
    p90_ms: float | None
    """Below this with 99 % confidence; None where queries are too few."""


class Offline(msgspec.Struct, frozen=True, kw_only=True):
    """All samples at once."""

    samples: int
    batch: int
    """Rows in each run, as the session chooses."""
    seconds: float
    images_per_s: float


class Trial(msgspec.Struct, frozen=True, kw_only=True):
    """Queries that arrived at one rate."""

    rate: float
    """Queries a second, of the Poisson process."""
    queries: int
    """That were sent; fewer than planned where it was soon clear that too many are late."""
    refused: int
    """By a full queue; they count as late."""
    late: int
    """Beyond the bound; 0 where there is none."""
    p99_ms: float | None
    """Below this with 99 % confidence; None where queries are too few or too many were refused."""
    met: bool | None
    """Whether the percentile is within the bound; None where queries are too few, or there is no bound."""


class Server(msgspec.Struct, frozen=True, kw_only=True):
    """Poisson arrivals."""

    bound_ms: float | None
    rate: float | None
    """Highest rate that met the bound, and where it was searched for met it again with other arrivals; None where none
    did."""
    trials: tuple[Trial, ...]
    untold: str = ""
    """Why there is no answer; empty where there is one."""


class Scenarios(msgspec.Struct, frozen=True, kw_only=True):
    """Those that were asked for; the others are None."""

    single: SingleStream | None = None
    offline: Offline | None = None
    server: Server | None = None


def check_scenarios(names: Sequence[str], p99_ms: float | None, rate: float | None) -> None:
    """Raise UsageError for what can't be run."""
    for name in names:
        if name not in SCENARIOS:
            raise unknown_name("scenario", name, SCENARIOS)
    for option, value in (("p99_ms", p99_ms), ("rate", rate)):
        if value is not None and not 0 < value < math.inf:
            raise UsageError(f"{option} must be a number above 0, found {value}")
        if value is not None and "server" not in names:
            raise UsageError(f"{option} is of the server scenario: ask for it too, or leave {option} out")


def run_scenarios(
    session: Session,
    images: NDArray[np.uint8],
    names: Sequence[str],
    *,
    seconds: float,
    p99_ms: float | None = None,
    rate: float | None = None,
    seed: int = 0,
    progress: Callable[[str], None] = lambda _: None,
) -> Scenarios:
    """Put a session under load. images: prepared pictures (N, H, W, C).

    seconds: for each scenario, and for each trial of the server's. p99_ms: the server's bound. rate: the one rate that
    is tried; None: the highest that meets the bound is looked for. Raises UsageError for a bad argument.
    """
    check_scenarios(names, p99_ms, rate)
    check_seconds(seconds)
    single = offline = server = None
    with no_collector():
        if "single" in names:
            progress("single-stream")
            single = single_stream(session, images, seconds, seed)
        if "offline" in names or ("server" in names and rate is None):
            progress("offline")
            offline = all_at_once(session, images, seconds)
        if "server" in names:
            bound_ms = p99_ms if p99_ms or rate else P99_MS
            server = served(session, images, seconds, bound_ms, rate, offline, seed, progress)
    return Scenarios(single=single, offline=offline if "offline" in names else None, server=server)


def single_stream(session: Session, images: NDArray[np.uint8], seconds: float, seed: int = 0) -> SingleStream:
    """Pictures in a random order, with replacement."""
    picks = np.random.default_rng(seed).integers(0, len(images), 4096)
    rows = itertools.cycle([images[pick : pick + 1] for pick in picks])

    def query() -> None:
        session.run(next(rows))

    timed(query, seconds / 10, time.perf_counter_ns)
    durations = timed(query, seconds, time.perf_counter_ns)
    return SingleStream(latency=Samples(durations, 1).summary(), p90_ms=_ms(percentile_bound(durations, SINGLE)))


def all_at_once(session: Session, images: NDArray[np.uint8], seconds: float) -> Offline:
    """As many samples as take about the seconds given, in the session's largest batches."""
    batch = session.batcher.limits.max_batch_rows
    order = np.arange(min(POOL * batch, len(images) * batch)) % len(images)
    batches = [images[order[start : start + batch]] for start in range(0, len(order), batch)]
    speed = timed(lambda: session.run(batches[0]), seconds / 10, time.perf_counter_ns)
    runs = max(1, math.ceil(seconds / float(np.median(speed))))
    begun = time.perf_counter()
    for number in range(runs):
        session.run(batches[number % len(batches)])
    took = time.perf_counter() - begun
    return Offline(samples=runs * batch, batch=batch, seconds=took, images_per_s=runs * batch / took)


def served(
    session: Session,
    images: NDArray[np.uint8],
    seconds: float,
    bound_ms: float | None,
    rate: float | None,
    offline: Offline | None,
    seed: int,
    progress: Callable[[str], None],
) -> Server:
    """One rate, or the highest that meets the bound."""
    seeds = itertools.count(seed)

    def tried(at: float) -> Trial:
        progress(f"server, {at:,.0f} queries/s")
        return poisson_trial(session, images, at, seconds, bound_ms, next(seeds))

    if rate is not None:
        trial = tried(rate)
        few = trial.p99_ms is None and not trial.refused and not trial.late
        return Server(
            bound_ms=bound_ms,
            rate=rate if trial.met else None,
            trials=(trial,),
            untold=too_few(rate, seconds) if few else "",
        )
    ceiling = offline.images_per_s if offline else math.inf
    lowest = samples_needed(SERVER) / seconds * 1.1  # arrivals are random: a tenth more than are needed
    if lowest >= ceiling:
        return Server(bound_ms=bound_ms, rate=None, trials=(), untold=too_few(ceiling / 2, seconds))
    trials = highest_rate(tried, lowest, ceiling)
    again = confirmed(tried, trials)
    found = again[-1].rate if again and again[-1].met else None
    untold = f"no rate from {lowest:,.0f} queries/s on meets it; lower ones need more --seconds to tell"
    if again:
        untold = f"of {len(again)} rates that met it once none met it again: give more --seconds"
    return Server(bound_ms=bound_ms, rate=found, trials=(*trials, *again), untold="" if found else untold)


def highest_rate(tried: Callable[[float], Trial], lowest: float, ceiling: float) -> list[Trial]:
    """Bisect between a rate that may meet the bound and one that can't; each trial that was made."""
    met, unmet = lowest, ceiling
    trials: list[Trial] = []
    while len(trials) < TRIALS and unmet / met > CLOSE:
        trial = tried(math.sqrt(met * unmet))
        trials.append(trial)
        if trial.met:
            met = trial.rate
        else:
            unmet = trial.rate
    return trials


def confirmed(tried: Callable[[float], Trial], trials: Sequence[Trial]) -> list[Trial]:
    """The rates that met the bound tried again, the highest first, until one meets it."""
    again: list[Trial] = []
    for rate in sorted((trial.rate for trial in trials if trial.met), reverse=True)[:CONFIRMED]:
        again.append(tried(rate))
        if again[-1].met:
            break
    return again


def poisson_trial(
    session: Session, images: NDArray[np.uint8], rate: float, seconds: float, bound_ms: float | None, seed: int = 0
) -> Trial:
    """Send queries of one picture at a rate and wait for their answers. Raises what an answer holds as its error."""
    count = max(1, round(rate * seconds))
    random = np.random.default_rng(seed)
    due_s = np.cumsum(random.exponential(1 / rate, count))
    picks = random.integers(0, len(images), count)
    answered_s = np.full(count, math.inf)
    bound_s = math.inf if bound_ms is None else bound_ms / 1e3
    allowed = allowed_over(SERVER, count)
    late: list[int] = []
    begin = time.perf_counter() + HEAD_START_S

    def answered(number: int, _: Any) -> None:
        answered_s[number] = time.perf_counter() - begin
        if answered_s[number] - due_s[number] > bound_s:
            late.append(number)

    futures, refused = [], 0
    for number, pick in enumerate(picks):
        if (left := begin + due_s[number] - time.perf_counter()) > SLEEP_S:
            time.sleep(left - SLEEP_S / 2)
        try:
            future = session.batcher.submit(images[pick : pick + 1])
        except OverloadedError:
            refused += 1
            late.append(number)
        else:
            future.add_done_callback(partial(answered, number))
            futures.append(future)
        if bound_ms is not None and allowed is not None and len(late) > allowed:
            break
    if wait(futures, timeout=ANSWER_S).not_done:
        raise StuckError(f"queries at {rate:,.0f} a second are not answered {ANSWER_S:g} s after the last was sent")
    for future in futures:
        future.result()
    latencies = (answered_s - due_s)[: number + 1]
    return trial_of(latencies, rate, count, refused, bound_s)


def trial_of(latencies_s: NDArray[np.float64], rate: float, planned: int, refused: int, bound_s: float) -> Trial:
    """What the latencies say; infinite where a query was refused."""
    late = int((latencies_s > bound_s).sum()) if bound_s < math.inf else 0
    allowed = allowed_over(SERVER, planned)
    p99 = percentile_bound(latencies_s, SERVER)
    met = None if allowed is None or bound_s == math.inf else late <= allowed
    return Trial(
        rate=rate,
        queries=latencies_s.size,
        refused=refused,
        late=late,
        p99_ms=_ms(p99) if p99 is not None and p99 < math.inf else None,
        met=met,
    )


def too_few(rate: float, seconds: float) -> str:
    """How long a trial would have to be."""
    needed = samples_needed(SERVER)
    return (
        f"a 99th percentile needs {needed} queries, {seconds:g} s at {rate:,.3g} queries/s bring about "
        f"{rate * seconds:,.0f}: --seconds {math.ceil(1.1 * needed / rate)} bring enough"
    )


def scenario_table(found: Scenarios, title: str) -> Table:
    """The scenarios as text."""
    rows = []
    if found.single:
        count, p90 = found.single.latency.count, found.single.p90_ms
        value = f"p90 {p90:.3g} ms" if p90 is not None else f"p90 needs {samples_needed(SINGLE, 0)} queries"
        rows.append(("single", f"{count:,} queries, one after the other", value))
    if found.offline:
        offline = found.offline
        rows.append(
            (
                "offline",
                f"{offline.samples:,} samples, batches of {offline.batch}",
                f"{offline.images_per_s:,.0f} images/s",
            )
        )
    if found.server:
        rows.append(("server", _load(found.server), _answer(found.server)))
    notes = [found.server.untold] if found.server and found.server.untold else []
    notes.append("percentiles are limits that hold with 99 % confidence (MLPerf LoadGen's early stopping)")
    return Table(title=title, columns=("scenario", "load", "result"), rows=tuple(rows), notes=tuple(notes))


def _load(server: Server) -> str:
    if len(server.trials) == 1:
        trial = server.trials[0]
        return f"{trial.queries:,} queries at {trial.rate:,.0f} a second, {trial.late:,} late"
    return f"{len(server.trials)} rates tried, Poisson arrivals"


def _answer(server: Server) -> str:
    bound = "" if server.bound_ms is None else f"p99 within {server.bound_ms:g} ms"
    if len(server.trials) != 1:
        return f"{server.rate:,.0f} queries/s, {bound}" if server.rate else f"no rate found, {bound}"
    trial = server.trials[0]
    if trial.p99_ms is None:
        said = [f"{trial.refused:,} refused by a full queue"] if trial.refused else []
    else:
        said = [f"p99 {trial.p99_ms:.3g} ms"]
    if trial.met is not None:
        said.append(bound if trial.met else f"not {bound}")
    return ", ".join(said) or "p99 not told"


def _ms(seconds: float | None) -> float | None:
    return None if seconds is None else seconds * 1e3
