"""The table of messages against the protocol as tritonclient has it; a request taken apart, whatever its bytes are."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as some

from trueport.runtime.errors import InvalidRequestError
from trueport.runtime.server.grpc_service.messages import CHOICES, CLASSES, SERVICE
from trueport.runtime.server.grpc_service.questions import QUESTIONS
from trueport.runtime.server.grpc_service.wire import MOST_FIELDS, field, head_and_contents

service_pb2 = pytest.importorskip("tritonclient.grpc.service_pb2")
CONFIG = ("ModelConfig", "ModelInput", "ModelOutput", "ModelDynamicBatching", "ModelParameter")
"""Messages of which only the part that is filled is here."""
METHODS = (*QUESTIONS, "ModelInfer", "ModelStreamInfer")
Request, Response = CLASSES["ModelInferRequest"], CLASSES["ModelInferResponse"]


def difference(ours: Any, theirs: Any, seen: set[str]) -> list[str]:
    """Where two descriptions would put something else on the wire, or read it."""
    if ours.full_name in seen:
        return []
    seen.add(ours.full_name)
    found = []
    here, there = dict(ours.fields_by_number), dict(theirs.fields_by_number)
    for number, one in here.items():
        other = there.get(number)
        if other is None or (one.name, one.type, one.is_repeated) != (other.name, other.type, other.is_repeated):
            found.append(f"{ours.name}.{one.name}")
            continue
        if one.message_type is not None:
            found += difference(one.message_type, other.message_type, seen)
        if one.enum_type is not None:
            ours_numbers = {(value.name, value.number) for value in one.enum_type.values}
            if not ours_numbers <= {(value.name, value.number) for value in other.enum_type.values}:
                found.append(one.enum_type.name)
        if ours.name not in CONFIG and bool(one.containing_oneof) != bool(other.containing_oneof):
            found.append(f"{ours.name}.{one.name} and its oneof")
    if ours.name not in (*CONFIG, "ModelStatistics"):
        found += [f"{ours.name} without {there[number].name}" for number in there.keys() - here.keys()]
    return found


def test_every_field_is_the_protocol_s() -> None:
    methods = service_pb2.DESCRIPTOR.services_by_name[SERVICE.partition(".")[2]].methods_by_name
    seen: set[str] = set()
    found: list[str] = []
    for name in METHODS:
        ours = "ModelInfer" if name == "ModelStreamInfer" else name
        found += difference(CLASSES[f"{ours}Request"].DESCRIPTOR, methods[name].input_type, seen)
        found += difference(CLASSES[f"{name}Response"].DESCRIPTOR, methods[name].output_type, seen)
    assert not found
    assert {f"inference.{name}" for name in CLASSES} <= seen, "messages that no method uses"
    assert service_pb2.DESCRIPTOR.package == SERVICE.partition(".")[0]


def test_the_comparison_finds_what_differs() -> None:
    ours, theirs = CLASSES["ModelReadyRequest"].DESCRIPTOR, CLASSES["ServerMetadataResponse"].DESCRIPTOR
    assert difference(ours, theirs, set()) == ["ModelReadyRequest without extensions"]
    assert difference(ours, CLASSES["ModelStreamInferResponse"].DESCRIPTOR, set()) == [
        "ModelReadyRequest.name",
        "ModelReadyRequest.version",
    ]


def test_a_choice_holds_one_value() -> None:
    for name, oneof in CHOICES.items():
        parameter = CLASSES[name](bool_param=True)
        parameter.string_param = "word"
        assert parameter.WhichOneof(oneof) == "string_param"
        assert not parameter.bool_param


@pytest.mark.parametrize("first", [0, 1])
def test_both_live_in_one_process(first: int) -> None:
    """Two definitions of one name in protobuf's default pool end the process or the import."""
    imports = ["import tritonclient.grpc", "import trueport.runtime.server.grpc_service.service"]
    code = "\n".join((imports[first], imports[1 - first], "print('alive')"))
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert done.stdout == "alive\n", done.stderr


