"""The README as a new user would follow it: every console line and every Python block is run, in order.

A block whose first line is a comment with a file's name is written to that file. What takes minutes is made shorter,
and commands find large libraries imported: see `SHORTER` and forking.py.
"""

from __future__ import annotations

import json
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
FEWER = " --set export.golden=8 --set bench.batch=[1] --set bench.seconds=0.1"
SHORTER = {
    "run digits --out runs/demo": f"{FEWER} --set train.epochs=4 --set export.int8.samples=32",
    "run mine.toml --set train.epochs=2 --set bench.seconds=0.5": FEWER,
    "train lenet --data pictures --out runs/mine --set train.epochs=5": FEWER,
    "bench runs/demo/bundle --seconds 1": " --seconds 0.2",
    "tune runs/demo/bundle --minutes 1": " --runner onnxruntime:cpu --variant fp32 --minutes 0.1",
}
"""By commands: what is added to them."""
PAGES = sorted(path.relative_to(ROOT).as_posix() for path in [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")])


def blocks() -> list[tuple[str, str]]:
    """Language and text of each block that can be run."""
    return BLOCK.findall((ROOT / "README.md").read_text(encoding="utf-8"))


def free_port() -> str:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return str(probe.getsockname()[1])


def bring_pictures(folder: Path) -> None:
    """What a user would bring."""
    digits = open_dataset("digits")
    for index in range(400):
        file = folder / digits.classes[digits.labels[index]] / f"{index}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        digits.image(index).save(file)


class Shell:
    """Runs commands in one folder, our own in forks of a process that has imported others' libraries.

    A server stays until the end.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.env = os.environ | {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
        self.servers: list[subprocess.Popen[str]] = []
        self.forking = subprocess.Popen(
            [sys.executable, ROOT / "tests/forking.py"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=self.env,
            text=True,
        )

    def run(self, *command: str) -> str:
        out, err = self.folder / "stdout.txt", self.folder / "stderr.txt"
        if command[0] == "trueport" and sys.platform == "linux":  # elsewhere libraries don't outlive a fork
            code = self.run_fork(out, err, *command)
        else:
            with out.open("w") as to_out, err.open("w") as to_err:
                code = subprocess.run(
                    command, cwd=self.folder, env=self.env, stdout=to_out, stderr=to_err, check=False
                ).returncode
        told = out.read_text(encoding="utf-8")
        assert code == 0, f"{shlex.join(command)}\n{told}\n{err.read_text(encoding='utf-8')}"
        return told

    def run_fork(self, out: Path, err: Path, name: str, *arguments: str) -> int:
        """The exit code."""
        assert self.forking.stdin
        assert self.forking.stdout
        script = Path(sys.executable).with_name(name)
        print(json.dumps([*map(str, (self.folder, out, err, script)), *arguments]), file=self.forking.stdin, flush=True)
        return int(self.forking.stdout.readline())

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
        self.forking.communicate(timeout=30)
        for server in self.servers:
            server.send_signal(signal.SIGTERM)
            _, err = server.communicate(timeout=30)
            assert server.returncode == 0, err


@pytest.fixture
def shell(tmp_path: Path) -> Iterator[Shell]:
    """In an empty folder, but for pictures."""
    shell = Shell(tmp_path)
    bring_pictures(tmp_path / "pictures")
    yield shell
    shell.close()


@pytest.mark.slow
def test_every_command_and_every_block_runs(shell: Shell) -> None:
    port = free_port()
    outputs = []
    for language, block in blocks():
        text = block.replace(SERVE_PORT, port)
        if language == "python" and (file := FILE.match(text)):
            (shell.folder / file[1]).write_text(text, encoding="utf-8")
            continue
        if language == "python":
            outputs.append(shell.run(sys.executable, "-c", text))
            continue
        for line in text.splitlines():
            assert line.startswith("$ "), f"expected a command in a console block, found {line!r}"
            if line.startswith("$ trueport serve"):
                shell.serve(*shlex.split(line[2:]))
            else:
                outputs.append(shell.run_line(line[2:] + SHORTER.get(line.removeprefix("$ trueport "), "")))
    told = "\n".join(outputs)
    assert "faithful: 8 passed" in told
    assert '"predictions"' in told
    assert (shell.folder / "check.sarif").is_file()
    assert (shell.folder / "runs/demo/report.html").is_file()
    assert (shell.folder / "resnet18.svg").is_file()


def test_there_is_something_to_run() -> None:
    languages = [language for language, _ in blocks()]
    assert languages.count("console") >= 4
    assert languages.count("python") >= 2


def test_what_is_made_shorter_is_in_the_readme() -> None:
    lines = {line for _, block in blocks() for line in block.splitlines()}
    assert {f"$ trueport {command}" for command in SHORTER} <= lines


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
