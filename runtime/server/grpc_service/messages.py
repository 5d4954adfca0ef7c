"""The messages of the service `inference.GRPCInferenceService`: the field numbers of the public protocol, as a table.

The classes live in a descriptor pool of their own: in protobuf's default pool they would meet those of tritonclient,
in whose process nothing could then be imported. Nested messages of the protocol are not nested here and file names are
others; neither is on the wire. What a client may send beside these is skipped, as protobuf has it.

Open Inference Protocol: grpc_predict_v2.proto; its extensions and ModelConfig: Triton's grpc_service.proto and
model_config.proto.
"""

from __future__ import annotations

from typing import Any

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

SERVICE = "inference.GRPCInferenceService"
PACKAGE = "inference"
PARAMETERS = "map InferParameter"
NAMED = ("1 name string", "2 version string")

MESSAGES: dict[str, tuple[str, ...]] = {
    "ServerLiveRequest": (),
    "ServerLiveResponse": ("1 live bool",),
    "ServerReadyRequest": (),
    "ServerReadyResponse": ("1 ready bool",),
    "ModelReadyRequest": NAMED,
    "ModelReadyResponse": ("1 ready bool",),
    "ServerMetadataRequest": (),
    "ServerMetadataResponse": (*NAMED, "3 extensions repeated string"),
    "ModelMetadataRequest": NAMED,
    "ModelMetadataResponse": (
        "1 name string",
        "2 versions repeated string",
        "3 platform string",
        "4 inputs repeated TensorMetadata",
        "5 outputs repeated TensorMetadata",
    ),
    "TensorMetadata": ("1 name string", "2 datatype string", "3 shape repeated int64"),
    "InferParameter": (
        "1 bool_param bool",
        "2 int64_param int64",
        "3 string_param string",
        "4 double_param double",
        "5 uint64_param uint64",
    ),
    "InferTensorContents": (
        "1 bool_contents repeated bool",
        "2 int_contents repeated int32",
        "3 int64_contents repeated int64",
        "4 uint_contents repeated uint32",
        "5 uint64_contents repeated uint64",
        "6 fp32_contents repeated float",
        "7 fp64_contents repeated double",
        "8 bytes_contents repeated bytes",
    ),
    "ModelInferRequest": (
        "1 model_name string",
        "2 model_version string",
        "3 id string",
        f"4 parameters {PARAMETERS}",
        "5 inputs repeated InferInputTensor",
        "6 outputs repeated InferRequestedOutputTensor",
        "7 raw_input_contents repeated bytes",
    ),
    "InferInputTensor": (
        "1 name string",
        "2 datatype string",
        "3 shape repeated int64",
        f"4 parameters {PARAMETERS}",
        "5 contents InferTensorContents",
    ),
    "InferRequestedOutputTensor": ("1 name string", f"2 parameters {PARAMETERS}"),
    "ModelInferResponse": (
        "1 model_name string",
        "2 model_version string",
        "3 id string",
        f"4 parameters {PARAMETERS}",
        "5 outputs repeated InferOutputTensor",
        "6 raw_output_contents repeated bytes",
    ),
    "InferOutputTensor": (
        "1 name string",
        "2 datatype string",
        "3 shape repeated int64",
        f"4 parameters {PARAMETERS}",
        "5 contents InferTensorContents",
    ),
    "ModelStreamInferResponse": ("1 error_message string", "2 infer_response ModelInferResponse"),
    "ModelConfigRequest": NAMED,
    "ModelConfigResponse": ("1 config ModelConfig",),
    "ModelConfig": (
        "1 name string",
        "2 platform string",
        "4 max_batch_size int32",
        "5 input repeated ModelInput",
        "6 output repeated ModelOutput",
        "11 dynamic_batching ModelDynamicBatching",
        "14 parameters map ModelParameter",
    ),
    "ModelInput": ("1 name string", "2 data_type DataType", "4 dims repeated int64"),
    "ModelOutput": ("1 name string", "2 data_type DataType", "3 dims repeated int64"),
    "ModelDynamicBatching": ("4 priority_levels uint64", "5 default_priority_level uint64"),
    "ModelParameter": ("1 string_value string",),
    "ModelStatisticsRequest": NAMED,
    "ModelStatisticsResponse": ("1 model_stats repeated ModelStatistics",),
    "ModelStatistics": (
        *NAMED,
        "3 last_inference uint64",
        "4 inference_count uint64",
        "5 execution_count uint64",
        "6 inference_stats InferStatistics",
        "7 batch_stats repeated InferBatchStatistics",
    ),
    "InferStatistics": (
        "1 success StatisticDuration",
        "2 fail StatisticDuration",
        "3 queue StatisticDuration",
        "4 compute_input StatisticDuration",
        "5 compute_infer StatisticDuration",
        "6 compute_output StatisticDuration",
        "7 cache_hit StatisticDuration",
        "8 cache_miss StatisticDuration",
    ),
    "InferBatchStatistics": (
        "1 batch_size uint64",
        "2 compute_input StatisticDuration",
        "3 compute_infer StatisticDuration",
        "4 compute_output StatisticDuration",
    ),
    "StatisticDuration": ("1 count uint64", "2 ns uint64"),
    "ModelRepositoryParameter": (
        "1 bool_param bool",
        "2 int64_param int64",
        "3 string_param string",
        "4 bytes_param bytes",
    ),
    "RepositoryIndexRequest": ("1 repository_name string", "2 ready bool"),
    "RepositoryIndexResponse": ("1 models repeated ModelIndex",),
    "ModelIndex": (*NAMED, "3 state string", "4 reason string"),
    "RepositoryModelLoadRequest": (
        "1 repository_name string",
        "2 model_name string",
        "3 parameters map ModelRepositoryParameter",
    ),
    "RepositoryModelLoadResponse": (),
    "RepositoryModelUnloadRequest": (
        "1 repository_name string",
        "2 model_name string",
        "3 parameters map ModelRepositoryParameter",
    ),
    "RepositoryModelUnloadResponse": (),
}
"""Fields as `number name [repeated|map] type`; the key of every map is a string."""
CHOICES = {"InferParameter": "parameter_choice", "ModelRepositoryParameter": "parameter_choice"}
"""Messages whose fields are one oneof."""
DATA_TYPES = ("TYPE_INVALID 0", "TYPE_UINT8 2", "TYPE_INT64 9", "TYPE_FP16 10", "TYPE_FP32 11", "TYPE_STRING 13")
"""Of a ModelConfig: none, and those that a bundle's tensors can have."""


