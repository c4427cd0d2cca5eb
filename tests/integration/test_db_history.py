"""Pages of messages and conversations, and the search in them: what they hold, and what they cost."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
import sqlalchemy
from sqlalchemy import text

from db import engine, migration
from db.conversations import history, paging, search, summaries, turns
from db.conversations.paging import Page, Place
from db.engine import transaction
from db.errors import ConversationError, PageError, TextError, UnknownConversationError
from tests.plans import Asked, recorded

BIG, SMALL, HUNDRED = 100_000, 20, 100
WORDS = "river dam turbine water level gate sluice intake canal spillway penstock pressure head flow basin valve"
NOON = datetime(2026, 3, 1, 12, tzinfo=UTC)
#: 40 users with 25 conversations of 20 messages each, and one with a conversation of 100,000 and one of 100.
SEED = (
    """
    INSERT INTO conversations (id, user_id, created_at)
    SELECT 'c-' || u || '-' || n, 'user-' || u, timestamptz '2026-03-01 12:00Z' + n * interval '1 hour'
    FROM generate_series(1, 40) u, generate_series(1, 25) n
    """,
    """
    INSERT INTO conversations (id, user_id, created_at, language)
    VALUES ('big', 'ada', '2026-03-01 12:00Z', 'en'), ('hundred', 'ada', '2026-03-01 13:00Z', NULL)
    """,
    f"""
    INSERT INTO messages (conversation_id, role, content, created_at)
    SELECT c.id, CASE n % 2 WHEN 1 THEN 'user' ELSE 'assistant' END,
           format('%s %s and the %s of message %s', w[1 + n % 16], w[1 + n * 7 % 16], w[1 + (n / 16) % 16], n)
           || CASE WHEN n = 77 THEN ' with a needle in it' ELSE '' END,
           timestamptz '2026-03-01 12:00Z' + n * interval '1 second'
    FROM conversations c, string_to_array('{WORDS}', ' ') w,
         LATERAL generate_series(1, CASE c.id WHEN 'big' THEN {BIG} WHEN 'hundred' THEN {HUNDRED} ELSE {SMALL} END) n
    """,
)


@pytest.fixture(scope="module")
def seeded(machine: object) -> Iterator[str]:
    """Make a database of its own with realistic data, and return its URL."""
    url = engine.settings().url
    name = f"history_{uuid.uuid4().hex[:12]}"
    server = sqlalchemy.create_engine(url, isolation_level="AUTOCOMMIT", poolclass=sqlalchemy.NullPool)
    with server.connect() as connection:
        connection.execute(text(f"CREATE DATABASE {name}"))
    own = url.set(database=name).render_as_string(hide_password=False)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DATABASE_URL", own)
        engine.close()
        migration.upgrade("0003")
        with transaction() as session:
            for statement in SEED:
                session.execute(text(statement))
        migration.upgrade()  # an index is built faster than filled
        with engine.engine().connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
            connection.execute(text("VACUUM ANALYZE"))
        engine.close()
    yield own
    with server.connect() as connection:
        connection.execute(text(f"DROP DATABASE {name} WITH (FORCE)"))
    server.dispose()


@pytest.fixture(autouse=True)
def on_seeded(seeded: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    engine.close()
    monkeypatch.setenv("DATABASE_URL", seeded)
    yield
    engine.close()


def numbers(page: Page[turns.Message]) -> list[int]:
    """Return the messages' numbers in their conversation."""
    return [int((message.created_at - NOON).total_seconds()) for message in page.items]


def asked(call: Callable[[], object]) -> list[Asked]:
    with recorded() as found:
        call()
    return found


def test_the_default_page_is_the_latest_fifty_oldest_first() -> None:
    page = history.page("ada", "big")
    assert numbers(page) == list(range(BIG - 49, BIG + 1))
    assert (page.has_prev, page.has_next, page.total) == (True, False, None)
    assert history.page("ada", "hundred", total=True).total == HUNDRED


