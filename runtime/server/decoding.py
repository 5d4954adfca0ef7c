"""Encoded pictures into rows, in threads: decoding one takes longer than the event loop may be held up."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from ..errors import ClosedError, ImageError, OverloadedError
from ..machine import available_cores
from .contract import Rows

FIRST_GUESS_S = 0.01


class Decoder:
    """A bounded number of pictures in a few threads. Used from one event loop."""

    def __init__(self, max_waiting: int, threads: int | None = None) -> None:
        self._max_waiting = max_waiting
        self.threads = threads or available_cores()
        self._pool = ThreadPoolExecutor(self.threads, thread_name_prefix="trueport-decode")
        self._waiting = 0
        self._picture_s = FIRST_GUESS_S

    async def rows(self, prepare: Callable[[bytes], Rows], pictures: Sequence[bytes]) -> Rows:
        """(N, H, W, C) from N encoded pictures.

        Raises ImageError for the first that can't be decoded, OverloadedError where too many wait already, ClosedError.
        """
        if self._waiting and self._waiting + len(pictures) > self._max_waiting:
            wait_s = self._waiting * self._picture_s / self.threads
            raise OverloadedError(f"{self._waiting} pictures wait to be decoded, try again in {wait_s:.1f} s", wait_s)
        decoding = [self._decoding(prepare, picture) for picture in pictures]
        results = await asyncio.gather(*decoding, return_exceptions=True)
        return np.stack([_decoded(result, index, len(pictures)) for index, result in enumerate(results)])

    def close(self) -> None:
        """Let the threads go; pictures that wait are dropped."""
        self._pool.shutdown(wait=False, cancel_futures=True)

    def _decoding(self, prepare: Callable[[bytes], Rows], picture: bytes) -> asyncio.Future[Rows]:
        try:
            future = asyncio.wrap_future(self._pool.submit(self._decode, prepare, picture))
        except RuntimeError as error:  # the pool's word for being shut down
            raise _closed() from error
        self._waiting += 1
        future.add_done_callback(self._one_less)
        return future

    def _decode(self, prepare: Callable[[bytes], Rows], picture: bytes) -> Rows:
        begun_s = time.perf_counter()
        try:
            return prepare(picture)
        finally:
            self._picture_s += 0.2 * (time.perf_counter() - begun_s - self._picture_s)

    def _one_less(self, _: asyncio.Future[Rows]) -> None:
        self._waiting -= 1


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
