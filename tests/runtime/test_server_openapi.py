"""The OpenAPI description: every route that is served is in it, and what the server answers is what it says."""

from __future__ import annotations

import http.client
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any, cast

import msgspec
import pytest

from trueport.runtime import Session
from trueport.runtime.server import Access, ServerLimits
from trueport.runtime.server.answers import Answer
from trueport.runtime.server.contract import Request
from trueport.runtime.server.models import Models
from trueport.runtime.server.openapi import openapi
from trueport.runtime.server.page import FILES
from trueport.runtime.server.routes import Router

SessionOf = Callable[..., Session]
EXAMPLES = 8
"""Requests of each kind to each route."""
ASSETS = {path for path in FILES if "." in path}


@pytest.fixture(scope="module")
def sessions(session_of: SessionOf) -> Iterator[list[Session]]:
    made = [
        session_of("digits", "1.0"),
        session_of("digits", "2", labels=("one", "two")),
        session_of("quarters", task="multilabel", labels=("left", "right")),
    ]
    yield made
    for session in made:
        session.close()


@pytest.fixture
def models(sessions: list[Session]) -> Iterator[Models]:
    models = Models(ServerLimits())
    for session in sessions:
        models.add(session)
    yield models
    models.close()


@pytest.fixture(scope="module")
def address(running: Any, sessions: list[Session]) -> Iterator[str]:
    with running(sessions) as address:
        yield address


def fetched(address: str, path: str, **headers: str) -> tuple[int, Any]:
    client = http.client.HTTPConnection(address, timeout=30)
    try:
        client.request("GET", path, headers=headers)
        response = client.getresponse()
        return response.status, msgspec.json.decode(response.read())
    finally:
        client.close()


def expanded(description: dict[str, Any]) -> set[tuple[str, str]]:
    """Method and path of every operation, once for each version."""
    found = set()
    for path, item in description["paths"].items():
        versions = [each["schema"]["enum"] for each in item.get("parameters", ())] or [[""]]
        for version in versions[0]:
            found |= {(method, path.replace("{version}", version)) for method in item.keys() & {"get", "post"}}
    return found


@pytest.mark.parametrize("count", [1, 3])
def test_every_route_is_described_and_no_other(sessions: list[Session], count: int) -> None:
    models = Models(ServerLimits())
    for session in sessions[:count]:
        models.add(session)
    router = Router(models, Access())
    try:
        router.route("GET", "/v2", {})
        routes = {("get", path) for path in router._gets} | {("post", path) for path in router._posts}
        assert expanded(openapi(models)) == {route for route in routes if route[1] not in ASSETS}
    finally:
        router.close()


def test_loading_is_described_where_clients_may(models: Models) -> None:
    loading = {f"/v2/repository/models/{{name}}/{action}" for action in ("load", "unload")}
    assert not loading & openapi(models)["paths"].keys()
    assert loading < openapi(models, control=True)["paths"].keys()


def test_schemas_are_those_of_the_models(models: Models) -> None:
    description = openapi(models)
    schemas = description["components"]["schemas"]
    tensor = schemas["digits.1.0.Request"]["properties"]["inputs"]["items"]["properties"]
    assert [size.get("const") for size in tensor["shape"]["prefixItems"]] == [None, 8, 8, 1]
    assert tensor["data"]["minItems"] == 64
    assert schemas["quarters.1.Answer"]["properties"]["model_name"] == {"const": "quarters"}
    infer = description["paths"]["/v2/models/digits/versions/{version}/infer"]["post"]
    asked = infer["requestBody"]["content"]["application/json"]["schema"]
    assert [each["$ref"].rpartition("/")[2] for each in asked["anyOf"]] == ["digits.1.0.Request", "digits.2.Request"]
    without = description["paths"]["/v2/models/digits/infer"]["post"]["requestBody"]["content"]["application/json"]
    assert without["schema"]["$ref"].endswith("digits.2.Request")
    told = {tag["name"]: tag["description"] for tag in description["tags"]}
    assert told["digits"] == "Rows of 8 x 8 x 1 uint8, 2 labels."
    classify = description["paths"]["/v2/models/quarters/classify"]["post"]
    assert "sigmoid" in classify["description"]


def test_names_of_operations_are_unique(models: Models) -> None:
    paths = openapi(models, control=True)["paths"].values()
    names = Counter(item[method]["operationId"] for item in paths for method in item.keys() & {"get", "post"})
    assert names.most_common(1)[0][1] == 1


def test_a_token_is_described_only_where_one_is_asked_for(models: Models) -> None:
    without, access = openapi(models), Access("sesame", open_health=True)
    assert "security" not in without
    assert "securitySchemes" not in without["components"]
    description = openapi(models, open_paths=access.open_paths)
    assert description["security"] == [{"bearer": []}, {"key": []}]
    paths = description["paths"]
    assert paths["/v2/health/ready"]["get"]["security"] == paths["/"]["get"]["security"] == []
    assert "security" not in paths["/status"]["get"]
    assert "401" in paths["/v2/models/digits/infer"]["post"]["responses"]
    assert "401" not in paths["/docs"]["get"]["responses"]


def test_the_description_itself_needs_the_token(running: Any, sessions: list[Session]) -> None:
    with running(sessions, access=Access("sesame")) as address:
        for path in ("/openapi.json", "/status"):
            assert fetched(address, path)[0] == 401
            assert fetched(address, path, Authorization="Bearer sesame")[0] == 200


def test_another_model_is_described_once_it_is_served(session_of: SessionOf, sessions: list[Session]) -> None:
    def described() -> set[str]:
        answers: list[Answer] = []
        router.route("GET", "/openapi.json", {})(Request({}, b"", b""), answers.append)
        return set(msgspec.json.decode(answers[0].body)["paths"])

    models = Models(ServerLimits())
    models.add(sessions[0])
    router = Router(models, Access())
    with session_of("later") as later:
        try:
            assert "/v2/models/later" not in described()
            models.add(later)
            assert "/v2/models/later" in described()
        finally:
            router.close()


@pytest.mark.parametrize("mode", ["positive", "negative"])
def test_answers_are_what_the_description_says(address: str, mode: str) -> None:
    """Requests that fit the description and requests that don't: status, content type, headers and schema conform."""
    import schemathesis
    from hypothesis import HealthCheck, Phase, given, settings
    from schemathesis.specs.openapi.checks import positive_data_acceptance

    def check(operation: Any) -> None:
        @settings(
            max_examples=EXAMPLES,
            derandomize=True,
            deadline=None,
            database=None,
            phases=[Phase.explicit, Phase.generate],
            suppress_health_check=list(HealthCheck),
        )
        @given(case=operation.as_strategy(generation_mode=schemathesis.GenerationMode(mode)))
        def ask(case: Any) -> None:
            answer = case.call(base_url=f"http://{address}")
            statuses[answer.status_code] += 1
            # what no schema can say: that bytes are a picture, that there are as many values as the shape has
            without = [positive_data_acceptance] if operation.method == "post" else []
            case.validate_response(answer, excluded_checks=without)

        ask()

    statuses: Counter[int] = Counter()
    description = schemathesis.openapi.from_dict(fetched(address, "/openapi.json")[1])
    description.validate()
    for found in description.get_all_operations():
        operation: Any = cast("Any", found).ok()
        if mode == "positive" or operation.body or "{version}" in operation.path:
            check(operation)
    assert statuses.keys() <= {200, 400, 404}
    assert statuses[200 if mode == "positive" else 400] > EXAMPLES