def test_cursors_lead_through_all_messages_back_and_forth() -> None:
    page, seen = history.page("ada", "hundred", 30), []
    while True:
        seen = numbers(page) + seen
        if not page.has_prev:
            break
        page = history.page("ada", "hundred", 30, cursor=page.prev_cursor)
    assert seen == list(range(1, HUNDRED + 1))
    assert (page.has_next, len(page.items)) == (True, 10)
    seen = numbers(page)
    while page.has_next:
        page = history.page("ada", "hundred", 30, cursor=page.next_cursor)
        assert page.has_prev
        seen += numbers(page)
    assert seen == list(range(1, HUNDRED + 1))
    end = history.page("ada", "hundred", 30, cursor=page.next_cursor)
    assert (end.items, end.has_prev, end.has_next, end.next_cursor) == ([], True, False, page.next_cursor)
    assert numbers(history.page("ada", "hundred", 30, cursor=end.prev_cursor)) == list(range(71, 101))


def test_pages_stay_as_they_are_while_messages_arrive() -> None:
    thread = uuid.uuid4().hex
    for number in range(6):
        turns.store_user_message(f"{thread}-{number}", thread, f"q{number}", "eve")
    latest = history.page("eve", thread, 2)
    turns.store_user_message(f"{thread}-6", thread, "q6", "eve")
    older = history.page("eve", thread, 2, cursor=latest.prev_cursor)
    assert [message.content for message in (*older.items, *latest.items)] == ["q2", "q3", "q4", "q5"]
    assert (latest.has_next, older.has_next) == (False, True)
    newer = history.page("eve", thread, 2, cursor=latest.next_cursor)
    assert ([message.content for message in newer.items], newer.has_next) == (["q6"], False)


def test_messages_of_one_moment_are_neither_lost_nor_repeated() -> None:
    thread = uuid.uuid4().hex
    for number in range(7):
        turns.store_user_message(f"{thread}-{number}", thread, f"q{number}", "eve")
    with transaction() as session:
        session.execute(text("UPDATE messages SET created_at = now() WHERE conversation_id = :c"), {"c": thread})
    page, seen = history.page("eve", thread, 3), []
    while page.items:
        seen = [message.content for message in page.items] + seen
        page = history.page("eve", thread, 3, cursor=page.prev_cursor)
    assert seen == [f"q{number}" for number in range(7)]


@pytest.mark.parametrize(
    ("offset", "expected", "has_prev", "has_next"),
    [
        (0, range(91, 101), True, False),
        (95, range(1, 6), False, True),
        (90, range(1, 11), False, True),
        (100, (), False, True),
    ],
)
def test_an_offset_leaves_out_the_latest(offset: int, expected: Any, has_prev: bool, has_next: bool) -> None:
    page = history.page("ada", "hundred", 10, offset=offset)
    assert (numbers(page), page.has_prev, page.has_next) == (list(expected), has_prev, has_next)


def test_before_and_after_a_message_or_a_time() -> None:
    whole = history.page("ada", "hundred", 100).items
    fifty = whole[49]
    around = [history.page("ada", "hundred", 3, before=place) for place in (fifty.id, fifty.created_at)]
    assert [numbers(page) for page in around] == [[47, 48, 49]] * 2
    assert all(page.has_prev and page.has_next for page in around)
    after = [history.page("ada", "hundred", 3, after=place) for place in (fifty.id, fifty.created_at)]
    assert [numbers(page) for page in after] == [[51, 52, 53]] * 2
    assert numbers(history.page("ada", "hundred", before=NOON + timedelta(seconds=3))) == [1, 2]
    first = history.page("ada", "hundred", before=whole[0].id)
    assert (first.items, first.has_prev, first.has_next) == ([], False, True)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"limit": 0}, "limit=0: a whole number from 1 to 1000; get more with further pages"),
        ({"before": "7"}, "before='7': give a message's id as a number, or a time as a datetime with its zone"),
        ({"limit": 1001}, "limit=1001: a whole number from 1 to 1000"),
        ({"limit": True}, "limit=True: a whole number"),
        ({"limit": "9"}, "limit='9': a whole number"),
        ({"offset": -1}, "offset=-1: a whole number from 0 to 100000; go further with a cursor"),
        ({"offset": 100_001}, "offset=100001: a whole number"),
        ({"cursor": "nonsense"}, "cursor='nonsense' is none of this list: take next_cursor or prev_cursor"),
        ({"cursor": "\u20ac" * 99}, "is none of this list"),
        ({"cursor": "W1tb" * 2000}, "is none of this list"),  # lists within lists
        ({"cursor": "WzFd"}, "cursor='WzFd' is none of this list"),
        ({"before": 10**30}, "before=1000000000000000000000000000000: no message of this conversation"),
        ({"after": NOON.replace(tzinfo=None)}, "after=2026-03-01T12:00:00: a time without its zone"),
        ({"offset": 1, "after": NOON}, "offset and after were given: give one of offset, cursor, before, after"),
    ],
)
def test_a_wrong_page_is_named_with_its_remedy(given: dict[str, Any], said: str) -> None:
    with pytest.raises(PageError) as raised:
        history.page("ada", "hundred", **given)
    assert said in str(raised.value)


