"""What every route of ours does with a request before its own code runs.

A body is JSON, at most `BODY_LIMIT` bytes, with the fields that are asked for and no others.
Anything else is answered in one line, in the shape of all our errors: 413 for a body that is too
large, else 400. Nothing was changed then.

Example::

    router = APIRouter(route_class=CheckedRoute)
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Mapping
from typing import Any

from fastapi.exceptions import RequestValidationError
from fastapi.routing import APIRoute
from pydantic import BaseModel, ConfigDict
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Message, Receive

from governance.errors import MalformedRequestError, OversizeRequestError

__all__ = ["BODY_LIMIT", "CheckedBody", "CheckedRoute"]

BODY_LIMIT = 2 << 20

_Handler = Callable[[Request], Coroutine[Any, Any, Response]]


class CheckedBody(BaseModel):
    """A body without unknown fields, whose types are meant as they are written."""

    model_config = ConfigDict(extra="forbid", strict=True, hide_input_in_errors=True)


class CheckedRoute(APIRoute):
    """See the module."""

    def get_route_handler(self) -> _Handler:
        handle = super().get_route_handler()

        async def checked(request: Request) -> Response:
            try:
                return await handle(await _read(request))
            except RequestValidationError as error:
                raise _fault(error) from error
            except HTTPException as error:
                if error.status_code != 400:
                    raise
                raise MalformedRequestError(  # FastAPI's word for what no parser can read
                    f"the request cannot be read: {error.detail}", "send one JSON object"
                ) from error

        return checked


async def _read(request: Request) -> Request:
    """The request, its body read as far as it may go."""
    declared = request.headers.get("content-length", "")
    if declared.isdecimal() and int(declared[:20]) > BODY_LIMIT:
        raise _too_large()
    body = b""
    async for part in request.stream():
        body += part
        if len(body) > BODY_LIMIT:
            raise _too_large()
    return Request(request.scope, _once(body, request.receive))


def _once(body: bytes, receive: Receive) -> Receive:
    told = False

    async def replay() -> Message:
        nonlocal told
        if told:
            return await receive()
        told = True
        return {"type": "http.request", "body": body, "more_body": False}

    return replay


def _too_large() -> OversizeRequestError:
    return OversizeRequestError(
        f"the body is larger than {BODY_LIMIT} bytes", "send what the route asks for, and no more"
    )


def _fault(error: RequestValidationError) -> MalformedRequestError:
    """The first thing that is wrong, and how many more there are."""
    found = list(error.errors())
    first: Mapping[str, Any] = found[0]
    place, *path = (str(part) for part in first["loc"])
    where = ".".join(path)
    if first["type"] == "json_invalid":
        reason = first.get("ctx", {}).get("error", first["msg"])
        text, remedy = f"the body is no JSON: {reason}", "send one JSON object"
    elif first["type"] == "extra_forbidden":
        text = f"the {place} has an unknown field {where!r}"
        remedy = "correct its name, or leave it out"
    else:
        message = str(first["msg"]).removeprefix("Value error, ")
        text = f"the {place}{', ' + where if where else ''}: {message}"
        remedy = "send one JSON object with what the route asks for" if not where else "correct it"
    more = f" (and {len(found) - 1} more)" if len(found) > 1 else ""
    return MalformedRequestError(text + more, remedy)
