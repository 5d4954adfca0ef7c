"""Inference requests of the Open Inference Protocol (KServe V2) over HTTP, read without trusting any number in them.

Tensors come as JSON or, behind the JSON, as bytes (Triton's binary tensor data extension, raw requests included);
`classification`, `priority` and `timeout` are those of Triton's classification and schedule policy extensions.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Annotated, TypeVar

import msgspec
import numpy as np

from ..errors import InvalidRequestError
from .contract import Rows
from .signature import DEFAULT_PRIORITY_LEVEL, PRIORITY_LEVELS, Signature, WantedOutput

LENGTH_BYTES = 4
LONGEST_SHOWN = 80
LONGEST_KNOWN = 1024
MOST_KNOWN = 256
MICROSECOND_S = 1e-6
LINE_BYTES = 32
"""Of JSON that is indented by four: a number or a bracket, and the blanks before it."""
SPARE_BYTES = 4096

T = TypeVar("T")
NotNegative = Annotated[int, msgspec.Meta(ge=0, le=2**63 - 1)]
Pixel = Annotated[int, msgspec.Meta(ge=0, le=255)]


class InferRequest(msgspec.Struct, frozen=True, gc=False):
    """What a client asks of a model: `rows`, or `pictures` that are yet to become rows."""

    rows: Rows | None
    """A view of the body where the tensor came as bytes."""
    pictures: Sequence[bytes]
    """Encoded, one a row."""
    id: str
    outputs: Sequence[WantedOutput]
    priority: int
    """As the batcher has it: higher goes first, 0 is usual."""
    timeout_s: float | None


class _InputParameters(msgspec.Struct):
    binary_data_size: NotNegative | None = None
    shared_memory_region: str | None = None


class _Input(msgspec.Struct):
    name: str
    datatype: str
    shape: list[int]
    parameters: _InputParameters | None = None
    data: msgspec.Raw = msgspec.Raw()


class _OutputParameters(msgspec.Struct):
    binary_data: bool | None = None
    classification: NotNegative = 0
    shared_memory_region: str | None = None


class _Output(msgspec.Struct):
    name: str
    parameters: _OutputParameters | None = None


class _Parameters(msgspec.Struct):
    binary_data_output: bool = False
    priority: NotNegative = 0
    """1 is the highest level, 0 the default one."""
    timeout: NotNegative = 0
    """Microseconds; 0 is none."""


class _Request(msgspec.Struct):
    inputs: list[_Input]
    outputs: list[_Output] | None = None
    id: str = ""
    parameters: _Parameters | None = None


class Head(msgspec.Struct, frozen=True):
    """What the JSON of a request says, once it has been found to fit the model."""

    tensor: _Input
    rows: int
    pixels: bool
    """uint8 pixels, or else encoded pictures."""
    binary_bytes: int | None
    """Size of the tensor behind the JSON; None: it is within."""
    id: str
    outputs: Sequence[WantedOutput]
    priority: int
    timeout_s: float | None


_NO_PARAMETERS = _Parameters()
_NO_INPUT_PARAMETERS = _InputParameters()
_NO_OUTPUT_PARAMETERS = _OutputParameters()

_decoder = msgspec.json.Decoder(_Request)
_flat_decoder = msgspec.json.Decoder(list[Pixel])
_nested_decoder = msgspec.json.Decoder(list[list[list[list[Pixel]]]])


class RequestReader:
    """Reads the inference requests to one model.

    Clients that send binary tensors put the same JSON before every one: it is parsed and checked once.
    """

    def __init__(self, signature: Signature, max_json_bytes: int) -> None:
        self._signature = signature
        self._max_json_bytes = max_json_bytes
        self._known: dict[bytes, Head] = {}

    def request(self, body: bytes, header_length: bytes | None) -> InferRequest:
        """Read one request.

        header_length: the value of Inference-Header-Content-Length; None: the whole body is JSON; 0: it is one raw row.
        Raises InvalidRequestError for anything that is not a request to this model.
        """
        size = len(body) if header_length is None else _json_bytes(header_length, len(body))
        if size == 0 and header_length is not None:
            return InferRequest(_raw_row(self._signature, body), (), "", self._signature.binary_outputs, 0, None)
        text = body[:size]
        head = (self._known.get(text) if size <= LONGEST_KNOWN else None) or self._head(text)
        rows: Rows | None = None
        pictures: Sequence[bytes] = ()
        if (head.binary_bytes or 0) != len(body) - size:
            raise InvalidRequestError(
                f"binary_data_size is {head.binary_bytes or 0}, but {len(body) - size} bytes follow the JSON; "
                f"Inference-Header-Content-Length has to say where the JSON ends"
            )
        if not head.pixels:
            pictures = pictures_from_elements(head, memoryview(body)[size:])
        elif head.binary_bytes is None:
            rows = _pixels_from_json(head.tensor)
        else:
            rows = np.frombuffer(body, np.uint8, offset=size).reshape(head.tensor.shape)
        return InferRequest(rows, pictures, head.id, head.outputs, head.priority, head.timeout_s)

    def _head(self, text: bytes) -> Head:
        if len(text) > self._max_json_bytes:
            raise InvalidRequestError(
                f"the JSON has {len(text)} bytes, at most {self._max_json_bytes} are read: send binary tensors"
            )
        head = _checked(self._signature, _parsed(_decoder, text, "the JSON is not an inference request"))
        if len(text) <= LONGEST_KNOWN and head.binary_bytes is not None:
            if len(self._known) >= MOST_KNOWN:
                del self._known[next(iter(self._known))]
            self._known[text] = head
        return head


def head_from_fields(signature: Signature, fields: Mapping[str, object]) -> Head:
    """Check a request that is not JSON but has the same fields: `inputs`, `outputs`, `id` and `parameters`.

    binary_data_size: of the input, has to be given; its values are not among the fields.
    Raises InvalidRequestError for anything that is not a request to this model.
    """
    try:
        request = msgspec.convert(fields, _Request)
    except msgspec.ValidationError as error:
        raise InvalidRequestError(f"this is not an inference request: {error}") from error
    return _checked(signature, request)


def shown(value: object) -> str:
    """What a client sent, cut to a length that fits an error text."""
    text = repr(value)
    return text if len(text) <= LONGEST_SHOWN else text[:LONGEST_SHOWN] + "…"


def _json_bytes(header_length: bytes, body_bytes: int) -> int:
    # isdigit() of bytes is ASCII alone; int() by itself would also take b"+1", b" 1" and b"1_0"
    if not header_length.isdigit() or len(header_length) > 18:
        text = shown(header_length.decode("latin1"))
        raise InvalidRequestError(f"Inference-Header-Content-Length has to be a decimal number, found {text}")
    if (length := int(header_length)) > body_bytes:
        raise InvalidRequestError(f"Inference-Header-Content-Length is {length}, the body has only {body_bytes} bytes")
    return length


def _parsed(decoder: msgspec.json.Decoder[T], text: memoryview | bytes, complaint: str) -> T:
    try:
        return decoder.decode(text)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise InvalidRequestError(f"{complaint}: {error}") from error


def _raw_row(signature: Signature, body: bytes) -> Rows:
    if len(body) != signature.row_bytes:
        raise InvalidRequestError(
            f"a raw request (Inference-Header-Content-Length 0) is one row {list(signature.row_shape)} "
            f"of {signature.row_bytes} bytes, found {len(body)}"
        )
    return np.frombuffer(body, np.uint8).reshape(1, *signature.row_shape)


def _checked(signature: Signature, request: _Request) -> Head:
    parameters = request.parameters or _NO_PARAMETERS
    if len(request.inputs) != 1 or request.inputs[0].name != signature.input:
        found = shown([tensor.name for tensor in request.inputs[:8]])
        raise InvalidRequestError(f"{signature.name} takes one input, {signature.input!r}; found {found}")
    tensor = request.inputs[0]
    within = tensor.parameters or _NO_INPUT_PARAMETERS
    if within.shared_memory_region is not None:
        raise InvalidRequestError("shared memory is not offered: send the tensor with the request")
    if (within.binary_data_size is None) != bool(len(tensor.data)):
        raise InvalidRequestError(f"input {tensor.name} needs either data or binary_data_size, and not both")
    if tensor.datatype == "UINT8":
        _check_pixels(signature, tensor, within.binary_data_size)
    elif tensor.datatype == "BYTES":
        _check_pictures(tensor, within.binary_data_size)
    else:
        raise InvalidRequestError(
            f"input {tensor.name} is {shown(tensor.datatype)}, expected UINT8 pixels or BYTES of encoded pictures"
        )
    rows = tensor.shape[0]
    if not 1 <= rows <= signature.max_rows:
        raise InvalidRequestError(
            f"expected 1 to {signature.max_rows} rows a request, found {shown(rows)}: send them in several"
        )
    return Head(
        tensor=tensor,
        rows=rows,
        pixels=tensor.datatype == "UINT8",
        binary_bytes=within.binary_data_size,
        id=request.id,
        outputs=_wanted(signature, request.outputs, parameters.binary_data_output),
        priority=DEFAULT_PRIORITY_LEVEL - min(parameters.priority or DEFAULT_PRIORITY_LEVEL, PRIORITY_LEVELS),
        timeout_s=parameters.timeout * MICROSECOND_S if parameters.timeout else None,
    )


def _check_pixels(signature: Signature, tensor: _Input, size: int | None) -> None:
    shape = tensor.shape
    if len(shape) != 4 or tuple(shape[1:]) != signature.row_shape:
        raise InvalidRequestError(
            f"input {tensor.name} has the shape {shown(shape)}, expected [N, {str(list(signature.row_shape))[1:]}"
        )
    if size is not None and size != shape[0] * signature.row_bytes:
        raise InvalidRequestError(
            f"input {tensor.name} of shape {shown(shape)} has {shown(shape[0] * signature.row_bytes)} bytes, "
            f"found {size}"
        )


def _check_pictures(tensor: _Input, size: int | None) -> None:
    if size is None:
        raise InvalidRequestError("encoded pictures have to be sent as binary data: JSON holds text alone")
    if len(tensor.shape) not in (1, 2) or tensor.shape[1:] not in ([], [1]):
        raise InvalidRequestError(f"BYTES of input {tensor.name} has the shape {shown(tensor.shape)}, expected [N]")


def _pixels_from_json(tensor: _Input) -> Rows:
    complaint = f"data of input {tensor.name} has to be whole numbers from 0 to 255, flat or nested as its shape"
    longest = _longest_data(tensor.shape)
    if len(tensor.data) > longest:
        raise InvalidRequestError(
            f"data of input {tensor.name} has {len(tensor.data)} bytes of JSON, its shape {tensor.shape} needs at most "
            f"{longest}: leave the blanks out, or send a binary tensor"
        )
    text = bytes(tensor.data)
    if not text[:1024].translate(None, b" \t\r\n").startswith(b"[["):
        pixels = np.frombuffer(bytes(_parsed(_flat_decoder, text, complaint)), np.uint8)
        if pixels.size != math.prod(tensor.shape):
            raise InvalidRequestError(f"input {tensor.name} of shape {tensor.shape} has {pixels.size} values in data")
        return pixels.reshape(tensor.shape)
    try:
        pixels = np.array(_parsed(_nested_decoder, text, complaint), np.uint8)
    except ValueError as error:
        raise InvalidRequestError(f"{complaint}: its lists differ in length") from error
    if pixels.shape != tuple(tensor.shape):
        raise InvalidRequestError(f"data of input {tensor.name} is nested as {list(pixels.shape)}, not {tensor.shape}")
    return pixels


def _longest_data(shape: Sequence[int]) -> int:
    """Bytes that the JSON of such a tensor's pixels may have: nested, each number and bracket in a line of its own."""
    rows, height, width, channels = shape
    pixels = rows * height * width
    lists = 1 + rows + rows * height + pixels
    return LINE_BYTES * (pixels * channels + 2 * lists) + SPARE_BYTES


