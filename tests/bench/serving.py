"""Requests a second of the server, beside the same application on uvicorn and a plain FastAPI one: `make bench-serve`.

A LeNet where no other bundle is given, one uint8 row a request, binary tensors, closed loop. The load comes from a
process of its own, on the same cores as the server. Every server runs in turn in every round; ratios are medians over
rounds with bootstrap intervals. How busy the machine is shows in the bare session, which runs in each round too:
compare rates with it, not with another day's. Nothing here passes or fails. `--seconds 1 --rounds 3` gives a first
impression.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import math
import os
import re
import shutil
import statistics
import subprocess
import tempfile
import time
from collections import defaultdict
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import product
from pathlib import Path

import numpy as np

from trueport.runtime import Session, load
from trueport.runtime.bundle import read_manifest
from trueport.runtime.machine import describe_machine
from trueport.runtime.timing import ratio_interval

from . import closed_loop
from .servers import ASGI, FASTAPI, LOOP, NOTHING, OURS, PATHS, START_S, THREADS, started, trained

CONNECTIONS = (1, 16, 64)
BATCHES = (1, 8, 16, 32)
WRK_CONNECTIONS = 64
BY_WRK = f"{WRK_CONNECTIONS}, by wrk"
WRK_SCRIPT = """
wrk.method = "POST"
wrk.body = io.open("{body}", "rb"):read("*a")
wrk.headers["Inference-Header-Content-Length"] = "{json_bytes}"
"""


@dataclass(frozen=True)
class Load:
    """What one server did under load for a while."""

    per_s: float
    median_ms: float
    p99_ms: float
    cpu_us: float
    """Of the server, for one request; NaN where the system does not tell."""


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--bundle", type=Path, help="a LeNet for 28 x 28, trained, where not given")
    parser.add_argument("--runner", default="onnxruntime:cpu")
    parser.add_argument("--seconds", type=float, default=3.0, help="of each server in each round")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--connections", type=int, nargs="+", default=CONNECTIONS)
    parser.add_argument(
        "--alone", action="store_true", help="beside the bare session, in ABBA blocks, and no other server"
    )
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        bundle = chosen.bundle or trained(Path(folder))
        report(bundle, chosen, Path(folder))


def report(bundle: Path, chosen: argparse.Namespace, folder: Path) -> None:
    """Measure and print Markdown."""
    runner, rounds, seconds = chosen.runner, chosen.rounds, chosen.seconds
    machine = describe_machine()
    print(f"{datetime.now(UTC):%Y-%m-%d}, {machine.cpu}, {machine.cores} cores, {machine.os}")
    print(", ".join(f"{name} {version}" for name, version in machine.versions.items()))
    print(
        f"load average {os.getloadavg()[0]:.1f} before; {rounds} rounds of {seconds:g} s; {runner}, {THREADS} thread\n"
    )
    if chosen.alone:
        print_beside_bare(bundle, chosen)
        return
    names = [OURS, ASGI, NOTHING, LOOP, FASTAPI]
    if not importlib.util.find_spec("fastapi"):
        names.remove(FASTAPI)
        print("fastapi is not installed, so nothing is measured beside it: pip install fastapi\n")
    loads: dict[tuple[str, str], list[Load]] = defaultdict(list)
    wrk = Wrk.found(bundle, folder)
    with ExitStack() as stack:
        session = stack.enter_context(load(bundle, runner=runner, threads=THREADS))
        servers = {name: stack.enter_context(started(name, bundle, runner)) for name in names}
        bare: dict[int, list[float]] = {rows: [] for rows in BATCHES}
        for _ in range(rounds):
            for rows, rates in bare.items():
                rates.append(images_per_s(session, rows, seconds / 4))
            for connections in chosen.connections:
                for name, (process, port) in servers.items():
                    loads[name, str(connections)].append(loaded(process, port, bundle, name, connections, seconds))
            for name, (process, port) in servers.items():
                if wrk and name != LOOP:  # that one reads no request that comes in two parts, as wrk sends it
                    path = PATHS[name].format(read_manifest(bundle).name)
                    loads[name, BY_WRK].append(wrk.loaded(process, port, path, seconds))
        print_tables(loads, bare, names)
    print(f"\nload average {os.getloadavg()[0]:.1f} after")


def print_tables(
    loads: dict[tuple[str, str], list[Load]],
    bare: dict[int, list[float]],
    names: list[str],
) -> None:
    """Rates and times, then ratios."""
    rates = ", ".join(f"{statistics.median(rates):,.0f} at batch {rows}" for rows, rates in bare.items())
    print(f"Bare session, images/s: {rates}\n")
    best = [max(each) for each in zip(*bare.values(), strict=True)]
    print("| connections | server | requests/s | of the bare session's best | median ms | p99 ms | server's CPU, us |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    numbers = list(dict.fromkeys(connections for _, connections in loads))
    for (name, connections), measured in sorted(loads.items(), key=lambda item: numbers.index(item[0][1])):
        rate = middle(measured, "per_s")
        share = statistics.median(each.per_s / full for each, full in zip(measured, best, strict=True))
        times = " | ".join(f"{middle(measured, key):.3f}" for key in ("median_ms", "p99_ms"))
        print(f"| {connections} | {name} | {rate:,.0f} | {share:.2f} | {times} | {middle(measured, 'cpu_us'):.0f} |")
    print("\n| connections | ours beside | times as many requests/s |\n| --- | --- | --- |")
    for connections in numbers:
        for name in [name for name in names[1:] if (name, connections) in loads]:
            pairs = zip(loads[OURS, connections], loads[name, connections], strict=True)
            print(f"| {connections} | {name} | {told([ours.per_s / other.per_s for ours, other in pairs])} |")


def print_beside_bare(bundle: Path, chosen: argparse.Namespace) -> None:
    """What serving leaves of the session's rate, and one connection's time over a run's.

    In ABBA blocks: the speed of a shared machine changes from one round to the next by more than is looked for.
    """
    print("| connections | requests/s | bare session at batch | images/s | share of it | median over a bare run |")
    print("| --- | --- | --- | --- | --- | --- |")
    with ExitStack() as stack:
        session = stack.enter_context(load(bundle, runner=chosen.runner, threads=THREADS))
        process, port = stack.enter_context(started(OURS, bundle, chosen.runner))
        for connections, rows in product(chosen.connections, BATCHES):
            if connections < 2 <= rows:
                continue  # a single one never fills a batch
            blocks = [
                (
                    images_per_s(session, rows, chosen.seconds),
                    loaded(process, port, bundle, OURS, connections, chosen.seconds),
                    loaded(process, port, bundle, OURS, connections, chosen.seconds),
                    images_per_s(session, rows, chosen.seconds),
                )
                for _ in range(chosen.rounds)
            ]
            rates = [(math.sqrt(a * d), math.sqrt(b.per_s * c.per_s)) for a, b, c, d in blocks]
            times = [math.sqrt(b.median_ms * c.median_ms * a * d) / 1e3 for a, b, c, d in blocks]
            bare, served = (statistics.median(column) for column in zip(*rates, strict=True))
            share = told([served / bare for bare, served in rates])
            slower = told(times) if connections == rows == 1 else ""
            print(f"| {connections} | {served:,.0f} | {rows} | {bare:,.0f} | {share} | {slower} |", flush=True)


def told(ratios: Sequence[float]) -> str:
    """Median and interval."""
    ratio, low, high = ratio_interval(np.log(ratios), seed=0)
    return f"{ratio:.2f} ({low:.2f} to {high:.2f})"


def middle(measured: list[Load], key: str) -> float:
    """Median over rounds."""
    return float(statistics.median(getattr(each, key) for each in measured))


def loaded(process: int, port: int, bundle: Path, name: str, connections: int, seconds: float) -> Load:
    """One server under load from another process."""
    before = cpu_seconds(process)
    told = closed_loop.in_a_process(port, PATHS[name], bundle, connections, seconds)
    used = cpu_seconds(process) - before
    return Load(told["per_s"], told["median_ms"], told["p99_ms"], 1e6 * used / told["requests"])


@dataclass(frozen=True)
class Wrk:
    """The load generator that others use, where it is installed."""

    program: str
    script: Path

    @classmethod
    def found(cls, bundle: Path, folder: Path) -> Wrk | None:
        """With the request that it sends; None: it is not installed."""
        program = shutil.which("wrk")
        if program is None:
            return None
        head, body = closed_loop.json_and_row(read_manifest(bundle))
        (folder / "body").write_bytes(body)
        (folder / "wrk.lua").write_text(WRK_SCRIPT.format(body=folder / "body", json_bytes=len(head)))
        return cls(program, folder / "wrk.lua")

    def loaded(self, process: int, port: int, path: str, seconds: float) -> Load:
        """One server under its load. Raises RuntimeError for answers other than 200."""
        command = [self.program, "-t1", f"-c{WRK_CONNECTIONS}", f"-d{max(1, round(seconds))}s", "--latency"]
        before = cpu_seconds(process)
        done = subprocess.run(
            [*command, "-s", str(self.script), f"http://127.0.0.1:{port}{path}"],
            check=True, capture_output=True, text=True, timeout=seconds + START_S,
        )  # fmt: skip
        used = cpu_seconds(process) - before
        told = dict(re.findall(r"(50%|99%|Requests/sec:|Non-2xx[^:]*:)\s+(\S+)", done.stdout))
        if len(told) != 3:
            raise RuntimeError(done.stdout)
        requests = int(re.findall(r"(\d+) requests in", done.stdout)[0])
        per_s, median_ms, p99_ms = float(told["Requests/sec:"]), milliseconds(told["50%"]), milliseconds(told["99%"])
        return Load(per_s, median_ms, p99_ms, 1e6 * used / requests)


def milliseconds(text: str) -> float:
    """As wrk writes times: 850.00us, 2.60ms, 1.20s."""
    number, unit = re.findall(r"([\d.]+)(us|ms|s)", text)[0]
    return float(number) * {"us": 1e-3, "ms": 1.0, "s": 1e3}[unit]


def images_per_s(session: Session, rows: int, seconds: float) -> float:
    """The session alone, in this process."""
    images = np.random.default_rng(0).integers(0, 256, (rows, *session.manifest.preprocessing.shape), np.uint8)
    runs, begun_s = 0, time.perf_counter()
    while (now_s := time.perf_counter()) - begun_s < seconds:
        session.run(images)
        runs += 1
    return runs * rows / (now_s - begun_s)


def cpu_seconds(process: int) -> float:
    """Used so far by a process; NaN where the system has no /proc."""
    try:
        used = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[11:13]
    except OSError:
        return float("nan")
    return sum(map(int, used)) / os.sysconf("SC_CLK_TCK")


if __name__ == "__main__":
    main()
