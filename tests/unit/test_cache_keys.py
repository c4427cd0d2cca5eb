"""Keys of cached values."""

import json
import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cache import keys
from cache.errors import Unhashable

PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)


def same(one: Any, other: Any) -> bool:
    """Say whether JSON holds two values equal: Python's True is 1, JSON's is not."""
    if isinstance(one, bool) or isinstance(other, bool):
        return one is other
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(same(one[name], other[name]) for name in one)
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(same, one, other))
    return bool(one == other)


@given(PLAIN, PLAIN)
def test_equal_values_and_no_others_have_equal_forms(one: Any, other: Any) -> None:
    assert (keys.canonical(one) == keys.canonical(other)) == same(one, other)


@given(st.dictionaries(st.text(), PLAIN, max_size=5), st.randoms())
def test_order_is_no_matter(value: dict[str, Any], random: Any) -> None:
    items = list(value.items())
    random.shuffle(items)
    assert keys.canonical(dict(items)) == keys.canonical(value)


@given(PLAIN)
def test_a_form_is_json_of_the_value(value: Any) -> None:
    assert same(json.loads(keys.canonical(value)), value)


def test_what_json_holds_equal_is_equal() -> None:
    assert keys.canonical({"a": 0.0, "b": (1, 2)}) == keys.canonical({"b": [1.0, 2], "a": 0})
    assert keys.canonical([True]) != keys.canonical([1])
    assert keys.canonical("é") != keys.canonical("e\u0301")
    assert keys.canonical("\ud800").isascii()


@pytest.mark.parametrize("value", [float("nan"), float("inf"), {1: "a"}, b"bytes", {"a"}, object()])
def test_what_json_cannot_say_has_none(value: Any) -> None:
    with pytest.raises(Unhashable):
        keys.digest([value])


def test_a_value_nested_too_deep_has_none() -> None:
    deep: list[Any] = []
    for _ in range(100_000):
        deep = [deep]
    with pytest.raises(Unhashable):
        keys.digest(deep)


def test_a_key_has_two_hashes_of_128_bits() -> None:
    key = keys.key("analysis", ["provider", {"model": "m"}], "text", prefix="p:")
    assert re.fullmatch(r"p:ai:analysis:v1:[0-9a-f]{32}:[0-9a-f]{32}", key)
    assert key.rsplit(":", 1)[0] == keys.key("analysis", ["provider", {"model": "m"}], "other", "p:").rsplit(":", 1)[0]
    assert key.rsplit(":", 1)[1] == keys.key("analysis", "another", "text", "p:").rsplit(":", 1)[1]
