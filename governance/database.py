"""Our tables, on our own ``MetaData``, and their migrations.

MLflow's tables are never altered: no foreign keys and no triggers on them. The tables live in
MLflow's database, so that a change and its audit event commit or roll back together. Migrations
run under Alembic with a version table of their own.

Times are integers: milliseconds since the epoch. Digests are lower-case hex SHA-256.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from tempfile import gettempdir
from typing import Any, cast

from sqlalchemy import (
    BigInteger,
    Column,
    Engine,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    String,
    Table,
    Text,
    UniqueConstraint,
    create_engine,
    text,
)
from sqlalchemy.engine import Connection, CursorResult, Dialect, make_url
from sqlalchemy.sql.compiler import SQLCompiler
from sqlalchemy.sql.elements import ClauseElement

__all__ = [
    "approvals",
    "checkpoints",
    "clearances",
    "connect",
    "deployment_signals",
    "deployments",
    "epochs",
    "execute_compiled",
    "ledger_entries",
    "ledger_nodes",
    "ledger_state",
    "lineage_edges",
    "lineage_nodes",
    "lineage_state",
    "metadata",
    "migrate",
    "migrations_at_head",
    "models",
    "nonces",
    "outbox",
    "rollout_decisions",
    "sealed_artifacts",
    "statements",
    "trust_roots",
    "versions",
]

VERSION_TABLE = "chancery_alembic_version"

metadata = MetaData()

_Serial = BigInteger().with_variant(Integer, "sqlite")  # SQLite autoincrements INTEGER only

models = Table(
    "chancery_models",
    metadata,
    Column("model_uid", String(32), primary_key=True),
    Column("name", String(256), nullable=False, index=True),
    Column("created_ms", BigInteger, nullable=False),
    Column("deleted_ms", BigInteger),
)
"""One row an incarnation of a registered model; a live one has no ``deleted_ms``."""

versions = Table(
    "chancery_versions",
    metadata,
    Column("version_uid", String(32), primary_key=True),
    Column("model_uid", String(32), nullable=False),
    Column("version", Integer, nullable=False),
    Column("source", Text, nullable=False),
    Column("artifact_uri", Text),
    Column("artifact_uri_digest", String(64), index=True),
    Column("logged_model_id", String(64), index=True),
    Column("run_id", String(64), index=True),
    Column("root_digest", String(64)),
    Column("manifest_digest", String(64)),
    Column("manifest", Text),
    Column("digest_error", Text),
    Column("run_record", Text),
    Column("promoted_from", String(32)),
    Column("registered_by", String(256), nullable=False),
    Column("created_ms", BigInteger, nullable=False),
    Column("revoked_ms", BigInteger),
    Column("revoked_reason", Text),
    Column("deleted_ms", BigInteger),
    UniqueConstraint("model_uid", "version", name="chancery_versions_model_version"),
    Index(
        "ix_chancery_versions_promoted_from",
        "promoted_from",
        sqlite_where=text("promoted_from IS NOT NULL"),
        postgresql_where=text("promoted_from IS NOT NULL"),
    ),
)
"""``promoted_from``: the version that a version of a protected registered model is a copy of.
While a version lives, its run (once it ended), its artifact and its logged model are sealed.
"""

sealed_artifacts = Table(
    "chancery_sealed_artifacts",
    metadata,
    Column("path_digest", String(64), primary_key=True),
    Column("path", Text, nullable=False),
    Column("version_uid", String(32), primary_key=True),
)
"""More that is sealed with a version: its run's artifacts (URI without a trailing slash)."""

