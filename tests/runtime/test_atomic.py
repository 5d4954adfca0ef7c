"""Old content or new, never half: whatever fails in the middle."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from trueport.runtime import atomic
from trueport.runtime.errors import UsageError

MARKER = "manifest.json"


def refuse(path: Path) -> None:
    """What a caller would give: only a folder with the marker may be replaced."""
    if atomic.is_filled(path) and not (path / MARKER).exists():
        raise UsageError(f"{path} is not empty and has no {MARKER}")


def folder_of(path: Path, text: str) -> Path:
    path.mkdir()
    (path / MARKER).write_text(text)
    return path


def test_a_new_folder_takes_the_place_of_the_old_whole(tmp_path: Path) -> None:
    path = folder_of(tmp_path / "bundle", "old")
    (path / "left over").write_text("old")
    with atomic.new_folder(path, refuse) as folder:
        (folder / MARKER).write_text("new")
        assert (path / MARKER).read_text() == "old"
    assert (path / MARKER).read_text() == "new"
    assert [file.name for file in path.iterdir()] == [MARKER]
    assert [file.name for file in tmp_path.iterdir()] == ["bundle"]


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt(), ValueError("x")])
def test_a_failure_leaves_the_old_folder_and_nothing_else(tmp_path: Path, error: BaseException) -> None:
    path = folder_of(tmp_path / "bundle", "old")
    with pytest.raises(type(error)), atomic.new_folder(path, refuse) as folder:
        (folder / MARKER).write_text("new")
        raise error
    assert (path / MARKER).read_text() == "old"
    assert [file.name for file in tmp_path.iterdir()] == ["bundle"]


def test_without_an_exchange_by_the_system_two_renames_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(atomic, "_exchange", lambda new, path: False)
    path = folder_of(tmp_path / "bundle", "old")
    with atomic.new_folder(path, refuse) as folder:
        (folder / MARKER).write_text("new")
    assert (path / MARKER).read_text() == "new"
    assert [file.name for file in tmp_path.iterdir()] == ["bundle"]


def test_a_kill_in_the_middle_leaves_the_old_folder(tmp_path: Path) -> None:
    path = folder_of(tmp_path / "bundle", "old")
    program = (
        "import os, pathlib, signal, sys\n"
        "from trueport.runtime.atomic import new_folder\n"
        "with new_folder(pathlib.Path(sys.argv[1]), lambda path: None) as folder:\n"
        f"    (folder / {MARKER!r}).write_text('new')\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    done = subprocess.run([sys.executable, "-c", program, str(path)], check=False)
    assert done.returncode < 0
    assert (path / MARKER).read_text() == "old"


def test_a_folder_of_something_else_is_never_replaced(tmp_path: Path) -> None:
    home = tmp_path / "home"
    home.mkdir()
    (home / "thesis.tex").write_text("years of work")
    (tmp_path / "file").write_text("x")
    for path, message in ((home, "has no manifest.json"), (tmp_path / "file", "is a file")):
        with pytest.raises(UsageError, match=message), atomic.new_folder(path, refuse):
            pytest.fail("the block must not run")
    assert (home / "thesis.tex").read_text() == "years of work"


def test_an_empty_folder_may_be_taken(tmp_path: Path) -> None:
    with atomic.new_folder(tmp_path, refuse) as folder:
        (folder / MARKER).write_text("new")
    assert (tmp_path / MARKER).read_text() == "new"


def test_a_link_stays_and_what_it_leads_to_is_replaced(tmp_path: Path) -> None:
    path, link = folder_of(tmp_path / "bundle", "old"), tmp_path / "links" / "current"
    link.parent.mkdir()
    link.symlink_to(path)
    with atomic.new_folder(link, refuse) as folder:
        (folder / MARKER).write_text("new")
    assert link.is_symlink()
    assert (path / MARKER).read_text() == "new"
    assert [entry.name for entry in link.parent.iterdir()] == ["current"]
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["bundle", "links"]


def test_a_link_that_leads_in_a_circle_is_refused(tmp_path: Path) -> None:
    link = tmp_path / "link"
    link.symlink_to(link)
    with pytest.raises(UsageError, match="leads nowhere"), atomic.new_folder(link, refuse):
        pytest.fail("the block must not run")


def test_the_folder_that_one_is_in_is_not_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = folder_of(tmp_path / "bundle", "old")
    (path / "reports").mkdir()
    for inside, name in ((path, "."), (path / "reports", "..")):
        monkeypatch.chdir(inside)
        with pytest.raises(UsageError, match="from inside it"), atomic.new_folder(Path(name), refuse):
            pytest.fail("the block must not run")
    assert (path / MARKER).read_text() == "old"


def test_a_failed_write_keeps_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "deep" / "file.json"
    atomic.write_text(file, "old")

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="No space"):
        atomic.write_text(file, "new")
    assert file.read_text() == "old"
    assert [entry.name for entry in file.parent.iterdir()] == ["file.json"]
