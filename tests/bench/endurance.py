"""What the server does under load that is too much, or does not end: `make bench-endurance`.

overload    ten times as many requests as it can answer, for a minute, each with a deadline: who is answered, when, and
            how soon the others are refused
million     a million requests, and the memory after each tenth of them
reload      under full load, the model is loaded anew every second for a minute

The load comes from a process of its own, on the same cores as the server. Nothing here passes or fails.
`--scenario reload --seconds 10` gives a first impression.
"""

from __future__ import annotations

import argparse
import http.client
import json
import os
import re
import selectors
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter, defaultdict, deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, cast

import numpy as np

from trueport.runtime import load
from trueport.runtime.bundle import Bundle
from trueport.runtime.machine import describe_machine

from .closed_loop import in_a_process
from .servers import OURS, PATHS, START_S, made, trained
from .serving import images_per_s

SCENARIOS = ("overload", "million", "reload")
TIMES_TOO_MUCH = 10
DEADLINE_BATCHES = 8
"""The deadline of an overloading request, in times that a full batch takes."""
CONNECTIONS = 256
BATCH = 8


def main() -> None:
    """Measure and print; or be the process that makes the load."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--bundle", type=Path, help="a LeNet of digits; trained where not given")
    parser.add_argument("--heavy", type=Path, help="the bundle that is overloaded; where not given a ResNet-18 at 64")
    parser.add_argument("--scenario", choices=SCENARIOS, action="append", help="all of them where not given")
    parser.add_argument("--seconds", type=float, default=60.0, help="of overload and of reload")
    parser.add_argument("--requests", type=int, default=1_000_000)
    parser.add_argument("--load", nargs=4, metavar=("PORT", "BUNDLE", "PER_S", "DEADLINE_S"), help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.load:
        port, bundle, per_s, deadline_s = chosen.load
        print(json.dumps(open_loop(int(port), Path(bundle), float(per_s), float(deadline_s), chosen.seconds)))
        return
    machine = describe_machine()
    print(f"{datetime.now(UTC):%Y-%m-%d}, {machine.cpu}, {machine.cores} cores, {machine.os}")
    print(f"load average {os.getloadavg()[0]:.1f} before\n")
    with tempfile.TemporaryDirectory() as folder:
        scenarios = chosen.scenario or SCENARIOS
        if "overload" in scenarios:
            heavy = ("model.arch=resnet18", "train.epochs=1", "preprocessing.size=64")
            overload(chosen.heavy or made(Path(folder), "heavy", *heavy), chosen.seconds)
        if {"million", "reload"} & set(scenarios):
            bundle = chosen.bundle or trained(Path(folder))
        if "million" in scenarios:
            million(bundle, chosen.requests)
        if "reload" in scenarios:
            reload(bundle, chosen.seconds)
    print(f"\nload average {os.getloadavg()[0]:.1f} after")


# The three scenarios.


def overload(bundle: Path, seconds: float) -> None:
    """Print who was answered, when; and how soon the others were refused."""
    with load(bundle, runner="onnxruntime:cpu", threads=1) as session:
        capacity = images_per_s(session, BATCH, 3.0)
    deadline_s = DEADLINE_BATCHES * BATCH / capacity
    with serving(bundle, "--max-batch", str(BATCH)) as (process, port):
        arguments = [str(port), str(bundle), str(TIMES_TOO_MUCH * capacity), str(deadline_s)]
        told = [resident_mib(process)]
        sampling = sampled(process, told, seconds)
        command = [sys.executable, "-m", "tests.bench.endurance", "--load", *arguments, "--seconds", str(seconds)]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        sampling.join()
        figures = json.loads(done.stdout)
    name = Bundle.open(bundle).manifest.name
    print(f"## Overload: {name}, the bare session does {capacity:,.0f} images/s at batch {BATCH}\n")
    per_s = figures["sent_per_s"]
    print(f"Sent: {per_s:,.0f} requests/s for {seconds:g} s, each to be begun within {deadline_s:.3f} s.\n")
    print("| answer | requests | a second | median ms | p99 ms | p99.9 ms |\n| --- | --- | --- | --- | --- | --- |")
    for status, each in sorted(figures["by_status"].items()):
        print(f"| {status} | {each['count']:,} | {each['count'] / seconds:,.0f} | " + " | ".join(each["ms"]) + " |")
    print(
        f"\nWithout an answer: {figures['unanswered']}. Not sent for want of a free connection: {figures['held_up']:,}."
    )
    print(f"Resident memory: {told[1]:.1f} MiB after a tenth of the time, {told[-1]:.1f} MiB at the end.\n")


def million(bundle: Path, requests: int) -> None:
    """Print the memory after ten thousand and after each tenth of so many requests."""
    print(f"## {requests:,} requests at 64 connections\n")
    print("| requests | resident MiB | against that after 10,000 | requests/s |\n| --- | --- | --- | --- |")
    with serving(bundle) as (process, port):
        sent, first = 0, 0.0
        for goal in (10_000, *(requests * tenth // 10 for tenth in range(1, 11))):
            begun_s, before = time.monotonic(), sent
            while sent < goal:
                sent += int(in_a_process(port, PATHS[OURS], bundle, 64, 2.0)["requests"])
            now = resident_mib(process)
            first = first or now
            rate = (sent - before) / (time.monotonic() - begun_s)
            print(f"| {sent:,} | {now:.1f} | {100 * (now / first - 1):+.2f} % | {rate:,.0f} |", flush=True)
    print()


def reload(bundle: Path, seconds: float) -> None:
    """Print how many requests failed while the model was loaded anew every second."""
    with serving(bundle, "--model-control") as (process, port):
        before_mib, loads, end_s = resident_mib(process), 0, time.monotonic() + seconds
        told: list[dict[str, float]] = []
        loading = threading.Thread(target=lambda: told.append(in_a_process(port, PATHS[OURS], bundle, 16, seconds)))
        loading.start()
        while time.monotonic() < end_s:
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=START_S)
            connection.request("POST", "/v2/repository/models/digits/load")
            answer = connection.getresponse()
            if answer.status != 200:
                raise RuntimeError(answer.read().decode())
            connection.close()
            loads += 1
            time.sleep(1.0)
        loading.join()
        after_mib = resident_mib(process)
    if not told:
        raise RuntimeError("a request failed: its answer is above")
    print(f"## Reload: {loads} times in {seconds:g} s under 16 connections\n")
    print(f"{told[0]['requests']:,.0f} requests were answered with 200, {told[0]['per_s']:,.0f} a second; none failed.")
    print(f"p99 {told[0]['p99_ms']:.1f} ms. Resident memory: {before_mib:.1f} MiB before, {after_mib:.1f} MiB after.\n")


# Servers.


@contextmanager
def serving(bundle: Path, *options: str) -> Iterator[tuple[int, int]]:
    """Process and port of `trueport serve` on one thread of onnxruntime."""
    program = Path(sys.executable).with_name("trueport")
    command: list[str | Path] = [
        program,
        "serve",
        bundle,
        "--http",
        "0",
        "--runner",
        "onnxruntime:cpu",
        "--threads",
        "1",
        *options,
    ]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        try:
            found = next(filter(None, (re.search(r"http://127.0.0.1:(\d+)", line) for line in process.stderr)))
            drained = threading.Thread(target=process.stderr.read)
            drained.start()
            yield process.pid, int(found[1])
        finally:
            process.terminate()
            process.wait()
            drained.join()


def resident_mib(process: int) -> float:
    """Of a process, as the system counts it."""
    found = re.search(r"VmRSS:\s+(\d+) kB", Path(f"/proc/{process}/status").read_text())
    assert found is not None
    return int(found[1]) / 1024


def sampled(process: int, told: list[float], seconds: float) -> threading.Thread:
    """Adds the memory after each tenth of the time."""

    def sample() -> None:
        for _ in range(10):
            time.sleep(seconds / 10)
            told.append(resident_mib(process))

    thread = threading.Thread(target=sample)
    thread.start()
    return thread


# Load.


@dataclass
class Open:
    """Connections and what came back on them."""

    data: bytes
    selector: selectors.DefaultSelector = field(default_factory=selectors.DefaultSelector)
    idle: deque[socket.socket] = field(default_factory=deque)
    begun_s: dict[socket.socket, float] = field(default_factory=dict)
    parts: dict[socket.socket, bytes] = field(default_factory=lambda: defaultdict(bytes))
    durations: dict[int, list[float]] = field(default_factory=lambda: defaultdict(list))

    def send(self) -> None:
        """On a connection that is free."""
        connection = self.idle.popleft()
        self.begun_s[connection] = time.perf_counter()
        connection.sendall(self.data)

    def receive(self, timeout_s: float) -> None:
        """What has come."""
        for key, _ in self.selector.select(timeout_s):
            connection = cast("socket.socket", key.fileobj)
            answer = self.parts[connection] + connection.recv(65536)
            end = answer.find(b"\r\n\r\n") + 4
            length = re.search(rb"content-length: (\d+)", answer[:end]) if end > 3 else None
            if length is None or len(answer) < end + int(length[1]):
                self.parts[connection] = answer
                continue
            self.parts[connection] = b""
            self.durations[int(answer[9:12])].append(time.perf_counter() - self.begun_s.pop(connection))
            self.idle.append(connection)


def open_loop(port: int, bundle: Path, per_s: float, deadline_s: float, seconds: float) -> dict[str, Any]:
    """Requests at random times, so many a second, whatever comes back; then all that is still on its way."""
    load = Open(infer(bundle, port, deadline_s))
    for _ in range(CONNECTIONS):
        connection = socket.create_connection(("127.0.0.1", port))
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        load.selector.register(connection, selectors.EVENT_READ)
        load.idle.append(connection)
    chance = np.random.default_rng(0)
    counts: Counter[str] = Counter()
    first_s = now_s = due_s = time.perf_counter()
    while now_s - first_s < seconds:
        while due_s <= now_s:
            due_s += chance.exponential(1 / per_s)
            counts["sent" if load.idle else "held up"] += 1
            if load.idle:
                load.send()
        load.receive(max(0.0, min(due_s - now_s, 0.1)))
        now_s = time.perf_counter()
    end_s = now_s + START_S
    while load.begun_s and time.perf_counter() < end_s:
        load.receive(1.0)
    return {
        "sent_per_s": counts["sent"] / seconds,
        "held_up": counts["held up"],
        "unanswered": len(load.begun_s),
        "by_status": {
            status: {"count": len(times), "ms": [f"{1e3 * at:.2f}" for at in np.quantile(times, (0.5, 0.99, 0.999))]}
            for status, times in load.durations.items()
        },
    }


def infer(bundle: Path, port: int, deadline_s: float) -> bytes:
    """A request of one row with a deadline."""
    opened = Bundle.open(bundle)
    row = opened.golden().images[:1]
    tensor = {"name": "image", "datatype": "UINT8", "shape": row.shape, "parameters": {"binary_data_size": row.nbytes}}
    parameters = {"binary_data_output": True, "timeout": int(deadline_s * 1e6)}
    head = json.dumps({"inputs": [tensor], "parameters": parameters}).encode()
    fields = f"Host: 127.0.0.1:{port}\r\nInference-Header-Content-Length: {len(head)}"
    length = len(head) + row.nbytes
    path = f"/v2/models/{opened.manifest.name}/infer"
    return f"POST {path} HTTP/1.1\r\n{fields}\r\nContent-Length: {length}\r\n\r\n".encode() + head + row.tobytes()


if __name__ == "__main__":
    main()
