"""`trueport report`: a page of any bundle, from what was measured before or anew; anything else is one sentence."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import msgspec
import pytest

from trueport.pipeline.bench import bench
from trueport.pipeline.check import check


@pytest.fixture(scope="module")
def checked(bundle_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What `trueport check --json` writes of the bundle."""
    file = tmp_path_factory.mktemp("told") / "check.json"
    file.write_bytes(msgspec.json.encode(check(bundle_path)))
    return file


@pytest.fixture(scope="module")
def timed(bundle_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What `trueport bench --json` writes of the bundle."""
    file = tmp_path_factory.mktemp("told") / "bench.json"
    file.write_bytes(msgspec.json.encode(bench(bundle_path, batches=[1], seconds=0.05)))
    return file


def test_a_page_of_what_was_measured_before_is_the_same_each_time(
    trueport: Any, bundle_path: Path, run_path: Path, checked: Path, timed: Path, tmp_path: Path
) -> None:
    pages = []
    for name in ("one.html", "two.html"):
        out = tmp_path / name
        told = ("--check", checked, "--bench", timed, "--run", run_path)
        code, printed, said = trueport("report", bundle_path, *told, "--out", out)
        assert (code, printed) == (0, "")
        assert said.endswith(f"{out} is written\n")
        pages.append(out.read_bytes())
    assert pages[0] == pages[1]
    html = pages[0].decode()
    assert "Faithful: all 8 gates passed" in html
    assert "How fast it is" in html
    assert 'id="drift-' in html
    assert "Loss by epoch" in html


def test_without_files_the_bundle_is_checked(
    trueport: Any, bundle_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    code, _, said = trueport("report", bundle_path)
    assert code == 0
    assert "preprocessing" in said
    html = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "Faithful: all 8 gates passed" in html
    assert "How fast it is" not in html
    assert "Seconds of each part of the check" in html


def test_files_that_are_something_else_are_refused(
    trueport: Any, bundle_path: Path, checked: Path, timed: Path, tmp_path: Path
) -> None:
    broken = tmp_path / "broken.json"
    broken.write_bytes(b"\xff{")
    renamed = tmp_path / "other.json"
    renamed.write_text(json.dumps(json.loads(checked.read_bytes()) | {"bundle": "birds"}))
    for option, file, sentence in (
        ("--check", timed, "expected the JSON of `trueport check --json` in"),
        ("--bench", checked, "expected the JSON of `trueport bench --json` in"),
        ("--check", broken, "found something else"),
        ("--check", tmp_path / "absent.json", "No such file"),
        ("--check", renamed, "found that of birds"),
        ("--run", tmp_path, "is not a run"),
    ):
        told = () if option == "--check" else ("--check", checked)
        code, _, said = trueport("report", bundle_path, *told, option, file, "--out", tmp_path / "page.html")
        assert (code, sentence in said.splitlines()[-1]) == (2, True), (option, said)
        assert said.splitlines()[-1].startswith("trueport: ")
    assert not (tmp_path / "page.html").exists()
    assert trueport("report", tmp_path / "nothing")[0] == 2
