"""Routes under ``/api/3.0/chancery`` (and ``/ajax-api/3.0/chancery`` for pages).

Each route parses, calls one method of the local backend, and answers JSON. Errors answer in
MLflow's shape: ``{"error_code": …, "message": …}`` with the error's HTTP status. Routes of
deployments are in ``serve_routes``, of drift in ``drift_routes``; what all routes do with a body is
in ``requests``.
"""

from __future__ import annotations

import base64
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Annotated, Any

from anyio import to_thread
from fastapi import APIRouter, FastAPI, Path, Query, Request
from fastapi.responses import JSONResponse, StreamingResponse
from pydantic import Base64Bytes, BaseModel, ConfigDict, Field

from governance.backend import Backend
from governance.deployment_port import Deployments
from governance.drift_port import DriftPort
from governance.errors import GovernanceError, PromotionDeniedError
from governance.lineage.render import as_document
from mlflow_plugins.api.arm_routes import add_arm_routes
from mlflow_plugins.api.drift_routes import add_drift_routes
from mlflow_plugins.api.requests import CheckedRoute
from mlflow_plugins.api.serve_routes import add_serve_routes
from mlflow_plugins.refusals import flush_all

__all__ = ["API_PREFIXES", "error_response", "install"]

API_PREFIXES = ("/api/3.0/chancery", "/ajax-api/3.0/chancery")


_Lifespan = Callable[[Any], AbstractAsyncContextManager[Any]]
_LARGEST = 2**31 - 1  # of what the databases take as an integer
Version = Annotated[int, Path(ge=1, le=_LARGEST)]


class _Body(BaseModel):
    model_config = ConfigDict(extra="forbid")


class PromotionBody(_Body):
    name: Annotated[str, Field(min_length=1, max_length=256)]
    version: Annotated[int, Field(ge=1, le=_LARGEST)]
    environment: Annotated[str, Field(min_length=1, max_length=64)]
    served_as: Annotated[str | None, Field(alias="servedAs", min_length=1, max_length=256)] = None


class ApprovalBody(_Body):
    bundle: Annotated[str, Field(max_length=65536)]


class RevocationBody(_Body):
    reason: Annotated[str, Field(min_length=3, max_length=2000)]


class TrustRootsBody(_Body):
    payload: Annotated[Base64Bytes, Field(max_length=1 << 20)]
    bundles: Annotated[list[str], Field(max_length=64)]


def error_response(error: GovernanceError) -> JSONResponse:
    """MLflow's error shape, with the remedy; a denied promotion has its decision."""
    content = {"error_code": error.code, "message": str(error), "remedy": error.remedy}
    if isinstance(error, PromotionDeniedError):
        return JSONResponse({**content, "decision": error.decision.to_dict()}, error.http_status)
    return JSONResponse(content, error.http_status)


def build_router(
    backend: Callable[[], Backend],
    deployments: Callable[[], Deployments],
    drift: Callable[[], DriftPort],
) -> APIRouter:
    """The routes, on ports that are opened at first use (in the worker, not at import)."""
    router = APIRouter(route_class=CheckedRoute)
    add_serve_routes(router, deployments)
    add_arm_routes(router, deployments)
    add_drift_routes(router, drift)

    @router.get("/version")
    def version() -> dict[str, Any]:
        from importlib.metadata import version as installed

        return {"name": "chancery", "version": installed("mlflow-chancery")}

    @router.post("/promotions")
    def request_promotion(body: PromotionBody) -> dict[str, Any]:
        found = backend().request_promotion(
            body.name, body.version, body.environment, served_as=body.served_as
        )
        return found.to_dict()

    @router.get("/promotions")
    def promotions(name: str | None = None) -> dict[str, Any]:
        return {"promotions": [r.to_dict() for r in backend().promotion_requests(name)]}

    @router.get("/promotions/{statement_id}")
    def promotion(statement_id: str) -> dict[str, Any]:
        return backend().promotion_request(statement_id).to_dict()

    @router.post("/promotions/{statement_id}/approvals")
    def approve(statement_id: str, body: ApprovalBody) -> dict[str, Any]:
        return backend().approve(statement_id, body.bundle).to_dict()

    @router.get("/models/{name}/versions/{version}/decision")
    def decision(
        name: str,
        version: Version,
        environment: str,
        served_as: Annotated[str | None, Query(alias="servedAs")] = None,
    ) -> dict[str, Any]:
        return backend().evaluate(name, version, environment, served_as=served_as).to_dict()

    @router.get("/models/{name}/versions/{version}/release")
    def release(name: str, version: Version) -> dict[str, Any]:
        return dict(backend().release(name, version))

    @router.post("/models/{name}/versions/{version}/revoke")
    def revoke(name: str, version: Version, body: RevocationBody) -> dict[str, Any]:
        backend().revoke(name, version, body.reason)
        return {}

    @router.get("/trust-roots")
    def trust_roots() -> dict[str, Any]:
        return {
            "trustRoots": [
                {"payload": base64.b64encode(payload).decode(), "bundles": list(bundles)}
                for payload, bundles in backend().trust_roots()
            ]
        }

    @router.post("/trust-roots")
    def change_trust_roots(body: TrustRootsBody) -> dict[str, Any]:
        backend().change_trust_roots(body.payload, body.bundles)
        return {}

    @router.get("/ledger/export")
    def ledger_export() -> StreamingResponse:
        lines = (line + b"\n" for line in backend().ledger_export())
        return StreamingResponse(lines, media_type="application/jsonl")

    @router.get("/ledger/entries")
    def ledger_entries(
        start: Annotated[int, Query(ge=-(2**53), le=2**53)] = -20,
        limit: Annotated[int, Query(ge=1, le=1000)] = 20,
    ) -> dict[str, Any]:
        found = backend().ledger_entries(start, limit)
        return {"entries": [{"index": i, "event": leaf.decode()} for i, leaf in found]}

    @router.get("/lineage")
    def lineage(
        node: str, direction: str = "up", depth: Annotated[int, Query(ge=1, le=50)] = 20
    ) -> dict[str, Any]:
        return as_document(backend().lineage(node, direction=direction, depth=depth))

    return router


def install(
    app: FastAPI,
    backend: Callable[[], Backend],
    deployments: Callable[[], Deployments],
    drift: Callable[[], DriftPort],
    static_prefix: str = "",
) -> None:
    """Put the routes before MLflow's catch-all mount, and their error handler on the app."""
    router = build_router(backend, deployments, drift)
    before = len(app.router.routes)
    for prefix in API_PREFIXES:
        app.include_router(router, prefix=static_prefix + prefix)
    added = app.router.routes[before:]
    del app.router.routes[before:]
    app.router.routes[:0] = added
    app.router.lifespan_context = _flushing(app.router.lifespan_context)

    async def refuse(_: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, GovernanceError)
        return error_response(error)

    app.add_exception_handler(GovernanceError, refuse)


def _flushing(lifespan: _Lifespan) -> _Lifespan:
    """The app's lifespan, at whose end counted refusals reach the ledger.

    A worker that is told to stop ends by the signal itself, so that no exit handler runs.
    """

    @asynccontextmanager
    async def wrapped(app: Any) -> AsyncIterator[Any]:
        try:
            async with lifespan(app) as state:
                yield state
        finally:
            await to_thread.run_sync(flush_all)

    return wrapped