def _file() -> Any:
    file = descriptor_pb2.FileDescriptorProto(name="trueport/inference.proto", package=PACKAGE, syntax="proto3")
    numbers = file.enum_type.add(name="DataType")
    for line in DATA_TYPES:
        name, number = line.split()
        numbers.value.add(name=name, number=int(number))
    for name, fields in MESSAGES.items():
        message = file.message_type.add(name=name)
        if name in CHOICES:
            message.oneof_decl.add(name=CHOICES[name])
        for line in fields:
            _add_field(message, line)
    return file


def _add_field(message: Any, line: str) -> None:
    number, name, *kind, of = line.split()
    field = message.field.add(name=name, number=int(number), label=descriptor_pb2.FieldDescriptorProto.LABEL_OPTIONAL)
    if message.name in CHOICES:
        field.oneof_index = 0
    if kind:
        field.label = descriptor_pb2.FieldDescriptorProto.LABEL_REPEATED
    if kind == ["map"]:
        entry = message.nested_type.add(name=f"{name.title()}Entry", options={"map_entry": True})
        _add_field(entry, "1 key string")
        _add_field(entry, f"2 value {of}")
        of = f"{message.name}.{entry.name}"
    if of[0].islower():
        field.type = descriptor_pb2.FieldDescriptorProto.Type.Value(f"TYPE_{of.upper()}")
    else:
        field.type_name = f".{PACKAGE}.{of}"  # the pool finds out whether it is a message or an enum


def _classes() -> dict[str, Any]:
    pool = descriptor_pool.DescriptorPool()
    pool.Add(_file())
    return {name: message_factory.GetMessageClass(pool.FindMessageTypeByName(f"{PACKAGE}.{name}")) for name in MESSAGES}


CLASSES: dict[str, Any] = _classes()
"""The class of each message, by its name."""
