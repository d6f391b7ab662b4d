"""Gate and audit in the very transaction of a change, below every MLflow interface.

Both governed stores open sessions of ``GovernedSession``. SQLAlchemy tells its guard about each
flush: before it, the guard looks at what is about to change and may refuse; after it, it writes
our rows and audit events on the same connection, so that all commit or roll back together. Which
MLflow method was called, over which interface, does not matter, and a retry or a mid-way commit
inside MLflow needs no care: every flush is looked at by itself.

What a refused change leaves is written afterwards in a transaction of its own, since the refused
one rolls back. Acts that matter to others return only after a witnessed checkpoint covers them.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from typing import Any, Protocol

from sqlalchemy import Delete, Insert, Update, event, inspect
from sqlalchemy.engine import Connection
from sqlalchemy.orm import Session, UOWTransaction

from governance.errors import GovernanceError, RefusedError
from governance.events import AuditEvent
from mlflow_plugins.exceptions import GovernedMlflowException, to_mlflow
from mlflow_plugins.governor import Governor
from mlflow_plugins.refusals import refusals_of

__all__ = ["GovernedSession", "Guard", "changed", "governed_session_maker", "old_value"]

_GUARD = "chancery_guard"
_PENDING = "chancery_pending"
_RECORDED = "chancery_recorded"
_COMMITTED = "chancery_committed"


class GovernedSession(Session):
    """A session whose flushes and bulk statements pass a guard (``session.info``).

    Bulk statements are looked at in ``execute`` and its two short forms rather than by the event
    ``do_orm_execute``, which makes SQLAlchemy prepare every statement twice, reads too.
    """

    def execute(self, statement: Any, *args: Any, **options: Any) -> Any:
        self._look_at(statement)
        return super().execute(statement, *args, **options)

    def scalar(self, statement: Any, *args: Any, **options: Any) -> Any:
        self._look_at(statement)
        return super().scalar(statement, *args, **options)

    def scalars(self, statement: Any, *args: Any, **options: Any) -> Any:
        self._look_at(statement)
        return super().scalars(statement, *args, **options)

    def _look_at(self, statement: Any) -> None:
        if isinstance(statement, Update | Delete | Insert):
            guard: Guard = self.info[_GUARD]
            try:
                guard.before_bulk(statement, self.connection())
            except GovernanceError as error:
                raise to_mlflow(error) from error


class Guard(ABC):
    """Looks at each flush of one store.

    Args:
        governor: The database's governor.
    """

    def __init__(self, governor: Governor) -> None:
        self.governor = governor

    @abstractmethod
    def before_flush(self, session: Session, connection: Connection) -> list[Any]:
        """Refuse, or return the changes that ``after_flush`` will write down.

        Raises:
            GovernanceError: the change is refused.
        """

    @abstractmethod
    def after_flush(self, connection: Connection, changes: list[Any]) -> list[AuditEvent]:
        """Write our rows for the changes; the events to record."""

    @abstractmethod
    def before_bulk(self, statement: Update | Delete | Insert, connection: Connection) -> None:
        """Refuse a bulk statement, which no flush would show.

        Raises:
            GovernanceError: the statement touches what is sealed or gated.
        """


def changed(instance: Any, attribute: str) -> bool:
    """Whether a flush would change the attribute's value."""
    history = inspect(instance).attrs[attribute].history
    return bool(history.has_changes()) and list(history.added) != list(history.deleted)


def old_value(instance: Any, attribute: str) -> Any:
    """The attribute's value before the pending change; None when it had none."""
    history = inspect(instance).attrs[attribute].history
    if history.deleted:
        return history.deleted[0]
    return history.unchanged[0] if history.unchanged else None


@event.listens_for(GovernedSession, "before_flush")
def _before_flush(session: Session, _: UOWTransaction, __: Any) -> None:
    guard: Guard = session.info[_GUARD]
    try:
        with session.no_autoflush:
            session.info[_PENDING] = guard.before_flush(session, session.connection())
    except GovernanceError as error:
        raise to_mlflow(error) from error


@event.listens_for(GovernedSession, "after_flush")
def _after_flush(session: Session, _: UOWTransaction) -> None:
    guard: Guard = session.info[_GUARD]
    changes = session.info.pop(_PENDING, [])
    if not changes:
        return
    connection = session.connection()
    try:
        for audit_event in guard.after_flush(connection, changes):
            guard.governor.ledger.record(connection, audit_event)
            session.info.setdefault(_RECORDED, []).append(audit_event)
    except GovernanceError as error:
        raise to_mlflow(error) from error


@event.listens_for(GovernedSession, "after_commit")
def _after_commit(session: Session) -> None:
    if recorded := session.info.pop(_RECORDED, None):
        session.info.setdefault(_COMMITTED, []).extend(recorded)


@event.listens_for(GovernedSession, "after_rollback")
def _after_rollback(session: Session) -> None:
    session.info.pop(_RECORDED, None)
    session.info.pop(_PENDING, None)


class ManagedSessionMaker(Protocol):
    """MLflow's session factory; a ``with`` block commits at its end."""

    def __call__(self, read_only: bool = True) -> AbstractContextManager[Session]: ...


def session_options(guard: Guard) -> Mapping[str, Any]:
    """Arguments for ``sessionmaker`` that put sessions under ``guard``."""
    return {"class_": GovernedSession, "info": {_GUARD: guard}}


def governed_session_maker(original: ManagedSessionMaker, guard: Guard) -> ManagedSessionMaker:
    """Wrap MLflow's session factory: denials are recorded, important acts wait for the ledger."""

    @contextmanager
    def make(read_only: bool = True) -> Iterator[Session]:
        session: Session | None = None
        try:
            with original(read_only=read_only) as session:
                yield session
        except GovernedMlflowException as refusal:
            if isinstance(refusal.governance_error, RefusedError):
                _record_refusal(guard.governor, refusal.governance_error)
            raise
        finally:
            if session is not None:
                _cover(guard.governor, session)

    return make


def _cover(governor: Governor, session: Session) -> None:
    events: list[AuditEvent] = session.info.pop(_COMMITTED, [])
    if waiting := [e for e in events if e.name.awaits_checkpoint]:
        try:
            governor.ledger.cover(waiting[-1].id)
        except GovernanceError as error:
            raise to_mlflow(error) from error


def _record_refusal(governor: Governor, refusal: RefusedError) -> None:
    refusals_of(governor).record_error(refusal, refusal.subject)