def test_limits_are_those_of_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PAGINATION_DEFAULT_LIMIT", "3")
    monkeypatch.setenv("PAGINATION_MESSAGES_LIMIT", "5")
    monkeypatch.setenv("PAGINATION_OFFSET_LIMIT", "2")
    paging.limits.cache_clear()
    try:
        assert len(history.page("ada", "hundred").items) == 3
        assert len(history.page("ada", "hundred", 5, offset=2).items) == 5
        for given in ({"limit": 6}, {"offset": 3}):
            with pytest.raises(PageError, match="to [52]; g"):
                history.page("ada", "hundred", **given)  # type: ignore[arg-type]
        monkeypatch.setenv("PAGINATION_DEFAULT_LIMIT", "9")
        paging.limits.cache_clear()
        assert len(history.page("ada", "hundred").items) == 5
    finally:
        paging.limits.cache_clear()


def test_lists_have_at_most_five_hundred() -> None:
    with pytest.raises(PageError, match="limit=501: a whole number from 1 to 500"):
        summaries.page("ada", 501)
    with pytest.raises(PageError, match="limit=501: a whole number from 1 to 500"):
        search.messages("ada", "water", 501)


def test_a_cursor_serves_its_own_list_only() -> None:
    of_messages, of_conversations = history.page("ada", "hundred").prev_cursor, summaries.page("ada").next_cursor
    with pytest.raises(PageError, match="is none of this list"):
        summaries.page("ada", cursor=of_messages)
    with pytest.raises(PageError, match="is none of this list"):
        history.page("ada", "hundred", cursor=of_conversations)


def test_nothing_of_another_user_is_returned() -> None:
    theirs, cursor = history.page("ada", "hundred", 9), history.page("ada", "hundred", 9).prev_cursor
    ways: list[dict[str, Any]] = [
        {},
        {"offset": 5},
        {"cursor": cursor},
        {"before": NOON + timedelta(days=1)},
        {"total": True},
    ]
    for way in ways:
        with pytest.raises(UnknownConversationError, match="user 'user-1' has no conversation 'hundred'"):
            history.page("user-1", "hundred", **way)
    for other in ("hundred", "c-1-1"):  # nor does a message's id say anything, in their conversation or one's own
        with pytest.raises(PageError, match="no message of this conversation"):
            history.page("user-1", other, before=theirs.items[0].id)
    with pytest.raises(UnknownConversationError):
        summaries.of("user-1", "hundred")
    with pytest.raises(UnknownConversationError):
        summaries.set_language("user-1", "hundred", "de")
    assert summaries.of("ada", "hundred").language is None
    mine = summaries.page("user-1", 500, total=True)
    assert ({item.id.split("-")[1] for item in mine.items}, mine.total) == ({"1"}, 25)
    moved = summaries.page("user-1", 500, cursor=summaries.page("ada", 1).next_cursor)
    assert {item.id.split("-")[1] for item in moved.items} <= {"1"}
    found = search.messages("user-1", "water", 500, total=True)
    assert {item.conversation_id.split("-")[1] for item in found.items} == {"1"}
    assert found.total == len(found.items)
    assert search.messages("user-1", "needle", total=True) == search.Results([], False, False, 0)
    assert search.messages("user-1", "needle", conversation_id="hundred").items == []


def test_a_conversation_of_nobody_is_nobody_s() -> None:
    thread = uuid.uuid4().hex
    turns.store_user_message(thread, thread, "unowned penguin")
    for user in ("", "None", "ada"):
        with pytest.raises(UnknownConversationError):
            history.page(user, thread)
        assert search.messages(user, "penguin").items == []


