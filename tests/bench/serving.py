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
import json
import math
import os
import re
import selectors
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, cast

import numpy as np

from trueport.runtime import Session, load
from trueport.runtime.bundle import read_manifest
from trueport.runtime.machine import describe_machine
from trueport.runtime.manifest import Manifest
from trueport.runtime.server import serve
from trueport.runtime.timing import ratio_interval

CONNECTIONS = (1, 16, 64)
SIDE = 28
OURS, ASGI, FASTAPI = "ours", "our ASGI application on uvicorn", "FastAPI, one run a request"
NOTHING, LOOP = "uvicorn, which only reads the request", "a bare loop, one run a request, nothing looked at"
PATHS = {OURS: "/v2/models/{}/infer", ASGI: "/v2/models/{}/infer", NOTHING: "/", LOOP: "/", FASTAPI: "/infer"}
BATCHES = (1, 8, 16, 32)
START_S = 60
THREADS = 1
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
    """Measure and print; or be one of the processes that are measured."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--bundle", type=Path, help="a LeNet for 28 x 28, trained, where not given")
    parser.add_argument("--runner", default="onnxruntime:cpu")
    parser.add_argument("--seconds", type=float, default=3.0, help="of each server in each round")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--connections", type=int, nargs="+", default=CONNECTIONS)
    parser.add_argument("--alone", action="store_true", help="nothing beside it but the bare session")
    parser.add_argument("--serve", choices=PATHS, help=argparse.SUPPRESS)
    parser.add_argument("--load", nargs=3, metavar=("PORT", "SERVER", "CONNECTIONS"), help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.serve:
        serve_forever(chosen.serve, load(chosen.bundle, runner=chosen.runner, threads=THREADS))
    elif chosen.load:
        port, name, connections = chosen.load
        data = request(chosen.bundle, name, int(port))
        print(json.dumps(closed_loop(int(port), data, int(connections), chosen.seconds)))
    else:
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
    names = [OURS] if chosen.alone else [OURS, ASGI, NOTHING, LOOP, FASTAPI]
    if FASTAPI in names and not importlib.util.find_spec("fastapi"):
        names.remove(FASTAPI)
        print("fastapi is not installed, so nothing is measured beside it: pip install fastapi\n")
    loads: dict[tuple[str, int], list[Load]] = defaultdict(list)
    with ExitStack() as stack:
        session = stack.enter_context(load(bundle, runner=runner, threads=THREADS))
        servers = {name: stack.enter_context(started(name, bundle, runner)) for name in names}
        bare: dict[int, list[float]] = {rows: [] for rows in BATCHES}
        for _ in range(rounds):
            for rows, rates in bare.items():
                rates.append(images_per_s(session, rows, seconds / 4))
            for connections in chosen.connections:
                for name, (process, port) in servers.items():
                    loads[name, connections].append(loaded(process, port, bundle, name, connections, seconds))
        print_tables(loads, bare, names, chosen.connections)
        if wrk := shutil.which("wrk"):
            for name, (_, port) in servers.items():
                print(f"\nwrk, 64 connections, {name}: {wrk_says(wrk, port, bundle, name, folder, seconds)}")
    print(f"\nload average {os.getloadavg()[0]:.1f} after")


def print_tables(
    loads: dict[tuple[str, int], list[Load]],
    bare: dict[int, list[float]],
    names: list[str],
    numbers: Sequence[int],
) -> None:
    """Rates and times, then ratios."""
    rates = ", ".join(f"{statistics.median(rates):,.0f} at batch {rows}" for rows, rates in bare.items())
    print(f"Bare session, images/s: {rates}\n")
    best = [max(each) for each in zip(*bare.values(), strict=True)]
    print("| connections | server | requests/s | of the bare session's best | median ms | p99 ms | server's CPU, us |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    for (name, connections), measured in sorted(loads.items(), key=lambda item: item[0][1]):
        rate = middle(measured, "per_s")
        share = statistics.median(each.per_s / full for each, full in zip(measured, best, strict=True))
        times = " | ".join(f"{middle(measured, key):.3f}" for key in ("median_ms", "p99_ms"))
        print(f"| {connections} | {name} | {rate:,.0f} | {share:.2f} | {times} | {middle(measured, 'cpu_us'):.0f} |")
    if 1 in numbers:
        alone = zip(loads[OURS, 1], bare[1], strict=True)
        ratio, low, high = ratio_interval(np.log([ours.median_ms * rate / 1e3 for ours, rate in alone]), seed=0)
        print(f"\nOne connection's median over a bare run: {ratio:.2f} ({low:.2f} to {high:.2f})")
    if not names[1:]:
        return
    print("\n| connections | ours beside | times as many requests/s |\n| --- | --- | --- |")
    for connections in numbers:
        for name in names[1:]:
            pairs = zip(loads[OURS, connections], loads[name, connections], strict=True)
            ratio, low, high = ratio_interval(np.log([ours.per_s / other.per_s for ours, other in pairs]), seed=0)
            print(f"| {connections} | {name} | {ratio:.2f} ({low:.2f} to {high:.2f}) |")


def middle(measured: list[Load], key: str) -> float:
    """Median over rounds."""
    return float(statistics.median(getattr(each, key) for each in measured))


def lenet(num_classes: int, channels: int) -> object:
    """LeNet as the peers were measured with it: 28 x 28, 6 and 16 feature maps, so that serving is what costs."""
    from torch import nn

    convolutions = (nn.Conv2d(channels, 6, 5), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(6, 16, 5), nn.ReLU())
    linear = (nn.Linear(256, 120), nn.ReLU(), nn.Linear(120, 84), nn.ReLU(), nn.Linear(84, num_classes))
    return nn.Sequential(*convolutions, nn.MaxPool2d(2), nn.Flatten(), *linear)


def trained(folder: Path) -> Path:
    """A bundle of it, trained for a moment."""
    return made(
        folder, "lenet", f"model.arch={Path(__file__).stem}:lenet", "train.epochs=2", f"preprocessing.size={SIDE}"
    )


def made(folder: Path, name: str, *settings: str) -> Path:
    """The bundle that the recipe of digits makes with these settings."""
    options = [word for setting in settings for word in ("--set", setting)]
    program, out = Path(sys.executable).with_name("trueport"), folder / name
    command: list[str | Path] = [program, "run", "digits", "--out", out, *options]
    subprocess.run(command, check=True, capture_output=True, cwd=Path(__file__).parent)
    return out / "bundle"


# Servers.


def serve_forever(name: str, session: Session) -> None:
    """Be a server on a free port that is printed."""
    if name == OURS:
        serve([session], port=0, log=lambda sentence: print(sentence, flush=True))
        return
    listener = socket.create_server(("127.0.0.1", 0))
    print(f"serving on http://127.0.0.1:{listener.getsockname()[1]},", flush=True)
    if name == LOOP:
        bare_loop(listener, session)
        return
    import uvicorn

    app: Any = session.asgi_app() if name == ASGI else nothing if name == NOTHING else fastapi_app(session)
    config = uvicorn.Config(app, ws="none", lifespan="off", log_config=None, access_log=False)
    uvicorn.Server(config).run([listener])


def bare_loop(listener: socket.socket, session: Session) -> None:
    """The least that a Python process can do for a row from a socket: what the machine itself takes for a request."""
    selector, shape = selectors.DefaultSelector(), session.manifest.preprocessing.shape
    selector.register(listener, selectors.EVENT_READ)
    parts: dict[socket.socket, bytes] = {}
    while True:
        for key, _ in selector.select():
            client = cast("socket.socket", key.fileobj)
            if client is listener:
                selector.register(listener.accept()[0], selectors.EVENT_READ)
                continue
            try:
                data = client.recv(2**20)
            except ConnectionError:
                data = b""
            if not data:
                selector.unregister(client)
                client.close()
                continue
            data = parts.pop(client, b"") + data
            length = re.search(rb"Content-Length: (\d+)\r\n\r\n", data)
            if length is None or len(data) < length.end() + int(length[1]):
                parts[client] = data
                continue
            row = np.frombuffer(data, np.uint8)[-math.prod(shape) :].reshape(1, *shape)
            body = session.run(row).tobytes()
            client.sendall(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n%b" % (len(body), body))


async def nothing(scope: Any, receive: Any, send: Any) -> None:
    """An ASGI application without a model: what uvicorn itself costs."""
    if scope["type"] == "http":
        await receive()
        fields = [(b"content-type", b"application/octet-stream"), (b"content-length", b"183")]
        await send({"type": "http.response.start", "status": 200, "headers": fields})
        await send({"type": "http.response.body", "body": bytes(183)})


def fastapi_app(session: Session) -> object:
    """What a tutorial has: bytes in, a run, bytes out; nothing is validated or batched."""
    fastapi: Any = importlib.import_module("fastapi")  # no requirement of trueport's, so no import of it
    app, shape = fastapi.FastAPI(), session.manifest.preprocessing.shape

    async def infer(request: Any) -> Any:
        body = await request.body()
        row = np.frombuffer(body, np.uint8)[-math.prod(shape) :].reshape(1, *shape)
        return fastapi.Response(session.run(row).tobytes(), media_type="application/octet-stream")

    infer.__annotations__ = {"request": fastapi.Request, "return": fastapi.Response}
    app.post("/infer")(infer)
    return app


@contextmanager
def started(name: str, bundle: Path, runner: str) -> Iterator[tuple[int, int]]:
    """Process and port of a server that answers."""
    command = [sys.executable, __file__, "--serve", name, "--bundle", str(bundle), "--runner", runner]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            ready = next(line for line in process.stdout if line.startswith("serving"))
            port = int(re.findall(r"http://127.0.0.1:(\d+)", ready)[0])
            wait_for(port)
            yield process.pid, port
        finally:
            process.terminate()


def wait_for(port: int) -> None:
    """Until it accepts a connection."""
    end_s = time.monotonic() + START_S
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
        except OSError:
            if time.monotonic() > end_s:
                raise
            time.sleep(0.05)
        else:
            return


# Load.


def loaded(process: int, port: int, bundle: Path, name: str, connections: int, seconds: float) -> Load:
    """One server under load from another process."""
    arguments = ["--load", str(port), name, str(connections), "--bundle", str(bundle), "--seconds", str(seconds)]
    before = cpu_seconds(process)
    done = subprocess.run([sys.executable, __file__, *arguments], check=True, capture_output=True, text=True)
    used = cpu_seconds(process) - before
    told = json.loads(done.stdout)
    return Load(told["per_s"], told["median_ms"], told["p99_ms"], 1e6 * used / told["requests"])


def closed_loop(port: int, data: bytes, connections: int, seconds: float) -> dict[str, float]:
    """So many connections, each sends its next request when it has its answer; every answer's status is looked at.

    When the time is up, what was sent is waited for: a server is busy to the last answer that is counted.
    """
    selector = selectors.DefaultSelector()
    begun_s: dict[socket.socket, float] = {}
    for _ in range(connections):
        connection = socket.create_connection(("127.0.0.1", port))
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        selector.register(connection, selectors.EVENT_READ)
        begun_s[connection] = time.perf_counter()
        connection.sendall(data)
    durations: list[float] = []
    parts: dict[socket.socket, bytes] = defaultdict(bytes)
    now_s = first_s = time.perf_counter()
    waiting = connections
    while waiting:
        for key, _ in selector.select():
            connection = cast("socket.socket", key.fileobj)
            answer = parts[connection] + connection.recv(65536)
            if not whole(answer):
                parts[connection] = answer
                continue
            parts[connection] = b""
            now_s = time.perf_counter()
            durations.append(now_s - begun_s[connection])
            if now_s - first_s >= seconds:
                waiting -= 1
                continue
            begun_s[connection] = now_s
            connection.sendall(data)
    rate = len(durations) / (now_s - first_s)
    times = np.quantile(durations, (0.5, 0.99)) * 1e3
    return {"per_s": rate, "requests": len(durations), "median_ms": float(times[0]), "p99_ms": float(times[1])}


def request(bundle: Path, server: str, port: int) -> bytes:
    """One row, as tritonclient would send it."""
    manifest = read_manifest(bundle)
    head, body = json_and_row(manifest)
    fields = f"Host: 127.0.0.1:{port}\r\nInference-Header-Content-Length: {len(head)}\r\nContent-Length: {len(body)}"
    return f"POST {PATHS[server].format(manifest.name)} HTTP/1.1\r\n{fields}\r\n\r\n".encode() + body


def json_and_row(manifest: Manifest) -> tuple[bytes, bytes]:
    """The JSON, and the JSON with the row behind it."""
    row = np.random.default_rng(0).integers(0, 256, (1, *manifest.preprocessing.shape), np.uint8)
    tensor = {"name": "image", "datatype": "UINT8", "shape": row.shape, "parameters": {"binary_data_size": row.nbytes}}
    head = json.dumps({"inputs": [tensor], "parameters": {"binary_data_output": True}}).encode()
    return head, head + row.tobytes()


def whole(answer: bytes) -> bool:
    """Whether all of it is here. Raises RuntimeError for anything but a 200."""
    end = answer.find(b"\r\n\r\n")
    if end < 0:
        if answer:
            return False
        raise RuntimeError("the server closed a connection")
    if not answer.startswith(b"HTTP/1.1 200"):
        raise RuntimeError(answer.decode("latin1"))
    start = answer.index(b"content-length: ") + 16
    return len(answer) == end + 4 + int(answer[start : answer.index(b"\r\n", start)])


def wrk_says(wrk: str, port: int, bundle: Path, server: str, folder: Path, seconds: float) -> str:
    """Rate, median and p99 as wrk measures them."""
    manifest = read_manifest(bundle)
    head, body = json_and_row(manifest)
    (folder / "body").write_bytes(body)
    (folder / "wrk.lua").write_text(WRK_SCRIPT.format(body=folder / "body", json_bytes=len(head)))
    command = [wrk, "-t1", "-c64", f"-d{max(1, round(seconds))}s", "--latency", "-s", str(folder / "wrk.lua")]
    url, limit_s = f"http://127.0.0.1:{port}{PATHS[server].format(manifest.name)}", seconds + START_S
    try:
        text = subprocess.run([*command, url], check=True, capture_output=True, text=True, timeout=limit_s).stdout
    except subprocess.TimeoutExpired:  # wrk waits for ever where a connection has lost its answer
        return "did not end"
    found = re.findall(r"(50%|99%|Requests/sec:|Non-2xx.*:)\s+(\S+)", text)
    return ", ".join(f"{name.rstrip(':')} {value}" for name, value in found)


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
