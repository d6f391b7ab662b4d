"""Reads what MLflow's tables say about a run, and turns it into evidence for the gates.

A run's *record* is what it said when it ended: status, params, latest metrics, tags, inputs and
outputs, as canonical JSON. Its SHA-256 is in the run's audit event, and the record of a run behind
a registered version is kept in our tables: later edits of tags or metrics change nothing that a
gate reads. Metrics logged on the model itself (by evaluation runs) are read as they are now.
"""

from __future__ import annotations

import json
import math
from collections.abc import Collection, Sequence
from typing import Any

from mlflow.store.tracking.dbmodels.models import (
    SqlDataset,
    SqlInput,
    SqlLatestMetric,
    SqlLoggedModelMetric,
    SqlParam,
    SqlRun,
    SqlTag,
)
from sqlalchemy import BindParameter, Row, Select, bindparam, select
from sqlalchemy.engine import Connection

from governance import registry
from governance.canonical import canonical_json
from governance.records import Candidate, MetricEvidence
from mlflow_plugins.artifacts import location_of

__all__ = [
    "TERMINAL_STATUSES",
    "RunFacts",
    "close_late",
    "close_run",
    "model_metrics",
    "run_artifacts",
    "run_facts",
    "run_inputs",
    "run_record",
]

TERMINAL_STATUSES = frozenset({"FINISHED", "FAILED", "KILLED"})

_MODEL_METRICS = select(
    SqlLoggedModelMetric.metric_name,
    SqlLoggedModelMetric.metric_value,
    SqlLoggedModelMetric.metric_timestamp_ms,
    SqlLoggedModelMetric.run_id,
).where(SqlLoggedModelMetric.model_id == bindparam("model"))


_RUN: BindParameter[str] = bindparam("run")
_RUN_ROW = select(
    SqlRun.status, SqlRun.start_time, SqlRun.end_time, SqlRun.user_id, SqlRun.artifact_uri
).where(SqlRun.run_uuid == _RUN)
_PARAMS = select(SqlParam.key, SqlParam.value).where(SqlParam.run_uuid == _RUN)
_TAGS = select(SqlTag.key, SqlTag.value).where(SqlTag.run_uuid == _RUN)
_DATASETS = (
    select(SqlDataset.name, SqlDataset.digest)
    .join(SqlInput, SqlInput.source_id == SqlDataset.dataset_uuid)
    .where(SqlInput.destination_type == "RUN", SqlInput.destination_id == _RUN)
)
_LINKS = select(SqlInput.source_type, SqlInput.destination_id).where(
    SqlInput.source_id == _RUN, SqlInput.source_type.in_(["RUN_INPUT", "RUN_OUTPUT"])
)
_METRICS = (
    select(
        SqlLatestMetric.key,
        SqlLatestMetric.value,
        SqlLatestMetric.is_nan,
        SqlLatestMetric.step,
        SqlLatestMetric.timestamp,
    )
    .where(SqlLatestMetric.run_uuid == _RUN)
    .order_by(SqlLatestMetric.key)
)


def run_record(connection: Connection, run_id: str) -> tuple[bytes, str | None]:
    """The record of a run (RFC 8785, format ``chancery.run/v1``), and its artifact URI.

    Args:
        connection: The session's connection, after its flush.
        run_id: MLflow run id.

    Raises:
        ValueError: there is no such run.
    """

    def read(statement: Select[Any]) -> Sequence[Row[Any]]:
        return connection.execute(statement, {"run": run_id}).all()

    (run,) = read(_RUN_ROW)
    links = read(_LINKS)
    record = canonical_json(
        {
            "format": "chancery.run/v1",
            "runId": run_id,
            "status": run.status,
            "user": run.user_id or "",
            "startTimeMs": int(run.start_time or 0),
            "endTimeMs": int(run.end_time or 0),
            "metrics": {
                row.key: {
                    "value": "nan" if row.is_nan else repr(float(row.value)),
                    "step": str(row.step),
                    "timestampMs": str(row.timestamp),
                }
                for row in read(_METRICS)
            },
            "params": {row.key: row.value for row in read(_PARAMS)},
            "tags": {row.key: row.value for row in read(_TAGS)},
            "datasets": sorted(f"{row.name}#{row.digest}" for row in read(_DATASETS)),
            "modelInputs": sorted(r.destination_id for r in links if r.source_type == "RUN_INPUT"),
            "modelOutputs": sorted(
                r.destination_id for r in links if r.source_type == "RUN_OUTPUT"
            ),
        }
    )
    return record, run.artifact_uri


