"""Which artifacts a request would change: every mutating artifact route of MLflow, enumerated.

MLflow 3.17.2, each under ``/api/2.0`` and ``/ajax-api/2.0``, with or without a static prefix:

=================================================  ====================================
``PUT    mlflow-artifacts/artifacts/<path>``       native FastAPI, and the Flask fallback
``DELETE mlflow-artifacts/artifacts/<path>``       Flask; takes everything below, too
``POST   mlflow-artifacts/mpu/create/<path>``      Flask; the file name is in the body
``POST   mlflow-artifacts/mpu/complete/<path>``    Flask; the file name is in the body
``POST   mlflow-artifacts/mpu/abort/<path>``       Flask; the file name is in the body
``POST   mlflow/upload-artifact?run_uuid=&path=``  Flask (ajax only); by run
``POST   mlflow/artifacts/presigned-upload-url``   Flask; by run or logged model, in the body
=================================================  ====================================

Read-only: ``mlflow-artifacts/presigned/<path>`` (GET), ``mlflow/artifacts/list`` (GET),
``mlflow/artifacts/presigned-download-url`` (POST), ``mlflow/logged-models/<id>/artifacts/…`` (GET),
``get-artifact``, ``model-versions/get-artifact`` and ``get-trace-artifact`` (GET). Any other method
on a listed route counts as mutating.

A path is judged in every form that a handler may see: as it came, and as MLflow's own
``validate_path_is_safe`` leaves it (percent-decoded until it stops changing, ``file:`` stripped),
each without empty and ``.`` segments. What that function refuses (``..``, absolute paths) is
refused here. Routes are recognised in any letter case and with doubled slashes, which MLflow would
not serve: refusing more than needed costs nothing.
"""

from __future__ import annotations

import json
import posixpath
import re
from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from urllib.parse import parse_qs

from mlflow.exceptions import MlflowException
from mlflow.utils.uri import validate_path_is_safe

from governance.errors import RefusedError

__all__ = ["ArtifactChange", "ArtifactRoute", "artifact_changes", "match_artifact_route"]

# Possessive quantifiers: a path of sixty thousand slashes must not cost quadratic time.
_ANY = re.IGNORECASE | re.DOTALL
_API = r"/++(?:ajax-)?api/++[0-9.]++/++"
_PROXY = re.compile(_API + r"mlflow-artifacts/++artifacts(?P<rest>(?:/.*)?)", _ANY)
_MPU = re.compile(
    _API + r"mlflow-artifacts/++mpu/++(?:create|complete|abort)(?P<rest>(?:/.*)?)", _ANY
)
_UPLOAD = re.compile(_API + r"mlflow/++upload-artifact/*+", _ANY)
_PRESIGNED = re.compile(_API + r"mlflow/++artifacts/++presigned-upload-url/*+", _ANY)
_SEGMENT = re.compile(r"(?<!/)/")
_MAX_PATHS = 4
_MAX_VALUES = 16


class ArtifactRoute(StrEnum):
    """What names the artifact."""

    PROXY = "path"
    MULTIPART = "path-and-body"
    RUN_UPLOAD = "query"
    PRESIGNED = "body"

    @property
    def needs_body(self) -> bool:
        return self in (ArtifactRoute.MULTIPART, ArtifactRoute.PRESIGNED)


@dataclass(frozen=True, slots=True)
class ArtifactChange:
    """One artifact that a request would change.

    Attributes:
        path: Path below the proxy's root, or below the owner's artifacts.
        owner: ``runs:/<id>`` or ``models:/<logged model id>``; empty for the proxy's root.
    """

    path: str
    owner: str = ""


