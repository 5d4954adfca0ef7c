"""The gRPC server, in the event loop in which HTTP is served. Without TLS: a proxy brings it, as for HTTP."""

from __future__ import annotations

import socket
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from ...errors import UsageError, missing_extra
from ..access import Access
from ..contract import ServerLimits
from ..listening import bound
from ..models import Models
from ..repository import Repository

if TYPE_CHECKING:
    from .service import Service

IDENTITY_ONLY = 1
"""Of the bits for the compression algorithms."""
FRAME_BYTES = 2**20
"""Beside the body, for what a message says of its tensors."""
PING_S = 60
PING_ANSWER_S = 20
OFTENEST_PING_S = 10
"""Of a client: one that pings more often is sent away."""


class GrpcServer:
    """Serves models. Made and used in one event loop.

    server_ready: whether HTTP would say so. shared: other processes serve the port too.
    Raises MissingError where grpcio or protobuf is not installed.
    """

    def __init__(
        self,
        models: Models,
        repository: Repository,
        access: Access,
        limits: ServerLimits,
        server_ready: Callable[[], bool],
        *,
        shared: bool = False,
    ) -> None:
        try:
            import google.protobuf  # noqa: F401 - whether it is there
            import grpc.aio
        except ImportError as error:
            package = "grpcio" if (error.name or "").startswith("grpc") else "protobuf"
            raise missing_extra(package, "serve", "gRPC") from error
        from .service import Service

        self._service: Service = Service(models, repository, access, limits, server_ready)
        self._server: Any = grpc.aio.server(options=_options(limits, shared))
        self._server.add_generic_rpc_handlers(self._service.handlers())
        self._shared = shared
        self.port = 0
        """That it listens on, once it has been started."""

    async def start(self, host: str = "127.0.0.1", port: int = 8001) -> int:
        """Listen; port 0 takes a free one. Answers the port. Raises UsageError where the address can't be had."""
        # gRPC says no more than that it failed, and takes "unix" for a kind of address: ask the system first
        with bound(host, port, shared=self._shared) as listener:
            address, number = listener.getsockname()[:2]
            family = listener.family
        numeric = f"[{address}]" if family == socket.AF_INET6 else address
        try:
            self._server.add_insecure_port(f"{numeric}:{number}")
        except RuntimeError as error:
            raise UsageError(f"can't listen on {host} port {number}: give another port") from error
        await self._server.start()
        self.port = number
        return self.port

    async def stop(self, grace_s: float) -> None:
        """Take no more calls, answer those that were begun, end what is left after so many seconds."""
        self._service.stop()
        await self._server.stop(grace_s)


def _options(limits: ServerLimits, shared: bool) -> list[tuple[str, int]]:
    return [
        ("grpc.max_receive_message_length", min(limits.max_body_bytes + FRAME_BYTES, 2**31 - 1)),
        ("grpc.max_send_message_length", -1),
        # gRPC looks at a message's length before it decompresses it, so that a small one could become any size
        ("grpc.compression_enabled_algorithms_bitset", IDENTITY_ONLY),
        ("grpc.absolute_max_metadata_size", limits.max_head_bytes),
        ("grpc.max_metadata_size", limits.max_head_bytes // 2),
        ("grpc.max_concurrent_streams", limits.max_connections),
        ("grpc.max_allowed_incoming_connections", limits.max_connections),
        ("grpc.max_connection_idle_ms", int(limits.idle_s * 1000)),
        ("grpc.keepalive_time_ms", PING_S * 1000),
        ("grpc.keepalive_timeout_ms", PING_ANSWER_S * 1000),
        ("grpc.http2.min_ping_interval_without_data_ms", OFTENEST_PING_S * 1000),
        # unless it was asked for a second server must not take half of the connections to a port that is in use
        ("grpc.so_reuseport", int(shared)),
    ]
