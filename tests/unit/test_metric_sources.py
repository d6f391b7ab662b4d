"""Who may name code that gateways run, and where Prometheus is."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from governance.errors import ConfigurationError, RefusedError
from governance.metric_sources import require_sources
from governance.settings import Settings, metric_modules, module_allowed, prometheus_url


def settings(tmp_path: Path, **environ: str) -> Settings:
    return Settings.load(environ={"CHANCERY_HOME": str(tmp_path), **environ})


def config(*sources: str) -> str:
    metrics = [{"name": f"m{n}", "source": source} for n, source in enumerate(sources)]
    return json.dumps({"analysis": {"metrics": metrics}})


@pytest.mark.parametrize(
    ("module", "allowed"),
    [
        ("fraud_metrics", True),
        ("fraud_metrics.share", True),
        ("acme.metrics.deep.er", True),
        ("acme", False),
        ("acme.metricsx", False),
        ("fraud_metrics2", False),
        ("os", False),
    ],
)
def test_a_module_is_allowed_with_what_is_below_it(module: str, allowed: bool) -> None:
    listed = metric_modules({"CHANCERY_METRIC_MODULES": " fraud_metrics, acme.metrics,"})
    assert module_allowed(module, listed) is allowed
    assert not module_allowed(module, ())


@pytest.mark.parametrize("text", ["*", "a b", "a..b", ".a", "a;b", "a:b", "1a"])
def test_an_odd_list_allows_nothing(text: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="no module's name"):
        settings(tmp_path, CHANCERY_METRIC_MODULES=text)


def test_nothing_is_allowed_unless_it_is_named(tmp_path: Path) -> None:
    with pytest.raises(RefusedError) as refusal:
        require_sources(config("fraud_metrics:share"), settings(tmp_path), "deployments:/1")
    assert "'m0' is a function of the module 'fraud_metrics'" in refusal.value.message
    assert "allowed: none" in refusal.value.message
    assert "CHANCERY_METRIC_MODULES" in refusal.value.remedy
    named = settings(tmp_path, CHANCERY_METRIC_MODULES="fraud_metrics")
    require_sources(config("fraud_metrics:share", "fraud_metrics.deep:other"), named)
    with pytest.raises(RefusedError, match="'m1' is a function of the module 'os'"):
        require_sources(config("fraud_metrics:share", "os:system"), named)
    require_sources(None, settings(tmp_path))
    require_sources('{"analysis": {}}', settings(tmp_path))


def test_a_query_needs_to_know_where_prometheus_is(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="where it is is not known"):
        require_sources(config("promql:up"), settings(tmp_path))
    there = settings(tmp_path, CHANCERY_PROMETHEUS_URL="https://prometheus.example/base/")
    require_sources(config("promql:up"), there)
    assert there.prometheus_url == "https://prometheus.example/base"
    assert prometheus_url({}) is None


@pytest.mark.parametrize(
    "url",
    [
        "prometheus:9090",
        "file:///etc/passwd",
        "http://",
        "http://bea:pw@prometheus:9090",
        "http://prometheus:9090/?x=1",
        "http://prometheus:9090/#x",
        "http://prometheus:99999999",
        "http://[",
    ],
)
def test_an_odd_address_of_prometheus_is_refused(url: str) -> None:
    with pytest.raises(ConfigurationError, match="CHANCERY_PROMETHEUS_URL") as refusal:
        prometheus_url({"CHANCERY_PROMETHEUS_URL": url})
    assert "pw" not in str(refusal.value)
