"""The models that are served, by name and version: found for a request, exchanged while others are answered."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from ..errors import UsageError, unknown_name
from .answers import UnknownError
from .contract import ServerLimits
from .decoding import Decoder
from .endpoint import ModelEndpoint

if TYPE_CHECKING:
    from ..session import Session
    from .shared_figures import SharedFigures
    from .statistics import Figures

LONGEST_NAME = 100


class Models:
    """Used from one event loop. The sessions stay the caller's: `close` lets the threads go and closes no session.

    decode_threads: that pictures are decoded in; None: one for each core.
    """

    def __init__(self, limits: ServerLimits, decode_threads: int | None = None) -> None:
        self.limits = limits
        self.generation = 0
        """Counts the changes, so that whoever derives something from the models knows when to do so again."""
        self.decoder = Decoder(limits, decode_threads)
        self.shared: SharedFigures | None = None
        """Where several processes serve one port."""
        self._by_name: dict[str, dict[str, ModelEndpoint]] = {}
        self._retiring: set[ModelEndpoint] = set()
        """Not served any more, while what was begun is answered."""

    def __iter__(self) -> Iterator[ModelEndpoint]:
        return (endpoint for versions in self._by_name.values() for endpoint in versions.values())

    def __len__(self) -> int:
        return sum(map(len, self._by_name.values()))

    @property
    def names(self) -> Mapping[str, Mapping[str, ModelEndpoint]]:
        """The endpoint of each version of each name; of several versions the last is meant where none is named."""
        return self._by_name

    def endpoint(self, session: Session, passed: str = "") -> ModelEndpoint:
        """Of a session, not yet served. Raises UsageError for a model that can't be."""
        return ModelEndpoint(session, self.decoder, self.limits, passed)

    def add(self, session: Session, passed: str = "") -> ModelEndpoint:
        """Serve a session. passed: what the replay of its golden set said.

        Raises UsageError for a model that can't be served, or is served already.
        """
        endpoint = self.endpoint(session, passed)
        name, version = endpoint.signature.name, endpoint.signature.version
        if version in self._by_name.get(name, {}):
            raise UsageError(f"version {version} of {name} is given twice: serve it once, or export under another name")
        self._by_name.setdefault(name, {})[version] = endpoint
        self.generation += 1
        return endpoint

    def exchange(self, name: str, endpoints: Iterable[ModelEndpoint]) -> Sequence[ModelEndpoint]:
        """Serve these under a name instead of all that were; answers those, which have to be retired."""
        old = list(self._by_name.get(name, {}).values())
        new = {endpoint.signature.version: endpoint for endpoint in endpoints}
        if new:
            self._by_name[name] = new
        else:
            self._by_name.pop(name, None)
        self.generation += 1
        return old

    async def retire(self, endpoint: ModelEndpoint, within_s: float | None = None) -> None:
        """What `ModelEndpoint.retire` does, for one that was exchanged: it is looked after until that is done."""
        self._retiring.add(endpoint)
        try:
            await endpoint.retire(within_s)
        finally:
            self._retiring.discard(endpoint)

    def find(self, name: str, version: str = "") -> ModelEndpoint:
        """The endpoint of that name, the last of its versions where none is asked for. Raises UnknownError."""
        versions = self._by_name.get(name)
        if versions is None:
            raise UnknownError(str(unknown_name("model", name[:LONGEST_NAME], self._by_name)))
        if not version:
            return next(reversed(versions.values()))
        if version not in versions:
            raise UnknownError(str(unknown_name(f"version of {name}", version[:LONGEST_NAME], versions)))
        return versions[version]

    def versions(self, name: str) -> list[str]:
        """Of one name, in the order in which they were added."""
        return list(self._by_name.get(name, ()))

    def figures(self, endpoints: Iterable[ModelEndpoint] | None = None) -> list[Figures]:
        """What was asked of these, or of all: in every process, where several serve one port."""
        asked = list(self if endpoints is None else endpoints)
        if self.shared is None:
            return [endpoint.figures() for endpoint in asked]
        gathered = self.shared.gathered(self)
        return [gathered[endpoint.signature.name, endpoint.signature.version] for endpoint in asked]

    def look_after(self) -> bool:
        """Called now and then; whether a run of any of them does not end."""
        stuck = [endpoint.look_after() for endpoint in (*self, *self._retiring)]
        if self.shared is not None:
            self.shared.write(self)
        return any(stuck)

    def close(self) -> None:
        """Let the threads go."""
        self.decoder.close()
