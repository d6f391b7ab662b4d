"""The port through which commands and pages reach a governed store, local or remote.

``mlflow_plugins`` implements it twice: on a database (``governed+sqlite:///…``) and over REST
(``http://…``). Implementations are found through the entry-point group ``chancery.backend``, so
that this package never imports MLflow.
"""

from __future__ import annotations

import base64
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import entry_points
from typing import Any, Protocol

from governance.errors import ConfigurationError
from governance.lineage.graph import Subgraph
from governance.records import Decision

__all__ = ["Backend", "PromotionRequest", "open_backend"]


@dataclass(frozen=True, slots=True)
class PromotionRequest:
    """An open (or used) promotion statement and what has been signed so far.

    Attributes:
        statement_id: Hex SHA-256 of ``payload``.
        payload: The exact in-toto statement bytes that approvers sign.
        model: ``models:/name/version``.
        environment: Target environment.
        threshold: Distinct persons needed.
        approvals: Persons who approved so far.
        not_after_ms: Deadline for the promotion.
        requested_by: Who asked.
        used: Whether a promotion has used it.
        decision: The gate's decision at the time of the request, without signatures.
        served_as: The protected registered model that a copy is to be served from, if it is one.
    """

    statement_id: str
    payload: bytes
    model: str
    environment: str
    threshold: int
    approvals: tuple[str, ...]
    not_after_ms: int
    requested_by: str
    used: bool
    decision: Mapping[str, Any]
    served_as: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """The *promotion* of the REST API and of ``--json``."""
        return {
            "statementId": self.statement_id,
            "payload": base64.b64encode(self.payload).decode(),
            "model": self.model,
            "environment": self.environment,
            "servedAs": self.served_as,
            "threshold": self.threshold,
            "approvals": list(self.approvals),
            "notAfterMs": self.not_after_ms,
            "requestedBy": self.requested_by,
            "used": self.used,
            "decision": dict(self.decision),
        }

    @classmethod
    def from_dict(cls, document: Mapping[str, Any]) -> PromotionRequest:
        """Inverse of ``to_dict``."""
        return cls(
            statement_id=document["statementId"],
            payload=base64.b64decode(document["payload"], validate=True),
            model=document["model"],
            environment=document["environment"],
            served_as=document["servedAs"],
            threshold=document["threshold"],
            approvals=tuple(document["approvals"]),
            not_after_ms=document["notAfterMs"],
            requested_by=document["requestedBy"],
            used=document["used"],
            decision=document["decision"],
        )


class Backend(Protocol):
    """What a governed store offers beside MLflow's own interface.

    Every method raises a ``GovernanceError`` with a remedy when it can not do as asked.
    """

    def request_promotion(
        self, name: str, version: int, environment: str, *, served_as: str | None = None
    ) -> PromotionRequest:
        """Evaluate every condition but the signatures and issue a statement.

        Args:
            name: Registered model.
            version: Its version.
            environment: Where to.
            served_as: The protected registered model that a copy is to be served from; None: the
                version is to get an alias or stage.

        Raises:
            PromotionDeniedError: a condition is not met.
            RefusedError: the policy does not let it in that way.
        """
        ...

    def promotion_request(self, statement_id: str) -> PromotionRequest:
        """Look one up by its id or a unique prefix (at least 6 digits) of it."""
        ...

    def promotion_requests(self, name: str | None = None) -> Sequence[PromotionRequest]:
        """Newest first; of one registered model or of all."""
        ...

    def approve(self, statement_id: str, bundle: str) -> PromotionRequest:
        """Add one person's signature, a sigstore bundle over the statement's payload."""
        ...

    def evaluate(
        self, name: str, version: int, environment: str, *, served_as: str | None = None
    ) -> Decision:
        """The decision as of now, signatures included; changes nothing."""
        ...

    def revoke(self, name: str, version: int, reason: str) -> None:
        """Refuse every further load and promotion of the version."""
        ...

    def release(self, name: str, version: int) -> Mapping[str, Any]:
        """The ``chancery.release/v1`` document that a verified load checks."""
        ...

    def trust_roots(self) -> Sequence[tuple[bytes, Sequence[str]]]:
        """The chain of trust-roots documents: (payload, bundles), oldest first."""
        ...

    def change_trust_roots(self, payload: bytes, bundles: Sequence[str]) -> None:
        """Append the next trust-roots document, signed by the administrators before it."""
        ...

    def ledger_export(self) -> Iterator[bytes]:
        """Lines of a ``chancery.ledger-export/v1`` file, without line ends."""
        ...

    def ledger_entries(self, start: int, limit: int) -> Sequence[tuple[int, bytes]]:
        """(index, canonical event) from ``start``; a negative start counts from the end."""
        ...

    def lineage(self, node_id: str, *, direction: str, depth: int) -> Subgraph:
        """What is reachable from the node, ``up`` or ``down``; says when it was cut."""
        ...

    def resolve(self, name: str, version_or_alias: str) -> int:
        """The version number behind ``3`` or ``@champion``."""
        ...

    def download(self, name: str, version: int, destination: str) -> str:
        """Fetch the version's files, unverified, into an empty directory; its path."""
        ...


def open_backend(uri: str) -> Backend:
    """The backend for a store URI.

    Raises:
        ConfigurationError: no installed package provides one, or the URI is not supported.
    """
    for point in entry_points(group="chancery.backend"):
        backend: Backend = point.load()(uri)
        return backend
    raise ConfigurationError(
        "no package provides a backend for chancery", "reinstall with `pip install mlflow-chancery`"
    )