def test_responses_are_read_by_their_classes() -> None:
    config = CLASSES["ModelConfigResponse"](
        config={"name": "digits", "input": [{"name": "image", "data_type": "TYPE_UINT8", "dims": [4]}]}
    )
    read = service_pb2.ModelConfigResponse.FromString(config.SerializeToString())
    assert read.config.input[0].data_type == 2
    assert list(read.config.input[0].dims) == [4]
    parameter = CLASSES["InferParameter"](uint64_param=2**63)
    response = Response(model_name="digits", parameters={"key": parameter}, raw_output_contents=[b"abc"])
    read = service_pb2.ModelInferResponse.FromString(response.SerializeToString())
    assert (read.model_name, read.parameters["key"].uint64_param) == ("digits", 2**63)
    assert list(read.raw_output_contents) == [b"abc"]


def test_contents_are_views_of_the_message() -> None:
    pixels = np.arange(256, dtype=np.uint8).tobytes() * 3
    message = Request(model_name="digits", id="7", raw_input_contents=[pixels, b"", b"x"]).SerializeToString()
    head, contents = head_and_contents(message)
    assert [bytes(part) for part in contents] == [pixels, b"", b"x"]
    assert all(part.obj is message for part in contents)
    assert Request.FromString(head) == Request(model_name="digits", id="7")


def test_fields_in_any_order_and_of_other_versions() -> None:
    name = Request(model_name="digits").SerializeToString()
    unknown = b"\xa0\x06\x96\x01" + b"\xa9\x06" + bytes(8) + b"\xad\x06" + bytes(4) + b"\xb2\x06\x01z"
    head, contents = head_and_contents(field(7, b"raw") + unknown + name + field(7, b"") + b"\x38\x05")
    assert [bytes(part) for part in contents] == [b"raw", b""]
    assert Request.FromString(head).model_name == "digits"


@pytest.mark.parametrize(
    "message",
    [
        b"\x3a",
        b"\x3a\x05abcd",
        b"\x3a" + b"\xff" * 9 + b"\x01",
        b"\x3a" + b"\xff" * 10,
        b"\xff" * 100_000,
        b"\x0b\x0c",  # a group: no version of the protocol has one
        b"\x39" + bytes(7),
        field(2, b"1") * (MOST_FIELDS + 1),
        field(5, b"") * 1_000_000,
    ],
)
def test_what_is_no_message_is_refused(message: bytes) -> None:
    with pytest.raises(InvalidRequestError):
        head_and_contents(message)


@given(some.binary(max_size=80))
def test_any_bytes_are_taken_apart_as_protobuf_does(message: bytes) -> None:
    try:
        head, contents = head_and_contents(message)
        ours = Request.FromString(head)
    except (InvalidRequestError, Exception) as error:
        assert type(error).__name__ in ("InvalidRequestError", "DecodeError")
        return
    theirs = Request.FromString(message)
    assert list(theirs.raw_input_contents) == [bytes(part) for part in contents]
    theirs.ClearField("raw_input_contents")
    theirs.DiscardUnknownFields()
    ours.DiscardUnknownFields()
    assert ours == theirs


@given(
    some.lists(some.binary(max_size=300), max_size=4),
    some.text(max_size=200),
    some.lists(some.integers(-(2**63), 2**63 - 1), max_size=6),
)
def test_any_request_is_taken_apart(raw: list[bytes], name: str, shape: list[int]) -> None:
    whole = Request(model_name=name, raw_input_contents=raw, inputs=[{"name": name, "shape": shape}])
    head, contents = head_and_contents(whole.SerializeToString())
    assert [bytes(part) for part in contents] == raw
    whole.ClearField("raw_input_contents")
    assert Request.FromString(head) == whole


@given(some.binary(max_size=70_000))
def test_a_written_field_is_read(data: bytes) -> None:
    assert list(Request.FromString(field(7, data)).raw_input_contents) == [data]
