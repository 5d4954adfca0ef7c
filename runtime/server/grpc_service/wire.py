"""A ModelInferRequest taken apart without copying its tensors: `raw_input_contents` are views of the message.

What is left is small, and its size and number of fields are bounded before protobuf reads it: two bytes of an empty
message in a list take a hundred in memory. Protocol Buffers, "Encoding".
"""

from __future__ import annotations

from ...errors import InvalidRequestError

RAW_INPUT_CONTENTS = 7
MOST_FIELDS = 256
"""Inputs, outputs, parameters and raw contents of a request together; a model has one input and few outputs."""
SHIFTS = range(0, 70, 7)
"""Of the bytes of the longest number."""
VARINT, FIXED64, LENGTH_DELIMITED, FIXED32 = 0, 1, 2, 5
FIXED_BYTES = {FIXED64: 8, FIXED32: 4}
BROKEN = "the message is not a ModelInferRequest: it ends within a field, or holds what no field is"


def head_and_contents(message: bytes) -> tuple[bytes, list[memoryview]]:
    """The message without its raw_input_contents; and these.

    Raises InvalidRequestError for what is no message, or has too many fields.
    """
    view = memoryview(message)
    contents: list[memoryview] = []
    kept: list[memoryview] = []
    position, end, fields = 0, len(message), 0
    while position < end:
        fields += 1
        start = position
        tag, position = _varint(message, position)
        if tag & 7 == LENGTH_DELIMITED:
            size, position = _varint(message, position)
            position += size
            if tag >> 3 == RAW_INPUT_CONTENTS:
                contents.append(view[position - size : position])
            else:
                kept.append(view[start:position])
        else:
            position = _after(message, tag & 7, position)
            kept.append(view[start:position])
        if position > end:
            raise InvalidRequestError(BROKEN)
        if fields > MOST_FIELDS:
            raise InvalidRequestError(f"the message has more than {MOST_FIELDS} inputs, outputs and parameters")
    return b"".join(kept), contents


def field(number: int, data: bytes) -> bytes:
    """A field that holds a string, bytes or a message; number: below 16."""
    size = bytearray()
    rest = len(data)
    while rest > 127:
        size.append(rest & 127 | 128)
        rest >>= 7
    size.append(rest)
    return b"%c%b%b" % (number << 3 | LENGTH_DELIMITED, bytes(size), data)


def _varint(message: bytes, position: int) -> tuple[int, int]:
    """The number at a position, and the position after it."""
    if position < len(message) and message[position] < 128:
        return message[position], position + 1
    value = 0
    for shift, byte in zip(SHIFTS, message[position : position + len(SHIFTS)], strict=False):
        position += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value, position
    raise InvalidRequestError(BROKEN)


def _after(message: bytes, kind: int, position: int) -> int:
    """The position after a value that is no string, message or bytes: no field of the protocol, but perhaps to be."""
    if kind == VARINT:
        return _varint(message, position)[1]
    if kind not in FIXED_BYTES:
        raise InvalidRequestError(BROKEN)
    return position + FIXED_BYTES[kind]
