"""Several processes on one port: their figures, their ends, and what one of them can't do to the others."""

from __future__ import annotations

import asyncio
import hashlib
import http.client
import itertools
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import numpy as np
import pytest
import tritonclient.grpc

from trueport.runtime import load
from trueport.runtime.batcher import BatcherStats
from trueport.runtime.bundle import GOLDEN, Bundle, read_manifest, sealed
from trueport.runtime.errors import UsageError
from trueport.runtime.manifest import MANIFEST, FileEntry
from trueport.runtime.server.child import Child, ending, exit_code
from trueport.runtime.server.processes import Chorus, next_pause_s, serve_in_processes
from trueport.runtime.server.shared_figures import STALE_S, SharedFigures
from trueport.runtime.server.statistics import Figures, Tally

shares_ports = pytest.mark.skipif(sys.platform != "linux", reason="only Linux spreads the connections to a shared port")
PROCESSES = 2
LONGEST_S = 60
INFER = "/v2/models/digits/infer"
CODE = "from trueport.pipeline.cli import main; main()"


# Without processes


def test_what_all_say_is_told_once_and_what_one_says_with_its_number() -> None:
    told: list[str] = []
    chorus = Chorus(told.append)
    for number, line in ((1, "loaded"), (2, "loaded"), (2, "slow"), (1, "again"), (1, "again")):
        chorus.say(number, line)
    assert told == ["loaded", "slow", "again", "again"]
    chorus.in_unison = False
    chorus.say(2, "loaded")
    assert told[4:] == ["process 2: loaded"]
    chorus.in_unison = True
    chorus.say(2, "loaded")
    assert told[5:] == ["loaded"]


def test_the_pause_grows_until_a_process_was_steady() -> None:
    pauses = list(itertools.accumulate(range(8), lambda pause_s, _: next_pause_s(pause_s, 1.0), initial=0.0))[1:]
    assert pauses == [0.5, 1, 2, 4, 8, 16, 30, 30]
    assert next_pause_s(30, 3600) == 0.5


def test_how_a_process_ended() -> None:
    assert (ending(3), ending(-9), ending(-77)) == (
        "ended with exit code 3",
        "was ended by SIGKILL",
        "was ended by signal 77",
    )
    assert (exit_code(1), exit_code(-9), exit_code(0)) == (1, 137, 70)


def test_a_process_that_is_killed_as_it_speaks_is_heard_so_far() -> None:
    async def wait() -> int:
        return -9

    async def watched() -> tuple[int, list[str]]:
        reader, said = asyncio.StreamReader(), list[str]()
        reader.feed_data(b'["said", "loaded"]\n["said", "golden s')
        reader.feed_eof()
        process: Any = SimpleNamespace(pid=1, wait=wait)
        writer: Any = SimpleNamespace(close=lambda: None)
        return await Child(process, reader, writer).watch(said.append, lambda: None), said

    assert asyncio.run(watched()) == (-9, ["loaded"])


class Served:
    """What the figures see of an endpoint."""

    def __init__(self, version: str = "1") -> None:
        self.session = SimpleNamespace(closed=False)
        self.tally = Tally()
        self.batcher = BatcherStats()
        self.version = version

    def figures(self) -> Figures:
        return Figures("digits", self.version, self.tally, self.batcher)

    def asked(self, times: int, waiting: int = 0) -> Served:
        for _ in range(times):
            self.tally.succeeded(0.002)
        self.batcher = BatcherStats(requests=times, rows=2 * times, run_s=0.5 * times, queued_requests=waiting)
        return self


def gathered(figures: SharedFigures, *served: Any) -> Figures:
    return figures.gathered(served)["digits", "1"]


def write(figures: SharedFigures, *served: Any) -> None:
    figures.write(served)


def test_figures_are_the_sums_over_processes(tmp_path: Path) -> None:
    one, two = (SharedFigures(tmp_path, number, 2, "group") for number in (1, 2))
    first, second = Served().asked(3, waiting=1), Served().asked(4, waiting=5)
    second.tally.failed(UsageError("no"), 0.25)
    write(two, second)
    told = gathered(one, first)
    assert (told.tally.success, told.tally.failures["OTHER"], sum(told.tally.buckets)) == (7, 1, 7)
    assert told.tally.success_s == pytest.approx(0.014)
    assert told.tally.failure_s == 0.25
    assert told.tally.last_s == second.tally.last_s
    assert (told.batcher.requests, told.batcher.rows, told.batcher.queued_requests) == (7, 14, 6)
    assert told.batcher.run_s == 3.5
    assert gathered(two, second) == told
    assert (first.tally.success, second.tally.success) == (3, 4)


