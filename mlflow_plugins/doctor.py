"""The self-check: is this installation, and this database, wholly governed?

MLflow's plugins fail open: an entry point that cannot be imported is a warning, and the unverified
default stays in place. So the live registries are asked what they really hold. ``chancery doctor``
prints every finding; a server with the ``governance`` app refuses to start on any that is bad.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, entry_points, version
from typing import Any

from packaging.specifiers import SpecifierSet
from sqlalchemy.exc import SQLAlchemyError

from governance.database import connect, migrations_at_head
from governance.errors import ConfigurationError, GovernanceError
from governance.ledger.open import origin_pin
from governance.settings import GOVERNED_PREFIX, Settings, plain_database_uri

__all__ = ["Finding", "examine", "require_governed_server"]

_SUPPORTED = {"mlflow": ">=3.16,<3.18", "SQLAlchemy": ">=2.0,<2.2", "cryptography": ">=45"}
_OUR_PACKAGES = frozenset({"governance", "mlflow_plugins"})
_SCHEMES = ("governed+sqlite", "governed+postgresql", "governed+postgresql+psycopg")


@dataclass(frozen=True, slots=True)
class Finding:
    """One check: its name, whether it holds, what was found, and what to do otherwise."""

    check: str
    ok: bool
    found: str
    remedy: str = ""


def examine(uri: str | None) -> list[Finding]:
    """Every check; those of a database only when ``uri`` names one.

    Args:
        uri: ``governed+…`` URI, an ``http(s)`` address, or None.
    """
    findings = [*_versions(), _packages(), *_stores(), _models_repository(), *_plugins()]
    if uri is None:
        return findings
    if uri.startswith(("http://", "https://")):
        return [*findings, _server(uri)]
    return [*findings, *_database(uri)]


def require_governed_server(uri: str) -> None:
    """Refuse to serve half-governed.

    Raises:
        ConfigurationError: any check failed; the text names each with its remedy.
    """
    if not uri.startswith(GOVERNED_PREFIX):
        raise ConfigurationError(
            f"the governance app was started on the store {uri or '(none)'!r}, which is not "
            "governed",
            "use --backend-store-uri governed+sqlite:///… or governed+postgresql+psycopg://…",
        )
    bad = [f for f in examine(uri) if not f.ok]
    if bad:
        raise ConfigurationError(
            "this server would be half-governed: "
            + "; ".join(f"{f.check}: {f.found}" for f in bad),
            "; ".join(f.remedy for f in bad if f.remedy),
        )


def _versions() -> list[Finding]:
    findings = []
    for package, wanted in _SUPPORTED.items():
        try:
            found = version(package)
        except PackageNotFoundError:
            findings.append(Finding(package, False, "not installed", f"pip install '{package}'"))
            continue
        ok = SpecifierSet(wanted).contains(found, prereleases=True)
        remedy = f"pip install '{package}{wanted}'"
        findings.append(Finding(f"{package} version", ok, found, "" if ok else remedy))
    return findings


def _packages() -> Finding:
    """Our import names are ours: another distribution must not shadow them."""
    import governance
    import mlflow_plugins

    places = {
        name: str(m.__file__)
        for name, m in (("governance", governance), ("mlflow_plugins", mlflow_plugins))
    }
    from importlib.metadata import packages_distributions

    owners = packages_distributions()
    foreign = [
        f"{name} also in {', '.join(sorted(set(owners.get(name, [])) - {'mlflow-chancery'}))}"
        for name in _OUR_PACKAGES
        if set(owners.get(name, [])) - {"mlflow-chancery"}
    ]
    return Finding(
        "packages are ours",
        not foreign,
        "; ".join(foreign) or places["governance"],
        "uninstall the other distribution" if foreign else "",
    )


def _held(name: str, held: Any, wanted: Any) -> Finding:
    ok = held is wanted
    return Finding(
        name,
        ok,
        "ours" if ok else f"not ours: {held!r}",
        ""
        if ok
        else "reinstall mlflow-chancery and look at the warnings of `python -c 'import mlflow'`",
    )


def _stores() -> list[Finding]:
    from mlflow.server.handlers import _model_registry_store_registry, _tracking_store_registry
    from mlflow.tracking._model_registry.utils import _get_store_registry
    from mlflow.tracking._tracking_service.utils import (
        _tracking_store_registry as client_tracking,
    )

    from mlflow_plugins.entry import registry_store, tracking_store

    registries = (
        ("server tracking store", _tracking_store_registry, tracking_store),
        ("server registry store", _model_registry_store_registry, registry_store),
        ("client tracking store", client_tracking, tracking_store),
        ("client registry store", _get_store_registry(), registry_store),
    )
    return [
        _held(f"{label} {scheme}", held._registry.get(scheme), wanted)
        for label, held, wanted in registries
        for scheme in _SCHEMES
    ]


def _models_repository() -> Finding:
    from mlflow.store.artifact.artifact_repository_registry import _artifact_repository_registry

    from mlflow_plugins.entry import models_artifact_repository

    held = _artifact_repository_registry._registry.get("models")
    return _held("models:/ repository verifies", held, models_artifact_repository)


def _plugins() -> list[Finding]:
    from mlflow.tracking.request_header.registry import _request_header_provider_registry

    from mlflow_plugins.request_headers import GovernanceHeaderProvider

    ours = any(type(p) is GovernanceHeaderProvider for p in _request_header_provider_registry)
    app = [p.value for p in entry_points(group="mlflow.app") if p.name == "governance"]
    right = app == ["mlflow_plugins.server_app:create_app"]
    return [
        Finding(
            "request header provider",
            ours,
            "ours" if ours else "missing",
            "" if ours else "reinstall mlflow-chancery",
        ),
        Finding(
            "mlflow.app governance",
            right,
            "ours" if right else f"found {app}",
            "" if right else "uninstall the other package that offers this app",
        ),
    ]


def _database(uri: str) -> list[Finding]:
    from mlflow.exceptions import MlflowException

    from mlflow_plugins.registry_store import governor_of

    try:
        governor = governor_of(uri)
        with governor.engine.connect() as connection:
            governor.roots(connection)
        policy = governor.policy
        governor.ledger.ensure_witnessed()
        settings = Settings.load(uri)
        pin = origin_pin(settings)
        remembered = pin.read()
    except GovernanceError as error:
        return [Finding("database", False, str(error), error.remedy)]
    except (OSError, SQLAlchemyError, MlflowException) as error:
        reason = str(error).strip().split("\n")[0]
        remedy = "start the database, or correct its address and rights"
        return [Finding("database", False, reason, remedy)]
    origin = governor.ledger.origin
    known = remembered == origin
    head = migrations_at_head(connect(plain_database_uri(uri)))
    return [
        Finding("migrations", head, "at head" if head else "behind", "" if head else "restart"),
        Finding("policy", True, f"{settings.policy_file or 'built-in'} ({policy.digest[:12]})"),
        Finding(
            "ledger",
            known,
            f"{origin}, remembered in {pin.path}" if known else f"{origin}, and {pin.path} is gone",
            "" if known else "restart: the name is then remembered again",
        ),
        Finding("keys", True, f"log key {settings.log_key}"),
        Finding("witness", True, str(settings.witness)),
        Finding("trust roots", True, "chain verified"),
    ]


def _server(uri: str) -> Finding:
    from mlflow_plugins.rest_backend import is_governed

    try:
        governed = is_governed(uri, Settings.load())
    except GovernanceError as error:
        return Finding("server", False, str(error), error.remedy)
    return Finding(
        "server",
        governed,
        f"{uri} is {'governed' if governed else 'NOT governed'}",
        "" if governed else "start it with --app-name governance on a governed+… store",
    )
