"""Pictures and tensors made to harm: each is answered or refused, nothing fails, and the next request is answered."""

from __future__ import annotations

import http.client
import io
import json
import math
import random
import struct
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from trueport.runtime import Session, load
from trueport.runtime.errors import InvalidRequestError
from trueport.runtime.server.protocol import RequestReader
from trueport.runtime.server.signature import Signature, WantedOutput

TIMEOUT_S = 30


@pytest.fixture(scope="module")
def session(bundle_path: Path) -> Iterator[Session]:
    with load(bundle_path, runner="onnxruntime:cpu", threads=1) as session:
        yield session


@pytest.fixture(scope="module")
def post(running: Any, session: Session) -> Iterator[Callable[..., tuple[int, Any]]]:
    with running([session]) as address:
        connection = http.client.HTTPConnection(address, timeout=TIMEOUT_S)

        def post(path: str, body: bytes, **fields: str) -> tuple[int, Any]:
            connection.request("POST", path, body, {name.replace("_", "-"): value for name, value in fields.items()})
            response = connection.getresponse()
            return response.status, msgspec.json.decode(response.read())

        yield post
        connection.close()


def encoded(image: Image.Image, kind: str, **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def png(width: int, height: int, *chunks: tuple[bytes, bytes]) -> bytes:
    """Of 1 bit a pixel; chunks: in place of the picture's own data."""
    header = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    parts = [(b"IHDR", header), *chunks, (b"IEND", b"")]
    framed = (
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in parts
    )
    return b"\x89PNG\r\n\x1a\n" + b"".join(framed)


DIGIT = Image.new("L", (20, 20), 200)
FRAMES = [Image.new("L", (8, 8), shade) for shade in (0, 90, 250)]
BOMB = zlib.compress(bytes(64 * 2**20), 9)

FINE = {
    "1 x 1": encoded(Image.new("L", (1, 1), 7), "PNG"),
    "60000 x 1": encoded(Image.new("L", (60000, 1), 7), "PNG"),
    "1 x 60000": encoded(Image.new("L", (1, 60000), 7), "PNG"),
    "CMYK": encoded(Image.new("CMYK", (8, 8), (9, 8, 7, 6)), "JPEG"),
    "animated": encoded(FRAMES[0], "GIF", save_all=True, append_images=FRAMES[1:]),
    "palette with transparency": encoded(Image.new("P", (8, 8), 3), "PNG", transparency=3),
    "16 bits": encoded(Image.fromarray(np.full((8, 8), 40000, np.uint16)), "PNG"),
}
REFUSED = {
    "30000 x 30000 of nothing": png(30000, 30000, (b"IDAT", zlib.compress(bytes(3751 * 30000), 9))),
    "2 billion pixels": png(2**31 - 1, 1, (b"IDAT", zlib.compress(b"\0"))),
    "no pixels": png(0, 0, (b"IDAT", zlib.compress(b"\0"))),
    "a text that unpacks to 64 MiB": png(8, 8, (b"zTXt", b"a\0\0" + BOMB), (b"IDAT", zlib.compress(b"\0" * 16))),
    "less data than its size": png(4000, 4000, (b"IDAT", zlib.compress(b"\0"))),
    "cut JPEG": encoded(Image.effect_noise((64, 64), 50), "JPEG")[:300],
    "cut PNG": encoded(Image.effect_noise((64, 64), 50), "PNG")[:300],
    "SVG": b"<svg xmlns='http://www.w3.org/2000/svg'/>",
    "PostScript": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n",
    "text": b"a" * 10_000,
    "one byte": b"\xff",
}


def test_pictures_of_odd_kinds_are_answered(post: Callable[..., tuple[int, Any]], session: Session) -> None:
    for name, picture in FINE.items():
        status, answer = post("/classify", picture)
        assert status == 200, (name, answer)
        assert answer["predictions"][0]["label"] == session.classify(picture)[0].label


@pytest.mark.parametrize("name", REFUSED)
def test_pictures_made_to_harm_are_refused_in_a_sentence(post: Callable[..., tuple[int, Any]], name: str) -> None:
    status, answer = post("/classify", REFUSED[name])
    assert status == 400, answer
    assert 10 < len(answer["error"]) < 500
    assert "/" not in answer["error"].replace("JPEG/", "").replace("HEIC/HEIF", "")  # no path of this machine
    assert post("/classify", encoded(DIGIT, "PNG"))[0] == 200


def test_whatever_is_done_to_a_picture_it_is_answered_or_refused(post: Callable[..., tuple[int, Any]]) -> None:
    chance = random.Random(0)
    statuses = set()
    for kind in ("PNG", "JPEG", "GIF", "WEBP", "TIFF", "BMP"):
        whole = encoded(DIGIT, kind)
        for _ in range(60):
            picture = bytearray(whole)
            for _ in range(chance.randint(1, 5)):
                picture[chance.randrange(len(picture))] = chance.randrange(256)
            statuses.add(post("/classify", bytes(picture[: chance.randint(len(picture) // 2, len(picture))]))[0])
    assert statuses == {200, 400}


# The framing of tensors.

ROW = (2, 3, 1)
OUTPUTS = (WantedOutput("logits", binary=True),)
SIGNATURE = Signature("digits", "1", "image", ROW, 6, 8, ("a", "b"), (WantedOutput("logits", binary=False),), OUTPUTS)
NUMBERS = st.one_of(st.integers(-3, 20), st.sampled_from((2**31, 2**63 - 1, 2**63, 2**64, -(2**63), 10**30)))
SHAPES = st.one_of(st.just([1, *ROW]), st.just([2, *ROW]), st.lists(NUMBERS, max_size=6))
NAMES = st.one_of(st.just("image"), st.text(max_size=5))
PARAMETERS = st.one_of(
    st.fixed_dictionaries({"binary_data_size": st.one_of(st.sampled_from((6, 12)), NUMBERS)}),
    st.dictionaries(st.sampled_from(("binary_data_size", "shared_memory_region", "x")), NUMBERS | st.text(max_size=3)),
)
TENSORS = st.fixed_dictionaries(
    {"name": NAMES, "datatype": st.sampled_from(("UINT8", "BYTES", "FP32", "")), "shape": SHAPES},
    optional={"parameters": PARAMETERS, "data": st.one_of(st.lists(NUMBERS, max_size=13), st.text(max_size=5))},
)
REQUESTS = st.fixed_dictionaries(
    {"inputs": st.lists(TENSORS, max_size=3)},
    optional={
        "id": st.text(max_size=5) | NUMBERS,
        "outputs": st.lists(st.fixed_dictionaries({"name": st.sampled_from(("logits", "other"))}), max_size=3),
        "parameters": st.dictionaries(st.sampled_from(("priority", "timeout", "binary_data_output")), NUMBERS),
    },
)
LENGTHS = st.one_of(st.none(), st.integers(-5, 400).map(lambda number: b"%d" % number), st.binary(max_size=20))


@settings(max_examples=600, deadline=None, derandomize=True, database=None)
@given(request=REQUESTS, tail=st.sampled_from((b"", bytes(6), bytes(12), b"\2\0\0\0ab", b"\xff" * 9)), length=LENGTHS)
def test_a_request_is_read_as_it_says_or_refused(request: dict[str, Any], tail: bytes, length: bytes | None) -> None:
    try:
        text = msgspec.json.encode(request)
    except (OverflowError, msgspec.MsgspecError):
        text = repr(request).encode()
    reader = RequestReader(SIGNATURE, 10_000)
    for said in (length, b"%d" % len(text)):
        try:
            asked = reader.request(text + tail, said)
        except InvalidRequestError as error:
            assert len(str(error)) < 1000
            continue
        if asked.rows is not None:
            assert asked.rows.shape[1:] == ROW
            assert 1 <= len(asked.rows) <= 8
        else:
            assert 1 <= len(asked.pictures) <= 8
            assert sum(map(len, asked.pictures)) <= len(tail)


@pytest.mark.parametrize("row", [(28, 28, 1), (24, 20, 3)])
@pytest.mark.parametrize("indent", [None, 2, 4])
def test_numbers_may_be_indented_and_no_more(row: tuple[int, ...], indent: int | None) -> None:
    reader = RequestReader(msgspec.structs.replace(SIGNATURE, row_shape=row, row_bytes=math.prod(row)), 2**24)
    rows = np.full((1, *row), 255, np.uint8)
    for data in (rows.tolist(), rows.ravel().tolist()):
        tensor = {"name": "image", "datatype": "UINT8", "shape": rows.shape, "data": data}
        text = json.dumps({"inputs": [tensor]}, indent=indent).encode()
        asked = reader.request(text, None)
        assert asked.rows is not None
        np.testing.assert_array_equal(asked.rows, rows)
        with pytest.raises(InvalidRequestError, match=r"bytes of JSON, its shape .* needs at most"):
            reader.request(text.replace(b"255", b" " * 200 + b"255"), None)