def test_who_takes_a_place_goes_on_from_what_was_told_last(tmp_path: Path) -> None:
    one, two = (SharedFigures(tmp_path, number, 2, "group") for number in (1, 2))
    assert gathered(two, Served().asked(4, waiting=5)).tally.success == 4
    first = Served().asked(3)
    assert gathered(one, first).tally.success == 7
    again = SharedFigures(tmp_path, 2, 2, "group")
    assert gathered(again, Served().asked(1)).tally.success == 8
    told = gathered(one, first)
    assert (told.tally.success, told.batcher.requests, told.batcher.queued_requests) == (8, 8, 0)


def test_what_waited_in_a_process_that_writes_no_more_waits_no_longer(tmp_path: Path) -> None:
    now_s = 1000.0
    one, two = (SharedFigures(tmp_path, number, 2, "group", clock=lambda: now_s) for number in (1, 2))
    write(two, Served().asked(4, waiting=5))
    now_s += STALE_S
    assert gathered(one, Served()).batcher.queued_requests == 5
    now_s += 0.1
    assert gathered(one, Served()).batcher.queued_requests == 0
    assert gathered(one, Served()).batcher.requests == 4


def test_a_model_that_is_loaded_anew_counts_on(tmp_path: Path) -> None:
    figures = SharedFigures(tmp_path, 1, 2, "group")
    old, new = Served().asked(3), Served()
    assert gathered(figures, old).tally.success == 3
    assert gathered(figures, new).tally.success == 3
    old.asked(1)  # what it had begun when it was exchanged
    old.session.closed = True
    for _ in range(3):
        assert gathered(figures, new).tally.success == 4
    assert gathered(figures, Served("2").asked(9)).tally.success == 4


