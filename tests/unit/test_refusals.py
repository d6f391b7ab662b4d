"""Floods of refusals: the first is on the ledger at once, the rest is counted, none is lost."""

from __future__ import annotations

import threading

import pytest

from governance.errors import LedgerError, PromotionDeniedError, RefusedError, UntrustedKeyError
from governance.events import AuditEvent, EventName
from governance.identity import Actor, ProofLevel, acting_as
from governance.records import Condition, Decision
from mlflow_plugins.refusals import BUDGET, WINDOW_S, Refusals

ALICE = Actor("alice", ProofLevel.SIGNED, keyid="ab" * 32)
NO = RefusedError("you may not")


class Book:
    """A ledger that can be broken, and a clock that is moved by hand."""

    def __init__(self) -> None:
        self.events: list[AuditEvent] = []
        self.broken = False
        self.now = 1000.0
        self.refusals = Refusals(self.write, clock=lambda: self.now)

    def write(self, event: AuditEvent) -> None:
        if self.broken:
            raise LedgerError("the database is away")
        event.to_leaf()
        self.events.append(event)

    def total(self) -> int:
        """Recovered from the ledger alone."""
        return sum(
            e.data["repeated"] if e.name is EventName.REFUSALS_COUNTED else 1 for e in self.events
        )

    def refuse(self, error: RefusedError | UntrustedKeyError = NO, subject: str = "models:/a/1",
               actor: Actor = ALICE) -> None:  # fmt: skip
        with acting_as(actor):
            self.refusals.record_error(error, subject)


@pytest.fixture
def book() -> Book:
    return Book()


def test_the_same_a_thousand_times(book: Book) -> None:
    for _ in range(1000):
        book.refuse()
        assert book.events[0].data == {"code": "REFUSED", "reason": "you may not"}
    assert len(book.events) == 1
    book.now += WINDOW_S
    book.refuse()
    assert [e.name for e in book.events] == [
        EventName.CHANGE_REFUSED,
        EventName.REFUSALS_COUNTED,
        EventName.CHANGE_REFUSED,
    ]
    counted = book.events[1]
    assert counted.actor == ALICE
    assert counted.data["repeated"] == 999
    assert counted.data["refusals"] == [
        {"eventId": book.events[0].id, "subject": "models:/a/1", "code": "REFUSED", "repeated": 999}
    ]
    assert counted.data["others"] == 0
    assert book.total() == 1001


@pytest.mark.parametrize("proof", [ProofLevel.CLAIMED, ProofLevel.ANONYMOUS])
def test_a_new_name_each_time_does_not_help(book: Book, proof: ProofLevel) -> None:
    for number in range(1000):
        book.refuse(actor=Actor(f"mallory-{number}", proof))
    assert len(book.events) == BUDGET
    book.refusals.flush()
    assert len(book.events) == BUDGET + 1
    assert book.events[-1].data["others"] == 1000 - BUDGET
    assert book.total() == 1000


def test_another_subject_or_reason_each_time_does_not_help(book: Book) -> None:
    for number in range(500):
        book.refuse(UntrustedKeyError(f"key {number} is not in the trust roots"))
        book.refuse(subject=f"models:/a/{number}")
    book.refusals.flush()
    assert len(book.events) == BUDGET + 1
    assert book.total() == 1000


def test_a_flood_of_the_unproven_does_not_drown_a_person_who_signs(book: Book) -> None:
    for number in range(1000):
        book.refuse(actor=Actor(f"mallory-{number}", ProofLevel.CLAIMED))
    book.refuse()
    assert book.events[-1].actor == ALICE
    with acting_as(ALICE):  # and one kind of event does not drown another
        denied = PromotionDeniedError(Decision("models:/a/1", "prod", (
            Condition("run", False, "The run must have finished", "it has not", "wait."),
        )))  # fmt: skip
        for _ in range(BUDGET):
            book.refusals.record_error(denied, "models:/a/1")
    assert book.events[-1].name is EventName.PROMOTION_DENIED
    assert book.events[-1].data == denied.decision.to_dict()


def test_what_differs_is_recorded_at_once(book: Book) -> None:
    book.refuse()
    book.refuse(RefusedError("another reason"))
    book.refuse(subject="models:/a/2")
    book.refuse(actor=Actor("bea", ProofLevel.SIGNED))
    assert [e.name for e in book.events] == [EventName.CHANGE_REFUSED] * 4


def test_a_refusal_that_could_not_be_recorded_is_a_first_one_again(book: Book) -> None:
    book.broken = True
    with pytest.raises(LedgerError):
        book.refuse()
    book.broken = False
    book.refuse()
    assert len(book.events) == 1


def test_a_count_that_could_not_be_recorded_is_kept(book: Book) -> None:
    for _ in range(10):
        book.refuse()
    book.broken = True
    book.refusals.flush()
    book.broken = False
    for _ in range(5):
        book.refuse()
    book.refusals.flush()
    assert len(book.events) == 2
    assert book.total() == 15


def test_counts_reach_the_ledger_when_nobody_is_refused_any_more() -> None:
    written: list[AuditEvent] = []
    counted = threading.Event()

    def write(event: AuditEvent) -> None:
        written.append(event)
        if event.name is EventName.REFUSALS_COUNTED:
            counted.set()

    refusals = Refusals(write, window_s=0.2)
    with acting_as(ALICE):
        refusals.record_error(NO, "models:/a/1")
        refusals.record_error(NO, "models:/a/1")
    assert counted.wait(60)
    assert sum(e.data.get("repeated", 1) for e in written) == 2


def test_many_proven_actors_take_bounded_memory(book: Book) -> None:
    for number in range(3000):
        for _ in range(2):
            book.refuse(actor=Actor(f"user-{number}", ProofLevel.BASIC_AUTH))
    assert len(book.refusals._windows) <= 512
    book.refusals.flush()
    assert book.total() == 6000


def test_threads_lose_nothing(book: Book) -> None:
    def act() -> None:
        for number in range(300):
            book.refuse(subject=f"models:/a/{number % 30}")
            if number % 50 == 0:
                book.refusals.flush()

    threads = [threading.Thread(target=act) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    book.refusals.flush()
    assert book.total() == 2400


def test_a_long_subject_and_reason_are_cut(book: Book) -> None:
    book.refuse(RefusedError("x" * 1_000_000), subject="statements:/" + "f" * 60_000)
    assert len(book.events[0].to_leaf()) < 4_000
