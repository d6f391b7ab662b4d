"""Keeps passwords out of the cluster: nothing that Ray stores, shows or passes on holds one.

What a Ray actor gets as argument or environment lies in Ray's control store, in dashboards, and in
``/proc`` of every node. So a database's password moves from its URI into a *password file* of
libpq that only this user can read, and the URI names that file. Other nodes need the same file at
the same path, or a store URI that names one of theirs (``…?passfile=/run/chancery/pgpass``).

A server's password has a file of MLflow's own: ``~/.mlflow/credentials``.

Example::

    uri = without_password("governed+postgresql+psycopg://bea:pw@db/mlflow", home)
    # governed+postgresql+psycopg://bea@db/mlflow?passfile=/home/bea/.chancery/…/pgpass-5f6c…
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from hashlib import blake2b
from pathlib import Path
from uuid import uuid4

from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError

from governance.errors import ConfigurationError
from governance.settings import GOVERNED_PREFIX

__all__ = ["PASSED_ON", "hide_in_arguments", "passed_on", "without_password"]

PASSED_ON = (
    "CHANCERY_HOME", "CHANCERY_MODE", "CHANCERY_POLICY", "CHANCERY_LOG_KEY", "CHANCERY_WITNESS",
    "CHANCERY_KEY", "CHANCERY_ACTOR", "CHANCERY_STRICT", "CHANCERY_TRUST_ROOT",
    "CHANCERY_PROMETHEUS_URL",
    "CHANCERY_ROLLOUT_EXPERIMENT", "CHANCERY_TRACE_EXPERIMENT", "CHANCERY_TRACE_RATIO",
    "OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_SDK_DISABLED",
    "OTEL_SERVICE_NAME",
)  # fmt: skip
"""Settings that actors need. They are names, paths and digests; a key is named by its place.

Not among them, on purpose: which modules metrics may come from. That is code which gateways run, so
each machine's own environment says so, not that of who deploys. OpenTelemetry's headers may hold a
token: they are each node's own, too.
"""

_CARRIED_BY_FILES_ONLY = ("sslpassword", "oauth_client_secret")


def passed_on(environ: Mapping[str, str]) -> dict[str, str]:
    """The settings among the variables that go to actors; nothing else does.

    Raises:
        ConfigurationError: one is an address with a password in it.
    """
    found = {name: environ[name] for name in PASSED_ON if name in environ}
    for name, value in found.items():
        authority = value.partition("://")[2].partition("/")[0]
        if ":" in authority.rpartition("@")[0]:
            raise ConfigurationError(
                f"{name} holds a password, which every process of the cluster would see",
                "put a proxy before that address that adds it, or allow the nodes themselves",
            )
    return found


def without_password(uri: str, home: Path) -> str:
    """The URI as everybody may see it.

    Args:
        uri: Of a database or a server.
        home: Folder where a database's password file is written.

    Raises:
        ConfigurationError: it holds a secret that has no place of its own.
    """
    plain = uri.removeprefix(GOVERNED_PREFIX)
    try:
        url = make_url(plain)
    except (ArgumentError, ValueError):
        return uri  # nothing that could be opened
    found = url.password if url.password is not None else _one(url, "password")
    for name in _CARRIED_BY_FILES_ONLY:
        if name in url.query:
            raise ConfigurationError(
                f"the store's URI holds {name!r}, which every process of the cluster would see",
                "keep it in libpq's service file (?service=…) on each node",
            )
    if found is None:
        return uri
    if url.get_backend_name() != "postgresql":
        raise ConfigurationError(
            f"the address of {url.host} holds a password, which every process of the cluster "
            "would see",
            "write it to ~/.mlflow/credentials on each node ([mlflow] mlflow_tracking_username, "
            "mlflow_tracking_password), and leave it out of the address",
        )
    bare = url._replace(password=None).difference_update_query(["password", "passfile"])
    file = _write(bare, str(found), home)
    shown = bare.update_query_dict({"passfile": str(file)}).render_as_string()
    return uri[: len(uri) - len(plain)] + shown


def _one(url: URL, name: str) -> str | None:
    found = url.query.get(name)
    return found if found is None or isinstance(found, str) else found[-1]


def _write(url: URL, password: str, home: Path) -> Path:
    """libpq's password file for this address and user: one line that fits any connection."""
    if "\n" in password or "\r" in password:
        raise ConfigurationError(
            "the database's password has a line break, which libpq's password file cannot hold",
            "choose another password",
        )
    address = url.render_as_string().encode()
    path = home.absolute() / f"pgpass-{blake2b(address, digest_size=6).hexdigest()}"
    home.mkdir(mode=0o700, parents=True, exist_ok=True)
    user = _escaped(url.username) if url.username else "*"
    fresh = path.with_name(f".{path.name}.{uuid4().hex[:8]}")
    descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(f"*:*:*:{user}:{_escaped(password)}\n".encode())
        fresh.replace(path)
    except BaseException:
        fresh.unlink(missing_ok=True)
        raise
    return path


def _escaped(text: str) -> str:
    return text.replace("\\", r"\\").replace(":", r"\:")


def hide_in_arguments(uri: str, shown: str) -> None:
    """Where this process was started with the URI, show the other in its place.

    Ray keeps the command line of whoever connects; ``ps`` shows it to every user of the machine.

    Raises:
        ConfigurationError: it cannot be hidden.
    """
    if uri == shown or not _in_arguments(uri):
        return
    from ray import _raylet  # the only module of Ray that can

    words = [sys.executable, *sys.argv]
    title = " ".join(word.replace(uri, shown) for word in words)
    _raylet.setproctitle(title)  # type: ignore[attr-defined]
    if _in_arguments(uri):
        raise ConfigurationError(
            "the command line holds the database's password, and Ray keeps command lines",
            "give the store's URI by MLFLOW_TRACKING_URI, or name a password file in it "
            "(?passfile=…)",
        )


def _in_arguments(uri: str) -> bool:
    try:
        return uri.encode() in Path("/proc/self/cmdline").read_bytes()
    except OSError:
        return any(uri in word for word in sys.argv)
