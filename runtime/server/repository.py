"""Models that come and go while the server runs: the model repository extension, and SIGHUP.

A new version is opened and replays its golden set beside the one that answers; then they are exchanged between two
requests. One that fails is not exchanged, and the old one stays.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..bundle import read_manifest
from ..errors import ClosedError, TrueportError, UsageError, unknown_name
from .answers import UnavailableError, UnknownError
from .endpoint import ModelEndpoint
from .models import LONGEST_NAME, Models
from .threads import in_own_thread

if TYPE_CHECKING:
    from ..session import Session

logger = logging.getLogger("trueport.server")


@dataclass(frozen=True)
class Source:
    """Where models come from while the server runs."""

    open: Callable[[Path], Session]
    """A bundle's folder into a session, with the options that the server was started with; called in a thread."""
    gate: Callable[[Session], str]
    """What a session has to pass before it is served, told in a sentence; called in a thread."""
    folder: Path | None = None
    """Bundles beside those that are served from the start: each folder in it that holds a manifest. Those whose names
    begin with a dot are not looked at: an export that was broken off leaves such.
    """
    control: bool = False
    """Whether clients may load and unload."""


class Repository:
    """Used from one event loop. source: None: models stay as they are. log: called with sentences."""

    def __init__(self, models: Models, source: Source | None = None, log: Callable[[str], None] = logger.info) -> None:
        self._models = models
        self._source = source
        self._log = log
        self._paths = {endpoint.session.bundle.path for endpoint in models} if source is not None else set[Path]()
        self._failed: dict[str, str] = {}
        """Why the last attempt to load a name failed."""
        self._loading: set[str] = set()
        self._one = asyncio.Lock()
        """Models are opened one after the other: each takes memory and cores."""
        self._tasks: set[asyncio.Task[Any]] = set()
        self._stopping = False

    @property
    def control(self) -> bool:
        """Whether clients may load and unload."""
        return self._source is not None and self._source.control

    async def index(self, ready_only: bool = False) -> list[dict[str, str]]:
        """Every model that is served or could be: name, version, state (READY, LOADING, UNAVAILABLE) and reason."""
        entries = [self._entry(endpoint) for endpoint in self._models]
        found = await asyncio.to_thread(self._found)
        for name in sorted({*found, *self._failed} - set(self._models.names)):
            reason = self._failed.get(name, "not loaded")
            state = "LOADING" if name in self._loading else "UNAVAILABLE"
            entries.append({"name": name, "version": "", "state": state, "reason": reason})
        return [entry for entry in entries if entry["state"] == "READY" or not ready_only]

    async def load(self, name: str) -> None:
        """Load a model, or load it anew; answered once it is served.

        Raises UnavailableError where clients may not, UnknownError, and why it can't be served: the old one stays then.
        """
        self._require_control()
        await self._finished(self._load(name))

    async def unload(self, name: str) -> None:
        """Serve a model no longer; what was begun is answered. Raises UnavailableError, UnknownError."""
        self._require_control()
        await self._finished(self._unload(name))

    async def reload_changed(self) -> None:
        """Load every served model anew whose bundle is another one than was loaded; failures are logged."""
        for name, versions in list(self._models.names.items()):
            try:
                changed = await asyncio.to_thread(_changed, list(versions.values()))
                if changed and self._source is not None:
                    await self._finished(self._load(name))
                else:
                    self._log(f"{name} is what was loaded: nothing to do")
            except TrueportError as error:
                self._log(f"{name} stays as it is: {error}")
            except Exception:
                logger.exception("%s stays as it is", name)

    async def close(self, within_s: float) -> None:
        """Wait for models that are being loaded or retired, then retire those that are served, all together.

        within_s: for both. A load that takes longer is left to itself: nobody is there to ask its model.
        """
        self._stopping = True
        loop = asyncio.get_running_loop()
        end_s = loop.time() + within_s
        while self._tasks and loop.time() < end_s:
            await asyncio.wait(self._tasks, timeout=end_s - loop.time())
        while len(self._models):  # a load may come to its end meanwhile
            served = [endpoint for name in list(self._models.names) for endpoint in self._models.exchange(name, ())]
            left_s = max(0.0, end_s - loop.time())
            await asyncio.gather(*(self._models.retire(endpoint, left_s) for endpoint in served))

    def _require_control(self) -> None:
        if not self.control:
            raise UnavailableError(
                "models are not loaded or unloaded by clients here: start the server with --model-control to allow it"
            )

    async def _finished(self, work: Any) -> None:
        """Let the work come to its end, also where the client who asked for it goes away."""
        task = asyncio.get_running_loop().create_task(work)
        self._keep(task)
        await asyncio.shield(task)

    def _keep(self, task: asyncio.Task[Any]) -> None:
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _load(self, name: str) -> None:
        async with self._one:
            source, found = self._source, await asyncio.to_thread(self._found)
            if source is None or name not in found:
                raise UnknownError(str(unknown_name("model", name[:LONGEST_NAME], {*self._models.names, *found})))
            self._loading.add(name)
            try:
                endpoints = await in_own_thread(partial(self._opened, source, found[name]))
            except TrueportError as error:
                self._failed[name] = str(error)
                raise
            finally:
                self._loading.discard(name)
            self._failed.pop(name, None)
            self._retire(self._models.exchange(name, endpoints))
            self._paths.update(found[name])
            for endpoint in endpoints:
                self._log(f"loaded {endpoint.passed}")

    async def _unload(self, name: str) -> None:
        async with self._one:
            self._models.find(name)
            self._retire(self._models.exchange(name, ()))
            self._log(f"unloaded {name}")

    def _retire(self, endpoints: Sequence[ModelEndpoint]) -> None:
        for endpoint in endpoints:
            self._keep(asyncio.get_running_loop().create_task(self._models.retire(endpoint)))

    def _opened(self, source: Source, paths: Sequence[Path]) -> list[ModelEndpoint]:
        """What has passed; no session is left open where one fails, or the server stops."""
        endpoints: dict[str, ModelEndpoint] = {}
        sessions: list[Session] = []
        try:
            for path in paths:
                self._refuse_at_the_end()
                sessions.append(source.open(path))
                endpoint = self._models.endpoint(sessions[-1], source.gate(sessions[-1]))
                version = endpoint.signature.version
                if version in endpoints:
                    first = endpoints[version].session.bundle.path
                    raise UsageError(f"{first} and {path} are the same version {version} of it: take one of them away")
                endpoints[version] = endpoint
            self._refuse_at_the_end()
        except BaseException:
            for session in sessions:
                session.close()
            raise
        return list(endpoints.values())

    def _refuse_at_the_end(self) -> None:
        if self._stopping:
            raise ClosedError("the server is stopping and loads no more models: ask another one")

    def _found(self) -> dict[str, list[Path]]:
        """Folders of bundles by the name of their model; one that is given in several ways, in the first of them."""
        if self._source is None:
            return {}
        paths = sorted(self._paths)
        if self._source.folder is not None:
            paths += sorted(path for path in self._source.folder.iterdir() if _may_be_bundle(path))
        # as they were given: where a link leads may change
        places: dict[str, Path] = {}
        for path in paths:
            places.setdefault(os.path.realpath(path), path)
        found: dict[str, list[Path]] = {}
        for path in sorted(places.values()):
            try:
                found.setdefault(read_manifest(path).name, []).append(path)
            except TrueportError as error:
                if not isinstance(error, UsageError):  # a folder that is no bundle may lie there
                    logger.warning("%s", error)
        return found

    def _entry(self, endpoint: ModelEndpoint) -> dict[str, str]:
        name = endpoint.signature.name
        state = "READY" if endpoint.ready else "UNAVAILABLE"
        reason = self._failed.get(name, "") if endpoint.ready else "a run of it does not come to its end"
        return {"name": name, "version": endpoint.signature.version, "state": state, "reason": reason}


def _may_be_bundle(path: Path) -> bool:
    return path.is_dir() and not path.name.startswith(".")


def _changed(endpoints: Sequence[ModelEndpoint]) -> bool:
    """Whether a bundle's folder holds another manifest than was loaded. Raises BundleError."""
    bundles = [endpoint.session.bundle for endpoint in endpoints]
    return any(read_manifest(bundle.path).sha256 != bundle.manifest.sha256 for bundle in bundles)
