"""Downloads against a server on loopback: whole, broken off, resumed, wrong, too long, silent, absent."""

from __future__ import annotations

import errno
import hashlib
import re
import socket
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from trueport.pipeline.data.download import Remote, fetch
from trueport.runtime.errors import MissingError, UsageError

BODY = bytes(range(256)) * 4000


@dataclass
class Server:
    """What it answers, and what it was asked."""

    url: str = ""
    body: bytes = BODY
    cut_after: list[int] = field(default_factory=list)
    """Of each answer: bytes until the connection is closed; whole answers when it is used up."""
    ranges: bool = True
    silent_s: float = 0.0
    asked: list[str] = field(default_factory=list)

    def answer(self, request: BaseHTTPRequestHandler) -> None:
        asked = request.headers.get("Range", "")
        self.asked.append(f"{request.path} {asked}".strip())
        if request.path == "/moved":
            request.send_response(302)
            request.send_header("Location", "/file.bin")
            request.end_headers()
            return
        if request.path == "/circle":
            request.send_response(302)
            request.send_header("Location", "/circle")
            request.end_headers()
            return
        if request.path == "/absent":
            request.send_error(404)
            return
        begin = int(asked.removeprefix("bytes=").removesuffix("-")) if asked and self.ranges else 0
        if begin > len(self.body):
            request.send_error(416)
            return
        rest = self.body[begin:]
        request.send_response(206 if begin else 200)
        request.send_header("Content-Length", str(len(rest)))
        if begin:
            request.send_header("Content-Range", f"bytes {begin}-{len(self.body) - 1}/{len(self.body)}")
        request.end_headers()
        sent = rest[: self.cut_after.pop(0)] if self.cut_after else rest
        try:
            request.wfile.write(sent[: len(sent) // 2])
            request.wfile.flush()
            time.sleep(self.silent_s)
            request.wfile.write(sent[len(sent) // 2 :])
        except OSError:
            pass  # the client has heard enough
        request.close_connection = True


@pytest.fixture(autouse=True)
def _no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("no_proxy", "127.0.0.1")


@pytest.fixture
def server() -> Iterator[Server]:
    state = Server()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            state.answer(self)

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as http:
        state.url = f"http://127.0.0.1:{http.server_port}"
        thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield state
        http.shutdown()
        thread.join()


@pytest.fixture
def remote(server: Server) -> Callable[..., Remote]:
    def remote(*paths: str, body: bytes = BODY) -> Remote:
        urls = tuple(path if path.startswith("http") else server.url + path for path in paths or ("/file.bin",))
        return Remote(urls, len(body), hashlib.sha256(body).hexdigest())

    return remote


def unreachable() -> str:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{taken.getsockname()[1]}"


def test_a_file_is_downloaded_once(server: Server, remote: Any, tmp_path: Path, capsys: Any) -> None:
    path = fetch(remote(), tmp_path / "new")
    assert path == tmp_path / "new" / "file.bin"
    assert path.read_bytes() == BODY
    assert [found.name for found in path.parent.iterdir()] == ["file.bin"]
    assert capsys.readouterr().err == "downloading file.bin, 1.0 MB, from 127.0.0.1\n"
    fetch(remote(), tmp_path / "new")
    assert server.asked == ["/file.bin"]
    assert capsys.readouterr().err == ""


def test_a_redirect_is_followed(server: Server, remote: Any, tmp_path: Path) -> None:
    assert fetch(remote("/moved"), tmp_path).read_bytes() == BODY
    assert server.asked == ["/moved", "/file.bin"]


def test_a_broken_transfer_goes_on_where_it_was(server: Server, remote: Any, tmp_path: Path) -> None:
    server.cut_after = [300_000, 400_000]
    assert fetch(remote(), tmp_path).read_bytes() == BODY
    assert server.asked == ["/file.bin", "/file.bin bytes=300000-", "/file.bin bytes=700000-"]


def test_what_arrived_is_kept_for_the_next_time(server: Server, remote: Any, tmp_path: Path) -> None:
    server.cut_after = [100_000, 0]
    with pytest.raises(MissingError, match=r"127\.0\.0\.1: it sent 100,000 of 1,024,000 bytes"):
        fetch(remote(), tmp_path)
    assert (tmp_path / "file.bin.part").stat().st_size == 100_000
    server.asked.clear()
    assert fetch(remote(), tmp_path).read_bytes() == BODY
    assert server.asked == ["/file.bin bytes=100000-"]


def test_without_ranges_it_starts_again(server: Server, remote: Any, tmp_path: Path) -> None:
    server.cut_after, server.ranges = [300_000], False
    assert fetch(remote(), tmp_path).read_bytes() == BODY
    assert server.asked == ["/file.bin", "/file.bin bytes=300000-"]


def test_a_wrong_beginning_is_thrown_away(server: Server, remote: Any, tmp_path: Path) -> None:
    (tmp_path / "file.bin.part").write_bytes(b"of another version" * 100)
    assert fetch(remote(), tmp_path).read_bytes() == BODY
    assert server.asked == ["/file.bin bytes=1800-", "/file.bin"]


def test_a_wrong_checksum_is_refused_and_nothing_is_left(server: Server, remote: Any, tmp_path: Path) -> None:
    server.body = BODY[:-1] + b"?"
    with pytest.raises(MissingError, match=f"expected SHA-256 {hashlib.sha256(BODY).hexdigest()}, found"):
        fetch(remote(), tmp_path)
    assert not list(tmp_path.iterdir())


def test_an_endless_body_is_not_listened_to(server: Server, remote: Any, tmp_path: Path) -> None:
    server.body = BODY * 20
    with pytest.raises(MissingError, match="it sends more than 1,024,000 bytes"):
        fetch(remote(), tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_silent_server_is_given_up(server: Server, remote: Any, tmp_path: Path) -> None:
    server.silent_s = 1.0
    begin = time.monotonic()
    with pytest.raises(MissingError, match=r"it was silent for 0\.1 s"):
        fetch(remote(), tmp_path, timeout_s=0.1)
    assert time.monotonic() - begin < 5


def test_offline_is_one_sentence_with_the_way_out(remote: Any, tmp_path: Path) -> None:
    with pytest.raises(MissingError) as caught:
        fetch(remote(f"{unreachable()}/file.bin"), tmp_path)
    message = str(caught.value)
    assert re.fullmatch(
        rf"file\.bin can't be downloaded \(127\.0\.0\.1: it can't be reached, Connection refused\): try again, "
        rf"or put the file at {re.escape(str(tmp_path))}/file\.bin by hand, where it is verified and used",
        message,
    )


@pytest.mark.parametrize(("path", "reason"), [("/absent", "answered 404 Not Found"), ("/circle", "infinite loop")])
def test_refusals_are_told_in_one_line(remote: Any, tmp_path: Path, path: str, reason: str) -> None:
    with pytest.raises(MissingError, match=reason) as caught:
        fetch(remote(path), tmp_path)
    assert "\n" not in str(caught.value)


def test_the_next_address_is_tried(server: Server, remote: Any, tmp_path: Path) -> None:
    found = fetch(remote(f"{unreachable()}/file.bin", "/absent", "/file.bin"), tmp_path)
    assert found.read_bytes() == BODY


def test_a_file_put_there_by_hand_is_verified_and_used(server: Server, remote: Any, tmp_path: Path) -> None:
    (tmp_path / "file.bin").write_bytes(BODY)
    assert fetch(remote(), tmp_path).read_bytes() == BODY
    assert not server.asked
    (tmp_path / "file.bin").write_bytes(BODY[:500])
    with pytest.raises(UsageError, match=r"expected 1,024,000 bytes, found 500; delete it"):
        fetch(remote(), tmp_path)
    (tmp_path / "file.bin").write_bytes(BODY[::-1])
    with pytest.raises(UsageError, match="expected SHA-256"):
        fetch(remote(), tmp_path)
    assert (tmp_path / "file.bin").read_bytes() == BODY[::-1]


def test_too_little_room_is_told_before_anything_is_asked(
    server: Server, remote: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=1_500_000))
    with pytest.raises(MissingError, match=r"1\.5 MB free, 2\.0 MB are needed: make room, or name another folder"):
        fetch(remote(), tmp_path)
    assert not server.asked


def test_a_disk_that_fills_up_is_told(remote: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> str:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("trueport.pipeline.data.download._receive", full)
    with pytest.raises(MissingError, match=r"the disk is full, .*file\.bin is not whole: make room"):
        fetch(remote(), tmp_path)
