"""What an application embeds, installed alone: the wheel and its base dependencies in an empty environment."""

from __future__ import annotations

import http.client
import json
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from trueport.runtime import Prediction, load
from trueport.runtime.bundle import Bundle

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[1]
SCRIPTS = "Scripts" if os.name == "nt" else "bin"
TIMEOUT_S = 120
"""For a command that hangs; nothing here is judged by the time it takes."""


class Install:
    """An environment in a folder of its own, and an empty folder to run in, from where the source can't be seen."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.work = folder / "work"
        self.work.mkdir(parents=True)
        # Bytecode is kept, so that not every command compiles what it imports.
        hidden = ("PYTHONPATH", "VIRTUAL_ENV", "PYTHONDONTWRITEBYTECODE")
        self.environment = {name: value for name, value in os.environ.items() if name not in hidden}

    def program(self, name: str) -> str:
        return str(self.folder / "venv" / SCRIPTS / name)

    def run(self, name: str, *arguments: object) -> subprocess.CompletedProcess[str]:
        command = [self.program(name), *map(str, arguments)]
        return subprocess.run(
            command, cwd=self.work, env=self.environment, capture_output=True, text=True, timeout=TIMEOUT_S, check=False
        )


def done(command: list[str], cwd: Path) -> None:
    result = subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=300, check=False)
    assert result.returncode == 0, f"{command}\n{result.stdout}{result.stderr}"


def build(folder: Path) -> Path:
    """The wheel, built from a copy of what git knows: a build leaves folders in the tree it is given."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    for name in subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.splitlines():
        if (ROOT / name).is_file():
            target = folder / "tree" / name
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes((ROOT / name).read_bytes())
    done([sys.executable, "-m", "build", "--wheel", "--no-isolation", "-o", str(folder), str(folder / "tree")], folder)
    return next(folder.glob("*.whl"))


def constraints(folder: Path) -> Path:
    """The versions of requirements.txt as constraints: without hashes, which have to stand on everything or nothing."""
    text = (ROOT / "requirements.txt").read_text(encoding="utf-8")
    pins = re.findall(r"^([a-z0-9][^\s=]*==[^\\\n]+?)\s*\\?$", text, re.MULTILINE)
    assert any(pin.startswith("numpy==") for pin in pins)
    file = folder / "constraints.txt"
    file.write_text("\n".join(pins) + "\n", encoding="utf-8")
    return file


@pytest.fixture(scope="module")
def install(tmp_path_factory: pytest.TempPathFactory) -> Install:
    """The wheel and its base dependencies, by uv where it is, as the Makefile installs it, else by pip."""
    installed = Install(tmp_path_factory.mktemp("base"))
    folder, python = installed.folder, installed.program("python")
    wheel, pins = str(build(folder)), str(constraints(folder))
    uv = Path(sys.executable).parent / "uv"
    if uv.exists():
        done([str(uv), "venv", "--quiet", "--python", sys.executable, str(folder / "venv")], folder)
        done([str(uv), "pip", "install", "--quiet", "--python", python, "-c", pins, wheel], folder)
    else:
        done([sys.executable, "-m", "venv", str(folder / "venv")], folder)
        done([python, "-m", "pip", "install", "--quiet", "-c", pins, wheel], folder)
    return installed