def test_text_that_cannot_be_stored_is_not_looked_for() -> None:
    for call in (
        lambda: history.page("a\0", "c"),
        lambda: summaries.page("a\0"),
        lambda: summaries.of("a", "c\0"),
        lambda: search.messages("a", "\ud800"),
    ):
        with pytest.raises(TextError):
            call()


def test_a_summary_counts_in_one_statement_however_many_there_are() -> None:
    for limit in (1, 25):
        statements = asked(lambda limit=limit: summaries.page("user-7", limit, total=True))  # type: ignore[misc]
        assert len(statements) == 1
    page = summaries.page("user-7", 25, total=True)
    assert (len(page.items), page.total, page.has_next, page.has_prev) == (25, 25, False, False)
    assert {item.message_count for item in page.items} == {SMALL}
    newest = page.items[0]
    assert (newest.id, newest.created_at) == ("c-7-25", NOON + timedelta(hours=25))
    assert newest.last_message_at == NOON + timedelta(seconds=SMALL)
    assert newest.title == "dam intake and the river of message 1"
    big = summaries.of("ada", "big")
    assert (big.message_count, big.language) == (BIG, "en")
    assert len(asked(lambda: summaries.of("ada", "big"))) == 1


def test_the_list_of_conversations_goes_both_ways() -> None:
    page = summaries.page("user-3", 10)
    seen = [item.id for item in page.items]
    while page.has_next:
        page = summaries.page("user-3", 10, cursor=page.next_cursor)
        seen += [item.id for item in page.items]
    assert seen == [f"c-3-{number}" for number in range(25, 0, -1)]
    back = summaries.page("user-3", 10, cursor=page.prev_cursor)
    assert [item.id for item in back.items] == seen[10:20]
    assert (back.has_prev, back.has_next) == (True, True)
    end = summaries.page("user-3", 10, cursor=page.next_cursor)
    assert (end.items, end.has_prev, end.has_next) == ([], True, False)
    assert [item.id for item in summaries.page("user-3", 10, cursor=end.prev_cursor).items] == seen[15:]
    assert summaries.page("nobody", total=True) == Page([], False, False, None, None, 0)


def test_a_title_is_the_first_words_and_the_language_can_be_set() -> None:
    thread = uuid.uuid4().hex
    turns.store_user_message(thread, thread, "How   do\nI " + "open the gate " * 20, "eve")
    title = summaries.of("eve", thread).title
    assert title.startswith("How do I open the gate")
    assert title.endswith(" ...")
    assert len(title) <= 80
    summaries.set_language("eve", thread, "pt-BR")
    assert summaries.of("eve", thread).language == "pt-BR"
    with pytest.raises(ConversationError, match="language='pt_BR; --': a language's tag, such as en or pt-BR"):
        summaries.set_language("eve", thread, "pt_BR; --")
    other = uuid.uuid4().hex
    turns.store_user_message(other, other, "x" * 999, "eve")
    assert summaries.of("eve", other).title == "x" * 76 + " ..."


def test_words_are_found_ranked_and_marked() -> None:
    thread = uuid.uuid4().hex
    said = ["<b>Turbines</b> were running; a turbine ran. \ue000", "One turbine stands still.", "Nothing of the kind."]
    for number, content in enumerate(said):
        turns.store_user_message(f"{thread}-{number}", thread, content, "zoe")
    turns.store_notice(f"{thread}-0", thread, "busy", "turbine busy")
    found = search.messages("zoe", "turbine", total=True)
    assert ([item.rank > 0 for item in found.items], found.total) == ([True, True], 2)
    assert [item.rank for item in found.items] == sorted((item.rank for item in found.items), reverse=True)
    marked = {item.headline[begin:end] for item in found.items for begin, end in item.marks}
    assert marked == {"Turbines", "turbine"}
    assert not any("\ue000" in item.headline for item in found.items)
    [still] = search.messages("zoe", '"stands still"').items
    assert "turbine stands still" in still.headline
    assert [item.message_id for item in search.messages("zoe", "turbine -still").items] != [still.message_id]
    assert len(search.messages("zoe", "nothing or still").items) == 2
    assert search.messages("zoe", "the").items == []


def test_results_come_in_pages() -> None:
    whole = search.messages("user-9", "water", 500, total=True)
    parts, offset = [], 0
    while True:
        page = search.messages("user-9", "water", 30, offset)
        parts += page.items
        offset += 30
        if not page.has_next:
            break
    assert (len(parts), parts) == (whole.total, whole.items)
    assert page.has_prev