def pictures_from_elements(head: Head, data: memoryview) -> list[bytes]:
    """Elements of a BYTES tensor, each a little-endian uint32 length and so many bytes.

    Raises InvalidRequestError where these are not as many as the tensor has.
    """
    pictures: list[bytes] = []
    position = 0
    while position < len(data) and len(pictures) < head.rows:
        start = position + LENGTH_BYTES
        position = start + int.from_bytes(data[position:start], "little")
        pictures.append(bytes(data[start:position]))
    if len(pictures) != head.rows or position != len(data):
        raise InvalidRequestError(
            f"input {head.tensor.name}: {len(data)} bytes are not {head.rows} elements, each after its length in four "
            f"bytes"
        )
    return pictures


def _wanted(signature: Signature, outputs: list[_Output] | None, all_binary: bool) -> Sequence[WantedOutput]:
    known = signature.binary_outputs if all_binary else signature.json_outputs
    if not outputs:
        return known
    names = {output.name for output in known}
    wanted: list[WantedOutput] = []
    for output in outputs:
        if output.name not in names:
            raise InvalidRequestError(
                f"{signature.name} has no output {shown(output.name)}, or it is asked for twice; "
                f"known: {', '.join(each.name for each in known)}"
            )
        names.remove(output.name)
        parameters = output.parameters or _NO_OUTPUT_PARAMETERS
        if parameters.shared_memory_region is not None:
            raise InvalidRequestError("shared memory is not offered: take the output with the answer")
        binary = all_binary if parameters.binary_data is None else parameters.binary_data
        wanted.append(WantedOutput(output.name, binary, parameters.classification))
    # one object for the usual case, which is recognised by it
    return signature.binary_outputs if tuple(wanted) == signature.binary_outputs else tuple(wanted)
