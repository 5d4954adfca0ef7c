"""Long work in a thread of its own: where it does not come to its end, neither the loop's end nor the process's waits.

Both would wait for the threads of `asyncio.to_thread`.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import TypeVar

T = TypeVar("T")


async def in_own_thread(work: Callable[[], T]) -> T:
    """What the work returns or raises. Whoever is cancelled while it awaits this leaves the thread to itself."""
    future: Future[T] = Future()
    future.set_running_or_notify_cancel()
    threading.Thread(target=_settle, args=(future, work), name="trueport-own", daemon=True).start()
    return await asyncio.wrap_future(future)


def _settle(future: Future[T], work: Callable[[], T]) -> None:
    try:
        result = work()
    except BaseException as error:  # noqa: BLE001 - whatever it is, it belongs to the one who waits
        future.set_exception(error)
    else:
        future.set_result(result)
