"""The model repository extension over HTTP: what is there, load, unload."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

import msgspec

from ..errors import InvalidRequestError
from .answers import Answer, answer_from_error, answer_from_json, empty_answer
from .contract import Handler, Request, Respond
from .protocol import shown
from .repository import Repository

R = TypeVar("R")


class Control:
    """Asks the repository for clients. Used from one event loop."""

    def __init__(self, repository: Repository) -> None:
        self._repository = repository
        self._tasks: set[asyncio.Task[None]] = set()
        """A task that nobody holds could be collected before its end."""

    def index(self, request: Request, respond: Respond) -> None:
        """Of what is served and of what could be."""
        self._answer(self._index(request), respond)

    def handler(self, path: str) -> Handler | None:
        """What loads or unloads the model that a path names: it need not be one that is served."""
        before, _, action = path.rpartition("/")
        before, _, name = before.rpartition("/")
        if before != "/v2/repository/models" or action not in ("load", "unload"):
            return None
        change = self._load if action == "load" else self._unload
        return lambda request, respond: self._answer(change(name, request), respond)

    async def _index(self, request: Request) -> Answer:
        asked = _read(request, _IndexRequest)
        return answer_from_json(await self._repository.index(asked.ready))

    async def _load(self, name: str, request: Request) -> Answer:
        if parameters := _read(request, _ControlRequest).parameters:
            found = shown(", ".join(sorted(parameters)))
            raise InvalidRequestError(f"a model is loaded as its bundle has it: expected no parameters, found {found}")
        await self._repository.load(name)
        return empty_answer()

    async def _unload(self, name: str, request: Request) -> Answer:
        _read(request, _ControlRequest)  # its unload_dependents says nothing here: no model depends on another
        await self._repository.unload(name)
        return empty_answer()

    def _answer(self, work: Coroutine[None, None, Answer], respond: Respond) -> None:
        async def finish() -> None:
            try:
                answer = await work
            except Exception as error:  # noqa: BLE001 - whatever it is, the client gets an answer
                answer = answer_from_error(error)
            respond(answer)

        task = asyncio.get_running_loop().create_task(finish())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


class _IndexRequest(msgspec.Struct):
    ready: bool = False
    """Only what is ready."""


class _ControlRequest(msgspec.Struct):
    parameters: dict[str, Any] = {}


def _read(request: Request, kind: type[R]) -> R:
    try:
        return msgspec.json.decode(request.body or b"{}", type=kind)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise InvalidRequestError(f"the body is no request to the repository: {error}") from error
