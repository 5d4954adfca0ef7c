"""The cache folder: trueport's own variable, then the system's, then the home folder."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from trueport.runtime.folders import CACHE, cache_folder


@pytest.fixture(autouse=True)
def nothing_set(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (CACHE, "XDG_CACHE_HOME", "LOCALAPPDATA"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", "/home/somebody")


def test_the_variable_goes_before_the_system_s(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", "/xdg")
    monkeypatch.setenv(CACHE, "/somewhere/else")
    assert cache_folder() == Path("/somewhere/else")


@pytest.mark.skipif(sys.platform == "win32", reason="HOME is POSIX")
def test_the_variable_may_name_the_home_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(CACHE, "~/kept")
    assert cache_folder() == Path("/home/somebody/kept")


@pytest.mark.parametrize("name", ["XDG_CACHE_HOME", "LOCALAPPDATA"])
def test_the_system_s_cache_has_a_folder_for_trueport(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name, "/caches")
    assert cache_folder() == Path("/caches/trueport")


@pytest.mark.skipif(sys.platform == "win32", reason="HOME is POSIX")
def test_else_it_is_in_the_home_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    assert cache_folder() == Path("/home/somebody/.cache/trueport")
    monkeypatch.setenv(CACHE, "")
    assert cache_folder() == Path("/home/somebody/.cache/trueport"), "an empty variable is as good as none"
