"""Models that come and go while the server runs: load, unload, index, SIGHUP, a new version under load."""

from __future__ import annotations

import asyncio
import hashlib
import http.client
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import tritonclient.http
from tritonclient.utils import InferenceServerException

from trueport.runtime import Session
from trueport.runtime.bundle import GOLDEN, Bundle, read_manifest, sealed
from trueport.runtime.errors import StuckError
from trueport.runtime.manifest import MANIFEST, FileEntry
from trueport.runtime.server import ServerLimits, Source
from trueport.runtime.server.models import Models
from trueport.runtime.server.repository import Repository

INFER = "/v2/models/{}/infer"
LOAD, UNLOAD, INDEX = "/v2/repository/models/{}/load", "/v2/repository/models/{}/unload", "/v2/repository/index"


def again(bundle: Path, **changes: Any) -> None:
    """Seal a bundle anew with another name or version."""
    (bundle / MANIFEST).write_bytes(sealed(msgspec.structs.replace(read_manifest(bundle), **changes)))


def unfaithful(bundle: Path) -> None:
    """What it recorded is not what it answers."""
    with np.load(bundle / GOLDEN) as file:
        arrays = {name: file[name] for name in file.files}
    np.savez(bundle / GOLDEN, **arrays | {"logits": arrays["logits"] + np.float32(0.5)})
    data = (bundle / GOLDEN).read_bytes()
    entry = FileEntry(hashlib.sha256(data).hexdigest(), len(data))
    manifest = read_manifest(bundle)
    (bundle / MANIFEST).write_bytes(sealed(msgspec.structs.replace(manifest, files=manifest.files | {GOLDEN: entry})))


