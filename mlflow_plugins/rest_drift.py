"""Reports and alerts over REST: what a monitor and ``chancery drift`` use against a server.

Implements ``governance.drift_port.DriftPort``. What a person signs is signed here, and what the
server answers is read with care: a proposal is bytes that the person is shown before signing them.
"""

from __future__ import annotations

import base64
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar
from urllib.parse import quote

from governance.alert_records import Alert
from governance.drift_port import AlertOrder, Published
from governance.drift_records import StoredAlert
from governance.settings import Settings
from governance.signing.drift_statements import Binding
from mlflow_plugins.rest_session import ServerSession

__all__ = ["RestDrift", "stored_document"]

_T = TypeVar("_T")


def stored_document(stored: StoredAlert) -> dict[str, Any]:
    """The *alert* of the REST API, with what a person signs to quarantine."""
    proposal = None if stored.proposal is None else base64.b64encode(stored.proposal).decode()
    return {**stored.alert.to_dict(), "proposal": proposal, "signoff": stored.signoff}


def _stored(document: Mapping[str, Any]) -> StoredAlert:
    proposal = document["proposal"]
    return StoredAlert(
        Alert.from_dict(document),
        None if proposal is None else base64.b64decode(proposal, validate=True),
        document["signoff"],
    )


class RestDrift:
    """Implements ``governance.drift_port.DriftPort`` against ``http(s)://…``.

    Args:
        uri: Address of the MLflow server (with its static prefix, if any).
        settings: Settings of this client.
    """

    def __init__(self, uri: str, settings: Settings) -> None:
        self._server = ServerSession(uri, settings)

    def binding(self, model: str, version: int) -> Binding:
        found = self._server.get(f"/drift/{_part(model)}/versions/{version}/binding")
        return self._read(
            lambda it: Binding(it["modelId"], it["version"], it["versionUid"], it["rootDigest"]),
            found,
        )

    def publish(
        self, document: bytes, bundle: str | None, datasets: Sequence[str] = ()
    ) -> Published:
        body = {"report": document.decode(), "bundle": bundle, "datasets": list(datasets)}
        found = self._server.post("/drift/report", body)
        return self._read(
            lambda it: Published(it["recorded"], _alert(it["alert"]), it["acknowledged"]), found
        )

    def raise_alert(self, order: AlertOrder) -> Alert | None:
        body = {
            "modelId": order.model,
            "version": order.version,
            "deployment": order.deployment,
            "source": order.source,
            "level": "warn" if order.warn else "alert",
            "reasons": list(order.reasons),
            "columns": list(order.columns),
            "quarantine": list(order.quarantine),
        }
        found = self._server.post("/drift/alert", body)
        return self._read(lambda it: _alert(it["alert"]), found)

    def status(self, model: str) -> Mapping[str, Any]:
        return self._server.get(f"/drift/{_part(model)}")

    def alerts(self, model: str | None = None, *, closed: bool = False) -> Sequence[StoredAlert]:
        params = {} if model is None else {"modelId": model}
        found = self._server.get("/drift/alerts", closed=str(closed).lower(), **params)
        return self._read(lambda it: [_stored(one) for one in it["alerts"]], found)

    def alert(self, name: str) -> StoredAlert:
        return self._read(_stored, self._server.get(_place(name)))

    def acknowledge(self, name: str, reason: str) -> Alert:
        return self._acted(f"{_place(name)}/acknowledge", {"reason": reason})

    def close(self, name: str, reason: str) -> Alert:
        return self._acted(f"{_place(name)}/close", {"reason": reason})

    def quarantine(self, name: str, bundle: str, reason: str) -> Alert:
        return self._acted(f"{_place(name)}/quarantine", {"bundle": bundle, "reason": reason})

    def _acted(self, path: str, body: Mapping[str, Any]) -> Alert:
        return self._read(Alert.from_dict, self._server.post(path, body))

    def _read(self, parse: Callable[[Mapping[str, Any]], _T], document: Mapping[str, Any]) -> _T:
        try:
            return parse(document)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise self._server.strange("something that is no alert") from error


def _alert(document: Mapping[str, Any] | None) -> Alert | None:
    return None if document is None else Alert.from_dict(document)


def _part(name: str) -> str:
    """One part of a path."""
    return quote(name, safe="")


def _place(name: str) -> str:
    return f"/drift/alerts/{_part(name)}"
