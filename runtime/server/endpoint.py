"""One served model: what happens between the body of a request and its answer."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import TYPE_CHECKING
from urllib.parse import parse_qs

import msgspec

from ..errors import DeadlineError, ImageError, InvalidRequestError
from .answers import Answer, UnsupportedError, answer_from_json
from .contract import ServerLimits
from .decoding import Decoder
from .outputs import answer_from_outputs
from .protocol import RequestReader, shown
from .signature import signature_from_manifest

if TYPE_CHECKING:
    from ..session import Session

DEFAULT_TOP = 5


class Request(msgspec.Struct, frozen=True, gc=False):
    """A POST whose body has arrived."""

    headers: Mapping[bytes, bytes]
    query: bytes
    body: bytes


class ModelEndpoint:
    """Answers the POSTs to one version of one model."""

    def __init__(self, session: Session, decoder: Decoder, limits: ServerLimits) -> None:
        self.session = session
        self.signature = signature_from_manifest(session.manifest, session.batcher.limits.max_batch_rows)
        self._batcher = session.batcher
        self._decoder = decoder
        self._reader = RequestReader(self.signature, limits.max_json_bytes)

    @property
    def ready(self) -> bool:
        """False once the session is closed: it does not come back."""
        return not self.session.closed

    async def infer(self, request: Request) -> Answer:
        """Tensors in, tensors out. Raises the RequestErrors and ImageError."""
        _refuse_compressed(request.headers)
        asked = self._reader.request(request.body, request.headers.get(b"inference-header-content-length"))
        rows, deadline_s = asked.rows, asked.timeout_s
        if rows is None:
            begun_s = time.monotonic()
            rows = await self._decoder.rows(self.session.prepare, asked.pictures)
            deadline_s = _remaining(deadline_s, time.monotonic() - begun_s)
        outputs = await self._batcher.asubmit(rows, deadline_s=deadline_s, priority=asked.priority)
        return answer_from_outputs(self.signature, asked, outputs)

    async def classify(self, request: Request) -> Answer:
        """One encoded picture in, its best classes out: the session's scores, a softmax or a sigmoid of each label.

        Raises the RequestErrors and ImageError.
        """
        _refuse_compressed(request.headers)
        _refuse_form(request.headers)
        top = _top(request.query)
        if not request.body:
            raise ImageError("the body is empty, expected the bytes of one JPEG or PNG picture")
        rows = await self._decoder.rows(self.session.prepare, [request.body])
        outputs = await self._batcher.asubmit(rows)
        logits = outputs[self.signature.json_outputs[0].name]
        best = self.session.predictions(logits, top)[0].top
        return answer_from_json(
            {
                "model_name": self.signature.name,
                "model_version": self.signature.version,
                "predictions": best,
            }
        )


def _remaining(deadline_s: float | None, spent_s: float) -> float | None:
    if deadline_s is None:
        return None
    if spent_s >= deadline_s:
        raise DeadlineError(f"the timeout of {deadline_s:g} s passed while the pictures were decoded")
    return deadline_s - spent_s


def _refuse_compressed(headers: Mapping[bytes, bytes]) -> None:
    encoding = headers.get(b"content-encoding", b"identity")
    if encoding != b"identity" and encoding.lower() != b"identity":
        raise UnsupportedError(
            f"Content-Encoding {shown(encoding.decode('latin1'))} is not read here: send it uncompressed"
        )


def _refuse_form(headers: Mapping[bytes, bytes]) -> None:
    if headers.get(b"content-type", b"").lower().startswith(b"multipart/"):
        raise UnsupportedError(
            "forms are not read here: send the picture's bytes as the body, as in curl --data-binary @picture.jpg"
        )


def _top(query: bytes) -> int:
    text = parse_qs(query.decode("latin1"), keep_blank_values=True).get("top", [str(DEFAULT_TOP)])[-1]
    if not (text.isascii() and text.isdigit() and len(text) <= 9 and int(text) > 0):
        raise InvalidRequestError(f"top has to be a whole number of classes, at least 1, found {shown(text)}")
    return int(text)
