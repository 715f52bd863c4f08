"""The HTTP API against its own schema, and its errors."""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import Iterator
from typing import Any

import httpx2
import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from schemathesis.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)
from schemathesis.core.result import Ok

from nagaya.daemon.api.app import BODY_LIMIT, make_app
from nagaya.daemon.main import running
from nagaya.daemon.server import make_server
from nagaya.paths import Paths
from nagaya.testing import Stage, fake_parts

EXAMPLES = 12  # for each of the routes; all together take about 20 s


@pytest.fixture
def url(own_paths: Paths) -> Iterator[str]:
    """A daemon in a thread of its own, on a loopback port: schemathesis knows no unix sockets."""
    ready = threading.Event()
    servers: list[Any] = []
    listener = socket.create_server(("127.0.0.1", 0))

    async def life() -> None:
        async with running(own_paths, fake_parts(own_paths)) as daemon:
            servers.append(make_server(make_app(daemon), ready.set))
            await servers[0].serve(sockets=[listener])

    thread = threading.Thread(target=lambda: asyncio.run(life()))
    thread.start()
    ready.wait(30)
    yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    servers[0].stop()
    thread.join(30)
    listener.close()
    Stage(own_paths).clear()


def ask(url: str, method: str, path: str, **parts: Any) -> httpx2.Response:
    """One request."""
    with httpx2.Client(base_url=url) as client:
        return client.request(method, path, **parts)


def test_whatever_is_sent_the_answer_is_as_the_schema_says(url: str) -> None:
    """An error of ours (`unsupported`, `resource` ...) is an answer; `internal` is a bug."""
    ask(url, "POST", "/v1/machines?start=true", json={"name": "web", "memory": "64MiB"}).raise_for_status()
    schema = schemathesis.openapi.from_url(f"{url}/v1/openapi.json")
    for found in schema.get_all_operations():
        assert isinstance(found, Ok), found
        _try(found.ok())


def _try(operation: Any) -> None:
    @settings(
        max_examples=EXAMPLES,
        deadline=None,
        database=None,
        derandomize=True,
        suppress_health_check=list(HealthCheck),
    )
    @given(case=operation.as_strategy(), known=st.booleans())
    def once(case: Any, known: bool) -> None:
        if known and "name" in (case.path_parameters or {}):
            case.path_parameters["name"] = "web"
        for endless in ("follow", "timeout", "wait"):
            (case.query or {}).pop(endless, None)
        if case.path.endswith("/wait"):
            case.query = {**(case.query or {}), "timeout": 0}
        if case.path.endswith("/capture"):
            case.query = {**(case.query or {}), "seconds": 0.01}
        answer = case.call(timeout=30)
        checks = [content_type_conformance, response_schema_conformance, status_code_conformance]
        case.validate_response(answer, checks=checks)
        if answer.status_code >= 400:
            assert answer.json()["code"] != "internal", answer.text

    once()


def test_a_spec_that_is_wrong_is_told_field_by_field(url: str) -> None:
    body = {"name": "web", "memory": "lots", "disks": [{"size": "1MiB", "image": 3}], "cpuz": 1}
    answer = ask(url, "POST", "/v1/machines", json=body)
    assert answer.status_code == 422
    error = answer.json()
    assert error["code"] == "spec"
    fields = {problem["field"] for problem in error["facts"]["problems"]}
    assert fields == {"memory.size", "disks[0].image", "cpuz"}
    assert "'lots' is not a size" in error["message"]
    assert "cpuz: unknown key 'cpuz'; did you mean 'cpu'?" in error["message"]


def test_an_unknown_key_inside_a_body_gets_the_nearest_known_one(url: str) -> None:
    body = {"machines": [{"name": "web", "memory": {"sizee": "64MiB"}}], "prun": True}
    message = ask(url, "POST", "/v1/apply", json=body).json()["message"]
    assert "machines[0].memory.sizee: unknown key 'sizee'; did you mean 'size'?" in message
    assert "prun: unknown key 'prun'; did you mean 'prune'?" in message


@pytest.mark.parametrize(
    ("method", "path", "status", "code"),
    [
        ("GET", "/v1/machines/none", 404, "not-found"),
        ("GET", "/v1/nothing", 404, "not-found"),
        ("PATCH", "/v1/machines", 405, "usage"),
        ("POST", "/v1/operations/none/cancel", 404, "not-found"),
        ("DELETE", "/v1/images/none", 404, "not-found"),
        ("POST", "/v1/machines/none/start", 404, "not-found"),
        ("GET", "/v1/machines/none/logs", 404, "not-found"),
    ],
)
def test_errors_have_a_status_and_a_code(url: str, method: str, path: str, status: int, code: str) -> None:
    answer = ask(url, method, path)
    assert (answer.status_code, answer.json()["code"]) == (status, code)


def test_a_body_that_is_not_json_is_an_error_of_the_spec(url: str) -> None:
    answer = ask(url, "POST", "/v1/machines", content=b"{", headers={"content-type": "application/json"})
    assert (answer.status_code, answer.json()["code"]) == (422, "spec")


def test_a_body_that_is_too_large_is_refused_announced_or_not(url: str) -> None:
    def endless() -> Iterator[bytes]:
        for _ in range(BODY_LIMIT // 2**20 + 2):
            yield b" " * 2**20

    host = httpx2.URL(url)
    with socket.create_connection((host.host, host.port or 0)) as raw:
        raw.sendall(b"POST /v1/machines HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % (BODY_LIMIT + 1))
        answer = b""
        while not answer.endswith(b"}"):
            received = raw.recv(65536)
            assert received, answer
            answer += received
    assert answer.startswith(b"HTTP/1.1 400 ")
    assert b'"code":"usage"' in answer
    streamed = ask(url, "POST", "/v1/machines", content=endless())
    assert (streamed.status_code, streamed.json()["code"]) == (400, "usage")
