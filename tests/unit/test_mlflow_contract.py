"""What we know of MLflow's stores, so that a new MLflow cannot add a way past us unnoticed.

Every public method that opens a write session is listed here. A test fails when MLflow adds one:
look whether its rows pass a guard, then list it.
"""

from __future__ import annotations

import ast
import inspect

from mlflow.store.model_registry.sqlalchemy_store import SqlAlchemyStore as RegistryStore
from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore as TrackingStore

REGISTRY_MUTATORS = {
    "create_model_version",
    "create_registered_model",
    "create_webhook",
    "delete_model_version",
    "delete_model_version_tag",
    "delete_registered_model",
    "delete_registered_model_alias",
    "delete_registered_model_tag",
    "delete_webhook",
    "rename_registered_model",
    "set_model_version_tag",
    "set_registered_model_alias",
    "set_registered_model_tag",
    "transition_model_version_stage",
    "update_model_version",
    "update_registered_model",
    "update_webhook",
}

TRACKING_MUTATORS_OF_RUNS_AND_MODELS = {
    "_hard_delete_logged_model",
    "_hard_delete_run",
    "_log_inputs_impl",
    "_log_metrics_once",
    "_log_model_metrics",
    "_log_params",
    "_set_tags",
    "create_logged_model",
    "create_run",
    "delete_logged_model",
    "delete_logged_model_tag",
    "delete_run",
    "delete_tag",
    "finalize_logged_model",
    "log_inputs",
    "log_logged_model_params",
    "log_outputs",
    "log_param",
    "record_logged_model",
    "restore_run",
    "set_logged_model_tags",
    "set_tag",
    "update_run_info",
}

COMMIT_SITES = 10
"""``session.commit()`` inside a block of the tracking store; each is seen flush by flush."""


def writers(store: type) -> dict[str, ast.FunctionDef]:
    """Methods of the store's own class that open a session with ``read_only=False``."""
    tree = ast.parse(inspect.getsource(inspect.getmodule(store)))  # type: ignore[arg-type]
    body = next(n for n in tree.body if isinstance(n, ast.ClassDef) and n.name == store.__name__)
    return {
        node.name: node
        for node in body.body
        if isinstance(node, ast.FunctionDef)
        and "read_only=False" in ast.unparse(node).replace(" ", "")
    }


def test_the_registry_has_no_mutator_we_do_not_know() -> None:
    assert set(writers(RegistryStore)) == REGISTRY_MUTATORS


def test_tracking_has_no_mutator_of_runs_and_models_we_do_not_know() -> None:
    words = ("run", "tag", "param", "metric", "logged_model", "inputs", "outputs")
    others = ("trace", "span", "assessment", "dataset", "experiment", "scorer", "issue", "label",
              "review", "gateway", "endpoint", "secret", "budget", "webhook", "rollup")  # fmt: skip
    found = {
        name
        for name in writers(TrackingStore)
        if any(word in name for word in words) and not any(word in name for word in others)
    }
    assert found == TRACKING_MUTATORS_OF_RUNS_AND_MODELS


def test_commit_sites_are_those_we_know() -> None:
    source = inspect.getsource(inspect.getmodule(TrackingStore))  # type: ignore[arg-type]
    assert source.count("session.commit()") == COMMIT_SITES


def test_bulk_saves_that_no_flush_shows_touch_nothing_that_is_gated() -> None:
    """``bulk_save_objects`` and its like pass ``before_flush`` by; MLflow has one, for traces."""
    for store, allowed in ((RegistryStore, 0), (TrackingStore, 1)):
        source = inspect.getsource(inspect.getmodule(store))  # type: ignore[arg-type]
        calls = sum(
            source.count(f"session.{name}(")
            for name in ("bulk_save_objects", "bulk_insert_mappings", "bulk_update_mappings")
        )
        assert calls == allowed
    assert "bulk_save_objects(new_associations)" in inspect.getsource(
        inspect.getmodule(TrackingStore)  # type: ignore[arg-type]
    )
