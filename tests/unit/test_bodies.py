"""The bodies of messages, read as Celery reads them."""

import json
from datetime import UTC, datetime
from typing import Any

import pytest
from celery.app.trace import loads_message
from kombu.message import Message
from kombu.serialization import dumps

from worker.runtime import bodies
from worker.runtime.bodies import JSON, Unreadable

ACCEPTED = ["json"]


@pytest.mark.parametrize(
    "kwargs", [{}, {"text": "é\u2028"}, {"at": datetime(2026, 1, 1, tzinfo=UTC)}, {"__type__": 1, "n": [1.5, None]}]
)
@pytest.mark.parametrize("as_bytes", [False, True])
def test_a_body_is_what_celery_makes_of_it(kwargs: dict[str, Any], as_bytes: bool) -> None:
    _, _, body = dumps([[1], kwargs, {"chord": None}], "json")
    given = body.encode() if as_bytes else body
    read = bodies.read(given, JSON, "utf-8", ACCEPTED)
    assert list(read) == list(loads_message(given, JSON, "utf-8")) == [[1], kwargs, {"chord": None}]


@pytest.mark.parametrize(
    ("body", "content_type", "reason"),
    [
        ("{", JSON, "undecodable"),
        ("[" * 100_000, JSON, "undecodable"),
        (b"\xff", JSON, "undecodable"),
        ("[]", "application/x-python-serialize", "undecodable"),
        ("[[], {}]", JSON, "malformed"),
        ("[7, {}, {}]", JSON, "malformed"),
        ("[[], [], {}]", JSON, "malformed"),
        ('"three"', JSON, "malformed"),
        (json.dumps([[], {"a": {"__type__": "no such", "__value__": 1}}, {}]), JSON, "undecodable"),
    ],
)
def test_what_cannot_be_read_has_a_reason(body: str | bytes, content_type: str, reason: str) -> None:
    with pytest.raises(Unreadable) as raised:
        bodies.read(body, content_type, "utf-8", ACCEPTED)
    assert raised.value.reason == reason
    assert str(raised.value).startswith("message.body: ")


@pytest.mark.parametrize(
    ("body", "content_type", "headers", "may_wait"),
    [
        ("[[], {}, {}]", JSON, {"id": "1"}, True),
        (b"[[], {}, {}]", JSON, {"id": "1"}, True),
        ("[[], {}, {}]", "application/x-python-serialize", {"id": "1"}, False),
        ({"id": "1", "task": "t"}, JSON, {"id": "1"}, False),
        ('{"id": "1", "task": "t"}', JSON, {}, False),
    ],
)
def test_a_body_waits_when_the_headers_say_all(
    body: Any, content_type: str, headers: dict[str, Any], may_wait: bool
) -> None:
    message = Message(body=body, content_type=content_type, headers=headers)
    assert bodies.may_wait(message) is may_wait


def test_no_options_are_empty_options() -> None:
    assert bodies.read("[[], {}, null]", JSON, "utf-8", ACCEPTED) == ([], {}, {})