statements = Table(
    "chancery_statements",
    metadata,
    Column("statement_id", String(64), primary_key=True),
    Column("nonce", String(64), nullable=False, unique=True),
    Column("payload", LargeBinary, nullable=False),
    Column("model_uid", String(32), nullable=False),
    Column("version_uid", String(32), nullable=False),
    Column("environment", String(64), nullable=False),
    Column("place", String(300), nullable=False),
    Column("epoch", Integer, nullable=False),
    Column("threshold", Integer, nullable=False),
    Column("not_after_ms", BigInteger, nullable=False),
    Column("requested_by", String(256), nullable=False),
    Column("decision", Text, nullable=False),
    Column("created_ms", BigInteger, nullable=False),
    Column("used_ms", BigInteger),
    Index("chancery_statements_target", "version_uid", "environment"),
)

approvals = Table(
    "chancery_approvals",
    metadata,
    Column("statement_id", String(64), primary_key=True),
    Column("keyid", String(64), primary_key=True),
    Column("person", String(256), nullable=False),
    Column("bundle", Text, nullable=False),
    Column("created_ms", BigInteger, nullable=False),
)

clearances = Table(
    "chancery_clearances",
    metadata,
    Column("clearance_id", String(32), primary_key=True),
    Column("statement_id", String(64), nullable=False, unique=True),
    Column("model_uid", String(32), nullable=False),
    Column("version_uid", String(32), nullable=False, index=True),
    Column("environment", String(64), nullable=False),
    Column("place", String(300), nullable=False),
    Column("epoch", Integer, nullable=False),
    Column("granted_ms", BigInteger, nullable=False),
    UniqueConstraint("place", "environment", "epoch", name="chancery_clearances_epoch"),
)
"""A used statement: the version was let into the place at this registry epoch."""

epochs = Table(
    "chancery_epochs",
    metadata,
    Column("place", String(300), primary_key=True),
    Column("environment", String(64), primary_key=True),
    Column("epoch", Integer, nullable=False),
)
"""Registry epoch per place in an environment; only ever grows.

``place``: the ``model_uid`` whose aliases and stages are meant, or ``models:/name`` of a protected
registered model, which several models may be copied into.
"""

trust_roots = Table(
    "chancery_trust_roots",
    metadata,
    Column("version", Integer, primary_key=True, autoincrement=False),
    Column("payload", LargeBinary, nullable=False),
    Column("bundles", Text, nullable=False),
    Column("created_ms", BigInteger, nullable=False),
)

nonces = Table(
    "chancery_nonces",
    metadata,
    Column("keyid", String(64), primary_key=True),
    Column("nonce", String(64), primary_key=True),
    Column("request_digest", String(64), nullable=False),
    Column("state", String(16), nullable=False),
    Column("created_ms", BigInteger, nullable=False, index=True),
)

lineage_nodes = Table(
    "chancery_lineage_nodes",
    metadata,
    Column("node_id", String(512), primary_key=True),
    Column("kind", String(32), nullable=False),
    Column("attributes", Text, nullable=False),
)

lineage_edges = Table(
    "chancery_lineage_edges",
    metadata,
    Column("source_id", String(512), primary_key=True),
    Column("relation", String(32), primary_key=True),
    Column("target_id", String(512), primary_key=True, index=True),
    Column("event_id", String(64), nullable=False),
)

lineage_state = Table(
    "chancery_lineage_state",
    metadata,
    Column("id", Integer, primary_key=True, autoincrement=False),
    Column("next_index", BigInteger, nullable=False),
)
"""One row: the first ledger entry that the lineage tables do not tell of yet."""

outbox = Table(
    "chancery_outbox",
    metadata,
    Column("outbox_id", _Serial, primary_key=True, autoincrement=True),
    Column("event_id", String(64), nullable=False),
    Column("leaf", LargeBinary, nullable=False),
)
"""Events that are committed but not yet in the tree. Ids grow while rows are there, no longer."""

ledger_state = Table(
    "chancery_ledger_state",
    metadata,
    Column("id", Integer, primary_key=True, autoincrement=False),
    Column("origin", String(256), nullable=False),
    Column("size", BigInteger, nullable=False),
)
"""One row; updating it first is the sequencer's lock on either database."""

