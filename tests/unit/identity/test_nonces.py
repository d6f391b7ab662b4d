"""The nonce store: each request is carried out once, by one attempt at a time."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
from sqlalchemy import Engine, func, select

from governance.database import nonces
from governance.errors import ReplayError
from governance.nonces import STALE_SECONDS, Attempt, NonceStore
from governance.signing.http_signatures import WINDOW_SECONDS
from tests.unit.identity.governed_app import Clock

KEY, NONCE, DIGEST = "a" * 64, "n" * 22, "d" * 64


@pytest.fixture
def store(engine: Engine, clock: Clock) -> NonceStore:
    return NonceStore(engine, clock=clock)


def test_a_request_that_was_answered_is_a_replay(store: NonceStore) -> None:
    assert store.begin(KEY, NONCE, DIGEST) is Attempt.FIRST
    store.finish(KEY, NONCE, 200)
    with pytest.raises(ReplayError, match="carried out already"):
        store.begin(KEY, NONCE, DIGEST)


@pytest.mark.parametrize("status", [408, 429, 500, 502, 503, 504])
def test_a_failed_request_may_be_tried_again(store: NonceStore, status: int) -> None:
    store.begin(KEY, NONCE, DIGEST)
    store.finish(KEY, NONCE, status)
    assert store.begin(KEY, NONCE, DIGEST) is Attempt.AGAIN
    store.finish(KEY, NONCE, 200)
    with pytest.raises(ReplayError):
        store.begin(KEY, NONCE, DIGEST)


@pytest.mark.parametrize("status", [200, 204, 302, 400, 401, 403, 404, 409, 422])
def test_any_other_answer_is_final(store: NonceStore, status: int) -> None:
    store.begin(KEY, NONCE, DIGEST)
    store.finish(KEY, NONCE, status)
    with pytest.raises(ReplayError):
        store.begin(KEY, NONCE, DIGEST)


def test_a_nonce_belongs_to_one_request_and_key(store: NonceStore) -> None:
    store.begin(KEY, NONCE, DIGEST)
    store.finish(KEY, NONCE, 503)
    with pytest.raises(ReplayError, match="another request"):
        store.begin(KEY, NONCE, "e" * 64)
    assert store.begin("b" * 64, NONCE, DIGEST) is Attempt.FIRST


def test_a_running_attempt_is_left_alone_while_its_worker_lives(
    store: NonceStore, clock: Clock
) -> None:
    store.begin(KEY, NONCE, DIGEST)
    for _ in range(10):
        clock.advance(STALE_SECONDS - 1)
        assert store.begin(KEY, NONCE, DIGEST) is Attempt.BUSY
        store.renew(KEY, NONCE)


def test_an_attempt_whose_worker_died_may_be_tried_again(store: NonceStore, clock: Clock) -> None:
    store.begin(KEY, NONCE, DIGEST)
    clock.advance(STALE_SECONDS)
    assert store.begin(KEY, NONCE, DIGEST) is Attempt.AGAIN
    assert store.begin(KEY, NONCE, DIGEST) is Attempt.BUSY


def test_done_is_final_even_when_a_slower_attempt_fails(store: NonceStore, clock: Clock) -> None:
    store.begin(KEY, NONCE, DIGEST)
    clock.advance(STALE_SECONDS)
    store.begin(KEY, NONCE, DIGEST)
    store.finish(KEY, NONCE, 200)
    store.finish(KEY, NONCE, 500)
    store.renew(KEY, NONCE)
    with pytest.raises(ReplayError):
        store.begin(KEY, NONCE, DIGEST)


def test_old_rows_go_but_outlive_the_signature_s_window(
    store: NonceStore, clock: Clock, engine: Engine
) -> None:
    store.begin(KEY, NONCE, DIGEST)
    store.finish(KEY, NONCE, 200)
    clock.advance(2 * WINDOW_SECONDS)  # signed as far in the future as is accepted
    store.begin(KEY, "m" * 22, DIGEST)
    with pytest.raises(ReplayError):
        store.begin(KEY, NONCE, DIGEST)
    clock.advance(2 * WINDOW_SECONDS)
    store.begin(KEY, "o" * 22, DIGEST)
    with engine.connect() as connection:
        left = connection.execute(select(func.count()).where(nonces.c.nonce == NONCE)).scalar_one()
    assert left == 0


@pytest.mark.parametrize("before", ["nothing", "failed", "stale"])
def test_of_eight_at_once_exactly_one_begins(engine: Engine, clock: Clock, before: str) -> None:
    stores = [NonceStore(engine, clock=clock) for _ in range(8)]
    if before != "nothing":
        stores[0].begin(KEY, NONCE, DIGEST)
    if before == "failed":
        stores[0].finish(KEY, NONCE, 503)
    if before == "stale":
        clock.advance(STALE_SECONDS)
    barrier = threading.Barrier(8)

    def begin(store: NonceStore) -> Attempt:
        barrier.wait()
        return store.begin(KEY, NONCE, DIGEST)

    with ThreadPoolExecutor(8) as pool:
        found = sorted(pool.map(begin, stores))
    begun = Attempt.FIRST if before == "nothing" else Attempt.AGAIN
    assert sorted([begun, *[Attempt.BUSY] * 7]) == found
