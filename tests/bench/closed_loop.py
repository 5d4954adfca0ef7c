"""The load of `make bench-serve`, a process of its own: `closed_loop.py PORT PATH BUNDLE`; prints JSON."""

from __future__ import annotations

import argparse
import json
import selectors
import socket
import subprocess
import sys
import time
from collections import defaultdict
from pathlib import Path
from typing import cast

import numpy as np

from trueport.runtime.bundle import read_manifest
from trueport.runtime.manifest import Manifest


def main() -> None:
    """Send, and print what came of it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("port", type=int)
    parser.add_argument("path", help="of the server; {} is the model's name")
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--connections", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=3.0)
    chosen = parser.parse_args()
    data = request(chosen.bundle, chosen.path, chosen.port)
    print(json.dumps(closed_loop(chosen.port, data, chosen.connections, chosen.seconds)))


def in_a_process(port: int, path: str, bundle: Path, connections: int, seconds: float) -> dict[str, float]:
    """`closed_loop` in a process of its own, so that client and server share no interpreter."""
    command = [sys.executable, __file__, str(port), path, str(bundle)]
    options = ["--connections", str(connections), "--seconds", str(seconds)]
    done = subprocess.run([*command, *options], check=True, stdout=subprocess.PIPE)
    return cast("dict[str, float]", json.loads(done.stdout))


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


def request(bundle: Path, path: str, port: int) -> bytes:
    """One row, as tritonclient would send it. path: `{}` is the model's name."""
    manifest = read_manifest(bundle)
    head, body = json_and_row(manifest)
    fields = f"Host: 127.0.0.1:{port}\r\nInference-Header-Content-Length: {len(head)}\r\nContent-Length: {len(body)}"
    return f"POST {path.format(manifest.name)} HTTP/1.1\r\n{fields}\r\n\r\n".encode() + body


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


if __name__ == "__main__":
    main()