ledger_entries = Table(
    "chancery_ledger_entries",
    metadata,
    Column(
        "idx", BigInteger().with_variant(Integer, "sqlite"), primary_key=True, autoincrement=False
    ),
    Column("event_id", String(64), nullable=False, unique=True),
    Column("leaf", LargeBinary, nullable=False),
    Column("leaf_hash", LargeBinary(32), nullable=False),
)

ledger_nodes = Table(
    "chancery_ledger_nodes",
    metadata,
    Column("level", Integer, primary_key=True, autoincrement=False),
    Column("position", BigInteger, primary_key=True, autoincrement=False),
    Column("hash", LargeBinary(32), nullable=False),
)
"""Hashes of complete subtrees of 2**level leaves, level >= 1."""

checkpoints = Table(
    "chancery_checkpoints",
    metadata,
    Column(
        "size", BigInteger().with_variant(Integer, "sqlite"), primary_key=True, autoincrement=False
    ),
    Column("note", Text, nullable=False),
    Column("created_ms", BigInteger, nullable=False),
)
"""C2SP checkpoints signed by the log's key."""

deployments = Table(
    "chancery_deployments",
    metadata,
    Column("deploy_id", String(32), primary_key=True),
    Column("route", String(128), nullable=False),
    Column("environment", String(64), nullable=False),
    Column("model_uid", String(32), nullable=False),
    Column("model_name", String(256), nullable=False),
    Column("node_pool", String(128)),
    Column("resources", Text, nullable=False),
    Column("provenance", Text, nullable=False),
    Column("port", Integer),
    Column("metrics_endpoint", Text),
    Column("created_by", String(256), nullable=False),
    Column("created_ms", BigInteger, nullable=False),
    *(
        Column(f"{variant}_{column}", kind, nullable=variant != "stable")
        for variant in ("stable", "canary", "previous")
        for column, kind in (
            ("version", Integer),
            ("uid", String(32)),
            ("digest", String(64)),
        )
    ),
    Column("rollout_id", String(32)),
    Column("canary_config", Text),
    Column("rollout_by", String(256)),
    Column("rollout_ms", BigInteger),
    Column("experiment_id", String(32)),
    Column("experiment", Text),
    Column("shadow_id", String(32)),
    Column("shadow", Text),
    Column("health", String(16), nullable=False),
    Column("closed", Text, nullable=False),
    Column("state", LargeBinary),
    Column("plan_revision", BigInteger, nullable=False),
    Column("saved_ms", BigInteger),
    Column("signals", Integer, nullable=False),
    Column("lease_owner", String(256)),
    Column("lease_until_ms", BigInteger, nullable=False),
    Column("fence", BigInteger, nullable=False),
    Column("ended_by", String(256)),
    Column("ended_reason", Text),
    Column("ended_ms", BigInteger),
    Column("stopped_ms", BigInteger),
    Index(
        "chancery_deployments_live_route",
        "route",
        unique=True,
        sqlite_where=text("ended_ms IS NULL"),
        postgresql_where=text("ended_ms IS NULL"),
    ),
    Index(
        "chancery_deployments_live_port",
        "port",
        unique=True,
        sqlite_where=text("stopped_ms IS NULL"),
        postgresql_where=text("stopped_ms IS NULL"),
    ),
)
"""A route and what answers on it. A rollout runs while ``canary_uid`` is there; ``previous`` is
what the last promotion replaced. A port is given back when its listeners are down: several may
share one, so two deployments would share their clients. ``fence`` only grows, with each lease;
``signals`` counts them. ``experiment`` and ``shadow`` are JSON (``governance.arms``), there while
one runs; a rollout and an experiment are never there at once.
"""

deployment_signals = Table(
    "chancery_deployment_signals",
    metadata,
    Column("deploy_id", String(32), primary_key=True),
    Column("number", Integer, primary_key=True, autoincrement=False),
    Column("kind", String(16), nullable=False),
    Column("reason", Text, nullable=False),
    Column("asked_by", String(256), nullable=False),
    Column("asked_ms", BigInteger, nullable=False),
    Column("rollout_id", String(32)),
    Column("taken_ms", BigInteger),
)
"""What people ask of a running deployment; taken once, with the state that follows from it."""

