"""In how many seconds a provider wants to be asked again, as its headers spell it."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tasks.provider import retry_after

NOW = 1_445_412_480.0  # Wed, 21 Oct 2015 07:28:00 GMT


@pytest.mark.parametrize(
    ("headers", "said"),
    [
        ({}, None),
        ({"retry-after": "7"}, 7.0),
        ({"retry-after": " 1.5 "}, 1.5),
        ({"retry-after": "0"}, 0.0),
        ({"retry-after": "-1"}, None),
        ({"retry-after": "soon"}, None),
        ({"retry-after": ""}, None),
        ({"retry-after": "nan"}, None),
        ({"retry-after": "inf"}, None),
        ({"retry-after": "1e3"}, None),
        ({"retry-after": "999999999"}, None),
        ({"retry-after": "9" * 400}, None),
        ({"retry-after": "٣"}, None),
        ({"retry-after": "Wed, 21 Oct 2015 07:28:30 GMT"}, 30.0),
        ({"retry-after": "Wed, 21 Oct 2015 07:27:30 GMT"}, None),
        ({"retry-after": "Wed, 99 Oct 2015 07:27:30 GMT"}, None),
        ({"retry-after-ms": "250"}, 0.25),
        ({"retry-after-ms": "250", "retry-after": "7"}, 0.25),
        ({"retry-after-ms": "x", "retry-after": "7"}, 7.0),
        ({"x-ratelimit-remaining-requests": "0", "x-ratelimit-reset-requests": "6m0s"}, 360.0),
        ({"x-ratelimit-remaining-tokens": "0", "x-ratelimit-reset-tokens": "120ms"}, 0.12),
        ({"x-ratelimit-remaining-tokens": "3", "x-ratelimit-reset-tokens": "120ms"}, None),
        ({"x-ratelimit-reset-tokens": "120ms"}, None),
        (
            {
                "x-ratelimit-remaining-requests": "9",
                "x-ratelimit-reset-requests": "1h",
                "x-ratelimit-remaining-tokens": "0",
                "x-ratelimit-reset-tokens": "2s",
            },
            2.0,
        ),
        ({"retry-after": "3", "x-ratelimit-remaining-tokens": "0", "x-ratelimit-reset-tokens": "9s"}, 3.0),
    ],
)
def test_what_headers_say(headers: dict[str, str], said: float | None) -> None:
    assert retry_after.of(headers, NOW) == said


@pytest.mark.parametrize(
    ("text", "seconds"), [("1d2h", 93600.0), ("1m0.5s", 60.5), ("17", 17.0), ("6m 0s", None), ("m", None), ("", None)]
)
def test_durations(text: str, seconds: float | None) -> None:
    assert retry_after.duration_s(text) == seconds


def left(what: str, limit: str, remaining: str, reset: str) -> dict[str, str]:
    return {f"x-ratelimit-{name}-{what}": said for name, said in zip(SAYS, (limit, remaining, reset), strict=True)}


SAYS = ("limit", "remaining", "reset")


@pytest.mark.parametrize(
    ("headers", "said"),
    [
        ({}, None),
        (left("requests", "60", "0", "60s"), 1.0),
        (left("requests", "60", "1", "60s"), None),
        (left("tokens", "1000", "0", "10s"), 0.4),
        (left("tokens", "1000", "20", "9.8s"), 0.2),
        (left("tokens", "1000", "40", "9s"), None),
        (left("tokens", "30", "0", "9s"), None),  # a call of 40 never may: its refusal says so
        (left("tokens", "1000", "0", "soon"), None),
        (left("requests", "0", "0", "1s"), None),
        (left("requests", "60", "0", "60s") | left("tokens", "1000", "0", "100s"), 4.0),
    ],
)
def test_when_the_next_call_may_go(headers: dict[str, str], said: float | None) -> None:
    assert retry_after.of_used_up(headers, 40) == (None if said is None else pytest.approx(said))


@given(st.text(max_size=40))
def test_no_header_is_too_odd(text: str) -> None:
    wait_s = retry_after.of(
        {
            "retry-after": text,
            "retry-after-ms": text,
            "x-ratelimit-remaining-tokens": "0",
            "x-ratelimit-reset-tokens": text,
        },
        NOW,
    )
    assert wait_s is None or 0 <= wait_s <= retry_after.ABSURD_S
