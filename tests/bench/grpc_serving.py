"""Requests a second by gRPC, beside a bare grpc.aio echo of messages of the same sizes; part of `make bench-serve`.

Servers and load are a process each, on the same cores; the load is one grpc.aio client that keeps so many calls in
flight, on raw bytes. Both servers run in turn in every round; ratios are medians with bootstrap intervals.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import re
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import grpc
import numpy as np

from trueport.runtime.bundle import Bundle
from trueport.runtime.server.grpc_service.messages import CLASSES
from trueport.runtime.timing import ratio_interval

from .servers import trained

INFER = "/inference.GRPCInferenceService/ModelInfer"
OURS, ECHO = "ours", "bare grpc.aio echo"
CALLS = (1, 16, 64)
CHANNELS = 4


def main() -> None:
    """Measure and print; or be one of the processes that are measured."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--bundle", type=Path, help="a LeNet for 28 x 28, trained, where not given")
    parser.add_argument("--seconds", type=float, default=3.0, help="of each server in each round")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--echo", type=int, metavar="BYTES", help=argparse.SUPPRESS)
    parser.add_argument("--load", nargs=2, metavar=("PORT", "CALLS"), help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.echo is not None:
        asyncio.run(echo(bytes(chosen.echo)))
    elif chosen.load:
        port, calls = map(int, chosen.load)
        print(json.dumps(asyncio.run(loaded(port, message(chosen.bundle), calls, chosen.seconds))))
    else:
        with tempfile.TemporaryDirectory() as folder:
            report(chosen.bundle or trained(Path(folder)), chosen.rounds, chosen.seconds)


def report(bundle: Path, rounds: int, seconds: float) -> None:
    """Measure and print Markdown."""
    loads: dict[tuple[str, int], list[dict[str, float]]] = defaultdict(list)
    with ExitStack() as stack:
        ours = stack.enter_context(server(bundle))
        answer = asyncio.run(one_answer(ours, message(bundle)))
        servers = {OURS: ours, ECHO: stack.enter_context(echoing(len(answer)))}
        for _ in range(rounds):
            for calls in CALLS:
                for name, port in servers.items():
                    options = ["--load", str(port), str(calls), "--bundle", str(bundle), "--seconds", str(seconds)]
                    command = [sys.executable, "-m", "tests.bench.grpc_serving", *options]
                    done = subprocess.run(command, check=True, capture_output=True, text=True)
                    loads[name, calls].append(json.loads(done.stdout))
    print("| calls in flight | server | requests/s | median ms | p99 ms |\n| --- | --- | --- | --- | --- |")
    for (name, calls), measured in sorted(loads.items(), key=lambda item: item[0][1]):
        rate, *times = (float(np.median([each[key] for each in measured])) for key in ("per_s", "p50_ms", "p99_ms"))
        print(f"| {calls} | {name} | {rate:,.0f} | " + " | ".join(f"{ms:.3f}" for ms in times) + " |")
    print("\n| calls in flight | ours over the echo |\n| --- | --- |")
    for calls in CALLS:
        pairs = zip(loads[OURS, calls], loads[ECHO, calls], strict=True)
        ratio, low, high = ratio_interval(np.log([one["per_s"] / two["per_s"] for one, two in pairs]), seed=0)
        print(f"| {calls} | {ratio:.2f} ({low:.2f} to {high:.2f}) |")


# Servers.


@contextmanager
def server(bundle: Path) -> Iterator[int]:
    """The gRPC port of `trueport serve` on one thread of onnxruntime."""
    program = str(Path(sys.executable).with_name("trueport"))
    options = ["--http", "0", "--grpc", "0", "--runner", "onnxruntime:cpu", "--threads", "1"]
    with subprocess.Popen([program, "serve", str(bundle), *options], stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        try:
            yield int(next(filter(None, (re.search(r"gRPC on port (\d+)", line) for line in process.stderr)))[1])
        finally:
            process.terminate()


@contextmanager
def echoing(size: int) -> Iterator[int]:
    """The port of a server that answers every call with so many bytes."""
    command = [sys.executable, "-m", "tests.bench.grpc_serving", "--echo", str(size)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            yield int(process.stdout.readline())
        finally:
            process.terminate()


async def echo(answer: bytes) -> None:
    """Be that server; prints its port."""

    async def handle(message: bytes, context: Any) -> bytes:
        return answer

    server = grpc.aio.server()
    handler = grpc.unary_unary_rpc_method_handler(handle)
    service, method = INFER[1:].split("/")
    server.add_generic_rpc_handlers([grpc.method_handlers_generic_handler(service, {method: handler})])
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    print(port, flush=True)
    await server.wait_for_termination()


# Load.


def message(bundle: Path) -> bytes:
    """A ModelInferRequest of one row, as tritonclient sends it."""
    opened = Bundle.open(bundle)
    row = opened.golden().images[:1]
    tensor = {"name": opened.manifest.inputs[0].name, "datatype": "UINT8", "shape": list(row.shape)}
    request = CLASSES["ModelInferRequest"](
        model_name=opened.manifest.name, inputs=[tensor], raw_input_contents=[row.tobytes()]
    )
    return bytes(request.SerializeToString())


async def one_answer(port: int, request: bytes) -> bytes:
    """To one call."""
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        return bytes(await channel.unary_unary(INFER)(request))


async def loaded(port: int, request: bytes, calls: int, seconds: float) -> dict[str, float]:
    """So many calls in flight for so long: requests a second and milliseconds."""
    options = [("grpc.use_local_subchannel_pool", 1)]
    channels = [grpc.aio.insecure_channel(f"127.0.0.1:{port}", options) for _ in range(min(CHANNELS, calls))]
    infers = [channel.unary_unary(INFER) for channel in channels]
    for infer in infers:
        await infer(request)
    took: list[float] = []
    first_s = time.perf_counter()

    async def caller(infer: Any) -> None:
        while (begun_s := time.perf_counter()) - first_s < seconds:
            await infer(request)
            took.append(time.perf_counter() - begun_s)

    await asyncio.gather(*(caller(infers[number % len(infers)]) for number in range(calls)))
    spent_s = time.perf_counter() - first_s
    for channel in channels:
        await channel.close()
    p50, p99 = np.quantile(took, (0.5, 0.99)) * 1e3
    return {"per_s": len(took) / spent_s, "p50_ms": float(p50), "p99_ms": float(p99)}


if __name__ == "__main__":
    main()