class Server:
    """`trueport serve` in a process of its own."""

    def __init__(self, *arguments: str | Path, hangup_after: str = "") -> None:
        code = "from trueport.pipeline.cli import main; main()"
        command = [sys.executable, "-c", code, "serve", *map(str, arguments), "--http", "0", "--threads", "1"]
        self.process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=os.environ)
        self.said: list[str] = []
        self.address = ""
        self._changed = threading.Condition()
        self._reading = threading.Thread(target=self._read)
        self._reading.start()
        if hangup_after:
            self.wait_for(hangup_after)
            self.process.send_signal(signal.SIGHUP)
        self.wait_for("Ctrl-C stops it")

    def _read(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            with self._changed:
                self.said.append(line.strip())
                if found := re.search(r"http://([\d.:]+)", line):
                    self.address = found[1]
                self._changed.notify_all()
        with self._changed:
            self.said.append("END")
            self._changed.notify_all()

    def wait_for(self, words: str, times: int = 1) -> None:
        """Until so many of its sentences hold these words."""

        def heard() -> bool:
            return sum(words in line for line in self.said) >= times or "END" in self.said

        with self._changed:
            assert self._changed.wait_for(heard, 60), self.said
        assert any(words in line for line in self.said), self.said

    def ask(self, method: str, path: str, body: Any = None) -> tuple[int, Any]:
        connection = http.client.HTTPConnection(self.address, timeout=60)
        try:
            connection.request(method, path, None if body is None else json.dumps(body))
            response = connection.getresponse()
            data = response.read()
            return response.status, json.loads(data) if data else None
        finally:
            connection.close()

    def close(self) -> int:
        self.process.send_signal(signal.SIGTERM)
        code = self.process.wait(timeout=60)
        self._reading.join()
        assert self.process.stderr is not None
        self.process.stderr.close()
        return code


@contextmanager
def serving(*arguments: str | Path, hangup_after: str = "") -> Iterator[Server]:
    server = Server(*arguments, hangup_after=hangup_after)
    try:
        yield server
        assert server.close() == 0
    finally:
        if server.process.poll() is None:
            server.process.kill()
            server.process.wait()


@pytest.fixture(scope="module")
def folder(bundle_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two bundles, one of which does not answer as it recorded, and something that is none."""
    folder = tmp_path_factory.mktemp("models")
    for name in ("first", "second"):
        again(Path(shutil.copytree(bundle_path, folder / name)), name=name)
    again(Path(shutil.copytree(bundle_path, folder / "wrong")), name="wrong")
    unfaithful(folder / "wrong")
    (folder / "no bundle").mkdir()
    return folder


@pytest.fixture(scope="module")
def server(folder: Path) -> Iterator[Server]:
    with serving(folder / "first", "--models", folder, "--model-control") as server:
        yield server


def states(server: Server, ready: bool = False) -> dict[str, str]:
    status, index = server.ask("POST", INDEX, {"ready": ready})
    assert status == 200
    return {entry["name"]: entry["state"] for entry in index}


def test_the_index_tells_what_is_served_and_what_could_be(server: Server) -> None:
    assert states(server) == {"first": "READY", "second": "UNAVAILABLE", "wrong": "UNAVAILABLE"}
    assert states(server, ready=True) == {"first": "READY"}
    assert "model_repository" in server.ask("GET", "/v2")[1]["extensions"]


def test_a_model_is_loaded_served_and_unloaded(server: Server, bundle_path: Path) -> None:
    body = {"inputs": [tensor(bundle_path)]}
    assert server.ask("POST", INFER.format("second"), body)[0] == 404
    assert server.ask("POST", LOAD.format("second"), {}) == (200, None)
    assert states(server)["second"] == "READY"
    assert server.ask("POST", INFER.format("second"), body)[0] == 200
    assert server.ask("POST", UNLOAD.format("second"), {"parameters": {"unload_dependents": True}}) == (200, None)
    assert server.ask("POST", INFER.format("second"), body)[0] == 404
    assert server.ask("GET", "/v2/health/ready")[0] == 200


def test_one_that_fails_its_golden_set_is_not_served(server: Server) -> None:
    status, answer = server.ask("POST", LOAD.format("wrong"))
    assert status == 400
    assert "does not answer the golden set as the original did" in answer["error"]
    reason = next(entry for entry in server.ask("POST", INDEX)[1] if entry["name"] == "wrong")["reason"]
    assert "golden set" in reason


@pytest.mark.parametrize(
    ("path", "body", "status", "words"),
    [
        (LOAD.format("third"), {}, 404, "unknown model 'third'"),
        (UNLOAD.format("third"), {}, 404, "unknown model 'third'"),
        (LOAD.format("../second"), {}, 404, "nothing at"),
        (LOAD.format("first"), {"parameters": {"config": "{}"}}, 400, "expected no parameters, found 'config'"),
        (LOAD.format("first"), [], 400, "no request to the repository"),
        (INDEX, {"ready": "yes"}, 400, "no request to the repository"),
    ],
)
def test_what_can_not_be_done_is_said(server: Server, path: str, body: Any, status: int, words: str) -> None:
    answered, answer = server.ask("POST", path, body)
    assert (answered, words in answer["error"]) == (status, True), answer
    assert server.ask("GET", path)[0] == (404 if "nothing" in words else 405)


def test_tritonclient_controls_it_unmodified(server: Server) -> None:
    with tritonclient.http.InferenceServerClient(server.address) as client:
        client.load_model("second")
        assert client.is_model_ready("second")
        assert {entry["name"] for entry in client.get_model_repository_index()} == {"first", "second", "wrong"}
        client.unload_model("second")
        assert not client.is_model_ready("second")
        with pytest.raises(InferenceServerException, match="golden set"):
            client.load_model("wrong")


def test_control_is_off_unless_it_was_asked_for(bundle_path: Path) -> None:
    with serving(bundle_path) as server:
        for path in (LOAD.format("digits"), UNLOAD.format("digits"), LOAD.format("other")):
            status, answer = server.ask("POST", path)
            assert (status, "--model-control" in answer["error"]) == (503, True)
        assert states(server) == {"digits": "READY"}
        assert "model_repository" not in server.ask("GET", "/v2")[1]["extensions"]


def test_a_signal_takes_the_new_version_and_keeps_the_old_one_where_it_fails(own_bundle: Path) -> None:
    with serving(own_bundle) as server:
        server.process.send_signal(signal.SIGHUP)
        server.wait_for("nothing to do")
        again(own_bundle, version="2")
        server.process.send_signal(signal.SIGHUP)
        server.wait_for("loaded digits 2: golden set passed")
        assert server.ask("GET", "/v2/models/digits")[1]["versions"] == ["2"]
        unfaithful(own_bundle)
        server.process.send_signal(signal.SIGHUP)
        server.wait_for("stays as it is: digits 2 is not served")
        assert server.ask("GET", "/v2/models/digits/versions/2/ready")[0] == 200
        (own_bundle / GOLDEN).unlink()
        server.process.send_signal(signal.SIGHUP)
        server.wait_for("stays as it is", 2)
        assert server.ask("GET", "/v2/health/ready")[0] == 200


def test_a_signal_while_the_first_models_are_loaded_does_not_end_the_server(folder: Path) -> None:
    with serving(folder / "first", folder / "second", hangup_after="first 1: ") as server:
        assert server.ask("GET", "/v2/health/ready")[0] == 200


def test_no_request_fails_while_models_are_loaded_anew(server: Server, bundle_path: Path) -> None:
    body = json.dumps({"inputs": [tensor(bundle_path)]}).encode()
    stop, answered, wrong = threading.Event(), [0] * 4, list[Any]()

    def client(number: int) -> None:
        connection = http.client.HTTPConnection(server.address, timeout=60)
        while not stop.is_set():
            connection.putrequest("POST", INFER.format("first"))
            connection.putheader("Content-Length", str(len(body)))
            connection.endheaders()
            connection.send(body[:10])  # the models may change between this and the rest
            connection.send(body[10:])
            response = connection.getresponse()
            data = response.read()
            answered[number] += 1
            if response.status != 200:
                wrong.append((response.status, data))
        connection.close()

    threads = [threading.Thread(target=client, args=(number,)) for number in range(len(answered))]
    for thread in threads:
        thread.start()
    try:
        for _ in range(8):
            before = sum(answered)
            assert server.ask("POST", LOAD.format("first"))[0] == 200
            assert sum(answered) > before
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    assert wrong == []


def tensor(bundle: Path) -> dict[str, Any]:
    return json_tensor(Bundle.open(bundle).golden().images[:1])


def json_tensor(row: Any) -> dict[str, Any]:
    return {"name": "image", "datatype": "UINT8", "shape": row.shape, "data": row.ravel().tolist()}


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((), "give a BUNDLE to serve"),
        (("--models", "."), "give a BUNDLE to serve"),
        (("--models", "nowhere", "--model-control"), "--models nowhere is no folder"),
    ],
)
def test_the_command_says_what_it_lacks(arguments: tuple[str, ...], words: str, tmp_path: Path) -> None:
    code = "from trueport.pipeline.cli import main; main()"
    command = [sys.executable, "-c", code, "serve", *arguments]
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=60, cwd=tmp_path)
    assert (done.returncode, words in " ".join(done.stderr.split())) == (2, True), done.stderr


def test_the_command_serves_grpc_beside_http(bundle_path: Path) -> None:
    grpc = pytest.importorskip("tritonclient.grpc")
    row = Bundle.open(bundle_path).golden().images[:1]
    with serving(bundle_path, "--grpc", "0") as server:
        port = next(found[1] for line in server.said if (found := re.search(r"gRPC on port (\d+)", line)))
        with grpc.InferenceServerClient(f"127.0.0.1:{port}") as client:
            assert client.is_server_ready()
            tensor = grpc.InferInput("image", row.shape, "UINT8")
            tensor.set_data_from_numpy(row)
            logits = client.infer("digits", [tensor]).as_numpy("logits")
        status, answer = server.ask("POST", INFER.format("digits"), {"inputs": [json_tensor(row)]})
        assert status == 200
        np.testing.assert_allclose(logits.ravel(), answer["outputs"][0]["data"], rtol=1e-6)


# Its parts, in a loop of their own.

SessionOf = Callable[..., Session]
LONGEST_S = 30


@pytest.fixture
def models() -> Iterator[Models]:
    models = Models(ServerLimits())
    yield models
    models.close()


def test_a_bundle_that_is_given_in_several_ways_is_one(
    bundle_path: Path, models: Models, session_of: SessionOf, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copytree(bundle_path, "digits")
    shutil.copytree(bundle_path, ".digits.x1.new")  # what a broken export leaves
    (tmp_path / "again").symlink_to("digits")
    other = Path(shutil.copytree(bundle_path, "other"))
    again(other, name="other")
    with session_of("digits") as session:  # of the bundle that is given as Path("digits")
        models.add(session)
        source = Source(lambda path: session, lambda session: "", tmp_path)
        assert Repository(models, source)._found() == {"digits": [Path("digits")], "other": [tmp_path / "other"]}


def test_models_are_retired_together(models: Models, session_of: SessionOf, monkeypatch: pytest.MonkeyPatch) -> None:
    together, sessions = threading.Barrier(2), [session_of("first"), session_of("second")]

    def close(timeout_s: float | None = None, *, session: Session) -> None:
        together.wait(LONGEST_S)
        Session.close(session, timeout_s)

    for session in sessions:
        monkeypatch.setattr(session, "close", partial(close, session=session))
        models.add(session)
    asyncio.run(Repository(models).close(LONGEST_S))
    assert len(models) == 0
    assert all(session.closed for session in sessions)


def test_the_end_does_not_wait_for_a_load_that_does_not_come_to_its_end(
    bundle_path: Path, models: Models, session_of: SessionOf, tmp_path: Path
) -> None:
    shutil.copytree(bundle_path, tmp_path / "digits")
    begun, go, closed = threading.Event(), threading.Event(), threading.Event()
    late = session_of("digits")

    def opened(path: Path) -> Session:
        begun.set()
        go.wait(LONGEST_S)
        return late

    def close(timeout_s: float | None = None) -> None:
        Session.close(late, timeout_s)
        closed.set()

    late.close = close  # type: ignore[method-assign]

    async def scenario(served: Session) -> None:
        models.add(served)
        repository = Repository(models, Source(opened, lambda session: "", tmp_path, control=True))
        loading = asyncio.get_running_loop().create_task(repository.load("digits"))
        assert await asyncio.to_thread(begun.wait, LONGEST_S)
        await repository.close(0.1)
        assert not loading.done()
        assert served.closed

    asyncio.run(scenario(session_of("served")))
    assert not closed.is_set(), "the loop's end waited for the load"
    go.set()
    assert closed.wait(LONGEST_S), "a model that nobody will ask was left open"
    assert len(models) == 0


@pytest.mark.parametrize("looked_after", [True, False])
def test_who_waits_for_a_run_of_an_exchanged_model_that_does_not_end_is_told(
    session_of: SessionOf, monkeypatch: pytest.MonkeyPatch, *, looked_after: bool
) -> None:
    monkeypatch.setattr("trueport.runtime.server.endpoint.CLOSING_S", 0.1)
    begun, go, session = threading.Event(), threading.Event(), session_of()

    def run(feeds: Any) -> Any:
        begun.set()
        assert go.wait(LONGEST_S)
        return feeds

    monkeypatch.setattr(session.runner, "run", run)
    models = Models(ServerLimits(run_s=0.1, drain_s=LONGEST_S if looked_after else 0.1))
    models.add(session)
    repository = Repository(models)

    async def scenario() -> None:
        future = asyncio.get_running_loop().create_future()
        session.batcher.enqueue(np.zeros((1, *session._row_shape), np.uint8), future)
        assert await asyncio.to_thread(begun.wait, LONGEST_S)
        repository._retire(models.exchange("digits", [models.endpoint(session_of())]))
        while not future.done():
            await asyncio.sleep(0.05)
            if looked_after:
                models.look_after()
        with pytest.raises(StuckError):
            await future
        go.set()
        await asyncio.gather(*repository._tasks)
        await asyncio.sleep(0)
        assert not models._retiring

    try:
        asyncio.run(asyncio.wait_for(scenario(), LONGEST_S))
    finally:
        go.set()
        models.close()


@pytest.mark.parametrize(("name", "python_ends_it"), [("trueport-own", False), ("another's", True)])
def test_the_command_ends_the_process_where_something_was_left_to_itself(
    bundle_path: Path, *, name: str, python_ends_it: bool
) -> None:
    code = f"""
import atexit, sys, threading
import trueport.runtime.server as server
from trueport.pipeline.cli import main

def serve(sessions, **options):
    threading.Thread(target=threading.Event().wait, name={name!r}, daemon=True).start()
    sessions[0].close()
    print("served", flush=True)

server.serve = serve
atexit.register(print, "ended by Python")
sys.argv = ["trueport", "serve", {str(bundle_path)!r}]
main()
"""
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=60)
    assert (ended.returncode, "served" in ended.stdout) == (0, True), ended.stderr
    assert ("ended by Python" in ended.stdout) == python_ends_it


def test_a_model_is_not_waited_for_without_end(
    models: Models, session_of: SessionOf, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("trueport.runtime.server.endpoint.CLOSING_S", 0.1)
    go, ended, session = threading.Event(), threading.Event(), session_of()

    def close(timeout_s: float | None = None) -> None:
        go.wait(LONGEST_S)
        Session.close(session, timeout_s)
        ended.set()

    monkeypatch.setattr(session, "close", close)
    endpoint = models.add(session)

    async def scenario() -> None:
        endpoint._unfinished.add(asyncio.get_running_loop().create_future())
        await endpoint.retire(0.1)

    asyncio.run(scenario())
    assert not ended.is_set()
    go.set()
    assert ended.wait(LONGEST_S)
