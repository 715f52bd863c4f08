"""The application: routes, errors as JSON, and a bound on what a client may send."""

from __future__ import annotations

import logging
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

import nagaya
from nagaya import validation
from nagaya.daemon.api import (
    demand,
    disks,
    faults,
    host,
    images,
    leases,
    links,
    machines,
    memory,
    networks,
    operations,
    plan,
    settings,
    startqueue,
    streams,
    usage,
    waits,
)
from nagaya.daemon.daemon import Daemon
from nagaya.errors import NagayaError, NotFoundError, SpecError, UsageError
from nagaya.models.host import ErrorBody

BODY_LIMIT = 32 * 2**20  # bytes: `exec` with 16 MiB of input, in base64, is the largest request
ERRORS: dict[int | str, dict[str, Any]] = {
    "default": {"model": ErrorBody, "description": "The error, with what to do about it"}
}

log = logging.getLogger("nagaya.daemon.api")


def make_app(daemon: Daemon) -> FastAPI:
    """The application for one daemon."""
    app = FastAPI(
        title="Nagaya",
        version=nagaya.__version__,
        summary="Virtual machines on one host",
        responses=ERRORS,
        docs_url=None,
        redoc_url=None,
        openapi_url="/v1/openapi.json",
        separate_input_output_schemas=False,
    )
    machine_routes = (machines, startqueue, faults, streams, settings, waits, usage, memory, demand, plan)
    for module in (host, *machine_routes, disks, networks, links, images, leases, operations):
        app.include_router(module.router(daemon), prefix="/v1")
    app.add_exception_handler(NagayaError, _nagaya_error)
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(HTTPException, _http_error)
    app.add_exception_handler(Exception, _bug)
    app.add_middleware(BodyLimit)
    return app


class BodyLimit:
    """Refuses requests whose body is larger than `BODY_LIMIT`, announced or not."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        length = dict(scope["headers"]).get(b"content-length", b"0")
        if not length.isdigit() or int(length) > BODY_LIMIT:
            await _answer(_too_large())(scope, receive, send)
            return
        seen = 0

        async def bounded() -> Message:
            nonlocal seen
            message = await receive()
            seen += len(message.get("body", b""))
            if seen > BODY_LIMIT:
                raise _too_large()
            return message

        await self._app(scope, bounded, send)


def _too_large() -> UsageError:
    return UsageError(f"the request is larger than {BODY_LIMIT} bytes", limit=BODY_LIMIT)


def _answer(error: NagayaError) -> JSONResponse:
    return JSONResponse(error.to_json(), error.http_status)


async def _nagaya_error(_request: Request, error: Exception) -> JSONResponse:
    if not isinstance(error, NagayaError):
        raise error
    return _answer(error)


async def _invalid(request: Request, error: Exception) -> JSONResponse:
    """All that is wrong with the request, field by field."""
    if not isinstance(error, RequestValidationError):
        raise error
    found = []
    for problem in validation.problems_in(error.errors(), _body_model(request)):
        where = (
            problem.field[1:] if problem.field[:1] in (("body",), ("query",), ("path",)) else problem.field
        )
        found.append(validation.Problem(where, problem.message))
    text = "\n".join(str(problem) for problem in found)
    facts = [{"field": validation.dotted(problem.field), "message": problem.message} for problem in found]
    return _answer(SpecError(text, problems=facts))


def _body_model(request: Request) -> type[BaseModel] | None:
    """What the body of a request to this route must be."""
    field = getattr(request.scope.get("route"), "body_field", None)
    model = field.field_info.annotation if field is not None else None
    return model if isinstance(model, type) and issubclass(model, BaseModel) else None


async def _http_error(request: Request, error: Exception) -> JSONResponse:
    """What the router itself refuses."""
    if not isinstance(error, HTTPException):
        raise error
    path = request.url.path
    if error.status_code == 404:
        return _answer(NotFoundError(f"the API has no {path}", hint="see /v1/openapi.json"))
    body = UsageError(f"{request.method} {path}: {error.detail}").to_json()
    return JSONResponse(body, error.status_code, headers=error.headers)


async def _bug(_request: Request, error: Exception) -> JSONResponse:
    message = f"the daemon failed: {type(error).__name__}: {error}"
    return _answer(NagayaError(message, hint="its log has the trace; please report it"))
