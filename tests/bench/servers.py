"""The servers that `make bench-serve` measures, each a process of its own: `servers.py NAME BUNDLE`.

Ours, the same application on uvicorn, what a tutorial has, and two that do less than is asked of any.
"""

from __future__ import annotations

import argparse
import importlib
import math
import re
import selectors
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import numpy as np

from trueport.runtime import Session, load
from trueport.runtime.server import serve

SIDE = 28
OURS, ASGI, FASTAPI = "ours", "our ASGI application on uvicorn", "FastAPI, one run a request"
NOTHING, LOOP = "uvicorn, which only reads the request", "a bare loop, one run a request, nothing looked at"
PATHS = {OURS: "/v2/models/{}/infer", ASGI: "/v2/models/{}/infer", NOTHING: "/", LOOP: "/", FASTAPI: "/infer"}
START_S = 60
THREADS = 1


def main() -> None:
    """Be one of them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("name", choices=PATHS)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--runner", default="onnxruntime:cpu")
    chosen = parser.parse_args()
    serve_forever(chosen.name, load(chosen.bundle, runner=chosen.runner, threads=THREADS))


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
    command = [sys.executable, __file__, name, str(bundle), "--runner", runner]
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


if __name__ == "__main__":
    main()