def match_artifact_route(path: str) -> tuple[ArtifactRoute, tuple[str, ...]] | None:
    """The mutating artifact route at ``path`` (decoded once, as in ASGI), and the paths it names.

    The static prefix is not known here, and a path below it may look like a route again, so every
    place in ``path`` where a route could begin yields one candidate.

    Raises:
        RefusedError: too many routes are nested in the path.
    """
    proxied: list[str] = []
    multipart: list[str] = []
    for start in (found.start() for found in _SEGMENT.finditer(path)):
        if proxy := _PROXY.fullmatch(path, start):
            proxied.append(proxy["rest"][1:])
        elif mpu := _MPU.fullmatch(path, start):
            multipart.append(mpu["rest"][1:])
        elif _UPLOAD.fullmatch(path, start):
            return ArtifactRoute.RUN_UPLOAD, ()
        elif _PRESIGNED.fullmatch(path, start):
            return ArtifactRoute.PRESIGNED, ()
        if len(proxied) + len(multipart) > _MAX_PATHS:
            raise _unclear("too many routes are nested in the path")
    if multipart:
        return ArtifactRoute.MULTIPART, (*multipart, *proxied)
    return (ArtifactRoute.PROXY, tuple(proxied)) if proxied else None


def artifact_changes(
    route: ArtifactRoute, paths: tuple[str, ...], *, query: str, body: bytes, workspace: str | None
) -> set[ArtifactChange]:
    """The artifacts that the request would change, in every form a handler may see them.

    Args:
        route: From ``match_artifact_route``.
        paths: From ``match_artifact_route``.
        query: Query string without ``?``.
        body: The whole body, if the route needs it.
        workspace: ``X-MLFLOW-WORKSPACE``, under which MLflow may place the path.

    Raises:
        RefusedError: a path or body cannot be judged.
    """
    match route:
        case ArtifactRoute.PROXY:
            below = [form for path in paths for form in _forms(path)]
            return {ArtifactChange(path) for path in _in_workspace(below, workspace)}
        case ArtifactRoute.MULTIPART:
            name = _body_field(_parse(body), "path")
            below = [form for path in paths for form in _forms(path)]
            for path in paths:
                below.extend(_forms(posixpath.join(path, posixpath.basename(name))))
            return {ArtifactChange(path) for path in _in_workspace(below, workspace)}
        case ArtifactRoute.RUN_UPLOAD:
            fields = parse_qs(query, keep_blank_values=True)
            runs, names = fields.get("run_uuid", []), fields.get("path", [])
            if max(len(runs), len(names)) > _MAX_VALUES:
                raise _unclear("the query names too many artifacts")
            return {
                ArtifactChange(form, f"runs:/{run}")
                for run in runs
                for name in names
                for form in _forms(name)
            }
        case ArtifactRoute.PRESIGNED:
            fields_of = _parse(body)
            forms = list(_forms(_body_field(fields_of, "path")))
            owners = [
                f"{scheme}:/{value}"
                for scheme, names in (
                    ("runs", ("run_id", "runId")),
                    ("models", ("model_id", "modelId")),
                )
                for field in names
                if (value := fields_of.get(field))
            ]
            return {ArtifactChange(form, owner) for owner in owners for form in forms}


def _forms(path: str) -> Iterator[str]:
    for _ in range(8):
        yield _plain(path)
        try:
            safe = validate_path_is_safe(path)
        except (MlflowException, ValueError) as error:
            raise _unclear(f"{path!r} is not a safe artifact path") from error
        if safe == path:
            return
        path = safe
    raise _unclear(f"{path!r} is encoded too many times")


def _plain(path: str) -> str:
    return "/".join(part for part in path.split("/") if part not in ("", "."))


def _in_workspace(paths: list[str], workspace: str | None) -> list[str]:
    if not workspace:
        return paths
    return [*paths, *(_plain(f"workspaces/{workspace}/{path}") for path in paths)]


def _parse(body: bytes) -> dict[str, object]:
    """As MLflow reads it: JSON, perhaps JSON within a JSON string."""
    try:
        value = json.loads(body)
        if isinstance(value, str):
            value = json.loads(value)
    except (ValueError, RecursionError) as error:
        raise _unclear("the body is not JSON") from error
    if not isinstance(value, dict):
        raise _unclear("the body is not a JSON object")
    return value


def _body_field(fields: dict[str, object], name: str) -> str:
    value = fields.get(name)
    if not isinstance(value, str):
        raise _unclear(f"the body has no {name}")
    return value


def _unclear(what: str) -> RefusedError:
    return RefusedError(
        f"which artifact the request would change is unclear: {what}",
        "name the artifact by a plain relative path",
    )
