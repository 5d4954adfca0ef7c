"""The picture in the body: as it is, or as the one file of a form."""

from __future__ import annotations

import random
from email.mime.multipart import MIMEMultipart
from email.mime.nonmultipart import MIMENonMultipart

import pytest

from trueport.runtime.errors import InvalidRequestError
from trueport.runtime.server.answers import UnsupportedError
from trueport.runtime.server.forms import picture_from_form

PICTURE = b"\x89PNG\r\n\x1a\n--x\r\n\r\nbytes of any kind\0--"
TYPE = b"multipart/form-data; boundary=x1"


def part(content: bytes, disposition: bytes = b'form-data; name="image"; filename="a.png"') -> bytes:
    return b"--x1\r\nContent-Disposition: %b\r\nContent-Type: image/png\r\n\r\n%b\r\n" % (disposition, content)


FIELD = part(b"5", b'form-data; name="top"')
END = b"--x1--\r\n"


@pytest.mark.parametrize("kind", [b"", b"image/png", b"application/x-www-form-urlencoded", b"application/octet-stream"])
def test_a_body_that_is_no_form_is_the_picture(kind: bytes) -> None:
    assert picture_from_form(kind, PICTURE) == PICTURE


@pytest.mark.parametrize(
    "body",
    [
        part(PICTURE) + END,
        FIELD + part(PICTURE) + FIELD + END,
        FIELD * 15 + part(PICTURE) + END,
        b"preamble\r\n" + part(PICTURE) + END + b"epilogue",
    ],
)
@pytest.mark.parametrize("kind", [TYPE, b'Multipart/Form-Data; charset=utf-8; boundary="x1"'])
def test_the_one_file_of_a_form_is_the_picture(kind: bytes, body: bytes) -> None:
    assert picture_from_form(kind, body) == PICTURE


@pytest.mark.parametrize(
    ("kind", "body", "words"),
    [
        (TYPE, END, "does not begin with its boundary|0 files"),
        (TYPE, FIELD + END, "holds 0 files"),
        (TYPE, part(PICTURE) * 2 + END, "holds 2 files"),
        (TYPE, part(PICTURE), "cut off"),
        (TYPE, (part(PICTURE) + END)[:60], "cut off"),
        (TYPE, b"--x1", "cut off"),
        (TYPE, b"", "does not begin"),
        (TYPE, PICTURE, "does not begin"),
        (TYPE, FIELD * 16 + part(PICTURE) + END, "more than 16 parts"),
        (TYPE, b"--x1\r\n" + b"a" * 5000 + b"\r\n\r\nx\r\n" + END, "cut off"),
        (b"multipart/form-data", part(PICTURE) + END, "names no boundary"),
        (b"multipart/form-data; boundary=" + b"b" * 71, part(PICTURE) + END, "names no boundary"),
        (b"multipart/form-data; boundary*=idna''x1", part(PICTURE) + END, "names no boundary"),
        (b"multipart/form-data; boundary*0=x; boundary*=1", part(PICTURE) + END, "names no boundary"),
        (b"multipart/form-data; boundary*" + b"9" * 5000 + b"=x1", part(PICTURE) + END, "names no boundary"),
    ],
)
def test_a_form_that_holds_no_file_or_several_is_refused(kind: bytes, body: bytes, words: str) -> None:
    with pytest.raises(InvalidRequestError, match=words):
        picture_from_form(kind, body)


def test_other_kinds_of_several_parts_are_not_read() -> None:
    with pytest.raises(UnsupportedError):
        picture_from_form(b"multipart/mixed; boundary=x1", part(PICTURE) + END)


def test_whatever_is_done_to_a_form_it_is_read_or_refused() -> None:
    chance, whole = random.Random(0), FIELD + part(PICTURE) + END
    for _ in range(2000):
        body = bytearray(whole)
        for _ in range(chance.randint(1, 4)):
            at = chance.randrange(len(body))
            body[at : at + chance.randint(0, 3)] = chance.choice((b"", b"\r\n", b"--x1", b"\0", b"--x1--"))
        try:
            picture_from_form(TYPE, bytes(body))
        except InvalidRequestError:
            continue


def test_what_an_ordinary_library_writes_is_read() -> None:
    form, file = MIMEMultipart("form-data", boundary="bound"), MIMENonMultipart("image", "png")
    file.set_payload("picture")
    file.add_header("Content-Disposition", "form-data", name="image", filename="a.png")
    form.attach(file)
    head, _, body = form.as_bytes().replace(b"\n", b"\r\n").partition(b"\r\n\r\n")
    assert b"boundary" in head
    assert picture_from_form(form["content-type"].encode(), body) == b"picture"