rollout_decisions = Table(
    "chancery_rollout_decisions",
    metadata,
    Column("rollout_id", String(32), primary_key=True),
    Column("number", Integer, primary_key=True, autoincrement=False),
    Column("deploy_id", String(32), nullable=False, index=True),
    Column("outcome", String(16), nullable=False),
    Column("at_ms", BigInteger, nullable=False),
    Column("digest", String(64), nullable=False),
    Column("document", Text, nullable=False),
)
"""Decisions that changed a rollout, by the number of the transition."""


_engines: dict[str, Engine] = {}
_engines_lock = threading.Lock()


def connect(uri: str) -> Engine:
    """An engine for our own transactions (never MLflow's), one per process and URI.

    SQLite connections wait up to 20 s for the write lock.
    """
    key = f"{os.getpid()}:{uri}"
    with _engines_lock:
        engine = _engines.get(key)
        if engine is None:
            sqlite = make_url(uri).get_backend_name() == "sqlite"
            arguments: dict[str, Any] = {"connect_args": {"timeout": 20}} if sqlite else {}
            engine = create_engine(uri, pool_pre_ping=not sqlite, **arguments)
            _engines[key] = engine
    return engine


@lru_cache
def _compiled(statement: ClauseElement, dialect: Dialect, keys: tuple[str, ...]) -> SQLCompiler:
    return cast("SQLCompiler", statement.compile(dialect=dialect, column_keys=list(keys)))


def execute_compiled(
    connection: Connection, statement: ClauseElement, values: Mapping[str, object]
) -> CursorResult[Any]:
    """Run a statement that is built once at import, compiled once a dialect.

    For what every change pays for: it costs half of ``Connection.execute``. Values go to the
    driver as they are, so columns of types that SQLAlchemy converts are not for it.
    """
    command = _compiled(statement, connection.dialect, tuple(values))
    if command.positional:
        return connection.exec_driver_sql(
            command.string, tuple(values[key] for key in command.positiontup or ())
        )
    return connection.exec_driver_sql(command.string, dict(values))


def migrate(engine: Engine) -> None:
    """Bring our tables to the newest version. Safe when several servers start at once."""
    from alembic import command

    if migrations_at_head(engine):
        return
    with _migration_lock(engine), engine.connect() as connection:
        config = _alembic_config()
        config.attributes["connection"] = connection
        command.upgrade(config, "head")
        connection.commit()


def migrations_at_head(engine: Engine) -> bool:
    """Whether our tables are at the version this code was written for."""
    from alembic.runtime.migration import MigrationContext
    from alembic.script import ScriptDirectory

    head = ScriptDirectory.from_config(_alembic_config()).get_current_head()
    with engine.connect() as connection:
        context = MigrationContext.configure(connection, opts={"version_table": VERSION_TABLE})
        return context.get_current_revision() == head


def _alembic_config() -> Any:
    from alembic.config import Config

    config = Config()
    config.set_main_option(
        "script_location", str(Path(__file__).parent / "migrations").replace("%", "%%")
    )
    return config


@contextmanager
def _migration_lock(engine: Engine) -> Iterator[None]:
    """One migration at a time: an advisory lock on PostgreSQL, a file lock for SQLite."""
    if engine.dialect.name == "postgresql":
        with engine.connect() as connection:
            connection.execute(text("SELECT pg_advisory_lock(4713270591)"))
            try:
                yield
            finally:
                connection.execute(text("SELECT pg_advisory_unlock(4713270591)"))
        return
    import fcntl

    database = engine.url.database
    path = f"{database}.migrate.lock" if database and database != ":memory:" else None
    with open(path or Path(gettempdir()) / "chancery-migrate.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
