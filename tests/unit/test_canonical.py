"""Canonical JSON: the quick encoder and the reference say the same."""

from __future__ import annotations

import random
from typing import Any

import pytest
import rfc8785

from governance.canonical import canonical_json

_LETTERS = [chr(code) for code in range(0x80)] + list("äß€中\u2028\u2029\ufffd😀𝄞")


def _text(chance: random.Random) -> str:
    return "".join(chance.choices(_LETTERS, k=chance.randrange(12)))


def _value(chance: random.Random, depth: int = 0) -> Any:
    kind = chance.randrange(7 if depth < 4 else 5)
    if kind == 0:
        return _text(chance)
    if kind == 1:
        return chance.choice([0, -1, 2**53 - 1, -(2**53) + 1, chance.randrange(10**6)])
    if kind < 5:
        return chance.choice([None, True, False])
    if kind == 5:
        return [_value(chance, depth + 1) for _ in range(chance.randrange(5))]
    return {_text(chance): _value(chance, depth + 1) for _ in range(chance.randrange(5))}


@pytest.mark.parametrize("seed", range(300))
def test_agrees_with_the_reference_encoder(seed: int) -> None:
    value = _value(random.Random(seed))
    assert canonical_json(value) == rfc8785.dumps(value)


def test_keys_outside_ascii_are_sorted_by_utf16_units() -> None:
    # Code points would put U+FF61 before U+1F600; UTF-16 puts the surrogate pair first.
    assert canonical_json({"｡": 1, "😀": 2}) == '{"😀":2,"｡":1}'.encode()


@pytest.mark.parametrize(
    "value",
    [
        ["\udc80"],
        0.5,
        float("nan"),
        {"a": [1.0]},
        2**53,
        -(2**53),
        "\ud800",
        {"\udfff": 1},
        {1: 2},
        b"",
    ],
)
def test_refuses_what_other_languages_would_read_otherwise(value: Any) -> None:
    with pytest.raises((ValueError, TypeError)):
        canonical_json(value)