@pytest.mark.parametrize("query", ["", " \n", "w" * 1001])
def test_a_query_is_neither_empty_nor_endless(query: str) -> None:
    with pytest.raises(PageError, match="give a word or more, at most 1000 characters"):
        search.messages("ada", query)


@pytest.mark.parametrize(
    "content",
    [
        " ".join(f"{number:x}" for number in range(200_000)),
        " ".join(chr(0x20000 + number) for number in range(40_000)) * 3,
        "http://" + "/".join(f"a{number}.example.org" for number in range(20_000)),
        "-".join(f"w{number}" for number in range(60_000)),
        "x" * 2_000_000,
    ],
    ids=["words", "four bytes", "addresses", "hyphens", "one word"],
)
def test_a_message_of_any_length_is_stored(content: str) -> None:
    thread = uuid.uuid4().hex
    stored = turns.store_user_message(thread, thread, content, "eve")
    assert history.page("eve", thread).items[0].id == stored


MIDDLE = Place("messages", "before", NOON + timedelta(seconds=50_000), 70_000).cursor()
TENTH = Place("conversations", "before", NOON + timedelta(hours=10), "c-8-10").cursor()
READS: dict[str, tuple[Callable[[], object], set[str]]] = {
    "latest": (lambda: history.page("ada", "big"), {"ix_messages_history"}),
    "most": (lambda: history.page("ada", "big", 1000), {"ix_messages_history"}),
    "offset": (lambda: history.page("ada", "big", offset=50_000), {"ix_messages_history", "pk_messages"}),
    "before": (lambda: history.page("ada", "big", before=NOON + timedelta(seconds=40_000)), {"ix_messages_history"}),
    "after": (lambda: history.page("ada", "big", after=NOON + timedelta(seconds=40_000)), {"ix_messages_history"}),
    "small": (lambda: history.page("user-5", "c-5-5"), {"ix_messages_history"}),
    "total": (lambda: history.page("ada", "big", total=True), {"ix_messages_history"}),
    "summary": (lambda: summaries.of("ada", "big"), {"ix_messages_history", "pk_conversations"}),
    "conversations": (lambda: summaries.page("user-8", 10), {"ix_conversations_user", "ix_messages_history"}),
    "rare word": (lambda: search.messages("user-8", "needle"), {"ix_messages_search"}),
    "rare word in one conversation": (lambda: search.messages("ada", "needle", conversation_id="big"), set()),
    "frequent word": (lambda: search.messages("user-8", "water"), {"ix_conversations_user"}),
    "a user with much": (lambda: search.messages("ada", "needle"), set()),
    "cursor": (lambda: history.page("ada", "big", cursor=MIDDLE), {"ix_messages_history"}),
    "cursor of conversations": (lambda: summaries.page("user-8", 5, cursor=TENTH), {"ix_conversations_user"}),
}


@pytest.mark.parametrize("name", READS)
def test_no_read_scans_a_table(name: str) -> None:
    call, wanted = READS[name]
    statements = asked(call)
    assert len(statements) == 1
    assert statements[0].scanned_whole() == set()
    assert wanted <= statements[0].indexes()


def test_a_message_s_id_is_found_by_one_more_statement() -> None:
    last = history.page("ada", "big", 1).items[0].id
    statements = asked(lambda: history.page("ada", "big", before=last))
    assert [each.scanned_whole() for each in statements] == [set(), set()]


def test_a_page_costs_the_same_wherever_it_is_and_however_long_the_conversation() -> None:
    def blocks(*arguments: Any, **more: Any) -> int:
        [statement] = asked(lambda: history.page(*arguments, **more))
        return statement.blocks()

    small = blocks("ada", "hundred")
    assert blocks("ada", "big") <= 2 * small
    for second in (100, 50_000, 99_900):
        page = history.page("ada", "big", after=NOON + timedelta(seconds=second))
        assert blocks("ada", "big", cursor=page.next_cursor) <= 2 * small
        assert blocks("ada", "big", cursor=page.prev_cursor) <= 2 * small
    # what an offset leaves out is read in the index alone: not a tenth of the blocks that hold the messages
    assert blocks("ada", "big", offset=99_000) < BIG / 50
