"""The Open Inference Protocol over gRPC, as Triton's clients speak it.

Needs grpcio and protobuf, of the extra `serve`; this much can be imported without them.
"""

from .server import GrpcServer

__all__ = ["GrpcServer"]
