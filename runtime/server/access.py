"""Who may ask: one check in front of every route."""

from __future__ import annotations

import hmac
from collections.abc import Mapping
from pathlib import Path

from ..errors import UsageError
from .answers import UnauthorizedError
from .page import FILES

HEALTH = frozenset(("/v2/health/live", "/v2/health/ready"))
PAGES = frozenset(FILES)
"""They hold nothing that is secret, and one of them has to ask for the token."""
LONGEST_TOKEN = 1024
REFUSED = "this server asks for a token: send Authorization: Bearer TOKEN, or X-Api-Key: TOKEN"


class Access:
    """Everybody may ask where there is no token; else who carries it.

    open_health: whether the server's health is told without it. Raises UsageError for a token that no header can hold.
    """

    def __init__(self, token: str | None = None, *, open_health: bool = False) -> None:
        if token is not None and not (0 < len(token) <= LONGEST_TOKEN and token.isascii() and token.isprintable()):
            raise UsageError(f"a token is 1 to {LONGEST_TOKEN} printable ASCII characters: make another one")
        if token is not None and " " in token:
            raise UsageError("a token holds no space: make another one")
        self._token = None if token is None else token.encode()
        self._open = PAGES | HEALTH if open_health else PAGES

    @property
    def open_paths(self) -> frozenset[str] | None:
        """What needs no token; None: nothing needs one."""
        return None if self._token is None else self._open

    @property
    def asks(self) -> bool:
        """Whether there is a token at all."""
        return self._token is not None

    def check(self, path: str, headers: Mapping[bytes, bytes]) -> None:
        """Raise UnauthorizedError unless this request may be answered."""
        if self._token is None or path in self._open:
            return
        scheme, _, given = headers.get(b"authorization", b"").partition(b" ")
        if scheme.lower() != b"bearer":
            given = headers.get(b"x-api-key", b"")
        # takes the same time whichever byte differs
        if not hmac.compare_digest(given.strip(), self._token):
            raise UnauthorizedError(REFUSED)


def token_from_file(file: Path) -> str:
    """The token that is a file's only line. Raises UsageError where it can't be read."""
    try:
        return file.read_text(encoding="utf-8").strip()
    except (OSError, ValueError) as error:
        raise UsageError(f"can't read the token in {file}: {error}") from error
