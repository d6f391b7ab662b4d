"""What an alert suggests to train again: on which rows, from what, by which job. Pure.

``chancery.retrain/v1`` is a suggestion, and starts nothing: the slices that grew as predicates
(text for people, conditions for programs), the windows they were seen in, the data sets that the
model was made from, and the job that made it, as far as its run says.

Example::

    suggestion(alert, datasets=("train#4f2a",), run_id="ab12", tags=run_tags)["text"]
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from governance.alert_records import Alert, cleaned
from governance.deployment_records import time_text

__all__ = ["FORMAT", "suggestion"]

FORMAT = "chancery.retrain/v1"
_MOST = 50
_JOB = {
    "entryPoint": "mlflow.project.entryPoint",
    "source": "mlflow.source.name",
    "sourceType": "mlflow.source.type",
    "gitCommit": "mlflow.source.git.commit",
    "gitRepo": "mlflow.source.git.repoURL",
    "gitBranch": "mlflow.source.git.branch",
    "runName": "mlflow.runName",
}


def suggestion(
    alert: Alert, *, datasets: tuple[str, ...], run_id: str | None, tags: Mapping[str, str]
) -> dict[str, Any]:
    """The document.

    Args:
        alert: What was found.
        datasets: ``name#digest`` of what the model was made from.
        run_id: The run that made it; None: not known.
        tags: Of that run, as of its end.
    """
    job: dict[str, Any] = {"runId": run_id}
    job |= {name: cleaned(tags[tag]) for name, tag in _JOB.items() if tags.get(tag)}
    known = tuple(cleaned(one, 256) for one in dict.fromkeys(datasets))[:_MOST]
    document = {
        "format": FORMAT,
        "model": alert.uri,
        "deployment": alert.identity.deployment,
        "profile": alert.profile,
        "windows": {
            "first": alert.first_window,
            "last": alert.last_window,
            "fromMs": alert.first_ms,
            "toMs": alert.last_ms,
        },
        "slices": [dict(one) for one in _grown(alert)],
        "worstColumns": [str(column.get("name", "")) for column in alert.worst],
        "datasets": list(known),
        "job": job,
    }
    return {**document, "text": _text(alert, known, job)}


def _grown(alert: Alert) -> list[Mapping[str, Any]]:
    """Slices of which there are more rows than before: there are rows to train with."""
    return [one for one in alert.slices if not str(one.get("z", "")).startswith("-")]


def _text(alert: Alert, datasets: tuple[str, ...], job: Mapping[str, Any]) -> str:
    """Two or three sentences for people."""
    rows = " or ".join(f"({one['text']})" for one in _grown(alert)[:3])
    since = f"from {time_text(alert.first_ms)} to {time_text(alert.last_ms)}"
    which = f"the rows where {rows}, served {since}" if rows else f"all rows served {since}"
    told = [f"Label {which}, and train again with them."]
    if datasets:
        told.append(f"The model was made from {', '.join(datasets[:3])}.")
    how = job.get("entryPoint") or job.get("source")
    if how:
        commit = str(job.get("gitCommit", ""))[:12]
        at = f" at commit {commit}" if commit else ""
        told.append(f"The job that made it: {how}{at}.")
    elif job.get("runId"):
        told.append(f"The run that made it: {job['runId']}.")
    return " ".join(told)