class RunFacts:
    """A parsed run record.

    Args:
        record: Canonical JSON as ``run_record`` made it, or None when the run goes on.
    """

    def __init__(self, record: str | None) -> None:
        document: dict[str, Any] = json.loads(record) if record else {}
        self.run_id: str | None = document.get("runId")
        self.status: str | None = document.get("status")
        self.end_time_ms: int = document.get("endTimeMs", 0)
        self.tags: dict[str, str] = document.get("tags", {})
        self.datasets: tuple[str, ...] = tuple(document.get("datasets", ()))
        self._metrics: dict[str, dict[str, str]] = document.get("metrics", {})

    @property
    def metrics(self) -> tuple[MetricEvidence, ...]:
        return tuple(
            MetricEvidence(
                name=name,
                value=float(found["value"]),
                source="run",
                source_id=self.run_id or "",
                timestamp_ms=int(found["timestampMs"]),
            )
            for name, found in self._metrics.items()
        )


def run_facts(connection: Connection, candidate: Candidate) -> RunFacts:
    """What the candidate's run said when it ended; with only a status while it goes on."""
    facts = RunFacts(registry.run_record(connection, candidate.version_uid))
    if facts.status is None and candidate.run_id:
        facts.status = connection.execute(
            select(SqlRun.status).where(SqlRun.run_uuid == candidate.run_id)
        ).scalar_one_or_none()
    return facts


def model_metrics(connection: Connection, candidate: Candidate) -> tuple[MetricEvidence, ...]:
    """Metrics on the logged model: its own run's are ``logged_model``, others' ``evaluation``."""
    if candidate.logged_model_id is None:
        return ()
    rows = connection.execute(_MODEL_METRICS, {"model": candidate.logged_model_id}).all()
    return tuple(
        MetricEvidence(
            name=row.metric_name,
            value=math.nan if row.metric_value is None else float(row.metric_value),
            source="logged_model" if row.run_id == candidate.run_id else "evaluation",
            source_id=row.run_id or candidate.logged_model_id or "",
            timestamp_ms=int(row.metric_timestamp_ms),
        )
        for row in rows
    )


def run_artifacts(connection: Connection, run_id: str) -> str | None:
    """Where the run's artifacts lie, as ``location_of`` spells it."""
    uri = connection.execute(
        select(SqlRun.artifact_uri).where(SqlRun.run_uuid == run_id)
    ).scalar_one_or_none()
    return location_of(uri) if uri else None


def close_run(connection: Connection, run_id: str, version_uids: Collection[str]) -> bytes:
    """The run has ended: keep its record with the versions it made, seal its artifacts."""
    record, artifacts = run_record(connection, run_id)
    for uid in version_uids:
        registry.set_run_record(connection, uid, record.decode())
        if artifacts:
            registry.seal_artifact(connection, uid, location_of(artifacts))
    return record


def close_late(connection: Connection, candidate: Candidate) -> None:
    """Keep the record of a run that ended while its version was being registered.

    Neither of the two transactions saw the other, so neither kept it.
    """
    if candidate.run_id and registry.run_record(connection, candidate.version_uid) is None:
        status = connection.execute(_RUN_ROW, {"run": candidate.run_id}).scalar_one_or_none()
        if status in TERMINAL_STATUSES:
            close_run(connection, candidate.run_id, [candidate.version_uid])


def run_inputs(record: bytes) -> dict[str, list[str]]:
    """What the run was trained on, for its audit event: data sets and models, where it has any."""
    document = json.loads(record)
    return {key: document[key] for key in ("datasets", "modelInputs") if document[key]}
