"""Encoded pictures into rows, in threads: decoding one takes longer than the event loop may be held up."""

from __future__ import annotations

import asyncio
import math
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial

import numpy as np

from ..errors import ClosedError, DeadlineError, ImageError, OverloadedError
from ..machine import available_cores
from .contract import Rows, ServerLimits

FIRST_GUESS_S = 0.01


class Decoder:
    """A bounded number of pictures, of bounded bytes together, in a few threads. Used from one event loop."""

    def __init__(self, limits: ServerLimits, threads: int | None = None) -> None:
        self._limits = limits
        self.threads = threads or available_cores()
        self._pool = ThreadPoolExecutor(self.threads, thread_name_prefix="trueport-decode")
        self._counting = threading.Lock()
        self._waiting = 0
        self._waiting_bytes = 0
        self._picture_s = FIRST_GUESS_S

    async def rows(
        self, prepare: Callable[[bytes], Rows], pictures: Sequence[bytes], timeout_s: float | None = None
    ) -> Rows:
        """(N, H, W, C) from N encoded pictures.

        timeout_s: from now; what has not had its turn by then is not decoded.
        Raises ImageError for the first that can't be decoded, OverloadedError where too much waits already, or for so
        long that the timeout can't be met, DeadlineError where it passed, ClosedError.
        """
        self._refuse_overload(pictures, timeout_s)
        deadline_s = math.inf if timeout_s is None else time.perf_counter() + timeout_s
        decoding = [self._decoding(prepare, picture, deadline_s) for picture in pictures]
        results = await asyncio.gather(*decoding, return_exceptions=True)
        return np.stack([_decoded(result, index, len(pictures)) for index, result in enumerate(results)])

    def close(self) -> None:
        """Let the threads go; pictures that wait are dropped."""
        self._pool.shutdown(wait=False, cancel_futures=True)

    def _refuse_overload(self, pictures: Sequence[bytes], timeout_s: float | None) -> None:
        if not self._waiting:
            return  # whatever was measured before: who comes alone is decoded, and measured anew
        wait_s = max(0, self._waiting - self.threads + 1) * self._picture_s / self.threads
        count, size = self._waiting + len(pictures), self._waiting_bytes + sum(map(len, pictures))
        if count > self._limits.max_waiting_pictures or size > self._limits.max_waiting_picture_bytes:
            raise OverloadedError(
                f"{self._waiting} pictures of {self._waiting_bytes / 2**20:.1f} MiB wait to be decoded, try again in "
                f"{wait_s:.1f} s",
                wait_s,
            )
        if timeout_s is not None and wait_s > timeout_s:
            raise OverloadedError(
                f"the deadline is {timeout_s * 1e3:.4g} ms away and decoding is expected to begin in "
                f"{wait_s * 1e3:.4g} ms: allow more time, or try again later",
                wait_s - timeout_s,
            )

    def _decoding(self, prepare: Callable[[bytes], Rows], picture: bytes, deadline_s: float) -> asyncio.Future[Rows]:
        held = [picture]
        try:
            future = self._pool.submit(self._decode, prepare, held, deadline_s)
        except RuntimeError as error:  # the pool's word for being shut down
            raise _closed() from error
        with self._counting:
            self._waiting += 1
            self._waiting_bytes += len(picture)
        future.add_done_callback(partial(self._one_less, held, len(picture)))
        return asyncio.wrap_future(future)

    def _decode(self, prepare: Callable[[bytes], Rows], held: list[bytes], deadline_s: float) -> Rows:
        begun_s = time.perf_counter()
        if begun_s >= deadline_s:
            raise DeadlineError("the timeout passed before the picture was decoded: send less, or allow more time")
        try:
            return prepare(held[0])
        finally:
            self._picture_s += 0.2 * (time.perf_counter() - begun_s - self._picture_s)

    def _one_less(self, held: list[bytes], size: int, _: Future[Rows]) -> None:
        """It is decoded, or its client went away before that began: the pool goes on knowing it, without its bytes."""
        held.clear()
        with self._counting:
            self._waiting -= 1
            self._waiting_bytes -= size


def _decoded(result: Rows | BaseException, index: int, of: int) -> Rows:
    if isinstance(result, ImageError) and of > 1:
        raise ImageError(f"picture {index + 1} of {of}: {result}") from result
    if isinstance(result, asyncio.CancelledError):
        raise _closed() from result
    if isinstance(result, BaseException):
        raise result
    return result


def _closed() -> ClosedError:
    return ClosedError("the server is closing and decodes no more pictures: try another one")
