"""What the server needs from the two sides it stands between: an ASGI server below, a session above."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, MutableMapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from ..errors import UsageError
from ..manifest import Manifest

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]

Rows = NDArray[np.uint8]
"""(N, H, W, C); may be read-only, because it can be a view of the request's body."""


class BatchLimitsLike(Protocol):
    """Of a batcher."""

    @property
    def max_batch_rows(self) -> int:
        """Most rows that one request may hold."""
        ...


class BatcherLike(Protocol):
    """Answers rows, in batches of its own making."""

    @property
    def limits(self) -> BatchLimitsLike:
        """What it was made with."""
        ...

    def asubmit(self, rows: Rows, *, deadline_s: float | None, priority: int) -> Awaitable[dict[str, NDArray[Any]]]:
        """Every output by name, in the order of the rows.

        deadline_s: seconds from now; priority: higher goes first, 0 is usual. Raises the RequestErrors.
        """
        ...


class ScoreLike(Protocol):
    """One class of a prediction."""

    @property
    def label(self) -> str:
        """Name of the class."""
        ...

    @property
    def index(self) -> int:
        """Position of the class in the logits."""
        ...

    @property
    def score(self) -> float:
        """How sure the model is."""
        ...


class PredictionLike(Protocol):
    """What the model says about one picture."""

    @property
    def top(self) -> Sequence[ScoreLike]:
        """Best first."""
        ...


class SessionLike(Protocol):
    """What the server uses of a session."""

    @property
    def manifest(self) -> Manifest:
        """Of the bundle that it runs."""
        ...

    @property
    def batcher(self) -> BatcherLike:
        """Where rows are answered."""
        ...

    def prepare(self, source: bytes, /) -> Rows:
        """Uint8 (H, W, C) from an encoded picture; raises ImageError. Called from threads."""
        ...

    def predictions(self, logits: NDArray[Any], top: int, /) -> Sequence[PredictionLike]:
        """One prediction for each row of (N, K) logits."""
        ...

    def close(self) -> None:
        """Answer what was accepted, then free everything."""
        ...


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
