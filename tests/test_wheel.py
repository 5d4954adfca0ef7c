"""What is built from the tree: every file of the four folders, nothing else, and the metadata of pyproject.toml."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tomllib
import zipfile
from configparser import ConfigParser
from email import message_from_string
from email.message import Message
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).parents[1]
FOLDERS = ("pipeline", "export", "models", "runtime")
PROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def known_to_git() -> list[str]:
    """Files that a clone has, or will have once they are committed."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.splitlines()
    return [name for name in listed if (ROOT / name).is_file()]


def copied(names: list[str], to: Path) -> Path:
    """A tree to build from, as a build leaves its own folders in the one it is given."""
    for name in names:
        target = to / name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, target)
    return to


def build(tree: Path, out: Path) -> Path:
    """Build the tree's wheel with the setuptools that is installed here."""
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(out), str(tree)]
    done = subprocess.run(command, cwd=out.parent, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    (wheel,) = out.glob("*.whl")
    return wheel


def contents(wheel: Path) -> set[str]:
    """Names in a wheel, without its own description of itself."""
    with zipfile.ZipFile(wheel) as opened:
        return {name for name in opened.namelist() if ".dist-info/" not in name}


def expected(names: list[str]) -> set[str]:
    """What should be in the wheel: every file of the four folders, under the import name."""
    return {f"trueport/{name}" for name in names if name.split("/")[0] in FOLDERS and "/" in name}


@pytest.fixture(scope="module")
def names() -> list[str]:
    """Files of the tree, read once: it may be edited meanwhile."""
    return known_to_git()


@pytest.fixture(scope="module")
def wheel(names: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel of this tree."""
    folder = tmp_path_factory.mktemp("wheel")
    return build(copied(names, folder / "tree"), folder / "dist")


@pytest.fixture(scope="module")
def described(wheel: Path) -> Message:
    """METADATA of the wheel."""
    return message_from_string(member(wheel, "METADATA"))


def member(wheel: Path, name: str) -> str:
    with zipfile.ZipFile(wheel) as opened:
        (path,) = [path for path in opened.namelist() if path.endswith(f".dist-info/{name}")]
        return opened.read(path).decode()


def test_wheel_holds_the_four_folders_whole_and_nothing_else(names: list[str], wheel: Path) -> None:
    held = contents(wheel)
    assert held == expected(names)
    assert {f"trueport/{folder}/py.typed" for folder in FOLDERS} <= held
    assert {"trueport/pipeline/recipes/digits.toml", "trueport/pipeline/report.html.jinja"} <= held
    assert "trueport/__init__.py" not in held, "the namespace has no file of its own"


def test_sub_package_that_pyproject_does_not_name_is_missed(names: list[str], tmp_path: Path) -> None:
    tree = copied(names, tmp_path / "tree")
    package = tree / "runtime" / "extra"
    package.mkdir()
    (package / "__init__.py").touch()
    held = contents(build(tree, tmp_path / "dist"))
    assert expected([*names, "runtime/extra/__init__.py"]) - held == {"trueport/runtime/extra/__init__.py"}


def test_every_module_reaches_a_clone(names: list[str]) -> None:
    # A pattern of .gitignore such as data/ would leave out a package without a word.
    found = {
        Path(parent, name).relative_to(ROOT).as_posix()
        for folder in (*FOLDERS, "tests")
        for parent, _, files in os.walk(ROOT / folder)
        for name in files
        if name.endswith((".py", ".toml", ".jinja", ".typed"))
    }
    assert found <= {*names, *known_to_git()}
    assert "pipeline/data/__init__.py" in found


def test_metadata_is_what_pyproject_says(described: Message, wheel: Path) -> None:
    assert described["Name"] == "trueport"
    assert described["Version"] == PROJECT["version"]
    assert described["License-Expression"] == "Apache-2.0"
    assert described["Requires-Python"] == ">=3.11"
    assert described["Summary"] == PROJECT["description"]
    assert set(described.get_all("Provides-Extra", [])) == set(PROJECT["optional-dependencies"])
    assert member(wheel, "licenses/LICENSE") == (ROOT / "LICENSE").read_text(encoding="utf-8")
    assert "Apache License" in member(wheel, "licenses/LICENSE")
    assert "Tag: py3-none-any" in member(wheel, "WHEEL").splitlines()
    body = described.get_payload()
    assert isinstance(body, str)
    assert body.strip() == (ROOT / "README.md").read_text(encoding="utf-8").strip()


def test_base_install_asks_for_no_training_package(described: Message) -> None:
    lines = [Requirement(line) for line in described.get_all("Requires-Dist", [])]
    base = {line.name for line in lines if not (line.marker and "extra" in str(line.marker))}
    assert base == {Requirement(line).name for line in PROJECT["dependencies"]}
    assert not base & {Requirement(line).name for line in PROJECT["optional-dependencies"]["train"]}


def test_command_is_an_entry_point(wheel: Path) -> None:
    points = ConfigParser()
    points.read_string(member(wheel, "entry_points.txt"))
    assert dict(points["console_scripts"]) == {"trueport": "trueport.pipeline.cli:main"}
