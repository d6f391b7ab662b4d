"""A ledger on SQLite in a fresh directory, with its keys and witness in files."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from sqlalchemy import Engine, create_engine

from governance.database import metadata
from governance.events import AuditEvent, EventName
from governance.identity import Actor, ProofLevel
from governance.ledger import FileWitness, Ledger
from governance.signing.keys import FileSigner, create_key

Recorder = Callable[..., list[str]]


@pytest.fixture
def engine(tmp_path: Path) -> Iterator[Engine]:
    engine = create_engine(f"sqlite:///{tmp_path / 'db.sqlite'}", connect_args={"timeout": 20})
    metadata.create_all(engine)
    yield engine
    engine.dispose()


@pytest.fixture
def log_signer(tmp_path: Path) -> FileSigner:
    return create_key(tmp_path / "log.key")


@pytest.fixture
def witness(tmp_path: Path, log_signer: FileSigner) -> FileWitness:
    key = create_key(tmp_path / "witness" / "witness.key")
    return FileWitness(tmp_path / "witness", key, log_signer.public_key_pem)


@pytest.fixture
def ledger(engine: Engine, log_signer: FileSigner, witness: FileWitness) -> Ledger:
    return Ledger(engine, origin="chancery/test", log_signer=log_signer, witness=witness)


@pytest.fixture
def record() -> Recorder:
    """Record ``count`` events in one transaction; returns their ids."""

    def act(ledger: Ledger, count: int = 1, note: str = "") -> list[str]:
        with ledger.engine.begin() as connection:
            return [
                ledger.record(
                    connection,
                    AuditEvent(
                        EventName.ALIAS_SET,
                        f"models:/fraud/{i}",
                        {"alias": "champion", "note": note},
                        Actor("alice", ProofLevel.LOCAL),
                    ),
                )
                for i in range(count)
            ]

    return act
