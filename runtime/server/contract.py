"""What the server exchanges with the ASGI server below it, and what one client may cost it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, MutableMapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import UsageError

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]

Rows = NDArray[np.uint8]
"""(N, H, W, C); may be read-only, because it can be a view of the request's body."""


@dataclass(frozen=True)
class ServerLimits:
    """What one client may cost the server."""

    max_body_bytes: int = 64 * 2**20
    """Of a request, tensors and encoded pictures included."""
    max_json_bytes: int = 16 * 2**20
    """Of the JSON in it: parsing holds up every other request, which binary tensors don't."""
    max_waiting_pictures: int = 256
    """Encoded pictures that are being decoded or wait for it; more are refused."""
    drain_s: int = 30
    """How long a stopping server waits for the requests it has begun."""

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if value < 1:
                raise UsageError(f"the server's limit {name} must be at least 1, found {value}")
