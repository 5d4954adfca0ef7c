"""Pictures come from anywhere: files, folders, pipes, devices; a bad one fails alone and by its name."""

from __future__ import annotations

import io
import os
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO, cast

import msgspec
import numpy as np
import pytest
from PIL import Image

from trueport.pipeline import predict as module
from trueport.pipeline.predict import Classified, predict
from trueport.runtime.errors import UsageError
from trueport.runtime.preprocessing import DEFAULT_LIMITS
from trueport.runtime.session import Session, load


@pytest.fixture(scope="module")
def session(bundle_path: Path) -> Iterator[Session]:
    with load(bundle_path) as opened:
        yield opened


def digit(path: Path, session: Session, index: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(session.bundle.evaluation().images[index].squeeze()).save(path)
    return path


def label(session: Session, index: int = 0) -> str:
    return session.labels[int(session.bundle.evaluation().logits[index].argmax())]


def one(session: Session, source: str | Path) -> Classified:
    (answer,) = predict(session, [str(source)])
    return answer


class Endless(io.RawIOBase):
    """As /dev/zero; more than a bounded number of bytes is not read from it."""

    served = 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        self.served += len(buffer)
        assert self.served <= DEFAULT_LIMITS.max_bytes + 2**20, "read without a bound"
        return len(buffer)


def test_endless_input_is_refused_by_its_length(session: Session, monkeypatch: pytest.MonkeyPatch) -> None:
    stream = io.BufferedReader(cast("Any", Endless()))
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(cast("BinaryIO", stream)))
    assert "standard input has more than" in one(session, "-").error
    assert "/dev/zero has more than" in one(session, "/dev/zero").error


def test_bytes_of_standard_input_that_are_no_picture_are_named(
    session: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"nonsense")))
    assert one(session, "-").error.startswith("standard input: ")


def test_a_pipe_is_read(session: Session, tmp_path: Path) -> None:
    data = digit(tmp_path / "a.png", session).read_bytes()
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    writer = threading.Thread(target=pipe.write_bytes, args=(data,))
    writer.start()
    answer = one(session, pipe)
    writer.join()
    assert (answer.picture, answer.top[0].label, answer.error) == (str(pipe), label(session), "")


def test_a_pipe_in_a_folder_is_not_waited_for_and_a_broken_link_is_named(session: Session, tmp_path: Path) -> None:
    digit(tmp_path / "a.png", session)
    os.mkfifo(tmp_path / "b.png")
    (tmp_path / "c.png").symlink_to("nowhere")
    first, second = predict(session, [str(tmp_path)])
    assert first.top
    assert "c.png" in second.error


def test_a_name_that_is_not_utf_8_goes_into_json(session: Session, tmp_path: Path) -> None:
    file = digit(tmp_path / "a.png", session)
    file.rename(tmp_path / os.fsdecode(b"caf\xe9.png"))
    (tmp_path / os.fsdecode(b"n\xe9e.png")).write_bytes(b"x")
    good, bad = (msgspec.json.decode(msgspec.json.encode(answer)) for answer in predict(session, [str(tmp_path)]))
    assert good["picture"] == f"{tmp_path}/caf\\udce9.png"
    assert good["top"][0]["label"] == label(session)
    assert "n\\udce9e.png" in bad["error"]


@pytest.mark.parametrize("suffix", ["jfif", "pgm", "PNG", "tif"])
def test_folders_yield_every_format_that_training_takes(suffix: str, session: Session, tmp_path: Path) -> None:
    kind = {"jfif": "JPEG", "pgm": "PPM", "tif": "TIFF"}.get(suffix, "PNG")
    Image.new("L", (32, 32)).save(tmp_path / f"a.{suffix}", kind)
    (tmp_path / ".hidden.png").write_bytes(b"x")
    (tmp_path / "notes.txt").write_bytes(b"x")
    assert [Path(answer.picture).name for answer in predict(session, [str(tmp_path)])] == [f"a.{suffix}"]


def test_what_can_t_be_read_is_refused_by_name(
    session: Session, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(UsageError, match=r"absent\.png does not exist"):
        one(session, tmp_path / "absent.png")
    digit(tmp_path / "a.png", session)
    closed = digit(tmp_path / "closed" / "b.png", session).parent
    scan = os.scandir

    def scandir(path: Any) -> Any:  # nothing is closed to root
        if str(path) == str(closed):
            raise PermissionError(13, "Permission denied", str(closed))
        return scan(path)

    monkeypatch.setattr(os, "scandir", scandir)
    with pytest.raises(UsageError, match=r"can't read the folder .*closed \(Permission denied\)"):
        list(predict(session, [str(tmp_path)]))


def test_pictures_are_decoded_side_by_side_and_answered_in_order(
    session: Session, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each of two threads waits for the other one to decode too: one thread alone would wait in vain."""
    monkeypatch.setattr(module, "available_cores", lambda: 2)
    both = threading.Barrier(2, timeout=30)
    prepare = session.prepare

    def meeting(picture: Any) -> Any:
        both.wait()
        return prepare(picture)

    monkeypatch.setattr(session, "prepare", meeting)
    count = session.batcher.limits.max_batch_rows + 2
    files = [str(digit(tmp_path / f"{index:03d}.png", session, index)) for index in range(count)]
    Path(files[3]).write_bytes(b"x")
    answers = list(predict(session, [*files[:5], *files[4:-1]], top=1))
    assert [answer.picture for answer in answers] == [*files[:5], *files[4:-1]]
    assert [bool(answer.error) for answer in answers] == [index == 3 for index in range(count)]
    expected = session.run(np.stack([prepare(file) for file in files if file != files[3]])).argmax(1)
    labels = dict(zip([file for file in files if file != files[3]], expected, strict=True))
    assert all(answer.top[0].index == labels[answer.picture] for answer in answers if answer.top)
