"""What the parts of the server hand to each other, and what one client may cost it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

import msgspec
import numpy as np
from numpy.typing import NDArray

from ..errors import UsageError

if TYPE_CHECKING:
    from .answers import Answer
    from .timed import Timed

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]

Rows = NDArray[np.uint8]
"""(N, H, W, C); may be read-only, because it can be a view of the request's body."""


class Request(msgspec.Struct, frozen=True, gc=False):
    """One HTTP request whose body has arrived."""

    headers: Mapping[bytes, bytes]
    """Names in lower case."""
    query: bytes
    body: bytes
    note: Note | None = None
    """Is told where the time went, before the answer; None: nobody wants to know."""


Note: TypeAlias = "Callable[[Timed], object]"
Respond: TypeAlias = "Callable[[Answer], None]"
"""Called once, in the event loop, perhaps before the handler returns; not at all where the request was cancelled."""
Cancel = Callable[[], object]
"""Nobody waits for the answer any more."""
Handler: TypeAlias = "Callable[[Request, Respond], Cancel | None]"
"""Begins to answer; what it returns is None where it has answered, or can't stop."""


@dataclass(frozen=True)
class ServerLimits:
    """What one client may cost the server. Those of heads, connections and times are kept by `serve` alone: an ASGI
    server has its own.
    """

    max_body_bytes: int = 64 * 2**20
    """Of a request, tensors and encoded pictures included."""
    max_held_bytes: int = 2**30
    """Of requests that are arriving, all connections together; beyond it those that still arrive are refused."""
    max_json_bytes: int = 16 * 2**20
    """Of the JSON in it: parsing holds up every other request, which binary tensors don't."""
    max_waiting_pictures: int = 256
    """Encoded pictures that are being decoded or wait for it; more are refused."""
    max_waiting_picture_bytes: int = 512 * 2**20
    """Of these together."""
    max_request_line_bytes: int = 8 * 2**10
    max_head_bytes: int = 32 * 2**10
    """Of request line and header fields together."""
    max_fields: int = 100
    """Header fields of a request."""
    max_connections: int = 512
    """At once; one more is told so and closed. Below the 1,024 files that a process may usually have open."""
    head_s: float = 10
    """From the first byte of a request to the end of its header."""
    body_s: float = 60
    """From there to the end of its body; also how long a client may leave an answer unread."""
    idle_s: float = 75
    """Between two requests: longer than clients and proxies keep a connection, so that no request meets its end."""
    drain_s: float = 30
    """How long a stopping server waits for the requests it has begun."""
    run_s: float = 60
    """A run that takes longer is given up, with all that waits for it, and its model is not ready until it ends."""

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if name.endswith("_s"):
                if not value > 0:
                    raise UsageError(f"the server's limit {name} must be seconds above 0, found {value}")
            elif value < 1:
                raise UsageError(f"the server's limit {name} must be at least 1, found {value}")
