"""How often the latency gate cries wolf, and how often it finds a port that got 10 % slower: `make bench-regressions`.

Each repetition is what two CI jobs do: a process makes a baseline, later ones are held against it; one of these opens
the port as it is, another one with a slowdown planted into it. Rates come with Clopper and Pearson's exact intervals.
Nothing here passes or fails.
"""

from __future__ import annotations

import argparse
import math
import multiprocessing
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import NamedTuple

from trueport.pipeline.baseline import judge, measured_baseline, read_baseline, write_baseline, yardstick_graph
from trueport.pipeline.bench import port_subject, tiled
from trueport.runtime.bundle import Bundle
from trueport.runtime.runner import Array, Runner, RunnerOptions, RunnerReport
from trueport.runtime.runners import DEFAULT, open_runner
from trueport.runtime.verdict import Verdict


class Job(NamedTuple):
    """What every process of a repetition is given."""

    bundle: Path
    file: Path
    """Of the baseline."""
    batches: tuple[int, ...]
    threads: int
    seconds: float


class Slowed:
    """A runner that takes a share longer: it spins after each call, or answers some calls twice."""

    def __init__(self, runner: Runner, share: float, kind: str) -> None:
        self._runner, self._share, self._kind = runner, share, kind
        self._debt = 0.0
        self.inputs, self.outputs = runner.inputs, runner.outputs

    def run(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        """The runner's answer, later."""
        begun = time.perf_counter()
        answer = self._runner.run(feeds)
        if self._kind == "repeat":
            self._debt += self._share
            if self._debt >= 1:
                self._debt -= 1
                self._runner.run(feeds)
        else:
            ended = time.perf_counter()
            while time.perf_counter() < ended + self._share * (ended - begun):
                pass
        return answer

    def report(self) -> RunnerReport:
        """Of the runner."""
        return self._runner.report()

    def close(self) -> None:
        """The runner's."""
        self._runner.close()


def make(job: Job) -> float:
    """Measure and write the baseline; its seconds."""
    begun = time.perf_counter()
    bundle = Bundle.open(job.bundle)
    with_port = port_of(bundle, job)
    port = with_port()
    subject = port_subject(bundle, None, port.report())
    port.close()
    graph = bundle.read(bundle.variant(None).file)
    ratios = measured_baseline(with_port, graph, feeds_of(bundle, job), job.threads, job.seconds, lambda _: None)
    write_baseline(job.file, subject, graph, ratios)
    return time.perf_counter() - begun


def hold(job: Job, slowdown: float, kind: str) -> tuple[tuple[Verdict, ...], float]:
    """The verdicts of a later process, and its seconds."""
    begun = time.perf_counter()
    bundle, baseline = Bundle.open(job.bundle), read_baseline(job.file)
    plain = port_of(bundle, job)

    def planted() -> Runner:
        return Slowed(plain(), slowdown, kind)

    open_port: Callable[[], Runner] = planted if slowdown else plain
    feeds = feeds_of(bundle, job)
    verdicts = judge(baseline, yardstick_graph(baseline, job.file), open_port, feeds, job.seconds, lambda _: None)
    return verdicts, time.perf_counter() - begun


def port_of(bundle: Bundle, job: Job) -> Callable[[], Runner]:
    """Opens the bundle's first variant."""
    return lambda: open_runner(bundle, DEFAULT, None, RunnerOptions(threads=job.threads))


def feeds_of(bundle: Bundle, job: Job) -> dict[int, Mapping[str, Array]]:
    """The same pictures as `trueport bench` takes."""
    images, name = bundle.evaluation().images, bundle.manifest.inputs[0].name
    return {batch: {name: tiled(images, batch)} for batch in job.batches}


def repetitions(job: Job, count: int, slowdown: float, kind: str) -> Iterator[tuple[str, str]]:
    """What the whole gate said to the port as it is, and to the slower one, by repetition."""
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=spawn, max_tasks_per_child=1) as processes:
        for number in range(count):
            made_s = processes.submit(make, job).result()
            (same, same_s), (slower, slower_s) = (
                processes.submit(hold, job, share, kind).result() for share in (0.0, slowdown)
            )
            outcome = told(same), told(slower)
            print(
                f"{number + 1}/{count}: as it is {outcome[0]} {ratios(same)}, slower {outcome[1]} {ratios(slower)}; "
                f"{made_s:.1f} + {same_s:.1f} + {slower_s:.1f} s",
                flush=True,
            )
            yield outcome


def told(verdicts: tuple[Verdict, ...]) -> str:
    """Of all batch sizes together: the exit code knows only whether one failed."""
    statuses = {verdict.status for verdict in verdicts}
    return next(status for status in ("failed", "undecided", "passed") if status in statuses)


def ratios(verdicts: tuple[Verdict, ...]) -> str:
    """Each batch's ratio, and what could be seen."""
    return ", ".join(
        f"{1 + (v.measured['slowdown'] or 0):.3f} (sees {v.measured['visible'] or 0:.1%})" for v in verdicts
    )


def clopper_pearson(hits: int, count: int, level: float = 0.95) -> tuple[float, float]:
    """The exact interval of a rate, by bisection."""
    tail = (1 - level) / 2

    def at_most(limit: int, rate: float) -> float:
        return math.fsum(math.comb(count, k) * rate**k * (1 - rate) ** (count - k) for k in range(limit + 1))

    def crossing(limit: int, target: float) -> float:
        low, high = 0.0, 1.0
        for _ in range(60):
            middle = (low + high) / 2
            low, high = (middle, high) if at_most(limit, middle) > target else (low, middle)
        return low

    return (
        crossing(hits - 1, 1 - tail) if hits else 0.0,
        crossing(hits, tail) if hits < count else 1.0,
    )


def rate(hits: int, count: int) -> str:
    """A rate with its interval."""
    low, high = clopper_pearson(hits, count)
    return f"{hits} of {count} ({hits / count:.0%}; {low:.1%} to {high:.1%})"


def main() -> None:
    """Repeat and print both rates."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--bundle", type=Path, help="a LeNet of the digits recipe where not given")
    parser.add_argument("--repetitions", type=int, default=100)
    parser.add_argument("--seconds", type=float, default=2.0, help="for each batch size and look")
    parser.add_argument("--batch", default="8", help="batch sizes, comma-separated")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--slowdown", type=float, default=0.10)
    parser.add_argument("--kind", choices=("spin", "repeat"), default="spin", help="how the slowdown is planted")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        bundle = options.bundle or trained(Path(folder))
        batches = tuple(map(int, options.batch.split(",")))
        job = Job(bundle, Path(folder) / "baseline.json", batches, options.threads, options.seconds)
        outcomes = list(repetitions(job, options.repetitions, options.slowdown, options.kind))
    for name, said in (
        ("as it is", [same for same, _ in outcomes]),
        (f"{options.slowdown:.0%} slower ({options.kind})", [slower for _, slower in outcomes]),
    ):
        counts = Counter(said)
        others = ", ".join(f"{counts[status]} {status}" for status in ("passed", "undecided"))
        print(f"{name}: failed {rate(counts['failed'], len(said))}, {others}")


def trained(folder: Path) -> Path:
    """The bundle of the digits recipe."""
    out = folder / "run"
    command = [str(Path(sys.executable).with_name("trueport")), "run", "digits", "--out", str(out)]
    subprocess.run(command, check=True, capture_output=True)
    return out / "bundle"


if __name__ == "__main__":
    main()
