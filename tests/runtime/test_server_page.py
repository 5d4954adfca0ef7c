"""The page's files and the figures behind it, without a browser; test_server_page_browser.py has the rest."""

from __future__ import annotations

import http.client
import re
from collections.abc import Callable, Iterator
from typing import Any

import msgspec
import numpy as np
import pytest

from trueport.runtime import Session
from trueport.runtime.server import Access, ServerLimits
from trueport.runtime.server.models import Models
from trueport.runtime.server.page import FILES, FOLDER, POLICY, Status, page_routes, status
from trueport.runtime.server.statistics import BOUNDS_S

MOST_BYTES = 40_000
ROW = bytes(64)


@pytest.fixture
def session(session_of: Callable[..., Session]) -> Iterator[Session]:
    with session_of() as session:
        yield session


def ask(address: str, path: str, body: bytes | None = None) -> tuple[http.client.HTTPResponse, bytes]:
    client = http.client.HTTPConnection(address, timeout=30)
    try:
        headers = {} if body is None else {"Inference-Header-Content-Length": "0"}
        client.request("GET" if body is None else "POST", path, body, headers)
        response = client.getresponse()
        return response, response.read()
    finally:
        client.close()


def test_all_pages_together_are_small() -> None:
    assert sum(len(answer.body) for answer in page_routes().values()) < MOST_BYTES


@pytest.mark.parametrize("path", FILES)
def test_a_page_names_no_other_address_and_holds_no_code_of_its_own(path: str) -> None:
    text = page_routes()[path].body.decode()
    assert set(re.findall(r"https?://[^\s'\"]*", text)) <= {"http://www.w3.org/2000/svg"}
    # relative addresses alone, so that it works below any path
    assert not [found for found in re.findall(r"(?:href|src)=\"([^\"]*)\"", text) if found.startswith("/")]
    assert not re.search(r"innerHTML|outerHTML|insertAdjacent|document\.write|\beval\b", text)
    assert not re.search(r"<style|\sstyle=|\son[a-z]+=\"|<script(?![^>]*\ssrc=)", text)


@pytest.mark.parametrize("path", FILES)
def test_pages_need_no_token_and_carry_their_policy(running: Any, session: Session, path: str) -> None:
    with running([session], access=Access("sesame")) as address:
        response, body = ask(address, path)
    assert response.status == 200
    assert body == page_routes()[path].body
    assert response.headers["content-security-policy"] == POLICY.decode()
    assert response.headers["x-content-type-options"] == "nosniff"
    assert response.headers["cache-control"] == "no-cache"
    kind = FILES[path].rpartition(".")[2]
    assert response.headers["content-type"].startswith({"js": "text/javascript"}.get(kind, f"text/{kind}"))


def test_every_file_of_the_folder_is_served() -> None:
    from importlib.resources import files

    assert {file.name for file in (files("trueport.runtime.server") / FOLDER).iterdir()} == set(FILES.values())


def test_status_tells_what_runs_and_counts(running: Any, session: Session) -> None:
    with running([session], passed="golden set passed") as address:
        before = msgspec.json.decode(ask(address, "/status")[1], type=Status)
        for body in (ROW, ROW, b"too short"):
            ask(address, "/v2/models/digits/infer", body)
        response, body = ask(address, "/status")
    after = msgspec.json.decode(body, type=Status)
    assert response.headers["cache-control"] == "no-store"
    assert before.instance == after.instance
    assert before.at_s < after.at_s
    assert after.bounds_s == BOUNDS_S
    (model,) = after.models
    assert (model.name, model.version, model.variant, model.runner) == ("digits", "1", "fp32", "onnxruntime:cpu")
    assert (model.chosen, model.verdict) == (session.chosen, "golden set passed")
    assert (model.row_shape, model.labels, model.ready) == ((8, 8, 1), 7, True)
    assert model.max_batch_rows == session.batcher.limits.max_batch_rows
    assert (before.models[0].success, model.success, sum(model.buckets)) == (0, 2, 2)
    assert (model.rows, model.failures["OTHER"]) == (2, 1)
    assert 1 <= model.batches <= 2
    assert model.success_s >= model.run_s > 0


def test_a_closed_session_is_told_as_not_ready(session: Session) -> None:
    models = Models(ServerLimits())
    models.add(session)
    try:
        session.close()
        assert not status(models).models[0].ready
    finally:
        models.close()


def test_the_sessions_of_the_tests_answer_as_they_say(session: Session) -> None:
    row = np.arange(64, dtype=np.uint8).reshape(1, 8, 8, 1)
    assert session.run(row)[0].tolist() == [value / 32 for value in range(7)]
