"""docs/serving.md and docs/Dockerfile: what can be run in them is run, the rest is compared with the code."""

from __future__ import annotations

import configparser
import importlib.util
import io
import json
import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from trueport.runtime import BatchLimits, Session, load
from trueport.runtime.server import Log, ServerLimits, answers
from trueport.runtime.server.statistics import REASONS, prometheus_text
from trueport.runtime.server.watched import Seen

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs/serving.md").read_text(encoding="utf-8")
DOCKERFILE = (ROOT / "docs/Dockerfile").read_text(encoding="utf-8")
TRUEPORT = Path(sys.executable).with_name("trueport")
PORTS = ("8000", "8001", "8080")
TIMEOUT_S = 60
NGINX = shutil.which("nginx", path=f"{os.environ.get('PATH', '')}{os.pathsep}/usr/sbin")


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", PAGE, re.DOTALL)


def block(language: str) -> str:
    (only,) = blocks(language)
    return only


def free_port() -> str:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return str(probe.getsockname()[1])


def wait_for(found: Callable[[], object], process: subprocess.Popen[Any]) -> None:
    """Until something is found, as long as the process runs."""
    for _ in range(TIMEOUT_S * 20):
        if found():
            return
        assert process.poll() is None, "it ended before it was ready"
        time.sleep(0.05)
    pytest.fail("it did not become ready")


