"""trueport data: what it lists, what it downloads, how it says that it can't."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from trueport.pipeline.data import named as registry
from trueport.pipeline.data.download import Remote
from trueport.pipeline.data.published import Published


@pytest.fixture
def trueport(trueport: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    """The command, with an empty data folder and nowhere to download flowers from."""
    monkeypatch.setenv("TRUEPORT_DATA", str(tmp_path / "data"))
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    flowers = registry.NAMED["flowers"]
    assert isinstance(flowers, Published)
    nowhere = Remote(("http://127.0.0.1:9/flower_photos.tgz",), 5, "0" * 64)  # the discard port, where nobody listens
    monkeypatch.setitem(registry.NAMED, "flowers", dataclasses.replace(flowers, remotes=(nowhere,)))
    return trueport


def test_list_tells_what_is_here_and_what_is_to_download(trueport: Any, tmp_path: Path) -> None:
    code, out, err = trueport("data", "list")
    assert (code, err) == (0, "")
    rows = {line.split()[0]: line.split()[1:] for line in out.splitlines() if line.strip()}
    assert rows["cifar10"] == ["60,000", "10", "colour", "to", "download,", "170", "MB"]
    assert rows["digits"] == ["1,797", "10", "grey", "built", "in"]
    (tmp_path / "data" / "mnist").mkdir(parents=True)
    assert str(tmp_path / "data" / "mnist") in trueport("data", "list")[1]


def test_list_opens_and_imports_no_data(tmp_path: Path) -> None:
    code = """
import sys
from trueport.pipeline.catalogue import data_table
assert len(data_table().rows) >= 10
print(*sorted({"sklearn", "torch", "PIL", "urllib.request", "ssl"} & set(sys.modules)))
"""
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stdout == "\n"


@pytest.mark.parametrize("arguments", [("data", "prepare", "flowers"), ("data", "split", "flowers")])
def test_offline_ends_with_the_way_out(trueport: Any, tmp_path: Path, arguments: tuple[str, ...]) -> None:
    code, out, err = trueport(*arguments)
    assert (code, out) == (3, "")
    said, sentence = err.splitlines()
    assert said == "downloading flower_photos.tgz, 0.0 MB, from 127.0.0.1"
    by_hand = tmp_path / "data" / "downloads" / "flowers" / "flower_photos.tgz"
    assert sentence.startswith("trueport: flower_photos.tgz can't be downloaded (127.0.0.1: it can't be reached, ")
    assert sentence.endswith(f": try again, or put the file at {by_hand} by hand, where it is verified and used")
    by_hand.write_bytes(b"wrong")
    code, _, err = trueport(*arguments)
    assert code == 2
    assert err.startswith(f"trueport: {by_hand} is not the published file: expected SHA-256 000")


def test_prepare_says_where_the_data_is(trueport: Any, tmp_path: Path) -> None:
    (tmp_path / "there" / "flowers").mkdir(parents=True)
    code, out, _ = trueport("data", "prepare", "flowers", "--root", tmp_path / "there")
    assert code == 0
    first, second = out.splitlines()
    assert first == f"flowers: {tmp_path}/there/flowers"
    assert second == f"training finds it there with TRUEPORT_DATA={tmp_path}/there"
    assert trueport("data", "prepare", "digits")[1] == "digits: built in, there is nothing to download\n"
    assert trueport("data", "prepare", "flower")[0] == 2
