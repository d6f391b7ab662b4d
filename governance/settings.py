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
============================  ==========================================================
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from sqlalchemy.engine import make_url

from governance.canonical import sha256_hex
from governance.errors import ConfigurationError

__all__ = ["Settings", "plain_database_uri"]

GOVERNED_PREFIX = "governed+"


def plain_database_uri(uri: str) -> str:
    """The SQLAlchemy URI inside a ``governed+…`` one."""
    return uri.removeprefix(GOVERNED_PREFIX)


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
        )
