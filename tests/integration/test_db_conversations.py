"""Questions and answers, written once per job, and what the model is shown of them."""

from __future__ import annotations

import threading
import uuid

import pytest
import sqlalchemy.exc
from sqlalchemy import text

from db import models
from db.conversations import turns
from db.conversations.turns import Answer
from db.engine import transaction
from db.errors import ConversationError, Fault, ForeignConversationError, TextError, fault_of

pytestmark = pytest.mark.usefixtures("database")


@pytest.fixture
def thread() -> str:
    """Name a conversation that does not exist yet."""
    return f"conversation-{uuid.uuid4().hex}"


def turn(thread: str, question: str, answer: str | None = None) -> str:
    """Store a question, and its answer if there is one, and return the job's id."""
    job_id = uuid.uuid4().hex
    turns.store_user_message(job_id, thread, question)
    if answer is not None:
        turns.store_answer(job_id, thread, answer)
    return job_id


def contents(messages: list[turns.Message]) -> list[str]:
    return [message.content for message in messages]


def test_the_first_message_makes_the_conversation(thread: str) -> None:
    stored = turns.store_user_message("job-" + thread, thread, "hello\n\U0001f44b", "ada", "acme")
    [message] = turns.history(thread)
    assert (message.id, message.role, message.content) == (stored, "user", "hello\n\U0001f44b")
    assert (message.job_id, message.created_at.tzinfo is not None) == ("job-" + thread, True)
    with transaction() as session:
        kept = session.get_one(models.Conversation, thread)
        assert (kept.user_id, kept.tenant, kept.language) == ("ada", "acme", None)


def test_a_second_run_stores_no_second_message(thread: str) -> None:
    first = turns.store_user_message("again-" + thread, thread, "hello")
    assert turns.store_user_message("again-" + thread, thread, "changed") == first
    assert contents(turns.history(thread)) == ["hello"]


def test_a_later_message_leaves_the_conversation_as_it_is(thread: str) -> None:
    turns.store_user_message("a-" + thread, thread, "one", user_id="ada")
    turns.store_user_message("b-" + thread, thread, "two", user_id="ada", tenant="acme")
    turns.store_user_message("c-" + thread, thread, "three")
    with transaction() as session:
        kept = session.get_one(models.Conversation, thread)
        assert (kept.user_id, kept.tenant) == ("ada", None)


@pytest.mark.parametrize(
    ("user", "tenant", "named"), [("bob", "acme", "user: 'bob'"), ("ada", "evil", "tenant: 'evil'")]
)
def test_nobody_writes_to_the_conversation_of_another(thread: str, user: str, tenant: str, named: str) -> None:
    turns.store_user_message("a-" + thread, thread, "my secret", "ada", "acme")
    with pytest.raises(ForeignConversationError, match=f"{named} is not the one .* give its"):
        turns.store_user_message("b-" + thread, thread, "what is the secret?", user, tenant)
    assert contents(turns.history(thread)) == ["my secret"]


def test_runs_that_race_store_one_message(thread: str) -> None:
    at_once = threading.Barrier(4)
    stored: list[int] = []

    def race() -> None:
        at_once.wait(10)
        stored.append(turns.store_user_message("race-" + thread, thread, "hello"))

    threads = [threading.Thread(target=race) for _ in range(4)]
    for one in threads:
        one.start()
    for one in threads:
        one.join(20)
    assert (len(stored), len(set(stored))) == (4, 1)
    assert contents(turns.history(thread)) == ["hello"]


def test_history_is_the_latest_and_oldest_first(thread: str) -> None:
    for number in range(4):
        turn(thread, f"q{number}", f"a{number}")
    turn("other-" + thread, "elsewhere")
    assert contents(turns.history(thread, limit=3)) == ["a2", "q3", "a3"]
    assert len(turns.history(thread)) == 8
    assert turns.history("nothing-" + thread) == []


def test_messages_of_one_moment_keep_their_order(thread: str) -> None:
    for number in range(5):
        turn(thread, f"q{number}")
    with transaction() as session:
        session.execute(
            text("UPDATE messages SET created_at = now() WHERE conversation_id = :thread"), {"thread": thread}
        )
    assert contents(turns.history(thread, limit=3)) == ["q2", "q3", "q4"]