@pytest.fixture(scope="module")
def folder(bundle_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the page's reader has: the demo's bundle and picture, and a token."""
    folder = tmp_path_factory.mktemp("reader")
    (folder / "runs/demo").mkdir(parents=True)
    (folder / "runs/demo/bundle").symlink_to(bundle_path)
    (folder / "token").write_text("s3cret\n", encoding="utf-8")
    with load(bundle_path, threads=1) as session:
        Image.open(io.BytesIO(session.bundle.golden().encoded[0])).convert("L").save(folder / "runs/demo/sample.png")
    return folder


@pytest.fixture
def started(folder: Path) -> Iterator[Callable[..., None]]:
    """Starts servers, which say so on standard error; each has to end with 0."""
    servers: list[subprocess.Popen[bytes]] = []
    environment = os.environ | {"PATH": f"{TRUEPORT.parent}{os.pathsep}{os.environ['PATH']}", "OMP_NUM_THREADS": "1"}

    def start(*command: str) -> None:
        told = folder / f"stderr{len(servers)}.txt"
        with told.open("w", encoding="utf-8") as file:
            servers.append(subprocess.Popen(command, cwd=folder, env=environment, stderr=file))
        wait_for(lambda: re.search(r"http://127\.0\.0\.1:\d+", told.read_text(encoding="utf-8")), servers[-1])

    yield start
    for server in servers:
        server.send_signal(signal.SIGTERM)
    codes = [server.wait(TIMEOUT_S) for server in servers]
    # uvicorn ends by the signal itself, once it has stopped
    for server, code in zip(servers, codes, strict=True):
        assert code == (-signal.SIGTERM if server.args[0] == "uvicorn" else 0)  # type: ignore[index]


def test_the_embedded_session_answers(folder: Path) -> None:
    embedded, _ = blocks("python")
    done = subprocess.run(
        [sys.executable, "-c", embedded], cwd=folder, capture_output=True, text=True, timeout=TIMEOUT_S, check=False
    )
    assert done.returncode == 0, done.stderr
    assert re.match(r"digits \S+: golden set passed, .*\n\d [01]\.\d+\n$", done.stdout)


def test_every_console_block_runs(folder: Path, started: Callable[..., None]) -> None:
    _, app = blocks("python")
    (folder / "app.py").write_text(app, encoding="utf-8")
    told = []
    for text in blocks("console"):
        for port in PORTS:
            text = text.replace(port, free_port())  # noqa: PLW2901
        lines = text.splitlines()
        if "uvicorn" in lines[0] and not importlib.util.find_spec("fastapi"):
            continue
        for line in lines:
            assert line.startswith("$ ")
            command = shlex.split(line[2:])
            if command[0] == "curl":
                told.append(
                    subprocess.run(command, cwd=folder, capture_output=True, check=True, timeout=TIMEOUT_S).stdout
                )
            else:
                started(*command)
    assert b'"predictions"' in b"".join(told)
    assert json.loads(told[-1])[0] == {"name": "digits", "version": "", "state": "UNAVAILABLE", "reason": "not loaded"}


def test_fastapi_is_there_to_be_tried() -> None:
    pytest.importorskip("fastapi", reason="fastapi is not installed: the page's block for it is not run")


def test_the_application_replays_the_golden_set_unless_told_not_to(
    session_of: Callable[..., Session], monkeypatch: pytest.MonkeyPatch
) -> None:
    from trueport.runtime import server
    from trueport.runtime.errors import GateError

    def failing(session: Session) -> str:
        raise GateError("not what was recorded")

    monkeypatch.setattr(server, "require_golden", failing)
    with session_of() as session:
        with pytest.raises(GateError, match="not what was recorded"):
            session.asgi_app()
        session.asgi_app(gate=False).close()


def test_what_the_replay_said_is_kept(bundle_path: Path) -> None:
    with load(bundle_path, threads=1) as session:
        app = session.asgi_app()
        (endpoint,) = app._router.models
        app.close()
    assert "golden set passed" in endpoint.passed


def test_the_unit_is_one_that_systemd_takes(tmp_path: Path) -> None:
    text = block("ini")
    unit = configparser.ConfigParser(strict=True, interpolation=None)
    unit.optionxform = str  # type: ignore[assignment, method-assign]
    unit.read_string(text)
    command = shlex.split(unit["Service"]["ExecStart"])
    assert command[1] == "serve"
    assert unit["Service"]["ExecReload"].endswith("-HUP $MAINPID")
    assert float(unit["Service"]["TimeoutStopSec"]) > ServerLimits().drain_s
    verify = shutil.which("systemd-analyze")
    if verify is None:
        pytest.skip("systemd-analyze is not installed: the unit was only parsed")
    file = tmp_path / "trueport.service"
    file.write_text(text.replace(command[0], str(TRUEPORT)), encoding="utf-8")
    done = subprocess.run([verify, "verify", file], capture_output=True, text=True, timeout=TIMEOUT_S, check=False)
    told = [line for line in done.stderr.splitlines() if "trueport" in line]  # it tells of the machine's units too
    assert told == []
    file.write_text(text.replace("Type=exec", "Type=nothing"), encoding="utf-8")
    done = subprocess.run([verify, "verify", file], capture_output=True, text=True, timeout=TIMEOUT_S, check=False)
    assert "trueport.service" in done.stderr


def test_the_unit_s_command_serves_and_tells_in_json(folder: Path, started: Callable[..., None]) -> None:
    text = re.findall(r"^ExecStart=(.*)$", block("ini"), re.MULTILINE)[0]
    port = free_port()
    replaced = {"/opt/trueport/bin/trueport": TRUEPORT, "/srv/models/digits": folder / "runs/demo/bundle", "%d": folder}
    for path, here in replaced.items():
        assert path in text
        text = text.replace(path, str(here))
    started(*shlex.split(text), "--http", port, "--access-log")
    for _ in range(2):  # the first one's line is written before the second one is read
        assert answer(f"http://127.0.0.1:{port}", b"")[0] == 401
    told = [json.loads(line) for line in (folder / "stderr0.txt").read_text(encoding="utf-8").splitlines()]
    assert "golden set passed" in "".join(line.get("message", "") for line in told)
    assert {line["path"] for line in told if "method" in line} == {"/v2/models/digits/infer"}


def test_every_option_that_is_named_exists() -> None:
    done = subprocess.run([TRUEPORT, "serve", "--help"], capture_output=True, text=True, timeout=TIMEOUT_S, check=True)
    options = set(re.findall(r"--[a-z-]+", done.stdout))
    named = {
        option
        for line in re.findall(r"trueport serve.*", f"{PAGE}\n{unescaped_entrypoint()}")
        + re.findall(r"`--[a-z-]+[^`]*`", PAGE)
        for option in re.findall(r"--[a-z-]+", line)
    }
    assert len(named) > 10
    assert named <= options


def unescaped_entrypoint() -> str:
    return shlex.join(json.loads(instruction("ENTRYPOINT")) + json.loads(instruction("CMD")))


def instruction(name: str) -> str:
    """The last of that name."""
    return str(re.findall(rf"^{name} (.*)$", DOCKERFILE, re.MULTILINE)[-1])


def test_the_image_has_what_it_copies_and_no_rights() -> None:
    copied = [words.split()[:-1] for words in re.findall(r"^COPY (?!--from)(.*)$", DOCKERFILE, re.MULTILINE)]
    sources = {source for each in copied for source in each}
    assert {"pyproject.toml", "pipeline", "models", "export", "runtime"} <= sources
    assert all((ROOT / source).exists() for source in sources)
    assert not instruction("USER").startswith(("0", "root"))
    assert DOCKERFILE.rindex("USER") > DOCKERFILE.rindex("COPY")
    run = re.findall(r"^RUN (.*)$", DOCKERFILE, re.MULTILINE)
    assert [shlex.split(each)[0] for each in run] == ["python", "/opt/trueport/bin/pip"]


def test_what_is_mounted_is_not_what_an_export_exchanges() -> None:
    """A mount of the bundle's own folder would go on showing the old one."""
    ((source, target),) = re.findall(r'-v "\$PWD/([^":]+):([^":]+):ro"', DOCKERFILE)
    (bundle,) = json.loads(instruction("CMD"))
    assert Path(bundle).parent == Path(target)
    assert Path(source, Path(bundle).name) == Path("runs/demo/bundle")


@pytest.mark.parametrize("closed", [False, True])
def test_the_image_s_health_check_asks_the_server(
    running: Any, session_of: Callable[..., Session], closed: bool
) -> None:
    check = instruction("HEALTHCHECK").partition("CMD ")[2]
    _, option, code = json.loads(check)
    with session_of() as session, running([session]) as address:
        if closed:
            session.close()
        code = code.replace("127.0.0.1:8000", address)
        done = subprocess.run([sys.executable, option, code], capture_output=True, timeout=TIMEOUT_S, check=False)
    assert done.returncode == closed


@pytest.mark.skipif(NGINX is None, reason="nginx is not installed: its block is not run")
def test_nginx_takes_its_block_and_passes_requests_on(
    running: Any, session_of: Callable[..., Session], tmp_path: Path
) -> None:
    assert NGINX
    port = free_port()
    limits = ServerLimits(max_body_bytes=4 * 2**20)
    with session_of() as session, running([session], limits) as address:
        server = re.sub(r"\n +ssl_certificate.*", "", block("nginx")).replace(
            "listen 443 ssl", f"listen 127.0.0.1:{port}"
        )
        server = server.replace("127.0.0.1:8000", address)
        temporary = "".join(
            f"{name}_temp_path {tmp_path};" for name in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
        )
        file = tmp_path / "nginx.conf"
        file.write_text(
            f"daemon off; master_process off; pid {tmp_path}/pid; error_log stderr; events {{}}\n"
            f"http {{ access_log off; {temporary}\n{server}\n}}\n",
            encoding="utf-8",
        )
        nginx = subprocess.Popen([NGINX, "-e", "stderr", "-c", file], stderr=subprocess.PIPE, text=True)
        try:
            wait_for(lambda: listens(port), nginx)
            url = f"http://127.0.0.1:{port}"
            assert answer(url, bytes(64))[0] == 200
            for size, expected in ((2 * 2**20, 400), (5 * 2**20, 413)):
                status, told = answer(url, bytes(size))
                assert status == expected
                assert b'{"error":' in told  # the server's own, not the proxy's
        finally:
            nginx.terminate()
            _, said = nginx.communicate(timeout=TIMEOUT_S)
    assert "[emerg]" not in said


def answer(url: str, body: bytes) -> tuple[int, bytes]:
    fields = {"Inference-Header-Content-Length": "0", "Content-Type": "application/octet-stream"}
    request = urllib.request.Request(f"{url}/v2/models/digits/infer", body, fields)
    try:
        with urllib.request.urlopen(request, timeout=TIMEOUT_S) as response:
            return response.status, response.read()
    except urllib.error.HTTPError as error:
        return error.code, error.read()


def listens(port: str) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", int(port))) == 0


def test_status_codes_are_those_of_the_code() -> None:
    assert answers.__doc__
    told = {code for row in re.findall(r"^\| ([\d, ]+) \|", PAGE, re.MULTILINE) for code in row.split(", ")}
    assert told == set(re.findall(r"\b[45]\d\d\b", answers.__doc__)) | {"200"}


def test_metrics_are_those_of_the_server() -> None:
    text = prometheus_text([]).decode()
    exist = set(re.findall(r"^# TYPE (\S+)", text, re.MULTILINE))
    named = {name.removesuffix("_bucket") for name in re.findall(r"\b(?:nv_inference|trueport_request)_[a-z_]+", PAGE)}
    assert named == exist
    assert all(f"`{reason}`" in PAGE for reason in REASONS)


def test_limits_are_the_defaults() -> None:
    limits, batch = ServerLimits(), BatchLimits()
    rows = dict(re.findall(r"^\| ([a-z][^|]+?) +\| (\S[^|]*?) \|", PAGE.partition("### Limits")[2], re.MULTILINE))
    assert rows["rows in a batch"].startswith(f"{batch.max_batch_rows},")
    assert rows["rows in a request"].startswith(f"{batch.request_rows},")
    assert rows["rows that wait"] == f"{batch.max_queue_rows:,}"
    body, text = limits.max_body_bytes >> 20, limits.max_json_bytes >> 20
    assert rows["body of a request"] == f"{body} MiB, of it JSON {text} MiB"
    assert rows["bodies that arrive at once"] == f"{limits.max_held_bytes >> 30} GiB"
    pictures, size = limits.max_waiting_pictures, limits.max_waiting_picture_bytes >> 20
    assert rows["encoded pictures that wait for decoding"] == f"{pictures}, of {size} MiB together"
    assert rows["header"] == f"{limits.max_head_bytes >> 10} KiB, {limits.max_fields} fields"
    assert rows["connections"] == str(limits.max_connections)
    times = f"{limits.head_s:g} s, {limits.body_s:g} s, {limits.idle_s:g} s"
    assert rows["time for a header, a body, between two requests"] == times
    assert rows["time of one run"].startswith(f"{limits.run_s:g} s,")


def test_the_line_of_the_log_is_what_is_written() -> None:
    stream, trace = io.StringIO(), b"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    seen = Seen("POST", "/v2/models/digits/infer", headers={b"traceparent": trace}, model="digits", model_version="1")
    Log(stream).request(seen)
    shown = next(text for text in blocks("text") if text.startswith("time="))
    assert [pair.partition("=")[0] for pair in shown.split()] == [
        pair.partition("=")[0] for pair in stream.getvalue().split()
    ]
