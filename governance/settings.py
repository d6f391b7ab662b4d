"""Settings, read from the environment once and passed on as a frozen record.

============================  ==========================================================
``CHANCERY_HOME``             state directory (keys, policy, witness)
``CHANCERY_MODE``             ``development`` (default) or ``production``
``CHANCERY_POLICY``           promotion policy file; default ``<home>/policy.yaml`` if there
``CHANCERY_LOG_KEY``          signer URI of the ledger's checkpoints; default ``<home>/log.key``
``CHANCERY_WITNESS``          directory of the witness; default ``<home>/witness``
``CHANCERY_KEY``              signer URI of the person at the keyboard
``CHANCERY_ACTOR``            name the client claims
``CHANCERY_STRICT``           ``1``: refuse loads of ``models:/m-…``, ``runs:/`` and raw URIs
``CHANCERY_TRUST_ROOT``       SHA-256 of the first trust-roots document a client accepts
``CHANCERY_METRIC_MODULES``   modules, comma separated, whose functions may be metrics; unset: none
``CHANCERY_PROMETHEUS_URL``   where metrics by PromQL are asked
============================  ==========================================================
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from sqlalchemy.engine import make_url

from governance.canonical import sha256_hex
from governance.errors import ConfigurationError

__all__ = [
    "METRIC_MODULES",
    "Settings",
    "metric_modules",
    "module_allowed",
    "plain_database_uri",
    "prometheus_url",
]

GOVERNED_PREFIX = "governed+"
METRIC_MODULES = "CHANCERY_METRIC_MODULES"
"""Names code that a gateway may run: each machine's own, never handed on by who deploys."""


def plain_database_uri(uri: str) -> str:
    """The SQLAlchemy URI inside a ``governed+…`` one."""
    return uri.removeprefix(GOVERNED_PREFIX)


def metric_modules(environ: Mapping[str, str] = os.environ) -> tuple[str, ...]:
    """Modules (with what is below them) whose functions may be metrics; empty: none.

    Raises:
        ConfigurationError: a part is no module's name.
    """
    found = [part.strip() for part in environ.get(METRIC_MODULES, "").split(",") if part.strip()]
    for part in found:
        if not re.fullmatch(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*", part):
            raise ConfigurationError(
                f"{METRIC_MODULES}: {part!r} is no module's name",
                "list modules as fraud_metrics,acme.metrics",
            )
    return tuple(found)


def module_allowed(module: str, allowed: tuple[str, ...]) -> bool:
    """Whether the module is one of these, or below one."""
    return any(module == one or module.startswith(f"{one}.") for one in allowed)


def prometheus_url(environ: Mapping[str, str] = os.environ) -> str | None:
    """Where Prometheus is asked; None: nowhere.

    Raises:
        ConfigurationError: no plain URL; one with a password would end up in logs.
    """
    url = environ.get("CHANCERY_PROMETHEUS_URL", "").rstrip("/")
    if not url:
        return None
    try:
        parts = urlsplit(url)
        plain = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
    except ValueError:
        plain = False
    if not plain or parts.username or parts.password or parts.query or parts.fragment:
        raise ConfigurationError(
            "CHANCERY_PROMETHEUS_URL is not a plain http:// or https:// URL",
            "write it as http://prometheus.example:9090, without user, password and query",
        )
    return url


def _home_for(uri: str | None) -> Path:
    """State directory of a database: beside a SQLite file, else under the user's home."""
    if uri:
        url = make_url(plain_database_uri(uri))
        if url.get_backend_name() == "sqlite" and url.database:
            return Path(f"{url.database}.chancery").absolute()
        identity = f"{url.host}:{url.port}/{url.database}"
        return Path.home() / ".chancery" / sha256_hex(identity.encode())[:16]
    return Path.home() / ".chancery" / "client"


@dataclass(frozen=True, slots=True)
class Settings:
    """See the module's table."""

    home: Path
    production: bool
    policy_file: Path | None
    log_key: str
    witness: Path
    key: str | None
    actor: str | None
    strict: bool
    trust_root: str | None
    metric_modules: tuple[str, ...] = ()
    prometheus_url: str | None = None

    @property
    def approver_key(self) -> str:
        """Signer URI of the key that approves when ``key`` names none."""
        return f"file:{self.home / 'approver.key'}"

    @classmethod
    def load(
        cls, database_uri: str | None = None, environ: Mapping[str, str] = os.environ
    ) -> Settings:
        """Read the settings for the database at ``database_uri`` (None: a client).

        Raises:
            ConfigurationError: a value is not one of those allowed, or a named file is missing.
        """
        home = Path(environ.get("CHANCERY_HOME") or _home_for(database_uri))
        mode = environ.get("CHANCERY_MODE", "development")
        if mode not in ("development", "production"):
            raise ConfigurationError(
                f"CHANCERY_MODE is {mode!r}", "set it to 'development' or 'production'"
            )
        policy = environ.get("CHANCERY_POLICY")
        policy_file = Path(policy) if policy else home / "policy.yaml"
        if policy and not policy_file.is_file():
            raise ConfigurationError(
                f"CHANCERY_POLICY names {policy_file}, which is not a file",
                "correct the path, or unset it to use the built-in policy",
            )
        return cls(
            home=home,
            production=mode == "production",
            policy_file=policy_file if policy_file.is_file() else None,
            log_key=environ.get("CHANCERY_LOG_KEY") or f"file:{home / 'log.key'}",
            witness=Path(environ.get("CHANCERY_WITNESS") or home / "witness"),
            key=environ.get("CHANCERY_KEY"),
            actor=environ.get("CHANCERY_ACTOR"),
            strict=environ.get("CHANCERY_STRICT", "0").lower() in ("1", "true", "yes"),
            trust_root=environ.get("CHANCERY_TRUST_ROOT"),
            metric_modules=metric_modules(environ),
            prometheus_url=prometheus_url(environ),
        )
