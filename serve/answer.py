"""One HTTP answer, and those that ``mlflow models serve`` gives when no model is asked.

An `Answer` is what travels between the scorer, the lanes and the listener: a status, a content
type, a body, and headers that name the model, its version and who signed it. Nothing here imports
MLflow or a web framework.
"""

from __future__ import annotations

import json
from typing import NamedTuple

from governance.errors import GovernanceError

__all__ = [
    "JSON",
    "TEXT",
    "Answer",
    "Header",
    "OverloadedError",
    "failed",
    "overloaded",
    "refused",
    "timed_out",
]

Header = tuple[bytes, bytes]
"""A lower-case name and its value, as ASGI wants them."""

JSON = b"application/json"
TEXT = b"text/plain; charset=utf-8"


class Answer(NamedTuple):
    """What a client is told. A tuple: several are made for each request, at a third of the cost.

    Args:
        status: HTTP status.
        body: The bytes that follow.
        content_type: Value of ``content-type``; empty for none.
        headers: Further headers, without ``content-type`` and ``content-length``.
    """

    status: int
    body: bytes
    content_type: bytes = JSON
    headers: tuple[Header, ...] = ()

    def with_headers(self, *headers: Header) -> Answer:
        """The same answer with more headers."""
        return self._replace(headers=(*self.headers, *headers))


class OverloadedError(GovernanceError):
    """More requests wait than may wait; ``retry_after_s`` says when to come again (seconds)."""

    code = "OVERLOADED"
    http_status = 503

    def __init__(self, message: str, remedy: str = "", *, retry_after_s: int = 1) -> None:
        super().__init__(message, remedy or f"send the request again after {retry_after_s} s")
        self.retry_after_s = retry_after_s


def refused(status: int, code: str, message: str, *headers: Header) -> Answer:
    """A refusal of ours, in the form of MLflow's errors (``error_code`` and ``message``)."""
    body = json.dumps({"error_code": code, "message": message}).encode()
    return Answer(status, body, JSON, headers)


def overloaded(error: OverloadedError) -> Answer:
    """503 with ``Retry-After``."""
    retry = (b"retry-after", str(error.retry_after_s).encode())
    return refused(error.http_status, error.code, str(error), retry)


def timed_out() -> Answer:
    """504, in the words of ``mlflow models serve``."""
    return Answer(504, b"Request processing time exceeded limit", JSON)


def failed() -> Answer:
    """500, in the words of ``mlflow models serve`` when something unforeseen was raised."""
    return Answer(500, b"Internal Server Error", TEXT)
