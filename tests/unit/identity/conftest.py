"""Fixtures: a clock to turn, a key, a nonce store on SQLite, a governed toy application."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import Engine

from governance.database import connect, nonces
from governance.nonces import NonceStore
from governance.signing.keys import FileSigner, create_key
from tests.unit.identity.governed_app import Clock, Governed


@pytest.fixture
def engine(tmp_path: Path) -> Iterator[Engine]:
    engine = connect(f"sqlite:///{tmp_path / 'nonces.db'}")
    nonces.create(engine)
    yield engine
    engine.dispose()


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def signer(tmp_path: Path) -> FileSigner:
    return create_key(tmp_path / "alice.pem")


@pytest.fixture
def governed(clock: Clock, signer: FileSigner, engine: Engine) -> Governed:
    made = Governed(clock, signer, NonceStore(engine, clock=clock))
    made.keys[signer.keyid] = ("alice", signer.public_key_pem)
    return made