def test_a_job_sees_what_came_before_it_and_itself(thread: str) -> None:
    turn(thread, "q0", "a0")
    job_id = turn(thread, "q1")
    turn(thread, "q2", "a2")
    turns.store_answer(job_id, thread, "a1")
    assert contents(turns.history_for(job_id)) == ["q0", "a0", "q1"]
    assert contents(turns.history_for(job_id, limit=2)) == ["a0", "q1"]


def test_a_job_without_a_message_is_named() -> None:
    with pytest.raises(ConversationError, match="'unheard' has stored no user message"):
        turns.history_for("unheard")


@pytest.mark.parametrize("limit", [0, -1, 1001])
def test_a_limit_outside_its_range_is_named(thread: str, limit: int) -> None:
    with pytest.raises(ConversationError, match=f"limit={limit}: a whole number from 1 to 1000"):
        turns.history(thread, limit)


def test_the_first_answer_stays(thread: str) -> None:
    job_id = turn(thread, "q")
    assert turns.answer_of(job_id) is None
    first = turns.store_answer(job_id, thread, "first", "model", 7, 3)
    assert first == Answer(first.message_id, thread, "first", "model", 7, 3)
    assert turns.store_answer(job_id, thread, "second", "model", 8, 4) == first
    assert turns.answer_of(job_id) == first
    assert contents(turns.history(thread)) == ["q", "first"]


@pytest.mark.parametrize("field", ["content", "conversation_id", "job_id", "user_id", "tenant"])
def test_text_that_cannot_be_stored_is_named(thread: str, field: str) -> None:
    fields = {"job_id": thread, "conversation_id": thread, "content": "x", "user_id": "x", "tenant": "x"}
    with pytest.raises(TextError, match=f"{field} holds U\\+0000"):
        turns.store_user_message(**(fields | {field: "a\0b"}))
    assert turns.history(thread) == []


def test_an_answer_needs_its_conversation(thread: str) -> None:
    with pytest.raises(sqlalchemy.exc.IntegrityError) as raised:
        turns.store_answer("job-" + thread, thread, "answer")
    assert fault_of(raised.value) is Fault.INPUT


def test_the_last_messages_come_off_the_index(thread: str) -> None:
    turn(thread, "q")
    with transaction() as session:
        session.execute(text("SET LOCAL enable_seqscan = off"))
        plan = session.scalars(
            text(
                "EXPLAIN SELECT id FROM messages WHERE conversation_id = :thread AND (created_at, id) <= (now(), 5)"
                " ORDER BY created_at DESC, id DESC LIMIT 15"
            ),
            {"thread": thread},
        ).all()
    assert "ix_messages_history" in "\n".join(plan)
    assert "Sort" not in "\n".join(plan)


def test_an_answer_takes_its_notice_s_place(thread: str) -> None:
    job_id = turn(thread, "q0")
    assert turns.store_notice(job_id, thread, "busy", "wait")
    turn(thread, "q1", "a1")
    assert [message.notice for message in turns.history(thread)] == [None, "busy", None, None]
    assert turns.answer_of(job_id) is None
    noticed = turns.history(thread)[1]
    answer = turns.store_answer(job_id, thread, "a0", "model", 7, 3, {"k": 1})
    assert answer == Answer(noticed.id, thread, "a0", "model", 7, 3, {"k": 1})
    assert contents(turns.history(thread)) == ["q0", "a0", "q1", "a1"]
    assert turns.history(thread)[1].notice is None


def test_a_job_has_one_notice_and_none_over_its_answer(thread: str) -> None:
    job_id = turn(thread, "q")
    assert turns.store_notice(job_id, thread, "busy", "wait")
    assert turns.store_notice(job_id, thread, "dead", "never")
    noticed = [(message.content, message.notice) for message in turns.history(thread)]
    assert noticed == [("q", None), ("never", "dead")]
    turns.store_answer(job_id, thread, "a")
    assert not turns.store_notice(job_id, thread, "failed", "late")
    assert contents(turns.history(thread)) == ["q", "a"]


def test_the_model_is_shown_no_notice(thread: str) -> None:
    turn(thread, "q0", "a0")
    turns.store_notice(turn(thread, "q1"), thread, "unavailable", "wait")
    job_id = turn(thread, "q2")
    turns.store_notice(job_id, thread, "busy", "wait")
    assert contents(turns.history_for(job_id)) == ["q0", "a0", "q1", "q2"]
    assert contents(turns.history_for(job_id, limit=3)) == ["a0", "q1", "q2"]
