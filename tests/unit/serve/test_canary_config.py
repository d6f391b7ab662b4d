"""Configurations: what is accepted, and how each mistake is named."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from governance.errors import ConfigurationError
from governance.gates.policy import load_policy
from serve.config import CanaryConfig, MetricKind, OnTimeout
from serve.judge import planned_tests
from serve.parsing import (
    load_canary,
    parse_ab_test_text,
    parse_canary,
    parse_canary_text,
    parse_shadow_text,
)

FULL = """\
version: 1
steps: [1, 10, 50]
min_samples: 500
min_seconds: 30
max_seconds: 900
alpha: 0.005
sticky: "header:x-user-id"
analysis:
  errors: {tolerance: 0.001, margin: 0.01}
  latency:
    p50: {ratio: 1.05}
    p95: null
    p99: {ratio: 1.3, plus_ms: 5}
  metrics:
    - {name: fraud-share, kind: rate, source: "owner.metrics:fraud", tolerance: 0.02}
    - {name: score, kind: mean, source: "owner.metrics:score", range: [0, 1000], direction: higher}
    - {name: tokens, kind: quantile, source: "owner.metrics:tokens", quantile: 0.9, tolerance: 0.1}
    - {name: chargebacks, kind: rate, source: "promql:sum(bad)", total: "promql:sum(all)"}
  outputs: {tolerance: 0.05}
guard_rails: {max_error_rate: 0.05, max_p99_ms: 250}
on_timeout: hold
on_success: {promote_alias: champion}
on_rollback: {restore_alias: champion}
"""


def test_the_demonstration_s_canary_can_meet_its_policy() -> None:
    """What a rollout compares at least, by its steps, is what prod's policy asks for."""
    examples = Path(__file__).parents[3] / "examples"
    config = load_canary(examples / "canary.yaml")
    asked = load_policy(examples / "policy.yaml").requirements("tumour", "prod").canary
    assert asked is not None
    compared = [step for step in config.steps if step <= 50]  # stable has as many, at least
    assert len(compared) * config.min_samples >= asked.min_requests
    assert config.alpha <= asked.max_alpha
    assert config.on_success.promote_alias == "champion"


def test_a_full_configuration() -> None:
    config = parse_canary_text(FULL)
    assert config.steps == (1.0, 10.0, 50.0)
    assert config.on_timeout is OnTimeout.HOLD
    assert config.analysis.metrics[1].kind is MetricKind.MEAN
    tests = planned_tests(config)
    assert [test.name for test in tests] == [
        "errors",
        "latency.overall",
        "latency.p50",
        "latency.p99",
        "metric.fraud-share",
        "metric.score",
        "metric.tokens",
        "metric.chargebacks",
        "outputs",
        "guard.max_error_rate",
        "guard.max_p99_ms",
    ]
    assert sum(test.weight for test in tests) == pytest.approx(1)


def test_a_configuration_survives_json() -> None:
    config = parse_canary_text(FULL)
    assert CanaryConfig.model_validate_json(config.model_dump_json()) == config
    weighted = parse_canary_text("weights: {stable: 97.5, canary: 2.5}")
    assert weighted.steps == (2.5,)
    assert CanaryConfig.model_validate_json(weighted.model_dump_json()) == weighted


@pytest.mark.parametrize(
    ("text", "steps"),
    [
        ("5%", (5, 25, 50, 100)),
        ("5", (5, 25, 50, 100)),
        ("0.5 %", (0.5, 5, 25, 50, 100)),
        ("50%", (50, 100)),
        ("5,25,50,100", (5, 25, 50, 100)),
        ("1%, 2%", (1, 2)),
    ],
)
def test_short_form(text: str, steps: tuple[float, ...]) -> None:
    assert parse_canary(text).steps == steps


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("0%", "greater than 0"),
        ("101", "less than or equal to 100"),
        ("5,5", "does not exceed the step before"),
        ("25,5", "5 % does not exceed the step before it, 25 %"),
        ("5,x", "'x' is not a percentage"),
        ("", "'' is not a percentage"),
        ("-5", "'-5' is not a percentage"),
        ("nan", "'nan' is not a percentage"),
        ("100", "leaves stable no traffic"),
        ("no-such-file.yaml", "cannot be read"),
    ],
)
def test_short_form_mistake(text: str, words: str) -> None:
    with pytest.raises(ConfigurationError, match=r".") as caught:
        parse_canary(text)
    assert words in caught.value.message
    assert caught.value.remedy


