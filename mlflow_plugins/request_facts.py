"""What a request says about itself, read from its ASGI scope once and without trust."""

from __future__ import annotations

import re
from functools import cached_property
from urllib.parse import unquote, urlsplit

from starlette.types import Scope

from governance.errors import AuthenticationError, RefusedError
from governance.signing.http_signatures import SIGNATURE_HEADERS
from mlflow_plugins.basic_auth import parse_basic_credentials

__all__ = ["RequestFacts"]

_SAFE_METHODS = frozenset({"GET", "HEAD", "OPTIONS", "TRACE"})
_OWN_API = re.compile(r"/++(?:ajax-)?api/++3\.0/++chancery(?:/|$)", re.IGNORECASE)
_SEGMENT = re.compile(r"(?<!/)/")
_CODE_REF = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")
_TRACEPARENT = re.compile(r"[0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}")
_MAX_NAME = 256


class RequestFacts:
    """An HTTP request as its scope tells it.

    Args:
        scope: ASGI scope of type ``http``.
    """

    def __init__(self, scope: Scope) -> None:
        self.method: str = scope["method"]
        self.path: str = scope["path"]
        self.headers: list[tuple[bytes, bytes]] = [
            (bytes(name).lower(), bytes(value)) for name, value in scope["headers"]
        ]
        self._raw_path: bytes | None = scope.get("raw_path")
        self.raw_query: bytes = scope.get("query_string", b"")
        client = scope.get("client")
        self.client: str = client[0] if client else ""

    @property
    def raw_path(self) -> bytes:
        """Path as sent on the wire.

        Raises:
            AuthenticationError: the server did not keep it, so no signature can be checked.
        """
        if self._raw_path is None:
            raise AuthenticationError(
                "the ASGI server does not pass the raw path", "serve with uvicorn"
            )
        return self._raw_path

    @property
    def mutates(self) -> bool:
        """Any method that is not known to be safe may change something."""
        return self.method.upper() not in _SAFE_METHODS

    @property
    def claims_signature(self) -> bool:
        return any(self._values(name) for name in SIGNATURE_HEADERS)

    @cached_property
    def is_own_api(self) -> bool:
        """Whether the path is below our own API, under any static prefix."""
        return any(
            _OWN_API.match(self.path, found.start()) for found in _SEGMENT.finditer(self.path)
        )

    @property
    def basic_credentials(self) -> tuple[str, str] | None:
        value = self._single("authorization")
        return parse_basic_credentials(value) if value else None

    @property
    def claimed_actor(self) -> str | None:
        """The name in ``X-Chancery-Actor``.

        Raises:
            RefusedError: it is repeated, too long, or not printable.
        """
        values = self._values("x-chancery-actor")
        if not values:
            return None
        name = unquote(values[0]).strip()
        if len(values) > 1 or len(name) > _MAX_NAME or not name.isprintable():
            raise RefusedError(
                "X-Chancery-Actor is not one printable name",
                f"send it once, percent-encoded, with at most {_MAX_NAME} characters",
            )
        return name or None

    @property
    def claimed_for_audit(self) -> str:
        """The claimed name as it came, made harmless, for the record of a refusal."""
        text = " | ".join(self._values("x-chancery-actor"))[:_MAX_NAME]
        return text.encode("unicode_escape").decode("ascii")

    @property
    def code_ref(self) -> str | None:
        """A claim; anything but a commit is ignored."""
        value = self._single("x-chancery-code-ref")
        return value if value and _CODE_REF.fullmatch(value) else None

    @property
    def traceparent(self) -> str | None:
        value = self._single("traceparent")
        return value if value and _TRACEPARENT.fullmatch(value) else None

    @property
    def workspace(self) -> str | None:
        """MLflow's workspace, below which it may place an artifact.

        Raises:
            RefusedError: it is named more than once, and MLflow takes one of them.
        """
        values = self._values("x-mlflow-workspace")
        if len(values) > 1:
            raise RefusedError("X-MLFLOW-WORKSPACE is there more than once", "send it once")
        return values[0] if values else None

    def check_origin(self) -> None:
        """Refuse another site's page that would change something through our API.

        Raises:
            RefusedError: the ``Origin`` is not this host.
        """
        origins = self._values("origin")
        if not (self.mutates and self.is_own_api and origins):
            return
        host = self._single("host")
        try:
            origin = urlsplit(origins[0]).netloc if len(origins) == 1 else ""
        except ValueError:
            origin = ""
        if not host or origin.lower() != host.lower():
            raise RefusedError(
                "a page of another origin may not change anything here",
                "open the server's own pages, or keep the Host header in your proxy",
            )

    def _values(self, name: str) -> list[str]:
        wanted = name.encode()
        return [value.decode("latin-1") for header, value in self.headers if header == wanted]

    def _single(self, name: str) -> str | None:
        values = self._values(name)
        return values[0] if len(values) == 1 else None
