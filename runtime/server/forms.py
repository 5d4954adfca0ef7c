"""The picture in the body of a request: the body itself, or the one file of a form (multipart/form-data, RFC 7578)."""

from __future__ import annotations

import re
from email.message import Message

from ..errors import InvalidRequestError
from .answers import UnsupportedError

LONGEST_PART_HEAD = 4096
MOST_PARTS = 16
"""They are looked for in the event loop; a form for one picture has a field or two beside it."""
_FILE = re.compile(rb";[ \t]*filename\*?=", re.IGNORECASE)
EXPECTED = "expected one file, as curl -F image=@picture.jpg sends it"


def picture_from_form(content_type: bytes, body: bytes) -> bytes:
    """The bytes of the picture. Raises InvalidRequestError for a form that holds no file or several."""
    kind = content_type.partition(b";")[0].strip().lower()
    if not kind.startswith(b"multipart/"):
        return body
    if kind != b"multipart/form-data":
        raise UnsupportedError("of multipart bodies only multipart/form-data is read here")
    files = [content for head, content in _parts(body, _boundary(content_type)) if _FILE.search(head)]
    if len(files) != 1:
        raise InvalidRequestError(f"the form holds {len(files)} files, {EXPECTED}")
    return files[0]


def _boundary(content_type: bytes) -> bytes:
    message = Message()
    message["content-type"] = content_type.decode("latin1")
    try:
        boundary = message.get_boundary()
    except (TypeError, ValueError):  # RFC 2231's charsets and pieces, which no client sends, may trip the parser
        boundary = None
    if not boundary or len(boundary) > 70 or not boundary.isascii():
        raise InvalidRequestError("the form's Content-Type names no boundary of 1 to 70 characters")
    return b"--" + boundary.encode()


def _parts(body: bytes, delimiter: bytes) -> list[tuple[bytes, bytes]]:
    """(Head, content) of each part. Its content ends with the line end before the next delimiter."""
    start = (b"\r\n" + body).find(b"\r\n" + delimiter)
    if start < 0:
        raise InvalidRequestError(f"the form does not begin with its boundary, {EXPECTED}")
    parts: list[tuple[bytes, bytes]] = []
    while True:
        start += len(delimiter)
        if body[start : start + 2] == b"--":
            return parts
        if len(parts) == MOST_PARTS:
            raise InvalidRequestError(f"the form has more than {MOST_PARTS} parts, {EXPECTED}")
        end = body.find(b"\r\n" + delimiter, start)
        head_end = body.find(b"\r\n\r\n", start, start + LONGEST_PART_HEAD)
        if end < 0 or not 0 <= head_end < end or body[start : start + 2] != b"\r\n":
            raise InvalidRequestError(f"the form is cut off or its parts are not as its boundary says, {EXPECTED}")
        parts.append((body[start:head_end], body[head_end + 4 : end]))
        start = end + 2
