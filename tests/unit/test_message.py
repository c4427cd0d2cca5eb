"""The message that producers write without Celery, held against the one that Celery writes."""

import json
from typing import Any

import pytest
from celery import Celery
from hypothesis import given
from hypothesis import strategies as st

from worker.records import message


def celery_envelope() -> dict[str, Any]:
    """Return the envelope that Celery and kombu would push, from an application on the in-memory transport."""
    app = Celery("reference", broker="memory://", set_as_current=False)
    with app.connection_for_write() as connection:
        channel = connection.default_channel
        queue = channel.connection.client.SimpleQueue("reference")
        app.send_task(
            "tasks.chat", kwargs={"message": "hello"}, task_id="an-id", queue="reference", connection=connection
        )
        raw = queue.get(timeout=5)
        envelope = {
            "body": raw.body,
            "content-encoding": raw.content_encoding,
            "content-type": raw.content_type,
            "headers": raw.headers,
            "properties": raw.properties,
        }
        raw.ack()
        queue.close()
    return envelope


def test_has_every_header_that_celery_writes() -> None:
    ours = json.loads(message.write("tasks.chat", "an-id", "chat", 4, {"message": "hello"}))
    theirs = celery_envelope()
    assert set(ours["headers"]) == set(theirs["headers"])
    assert ours["content-type"] == theirs["content-type"]
    assert ours["content-encoding"] == theirs["content-encoding"]
    assert set(theirs["properties"]) - {"body_encoding"} <= set(ours["properties"])
    assert json.loads(ours["body"]) == [
        [],
        {"message": "hello"},
        {"callbacks": None, "errbacks": None, "chain": None, "chord": None},
    ]


def test_keeps_arguments_out_of_what_flower_shows() -> None:
    headers = json.loads(message.write("tasks.chat", "an-id", "chat", 4, {"message": "a secret"}))["headers"]
    assert "a secret" not in json.dumps(headers)


def test_next_run_counts_attempts_and_forgets_the_eta() -> None:
    payload = json.loads(message.write("tasks.chat", "an-id", "chat", 4, {"message": "hello"}))
    payload["headers"]["eta"] = "2030-01-01T00:00:00+00:00"
    again = json.loads(message.next_run(payload, spent=1))
    assert again["headers"]["retries"] == 1
    assert again["headers"]["eta"] is None
    assert again["body"] == payload["body"]


@pytest.mark.parametrize(
    ("raw", "part"),
    [
        ("", "not JSON"),
        ("[" * 100_000, "not JSON"),
        ("[]", "list"),
        ('{"headers": 1}', "headers"),
        ('{"headers": {}}', "properties"),
        ('{"headers": {}, "properties": {}}', "properties"),
        ('{"headers": {}, "properties": {"delivery_info": {}, "body_encoding": "base64"}, "body": "a"}', "base64"),
    ],
)
def test_names_what_is_wrong_with_a_malformed_message(raw: str, part: str) -> None:
    with pytest.raises(ValueError, match=part):
        message.read(raw)


@given(st.dictionaries(st.text(min_size=1), st.text() | st.integers() | st.none() | st.booleans()))
def test_arguments_arrive_as_they_were_given(kwargs: dict[str, Any]) -> None:
    envelope = message.read(message.write("tasks.chat", "an-id", "chat", 0, kwargs))
    assert json.loads(envelope["body"])[1] == kwargs
    assert message.arguments(envelope) == ([], kwargs)


def test_other_keyword_arguments_leave_the_rest_as_it_was() -> None:
    before = message.read(message.write("tasks.chat", "an-id", "chat", 4, {"message": "hello"}))
    after = message.read(message.with_kwargs(before, {"message": "bye ü"}))
    assert message.arguments(after) == ([], {"message": "bye ü"})
    assert {**after, "body": ""} == {**before, "body": ""}


@pytest.mark.parametrize("raw", ["not \udcff json", "[]", '{"headers": {"retries": 3}}'])
def test_a_message_that_cannot_be_read_begins_its_new_life_untouched(raw: str) -> None:
    assert message.first_run(raw) == raw


def test_a_message_with_odd_bytes_is_not_written_anew() -> None:
    text = message.write("tasks.chat", "an-id", "chat", 4, {}).replace('"retries":0', '"retries":3')
    assert json.loads(message.first_run(text))["headers"]["retries"] == 0
    odd = text.replace('"lang":"py"', '"lang":"\udcff"')
    assert message.first_run(odd) == odd
