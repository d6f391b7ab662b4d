"""Who answers a request: sticky, monotone, in proportion, and open to testers."""

from __future__ import annotations

import random
from collections import Counter
from hashlib import blake2b
from itertools import accumulate

import pytest
from hypothesis import given
from hypothesis import strategies as st

from governance.arms import WHOLE, Stretches, shares, stretched
from governance.errors import ConfigurationError, RefusedError
from serve.split import ArmSplit, AssignmentReason, Split, place_of

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


STRETCHES = (("x", 500_000), ("y", 500_000))


def test_experiments_are_independent_of_each_other() -> None:
    """With CRC-32 and salts of one length the groups of both would be the same, or swapped."""
    colour, layout = (ArmSplit(name, STRETCHES, ("x", "y")) for name in ("colour", "layout"))
    both = [(colour.assign(f"u{n}").variant, layout.assign(f"u{n}").variant) for n in range(4000)]
    for pair in (("x", "x"), ("x", "y"), ("y", "x"), ("y", "y")):
        assert 0.22 < both.count(pair) / 4000 < 0.28


def test_a_key_is_dealt_alike_everywhere_and_its_hash_can_be_made_again() -> None:
    one, other = (ArmSplit("colour", STRETCHES, ("x", "y")) for _ in range(2))
    assigned = one.assign("u1")
    assert assigned == other.assign("u1")
    assert (assigned.experiment, assigned.arm) == ("colour", assigned.variant)
    person = blake2b(b"colour", digest_size=16).digest()
    assert assigned.key == blake2b(b"u1", digest_size=8, key=person).hexdigest()
    assert ArmSplit("layout", STRETCHES, ("x", "y")).assign("u1").key != assigned.key


def test_who_has_no_key_takes_no_part() -> None:
    split = ArmSplit("colour", STRETCHES, ("x", "y"))
    for key in (None, ""):
        assigned = split.assign(key)
        assert (assigned.variant, assigned.reason) == ("stable", AssignmentReason.UNKEYED)
        assert (assigned.arm, assigned.key) == ("", "")


def test_stable_answers_for_an_arm_that_is_away_and_nobody_else_moves() -> None:
    both, one = (ArmSplit("colour", STRETCHES, arms) for arms in (("x", "y"), ("y",)))
    for n in range(500):
        before, now = both.assign(f"u{n}"), one.assign(f"u{n}")
        if before.arm == "x":
            assert (now.variant, now.reason) == ("stable", AssignmentReason.AWAY)
            assert now.arm == "x", "it is known whose client it is"
        else:
            assert now == before


def test_testers_name_an_arm_that_is_open() -> None:
    split = ArmSplit("colour", STRETCHES, ("y",))
    for wish in ("y", "stable"):
        assigned = split.assign("u1", override=wish)
        assert (assigned.variant, assigned.reason) == (wish, AssignmentReason.OVERRIDE)
        assert assigned.arm == ""
    assert split.assign("u1", override="x") == split.assign("u1")


# -- shares that change


def moved(before: Stretches, after: Stretches, keys: int = 20_000) -> Counter[tuple[str, str]]:
    """Who went from which arm to which."""
    names = {name for name, _ in before}
    first, second = ArmSplit("e", before, names), ArmSplit("e", after, names)
    pairs = ((first.assign(f"k{n}").arm, second.assign(f"k{n}").arm) for n in range(keys))
    return Counter(pair for pair in pairs if pair[0] != pair[1])


def test_growing_an_arm_moves_only_those_it_gets() -> None:
    first = stretched({"a": "50", "b": "30", "c": "20"})
    second = stretched({"a": "60", "b": "30", "c": "10"}, first)
    found = moved(first, second)
    assert set(found) == {("c", "a")}
    assert 0.09 < found["c", "a"] / 20_000 < 0.11
    assert not moved(second, stretched({"a": "60", "b": "30", "c": "10"}, second))


def test_any_change_moves_as_few_as_possible_and_gives_the_shares() -> None:
    draw = random.Random(7)
    names = "abcde"
    stretches: Stretches = ()
    had = dict.fromkeys(names, 0)
    for round_ in range(200):
        cuts = [0, *sorted(draw.sample(range(1, 1000), 4)), 1000]
        weights = {n: f"{(b - a) / 10:g}" for n, a, b in zip(names, cuts, cuts[1:], strict=False)}
        before, stretches = stretches, stretched(weights, stretches)
        has = dict.fromkeys(names, 0)
        for name, parts in stretches:
            has[name] += parts
        assert has == shares(weights)
        assert sum(has.values()) == WHOLE
        if round_:
            gained = sum(max(has[n] - had[n], 0) for n in names)
            assert sum(p for one, two, p in overlaps(before, stretches) if one != two) == gained
        had = has


def overlaps(one: Stretches, other: Stretches) -> list[tuple[str, str, int]]:
    """The line cut at the edges of both."""
    edges = sorted({*accumulate(p for _, p in one), *accumulate(p for _, p in other)})
    found, at = [], 0
    for edge in edges:
        found.append((owner(one, at), owner(other, at), edge - at))
        at = edge
    return found


def owner(stretches: Stretches, place: int) -> str:
    edge = 0
    for name, parts in stretches:
        edge += parts
        if place < edge:
            return name
    raise AssertionError


def test_thirds_add_up() -> None:
    third = stretched({"a": "33.333333", "b": "33.333333", "c": "33.333334"})
    assert sum(parts for _, parts in third) == WHOLE
    assert max(parts for _, parts in third) - min(parts for _, parts in third) <= 1


@pytest.mark.parametrize(
    ("weights", "words"),
    [
        ({"a": "50", "b": "40"}, r"add up to 90 \(50 \+ 40\), not to 100"),
        ({"a": "100", "b": "0"}, "weight of b"),
        ({"a": "nan", "b": "50"}, "weight of a"),
        ({"a": "99.99999", "b": "0.00001"}, "below 0.0001"),
    ],
)
def test_shares_that_cannot_be(weights: dict[str, str], words: str) -> None:
    with pytest.raises(RefusedError, match=words) as caught:
        stretched(weights)
    assert caught.value.remedy
