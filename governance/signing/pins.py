"""Trust on first use: which first trust roots each server showed, like ssh's ``known_hosts``.

A configured pin (``CHANCERY_TRUST_ROOT``) wins. Otherwise the first document a server shows is
remembered in a small JSON file, and another one later is refused. Credentials and options inside
a URI are never written.

Example::

    pin = KnownRoots(home / "known_roots.json").check(uri, chain[0][0], settings.trust_root)
"""

from __future__ import annotations

import fcntl
import json
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import mkstemp

from governance.canonical import parse_json, sha256_hex
from governance.errors import ConfigurationError, UntrustedKeyError

__all__ = ["KnownRoots"]

_FORMAT = "chancery.known-roots/v1"
_DIGEST = re.compile(r"[0-9a-f]{64}\Z")


class KnownRoots:
    """The remembered pins in the file at ``path``."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def check(self, uri: str, first_payload: bytes, configured: str | None) -> str:
        """The digest that the server's first trust roots have and may have.

        Args:
            uri: The server or store.
            first_payload: The first document of its chain.
            configured: The pin that an administrator configured, if any.

        Raises:
            UntrustedKeyError: another document than the pinned or remembered one.
            ConfigurationError: the pin or the file is malformed, or cannot be written.
        """
        found = sha256_hex(first_payload)
        server = _without_credentials(uri)
        if configured is not None:
            if not _DIGEST.match(configured):
                raise ConfigurationError(
                    f"the pinned trust root {configured!r} is not a SHA-256 in lower-case hex",
                    "correct CHANCERY_TRUST_ROOT",
                )
            if found != configured:
                raise UntrustedKeyError(
                    f"{server} shows trust roots that begin with {found}, "
                    f"but {configured} is configured",
                    "check that this is the right server; else correct CHANCERY_TRUST_ROOT",
                )
            return found
        with self._locked():
            known = self._read()
            remembered = known.get(server)
            if remembered is None:
                self._write({**known, server: found})
            elif remembered != found:
                raise UntrustedKeyError(
                    f"{server} shows trust roots that begin with {found}, but showed {remembered} "
                    "before: it was set up anew, or somebody stands in between",
                    f"compare the digest with its administrator; if it is right, remove the "
                    f"server's line from {self._path}",
                )
        return found

    def knows(self, uri: str) -> bool:
        """Whether the roots of the server at ``uri`` were remembered before."""
        return _without_credentials(uri) in self._read()

    def _read(self) -> dict[str, str]:
        try:
            document = parse_json(self._path.read_text("utf-8"))
        except FileNotFoundError:
            return {}
        except (OSError, ValueError, RecursionError) as error:
            raise self._malformed() from error
        if not isinstance(document, dict) or document.get("format") != _FORMAT:
            raise self._malformed()
        servers = document.get("servers")
        if not isinstance(servers, dict) or not all(
            isinstance(value, str) and _DIGEST.match(value) for value in servers.values()
        ):
            raise self._malformed()
        return servers

    def _malformed(self) -> ConfigurationError:
        return ConfigurationError(
            f"{self._path} is not a readable list of known trust roots",
            "restore it, or remove it and compare each server's digest with its administrator",
        )

    def _write(self, servers: dict[str, str]) -> None:
        text = json.dumps({"format": _FORMAT, "servers": servers}, indent=2, sort_keys=True)
        try:
            descriptor, partial = mkstemp(dir=self._path.parent, prefix=f".{self._path.name}.")
            try:
                with os.fdopen(descriptor, "w", encoding="utf-8") as file:  # mkstemp made it 0600
                    file.write(text + "\n")
                    file.flush()
                    os.fsync(file.fileno())
                os.replace(partial, self._path)
            except OSError:
                os.unlink(partial)
                raise
        except OSError as error:
            raise self._unwritable(error) from error

    def _unwritable(self, error: OSError) -> ConfigurationError:
        return ConfigurationError(
            f"cannot remember trust roots in {self._path}: {error.strerror}",
            "make the directory writable, or configure CHANCERY_TRUST_ROOT",
        )

    @contextmanager
    def _locked(self) -> Iterator[None]:
        """One reader-and-writer at a time, so that no server's pin is lost."""
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            lock = open(self._path.with_name(f"{self._path.name}.lock"), "w")  # noqa: SIM115
        except OSError as error:
            raise self._unwritable(error) from error
        with lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield


def _without_credentials(uri: str) -> str:
    scheme, separator, rest = uri.partition("://")
    if not separator:
        return uri
    authority, slash, path = rest.partition("?")[0].partition("/")
    return f"{scheme}://{authority.rpartition('@')[2]}{slash}{path}".rstrip("/")