@pytest.fixture(scope="module")
def picture(bundle_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A real picture: the first of the bundle's golden ones."""
    file = tmp_path_factory.mktemp("pictures") / "picture.png"
    file.write_bytes(Bundle.open(bundle_path).golden().encoded[0])
    return file


@pytest.fixture(scope="module")
def expected(bundle_path: Path, picture: Path) -> Prediction:
    """What the bundle says about the picture here."""
    with load(bundle_path) as session:
        return session.classify(picture)[0]


def test_only_the_base_is_installed(install: Install) -> None:
    code = """
import importlib.util, trueport.runtime
names = ("torch", "torchvision", "onnx", "onnxscript", "safetensors", "sklearn", "jinja2", "setuptools")
print([name for name in names if importlib.util.find_spec(name)], trueport.runtime.__file__)
"""
    told = install.run("python", "-c", code).stdout
    assert told.startswith("[] ")
    assert str(install.folder / "venv") in told


def test_version(install: Install) -> None:
    told = install.run("trueport", "--version")
    assert re.fullmatch(r"trueport \d+\.\d+\.\d+\S*\n", told.stdout), told.stderr


def test_doctor_names_what_is_not_installed(install: Install) -> None:
    told = install.run("trueport", "doctor", "--json", "-")
    assert told.returncode == 0, told.stderr
    rows = {(row["group"], row["name"]): row for row in json.loads(told.stdout)["rows"]}
    assert rows["onnxruntime", "CPU (onnxruntime:cpu)"]["status"] == "ok"
    assert rows["extras", "train"]["status"] == "missing"
    assert "no torch" in rows["extras", "train"]["detail"]
    assert rows["extras", "train"]["remedy"] == "pip install 'trueport[train]'"


def test_predict(install: Install, bundle_path: Path, picture: Path, expected: Prediction) -> None:
    told = install.run("trueport", "predict", bundle_path, picture, "--json")
    assert told.returncode == 0, told.stderr
    best = json.loads(told.stdout)["top"][0]
    assert best["label"] == expected.label
    assert best["score"] == pytest.approx(expected.score, abs=1e-4)


def test_check_holds_the_port_against_the_recording(install: Install, bundle_path: Path) -> None:
    told = install.run("trueport", "check", bundle_path, "--json", "-")
    assert told.returncode == 0, told.stdout + told.stderr
    report = json.loads(told.stdout)
    assert report["reference"] == "recording"
    statuses = {verdict["gate"]: verdict["status"] for verdict in report["verdicts"]}
    assert statuses.pop("recording") == "not run"
    assert len(statuses) == 7
    assert set(statuses.values()) == {"passed"}


def test_changed_bundle_is_refused(install: Install, own_bundle: Path) -> None:
    manifest = own_bundle / "manifest.json"
    manifest.write_bytes(manifest.read_bytes().replace(b'"arch": "lenet"', b'"arch": "lemon"'))
    told = install.run("trueport", "check", own_bundle)
    assert told.returncode == 4
    assert told.stderr.count("\n") == 1
    assert "manifest.json was changed since export" in told.stderr


def test_bench_times_the_port_alone(install: Install, bundle_path: Path) -> None:
    told = install.run("trueport", "bench", bundle_path, "--seconds", "0.2", "--batch", "1", "--json", "-")
    assert told.returncode == 0, told.stderr
    report = json.loads(told.stdout)
    assert report["original"] is None
    assert "pip install 'trueport[train]'" in report["original_not_run"]
    assert report["batches"][0]["port"]["median_ms"] > 0


@pytest.mark.parametrize(
    "command", [("train", "lenet", "--data", "digits"), ("run", "digits"), ("models",)], ids=" ".join
)
def test_training_names_the_extra_it_needs(install: Install, command: tuple[str, ...]) -> None:
    told = install.run("trueport", *command)
    assert told.returncode == 3
    assert re.fullmatch(r"trueport: .+ needs .+ pip install 'trueport\[train\]'\n", told.stderr), told.stderr
    assert not list(install.work.iterdir())


def test_application_embeds_a_session(install: Install, bundle_path: Path, picture: Path, expected: Prediction) -> None:
    code = """
import sys
from pathlib import Path
from trueport.runtime import load
with load(sys.argv[1]) as session:
    data = Path(sys.argv[2]).read_bytes()
    print(session.classify(data)[0].label, session.submit(data).result().label, sep="|")
"""
    told = install.run("python", "-W", "error", "-c", code, bundle_path, picture)
    assert told.returncode == 0, told.stderr
    assert told.stdout.strip() == f"{expected.label}|{expected.label}"


@contextmanager
def served(install: Install, bundle: Path) -> Iterator[tuple[int, subprocess.Popen[str]]]:
    """`trueport serve` on a free port; killed where it does not come up or does not end."""
    command = [install.program("trueport"), "serve", str(bundle), "--http", "0"]
    with subprocess.Popen(
        command, cwd=install.work, env=install.environment, stderr=subprocess.PIPE, text=True
    ) as process:
        watchdog = threading.Timer(TIMEOUT_S, process.kill)
        watchdog.start()
        try:
            assert process.stderr
            said = []
            for line in process.stderr:
                said.append(line)
                if found := re.search(r"http://127\.0\.0\.1:(\d+)", line):
                    yield int(found.group(1)), process
                    return
            pytest.fail(f"the server did not come up: {''.join(said)}")
        finally:
            watchdog.cancel()
            process.kill()


def ask(port: int, method: str, path: str, body: bytes | None = None) -> tuple[int, bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=TIMEOUT_S)
    try:
        connection.request(method, path, body, {"Content-Type": "image/png"} if body else {})
        answer = connection.getresponse()
        return answer.status, answer.read()
    finally:
        connection.close()


def test_serve(install: Install, bundle_path: Path, picture: Path, expected: Prediction) -> None:
    with served(install, bundle_path) as (port, process):
        assert ask(port, "GET", "/v2/health/ready")[0] == 200
        status, body = ask(port, "POST", "/classify", picture.read_bytes())
        assert status == 200, body
        assert json.loads(body)["predictions"][0]["label"] == expected.label
        process.send_signal(signal.SIGTERM)
        assert process.wait(TIMEOUT_S) == 0
