"""Signs each request of MLflow's client: ``MLFLOW_TRACKING_AUTH=chancery``.

The key is the signer URI in ``CHANCERY_KEY``. MLflow hands the auth object to ``requests``, which
calls it with the finished request: method, URL and body. ``Authorization`` is left as MLflow set it
(user name and password, or token), so signing goes together with MLflow's basic-auth; credentials
written into the tracking URI, which ``requests`` drops once an auth object is there, are put back.

Bodies that are files are hashed and rewound. A body that can be read only once is spooled to a
temporary file first, since its digest goes ahead of it. Retries send the very same headers; the
server tells them from replays by the nonce. A redirect to another path is not signed anew, and is
refused by the server.

Like ``mlflow_plugins.request_headers`` this module is loaded while ``import mlflow`` is half done,
so it imports nothing of MLflow, and its provider fits MLflow's by shape.
"""

from __future__ import annotations

import hashlib
import os
import secrets
import tempfile
import time
from collections.abc import Callable, Iterable
from functools import lru_cache
from typing import IO, TYPE_CHECKING, Any

from requests.auth import AuthBase, _basic_auth_str
from requests.utils import get_auth_from_url

if TYPE_CHECKING:
    from requests import PreparedRequest

    from governance.signing.keys import Signer

__all__ = ["SignedRequestAuth", "SignedRequestAuthProvider"]

_CHUNK = 1 << 20


class SignedRequestAuthProvider:
    """An MLflow ``RequestAuthProvider``."""

    def get_name(self) -> str:
        return "chancery"

    def get_auth(self) -> SignedRequestAuth:
        """The auth object for one request.

        Raises:
            ConfigurationError: ``CHANCERY_KEY`` is not set, or names no usable key.
        """
        from governance.errors import ConfigurationError

        uri = os.environ.get("CHANCERY_KEY")
        if not uri:
            raise ConfigurationError(
                "MLFLOW_TRACKING_AUTH is 'chancery' but CHANCERY_KEY is not set",
                "set CHANCERY_KEY to the signer URI of your key, such as file:/home/me/me.pem",
            )
        production = os.environ.get("CHANCERY_MODE", "development") != "development"
        return SignedRequestAuth(_signer(uri, production))


@lru_cache(maxsize=8)
def _signer(uri: str, production: bool) -> Signer:
    from governance.signing.keys import development_signer

    # A key made just now would be in nobody's trust roots.
    return development_signer(uri, "request-signing key", production=production, create=False)


class SignedRequestAuth(AuthBase):
    """A ``requests`` auth object that signs what is about to be sent.

    Args:
        signer: The person's key.
        clock: Seconds since the epoch.
        new_nonce: Makes nonces.
    """

    def __init__(
        self,
        signer: Signer,
        *,
        clock: Callable[[], float] = time.time,
        new_nonce: Callable[[], str] = lambda: secrets.token_urlsafe(24),
    ) -> None:
        self._signer = signer
        self._clock = clock
        self._new_nonce = new_nonce

    def __call__(self, request: PreparedRequest) -> PreparedRequest:
        from governance.signing.http_signatures import sign_request

        if "Authorization" not in request.headers and request.url:
            username, password = get_auth_from_url(request.url)
            if username and password:
                request.headers["Authorization"] = _basic_auth_str(username, password)
        digest = _hash_body(request)
        path, _, query = request.path_url.partition("?")
        request.headers.update(
            sign_request(
                self._signer,
                method=request.method or "",
                path=path,
                query=query,
                content_sha256=digest,
                created=int(self._clock()),
                nonce=self._new_nonce(),
            )
        )
        return request


def _hash_body(request: PreparedRequest) -> bytes:
    """SHA-256 of the body as it will be sent; the body is left ready to be sent."""
    body: Any = request.body
    if body is None:
        return hashlib.sha256(b"").digest()
    if isinstance(body, str):
        request.body = body = body.encode()
    if isinstance(body, (bytes, bytearray, memoryview)):
        return hashlib.sha256(body).digest()
    if not _seekable(body):
        body = _spool(body)
        request.body = body
        request._body_position = 0  # type: ignore[attr-defined]  # where a retry rewinds to
        request.headers.pop("Transfer-Encoding", None)  # its length is known now
    start = body.tell()
    digest = hashlib.sha256()
    while chunk := body.read(_CHUNK):
        digest.update(_as_bytes(chunk))
    body.seek(start)
    return digest.digest()


def _seekable(body: Any) -> bool:
    if not all(hasattr(body, name) for name in ("read", "seek", "tell")):
        return False
    try:
        body.seek(body.tell())
    except (OSError, ValueError):
        return False
    return True


def _spool(body: Iterable[bytes | str]) -> IO[bytes]:
    # requests closes nothing; the file goes when the request does.
    file = tempfile.TemporaryFile()  # noqa: SIM115
    chunks = iter(lambda: body.read(_CHUNK), None) if hasattr(body, "read") else body
    for chunk in chunks:
        if not chunk and hasattr(body, "read"):
            break
        file.write(_as_bytes(chunk))
    file.seek(0)
    return file


def _as_bytes(chunk: bytes | str) -> bytes:
    return chunk.encode() if isinstance(chunk, str) else chunk
