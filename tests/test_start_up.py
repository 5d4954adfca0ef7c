"""What is imported at start: help and an application's import wait for nothing that they don't use."""

from __future__ import annotations

import json
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest

from trueport.pipeline.cli import COMMANDS

HEAVY = {
    "PIL", "asyncio", "httptools", "jinja2", "matplotlib", "msgspec", "numpy", "onnx", "onnxruntime", "onnxscript",
    "rich", "safetensors", "scipy", "sklearn", "tensorboard", "torch", "torchvision", "uvicorn", "uvloop",
}  # fmt: skip
"""Packages that take long to import, and that start-up can do without."""

LOADED = "import json, sys; print(json.dumps(sorted({name.partition('.')[0] for name in sys.modules})))"
ALL_HELP = """
from trueport.pipeline.cli import COMMANDS, app
for command in COMMANDS:
    app([command, "--help"], standalone_mode=False)
"""


def after(code: str, cwd: Path) -> tuple[set[str], str]:
    """Top-level names of what a fresh process has imported after running the code, and what the code printed."""
    command = [sys.executable, "-c", f"{code}\n{LOADED}"]
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    *printed, loaded = done.stdout.splitlines()
    return set(json.loads(loaded)), "\n".join(printed)


@pytest.fixture(scope="module")
def bare(tmp_path_factory: pytest.TempPathFactory) -> set[str]:
    """What Python itself and the way trueport is installed import."""
    return after("", tmp_path_factory.mktemp("bare"))[0]


def third_party(names: set[str]) -> set[str]:
    return names & set(metadata.packages_distributions()) - {"trueport"}


def test_imports_are_seen(tmp_path: Path) -> None:
    loaded, _ = after("from trueport.runtime import load; load", tmp_path)
    assert {"trueport", "numpy", "msgspec"} <= loaded


@pytest.mark.parametrize("arguments", ["--help", "--version"])
def test_command_starts_without_anything_heavy(arguments: str, tmp_path: Path) -> None:
    # As the console script does it; the import times are written for whatever is imported, to the very end.
    code = "import sys; from trueport.pipeline.cli import main; sys.exit(main())"
    command = [sys.executable, "-X", "importtime", "-c", code, arguments]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    lines = [line for line in done.stderr.splitlines() if line.startswith("import time:")]
    imported = {line.rpartition("|")[2].strip().partition(".")[0] for line in lines}
    assert {"trueport", "typer"} <= imported
    assert not imported & HEAVY


def test_help_of_every_command_imports_nothing_heavy(tmp_path: Path) -> None:
    loaded, printed = after(ALL_HELP, tmp_path)
    assert printed.count("Usage: ") == len(COMMANDS)
    assert not loaded & HEAVY


def test_package_costs_nothing_before_it_is_used(bare: set[str], tmp_path: Path) -> None:
    loaded, _ = after("import trueport.runtime, trueport.runtime.errors", tmp_path)
    assert "trueport" in loaded
    assert not third_party(loaded - bare)


def test_load_waits_for_no_picture_server_or_terminal(bare: set[str], tmp_path: Path) -> None:
    loaded, _ = after("from trueport.runtime import load; load", tmp_path)
    assert not (loaded - bare) & (HEAVY - {"msgspec", "numpy"} | {"http", "ssl", "typer"})
    # onnxruntime too comes only with the first bundle; msgspec takes typing_extensions where it is installed.
    assert third_party(loaded - bare) <= {"msgspec", "numpy", "typing_extensions"}
