"""The tables of drift: what is watched, and alerts. Rules as in ``governance.database``."""

from __future__ import annotations

from sqlalchemy import (
    BigInteger,
    Column,
    Index,
    Integer,
    LargeBinary,
    String,
    Table,
    Text,
    UniqueConstraint,
    text,
)

from governance.database import metadata

__all__ = ["drift_alerts", "drift_subjects"]

drift_subjects = Table(
    "chancery_drift_subjects",
    metadata,
    Column("version_uid", String(32), primary_key=True),
    Column("deployment", String(128), primary_key=True),
    Column("model_uid", String(32), nullable=False, index=True),
    Column("revision", BigInteger, nullable=False),
    Column("seen_ms", BigInteger, nullable=False),
    Column("seen_window", BigInteger, nullable=False),
    Column("seen_digest", String(64), nullable=False),
    Column("made_ms", BigInteger, nullable=False),
    Column("document", Text),
    Column("bundle", Text),
    Column("signed_by", String(256)),
    Column("kept_number", Integer, nullable=False),
    Column("kept_ms", BigInteger, nullable=False),
    Column("kept_as", String(128), nullable=False),
)
"""What is watched, and the last report on it that had rows enough to be judged (``made_ms``, with
its signature); ``seen``: the last report of all. ``kept``: the last one that is on the ledger by a
number; rows are locked by raising ``revision``.
"""

drift_alerts = Table(
    "chancery_drift_alerts",
    metadata,
    Column("alert_id", String(32), primary_key=True),
    Column("version_uid", String(32), nullable=False),
    Column("number", Integer, nullable=False),
    Column("model_uid", String(32), nullable=False, index=True),
    Column("deployment", String(128), nullable=False),
    Column("state", String(16), nullable=False),
    Column("level", String(16), nullable=False),
    Column("owner", String(256), nullable=False),
    Column("opened_ms", BigInteger, nullable=False),
    Column("document", Text, nullable=False),
    Column("proposal", LargeBinary),
    Column("signoff", Text),
    UniqueConstraint("version_uid", "number", name="chancery_drift_alerts_number"),
    Index(
        "chancery_drift_alerts_live",
        "version_uid",
        "deployment",
        unique=True,
        sqlite_where=text("state != 'closed'"),
        postgresql_where=text("state != 'closed'"),
    ),
)
"""Alerts (``governance.drift_alerts``); one a version and route at a time that is not closed.
``proposal`` is what a person signs to quarantine, ``signoff`` the bundle over it.
"""