# (replaced, by what, place, words, words of the remedy)
MISTAKES = {
    "unknown key": ("alpha:", "alfa:", "line 6, alfa", "unknown key", "'alpha'"),
    "unknown key deep": (
        "{ratio: 1.05}", "{ration: 1.05}", "line 11, analysis.latency.p50.ration", "unknown key",
        "'ratio'",
    ),
    "alpha too large": ("alpha: 0.005", "alpha: 0.5", "line 6, alpha", "less than 0.5", "below"),
    "alpha of nothing": ("alpha: 0.005", "alpha: 0", "line 6, alpha", "greater than 0", "above"),
    "alpha no number": ("alpha: 0.005", "alpha: .nan", "line 6, alpha", "finite", "ordinary"),
    "no steps": ("[1, 10, 50]", "[]", "line 2, steps", "no step", "list"),
    "steps that fall": ("[1, 10, 50]", "[1, 50, 10]", "line 2, steps", "does not exceed", "order"),
    "a step of nothing": ("[1, 10, 50]", "[0, 10]", "line 2, steps[0]", "greater than 0", "above"),
    "more than all": ("[1, 10, 50]", "[10, 150]", "line 2, steps[1]", "100", "100 or less"),
    "text for a number": ("min_samples: 500", "min_samples: many", "line 3", "integer", "correct"),
    "crossed times": ("min_seconds: 30", "min_seconds: 901", "line 4", "exceeds", "lower"),
    "margin within the tolerance": (
        "margin: 0.01", "margin: 0.001", "line 9, analysis.errors.margin", "does not exceed",
        "raise",
    ),
    "a mean without range": (
        ", range: [0, 1000]", "", "line 16, analysis.metrics[1]", "needs 'range'", "range:",
    ),
    "a range turned round": (
        "[0, 1000]", "[1000, 0]", "line 16", "not below its second", "swap",
    ),
    "a quantile without quantile": (
        ", quantile: 0.9", "", "line 17", "needs 'quantile'", "quantile: 0.95",
    ),
    "a rate with quantile": (
        "tolerance: 0.02}", "quantile: 0.9}", "line 15", "has no 'quantile'", "remove",
    ),
    "no callable": (
        "owner.metrics:fraud", "owner.metrics", "line 15, analysis.metrics[0].source",
        "neither a Python callable nor", "module:function",
    ),
    "an empty query": ("promql:sum(bad)", "promql: ", "line 18", "neither", "promql:"),
    "a query without its total": (
        ', total: "promql:sum(all)"', "", "line 18", "'total' goes with", "add total",
    ),
    "a metric twice": (
        "name: score", "name: fraud-share", "line 16, analysis.metrics[1].name", "two metrics",
        "rename",
    ),
    "an unknown kind": ("kind: mean", "kind: sum", "line 16", "'rate', 'mean' or", "use"),
    "an unknown timeout": ("hold", "never", "line 21, on_timeout", "'rollback', 'hold'", "use"),
    "a reserved alias": (
        "promote_alias: champion", "promote_alias: latest", "line 22, on_success.promote_alias",
        "cannot be an alias", "letters",
    ),
    "a strange sticky key": ("header:x-user-id", "x-user-id", "line 7, sticky", "where", "header:"),
    "steps and weights": (
        "steps: [1, 10, 50]", "steps: [1]\nweights: {stable: 95, canary: 5}", "weights", "both",
        "keep",
    ),
    "weights that do not add up": (
        "steps: [1, 10, 50]", "weights: {stable: 90, canary: 5}", "line 2, weights",
        "add up to 95 (90 + 5), not to 100", "add up to 100",
    ),
    "weights of another": (
        "steps: [1, 10, 50]", "weights: {stable: 95, canari: 5}", "line 2, weights.canari",
        "'stable' or 'canary'", "use",
    ),
    "a canary of nothing": (
        "steps: [1, 10, 50]", "weights: {stable: 100, canary: 0}", "line 2, weights.canary",
        "shows nothing", "more than 0",
    ),
    "another version": ("version: 1", "version: 2", "line 1, version", "should be 1", "use 1"),
    "no YAML": ("[1, 10, 50]", "[1, 10, 50", "line", "not YAML", "check"),
    "a key twice": ("alpha: 0.005", "alpha: 0.005\nalpha: 0.1", "line 7", "twice", "one"),
}  # fmt: skip


@pytest.mark.parametrize("case", MISTAKES)
def test_mistake(case: str) -> None:
    old, new, place, words, remedy = MISTAKES[case]
    assert FULL.count(old) >= 1
    with pytest.raises(ConfigurationError) as caught:
        parse_canary_text(FULL.replace(old, new, 1))
    assert type(caught.value) is ConfigurationError
    assert f"canary.yaml, {place}" in caught.value.message or place in caught.value.message
    assert words in caught.value.message
    assert remedy in caught.value.remedy


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("analysis: {errors: null, latency: null}", "nothing is compared"),
        ("analysis: {errors: null, latency: {overall: null, p95: null, p99: null}}", "nothing is"),
        ("steps: [100]", "leaves stable no traffic"),
        ("5", "not a mapping"),
        ("", "not a mapping"),
        ("warmup_seconds: 3600", "warm-up leaves nothing"),
    ],
)
def test_a_configuration_that_shows_nothing(text: str, words: str) -> None:
    with pytest.raises(ConfigurationError, match=words):
        parse_canary_text(text)


def test_a_file(tmp_path: Path) -> None:
    file = tmp_path / "canary.yaml"
    file.write_text(FULL)
    assert parse_canary(str(file)) == load_canary(file) == parse_canary_text(FULL)
    file.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigurationError, match="not UTF-8"):
        load_canary(file)


ARMS = """\
name: wording
sticky: cookie:visitor
arms:
  - {name: old, model: "models:/fraud/3", weight: 50}
  - {name: new, model: "models:/fraud/4", weight: 50}
"""


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("weight: 50", "weight: 40", "add up to 90"),
        ("name: new", "name: old", "two arms are named"),
        ("models:/fraud/3", "fraud/3", "models"),
        ("cookie:visitor", "visitor", "where the key is"),
        ("name: wording\n", "", "'name' is missing"),
    ],
)
def test_experiment_mistake(old: str, new: str, words: str) -> None:
    assert parse_ab_test_text(ARMS).arms[1].name == "new"
    with pytest.raises(ConfigurationError, match=words):
        parse_ab_test_text(ARMS.replace(old, new, 1))


def test_shadow() -> None:
    assert parse_shadow_text('model: "models:/fraud/4"\npercent: 10').percent == 10
    with pytest.raises(ConfigurationError, match=r"percent: should be greater than 0"):
        parse_shadow_text('model: "models:/fraud/4"\npercent: 0')


@given(st.text(max_size=60))
def test_any_short_form_is_understood_or_refused(text: str) -> None:
    with suppress(ConfigurationError):
        assert all(0 < step <= 100 for step in parse_canary(text).steps)