def test_a_full_disk_costs_only_the_sums(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    figures = SharedFigures(tmp_path / "gone", 1, 2, "group")
    served = Served().asked(3)
    for _ in range(2):
        assert gathered(figures, served).tally.success == 3
    assert [record.message.partition(":")[0] for record in caplog.records] == [
        "the other processes do not see this one's figures"
    ]


def test_a_system_that_can_not_share_ports_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(socket, "SO_REUSEPORT", raising=False)
    with pytest.raises(UsageError, match="can't share a port"):
        serve_in_processes(["never"], 2, "127.0.0.1", 0, print)


def test_one_process_loads_nothing_of_this() -> None:
    code = "import sys, trueport.runtime.server.grpc_service, trueport.pipeline.cli.serve as _; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True, timeout=60)
    assert "trueport.runtime.server.serve" in done.stdout.split()
    for name in ("processes", "child", "member", "shared_figures"):
        assert f"trueport.runtime.server.{name}" not in done.stdout.split()


# With processes


class Group:
    """`trueport serve --processes` in a process of its own, and those that it starts."""

    def __init__(self, *arguments: str | Path) -> None:
        command = [sys.executable, "-c", CODE, "serve", *map(str, arguments), "--http", "0", "--threads", "1"]
        self.process = subprocess.Popen(
            [*command, "--processes", str(PROCESSES)], stderr=subprocess.PIPE, text=True, env=os.environ
        )
        self.said: list[str] = []
        self._changed = threading.Condition()
        self._reading = threading.Thread(target=self._read, daemon=True)
        self._reading.start()
        self.address, self.grpc_port = "", ""
        self.pids: list[int] = []

    def begun(self) -> None:
        (line,) = self.wait_for("Ctrl-C stops it")
        found = re.search(r"http://([\d.:]+)(?: and by gRPC on port (\d+))? in \d processes \(([\d, ]+)\)", line)
        assert found, line
        self.address, self.grpc_port = found[1], found[2]
        self.pids = list(map(int, found[3].split(",")))

    def _read(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            with self._changed:
                self.said.append(line.strip())
                self._changed.notify_all()
        with self._changed:
            self.said.append("END")
            self._changed.notify_all()

    def wait_for(self, words: str) -> list[str]:
        """The sentences that hold these words, once there is one. END: no process is left that could say something."""

        def heard() -> list[str]:
            return [line for line in self.said if words in line]

        with self._changed:
            assert self._changed.wait_for(lambda: heard() or "END" in self.said, LONGEST_S), self.said
        assert heard(), self.said
        return heard()

    def ended(self) -> int:
        """The exit code; no process is left then."""
        code = self.process.wait(LONGEST_S)
        self.wait_for("END")
        for pid in self.pids:
            with pytest.raises(ProcessLookupError):
                os.kill(pid, 0)
        return code

    def close(self) -> None:
        self.process.terminate()
        with suppress(subprocess.TimeoutExpired):
            self.process.wait(LONGEST_S)
        for pid in (self.process.pid, *self.pids) if "END" not in self.said else ():
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.process.wait(LONGEST_S)
        self._reading.join()
        assert self.process.stderr is not None
        self.process.stderr.close()

    def client(self) -> Client:
        return Client(self.address)

    def clients(self, of_each: int) -> list[Client]:
        """So many of each process."""
        found: dict[str, list[Client]] = defaultdict(list)
        for _ in range(1000):
            client = self.client()
            chosen = found[client.process]
            if len(chosen) < of_each:
                chosen.append(client)
            else:
                client.close()
            if len(found) == PROCESSES and all(len(each) == of_each for each in found.values()):
                return [client for each in found.values() for client in each]
        raise AssertionError(f"of {PROCESSES} processes only {len(found)} answered")


class Client:
    """One connection, which is one process's for as long as it lasts."""

    def __init__(self, address: str) -> None:
        self.connection = http.client.HTTPConnection(address, timeout=LONGEST_S)
        self.process = ""
        self.ask("GET", "/v2/health/live")

    def ask(self, method: str, path: str, body: Any = None) -> tuple[int, bytes]:
        self.connection.request(method, path, None if body is None else json.dumps(body))
        response = self.connection.getresponse()
        self.process = response.headers["x-request-id"].partition("-")[0]
        return response.status, response.read()

    def json(self, path: str) -> Any:
        status, data = self.ask("GET", path)
        assert status == 200
        return json.loads(data)

    def successes(self, version: str = "1") -> int:
        _, data = self.ask("GET", "/metrics")
        found = re.search(rf'^nv_inference_request_success.*version="{version}"\S* (\S+)$', data.decode(), re.MULTILINE)
        assert found
        return int(found[1])

    def close(self) -> None:
        self.connection.close()


@contextmanager
def group_of(*arguments: str | Path) -> Iterator[Group]:
    group = Group(*arguments)
    try:
        group.begun()
        yield group
    finally:
        group.close()


def eventually(what: Callable[[], bool]) -> None:
    end_s = time.monotonic() + LONGEST_S
    while not what():
        assert time.monotonic() < end_s
        time.sleep(0.05)


def again(bundle: Path, **changes: Any) -> None:
    """Seal a bundle anew with another name or version."""
    (bundle / MANIFEST).write_bytes(sealed(msgspec.structs.replace(read_manifest(bundle), **changes)))


def tensor(row: np.ndarray[Any, np.dtype[np.uint8]]) -> dict[str, Any]:
    return {"inputs": [{"name": "image", "datatype": "UINT8", "shape": row.shape, "data": row.ravel().tolist()}]}


@pytest.fixture(scope="module")
def rows(bundle_path: Path) -> list[tuple[Any, list[float]]]:
    """Requests, each with its own answer."""
    images = Bundle.open(bundle_path).golden().images[:8]
    with load(bundle_path, threads=1) as session:
        answers = session.run(images)
    assert min(np.abs(answers[i] - answers[j]).max() for i, j in itertools.combinations(range(len(images)), 2)) > 1e-3
    return [(tensor(images[i : i + 1]), answers[i].tolist()) for i in range(len(images))]


@pytest.fixture(scope="module")
def bundle(bundle_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return Path(shutil.copytree(bundle_path, tmp_path_factory.mktemp("processes") / "own.bundle"))


@pytest.fixture(scope="module")
def group(bundle: Path) -> Iterator[Group]:
    with group_of(bundle, "--grpc", "0") as group:
        yield group


class Asking:
    """Clients that ask again and again, each the same and for its own answer, while the block lasts."""

    def __init__(self, clients: list[Client], rows: list[tuple[Any, list[float]]]) -> None:
        self.answered: dict[Client, int] = dict.fromkeys(clients, 0)
        self.lost: dict[Client, BaseException] = {}
        """Whose connection broke."""
        self.wrong: list[Any] = []
        self._stop = threading.Event()
        self._threads = [
            threading.Thread(target=self._ask, args=(client, *rows[index % len(rows)]))
            for index, client in enumerate(clients)
        ]

    def _ask(self, client: Client, body: Any, expected: list[float]) -> None:
        while not self._stop.is_set():
            try:
                status, data = client.ask("POST", INFER, body)
            except (OSError, http.client.HTTPException) as error:
                self.lost[client] = error
                return
            answer = json.loads(data)["outputs"][0]["data"] if status == 200 else None
            if answer is None or not np.allclose(answer, expected, rtol=0, atol=1e-4):
                self.wrong.append((status, data))
            self.answered[client] += 1

    def __enter__(self) -> Asking:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()
        for client in self.answered:
            client.close()

    def some_more(self) -> None:
        """Until every client that has a connection was answered again."""
        before = dict(self.answered)
        eventually(lambda: all(count > before[each] or each in self.lost for each, count in self.answered.items()))


def told_once(group: Group, words: str) -> bool:
    return sum(words in line for line in group.said) == 1


@shares_ports
def test_every_client_of_every_process_gets_its_own_answers_and_any_process_tells_the_sums(
    group: Group, rows: list[tuple[Any, list[float]]]
) -> None:
    assert told_once(group, "golden set passed")
    assert told_once(group, f"in each of {PROCESSES} processes: inference takes 1 for digits")
    asking = group.clients(1)
    assert len({client.process for client in asking}) == PROCESSES
    eventually(lambda: len({client.successes() for client in asking}) == 1)
    before = asking[0].successes()
    with Asking(group.clients(3), rows) as clients:
        clients.some_more()
        clients.some_more()
    assert (clients.wrong, clients.lost) == ([], {})
    total = before + sum(clients.answered.values())
    eventually(lambda: all(client.successes() == total for client in asking))
    instances = set()
    for client in asking:
        status = client.json("/status")
        instances.add(status["instance"])
        assert (status["models"][0]["success"], status["models"][0]["rows"]) == (total, total)
        for path in ("/v2/models/stats", "/v2/models/digits/stats", "/v2/models/digits/versions/1/stats"):
            (statistics,) = client.json(path)["model_stats"]
            assert statistics["inference_stats"]["success"]["count"] == statistics["inference_count"] == total
        client.close()
    assert len(instances) == 1
    with tritonclient.grpc.InferenceServerClient(f"127.0.0.1:{group.grpc_port}") as grpc:
        assert grpc.get_inference_statistics("digits").model_stats[0].inference_stats.success.count == total


@shares_ports
def test_one_that_is_killed_is_followed_by_another_and_takes_no_count_and_no_other_s_client_with_it(
    group: Group, rows: list[tuple[Any, list[float]]]
) -> None:
    told: list[int] = []

    def ask_for_the_sum() -> None:
        with suppress(OSError, http.client.HTTPException):  # the system may still have given it to the one that ended
            client = group.client()
            told.append(client.successes())
            client.close()

    with Asking(group.clients(3), rows) as clients:
        clients.some_more()
        for _ in range(8):
            ask_for_the_sum()
        victim = group.pids[1]
        os.kill(victim, signal.SIGKILL)
        group.wait_for(f"process 2 ({victim}) was ended by SIGKILL: another one takes its place in 0.5 s")
        while not any("serves in its place" in line for line in group.said):
            ask_for_the_sum()
            clients.some_more()
        for _ in range(8):
            ask_for_the_sum()
    (words,) = group.wait_for("serves in its place")
    group.pids[1] = int(words.partition("(")[2].partition(")")[0])
    assert group.pids[1] != victim
    assert clients.wrong == []
    assert len({client.process for client in clients.lost}) == 1
    assert len(clients.lost) == len(clients.answered) / PROCESSES
    assert told == sorted(told)
    assert told[0] < told[-1]
    both = group.clients(1)
    assert not {client.process for client in both} & {client.process for client in clients.lost}
    for client in both:
        assert client.successes() >= told[-1]
        client.close()


@shares_ports
def test_a_hangup_loads_the_new_version_in_every_process_and_no_request_fails(
    group: Group, bundle: Path, rows: list[tuple[Any, list[float]]]
) -> None:
    with Asking(group.clients(2), rows) as clients:
        again(bundle, version="2")
        group.process.send_signal(signal.SIGHUP)
        group.wait_for(f"all {PROCESSES} processes have looked for changed models")
        clients.some_more()
    assert (clients.wrong, clients.lost) == ([], {})
    assert told_once(group, "loaded digits 2: golden set passed")
    for client in group.clients(1):
        assert client.json("/v2/models/digits")["versions"] == ["2"]
        client.close()


@contextmanager
def begun(group: Group, body: bytes) -> Iterator[http.client.HTTPConnection]:
    """A request of which the last byte is missing."""
    connection = http.client.HTTPConnection(group.address, timeout=LONGEST_S)
    connection.putrequest("POST", INFER)
    connection.putheader("Content-Length", str(len(body)))
    connection.putheader("Expect", "100-continue")
    connection.endheaders()
    assert connection.sock.recv(1000).startswith(b"HTTP/1.1 100 Continue")  # so it has been accepted
    connection.send(body[:-1])
    yield connection
    connection.close()


def refuses(group: Group) -> bool:
    host, _, port = group.address.partition(":")
    try:
        socket.create_connection((host, int(port)), timeout=LONGEST_S).close()
    except OSError:
        return True
    return False


@shares_ports
def test_the_first_signal_lets_all_answer_what_they_accepted(
    bundle_path: Path, rows: list[tuple[Any, list[float]]]
) -> None:
    body = json.dumps(rows[0][0]).encode()
    with group_of(bundle_path) as group, begun(group, body) as connection:
        group.process.send_signal(signal.SIGTERM)
        eventually(lambda: refuses(group))
        assert group.process.poll() is None
        connection.send(body[-1:])
        response = connection.getresponse()
        assert response.status == 200
        response.read()
        assert group.ended() == 0
    assert group.said[-1] == "END"
    assert "Ctrl-C" in group.said[-2]


@shares_ports
def test_a_second_signal_ends_all_at_once(bundle_path: Path, rows: list[tuple[Any, list[float]]]) -> None:
    with group_of(bundle_path) as group, begun(group, json.dumps(rows[0][0]).encode()):
        group.process.send_signal(signal.SIGINT)
        eventually(lambda: refuses(group))
        assert group.process.poll() is None
        group.process.send_signal(signal.SIGINT)
        assert group.ended() == 130


@shares_ports
def test_none_outlives_the_process_that_started_it(
    bundle_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    with group_of(bundle_path) as group:
        assert len(list(tmp_path.glob("*/*.figures"))) == PROCESSES
        group.process.kill()
        group.process.wait(LONGEST_S)
        group.wait_for("END")  # they hold the same pipe
        assert refuses(group)
        assert "Ctrl-C" in group.said[-2]
        assert list(tmp_path.glob("trueport-*")) == []


def run(*arguments: str | Path) -> tuple[int, str]:
    command = [sys.executable, "-c", CODE, "serve", *map(str, arguments), "--processes", str(PROCESSES)]
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=LONGEST_S)
    return done.returncode, " ".join(done.stderr.split())


@shares_ports
def test_a_model_that_is_not_faithful_is_served_by_none(own_bundle: Path) -> None:
    with np.load(own_bundle / GOLDEN) as file:
        arrays = {name: file[name] for name in file.files}
    np.savez(own_bundle / GOLDEN, **arrays | {"logits": arrays["logits"] + np.float32(0.5)})
    data = (own_bundle / GOLDEN).read_bytes()
    files = read_manifest(own_bundle).files | {GOLDEN: FileEntry(hashlib.sha256(data).hexdigest(), len(data))}
    again(own_bundle, files=files)
    code, said = run(own_bundle, "--http", "0", "--threads", "1")
    assert (code, said.count("does not answer the golden set as the original did")) == (1, 1), said
    assert "ended with exit code 1 before it could serve" in said


@shares_ports
def test_what_can_not_be_done_is_said_before_anything_is_loaded(group: Group, bundle_path: Path) -> None:
    code, said = run(bundle_path, "--model-control")
    assert (code, "--model-control reaches one of several processes" in said) == (2, True), said
    # not even where another such group would share it
    code, said = run(bundle_path, "--http", group.address.partition(":")[2])
    assert (code, "is in use" in said) == (2, True), said
    assert "golden" not in said
