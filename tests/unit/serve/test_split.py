"""Who answers a request: sticky, monotone, in proportion, and open to testers."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from governance.errors import ConfigurationError
from serve.config import ABTestConfig, Arm
from serve.split import AssignmentReason, Split, assign_arm, place_of

keys = st.text(min_size=1, max_size=40)


def split(canary: float, salt: str = "r1") -> Split:
    return Split((("canary", canary), ("stable", 100 - canary)), salt)


@given(keys, st.floats(0, 100), st.floats(0, 100))
def test_growing_the_canary_never_moves_a_client_back(key: str, one: float, two: float) -> None:
    small, large = sorted((one, two))
    if split(small).assign(key).variant == "canary":
        assert split(large).assign(key).variant == "canary"


@given(keys, st.text(max_size=10))
def test_a_key_keeps_its_place(key: str, salt: str) -> None:
    first, second = split(30, salt).assign(key), split(30, salt).assign(key)
    assert first == second
    assert first.reason is AssignmentReason.STICKY
    assert 0 <= place_of(salt, key) < 1


def test_shares_are_kept() -> None:
    found = [split(5).assign(f"user-{n}").variant for n in range(20_000)]
    assert 0.045 < found.count("canary") / len(found) < 0.055


@pytest.mark.parametrize(("canary", "variant"), [(0, "stable"), (100, "canary")])
def test_the_ends(canary: float, variant: str) -> None:
    assert {split(canary).assign(f"k{n}").variant for n in range(500)} == {variant}


@given(st.lists(st.integers(1, 100), min_size=1, max_size=8), st.floats(0, 1, exclude_max=True))
def test_every_place_has_an_owner(shares: list[int], place: float) -> None:
    weights = tuple((f"v{n}", 100 * s / sum(shares)) for n, s in enumerate(shares))
    assigned = Split(weights).assign(None, draw=lambda: place)
    assert assigned.variant in dict(weights)
    assert assigned.reason is AssignmentReason.RANDOM


def test_no_client_returns_to_stable_when_canaries_grow() -> None:
    before = Split((("a", 5.0), ("b", 10.0), ("stable", 85.0)))
    after = Split((("a", 20.0), ("b", 10.0), ("stable", 70.0)))
    for number in range(3000):
        was, becomes = before.assign(f"u{number}"), after.assign(f"u{number}")
        assert was.variant == "stable" or becomes.variant != "stable"
        assert was.variant != "a" or becomes.variant == "a"


def test_testers_choose_and_nonsense_is_ignored() -> None:
    chosen = split(0).assign("k", override="canary")
    assert (chosen.variant, chosen.reason) == ("canary", AssignmentReason.OVERRIDE)
    assert split(0).assign("k", override="../etc").reason is AssignmentReason.STICKY
    assert split(0).assign("", draw=lambda: 0.5).reason is AssignmentReason.RANDOM


@pytest.mark.parametrize(
    ("weights", "words"),
    [
        ((("canary", 5.0), ("stable", 90.0)), "add up to 95"),
        ((("canary", -5.0), ("stable", 105.0)), "not a percentage"),
        ((("canary", float("nan")), ("stable", 95.0)), "not a percentage"),
        ((("stable", 50.0), ("stable", 50.0)), "not distinct"),
        ((), "not distinct"),
    ],
)
def test_weights_that_cannot_be(weights: tuple[tuple[str, float], ...], words: str) -> None:
    with pytest.raises(ConfigurationError, match=words) as caught:
        Split(weights)
    assert caught.value.remedy


def experiment(name: str) -> ABTestConfig:
    arms = tuple(Arm(name=arm, model="models:/m/1", weight=50) for arm in ("x", "y"))
    return ABTestConfig(name=name, arms=arms, sticky="header:user")


def test_experiments_are_independent_of_each_other() -> None:
    """With CRC-32 and salts of one length the groups of both would be the same, or swapped."""
    both = [
        (
            assign_arm(experiment("colour"), f"u{n}").variant,
            assign_arm(experiment("layout"), f"u{n}").variant,
        )
        for n in range(4000)
    ]
    for pair in (("x", "x"), ("x", "y"), ("y", "x"), ("y", "y")):
        assert 0.22 < both.count(pair) / 4000 < 0.28


def test_an_assignment_can_be_logged_and_needs_a_key() -> None:
    assigned = assign_arm(experiment("colour"), "u1")
    assert assigned == assign_arm(experiment("colour"), "u1")
    assert set(assigned.to_dict()) == {"variant", "reason", "place"}
    with pytest.raises(ValueError, match="key"):
        assign_arm(experiment("colour"), "")
