"""The README as a new user would follow it: every console line and every Python block is run, in order.

A block whose first line is a comment with a file's name is written to that file.
"""

from __future__ import annotations

import os
import re
import shlex
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from trueport.pipeline.data import open_dataset

ROOT = Path(__file__).parents[1]
BLOCK = re.compile(r"```(console|python)\n(.*?)```", re.DOTALL)
FILE = re.compile(r"# (\w+\.py)\n")
"""The first line of a block that is a file to keep, not a program to run."""
SERVE_PORT = "8000"
PAGES = sorted(path.relative_to(ROOT).as_posix() for path in [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")])


def blocks() -> list[tuple[str, str]]:
    """Language and text of each block that can be run."""
    return BLOCK.findall((ROOT / "README.md").read_text(encoding="utf-8"))


def free_port() -> str:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return str(probe.getsockname()[1])


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """An empty folder with the pictures a user would bring."""
    digits = open_dataset("digits")
    for index in range(400):
        file = tmp_path / "pictures" / digits.classes[digits.labels[index]] / f"{index}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        digits.image(index).save(file)
    return tmp_path


class Shell:
    """Runs commands in one folder; a server stays until the end."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.env = os.environ | {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
        self.servers: list[subprocess.Popen[str]] = []

    def run(self, *command: str) -> str:
        done = subprocess.run(command, cwd=self.folder, env=self.env, capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"{shlex.join(command)}\n{done.stdout}\n{done.stderr}"
        return done.stdout

    def run_line(self, line: str) -> str:
        """Run a line as a shell would; `> FILE` is the only operator that there is."""
        command, _, file = line.partition(" > ")
        out = self.run(*shlex.split(command))
        if file:
            (self.folder / file).write_text(out, encoding="utf-8")
        return out

    def serve(self, *command: str) -> None:
        server = subprocess.Popen(command, cwd=self.folder, env=self.env, stderr=subprocess.PIPE, text=True)
        self.servers.append(server)
        assert server.stderr
        for line in server.stderr:
            if "serving" in line:
                return
        pytest.fail("the server ended before it was ready")

    def close(self) -> None:
        for server in self.servers:
            server.send_signal(signal.SIGTERM)
            _, err = server.communicate(timeout=30)
            assert server.returncode == 0, err


@pytest.fixture
def shell(home: Path) -> Iterator[Shell]:
    shell = Shell(home)
    yield shell
    shell.close()


@pytest.mark.slow
def test_every_command_and_every_block_runs(shell: Shell) -> None:
    port = free_port()
    outputs = []
    for language, block in blocks():
        text = block.replace(SERVE_PORT, port).replace("--minutes 1", "--minutes 0.1")  # a search that is cut short
        if language == "python" and (file := FILE.match(text)):
            (shell.folder / file[1]).write_text(text, encoding="utf-8")
            continue
        if language == "python":
            outputs.append(shell.run(sys.executable, "-c", text))
            continue
        for line in text.splitlines():
            assert line.startswith("$ "), f"expected a command in a console block, found {line!r}"
            command = shlex.split(line[2:])
            if command[:2] == ["trueport", "serve"]:
                shell.serve(*command)
            else:
                outputs.append(shell.run_line(line[2:]))
    told = "\n".join(outputs)
    assert "faithful: 5 passed" in told
    assert '"predictions"' in told
    assert (shell.folder / "check.json").is_file()
    assert (shell.folder / "runs/demo/report.html").is_file()
    assert (shell.folder / "resnet18.svg").is_file()


def test_there_is_something_to_run() -> None:
    languages = [language for language, _ in blocks()]
    assert languages.count("console") >= 4
    assert languages.count("python") >= 2


@pytest.mark.parametrize("page", PAGES)
def test_links_between_files_lead_somewhere(page: str) -> None:
    text = (ROOT / page).read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)#]+)[^)]*\)", text):
        if "://" not in target:
            assert (ROOT / page).parent.joinpath(target).exists(), target


def test_exit_codes_are_those_of_the_code() -> None:
    from trueport.runtime import errors

    text = (ROOT / "README.md").read_text(encoding="utf-8")
    told = {int(code) for code in re.findall(r"^\| (\d+) \|", text, re.MULTILINE)}
    assert told == {code for name, code in vars(errors).items() if name.startswith("EXIT_")}


@pytest.mark.parametrize("page", PAGES)
def test_pages_are_written(page: str) -> None:
    text = (ROOT / page).read_text(encoding="utf-8")
    assert len(text) > 200
    assert not re.search(r"@@|TODO|FIXME|lorem", text)
